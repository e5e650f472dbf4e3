//! A small record kept in two checksummed copies, `PATH.a` and `PATH.b`.
//!
//! Both copies hold the same payload and counter except between the two writes of one [`Twin::store`]. So damage to
//! either copy loses nothing: a counter or floor read from the other one is never older than what was last reported as
//! stored. Each copy, all integers little-endian:
//!
//! ```text
//! 0   8 bytes   "FWTWIN01"
//! 8   u64       counter, one higher at each store
//! 16  u32       payload length
//! 20  payload
//! ..  32 bytes  SHA-256 of everything before
//! ```

use std::io;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::disk::Disk;

const MAGIC: &[u8; 8] = b"FWTWIN01";
const HEADER: usize = 20;
const CHECKSUM: usize = 32;

/// The place of a record in two copies.
#[derive(Debug, Clone)]
pub struct Twin {
    disk: Disk,
    path: PathBuf,
    limit: usize,
}

/// What [`Twin::load`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// Neither copy exists: nothing was ever stored here.
    Empty,
    /// The newest intact copy.
    Record {
        /// The bytes that were stored.
        payload: Vec<u8>,
        /// How many stores led to this record, starting at 1.
        counter: u64,
        /// The other copy is damaged, missing or older: [`Twin::repair`] mends it.
        degraded: bool,
    },
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TwinError {
    /// At least one copy exists and none is intact. The record existed, so this is never the same as "empty".
    #[error("record {}: no intact copy (first copy: {first}; second copy: {second})", path.display())]
    BothDamaged {
        /// The path without `.a` and `.b`.
        path: PathBuf,
        /// What is wrong with `PATH.a`.
        first: Damage,
        /// What is wrong with `PATH.b`.
        second: Damage,
    },
    /// The payload is longer than this record may be.
    #[error("record {}: {length} bytes exceed its limit of {limit}", path.display())]
    TooLarge {
        /// The path without `.a` and `.b`.
        path: PathBuf,
        /// Bytes that were to be stored.
        length: usize,
        /// Bytes that may be stored.
        limit: usize,
    },
    /// The file system failed.
    #[error("record {}: {action} failed", path.display())]
    Io {
        /// The copy concerned.
        path: PathBuf,
        /// `reading` or `writing`.
        action: &'static str,
        /// The error of the file system.
        source: io::Error,
    },
}

/// What is wrong with one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The file is not there.
    #[error("missing")]
    Missing,
    /// The medium does not give it back, or something else has its name.
    #[error("unreadable")]
    Unreadable,
    /// The file ends early or is longer than it says.
    #[error("wrong length")]
    Length,
    /// It does not begin as a record does.
    #[error("not a record")]
    Magic,
    /// Its contents do not match its checksum.
    #[error("checksum mismatch")]
    Checksum,
}

struct Copy {
    counter: u64,
    payload: Vec<u8>,
}

impl Twin {
    /// A record at `path` + `.a` and `.b` with at most `limit` bytes of payload, on the operating system's file system.
    pub fn new(path: impl Into<PathBuf>, limit: usize) -> Self {
        Self::on(Disk::system(), path, limit)
    }

    pub(crate) fn on(disk: Disk, path: impl Into<PathBuf>, limit: usize) -> Self {
        Self {
            disk,
            path: path.into(),
            limit: limit.min(u32::MAX as usize),
        }
    }

    /// Reads both copies and returns the newest intact one. Never writes.
    ///
    /// # Errors
    /// [`TwinError::BothDamaged`] when a copy exists and none is intact; [`TwinError::Io`].
    pub fn load(&self) -> Result<Loaded, TwinError> {
        match (self.read('a')?, self.read('b')?) {
            (Err(Damage::Missing), Err(Damage::Missing)) => Ok(Loaded::Empty),
            (Err(first), Err(second)) => Err(TwinError::BothDamaged {
                path: self.path.clone(),
                first,
                second,
            }),
            (Ok(copy), Err(_)) | (Err(_), Ok(copy)) => Ok(record(copy, true)),
            (Ok(first), Ok(second)) => {
                let degraded = first.counter != second.counter || first.payload != second.payload;
                Ok(record(
                    if second.counter > first.counter { second } else { first },
                    degraded,
                ))
            }
        }
    }

