//! A slot that is a plain file, written in place as a block device is.

use std::path::Path;

use fwdurable::Disk;
use fwdurable::disk::{DiskFile, Kind, Open};
use fwmeta::manifest::Image;
use rustix::fs::OFlags;

use super::image::ImageReader;
use super::{SlotError, failed, in_use, metadata, occupied, raw};
use crate::host::system::System;

/// Checks what is at `path`; the bytes that a write replaces.
pub(super) fn replaced(path: &Path, system: &System) -> Result<u64, SlotError> {
    match metadata(path)? {
        None => Ok(0),
        Some(found) if found.is_file() => {
            in_use(path, system.look().map_err(SlotError::Unknown)?.file(&found))?;
            Ok(occupied(&found))
        }
        Some(_) => Err(obstacle(path)),
    }
}

/// Replaces the content of the file. It holds exactly the image then, read back from the medium.
pub(super) fn write(disk: &Disk, path: &Path, image: ImageReader<'_>) -> Result<(), SlotError> {
    let announced = image.image();
    disk.create_dir_all(parent(path))
        .map_err(failed("creating", parent(path)))?;
    let mut file = open(disk, path, Open::in_place(0o600))?;
    raw::stream(image, &mut *file, path)?;
    file.set_len(announced.size).map_err(failed("writing", path))?;
    file.sync().map_err(failed("writing", path))?;
    // Also when the file was there: an interrupted write may have created it.
    disk.sync_dir(parent(path)).map_err(failed("writing", parent(path)))?;
    raw::forget(&*file);
    file.rewind().map_err(failed("reading", path))?;
    let held = raw::matches(&mut *file, announced, announced.size.saturating_add(1));
    held.map_err(failed("reading", path))?
        .map_err(SlotError::read_back(path))
}

/// Whether the file is the image.
pub(super) fn holds(disk: &Disk, path: &Path, image: &Image) -> Result<bool, SlotError> {
    match disk.find(path).map_err(failed("reading", path))? {
        Some(found) if found.kind == Kind::File && found.length == image.size => {}
        _ => return Ok(false),
    }
    let mut file = open(disk, path, Open::READ)?;
    raw::forget(&*file);
    let held = raw::matches(&mut *file, image, image.size.saturating_add(1));
    Ok(held.map_err(failed("reading", path))?.is_ok())
}

/// Opens a regular file; what else has its name is neither followed nor waited for.
fn open(disk: &Disk, path: &Path, how: Open) -> Result<Box<dyn DiskFile>, SlotError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = disk
        .open(path, how.with_flags(flags))
        .map_err(failed("opening", path))?;
    match file.found().map_err(failed("reading", path))?.kind {
        Kind::File => Ok(file),
        _ => Err(obstacle(path)),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn obstacle(path: &Path) -> SlotError {
    SlotError::Obstacle {
        path: path.to_owned(),
        expected: "a regular file",
    }
}
