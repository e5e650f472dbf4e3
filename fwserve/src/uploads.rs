//! Objects on their way in: content-addressed, resumable, not served.
//!
//! ```text
//! DIR/.uploads/<SHA-256>.part   what has arrived; locked while somebody writes it
//! DIR/.uploads/<SHA-256>        complete, verified, synced
//! ```
//!
//! A crash may leave anything in a part: it becomes an object only after its whole contents were hashed on disk.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fwmeta::hex;
use sha2::Sha256;

use crate::repository::hash_file;

/// Directory of uploads below the repository.
pub const DIRECTORY: &str = ".uploads";
/// Uploads that nobody touched for so long are removed.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why an upload does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The client wants to go on where the server is not.
    #[error("upload is at byte {have}, not at {asked}")]
    Offset {
        /// Bytes that are here.
        have: u64,
        /// Offset that was asked for.
        asked: u64,
    },
    /// Another connection writes this object.
    #[error("another upload of this object is in progress")]
    Busy,
    /// Longer than objects may be.
    #[error("object of {length} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// More bytes came than were announced.
    #[error("upload has more than the {length} bytes announced")]
    Overrun {
        /// Length announced.
        length: u64,
    },
    /// The contents are not those of the name. What had arrived was discarded.
    #[error("sha256 of the upload is {actual}, announced is {expected}")]
    Hash {
        /// The name.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// The file system failed.
    #[error("storing the upload")]
    Io(#[from] io::Error),
}

/// How much of an object is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All of it: its length in bytes.
    Complete(u64),
    /// So many bytes from its beginning.
    Partial(u64),
}

/// The uploads of a repository.
#[derive(Debug)]
pub struct Uploads {
    dir: PathBuf,
    limit: u64,
}

impl Uploads {
    /// Uploads below `repo`, of at most `limit` bytes each.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(repo: &Path, limit: u64) -> io::Result<Self> {
        let dir = repo.join(DIRECTORY);
        fwdurable::create_dir_all(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        Ok(Self { dir, limit })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a complete object lies, whether it is there or not.
    pub fn object(&self, sha256: &str) -> PathBuf {
        self.dir.join(sha256)
    }

    fn part(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("{sha256}.part"))
    }

