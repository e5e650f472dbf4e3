//! Where generations, edits, migration programs and carried files lie: all file access of the settings store.
//!
//! ```text
//! STATE/settings/objects/<SHA-256>   never changed; mode 0600
//! STATE/settings/copies/<SHA-256>    a second copy of each generation
//! ```
//!
//! An object is durable before anything names it, and is believed only when it matches its name. One damaged copy of a
//! generation is mended from the other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fwdurable::Disk;
use fwmeta::hex;
use sha2::{Digest, Sha256};

/// Objects in a directory.
#[derive(Debug, Clone)]
pub struct Objects {
    disk: Disk,
    dir: PathBuf,
}

impl Objects {
    /// Objects below `dir`, which need not exist yet.
    pub fn new(dir: PathBuf) -> Self {
        Self::on(&Disk::system(), dir)
    }

    /// Objects below `dir` of a disk.
    pub fn on(disk: &Disk, dir: PathBuf) -> Self {
        Self {
            disk: disk.clone(),
            dir,
        }
    }

    /// Keeps an object, durably; its name.
    ///
    /// # Errors
    /// Any error of the file system; nothing that was kept before is touched.
    pub fn put(&self, bytes: &[u8]) -> io::Result<[u8; 32]> {
        let sha256 = Sha256::digest(bytes).into();
        self.write("objects", &sha256, bytes)?;
        Ok(sha256)
    }

    /// Keeps two copies of an object, durably.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_twice(&self, bytes: &[u8]) -> io::Result<[u8; 32]> {
        let sha256 = self.put(bytes)?;
        self.write("copies", &sha256, bytes)?;
        Ok(sha256)
    }

    /// An object of at most `limit` bytes, if a copy is whole. Reads only.
    pub fn get(&self, sha256: &[u8; 32], limit: usize) -> Option<Vec<u8>> {
        self.read("objects", sha256, limit)
            .or_else(|| self.read("copies", sha256, limit))
    }

    /// Writes a copy again that is not whole, when the other one is.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn mend(&self, sha256: &[u8; 32], limit: usize) -> io::Result<()> {
        match self.get(sha256, limit) {
            Some(bytes) => self.put_twice(&bytes).map(drop),
            None => Ok(()),
        }
    }

    /// Where an object lies, for a program to be run.
    pub fn path(&self, sha256: &[u8; 32]) -> PathBuf {
        self.copy("objects", sha256)
    }

    /// Removes all objects but these, and what interrupted writes left. Only for a caller that holds the lock.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn keep_only(&self, kept: &BTreeSet<[u8; 32]>) -> io::Result<()> {
        let kept: BTreeSet<String> = kept.iter().map(|sha256| hex::encode(sha256)).collect();
        for place in ["objects", "copies"] {
            let dir = self.dir.join(place);
            self.disk.sweep_temporaries(&dir)?;
            let entries = match self.disk.list(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries {
                // One that comes back after a loss of power goes at the next call.
                if !kept.contains(entry.name.to_string_lossy().as_ref()) {
                    self.disk.primitives().unlink(&dir.join(entry.name))?;
                }
            }
        }
        Ok(())
    }

    fn copy(&self, place: &str, sha256: &[u8; 32]) -> PathBuf {
        self.dir.join(place).join(hex::encode(sha256))
    }

    fn read(&self, place: &str, sha256: &[u8; 32], limit: usize) -> Option<Vec<u8>> {
        let bytes = self.disk.read_bounded(&self.copy(place, sha256), limit as u64).ok()?;
        (<[u8; 32]>::from(Sha256::digest(&bytes)) == *sha256).then_some(bytes)
    }

    fn write(&self, place: &str, sha256: &[u8; 32], bytes: &[u8]) -> io::Result<()> {
        if self.read(place, sha256, bytes.len()).is_some() {
            return Ok(());
        }
        let path = self.copy(place, sha256);
        if let Some(dir) = path.parent() {
            self.disk.create_dir_all(dir)?;
        }
        self.disk.write_file_mode(&path, bytes, 0o600)
    }
}

/// A file of at most `limit` bytes.
///
/// # Errors
/// Any error of the file system; [`io::ErrorKind::FileTooLarge`].
pub fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        let problem = format!("it is longer than the {limit} bytes allowed");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(bytes)
}
