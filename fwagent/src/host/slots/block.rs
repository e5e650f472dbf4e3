//! A slot that is a block device: a disk or a partition. The image is written to its start; what follows stays as it is
//! and belongs to no image.
//!
//! A device is known by its number, read once from what its name, perhaps a link such as `/dev/disk/by-partlabel/…`,
//! leads to. Before the first byte it is looked up in all lists of what the kernel uses ([`System`]), and it is opened
//! with `O_EXCL`, upon which the kernel itself refuses a device that is mounted, swapped to or built upon, anywhere on
//! it, and keeps it from becoming that until the end.
//!
//! It is read back with `O_DIRECT`: the kernel fetches every block from the device. Dropping its copies instead is only
//! advice, and the request `BLKFLSBUF` needs unsafe code.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fwmeta::manifest::Image;
use fwmeta::target::MismatchError;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::image::ImageReader;
use super::{SlotError, failed, in_use, raw};
use crate::host::system::{System, Use, block_device};
use crate::machine::mounts::DeviceNumber;

/// A device that may be written; while this lives, nobody mounts it.
#[derive(Debug)]
pub(super) struct Claimed {
    file: File,
    path: PathBuf,
}

/// Claims the device for an image of `size` bytes, without writing.
pub(super) fn claim(path: &Path, size: u64, system: &System) -> Result<Claimed, SlotError> {
    // The link is followed here and not again: what it leads to may be replaced, so the number is compared.
    let node = fs::canonicalize(path).map_err(failed("finding", path))?;
    let device = number(path, &fs::metadata(&node).map_err(failed("reading", &node))?)?;
    in_use(path, system.look().map_err(SlotError::Unknown)?.device(device))?;
    if system.is_read_only(device) {
        return Err(read_only(path));
    }
    let flags = OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = open(&node, OpenOptions::new().read(true).write(true), flags);
    let mut file = opened.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => used(path, Use::Claimed),
        Some(Errno::ROFS) => read_only(path),
        _ => failed("opening", path)(error),
    })?;
    if number(path, &file.metadata().map_err(failed("reading", path))?)? != device {
        return Err(SlotError::Obstacle {
            path: path.to_owned(),
            expected: "the block device that it was a moment ago",
        });
    }
    let slot = file.seek(SeekFrom::End(0)).map_err(failed("measuring", path))?;
    file.rewind().map_err(failed("measuring", path))?;
    if size > slot {
        let (path, image) = (path.to_owned(), size);
        return Err(SlotError::TooLarge { path, image, slot });
    }
    let path = path.to_owned();
    Ok(Claimed { file, path })
}

impl Claimed {
    /// Replaces the start of the device by the image, read back from the medium.
    pub(super) fn write(self, image: ImageReader<'_>) -> Result<(), SlotError> {
        let Self { mut file, path } = self;
        let announced = image.image();
        raw::stream(image, &mut file, &path)?;
        // The same open device, so that nobody can have come in between.
        matches(file, &path, announced)?.map_err(SlotError::read_back(&path))
    }
}

/// Whether the device begins with the image. It may be in use.
pub(super) fn holds(path: &Path, image: &Image) -> Result<bool, SlotError> {
    let opened = open(path, OpenOptions::new().read(true), OFlags::NONBLOCK);
    let file = opened.map_err(failed("opening", path))?;
    number(path, &file.metadata().map_err(failed("reading", path))?)?;
    Ok(matches(file, path, image)?.is_ok())
}

/// Compares the start of the device, as the medium gives it, with an image.
fn matches(mut file: File, path: &Path, image: &Image) -> Result<Result<(), MismatchError>, SlotError> {
    let reading = || failed("reading", path);
    file.rewind().map_err(reading())?;
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| reading()(error.into()))?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT).map_err(|error| reading()(error.into()))?;
    raw::matches(&mut file, image, image.size).map_err(reading())
}

fn open(path: &Path, options: &mut OpenOptions, flags: OFlags) -> std::io::Result<File> {
    options.custom_flags(flags.bits().cast_signed()).open(path)
}

fn number(path: &Path, metadata: &fs::Metadata) -> Result<DeviceNumber, SlotError> {
    block_device(metadata).ok_or_else(|| SlotError::Obstacle {
        path: path.to_owned(),
        expected: "a block device",
    })
}

fn read_only(path: &Path) -> SlotError {
    let path = path.to_owned();
    SlotError::ReadOnly { path }
}

fn used(path: &Path, used: Use) -> SlotError {
    let path = path.to_owned();
    SlotError::InUse { path, used }
}
