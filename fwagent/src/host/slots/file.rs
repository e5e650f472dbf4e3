//! A slot that is a plain file, written in place as a block device is.

use std::fs::OpenOptions;
use std::io::Seek;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fwmeta::manifest::Image;
use rustix::fs::OFlags;

use super::image::ImageReader;
use super::{SlotError, failed, in_use, metadata, occupied, raw};
use crate::host::system::System;
use crate::host::tree::{drop_cache, open_plain};

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
pub(super) fn write(path: &Path, image: ImageReader<'_>) -> Result<(), SlotError> {
    let announced = image.image();
    fwdurable::create_dir_all(parent(path)).map_err(failed("creating", parent(path)))?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(failed("opening", path))?;
    if !file.metadata().map_err(failed("reading", path))?.is_file() {
        return Err(obstacle(path));
    }
    raw::stream(image, &mut file, path)?;
    file.set_len(announced.size).map_err(failed("writing", path))?;
    file.sync_all().map_err(failed("writing", path))?;
    // Also when the file was there: an interrupted write may have created it.
    fwdurable::sync_dir(parent(path)).map_err(failed("writing", parent(path)))?;
    drop_cache(&file);
    file.rewind().map_err(failed("reading", path))?;
    let held = raw::matches(&mut file, announced, announced.size.saturating_add(1));
    held.map_err(failed("reading", path))?
        .map_err(SlotError::read_back(path))
}

/// Whether the file is the image.
pub(super) fn holds(path: &Path, image: &Image) -> Result<bool, SlotError> {
    match metadata(path)? {
        Some(found) if found.is_file() && found.len() == image.size => {}
        _ => return Ok(false),
    }
    let mut file = open_plain(path).map_err(failed("opening", path))?;
    drop_cache(&file);
    let held = raw::matches(&mut file, image, image.size.saturating_add(1));
    Ok(held.map_err(failed("reading", path))?.is_ok())
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
