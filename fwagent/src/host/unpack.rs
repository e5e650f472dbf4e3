//! Unpacks a tar archive that nobody has verified yet, so that nothing it says can touch anything outside its tree.
//!
//! What it decides: which archives are acceptable, strictly, so that two readers cannot see two trees in one archive.
//! What it does not decide: whether the archive is the right one; the caller hashes it as it is read.
//!
//! Why nothing is written outside: every entry is created under a parent that is in the [`Tree`] as a directory, that
//! is, one which this call made itself, in a root that was empty and that nobody else may enter (mode 0700). No part of
//! a path is ever a link, and nothing that exists is opened or replaced (`O_EXCL`).
//!
//! Why links cannot lead outside afterwards either: a target is relative, and `..` stands only at its beginning, at most
//! as often as the link's directory is deep. Resolving any chain of links is then a sequence of two kinds of steps, and
//! after each the current directory is in the tree. A leading `..` is taken in the directory that holds the link; that is
//! a real directory at a known depth, because links are stored under real directories only, so that going up at most
//! that often stays inside. A name goes down, or meets another link, whose target begins in its own real directory.
//! What remains of the earlier targets is names alone, so `..` never follows a jump to a less deep directory.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::tree::{Node, Tree, TreeError, join, relative};

mod extension;

use extension::Extensions;

/// Longest path or link target, in bytes.
pub const PATH_BYTES: usize = 1024;
/// Longest part of a path, in bytes: what Linux file systems allow.
pub const PART_BYTES: usize = 255;
/// Most parts of a path.
pub const DEPTH: usize = 128;
/// Mode of directories that the archive only implies.
const IMPLIED_MODE: u32 = 0o755;
/// Bytes copied at once.
const CHUNK: usize = 64 * 1024;

