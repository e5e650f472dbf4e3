//! What files and block devices have in common: an image is streamed to the start of it and hashed when it is read back.

use std::io::{self, Read};
use std::path::Path;

use fwdurable::disk::DiskFile;
use fwmeta::manifest::Image;
use fwmeta::target::{Hasher, MismatchError};

use super::image::{ImageReader, compare};
use super::{SlotError, failed};
use crate::host::tree::drop_cache;

/// Bytes copied at once.
const CHUNK: usize = 256 * 1024;
/// Bytes after which what was written goes to the medium. Otherwise a device with little memory is filled with what waits
/// for its flash, progress says nothing, and a bad block is found at the end only.
const SYNC_STEP: usize = 8 * 1024 * 1024;
/// Buffers that bypass the system's memory must begin at a multiple of the device's block size.
const ALIGNMENT: usize = 4096;

/// Writes the image from the current position on; it is on the medium then, and the one that was announced.
pub(super) fn stream(mut image: ImageReader<'_>, file: &mut dyn DiskFile, path: &Path) -> Result<(), SlotError> {
    let mut chunk = vec![0; CHUNK];
    let mut waiting = 0;
    loop {
        // An error of the reader is told by `finish`.
        let length = image.read(&mut chunk).unwrap_or(0);
        if length == 0 {
            break;
        }
        file.write_all(&chunk[..length]).map_err(failed("writing", path))?;
        waiting += length;
        if waiting >= SYNC_STEP {
            file.sync_data().map_err(failed("writing", path))?;
            forget(file);
            waiting = 0;
        }
    }
    image.finish()?;
    file.sync().map_err(failed("writing", path))
}

/// So that reading asks the medium and not the memory.
pub(super) fn forget(file: &dyn DiskFile) {
    if let Some(file) = file.system() {
        drop_cache(file);
    }
}

/// Compares the first bytes of a file or device, from the current position on, with an image. At most `longest` bytes are
/// read.
pub(super) fn matches(file: &mut dyn DiskFile, image: &Image, longest: u64) -> io::Result<Result<(), MismatchError>> {
    let mut buffer = vec![0; CHUNK + ALIGNMENT];
    let from = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let chunk = &mut buffer[from..from + CHUNK];
    let (mut hasher, mut left) = (Hasher::new(), longest);
    while left > 0 {
        // Whole chunks, also of the last one: who bypasses the system's memory reads whole blocks.
        match file.read(chunk) {
            Ok(0) => break,
            Ok(length) => {
                let counted = usize::try_from(left).map_or(length, |left| length.min(left));
                hasher.update(&chunk[..counted]);
                left -= counted as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(compare(image, hasher))
}
