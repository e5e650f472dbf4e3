//! What a tree of files consists of, for comparing what an archive said with what is on the medium.
//!
//! What it decides: which properties count (kind, permission bits, path, size, content, target of a link) and when two
//! trees are equal. Owners, times and hard link counts do not count: slots are written by one user, the agent. What it
//! does not decide: what an archive may contain ([`super::unpack`]).
//!
//! The inventory, the text form of a tree and of the image it came from; every other byte of a path than printable
//! ASCII is written `%xx`:
//!
//! ```text
//! fwagent-tree 1
//! image SIZE SHA256 SHA512
//! dir 755 .
//! file 644 SIZE SHA256 etc/motd
//! link etc/mtab TARGET
//! sha256 DIGEST-OF-ALL-LINES-ABOVE
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fwmeta::hex;
use fwmeta::manifest::Image;
use rustix::fs::{Advice, OFlags, fadvise};
use sha2::{Digest, Sha256};

/// Most entries of one tree: several times a whole Linux distribution for a device.
pub const MAX_ENTRIES: usize = 100_000;
/// Most bytes of all paths and link targets of one tree together. Bounds the memory of a [`Tree`].
pub const NAMES_BYTES: usize = 8 * 1024 * 1024;
/// Longest inventory: every byte of a name may take three, and a line has at most 100 besides.
pub const INVENTORY_BYTES: u64 = (3 * NAMES_BYTES + 100 * (MAX_ENTRIES + 10)) as u64;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Length in bytes.
        size: u64,
        /// SHA-256 of the content.
        sha256: [u8; 32],
    },
    /// A symbolic link.
    Link {
        /// Its target as stored.
        target: Vec<u8>,
    },
}

/// A bounded tree: entries by their path relative to the root, whose own path is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    entries: BTreeMap<Vec<u8>, Node>,
    names: usize,
}

/// A tree cannot be described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// More than [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// More than [`NAMES_BYTES`].
    #[error("names take more than {NAMES_BYTES} bytes")]
    TooManyNames,
    /// Neither a regular file, a directory nor a symbolic link.
    #[error("{} is neither a file, a directory nor a symbolic link", path.display())]
    Kind {
        /// Where.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The first path, in order, at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is {}, expected {}", shown(actual), shown(expected))]
pub struct Difference {
    /// Path relative to the root of the tree; empty for the root itself.
    pub path: PathBuf,
    /// What should be there.
    pub expected: Option<Node>,
    /// What is there.
    pub actual: Option<Node>,
}

impl Tree {
    /// What is at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.entries.get(path)
    }

    /// All entries; a directory precedes what is in it.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &Node)> {
        self.entries.iter().map(|(path, node)| (path.as_slice(), node))
    }

    /// Adds an entry, or replaces it.
    ///
    /// # Errors
    /// [`TreeError::TooManyEntries`] and [`TreeError::TooManyNames`].
    pub fn insert(&mut self, path: Vec<u8>, node: Node) -> Result<(), TreeError> {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&path) {
            return Err(TreeError::TooManyEntries);
        }
        self.names += path.len();
        if let Node::Link { target } = &node {
            self.names += target.len();
        }
        if self.names > NAMES_BYTES {
            return Err(TreeError::TooManyNames);
        }
        self.entries.insert(path, node);
        Ok(())
    }

    /// Reads the tree at `root`, contents from the medium as far as the system lets go of its copy in memory. Follows no
    /// link.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn read(root: &Path) -> Result<Self, TreeError> {
        let mut tree = Self::default();
        // A stack of our own: what is on the medium may be nested deeper than the call stack is long.
        let mut pending = vec![Vec::new()];
        let mut names = 0;
        while let Some(path) = pending.pop() {
            let full = join(root, &path);
            let metadata = fs::symlink_metadata(&full).map_err(failed("reading", &full))?;
            let mode = metadata.mode() & 0o7777;
            let node = if metadata.is_dir() {
                for entry in fs::read_dir(&full).map_err(failed("listing", &full))? {
                    let name = entry.map_err(failed("listing", &full))?.file_name();
                    let path = child(&path, name.as_bytes());
                    names += path.len();
                    if pending.len() >= MAX_ENTRIES {
                        return Err(TreeError::TooManyEntries);
                    } else if names > NAMES_BYTES {
                        return Err(TreeError::TooManyNames);
                    }
                    pending.push(path);
                }
                Node::Dir { mode }
            } else if metadata.is_file() {
                let (size, sha256) = digest(&full).map_err(failed("reading", &full))?;
                Node::File { mode, size, sha256 }
            } else if metadata.is_symlink() {
                let target = fs::read_link(&full).map_err(failed("reading", &full))?;
                Node::Link {
                    target: target.as_os_str().as_bytes().to_vec(),
                }
            } else {
                return Err(TreeError::Kind { path: full });
            };
            tree.insert(path, node)?;
        }
        Ok(tree)
    }

    /// The first path at which `actual` is not what this tree is; `None` when they are equal.
    pub fn first_difference(&self, actual: &Self) -> Option<Difference> {
        let differs = |path: &&Vec<u8>| self.entries.get(*path) != actual.entries.get(*path);
        let missing = self.entries.keys().find(differs);
        let added = actual.entries.keys().find(differs);
        let path = missing.into_iter().chain(added).min()?;
        Some(Difference {
            path: relative(path),
            expected: self.entries.get(path).cloned(),
            actual: actual.entries.get(path).cloned(),
        })
    }

    /// The inventory of this tree as unpacked from `image`. Equal trees and images, and only those, give equal texts.
    pub fn inventory(&self, image: &Image) -> String {
        let mut text = inventory_head(image);
        for (path, node) in &self.entries {
            let path = if path.is_empty() { ".".to_owned() } else { escaped(path) };
            // Writing to a string cannot fail.
            let _ = match node {
                Node::Link { target } => writeln!(text, "link {path} {}", escaped(target)),
                _ => writeln!(text, "{node} {path}"),
            };
        }
        let digest = hex::encode(&Sha256::digest(text.as_bytes()));
        let _ = writeln!(text, "sha256 {digest}");
        text
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir { mode } => write!(f, "dir {mode:o}"),
            Self::File { mode, size, sha256 } => write!(f, "file {mode:o} {size} {}", hex::encode(sha256)),
            Self::Link { target } => write!(f, "link to {}", escaped(target)),
        }
    }
}