    /// How much of an object is here.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn status(&self, sha256: &str) -> io::Result<Status> {
        if let Some(length) = length(&self.object(sha256))? {
            return Ok(Status::Complete(length));
        }
        Ok(Status::Partial(length(&self.part(sha256))?.unwrap_or(0)))
    }

    /// Goes on with an object of `total` bytes at `offset`; `None` when it is complete already.
    ///
    /// # Errors
    /// [`UploadError`].
    pub fn resume(&self, sha256: &str, offset: u64, total: u64) -> Result<Option<Upload>, UploadError> {
        if total > self.limit {
            return Err(UploadError::TooLarge {
                length: total,
                limit: self.limit,
            });
        }
        let part = self.part(sha256);
        let mut file = open_locked(&part)?.ok_or(UploadError::Busy)?;
        if let Status::Complete(_) = self.status(sha256)? {
            fwdurable::remove_file(&part)?;
            return Ok(None);
        }
        let have = file.seek(SeekFrom::End(0))?;
        if have != offset {
            return Err(UploadError::Offset { have, asked: offset });
        }
        if have > total {
            return Err(UploadError::Overrun { length: total });
        }
        Ok(Some(Upload {
            file,
            part,
            object: self.object(sha256),
            expected: sha256.to_owned(),
            at: have,
            total,
        }))
    }

    /// Removes what nobody has touched for a week before `now`.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sweep(&self, now: SystemTime) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let object = name.strip_suffix(".part").unwrap_or(&name);
            if !crate::routes::is_sha256(object) {
                continue;
            }
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.map(|modified| now.duration_since(modified).unwrap_or_default());
            if age.is_ok_and(|age| age > ABANDONED) {
                fwdurable::remove_file(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// An object that is being written.
#[derive(Debug)]
pub struct Upload {
    /// Locked until it is closed.
    file: File,
    part: PathBuf,
    object: PathBuf,
    expected: String,
    at: u64,
    total: u64,
}

impl Upload {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`UploadError::Overrun`], [`UploadError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        let at = self.at.saturating_add(bytes.len() as u64);
        if at > self.total {
            return Err(UploadError::Overrun { length: self.total });
        }
        self.file.write_all(bytes)?;
        self.at = at;
        Ok(())
    }

    /// Ends this request's part. A whole object is verified and made durable.
    ///
    /// # Errors
    /// [`UploadError::Hash`], [`UploadError::Io`].
    pub fn finish(self) -> Result<Status, UploadError> {
        if self.at < self.total {
            return Ok(Status::Partial(self.at));
        }
        let actual = hex::encode(&hash_file::<Sha256>(&self.file)?);
        if actual != self.expected {
            // Truncated, not removed: whoever waits for the lock has this very file open.
            self.file.set_len(0)?;
            return Err(UploadError::Hash {
                expected: self.expected,
                actual,
            });
        }
        self.file.set_permissions(Permissions::from_mode(0o644))?;
        self.file.sync_all()?;
        fwdurable::rename(&self.part, &self.object)?;
        Ok(Status::Complete(self.total))
    }
}

/// Opens a part and locks it; `None` when somebody else has it. The lock is on the very file that is written: a part that
/// became an object while this waited to open it must not be written any more.
fn open_locked(part: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(part)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => {}
        }
        match fs::symlink_metadata(part) {
            Ok(named) if (named.dev(), named.ino()) == (file.metadata()?.dev(), file.metadata()?.ino()) => {
                return Ok(Some(file));
            }
            // Renamed or removed in between: look again.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => Ok(Some(other?.len())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use sha2::Digest;

    fn name(bytes: &[u8]) -> String {
        hex::encode(&Sha256::digest(bytes))
    }

    #[test]
    fn parts_add_up_to_a_verified_object() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 100).unwrap();
        let sha256 = name(b"hello world");
        assert_eq!(uploads.status(&sha256).unwrap(), Status::Partial(0));
        let mut upload = uploads.resume(&sha256, 0, 11).unwrap().unwrap();
        upload.write(b"hello").unwrap();
        assert!(matches!(uploads.resume(&sha256, 0, 11), Err(UploadError::Busy)));
        assert_eq!(upload.finish().unwrap(), Status::Partial(5));
        assert_eq!(uploads.status(&sha256).unwrap(), Status::Partial(5));
        assert!(matches!(
            uploads.resume(&sha256, 4, 11),
            Err(UploadError::Offset { have: 5, asked: 4 })
        ));
        let mut upload = uploads.resume(&sha256, 5, 11).unwrap().unwrap();
        assert!(matches!(
            upload.write(b" world!"),
            Err(UploadError::Overrun { length: 11 })
        ));
        upload.write(b" world").unwrap();
        assert_eq!(upload.finish().unwrap(), Status::Complete(11));
        assert_eq!(fs::read(uploads.object(&sha256)).unwrap(), b"hello world");
        assert!(uploads.resume(&sha256, 0, 11).unwrap().is_none());
        assert!(!uploads.part(&sha256).exists());
    }

    #[test]
    fn only_what_is_old_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 100).unwrap();
        for name in [&*name(b"a"), &*format!("{}.part", name(b"b")), "journal.json"] {
            fs::write(uploads.dir().join(name), "x").unwrap();
        }
        let count = || fs::read_dir(uploads.dir()).unwrap().count();
        uploads.sweep(SystemTime::now()).unwrap();
        assert_eq!(count(), 3);
        uploads
            .sweep(SystemTime::now() + ABANDONED + Duration::from_secs(60))
            .unwrap();
        assert_eq!(count(), 1);
        assert!(uploads.dir().join("journal.json").exists());
    }

    #[test]
    fn a_part_that_became_an_object_is_not_written_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 100).unwrap();
        let sha256 = name(b"hello");
        let mut upload = uploads.resume(&sha256, 0, 5).unwrap().unwrap();
        upload.write(b"hello").unwrap();
        let racing = std::thread::scope(|scope| {
            let racing = scope.spawn(|| {
                // Busy until the other has finished; then the object is complete.
                loop {
                    match uploads.resume(&sha256, 5, 5) {
                        Err(UploadError::Busy) => {}
                        other => return other.unwrap(),
                    }
                }
            });
            upload.finish().unwrap();
            racing.join().unwrap()
        });
        assert!(racing.is_none(), "{racing:?}");
        assert!(!uploads.part(&sha256).exists());
        assert_eq!(fs::read(uploads.object(&sha256)).unwrap(), b"hello");
    }

    #[test]
    fn other_contents_are_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path(), 100).unwrap();
        let sha256 = name(b"right");
        let mut upload = uploads.resume(&sha256, 0, 5).unwrap().unwrap();
        upload.write(b"wrong").unwrap();
        assert!(matches!(upload.finish(), Err(UploadError::Hash { actual, .. }) if actual == name(b"wrong")));
        assert_eq!(uploads.status(&sha256).unwrap(), Status::Partial(0));
        assert!(matches!(
            uploads.resume(&sha256, 0, 101),
            Err(UploadError::TooLarge {
                length: 101,
                limit: 100
            })
        ));
    }
}
