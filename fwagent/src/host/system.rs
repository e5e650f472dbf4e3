//! What the running system uses, as far as the kernel shows it: mounts, swap, device-mapper and md, loop devices, and the
//! root that the kernel was told to mount.
//!
//! ```text
//! PROC/self/mountinfo, swaps, cmdline     SYS/dev/block/M:m/{dev,partition,holders,ro}     SYS/block/loop*/loop
//! ```
//!
//! A device is looked at together with its partitions or with the disk that it is a partition of: who writes one writes
//! the other. Mounts of other mount namespaces are not shown; opening a device exclusively finds these.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::machine::cmdline::{self, RootName};
use crate::machine::mounts::{self, DeviceNumber, Mount};

/// Longest text of the kernel that is read, in bytes: a mount has a hundred or two.
const TEXT_BYTES: u64 = 16 * 1024 * 1024;

/// Where the kernel shows what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// `/proc`
    pub proc: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            dev: "/dev".into(),
        }
    }
}

/// Who uses a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Use {
    /// A mount.
    #[error("{what} is mounted at {}", at.display())]
    Mounted {
        /// The device or file.
        what: String,
        /// Where.
        at: PathBuf,
    },
    /// A layer of a mounted overlay.
    #[error("it holds a layer of the overlay at {}", at.display())]
    Layer {
        /// Where the overlay is mounted.
        at: PathBuf,
    },
    /// Swap.
    #[error("{what} is swap space")]
    Swap {
        /// The device or file.
        what: String,
    },
    /// Device-mapper, md, or another driver that is built upon it.
    #[error("{device} is part of {holder}")]
    Held {
        /// The device.
        device: DeviceNumber,
        /// The kernel's name of what holds it.
        holder: String,
    },
    /// A loop device that is itself in use.
    #[error("it is behind {name}: {used}")]
    Loop {
        /// The kernel's name of the loop device.
        name: String,
        /// Its use.
        used: Box<Use>,
    },
    /// The kernel command line.
    #[error("the kernel command line names {device} as root")]
    Root {
        /// The device.
        device: DeviceNumber,
    },
    /// The kernel does not say who.
    #[error("the kernel keeps it for somebody else, perhaps a mount that is not visible here")]
    Claimed,
}

/// The number of a block device; `None` for anything else.
pub fn block_device(metadata: &fs::Metadata) -> Option<DeviceNumber> {
    metadata.file_type().is_block_device().then(|| DeviceNumber {
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
    })
}

/// All that the kernel says at one time.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    system: &'a System,
    mounts: Vec<Mount>,
    swaps: Vec<PathBuf>,
    root: Option<DeviceNumber>,
}