/// The first lines of every inventory of `image`: enough to see whose inventory it is.
pub fn inventory_head(image: &Image) -> String {
    let (size, sha256, sha512) = (image.size, hex::encode(&image.sha256), hex::encode(&image.sha512));
    format!("fwagent-tree 1\nimage {size} {sha256} {sha512}\n")
}

/// The full path of an entry.
pub(super) fn join(root: &Path, path: &[u8]) -> PathBuf {
    // Joining an empty path would add a slash.
    if path.is_empty() {
        root.to_owned()
    } else {
        root.join(OsStr::from_bytes(path))
    }
}

/// The path of an entry for people.
pub(super) fn relative(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

/// The path of `name` in `dir`.
fn child(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// Opens a regular file for reading; a link in its place is an error, and a pipe does not block.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Lets the system forget its copy of a file that was synced, so that the next read comes from the medium. Advice: some
/// file systems, such as those in memory, have nothing to forget.
pub(super) fn drop_cache(file: &File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

fn digest(path: &Path) -> io::Result<(u64, [u8; 32])> {
    let mut file = open_plain(path)?;
    drop_cache(&file);
    let (mut size, mut hasher) = (0, Sha256::new());
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((size, hasher.finalize().into())),
            Ok(length) => {
                size += length as u64;
                hasher.update(&chunk[..length]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_graphic() && *byte != b'%' {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02x}");
        }
    }
    text
}

fn shown(node: &Option<Node>) -> String {
    node.as_ref().map_or_else(|| "absent".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn image() -> Image {
        Image {
            size: 3,
            sha256: [1; 32],
            sha512: [2; 64],
        }
    }

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/a b%\n"), "x").unwrap();
        fs::write(dir.path().join("z"), "").unwrap();
        symlink("sub/none", dir.path().join("link")).unwrap();
        for (path, mode) in [("", 0o750), ("sub", 0o755), ("sub/a b%\n", 0o644), ("z", 0o600)] {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    #[test]
    fn inventory_is_readable_and_complete() {
        let dir = sample();
        let text = Tree::read(dir.path()).unwrap().inventory(&image());
        let x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[2..7],
            [
                "dir 750 .",
                "link link sub/none",
                "dir 755 sub",
                &format!("file 644 1 {x} sub/a%20b%25%0a"),
                &format!("file 600 0 {nothing} z"),
            ]
        );
        assert!(text.starts_with(&inventory_head(&image())));
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn the_first_difference_is_named() {
        let dir = sample();
        let tree = Tree::read(dir.path()).unwrap();
        assert_eq!(tree.first_difference(&Tree::read(dir.path()).unwrap()), None);
        let changed = |path: &str, change: &dyn Fn(&Path)| {
            let dir = sample();
            change(dir.path());
            let actual = Tree::read(dir.path()).unwrap();
            let difference = tree.first_difference(&actual).unwrap();
            assert_eq!(difference.path, Path::new(path), "{difference}");
            assert_ne!(tree.inventory(&image()), actual.inventory(&image()));
            difference
        };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        changed("", &|root| mode(root, 0o755));
        changed("sub", &|root| mode(&root.join("sub"), 0o1755));
        changed("z", &|root| mode(&root.join("z"), 0o4600));
        changed("z", &|root| fs::write(root.join("z"), "y").unwrap());
        changed("link", &|root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("sub/nonf", root.join("link")).unwrap();
        });
        let added = changed("added", &|root| {
            fs::write(root.join("z"), "y").unwrap();
            fs::write(root.join("added"), "").unwrap();
        });
        assert_eq!(added.expected, None);
        let removed = changed("link", &|root| {
            fs::remove_file(root.join("link")).unwrap();
            fs::remove_file(root.join("z")).unwrap();
        });
        assert_eq!(removed.to_string(), "\"link\" is absent, expected link to sub/none");
    }

    #[test]
    fn other_kinds_and_too_many_names_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Tree::read(&dir.path().join("none")),
            Err(TreeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound
        ));
        let socket = std::os::unix::net::UnixDatagram::bind(dir.path().join("socket")).unwrap();
        assert!(matches!(Tree::read(dir.path()), Err(TreeError::Kind { .. })));
        drop(socket);
        let mut tree = Tree::default();
        for number in 0..MAX_ENTRIES {
            let node = Node::Dir { mode: 0o755 };
            tree.insert(number.to_string().into_bytes(), node.clone()).unwrap();
            tree.insert(b"0".to_vec(), node).unwrap();
        }
        let error = tree.insert(b"x".to_vec(), Node::Dir { mode: 0o755 });
        assert!(matches!(error, Err(TreeError::TooManyEntries)));
        let mut tree = Tree::default();
        let target = vec![b'x'; NAMES_BYTES];
        tree.insert(Vec::new(), Node::Link { target }).unwrap();
        let error = tree.insert(b"y".to_vec(), Node::Dir { mode: 0o755 });
        assert!(matches!(error, Err(TreeError::TooManyNames)));
    }
}
