//! What a slot left behind that never came up: the kernel's last words in `/sys/fs/pstore`, a log of its init.
//!
//! What it decides: which files are read (plain ones, a few, no links) and how much of each. What it does not decide:
//! when they are asked for.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fwmeta::time::UtcSeconds;
use rustix::fs::OFlags;

use crate::host::health::readable;
use crate::machine::state::{LOG_BYTES, shortened};

/// Most patterns.
pub const MAX_PATTERNS: usize = 16;
/// Files that are read, the first ones by pattern and name.
const MAX_FILES: usize = 8;
/// Bytes of a path that are shown, the last ones.
const PATH_BYTES: usize = 200;
/// Names that are looked at in one directory.
const MAX_NAMES: usize = 4096;

/// Where evidence may be: paths, of which the last component may have `*` for any characters but a leading dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The patterns.
    pub patterns: Vec<PathBuf>,
}

impl Evidence {
    /// The last bytes of each file, under its name and the time of its last change; [`LOG_BYTES`] at most in all. What
    /// cannot be read is passed over: the outcome must be recorded in any case.
    pub fn read(&self) -> String {
        let mut files: Vec<_> = self
            .patterns
            .iter()
            .take(MAX_PATTERNS)
            .flat_map(|pattern| matching(pattern))
            .filter_map(|path| open(&path).ok().flatten().map(|found| (path, found)))
            .take(MAX_FILES)
            .collect();
        let share = LOG_BYTES / files.len().max(1);
        let mut text = String::new();
        for (path, (file, changed)) in &mut files {
            let path = readable(path.as_os_str().as_encoded_bytes()).replace('\n', "\u{fffd}");
            let path = shortened(&path, PATH_BYTES);
            let mut part = format!("== {path}, changed {}\n", UtcSeconds(*changed));
            // A byte may become three when it is made harmless: what is too much is cut, the beginning first.
            let room = share.saturating_sub(part.len() + 1);
            let Ok(bytes) = tail(file, room as u64) else { continue };
            let _ = writeln!(part, "{}", shortened(&readable(&bytes), room));
            text.push_str(&part);
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// Paths that a pattern means, in the order of their names.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (pattern.parent(), pattern.file_name()) else {
        return Vec::new();
    };
    let name = name.as_encoded_bytes();
    if !name.contains(&b'*') {
        return vec![pattern.to_owned()];
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .take(MAX_NAMES)
        .filter_map(Result::ok)
        .filter(|entry| matches(name, entry.file_name().as_encoded_bytes()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Whether a name is as a pattern says. Bounded: on a mismatch only the last `*` takes one byte more.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while let Some(byte) = name.get(n) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(wanted) if wanted == byte => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern.iter().skip(p).all(|rest| *rest == b'*')
}

/// A plain file that is not empty, and when it was changed.
fn open(path: &Path) -> io::Result<Option<(File, i64)>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    // Not even opened when it is anything else: opening a device may do something.
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let is = file.metadata()?;
    Ok((is.is_file() && is.len() > 0).then(|| (file, is.mtime())))
}

fn tail(file: &mut File, room: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(room)))?;
    let mut bytes = Vec::new();
    file.take(room).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(patterns: &[PathBuf]) -> String {
        let patterns = patterns.to_vec();
        Evidence { patterns }.read()
    }

    #[test]
    fn names_match_as_a_shell_would() {
        for (pattern, name, expected) in [
            ("*", "dmesg-0", true),
            ("*", ".hidden", false),
            (".*", ".hidden", true),
            ("dmesg-*", "dmesg-", true),
            ("dmesg-*-0", "dmesg-ramoops-0-0", true),
            ("dmesg-*-0", "dmesg-ramoops-0-1", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("a", "ab", false),
            ("a**", "a", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn only_the_end_of_plain_files_is_read_and_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(read(&[at("*"), at("absent"), at("absent/*")]), "");
        fs::write(at("dmesg-1"), "Kernel panic\x1b[2J\n").unwrap();
        fs::write(at("dmesg-0"), "first").unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("secret"), "not this").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("dmesg-2")).unwrap();
        fs::create_dir(at("dmesg-3")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("dmesg-4"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let text = read(&[at("dmesg-*"), at("empty")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains("dmesg-0, changed 20") && lines[2].contains("dmesg-1"));
        assert_eq!((lines[1], lines[3]), ("first", "Kernel panic\u{fffd}[2J"));
    }

    #[test]
    fn it_is_bounded_in_files_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for number in 10..40 {
            // Each byte becomes three.
            let mut bytes = vec![0x1b; 100_000];
            bytes.extend(format!("end of {number}").as_bytes());
            fs::write(dir.path().join(number.to_string()), bytes).unwrap();
        }
        let text = read(&[dir.path().join("*")]);
        assert!(text.len() <= LOG_BYTES, "{}", text.len());
        assert_eq!(text.matches("end of").count(), MAX_FILES);
        assert!(text.contains("end of 17") && !text.contains("end of 18"));
    }
}