/// An archive was refused or could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// Not a tar archive, or reading it failed.
    #[error("the archive is damaged")]
    Archive(#[source] io::Error),
    /// The archive ends within an entry or before its end marker.
    #[error("the archive ends early")]
    Truncated,
    /// Something follows the end marker.
    #[error("there is data after the end of the archive")]
    Trailing,
    /// A path that is not acceptable.
    #[error("path {path:?}: {reason}")]
    Path {
        /// The path as stored, cut to [`PATH_BYTES`].
        path: PathBuf,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A symbolic link that is not acceptable.
    #[error("symbolic link {path:?} to {target:?}: {reason}")]
    Link {
        /// The link.
        path: PathBuf,
        /// Its target, cut to [`PATH_BYTES`].
        target: PathBuf,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Neither a regular file, a directory nor a symbolic link.
    #[error("{path:?} is of type {kind}: only files, directories and symbolic links are accepted")]
    Type {
        /// The entry.
        path: PathBuf,
        /// The type by name.
        kind: String,
    },
    /// Set-user-id, set-group-id or sticky bits.
    #[error("{path:?} has mode {mode:o}: set-id and sticky bits are not accepted")]
    SpecialMode {
        /// The entry.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A path is there twice.
    #[error("{path:?} is in the archive twice")]
    Duplicate {
        /// The path.
        path: PathBuf,
    },
    /// An entry is below something that is not a directory.
    #[error("{path:?} is below {parent:?}, which is not a directory")]
    Parent {
        /// The entry.
        path: PathBuf,
        /// What it is below.
        parent: PathBuf,
    },
    /// A header that says what is not understood, or says it twice.
    #[error("extended header: {reason}")]
    Extension {
        /// What is wrong.
        reason: String,
    },
    /// An entry that has no content gives a size, or one entry gives two sizes.
    #[error("{path:?} has a size that does not fit its type or its headers")]
    Size {
        /// The entry.
        path: PathBuf,
    },
    /// More than a tree may have.
    #[error(transparent)]
    Tree(#[from] TreeError),
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

/// Unpacks `archive` into `root`, an empty directory of mode 0700, and reads it to its end. Returns the tree as the
/// archive describes it; `root` has its mode from the archive then, or 0755. Nothing is synced.
///
/// # Errors
/// [`UnpackError`]; an unknown part of the tree is then in `root`, and nothing elsewhere.
pub fn unpack(archive: &mut dyn Read, root: &Path) -> Result<Tree, UnpackError> {
    let mut watched = Watched {
        inner: archive,
        ended: false,
    };
    let mut unpacker = Unpacker::new(root)?;
    let mut extensions = Extensions::default();
    {
        let mut archive = Archive::new(&mut watched);
        // Raw: the library would read names of any length into memory, and skip headers that it does not know.
        for entry in archive.entries().map_err(UnpackError::Archive)?.raw(true) {
            let mut entry = entry.map_err(UnpackError::Archive)?;
            if !extensions.take(&mut entry)? {
                unpacker.entry(&mut entry, std::mem::take(&mut extensions))?;
            }
        }
    }
    extensions.none_left()?;
    // The iteration ends silently at the end of the input too; an archive ends with blocks of zeros, not before.
    if watched.ended {
        return Err(UnpackError::Truncated);
    }
    only_zeros(&mut watched)?;
    unpacker.finish()
}

struct Unpacker<'a> {
    root: &'a Path,
    tree: Tree,
    /// Directories that were made because something was in them; the archive may still list them, once.
    implied: BTreeSet<Vec<u8>>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(root: &'a Path) -> Result<Self, UnpackError> {
        let mut tree = Tree::default();
        tree.insert(Vec::new(), Node::Dir { mode: IMPLIED_MODE })?;
        Ok(Self {
            root,
            tree,
            implied: BTreeSet::from([Vec::new()]),
            buffer: vec![0; CHUNK],
        })
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, extensions: Extensions) -> Result<(), UnpackError> {
        let header = entry.header();
        let kind = header.entry_type();
        let stored = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = parse_path(&stored, kind.is_dir())?;
        let mode = header.mode().map_err(UnpackError::Archive)?;
        let size = header.entry_size().map_err(UnpackError::Archive)?;
        if extensions.size.is_some_and(|other| other != size) || (size != 0 && !kind.is_file()) {
            // The second size would move the beginning of the next entry.
            return match kind {
                EntryType::Regular | EntryType::Directory | EntryType::Symlink => {
                    Err(UnpackError::Size { path: relative(&path) })
                }
                _ => Err(unaccepted(&path, kind)),
            };
        }
        if mode & 0o7000 != 0 && matches!(kind, EntryType::Regular | EntryType::Directory) {
            let (path, mode) = (relative(&path), mode & 0o7777);
            return Err(UnpackError::SpecialMode { path, mode });
        }
        let mode = mode & 0o777;
        match kind {
            EntryType::Directory => self.directory(path, mode),
            EntryType::Regular => self.file(path, mode, size, entry),
            EntryType::Symlink => {
                let target = extensions
                    .link
                    .or_else(|| Some(header.link_name_bytes()?.into_owned()))
                    .unwrap_or_default();
                self.link(path, target)
            }
            _ => Err(unaccepted(&path, kind)),
        }
    }

    fn directory(&mut self, path: Vec<u8>, mode: u32) -> Result<(), UnpackError> {
        if !self.implied.remove(&path) {
            self.prepare(&path)?;
            self.make_dir(&path)?;
        }
        Ok(self.tree.insert(path, Node::Dir { mode })?)
    }

    fn file(&mut self, path: Vec<u8>, mode: u32, size: u64, content: &mut impl Read) -> Result<(), UnpackError> {
        self.prepare(&path)?;
        let full = join(self.root, &path);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&full)
            .map_err(failed("creating", &full))?;
        let (mut length, mut hasher) = (0, Sha256::new());
        loop {
            let read = content.read(&mut self.buffer).map_err(UnpackError::Archive)?;
            if read == 0 {
                break;
            }
            length += read as u64;
            hasher.update(&self.buffer[..read]);
            file.write_all(&self.buffer[..read]).map_err(failed("writing", &full))?;
        }
        if length != size {
            return Err(UnpackError::Truncated);
        }
        // Not the mode of creation, which the umask would change.
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(failed("setting the mode of", &full))?;
        let sha256 = hasher.finalize().into();
        Ok(self.tree.insert(path, Node::File { mode, size, sha256 })?)
    }

    fn link(&mut self, path: Vec<u8>, target: Vec<u8>) -> Result<(), UnpackError> {
        check_target(&path, &target)?;
        self.prepare(&path)?;
        let full = join(self.root, &path);
        symlink(relative(&target), &full).map_err(failed("creating", &full))?;
        Ok(self.tree.insert(path, Node::Link { target })?)
    }

    /// Makes sure that `path` is new and that each directory above it is one of ours.
    fn prepare(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        if self.tree.get(path).is_some() {
            return Err(UnpackError::Duplicate { path: relative(path) });
        }
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for parent in ends.map(|(end, _)| &path[..end]) {
            match self.tree.get(parent) {
                Some(Node::Dir { .. }) => {}
                Some(_) => {
                    let (path, parent) = (relative(path), relative(parent));
                    return Err(UnpackError::Parent { path, parent });
                }
                None => {
                    self.make_dir(parent)?;
                    self.tree.insert(parent.to_vec(), Node::Dir { mode: IMPLIED_MODE })?;
                    self.implied.insert(parent.to_vec());
                }
            }
        }
        Ok(())
    }

    fn make_dir(&self, path: &[u8]) -> Result<(), UnpackError> {
        let full = join(self.root, path);
        let made = DirBuilder::new().mode(0o700).create(&full);
        made.map_err(failed("creating", &full))
    }

    /// Gives directories their modes, the deepest first: one that may not be entered is no obstacle any more.
    fn finish(self) -> Result<Tree, UnpackError> {
        for (path, node) in self.tree.iter().rev() {
            if let Node::Dir { mode } = node {
                let full = join(self.root, path);
                fs::set_permissions(&full, Permissions::from_mode(*mode))
                    .map_err(failed("setting the mode of", &full))?;
            }
        }
        Ok(self.tree)
    }
}

/// Reads the path of an entry, without the `./` that archives of a directory begin paths with and the `/` that ends
/// those of directories. The root itself is the empty path.
fn parse_path(stored: &[u8], directory: bool) -> Result<Vec<u8>, UnpackError> {
    let refused = |reason| {
        let path = relative(&stored[..stored.len().min(PATH_BYTES)]);
        Err(UnpackError::Path { path, reason })
    };
    let mut path = if stored == b"." { b"./" } else { stored };
    if path == b"./" {
        return if directory {
            Ok(Vec::new())
        } else {
            refused("the root of the tree is not a directory")
        };
    }
    path = path.strip_prefix(b"./").unwrap_or(path);
    if directory {
        path = path.strip_suffix(b"/").unwrap_or(path);
    }
    let parts = || path.split(|byte| *byte == b'/');
    if path.len() > PATH_BYTES || parts().any(|part| part.len() > PART_BYTES) {
        refused("it is too long")
    } else if parts().count() > DEPTH {
        refused("it is too deep")
    } else if path.contains(&0) {
        refused("it contains NUL")
    } else if path.starts_with(b"/") {
        refused("it is absolute")
    } else if parts().any(|part| matches!(part, b"" | b"." | b"..")) {
        refused("it has an empty part, . or ..")
    } else {
        Ok(path.to_vec())
    }
}

/// The rules of the induction at the top of this module.
fn check_target(path: &[u8], target: &[u8]) -> Result<(), UnpackError> {
    let depth = path.iter().filter(|byte| **byte == b'/').count();
    let parts = || target.split(|byte| *byte == b'/').filter(|part| *part != b".");
    let up = parts().take_while(|part| *part == b"..").count();
    let reason = if target.is_empty() {
        "the target is empty"
    } else if target.len() > PATH_BYTES || parts().any(|part| part.len() > PART_BYTES) {
        "the target is too long"
    } else if target.contains(&0) {
        "the target contains NUL"
    } else if target.starts_with(b"/") {
        "the target is absolute"
    } else if up > depth {
        "the target is outside the tree"
    } else if parts().skip(up).any(|part| part == b"..") {
        "the target has .. after a name"
    } else {
        return Ok(());
    };
    Err(UnpackError::Link {
        path: relative(path),
        target: relative(&target[..target.len().min(PATH_BYTES)]),
        reason,
    })
}

fn unaccepted(path: &[u8], kind: EntryType) -> UnpackError {
    let known = match kind {
        EntryType::Link => "hard link",
        EntryType::Char => "character device",
        EntryType::Block => "block device",
        EntryType::Fifo => "pipe",
        EntryType::GNUSparse => "sparse file",
        _ => "",
    };
    UnpackError::Type {
        path: relative(path),
        kind: match known {
            "" => format!("{:?}", char::from(kind.as_byte())),
            known => known.to_owned(),
        },
    }
}

/// Reads to the end, where padding is all that may come.
fn only_zeros(rest: &mut impl Read) -> Result<(), UnpackError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match rest.read(&mut buffer).map_err(UnpackError::Archive)? {
            0 => return Ok(()),
            length if buffer[..length].iter().any(|byte| *byte != 0) => return Err(UnpackError::Trailing),
            _ => {}
        }
    }
}

/// Notes that the input has ended, and never returns [`io::ErrorKind::Interrupted`], which the library does not expect.
struct Watched<'a> {
    inner: &'a mut dyn Read,
    ended: bool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(length) => {
                    self.ended |= length == 0 && !buffer.is_empty();
                    return Ok(length);
                }
                other => return other,
            }
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    move |source| UnpackError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