    /// Stores `payload` in both copies; durable on return. Interrupted anywhere, [`load`](Self::load) gives the old
    /// payload or the new one.
    ///
    /// # Errors
    /// [`TwinError::TooLarge`], [`TwinError::Io`], and [`TwinError::BothDamaged`]: an unreadable record is never
    /// overwritten, because what it held (a rollback floor, say) would be forgotten.
    pub fn store(&self, payload: &[u8]) -> Result<(), TwinError> {
        if payload.len() > self.limit {
            return Err(TwinError::TooLarge {
                path: self.path.clone(),
                length: payload.len(),
                limit: self.limit,
            });
        }
        let counter = match self.load()? {
            Loaded::Empty => 1,
            Loaded::Record { counter, degraded, .. } => {
                if degraded {
                    // Otherwise a cut during the first write below could leave the damaged copy as the only one.
                    self.repair()?;
                }
                counter.saturating_add(1)
            }
        };
        let bytes = encode(counter, payload);
        self.write('a', &bytes)?;
        self.write('b', &bytes)
    }

    /// Makes both copies equal to the newest intact one. Does nothing to an empty record.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`TwinError::Io`].
    pub fn repair(&self) -> Result<(), TwinError> {
        let Loaded::Record {
            payload,
            counter,
            degraded: true,
        } = self.load()?
        else {
            return Ok(());
        };
        let bytes = encode(counter, &payload);
        for which in ['a', 'b'] {
            let intact = matches!(self.read(which)?, Ok(copy) if copy.counter == counter && copy.payload == payload);
            if !intact {
                self.write(which, &bytes)?;
            }
        }
        Ok(())
    }

    fn copy_path(&self, which: char) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{which}"));
        PathBuf::from(name)
    }

    fn read(&self, which: char) -> Result<Result<Copy, Damage>, TwinError> {
        let path = self.copy_path(which);
        let limit = (HEADER + self.limit + CHECKSUM) as u64;
        match self.disk.read_bounded(&path, limit) {
            Ok(bytes) => Ok(decode(&bytes, self.limit)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err(Damage::Missing)),
            Err(error) if is_damage(&error) => Ok(Err(Damage::Unreadable)),
            Err(source) => Err(TwinError::Io {
                path,
                action: "reading",
                source,
            }),
        }
    }

    fn write(&self, which: char, bytes: &[u8]) -> Result<(), TwinError> {
        let path = self.copy_path(which);
        let written = self.disk.write_file_mode(&path, bytes, 0o600);
        written.map_err(|source| TwinError::Io {
            path,
            action: "writing",
            source,
        })
    }
}

/// Whether a read failed because of what is on the medium: that the other copy makes good. A lack of permission or of
/// open files says nothing about the copy, and must not let an older one take its place.
fn is_damage(error: &io::Error) -> bool {
    // EIO, EBADMSG and EUCLEAN: a bad block, or a checksum or structure of the file system that does not hold.
    const MEDIUM: [i32; 3] = [5, 74, 117];
    error.kind() == io::ErrorKind::IsADirectory || error.raw_os_error().is_some_and(|code| MEDIUM.contains(&code))
}

fn record(copy: Copy, degraded: bool) -> Loaded {
    Loaded::Record {
        payload: copy.payload,
        counter: copy.counter,
        degraded,
    }
}

fn encode(counter: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len() + CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&counter.to_le_bytes());
    // `Twin::new` bounds the limit to u32, and `store` the payload to the limit.
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

fn decode(bytes: &[u8], limit: usize) -> Result<Copy, Damage> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Damage::Length)?;
    if magic != MAGIC {
        return Err(Damage::Magic);
    }
    let (counter, rest) = rest.split_first_chunk::<8>().ok_or(Damage::Length)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(Damage::Length)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > limit || rest.len() != length + CHECKSUM {
        return Err(Damage::Length);
    }
    let (payload, checksum) = rest.split_at(length);
    if Sha256::digest(&bytes[..HEADER + length]).as_slice() != checksum {
        return Err(Damage::Checksum);
    }
    Ok(Copy {
        counter: u64::from_le_bytes(*counter),
        payload: payload.to_vec(),
    })
}
