//! A slot that is a plain file, written in place as a block device is.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fwmeta::manifest::Image;
use fwmeta::target::{Hasher, MismatchError};
use rustix::fs::OFlags;

use super::image::{ImageReader, compare};
use super::{SlotError, failed, metadata, occupied};
use crate::host::tree::{drop_cache, open_plain};

/// Bytes copied at once.
const CHUNK: usize = 256 * 1024;

/// Checks what is at `path`; the bytes that a write replaces.
pub(super) fn replaced(path: &Path) -> Result<u64, SlotError> {
    match metadata(path)? {
        None => Ok(0),
        Some(found) if found.is_file() => Ok(occupied(&found)),
        Some(_) => Err(obstacle(path)),
    }
}

/// Replaces the content of the file. It holds exactly the image then, read back from the medium.
pub(super) fn write(path: &Path, mut image: ImageReader<'_>) -> Result<(), SlotError> {
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
    let mut chunk = vec![0; CHUNK];
    loop {
        // An error of the reader is told by `finish`.
        let length = image.read(&mut chunk).unwrap_or(0);
        if length == 0 {
            break;
        }
        file.write_all(&chunk[..length]).map_err(failed("writing", path))?;
    }
    image.finish()?;
    file.set_len(announced.size).map_err(failed("writing", path))?;
    file.sync_all().map_err(failed("writing", path))?;
    // Also when the file was there: an interrupted write may have created it.
    fwdurable::sync_dir(parent(path)).map_err(failed("writing", parent(path)))?;
    drop_cache(&file);
    file.rewind().map_err(failed("reading", path))?;
    let hasher = hash(file, announced.size).map_err(failed("reading", path))?;
    compare(announced, hasher).map_err(|source| read_back(path, source))
}

/// Whether the file is the image.
pub(super) fn holds(path: &Path, image: &Image) -> Result<bool, SlotError> {
    match metadata(path)? {
        Some(found) if found.is_file() && found.len() == image.size => {}
        _ => return Ok(false),
    }
    let file = open_plain(path).map_err(failed("opening", path))?;
    drop_cache(&file);
    let hasher = hash(file, image.size).map_err(failed("reading", path))?;
    Ok(compare(image, hasher).is_ok())
}

/// Hashes a file, at most one byte more than expected.
fn hash(file: File, expected: u64) -> std::io::Result<Hasher> {
    let mut file = file.take(expected.saturating_add(1));
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hasher),
            Ok(length) => hasher.update(&chunk[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
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

fn read_back(path: &Path, source: MismatchError) -> SlotError {
    SlotError::ReadBack {
        path: path.to_owned(),
        source,
    }
}
