//! What durable writes are made of: the primitive operations of a file system, and the handle that they go through.
//!
//! Only one implementation is in this crate, the one over the operating system. Another one is for a simulator that cuts
//! the power between two operations; so whatever is to be tested that way takes a [`Disk`] as a value.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::system::System;
use crate::twin::Twin;

/// How a file is opened; always for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// Also for writing.
    pub write: bool,
    /// What happens when it is not there.
    pub create: Create,
    /// Permission bits of a file that is created, less the umask.
    pub mode: u32,
    /// More flags of open(2), `O_NOFOLLOW` for one.
    pub flags: i32,
}

/// What opening does about a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// It is an error.
    Never,
    /// It is created; one that is there is opened as it is.
    IfAbsent,
    /// It is created; one that is there is an error.
    New,
}

impl Open {
    /// For reading.
    pub const READ: Self = Self {
        write: false,
        create: Create::Never,
        mode: 0,
        flags: 0,
    };

    /// A new file, which must not be there.
    pub const fn new(mode: u32) -> Self {
        Self {
            write: true,
            create: Create::New,
            mode,
            flags: 0,
        }
    }

    /// For writing where it lies; created when it is not there.
    pub const fn in_place(mode: u32) -> Self {
        Self {
            write: true,
            create: Create::IfAbsent,
            mode,
            flags: 0,
        }
    }

    /// With more flags of open(2).
    #[must_use]
    pub const fn with_flags(self, flags: i32) -> Self {
        Self { flags, ..self }
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link, a device or anything else.
    Other,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// What it stands for, links not followed.
    pub kind: Kind,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What it is, links not followed.
    pub kind: Kind,
    /// Bytes of a file.
    pub length: u64,
    /// Bytes that it takes on the medium.
    pub occupied: u64,
}

/// An open file.
pub trait DiskFile: Read + Write + Seek + fmt::Debug + Send {
    /// Cuts or extends the file, with zeros.
    ///
    /// # Errors
    /// Any error of the file system.
    fn set_len(&mut self, length: u64) -> io::Result<()>;

    /// Sets the permission bits.
    ///
    /// # Errors
    /// Any error of the file system.
    fn set_mode(&mut self, mode: u32) -> io::Result<()>;

    /// Gives the file to this user and group; `None` leaves whoever has it. Takes bits of the mode away.
    ///
    /// # Errors
    /// Any error of the file system.
    fn set_owner(&mut self, user: Option<u32>, group: Option<u32>) -> io::Result<()>;

    /// Makes the contents durable; not the name.
    ///
    /// # Errors
    /// Any error of the file system; what was written since the last success may then be lost.
    fn sync(&mut self) -> io::Result<()>;

    /// Like [`sync`](Self::sync), without what reading the contents does not need.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    fn sync_data(&mut self) -> io::Result<()> {
        self.sync()
    }

    /// What is open.
    ///
    /// # Errors
    /// Any error of the file system.
    fn found(&self) -> io::Result<Found>;

    /// The file of the operating system, if it is one: for hints to the kernel that change no contents.
    fn system(&self) -> Option<&File> {
        None
    }
}

/// The primitive operations. None makes anything durable but [`DiskFile::sync`] and [`sync_dir`](Self::sync_dir).
pub trait FileSystem: fmt::Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// Any error of the file system.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;

    /// Renames, replacing what has the name.
    ///
    /// # Errors
    /// Any error of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file one more name, which must be free.
    ///
    /// # Errors
    /// Any error of the file system.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name of a file.
    ///
    /// # Errors
    /// Any error of the file system.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes one directory.
    ///
    /// # Errors
    /// Any error of the file system.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and everything below it, links not followed.
    ///
    /// # Errors
    /// Any error of the file system.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// Any error of the file system.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// Any error of the file system.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// What is at `path`, a link at its end not followed.
    ///
    /// # Errors
    /// Any error of the file system.
    fn find(&self, path: &Path) -> io::Result<Found>;

    /// Whether there is a directory at `path`, links followed.
    fn is_dir(&self, path: &Path) -> bool;

    /// Two numbers that tell temporary files apart: of the process, and of the call.
    fn unique(&self) -> (u32, u64);
}

/// A file system, as a value that is cheap to clone and handed to whoever stores something.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// `None` for the operating system's.
    other: Option<Arc<dyn FileSystem>>,
}

impl Disk {
    /// The file system of the operating system.
    pub const fn system() -> Self {
        Self { other: None }
    }

    /// Another one.
    pub fn new(other: Arc<dyn FileSystem>) -> Self {
        Self { other: Some(other) }
    }

    /// Its primitive operations.
    pub fn primitives(&self) -> &dyn FileSystem {
        match &self.other {
            None => &System,
            Some(other) => other.as_ref(),
        }
    }

    /// Opens a file. Whoever writes to it is the one who syncs it, and its directory if it may be new.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        self.primitives().open(path, how)
    }

    /// Reads a file: at most one byte more than `limit`, enough to see that it is too long.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn read_bounded(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path, Open::READ)?
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What is at `path`, a link at its end not followed; `None` for nothing.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        match self.primitives().find(path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.primitives().list(path)
    }

    /// A record in two checksummed copies at `path` + `.a` and `.b` with at most `limit` bytes of payload.
    pub fn twin(&self, path: impl Into<PathBuf>, limit: usize) -> Twin {
        Twin::on(self.clone(), path, limit)
    }
}
