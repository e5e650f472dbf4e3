//! The primitive operations over the operating system.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Create, DiskFile, Entry, FileSystem, Found, Kind, Open};

/// The file system of the operating system.
#[derive(Debug)]
pub(crate) struct System;

impl FileSystem for System {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(how.write)
            .create(how.create == Create::IfAbsent)
            .create_new(how.create == Create::New)
            .mode(how.mode)
            .custom_flags(how.flags);
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                Ok(Entry {
                    name: entry.file_name(),
                    kind: kind(entry.file_type()?),
                })
            })
            .collect()
    }

    fn find(&self, path: &Path) -> io::Result<Found> {
        Ok(found(&fs::symlink_metadata(path)?))
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn unique(&self) -> (u32, u64) {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
    }
}

impl DiskFile for File {
    fn set_len(&mut self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn set_mode(&mut self, mode: u32) -> io::Result<()> {
        self.set_permissions(fs::Permissions::from_mode(mode))
    }

    fn set_owner(&mut self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        fchown(&*self, user, group)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn found(&self) -> io::Result<Found> {
        Ok(found(&self.metadata()?))
    }

    fn system(&self) -> Option<&File> {
        Some(self)
    }
}

fn found(metadata: &fs::Metadata) -> Found {
    Found {
        kind: kind(metadata.file_type()),
        length: metadata.len(),
        // `st_blocks` counts 512 bytes whatever the file system's blocks are.
        occupied: metadata.blocks().saturating_mul(512),
    }
}

fn kind(file_type: FileType) -> Kind {
    if file_type.is_file() {
        Kind::File
    } else if file_type.is_dir() {
        Kind::Dir
    } else {
        Kind::Other
    }
}
