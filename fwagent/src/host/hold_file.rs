//! The user's hold in the state directory: one small file, replaced atomically.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use fwmeta::time::UtcSeconds;

use crate::machine::hold::Hold;
use crate::ports::PortError;

/// Longest file, in bytes.
const FILE_BYTES: u64 = 8192;

/// `hold.json` in a directory.
#[derive(Debug, Clone)]
pub struct HoldFile {
    path: PathBuf,
}

impl HoldFile {
    /// The one in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("hold.json"),
        }
    }

    /// The hold, if there is one. One that cannot be read holds until it is taken back: the user's word must not be lost.
    pub fn read(&self) -> Option<Hold> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(FILE_BYTES).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Ok(_) => Some(Hold::decode(&bytes).unwrap_or_else(|| self.unreadable("it is malformed"))),
            Err(error) => Some(self.unreadable(&error.to_string())),
        }
    }

    fn unreadable(&self, why: &str) -> Hold {
        Hold {
            since: UtcSeconds(0),
            until: None,
            reason: format!("{} cannot be read: {why}", self.path.display()),
        }
    }

    /// Stores a hold, durably.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn store(&self, hold: &Hold) -> Result<(), PortError> {
        fwdurable::write_file(&self.path, hold.to_value().to_json().as_bytes())
            .map_err(|error| PortError::environment(format!("storing {}", self.path.display()), Some(error.into())))
    }

    /// Takes the hold back, durably.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn remove(&self) -> Result<(), PortError> {
        fwdurable::remove_file(&self.path)
            .map_err(|error| PortError::environment(format!("removing {}", self.path.display()), Some(error.into())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_hold_is_kept_until_it_is_taken_back_and_a_damaged_one_holds() {
        let dir = tempfile::tempdir().unwrap();
        let file = HoldFile::new(dir.path());
        assert_eq!(file.read(), None);
        file.remove().unwrap();
        let hold = Hold::new(UtcSeconds(5), Some(UtcSeconds(9)), "x\n".to_owned(), None, None).unwrap();
        file.store(&hold).unwrap();
        assert_eq!(file.read(), Some(hold));
        std::fs::write(dir.path().join("hold.json"), b"{").unwrap();
        let damaged = file.read().unwrap();
        assert!(damaged.until.is_none() && damaged.reason.contains("malformed"));
        file.remove().unwrap();
        assert_eq!(file.read(), None);
    }
}
