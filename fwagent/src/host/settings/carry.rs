//! Files of the device's own software that go back with it: a snapshot when an update is staged, put back on return.
//!
//! ```text
//! list   [{"path":"/var/lib/app/db","sha256":"…","mode":384,"uid":1000,"gid":1000},…]   an object
//! file   its bytes                                                                      an object each
//! ```
//!
//! A path may be a file or a directory of files, to any depth. Symbolic links and special files are left alone. Files
//! that were not there when the snapshot was made are removed when it is put back, so that the earlier software finds what
//! it left.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fwmeta::hex;
use fwmeta::json::{Doc, Value, object};

use super::objects::{Objects, read_bounded};
use crate::ports::PortError;

/// Files in a snapshot.
pub const MAX_FILES: usize = 1024;
/// Bytes of all files in a snapshot.
pub const MAX_FILES_BYTES: usize = 16 * 1024 * 1024;
/// Longest list, in bytes.
const LIST_BYTES: usize = 8 * 1024 * 1024;
/// Directories within directories.
const MAX_DEPTH: usize = 16;

/// The files that are carried.
#[derive(Debug)]
pub struct Carry {
    paths: Vec<PathBuf>,
    objects: Objects,
}

struct Entry {
    path: PathBuf,
    sha256: [u8; 32],
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Carry {
    /// Files at and below these paths.
    pub fn new(paths: Vec<PathBuf>, objects: Objects) -> Self {
        Self { paths, objects }
    }

    /// Keeps the files as they are; the list's name, or none when there is nothing to carry.
    ///
    /// # Errors
    /// [`PortError`] when a file cannot be read or there is too much.
    pub fn snapshot(&self) -> Result<Option<[u8; 32]>, PortError> {
        if self.paths.is_empty() {
            return Ok(None);
        }
        let failed = |path: &Path, error: io::Error| {
            PortError::environment(format!("keeping {}", path.display()), Some(error.into()))
        };
        let mut entries = Vec::new();
        let mut left = MAX_FILES_BYTES;
        for path in self.files()? {
            let bytes = match read_bounded(&path, left) {
                Ok(bytes) => bytes,
                // Removed since it was found.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&path, error)),
            };
            left -= bytes.len();
            let about = fs::metadata(&path).map_err(|error| failed(&path, error))?;
            let sha256 = self.objects.put(&bytes).map_err(|error| failed(&path, error))?;
            let Some(text) = path.to_str() else {
                let error = io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8");
                return Err(failed(&path, error));
            };
            entries.push(object([
                ("path", text.into()),
                ("sha256", hex::encode(&sha256).into()),
                ("mode", (about.mode() & 0o7777).into()),
                ("uid", about.uid().into()),
                ("gid", about.gid().into()),
            ]));
        }
        let list = Value::Array(entries).to_json();
        let kept = self.objects.put(list.as_bytes());
        kept.map(Some)
            .map_err(|error| PortError::environment("keeping the list of carried files", Some(error.into())))
    }

    /// Puts the files back as a list says.
    ///
    /// # Errors
    /// [`PortError`]; another call goes on.
    pub fn put_back(&self, list: &[u8; 32]) -> Result<(), PortError> {
        let Some(entries) = self.read(list) else {
            return Err(PortError::environment(
                "putting carried files back: their list is damaged",
                None,
            ));
        };
        for entry in &entries {
            // What is not configured any more is the device's own affair.
            if self.paths.iter().any(|path| entry.path.starts_with(path)) {
                self.put_one(entry).map_err(|error| {
                    PortError::environment(format!("putting {} back", entry.path.display()), Some(error.into()))
                })?;
            }
        }
        let kept: BTreeSet<&PathBuf> = entries.iter().map(|entry| &entry.path).collect();
        for path in self.files()?.iter().filter(|path| !kept.contains(path)) {
            fwdurable::remove_file(path)
                .map_err(|error| PortError::environment(format!("removing {}", path.display()), Some(error.into())))?;
        }
        Ok(())
    }

    /// Names of all objects of a list.
    pub fn objects(&self, list: &[u8; 32]) -> Vec<[u8; 32]> {
        let entries = self.read(list).unwrap_or_default();
        entries.iter().map(|entry| entry.sha256).collect()
    }

    fn put_one(&self, entry: &Entry) -> io::Result<()> {
        let bytes = self
            .objects
            .get(&entry.sha256, MAX_FILES_BYTES)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what was kept of it is damaged"))?;
        let there = read_bounded(&entry.path, MAX_FILES_BYTES).is_ok_and(|there| there == bytes);
        let same = |about: fs::Metadata| {
            (about.mode() & 0o7777, about.uid(), about.gid()) == (entry.mode, entry.uid, entry.gid)
        };
        if there && fs::symlink_metadata(&entry.path).is_ok_and(same) {
            return Ok(());
        }
        if let Some(dir) = entry.path.parent() {
            fwdurable::create_dir_all(dir)?;
        }
        fwdurable::write_file_owned(&entry.path, &bytes, entry.mode, Some(entry.uid), Some(entry.gid))
    }

    fn read(&self, list: &[u8; 32]) -> Option<Vec<Entry>> {
        let bytes = self.objects.get(list, LIST_BYTES)?;
        let value = Doc::parse(&bytes).ok()?.root().to_value().ok()?;
        let entries = value.as_array().filter(|entries| entries.len() <= MAX_FILES)?;
        let entries = entries.iter().map(|entry| {
            let number = |field: &str| u32::try_from(entry.get(field)?.as_u64()?).ok();
            Some(Entry {
                path: PathBuf::from(entry.get("path")?.as_str()?),
                sha256: hex::decode_array(entry.get("sha256")?.as_str()?)?,
                mode: number("mode")? & 0o7777,
                uid: number("uid")?,
                gid: number("gid")?,
            })
        });
        entries.collect()
    }

    fn files(&self) -> Result<Vec<PathBuf>, PortError> {
        let mut found = Vec::new();
        for path in &self.paths {
            walk(path, 0, &mut found).map_err(|error| {
                PortError::environment(format!("looking for files in {}", path.display()), Some(error.into()))
            })?;
        }
        Ok(found)
    }
}

fn walk(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if about.is_file() {
        if found.len() >= MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files")));
        }
        found.push(path.to_owned());
    } else if about.is_dir() {
        if depth >= MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} levels of directories")));
        }
        let mut names: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            walk(&name, depth + 1, found)?;
        }
    }
    Ok(())
}
