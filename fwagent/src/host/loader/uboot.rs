//! The medium of U-Boot: one or two copies of its environment on a block device or in a file.
//!
//! ```text
//! redundant   read both -> write the inactive copy, flags one higher -> fsync -> read both back
//! single      a file of its own: replaced by rename; anywhere else: written in place
//! ```
//!
//! A loss of power in the middle of a redundant write leaves the active copy, and in the middle of a replaced file the
//! old file. A single copy in the middle of a device has neither: a torn write there makes U-Boot use its built-in
//! environment, and the agent refuses to guess.
//!
//! Raw flash needs to be erased and its flags work differently; it is refused, also behind `/dev/mtdblock`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise, major};

use crate::host::loader::Medium;
use crate::host::loader::file_lock::FileLock;
use crate::machine::slot::SlotId;
use crate::machine::uboot_config::{Place, Places};
use crate::machine::uboot_env::{Active, ByteOrder, EnvError, Environment, Format, Layout};
use crate::ports::PortError;

/// Longest `fw_env.config`, in bytes.
const CONFIG_BYTES: u64 = 64 * 1024;
/// Major number of `/dev/mtdblock`.
const MTD_BLOCK: u32 = 31;

/// The environment of U-Boot.
#[derive(Debug)]
pub struct Uboot {
    config: PathBuf,
    byte_order: ByteOrder,
    lock: FileLock,
}

/// Where a copy lies, now that the device was looked at.
#[derive(Debug)]
struct Copy {
    /// Without symbolic links.
    path: PathBuf,
    offset: u64,
    size: usize,
    /// Its permissions, if it is a file with nothing else in it.
    alone: Option<u32>,
}

/// What was read.
#[derive(Debug)]
enum Found {
    Single(Environment),
    Redundant(Active),
}

impl Found {
    fn environment(&self) -> &Environment {
        match self {
            Self::Single(environment) => environment,
            Self::Redundant(active) => &active.environment,
        }
    }
}

impl Uboot {
    /// The environment that the file `config`, a `fw_env.config`, describes; `lock` is that of the tools of U-Boot.
    pub fn new(config: PathBuf, byte_order: ByteOrder, lock: FileLock) -> Self {
        Self {
            config,
            byte_order,
            lock,
        }
    }

    fn copies(&self) -> Result<Vec<Copy>, PortError> {
        let attempt = || format!("reading {}", self.config.display());
        let mut text = String::new();
        File::open(&self.config)
            .and_then(|file| file.take(CONFIG_BYTES).read_to_string(&mut text))
            .map_err(|error| PortError::environment(attempt(), Some(error.into())))?;
        let places = Places::parse(&text).map_err(|error| PortError::environment(attempt(), Some(error.into())))?;
        let places = match places {
            Places::Single(place) => vec![place],
            Places::Redundant(places) => places.to_vec(),
        };
        let copies: Result<Vec<Copy>, PortError> = places.iter().map(Copy::find).collect();
        let copies = copies?;
        if let [first, second] = copies.as_slice()
            && first.path == second.path
            && first.offset.abs_diff(second.offset) < first.size as u64
        {
            return Err(PortError::environment(
                format!("{}: the two copies overlap", attempt()),
                None,
            ));
        }
        Ok(copies)
    }

    fn found(&self, copies: &[Copy]) -> Result<Found, PortError> {
        let images: Result<Vec<_>, PortError> = copies.iter().map(Copy::read).collect();
        let images = images?;
        let found = match images.as_slice() {
            [first, second] => Active::choose([first, second], self.byte_order).map(Found::Redundant),
            _ => Environment::decode(&images[0], self.format(Layout::Single)).map(|(found, _)| Found::Single(found)),
        };
        found.map_err(failed("reading the environment of U-Boot"))
    }

    fn format(&self, layout: Layout) -> Format {
        Format {
            layout,
            byte_order: self.byte_order,
        }
    }
}

impl Medium for Uboot {
    type Vars = Environment;