impl System {
    /// Reads what is mounted and swapped to.
    ///
    /// # Errors
    /// When the kernel does not say: then nobody can know that a slot is not in use.
    pub fn look(&self) -> io::Result<Snapshot<'_>> {
        let text = read_bounded(&self.proc.join("swaps")).or_else(|error| match error.kind() {
            // A kernel without swap.
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        })?;
        let cmdline = read_bounded(&self.proc.join("cmdline"))?;
        Ok(Snapshot {
            system: self,
            mounts: self.mounts()?,
            swaps: mounts::swaps(&text).map_err(invalid)?,
            root: self.root_device(&String::from_utf8_lossy(&cmdline)),
        })
    }

    /// All mounts.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn mounts(&self) -> io::Result<Vec<Mount>> {
        mounts::mounts(&read_bounded(&self.proc.join("self/mountinfo"))?).map_err(invalid)
    }

    /// The device that a kernel command line names as root, if it is there.
    pub fn root_device(&self, cmdline: &str) -> Option<DeviceNumber> {
        let node = |path: &Path| block_device(&fs::metadata(path).ok()?);
        match cmdline::root(cmdline)? {
            RootName::Number(number) => Some(number),
            RootName::Path(path) => node(&self.dev.join(path.strip_prefix("/dev").ok()?)),
            RootName::Tag { tag, value } => {
                let links = self.dev.join("disk").join(tag.directory());
                // The ids of partition tables have no case; udev writes them small.
                [value.clone(), value.to_ascii_lowercase()]
                    .iter()
                    .find_map(|value| node(&links.join(cmdline::link_name(value))))
                    .or_else(|| self.partition(tag.uevent()?, &value))
            }
        }
    }

    /// The only partition of which the kernel says `key=value`.
    fn partition(&self, key: &str, value: &str) -> Option<DeviceNumber> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.sys.join("class/block")).ok()?.flatten() {
            let Ok(text) = read_bounded(&entry.path().join("uevent")) else {
                continue;
            };
            let text = String::from_utf8_lossy(&text);
            let same = |line: &str| {
                let said = line.strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
                said.is_some_and(|said| said == value || (key == "PARTUUID" && said.eq_ignore_ascii_case(value)))
            };
            if text.lines().any(same) {
                found.extend(self.number_in(&entry.path()));
            }
        }
        // Two disks may have partitions of the same name.
        (found.len() == 1).then(|| found[0])
    }

    /// Whether a device can only be read.
    pub fn is_read_only(&self, device: DeviceNumber) -> bool {
        let text = read_bounded(&self.device_dir(device).join("ro")).unwrap_or_default();
        text.trim_ascii() == b"1"
    }

    fn device_dir(&self, device: DeviceNumber) -> PathBuf {
        self.sys.join("dev/block").join(device.to_string())
    }

    fn number_in(&self, dir: &Path) -> Option<DeviceNumber> {
        let text = read_bounded(&dir.join("dev")).ok()?;
        DeviceNumber::parse(std::str::from_utf8(&text).ok()?.trim_ascii())
    }

    /// The device, and its partitions or the disk that it is a partition of; each with its directory.
    fn related(&self, device: DeviceNumber) -> Vec<(DeviceNumber, PathBuf)> {
        let dir = self.device_dir(device);
        let mut related = vec![(device, dir.clone())];
        let Ok(real) = fs::canonicalize(&dir) else {
            return related;
        };
        let others = if real.join("partition").exists() {
            real.parent().map(Path::to_owned).into_iter().collect()
        } else {
            let entries = fs::read_dir(&real).into_iter().flatten().flatten();
            let dirs = entries.map(|entry| entry.path());
            dirs.filter(|dir| dir.join("partition").exists()).collect::<Vec<_>>()
        };
        related.extend(others.into_iter().filter_map(|dir| Some((self.number_in(&dir)?, dir))));
        related
    }

    /// Whether a mount is of a loop device over this file.
    pub fn is_behind(&self, file: &fs::Metadata, mount: &Mount) -> bool {
        let mut loops = self.loops().into_iter();
        loops.any(|(_, number, behind)| is_same(&behind, file) && is_on(mount, number))
    }

    /// The loop devices, each with what is behind it.
    fn loops(&self) -> Vec<(String, DeviceNumber, fs::Metadata)> {
        let mut loops = Vec::new();
        for entry in fs::read_dir(self.sys.join("block")).into_iter().flatten().flatten() {
            let Ok(text) = read_bounded(&entry.path().join("loop/backing_file")) else {
                continue;
            };
            let path = Path::new(std::ffi::OsStr::from_bytes(text.strip_suffix(b"\n").unwrap_or(&text)));
            // A file that is deleted, or out of sight, is no slot of ours.
            if let (Some(number), Ok(behind)) = (self.number_in(&entry.path()), fs::metadata(path)) {
                loops.push((entry.file_name().to_string_lossy().into_owned(), number, behind));
            }
        }
        loops
    }
}

