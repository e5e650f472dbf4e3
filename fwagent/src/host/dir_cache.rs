//! Trusted metadata as plain files in a directory, one a role, under unversioned names: what the conformance adapter
//! shows to its caller. Only verified bytes are ever stored here, as they were received.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fwmeta::client::Cache;
use fwmeta::layout::local_name;
use fwmeta::limits;
use fwmeta::role::RoleName;

/// A directory of metadata files.
#[derive(Debug)]
pub struct DirCache {
    dir: PathBuf,
}

impl DirCache {
    /// Metadata in `dir`, which must exist.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, role: &RoleName) -> PathBuf {
        self.dir.join(local_name(role))
    }
}

impl Cache for DirCache {
    type Error = io::Error;

    fn load(&mut self, role: &RoleName) -> io::Result<Option<Vec<u8>>> {
        match File::open(self.path(role)) {
            Ok(file) => {
                let mut bytes = Vec::new();
                // One byte more than any role may have: whoever verifies then refuses it for its length.
                file.take(limits::TARGETS_BYTES + 1).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> io::Result<()> {
        fwdurable::write_file(&self.path(role), bytes)
    }

    fn remove(&mut self, role: &RoleName) -> io::Result<()> {
        fwdurable::remove_file(&self.path(role))
    }
}
