//! Collects what a system shows about its boot loader and slots, below a root directory. It reads and never writes, and
//! what it cannot read is as if it were not there, unless the difference matters.
//!
//! Symbolic links are resolved as that system would (`openat2` with `RESOLVE_IN_ROOT`), so that an image that is mounted
//! somewhere is not mixed up with the system that inspects it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::host::loader::efivarfs::EfiVars;
use crate::host::loader::gpt;
use crate::machine::adopt::{EfiFact, Facts, GrubFact, MountFact, PartitionFact};
use crate::machine::autoboot::Autoboot;
use crate::machine::cmdline::{self, RootName, RootTag};
use crate::machine::efi_boot::{BootNumber, LoadOption, number};
use crate::machine::grub_env::{BLOCK_BYTES, Block};
use crate::machine::mounts;
use crate::machine::uboot_config::{Place, Places};
use crate::machine::uboot_env::{Active, ByteOrder, EnvError, Environment, Format, Layout};

/// Longest file that is read, in bytes.
const FILE_BYTES: u64 = 1024 * 1024;
/// Most entries of a directory that are looked at.
const ENTRIES: usize = 4096;
/// Vendor of the variables of the boot manager (UEFI 2.10 §3.3).
const EFI_GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

const GRUB_CONFIGS: [&str; 3] = [
    "boot/grub/grub.cfg",
    "boot/grub2/grub.cfg",
    "boot/efi/EFI/BOOT/grub.cfg",
];
const GRUB_BLOCKS: [&str; 4] = [
    "boot/grub/grubenv",
    "boot/grub2/grubenv",
    "boot/efi/EFI/BOOT/grubenv",
    "grubenv/grubenv",
];
const ESPS: [&str; 3] = ["boot/efi", "efi", "boot"];
const AUTOBOOTS: [&str; 3] = ["boot/firmware/autoboot.txt", "boot/autoboot.txt", "autoboot.txt"];

/// Number of the partition that a Raspberry Pi has booted, big-endian.
const BOOTED_PARTITION: &str = "proc/device-tree/chosen/bootloader/partition";

/// A system below a directory.
struct Sysroot(File);

/// Looks at the system below `root`.
///
/// # Errors
/// When `root` is no directory that can be read, or the kernel is older than Linux 5.6.
pub fn survey(root: &Path) -> io::Result<Facts> {
    let directory = File::open(root)?;
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let system = Sysroot(directory);
    // The control: where this does not work, nothing would seem to be there.
    system.open(Path::new("."), OFlags::DIRECTORY)?;
    let mounts = system
        .read("proc/self/mountinfo")
        .and_then(|text| mounts::mounts(&text).ok());
    let mounts = mounts.unwrap_or_default();
    let cmdline = system.text("proc/cmdline").unwrap_or_default();
    let links = Links::new(&system);
    let root_mount = mounts.iter().rev().find(|mount| mount.point == Path::new("/"));
    let root_device = root_mount
        .and_then(|mount| links.device(&mount.source))
        .or_else(|| links.root(&cmdline));
    let facts = mounts.iter().filter_map(|mount| {
        Some(MountFact {
            point: mount.point.to_str()?.to_owned(),
            device: links.device(&mount.source)?,
            writable: mount.writable(),
        })
    });
    Ok(Facts {
        root: root_device,
        mounts: facts.collect(),
        partitions: links.labels(),
        os_release: os_release(&system),
        model: model(&system),
        uboot: uboot(&system),
        grub: grub(&system),
        disks: disks(&system),
        efi: efi(root),
        entries: entries(&system),
        autoboot: AUTOBOOTS.into_iter().find_map(|path| {
            let read = Autoboot::parse(&system.read(path)?).map_err(|error| error.to_string());
            Some((format!("/{path}"), read))
        }),
        booted_partition: system
            .read(BOOTED_PARTITION)
            .and_then(|number| match number.as_slice() {
                [0, 0, 0, number] => Some(*number),
                _ => None,
            }),
        cmdline,
    })
}