    fn lock(&self) -> Result<Option<File>, PortError> {
        self.lock.take()
    }

    fn read(&self, _running: Option<&SlotId>) -> Result<(Environment, bool), PortError> {
        let found = self.found(&self.copies()?)?;
        Ok((found.environment().clone(), false))
    }

    /// A damaged copy is the inactive one, which the next write replaces.
    fn mend(&mut self, _vars: &Environment) -> Result<(), PortError> {
        Ok(())
    }

    fn write(&mut self, vars: &Environment) -> Result<(), PortError> {
        let attempt = "writing the environment of U-Boot";
        let copies = self.copies()?;
        let (copy, flags, layout) = match self.found(&copies)? {
            Found::Single(_) => (0, 0, Layout::Single),
            Found::Redundant(active) => {
                let (copy, flags) = active.next();
                (copy, flags, Layout::Redundant)
            }
        };
        let image = vars.encode(self.format(layout), flags).map_err(failed(attempt))?;
        copies[copy].write(&image)?;
        let active = match self.found(&copies)? {
            Found::Single(_) => true,
            Found::Redundant(active) => (active.copy, active.flags) == (copy, flags),
        };
        if !active || copies[copy].read()? != image {
            let path = copies[copy].path.display();
            return Err(PortError::environment(
                format!("{attempt}: {path} gives back something else"),
                None,
            ));
        }
        Ok(())
    }
}

fn failed(attempt: &'static str) -> impl FnOnce(EnvError) -> PortError {
    move |error| PortError::environment(attempt, Some(error.into()))
}

impl Copy {
    fn find(place: &Place) -> Result<Self, PortError> {
        let failed = |error: io::Error| {
            let attempt = format!("looking at the environment of U-Boot in {}", place.path.display());
            PortError::environment(attempt, Some(error.into()))
        };
        let path = place.path.canonicalize().map_err(failed)?;
        let metadata = path.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        let length = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() && major(metadata.rdev()) != MTD_BLOCK {
            let end = File::open(&path).and_then(|mut device| device.seek(SeekFrom::End(0)));
            end.map_err(failed)?
        } else {
            return Err(failed(io::Error::other(
                "it is neither a file nor a block device other than flash",
            )));
        };
        let offset = if place.offset < 0 {
            length.checked_sub(place.offset.unsigned_abs())
        } else {
            Some(place.offset.unsigned_abs())
        };
        let size = place.size as u64;
        let fits = offset.filter(|offset| offset.checked_add(size).is_some_and(|end| end <= length));
        let offset = fits.ok_or_else(|| failed(io::Error::other("it lies outside of the device or file")))?;
        Ok(Self {
            path,
            offset,
            size: place.size,
            alone: (kind.is_file() && length == size).then_some(metadata.permissions().mode() & 0o7777),
        })
    }

    fn read(&self) -> Result<Vec<u8>, PortError> {
        let mut image = vec![0; self.size];
        File::open(&self.path)
            .and_then(|file| {
                // What is read is to be what is on the medium. The kernel may know better; then it is only not as strict.
                let _ = fadvise(
                    &file,
                    self.offset,
                    std::num::NonZeroU64::new(self.size as u64),
                    Advice::DontNeed,
                );
                file.read_exact_at(&mut image, self.offset)
            })
            .map_err(|error| self.failed("reading", error))?;
        Ok(image)
    }

    fn write(&self, image: &[u8]) -> Result<(), PortError> {
        let written = match self.alone {
            Some(mode) => fwdurable::write_file_mode(&self.path, image, mode),
            None => write_in_place(&self.path, image, self.offset),
        };
        written.map_err(|error| self.failed("writing", error))
    }

    fn failed(&self, action: &str, error: io::Error) -> PortError {
        let attempt = format!("{action} the environment of U-Boot in {}", self.path.display());
        PortError::environment(attempt, Some(error.into()))
    }
}

/// Overwrites bytes of an existing file or device, durably.
pub(super) fn write_in_place(path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}
