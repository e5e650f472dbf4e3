//! Directories: created, removed and synced as a whole; durable on return.

use std::io;
use std::path::Path;

use crate::disk::{Disk, Kind, Open};
use crate::file::parent;

impl Disk {
    /// Creates the directory `path` and the missing ones above it, each entry durable.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        if self.primitives().is_dir(path) {
            // An interrupted call may have made it and not reached the fsync. Only the deepest one: each is synced before
            // the next is made.
            return match self.sync_dir(parent(path)) {
                // Then it is the parent's owner who made it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => other,
            };
        }
        self.create_dir_all(parent(path))?;
        match self.primitives().make_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !self.primitives().is_dir(path) => Err(error),
            _ => self.sync_dir(parent(path)),
        }
    }

    /// Removes the tree at `path` durably, without following symbolic links; a tree that is not there is success.
    ///
    /// # Errors
    /// Any other error of the file system.
    pub fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.removed(path, self.primitives().remove_tree(path))
    }

    /// Makes every file and directory at and below `path` durable, the deepest first. Symbolic links live in their
    /// directory and are not followed.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync_tree(&self, path: &Path) -> io::Result<()> {
        let kind = self.primitives().find(path)?.kind;
        self.sync_below(path, kind)
    }

    fn sync_below(&self, path: &Path, kind: Kind) -> io::Result<()> {
        match kind {
            Kind::Dir => {
                for entry in self.list(path)? {
                    self.sync_below(&path.join(entry.name), entry.kind)?;
                }
                self.sync_dir(path)
            }
            Kind::File => self.open(path, Open::READ)?.sync(),
            Kind::Other => Ok(()),
        }
    }
}

/// [`Disk::create_dir_all`] of the operating system.
///
/// # Errors
/// As there.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    Disk::system().create_dir_all(path)
}

/// [`Disk::remove_tree`] of the operating system.
///
/// # Errors
/// As there.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    Disk::system().remove_tree(path)
}

/// [`Disk::sync_tree`] of the operating system.
///
/// # Errors
/// As there.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    Disk::system().sync_tree(path)
}
