//! EFI variables: files of `efivarfs`, or of any directory laid out like it.
//!
//! ```text
//! NAME-GUID     u32 little-endian attributes | data
//! ```
//!
//! On `efivarfs` each write(2) is one call of the firmware, so a variable is written in one; what the firmware makes of a
//! loss of power in the middle of it is its own affair. Files are immutable there, against being deleted by accident
//! (Linux, `Documentation/filesystems/efivarfs.rst`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};

use crate::machine::efi_boot::VARIABLE_BYTES;
use crate::ports::PortError;

/// Of the boot manager (UEFI 2.10 §3.3).
pub const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Non-volatile, for boot services and at run time.
const ATTRIBUTES: u32 = 7;
/// `statfs` of efivarfs.
const MAGIC: u64 = 0xde5e_81e4;

/// A directory of variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EfiVars {
    dir: PathBuf,
}

/// A variable.
#[derive(Debug, PartialEq, Eq)]
struct Variable {
    attributes: u32,
    data: Vec<u8>,
}

impl EfiVars {
    /// The variables in `dir`: `/sys/firmware/efi/efivars`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The data of a variable; `None` when there is none.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn read(&self, name: &str, guid: &str) -> Result<Option<Vec<u8>>, PortError> {
        let path = self.path(name, guid);
        let variable = read(&path).map_err(|error| failed("reading", &path, error))?;
        Ok(variable.map(|variable| variable.data))
    }

    /// Names of all variables of `guid`.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn names(&self, guid: &str) -> Result<Vec<String>, PortError> {
        let listed = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in self.dir.read_dir()? {
                let name = entry?.file_name();
                let name = name
                    .to_str()
                    .and_then(|name| name.strip_suffix(guid)?.strip_suffix('-'));
                names.extend(name.map(str::to_owned));
            }
            Ok(names)
        };
        listed().map_err(|error| failed("listing", &self.dir, error))
    }

    /// Sets a variable and reads it back.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn write(&self, name: &str, guid: &str, data: &[u8]) -> Result<(), PortError> {
        let path = self.path(name, guid);
        let written = || -> io::Result<()> {
            // Other attributes than it has would be refused.
            let attributes = read(&path)?.map_or(ATTRIBUTES, |variable| variable.attributes);
            let bytes = [&attributes.to_le_bytes(), data].concat();
            if self.is_real()? {
                let _mutable = Mutable::make(&path)?;
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)?;
                // Not `write_all`: the rest of a short write would be taken for a variable of its own.
                let length = file.write(&bytes)?;
                if length != bytes.len() {
                    return Err(io::Error::other(format!(
                        "{length} of {} bytes were taken",
                        bytes.len()
                    )));
                }
            } else {
                fwdurable::write_file(&path, &bytes)?;
            }
            match read(&path)? {
                Some(variable) if variable.data == data => Ok(()),
                _ => Err(io::Error::other("it gives back something else")),
            }
        };
        written().map_err(|error| failed("writing", &path, error))
    }

    /// Deletes a variable; one that is not there is success.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn delete(&self, name: &str, guid: &str) -> Result<(), PortError> {
        let path = self.path(name, guid);
        let deleted = || -> io::Result<()> {
            let mutable = Mutable::make(&path)?;
            fwdurable::remove_file(&path)?;
            drop(mutable);
            match read(&path)? {
                None => Ok(()),
                Some(_) => Err(io::Error::other("it is still there")),
            }
        };
        deleted().map_err(|error| failed("deleting", &path, error))
    }

    fn path(&self, name: &str, guid: &str) -> PathBuf {
        self.dir.join(format!("{name}-{guid}"))
    }

    fn is_real(&self) -> io::Result<bool> {
        let kind = fstatfs(File::open(&self.dir)?)?.f_type;
        // Its sign and width differ between processors; the magic has 32 bits.
        Ok(kind as u64 & 0xffff_ffff == MAGIC)
    }
}

fn read(path: &Path) -> io::Result<Option<Variable>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(VARIABLE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > VARIABLE_BYTES {
        return Err(io::Error::other(format!("it is longer than {VARIABLE_BYTES} bytes")));
    }
    match bytes.split_first_chunk() {
        Some((attributes, data)) => Ok(Some(Variable {
            attributes: u32::from_le_bytes(*attributes),
            data: data.to_vec(),
        })),
        // The kernel still knows a variable that the firmware has deleted.
        None if bytes.is_empty() => Ok(None),
        None => Err(io::Error::other("it ends within its attributes")),
    }
}

/// A file that was immutable, for as long as it must not be.
struct Mutable<'a> {
    path: &'a Path,
    flags: Option<IFlags>,
}

impl<'a> Mutable<'a> {
    fn make(path: &'a Path) -> io::Result<Self> {
        let unchanged = Self { path, flags: None };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(unchanged),
            file => file?,
        };
        // A file system without flags has none that is in the way.
        let Ok(flags) = ioctl_getflags(&file) else {
            return Ok(unchanged);
        };
        if !flags.contains(IFlags::IMMUTABLE) {
            return Ok(unchanged);
        }
        ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE))?;
        let flags = Some(flags);
        Ok(Self { path, flags })
    }
}

impl Drop for Mutable<'_> {
    fn drop(&mut self) {
        if let (Some(flags), Ok(file)) = (self.flags, File::open(self.path)) {
            // It protects from accidents only, and the variable is as it must be.
            let _ = ioctl_setflags(file, flags);
        }
    }
}

fn failed(action: &str, path: &Path, error: io::Error) -> PortError {
    PortError::environment(
        format!("{action} the EFI variable {}", path.display()),
        Some(error.into()),
    )
}
