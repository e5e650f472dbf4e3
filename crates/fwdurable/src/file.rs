//! Single files: replaced, created, renamed, removed; durable on return.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskFile, Kind, Open};

/// Marks the temporary files of this module: `.NAME` + this + process id, `-` and a counter.
const TEMPORARY_MARK: &str = ".tmp-";
/// Temporary names that are tried: each one taken is what a crash left, and start-up sweeps those.
const ATTEMPTS: u32 = 1000;

impl Disk {
    /// Replaces `path` by a file with these bytes, mode 0644, atomically and durably.
    ///
    /// # Errors
    /// Any error of the file system; `path` then holds its old contents, or the new ones if only the last fsync failed.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write_file_mode(path, bytes, 0o644)
    }

    /// Like [`write_file`](Self::write_file), with the permission bits `mode` whatever the umask; 0600 for secrets.
    ///
    /// # Errors
    /// As [`write_file`](Self::write_file).
    pub fn write_file_mode(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        self.write_file_owned(path, bytes, mode, None, None)
    }

    /// Like [`write_file_mode`](Self::write_file_mode), and the file belongs to this user and group from the first moment
    /// that `path` names it; `None` leaves whoever writes it.
    ///
    /// # Errors
    /// As [`write_file`](Self::write_file), and when the caller may not give files away.
    pub fn write_file_owned(
        &self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        user: Option<u32>,
        group: Option<u32>,
    ) -> io::Result<()> {
        let temporary = self.write_temporary(path, bytes, mode, (user, group))?;
        if let Err(error) = self.primitives().rename(&temporary, path) {
            self.discard(&temporary);
            return Err(error);
        }
        self.sync_dir(parent(path))
    }

    /// Creates `path` with these bytes, atomically and durably; never replaces an existing file.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when `path` exists, which is then untouched; otherwise as
    /// [`write_file`](Self::write_file).
    pub fn create_new(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let temporary = self.write_temporary(path, bytes, mode, (None, None))?;
        // A hard link, unlike a rename, fails when the name is taken, so two creators cannot both believe to have won.
        let linked = self.primitives().link(&temporary, path);
        self.discard(&temporary);
        linked?;
        self.sync_dir(parent(path))
    }

    /// Renames `from` to `to` and makes it durable. The contents of `from` must have been synced by the caller.
    ///
    /// # Errors
    /// Any error of the file system; the rename has then either happened or not.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.primitives().rename(from, to)?;
        self.sync_dir(parent(to))?;
        if parent(from) != parent(to) {
            self.sync_dir(parent(from))?;
        }
        Ok(())
    }

    /// Removes the file `path` durably; a file that is not there is success.
    ///
    /// # Errors
    /// Any other error of the file system.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.removed(path, self.primitives().unlink(path))
    }

    /// Makes a removal durable, also one that an earlier attempt began: a crash between its two steps leaves a name that
    /// is gone, and that a power cut may still bring back.
    pub(crate) fn removed(&self, path: &Path, result: io::Result<()>) -> io::Result<()> {
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match result {
            Err(error) if !absent(&error) => Err(error),
            _ => match self.sync_dir(parent(path)) {
                // Without the directory there is nothing to bring back.
                Err(error) if absent(&error) => Ok(()),
                other => other,
            },
        }
    }

    /// Makes the entries of the directory `path` durable (an empty path is the working directory).
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        self.primitives().sync_dir(path)
    }

    /// Removes what interrupted writes left in `dir`. Only for a caller that knows that nobody is writing there.
    ///
    /// # Errors
    /// Any error of the file system; a directory that is not there is success.
    pub fn sweep_temporaries(&self, dir: &Path) -> io::Result<()> {
        let entries = match self.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            if entry.kind == Kind::File && is_temporary(&entry.name.to_string_lossy()) {
                self.primitives().unlink(&dir.join(entry.name))?;
            }
        }
        Ok(())
    }

    fn write_temporary(
        &self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        (user, group): (Option<u32>, Option<u32>),
    ) -> io::Result<PathBuf> {
        let (temporary, mut file) = self.create_temporary(path, mode)?;
        let owned = match (user, group) {
            (None, None) => Ok(()),
            _ => file.set_owner(user, group),
        };
        let written = owned
            .and_then(|()| file.set_mode(mode))
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| file.sync());
        if let Err(error) = written {
            self.discard(&temporary);
            return Err(error);
        }
        Ok(temporary)
    }

    /// A file that a crash left is no reason to fail: a device gives its processes the same ids at each boot, so the names
    /// of this process may be taken by its predecessor's.
    fn create_temporary(&self, path: &Path, mode: u32) -> io::Result<(PathBuf, Box<dyn DiskFile>)> {
        let mut attempt = 1;
        loop {
            let temporary = self.temporary_name(path)?;
            match self.open(&temporary, Open::new(mode)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
                other => return other.map(|file| (temporary, file)),
            }
        }
    }

    fn temporary_name(&self, path: &Path) -> io::Result<PathBuf> {
        let name = path.file_name().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} does not name a file", path.display()),
            )
        })?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        let (process, counter) = self.primitives().unique();
        temporary.push(format!("{TEMPORARY_MARK}{process}-{counter}"));
        Ok(path.with_file_name(temporary))
    }

    /// Best effort on an error path: the temporary name is never read, and [`sweep_temporaries`](Self::sweep_temporaries)
    /// finds what stays.
    fn discard(&self, temporary: &Path) {
        let _ = self.primitives().unlink(temporary);
    }
}

/// [`Disk::write_file`] of the operating system.
///
/// # Errors
/// As there.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Disk::system().write_file(path, bytes)
}

/// [`Disk::write_file_mode`] of the operating system.
///
/// # Errors
/// As there.
pub fn write_file_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Disk::system().write_file_mode(path, bytes, mode)
}

/// [`Disk::write_file_owned`] of the operating system.
///
/// # Errors
/// As there.
pub fn write_file_owned(path: &Path, bytes: &[u8], mode: u32, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    Disk::system().write_file_owned(path, bytes, mode, user, group)
}

/// [`Disk::create_new`] of the operating system.
///
/// # Errors
/// As there.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Disk::system().create_new(path, bytes, mode)
}

/// [`Disk::rename`] of the operating system.
///
/// # Errors
/// As there.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Disk::system().rename(from, to)
}

/// [`Disk::remove_file`] of the operating system.
///
/// # Errors
/// As there.
pub fn remove_file(path: &Path) -> io::Result<()> {
    Disk::system().remove_file(path)
}

/// [`Disk::sync_dir`] of the operating system.
///
/// # Errors
/// As there.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    Disk::system().sync_dir(path)
}

/// [`Disk::sweep_temporaries`] of the operating system.
///
/// # Errors
/// As there.
pub fn sweep_temporaries(dir: &Path) -> io::Result<()> {
    Disk::system().sweep_temporaries(dir)
}

fn is_temporary(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix('.')
        .and_then(|name| name.rsplit_once(TEMPORARY_MARK)?.1.split_once('-'))
        .is_some_and(|(process, counter)| number(process) && number(counter))
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
