//! Headers that describe the next entry: GNU long names and pax records.
//!
//! Each is bounded before it is read. A pax record that would change what is installed and is not supported (extended
//! attributes, sparse files) refuses the archive: leaving it out would install something else than was made.

use std::io::Read;

use tar::{Entry, EntryType, PaxExtensions};

use super::{PATH_BYTES, UnpackError};

/// Longest pax header, in bytes: two paths and a dozen short records.
const PAX_BYTES: u64 = 16 * 1024;

/// Pax records that say nothing about the content of a tree as it is compared here.
const IGNORED: [&[u8]; 14] = [
    b"atime",
    b"charset",
    b"comment",
    b"ctime",
    b"gid",
    b"gname",
    b"hdrcharset",
    b"mtime",
    b"uid",
    b"uname",
    b"LIBARCHIVE.creationtime",
    b"SCHILY.dev",
    b"SCHILY.ino",
    b"SCHILY.nlink",
];

/// What was said about the entry to come.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pax: bool,
}

impl Extensions {
    /// Reads `entry` if it is such a header; otherwise returns `false`.
    pub(super) fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, UnpackError> {
        match entry.header().entry_type() {
            EntryType::GNULongName => once(&mut self.path, long_name(entry)?, "path")?,
            EntryType::GNULongLink => once(&mut self.link, long_name(entry)?, "link target")?,
            EntryType::XHeader if self.pax => return Err(refused("two pax headers for one entry")),
            EntryType::XHeader => {
                self.pax = true;
                self.records(&bounded(entry, PAX_BYTES)?)?;
            }
            EntryType::XGlobalHeader => {
                // For all entries to come: nothing that matters for one may be said there.
                let mut global = Self::default();
                global.records(&bounded(entry, PAX_BYTES)?)?;
                if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                    return Err(refused("a path or size for all entries"));
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// At the end of the archive no entry is still to come.
    pub(super) fn none_left(&self) -> Result<(), UnpackError> {
        if self.pax || self.path.is_some() || self.link.is_some() {
            return Err(refused("no entry follows it"));
        }
        Ok(())
    }

    fn records(&mut self, data: &[u8]) -> Result<(), UnpackError> {
        // The library stops at an empty line and does not miss the last line's end; other readers go on.
        if data.starts_with(b"\n") || data.windows(2).any(|pair| pair == b"\n\n") || !data.ends_with(b"\n") {
            return Err(refused("malformed pax record"));
        }
        for record in PaxExtensions::new(data) {
            let record = record.map_err(UnpackError::Archive)?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => once(&mut self.path, value.to_vec(), "path")?,
                b"linkpath" => once(&mut self.link, value.to_vec(), "link target")?,
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    once(&mut self.size, size.ok_or_else(|| refused("malformed size"))?, "size")?;
                }
                key if IGNORED.contains(&key) => {}
                key => return Err(refused(format!("record {:?}", String::from_utf8_lossy(key)))),
            }
        }
        Ok(())
    }
}

fn once<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), UnpackError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(refused(format!("a second {what}"))),
    }
}

fn long_name(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    // Room for `./` and `/` around the longest path, and the NUL that ends a name.
    let mut name = bounded(entry, PATH_BYTES as u64 + 4)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn bounded(entry: &mut impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut data = Vec::new();
    entry
        .take(limit + 1)
        .read_to_end(&mut data)
        .map_err(UnpackError::Archive)?;
    if data.len() as u64 > limit {
        return Err(refused(format!("longer than {limit} bytes")));
    }
    Ok(data)
}

fn refused(reason: impl Into<String>) -> UnpackError {
    UnpackError::Extension { reason: reason.into() }
}