impl Snapshot<'_> {
    /// Who uses a block device, its partitions, or the disk that it is a partition of.
    pub fn device(&self, device: DeviceNumber) -> Option<Use> {
        self.device_at(device, MAX_DEPTH)
    }

    fn device_at(&self, device: DeviceNumber, depth: u32) -> Option<Use> {
        for (device, dir) in self.system.related(device) {
            if let Some(mount) = self.mounts.iter().find(|mount| is_on(mount, device)) {
                let (what, at) = (device.to_string(), mount.point.clone());
                return Some(Use::Mounted { what, at });
            }
            let swap = self.swaps.iter().find(|path| {
                let found = fs::metadata(path).ok();
                found.and_then(|found| block_device(&found)) == Some(device)
            });
            if swap.is_some() {
                let what = device.to_string();
                return Some(Use::Swap { what });
            }
            let mut holders = fs::read_dir(dir.join("holders")).into_iter().flatten().flatten();
            if let Some(holder) = holders.next() {
                let holder = holder.file_name().to_string_lossy().into_owned();
                return Some(Use::Held { device, holder });
            }
            if self.root == Some(device) {
                return Some(Use::Root { device });
            }
            let behind = self.behind_loop(|behind| block_device(behind) == Some(device), depth);
            if behind.is_some() {
                return behind;
            }
        }
        None
    }

    /// Who uses a regular file.
    pub fn file(&self, metadata: &fs::Metadata) -> Option<Use> {
        self.file_at(metadata, MAX_DEPTH)
    }

    fn file_at(&self, metadata: &fs::Metadata, depth: u32) -> Option<Use> {
        let same = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| is_same(&found, metadata));
        if let Some(path) = self.swaps.iter().find(|path| same(path)) {
            let what = path.display().to_string();
            return Some(Use::Swap { what });
        }
        // File systems that need no loop device.
        if let Some(mount) = self
            .mounts
            .iter()
            .find(|mount| mount.source.is_absolute() && same(&mount.source))
        {
            let (what, at) = (mount.source.display().to_string(), mount.point.clone());
            return Some(Use::Mounted { what, at });
        }
        self.behind_loop(|behind| is_same(behind, metadata), depth)
    }

    fn behind_loop(&self, is_behind: impl Fn(&fs::Metadata) -> bool, depth: u32) -> Option<Use> {
        // A loop device may be behind another, and the kernel forbids circles; sysfs may be anything.
        let depth = depth.checked_sub(1)?;
        let loops = self.system.loops();
        let found = loops.into_iter().filter(|(_, _, behind)| is_behind(behind));
        found
            .filter_map(|(name, number, _)| {
                let used = Box::new(self.device_at(number, depth)?);
                Some(Use::Loop { name, used })
            })
            .next()
    }

    /// Who uses a tree: it is the root, mounted elsewhere, or a layer of an overlay. `dir` is the directory with the trees.
    pub fn tree(&self, dir: &Path, current: &Path) -> Option<Use> {
        if let Ok(tree) = fs::metadata(current) {
            let number = DeviceNumber {
                major: major(tree.dev()),
                minor: minor(tree.dev()),
            };
            // Only what is of the same file system is looked at: others may not answer.
            let bound = self.mounts.iter().filter(|mount| mount.device == number);
            let mut points = bound.map(|mount| mount.point.as_path()).chain([Path::new("/")]);
            if let Some(at) = points.find(|at| fs::metadata(at).is_ok_and(|found| is_same(&found, &tree))) {
                let (what, at) = (current.display().to_string(), at.to_owned());
                return Some(Use::Mounted { what, at });
            }
        }
        let dir = fs::canonicalize(dir).ok()?;
        let inside = |layer: &PathBuf| fs::canonicalize(layer).is_ok_and(|layer| layer.starts_with(&dir));
        let overlay = self.mounts.iter().find(|mount| mount.layers().iter().any(inside))?;
        let at = overlay.point.clone();
        Some(Use::Layer { at })
    }
}

/// Loop devices behind loop devices that are followed.
const MAX_DEPTH: u32 = 4;

/// Whether a mount is of this device: by its number, or, for file systems that have numbers of their own, by its source.
pub fn is_on(mount: &Mount, device: DeviceNumber) -> bool {
    let by_source = || {
        let found = fs::metadata(&mount.source).ok();
        mount.source.is_absolute() && found.and_then(|found| block_device(&found)) == Some(device)
    };
    mount.device == device || (mount.device.major == 0 && by_source())
}

/// Whether two names are of one thing.
pub fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn invalid(error: mounts::KernelTextError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than is believed"));
    }
    Ok(bytes)
}
