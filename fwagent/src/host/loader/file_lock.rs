//! Locks that other programs hold on a medium while they read or change it.
//!
//! For the environment of U-Boot: U-Boot `tools/env/fw_env_main.c`, libubootenv `src/uboot_env.c` (and both watched with strace): an exclusive
//! `flock` on `/var/lock/fw_printenv.lock`, from before the environment is read until after it is written. They wait for
//! ever; the agent does not, and says who is in the way.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::ports::PortError;

/// Where the tools have it.
pub const LOCK_FILE: &str = "/var/lock/fw_printenv.lock";
/// Longest wait. The tools hold it for the time of one write.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(20);

/// The lock, not taken.
#[derive(Debug, Clone)]
pub struct FileLock {
    path: PathBuf,
    /// What it keeps.
    what: &'static str,
    /// A program that may hold it.
    who: &'static str,
    patience: Duration,
}

impl FileLock {
    /// The lock in this file, on `what`; `who` is a program that may hold it.
    pub fn new(path: PathBuf, what: &'static str, who: &'static str) -> Self {
        Self {
            path,
            what,
            who,
            patience: PATIENCE,
        }
    }

    /// The lock of the tools of U-Boot in this file.
    pub fn of_fw_setenv(path: PathBuf) -> Self {
        Self::new(path, "the environment of U-Boot", "fw_setenv")
    }

    /// The same with another longest wait.
    #[must_use]
    pub fn waiting(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Takes it, until what is given is dropped. `None` when the directory of the lock does not exist: then nobody can
    /// hold it either.
    ///
    /// # Errors
    /// [`PortError`] when another program keeps it, or the file cannot be opened.
    pub fn take(&self) -> Result<Option<File>, PortError> {
        let attempt = || format!("locking {} by {}", self.what, self.path.display());
        let file = match self.open() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PortError::environment(attempt(), Some(error.into()))),
        };
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if start.elapsed() < self.patience => std::thread::sleep(TICK),
                Err(TryLockError::WouldBlock) => {
                    let seconds = self.patience.as_secs();
                    let problem = format!(
                        "another program, such as {}, has held it for more than {seconds} s; end that program",
                        self.who
                    );
                    return Err(PortError::environment(attempt(), Some(problem.into())));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(PortError::environment(attempt(), Some(error.into())));
                }
            }
        }
    }

    /// The directory may be open to everybody: no link is followed, no pipe waited for, and a file of somebody else is
    /// opened for reading, which is enough for a lock and more than the kernel may allow with `O_CREAT`.
    fn open(&self) -> io::Result<File> {
        let careful = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        match OpenOptions::new().read(true).custom_flags(careful).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(careful)
                .open(&self.path),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_comes_second_waits_and_then_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = FileLock::of_fw_setenv(path.clone()).waiting(Duration::from_millis(50));
        let held = lock.take().unwrap().unwrap();
        let error = crate::drive::chain(&lock.take().unwrap_err());
        assert!(error.contains("fw_setenv") && error.contains("lock"), "{error}");
        drop(held);
        assert!(lock.take().unwrap().is_some() && path.exists());
    }

    #[test]
    fn without_its_directory_nobody_can_hold_it_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            FileLock::of_fw_setenv(dir.path().join("none/lock"))
                .take()
                .unwrap()
                .is_none()
        );
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(FileLock::of_fw_setenv(link).take().is_err() && !target.exists());
    }
}
