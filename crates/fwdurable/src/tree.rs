//! Directories: created, removed and synced as a whole; durable on return.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::file::{parent, removed, sync_dir};

/// Creates the directory `path` and the missing ones above it, each entry durable.
///
/// # Errors
/// Any error of the file system.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    if path.is_dir() {
        // An interrupted call may have made it and not reached the fsync. Only the deepest one: each is synced before the
        // next is made.
        return match sync_dir(parent(path)) {
            // Then it is the parent's owner who made it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        };
    }
    create_dir_all(parent(path))?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => sync_dir(parent(path)),
    }
}

/// Removes the tree at `path` durably, without following symbolic links; a tree that is not there is success.
///
/// # Errors
/// Any other error of the file system.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    removed(path, fs::remove_dir_all(path))
}

/// Makes every file and directory at and below `path` durable, the deepest first. Symbolic links live in their
/// directory and are not followed.
///
/// # Errors
/// Any error of the file system.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            sync_tree(&entry?.path())?;
        }
        sync_dir(path)
    } else if kind.is_file() {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}