impl Sysroot {
    fn open(&self, path: &Path, more: OFlags) -> io::Result<File> {
        let path = path.strip_prefix("/").unwrap_or(path);
        // No pipe is waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | more;
        Ok(openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?.into())
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let file = self.open(path.as_ref(), OFlags::empty()).ok()?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(String::from_utf8_lossy(&self.read(path)?).into_owned())
    }

    /// Names in a directory, sorted.
    fn names(&self, path: &str) -> Vec<String> {
        let Ok(directory) = self.open(Path::new(path), OFlags::DIRECTORY) else {
            return Vec::new();
        };
        let listed = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let names = listed.into_iter().flatten().take(ENTRIES);
        let mut names: Vec<String> = names
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Where a link in a directory leads, its last part only.
    fn target(&self, directory: &str, name: &str) -> Option<String> {
        let directory = self.open(Path::new(directory), OFlags::DIRECTORY).ok()?;
        let target = std::fs::read_link(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// The links of udev: directory and name to the name of a device.
struct Links(BTreeMap<(&'static str, String), String>);

impl Links {
    fn new(system: &Sysroot) -> Self {
        let mut links = BTreeMap::new();
        for tag in [RootTag::PartLabel, RootTag::PartUuid, RootTag::Uuid, RootTag::Label] {
            let directory = tag.directory();
            let path = format!("dev/disk/{directory}");
            for name in system.names(&path) {
                if let Some(target) = system.target(&path, &name) {
                    links.insert((directory, name), target);
                }
            }
        }
        Self(links)
    }

    fn labels(&self) -> Vec<PartitionFact> {
        let labels = self
            .0
            .iter()
            .filter(|((directory, _), _)| *directory == RootTag::PartLabel.directory());
        labels
            .map(|((_, label), device)| PartitionFact {
                device: device.clone(),
                label: label.clone(),
            })
            .collect()
    }

    /// The name of the device that a path means; `/dev/root` means none.
    fn device(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix("/dev").ok()?;
        if let Ok(link) = rest.strip_prefix("disk") {
            let mut parts = link.iter().filter_map(|part| part.to_str());
            let (directory, name) = (parts.next()?, parts.next()?);
            return self.find(directory, name);
        }
        let name = rest.to_str().filter(|name| *name != "root" && !name.contains('/'))?;
        Some(name.to_owned())
    }

    fn find(&self, directory: &str, name: &str) -> Option<String> {
        let mut found = self
            .0
            .iter()
            .filter(|((other, link), _)| *other == directory && link == name);
        found.next().map(|(_, device)| device.clone())
    }

    fn root(&self, cmdline: &str) -> Option<String> {
        match cmdline::root(cmdline)? {
            RootName::Path(path) => self.device(&path),
            RootName::Tag { tag, value } => self.find(tag.directory(), &cmdline::link_name(&value)),
            RootName::Number(_) => None,
        }
    }
}

fn os_release(system: &Sysroot) -> BTreeMap<String, String> {
    let text = system
        .text("etc/os-release")
        .or_else(|| system.text("usr/lib/os-release"));
    let text = text.unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(name, value)| (name.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
        .collect()
}

/// The most particular name that the device tree is compatible with, or what the firmware calls the product.
fn model(system: &Sysroot) -> Option<String> {
    let tree = system.read("proc/device-tree/compatible").and_then(|names| {
        let first = names.split(|byte| *byte == 0).next()?;
        String::from_utf8(first.to_vec()).ok()
    });
    let name = tree.or_else(|| system.text("sys/class/dmi/id/product_name"))?;
    let name = name.trim();
    (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
}

fn uboot(system: &Sysroot) -> Option<Result<(Environment, ByteOrder), String>> {
    let text = system.text("etc/fw_env.config")?;
    let places = match Places::parse(&text) {
        Ok(Places::Single(place)) => vec![place],
        Ok(Places::Redundant(places)) => places.to_vec(),
        Err(error) => return Some(Err(format!("/etc/fw_env.config, {error}"))),
    };
    let mut images = Vec::new();
    for place in &places {
        match image(system, place) {
            Ok(image) => images.push(image),
            Err(error) => return Some(Err(format!("{}: {error}", place.path.display()))),
        }
    }
    let read = |byte_order| match images.as_slice() {
        [first, second] => Active::choose([first, second], byte_order).map(|active| active.environment),
        [only] => {
            let layout = Layout::Single;
            Environment::decode(only, Format { layout, byte_order }).map(|(found, _)| found)
        }
        _ => Err(EnvError::BothBad),
    };
    let found = read(ByteOrder::Little).map(|found| (found, ByteOrder::Little));
    let found = found.or_else(|little| match read(ByteOrder::Big) {
        Ok(found) => Ok((found, ByteOrder::Big)),
        Err(_) => Err(little),
    });
    Some(found.map_err(|error| format!("{}: {error}", places[0].path.display())))
}

fn image(system: &Sysroot, place: &Place) -> io::Result<Vec<u8>> {
    let mut file = system.open(&place.path, OFlags::empty())?;
    let from = match u64::try_from(place.offset) {
        Ok(offset) => SeekFrom::Start(offset),
        Err(_) => SeekFrom::End(place.offset),
    };
    file.seek(from)?;
    // Bounded when the file of places was read.
    let mut image = vec![0; place.size];
    file.read_exact(&mut image)?;
    Ok(image)
}

fn grub(system: &Sysroot) -> GrubFact {
    let there = |path: &&str| system.read(path).is_some();
    let blocks = GRUB_BLOCKS.into_iter().filter_map(|path| {
        let mut bytes = system.read(path)?;
        bytes.truncate(BLOCK_BYTES + 1);
        Some((
            format!("/{path}"),
            Block::decode(&bytes).map_err(|error| error.to_string()),
        ))
    });
    GrubFact {
        configs: GRUB_CONFIGS
            .into_iter()
            .filter(there)
            .map(|path| format!("/{path}"))
            .collect(),
        blocks: blocks.collect(),
    }
}

fn disks(system: &Sysroot) -> Vec<(String, crate::machine::gpt::Table)> {
    let names = system.names("sys/block").into_iter().filter(|name| {
        let other = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd"];
        !other.iter().any(|prefix| name.starts_with(prefix))
    });
    names
        .filter_map(|name| {
            let path = format!("/dev/{name}");
            let table = gpt::table(system.open(Path::new(&path), OFlags::empty()).ok()?)?;
            Some((path, table))
        })
        .collect()
}

fn efi(root: &Path) -> Option<EfiFact> {
    let vars = EfiVars::new(root.join("sys/firmware/efi/efivars"));
    let mut fact = EfiFact::default();
    for name in vars.names(EFI_GLOBAL).ok()? {
        let Some(option) = BootNumber::parse(&name) else {
            continue;
        };
        let Ok(Some(data)) = vars.read(&name, EFI_GLOBAL) else {
            continue;
        };
        if let Ok(found) = LoadOption::decode(&data) {
            fact.options.insert(option.0, found.description);
        }
    }
    let current = vars.read("BootCurrent", EFI_GLOBAL).ok().flatten();
    fact.current = current
        .and_then(|data| number("BootCurrent", &data).ok())
        .map(|number| number.0);
    (!fact.options.is_empty()).then_some(fact)
}

/// Boot entries of systemd-boot of both types.
fn entries(system: &Sysroot) -> Vec<String> {
    let mut found = BTreeSet::new();
    for esp in ESPS {
        for (directory, ending) in [("loader/entries", ".conf"), ("EFI/Linux", ".efi")] {
            let names = system.names(&format!("{esp}/{directory}")).into_iter();
            found.extend(names.filter(|name| name.ends_with(ending)));
        }
    }
    found.into_iter().collect()
}
