//! Directories: created, removed and synced as a whole; durable on return.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::file::{parent, sync_dir};

/// Creates the directory `path` and the missing ones above it, each entry durable.
///
/// # Errors
/// Any error of the file system.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
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
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_dir(parent(path)),
    }
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
