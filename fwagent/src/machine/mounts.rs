//! What the kernel says that it uses: `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and `/proc/swaps`.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! id parent device root mount-point options tags… - type source super-options
//! ```
//!
//! Bytes that would break a line into other words are written as a backslash and three octal digits.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A device node's number: what it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device of the driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// Reads `MAJOR:MINOR`, as the kernel writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| {
            digits
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| digits.parse().ok())?
        };
        let (major, minor) = text.split_once(':')?;
        Some(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device of the file system. Some file systems, such as btrfs, give one that is no node: see `source`.
    pub device: DeviceNumber,
    /// Which directory of the file system is seen at the mount point.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// What was mounted: often a device node, but any text.
    pub source: PathBuf,
    /// Options of the file system, as written.
    options: Vec<u8>,
}

/// The text is not what the kernel writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not one of {what}")]
pub struct KernelTextError {
    /// The line, from 1.
    pub line: usize,
    /// Which file.
    pub what: &'static str,
}

/// Reads `mountinfo`. A line that is not understood is an error: it may be the one that matters.
///
/// # Errors
/// [`KernelTextError`].
pub fn mounts(text: &[u8]) -> Result<Vec<Mount>, KernelTextError> {
    lines(text, "mountinfo", mount)
}

/// Reads `swaps`: the path of each swap space.
///
/// # Errors
/// [`KernelTextError`].
pub fn swaps(text: &[u8]) -> Result<Vec<PathBuf>, KernelTextError> {
    // The first line names the columns.
    let from = text
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |at| at + 1);
    lines(&text[from..], "swaps", |line| {
        let mut fields = words(line);
        let path = path(fields.next()?);
        // Type, size, used, priority.
        (path.is_absolute() && fields.count() >= 4).then_some(path)
    })
}

fn lines<T>(text: &[u8], what: &'static str, read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, KernelTextError> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| read(line).ok_or(KernelTextError { line: at + 1, what }))
        .collect()
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
}

fn mount(line: &[u8]) -> Option<Mount> {
    // A source may be empty, which leaves two spaces: the fields after the dash are split by single ones.
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let (root, point) = (fields.next()?, fields.next()?);
    fields.find(|field| *field == b"-")?;
    let (kind, source) = (fields.next()?, fields.next()?);
    let point = path(point);
    point.is_absolute().then_some(Mount {
        device: DeviceNumber::parse(std::str::from_utf8(device).ok()?)?,
        root: path(root),
        point,
        kind: String::from_utf8_lossy(kind).into_owned(),
        source: path(source),
        options: fields.next().unwrap_or_default().to_vec(),
    })
}

impl Mount {
    /// Whether its file system can be written.
    pub fn writable(&self) -> bool {
        self.options.split(|byte| *byte == b',').next() == Some(b"rw")
    }

    /// The directories that an overlay shows; none of any other file system.
    pub fn layers(&self) -> Vec<PathBuf> {
        let mut layers = Vec::new();
        if self.kind != "overlay" {
            return layers;
        }
        // Commas in values are octal, or have a backslash before them, which is octal.
        let mut options: Vec<Vec<u8>> = Vec::new();
        for part in self.options.split(|byte| *byte == b',') {
            match options.last_mut().filter(|last| last.ends_with(b"\\134")) {
                Some(last) => {
                    last.push(b',');
                    last.extend_from_slice(part);
                }
                None => options.push(part.to_vec()),
            }
        }
        for option in options {
            let Some(at) = option.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (key, value) = (&option[..at], unescaped(&option[at + 1..]));
            let values = match key {
                b"lowerdir" | b"lowerdir+" | b"datadir+" => split(&value),
                b"upperdir" | b"workdir" => vec![value],
                _ => continue,
            };
            // Two colons stand before a layer of data only: between them is nothing.
            let values = values.into_iter().filter(|value| !value.is_empty());
            layers.extend(values.map(|value| PathBuf::from(OsString::from_vec(value))));
        }
        layers
    }
}

/// Parts between colons that no backslash precedes, without such backslashes.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for &byte in text {
        match byte {
            b'\\' if !escaped => {
                escaped = true;
                continue;
            }
            b':' if !escaped => parts.push(Vec::new()),
            _ => parts.iter_mut().rev().take(1).for_each(|last| last.push(byte)),
        }
        escaped = false;
    }
    parts
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescaped(field)))
}

/// Resolves `\ooo`; anything else stays as it is.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) = (first, after) {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mounts_as_the_kernel_writes_them() {
        let text = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                    27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
                    36 35 98:12 /a\\040b /mnt\\0402\\134 rw master:1 propagate_from:2 - btrfs /dev/sda3 rw\n\
                    40 35 0:40 / /x rw -  rw\n\
                    41 35 0:41 / /y rw shared:9 - tmpfs  rw\n";
        let mounts = mounts(text.as_bytes()).unwrap();
        assert_eq!(mounts.len(), 5);
        assert_eq!(
            (mounts[1].device, mounts[1].point.to_str(), mounts[1].kind.as_str()),
            (DeviceNumber { major: 254, minor: 0 }, Some("/"), "ext4")
        );
        let odd = &mounts[2];
        assert_eq!(
            (odd.root.to_str(), odd.point.to_str()),
            (Some("/a b"), Some("/mnt 2\\"))
        );
        assert_eq!(odd.source.to_str(), Some("/dev/sda3"));
        assert!(odd.writable());
        assert!(mounts.iter().all(|mount| mount.layers().is_empty()));
        for bad in [
            "22 27 0:21 / /proc rw,relatime proc proc rw",
            "22 27 0 / / rw - a b c",
            "x",
            "22 27 1:1 / x - a b",
        ] {
            let text = format!("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n{bad}\n");
            assert_eq!(super::mounts(text.as_bytes()).unwrap_err().line, 2, "{bad}");
        }
    }

    #[test]
    fn layers_of_overlays() {
        let layers = |options: &str| -> Vec<String> {
            let line = format!("1 2 0:1 / / rw - overlay overlay {options}\n");
            let mount = &mounts(line.as_bytes()).unwrap()[0];
            mount.layers().iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(
            layers("rw,lowerdir=/a:/b,upperdir=/u:v,workdir=/w"),
            ["/a", "/b", "/u:v", "/w"]
        );
        assert_eq!(
            layers("rw,lowerdir+=/a\\134:b,lowerdir+=/c\\040d,xino=off"),
            ["/a:b", "/c d"]
        );
        assert_eq!(layers("rw,lowerdir=/a::/data"), ["/a", "/data"]);
        assert_eq!(
            layers("upperdir=/a\\054b\\134,c,workdir=/d\\134\\134"),
            ["/a,b\\,c", "/d\\\\"]
        );
        assert_eq!(layers("rw"), Vec::<String>::new());
    }

    #[test]
    fn swaps_as_the_kernel_writes_them() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let text = format!(
            "{head}/dev/sda3                               partition\t999\t\t0\t\t-2\n/swap\\040x file 1 0 -3\n"
        );
        assert_eq!(
            swaps(text.as_bytes()).unwrap(),
            [PathBuf::from("/dev/sda3"), PathBuf::from("/swap x")]
        );
        assert_eq!(swaps(head.as_bytes()).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(swaps(b"").unwrap(), Vec::<PathBuf>::new());
        assert!(swaps(format!("{head}/dev/sda3\n").as_bytes()).is_err());
    }
}
