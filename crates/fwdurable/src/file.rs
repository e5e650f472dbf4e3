//! Single files: replaced, created, renamed, removed; durable on return.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Marks the temporary files of this module: `.NAME` + this + process id, `-` and a counter.
const TEMPORARY_MARK: &str = ".tmp-";
/// Temporary names that are tried: each one taken is what a crash left, and start-up sweeps those.
const ATTEMPTS: u32 = 1000;

/// Replaces `path` by a file with these bytes, mode 0644, atomically and durably.
///
/// # Errors
/// Any error of the file system; `path` then holds its old contents, or the new ones if only the last fsync failed.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_file_mode(path, bytes, 0o644)
}

/// Like [`write_file`], with the permission bits `mode` whatever the umask; 0600 for secrets.
///
/// # Errors
/// As [`write_file`].
pub fn write_file_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    if let Err(error) = fs::rename(&temporary, path) {
        discard(&temporary);
        return Err(error);
    }
    sync_dir(parent(path))
}

/// Creates `path` with these bytes, atomically and durably; never replaces an existing file.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when `path` exists, which is then untouched; otherwise as [`write_file`].
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    // A hard link, unlike a rename, fails when the name is taken, so two creators cannot both believe to have won.
    let linked = fs::hard_link(&temporary, path);
    discard(&temporary);
    linked?;
    sync_dir(parent(path))
}

/// Renames `from` to `to` and makes it durable. The contents of `from` must have been synced by the caller.
///
/// # Errors
/// Any error of the file system; the rename has then either happened or not.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(parent(to))?;
    if parent(from) != parent(to) {
        sync_dir(parent(from))?;
    }
    Ok(())
}

/// Removes the file `path` durably; a file that is not there is success.
///
/// # Errors
/// Any other error of the file system.
pub fn remove_file(path: &Path) -> io::Result<()> {
    removed(path, fs::remove_file(path))
}

/// Makes a removal durable, also one that an earlier attempt began: a crash between its two steps leaves a name that is
/// gone, and that a power cut may still bring back.
pub(crate) fn removed(path: &Path, result: io::Result<()>) -> io::Result<()> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match result {
        Err(error) if !absent(&error) => Err(error),
        _ => match sync_dir(parent(path)) {
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
pub fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)?.sync_all()
}

/// Removes what interrupted writes left in `dir`. Only for a caller that knows that nobody is writing there.
///
/// # Errors
/// Any error of the file system; a directory that is not there is success.
pub fn sweep_temporaries(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let (temporary, mut file) = create_temporary(path, mode)?;
    let written = file
        .set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all());
    if let Err(error) = written {
        discard(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

/// A file that a crash left is no reason to fail: a device gives its processes the same ids at each boot, so the names of
/// this process may be taken by its predecessor's.
fn create_temporary(path: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    let mut attempt = 1;
    loop {
        let temporary = temporary_name(path)?;
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary);
        match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
            other => return other.map(|file| (temporary, file)),
        }
    }
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} does not name a file", path.display()),
        )
    })?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!("{TEMPORARY_MARK}{}-{unique}", std::process::id()));
    Ok(path.with_file_name(temporary))
}

/// Best effort on an error path: the temporary name is never read, and [`sweep_temporaries`] finds what stays.
fn discard(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}
