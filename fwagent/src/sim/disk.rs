//! A disk in memory that remembers what a loss of power may undo.
//!
//! The model, which is what POSIX allows and no more than that:
//!
//! * `sync` of a file makes its contents and length durable, and not its name; `sync_dir` makes the names in one directory
//!   durable, and not what they stand for. Until then a change is **pending**.
//! * Of the pending changes any subset may be on the medium when the power goes: each length, each sector of each write
//!   and each change of a name on its own. Where a file has become longer and a sector did not arrive, it reads as zeros.
//! * A rename within a directory is one change: it happened or it did not. Renames between directories are refused.
//! * What was synced stays as it was. A sector of [`SECTOR`] bytes is old or new; only the write that the power interrupts
//!   may end within one.
//! * Permission bits and times are not modelled.
//!
//! Before every operation that changes or syncs something the disk keeps a [`Wreck`]: what a cut there leaves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fwdurable::disk::{Create, DiskFile, Entry, FileSystem, Found, Kind, Open};

use crate::sim::broken::Breakage;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// The root directory.
const ROOT: u64 = 0;

/// What a disk holds.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<String, u64>),
}

/// A change that is not durable yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file or directory that is changed, and on whose sync it becomes durable.
    pub node: u64,
    /// How.
    pub what: What,
}

/// How a file or directory is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The file has this length.
    Length(usize),
    /// Bytes from an offset on, all in one sector.
    Bytes(usize, Arc<[u8]>),
    /// A name stands for this node, or for nothing.
    Name(String, Option<u64>),
    /// A node goes from the first name to the second.
    Rename(String, String, u64),
}

/// An operation that a cut may interrupt.
#[derive(Debug, Clone)]
pub struct Op {
    /// For people: `write /state/.state.a.tmp-1-0 0+2048`.
    pub name: String,
    /// What it changes.
    pub changes: Vec<Change>,
    /// What it makes durable.
    pub syncs: Option<u64>,
    /// Offset and bytes, when it is a write.
    pub write: Option<(usize, Arc<[u8]>)>,
}

/// What a cut before an operation leaves.
#[derive(Debug, Clone)]
pub struct Wreck {
    /// What is on the medium for certain.
    pub durable: Tree,
    /// What may be, in the order in which it was done.
    pub pending: Vec<Change>,
    /// The operation that was about to be done.
    pub op: Op,
    /// Which [`mark`](SimDisk::mark) was set.
    pub mark: usize,
}

/// The disk.
#[derive(Debug)]
pub struct SimDisk {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What a process sees.
    seen: Tree,
    durable: Tree,
    pending: Vec<Change>,
    next_node: u64,
    unique: u64,
    breakage: Breakage,
    mark: usize,
    operations: u64,
    recording: bool,
    wrecks: Vec<Wreck>,
}

impl Default for Tree {
    /// An empty root directory.
    fn default() -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]),
        }
    }
}

impl Tree {
    fn dir(&mut self, node: u64) -> Option<&mut BTreeMap<String, u64>> {
        match self.nodes.get_mut(&node)? {
            Node::Dir(names) => Some(names),
            Node::File(_) => None,
        }
    }

    fn file(&mut self, node: u64) -> Option<&mut Vec<u8>> {
        match self.nodes.get_mut(&node)? {
            Node::File(bytes) => Some(Arc::make_mut(bytes)),
            Node::Dir(_) => None,
        }
    }

    /// Does a change. Bytes beyond the end of the file are lost: their length did not arrive.
    pub fn apply(&mut self, change: &Change) {
        match &change.what {
            What::Length(length) => {
                if let Some(file) = self.file(change.node) {
                    file.resize(*length, 0);
                }
            }
            What::Bytes(offset, bytes) => {
                if let Some(file) = self.file(change.node)
                    && let Some(there) = file.get_mut(*offset..)
                {
                    let length = bytes.len().min(there.len());
                    there[..length].copy_from_slice(&bytes[..length]);
                }
            }
            What::Name(name, node) => {
                if let Some(names) = self.dir(change.node) {
                    match node {
                        Some(node) => names.insert(name.clone(), *node),
                        None => names.remove(name),
                    };
                }
            }
            What::Rename(from, to, node) => {
                if let Some(names) = self.dir(change.node) {
                    names.remove(from);
                    names.insert(to.clone(), *node);
                }
            }
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => match self.nodes.get(&at) {
                    Some(Node::Dir(names)) => {
                        at = *names
                            .get(name.to_string_lossy().as_ref())
                            .ok_or(io::ErrorKind::NotFound)?;
                    }
                    _ => return Err(io::ErrorKind::NotADirectory.into()),
                },
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        Ok(at)
    }

    /// Bytes of a file.
    pub fn length(&self, node: u64) -> Option<usize> {
        match self.nodes.get(&node)? {
            Node::File(bytes) => Some(bytes.len()),
            Node::Dir(_) => None,
        }
    }

    /// The contents of a file; for judging, as no process does it.
    pub fn read(&self, path: &Path) -> Option<&[u8]> {
        match self.nodes.get(&self.find(path).ok()?)? {
            Node::File(bytes) => Some(bytes.as_slice()),
            Node::Dir(_) => None,
        }
    }

    /// Everything that can be reached, by path: two trees with equal contents are one to a process.
    pub fn contents(&self) -> BTreeMap<String, Option<&[u8]>> {
        let mut contents = BTreeMap::new();
        let mut stack = vec![(String::new(), ROOT)];
        while let Some((path, node)) = stack.pop() {
            match self.nodes.get(&node) {
                Some(Node::File(bytes)) => {
                    contents.insert(path, Some(bytes.as_slice()));
                }
                Some(Node::Dir(names)) => {
                    stack.extend(names.iter().map(|(name, node)| (format!("{path}/{name}"), *node)));
                    contents.insert(path, None);
                }
                None => {}
            }
        }
        contents
    }
}

impl Change {
    /// For people.
    pub fn shown(&self) -> String {
        let node = self.node;
        match &self.what {
            What::Length(length) => format!("file {node} has {length} bytes"),
            What::Bytes(offset, bytes) => format!("file {node} has its bytes {offset}+{}", bytes.len()),
            What::Name(name, Some(to)) => format!("directory {node} names file {to} {name}"),
            What::Name(name, None) => format!("directory {node} no longer has {name}"),
            What::Rename(from, to, of) => format!("directory {node} has file {of} renamed from {from} to {to}"),
        }
    }
}

impl Wreck {
    /// All that may be on the medium, the interrupted operation included.
    pub fn uncertain(&self) -> Vec<&Change> {
        self.pending.iter().chain(&self.op.changes).collect()
    }

    /// The medium with these changes.
    pub fn with<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> Tree {
        let mut tree = self.durable.clone();
        for change in changes {
            tree.apply(change);
        }
        tree
    }
}

/// The changes of a write: its length if it makes the file longer, then its bytes by sector.
pub fn write_changes(node: u64, length: usize, offset: usize, bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    let end = offset + bytes.len();
    if end > length {
        changes.push(Change {
            node,
            what: What::Length(end),
        });
    }
    let mut at = offset;
    while at < end {
        let next = ((at / SECTOR + 1) * SECTOR).min(end);
        changes.push(Change {
            node,
            what: What::Bytes(at, bytes[at - offset..next - offset].into()),
        });
        at = next;
    }
    changes
}

impl SimDisk {
    /// A disk that holds `tree`, all of it durable, used by code that is broken in this way.
    pub fn new(tree: Tree, breakage: Breakage) -> Arc<Self> {
        let next_node = tree.nodes.keys().next_back().map_or(1, |last| last + 1);
        Arc::new(Self {
            inner: Mutex::new(Inner {
                seen: tree.clone(),
                durable: tree,
                pending: Vec::new(),
                next_node,
                unique: 0,
                breakage,
                mark: 0,
                operations: 0,
                recording: false,
                wrecks: Vec::new(),
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // One thread uses it; and what a panicking one left is still what it did.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a [`Wreck`] for each operation from now on.
    pub fn record(&self) {
        self.inner().recording = true;
    }

    /// Takes the wrecks that were kept.
    pub fn take_wrecks(&self) -> Vec<Wreck> {
        std::mem::take(&mut self.inner().wrecks)
    }

    /// A number that later wrecks carry.
    pub fn mark(&self, mark: usize) {
        self.inner().mark = mark;
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// What a process sees.
    pub fn seen(&self) -> Tree {
        self.inner().seen.clone()
    }

    /// A new process starts: it counts its temporary files from the beginning.
    pub fn start_process(&self) {
        self.inner().unique = 0;
    }
}

impl Inner {
    fn done(&mut self, op: Op) {
        self.operations += 1;
        if self.recording {
            self.wrecks.push(Wreck {
                durable: self.durable.clone(),
                pending: self.pending.clone(),
                op: op.clone(),
                mark: self.mark,
            });
        }
        for change in op.changes {
            self.seen.apply(&change);
            self.pending.push(change);
        }
        if let Some(node) = op.syncs {
            let (synced, pending) = std::mem::take(&mut self.pending)
                .into_iter()
                .partition(|change| change.node == node);
            self.pending = pending;
            let synced: Vec<Change> = synced;
            for change in &synced {
                self.durable.apply(change);
            }
        }
    }

    fn change(&mut self, name: String, node: u64, what: What) {
        self.done(Op {
            name,
            changes: vec![Change { node, what }],
            syncs: None,
            write: None,
        });
    }

    fn sync(&mut self, name: String, node: u64) {
        self.done(Op {
            name,
            changes: Vec::new(),
            syncs: Some(node),
            write: None,
        });
    }

    fn write(&mut self, path: &str, node: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let length = self.seen.file(node).ok_or(io::ErrorKind::IsADirectory)?.len();
        self.done(Op {
            name: format!("write {path} {offset}+{}", bytes.len()),
            changes: write_changes(node, length, offset, bytes),
            syncs: None,
            write: Some((offset, bytes.into())),
        });
        Ok(())
    }

    fn length(&mut self, path: &str, node: u64, length: u64) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.change(format!("truncate {path} {length}"), node, What::Length(length));
    }

    /// The directory of `path` and the name in it.
    fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.seen.find(path.parent().unwrap_or(Path::new("/")))?;
        match self.seen.nodes.get(&dir) {
            Some(Node::Dir(_)) => Ok((dir, name.to_string_lossy().into_owned())),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// A node that no name stands for yet. Nothing of it can be seen before one does.
    fn node(&mut self, node: Node) -> u64 {
        let number = self.next_node;
        self.next_node += 1;
        self.seen.nodes.insert(number, node.clone());
        self.durable.nodes.insert(number, node);
        number
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        if matches!(self.seen.nodes.get(&self.seen.find(path)?), Some(Node::Dir(_))) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.change(format!("unlink {}", path.display()), dir, What::Name(name, None));
        Ok(())
    }

    fn names(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        match self.seen.nodes.get(&self.seen.find(path)?) {
            Some(Node::Dir(names)) => Ok(names.iter().map(|(name, node)| (name.clone(), *node)).collect()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn found(&self, node: u64) -> Found {
        let (kind, length) = match self.seen.nodes.get(&node) {
            Some(Node::File(bytes)) => (Kind::File, bytes.len() as u64),
            _ => (Kind::Dir, 0),
        };
        Found {
            kind,
            length,
            occupied: length,
        }
    }

    fn remove_tree(&mut self, path: &Path) -> io::Result<()> {
        if self.found(self.seen.find(path)?).kind == Kind::Dir {
            for (name, _) in self.names(path)? {
                self.remove_tree(&path.join(name))?;
            }
            let (dir, name) = self.place(path)?;
            self.change(format!("rmdir {}", path.display()), dir, What::Name(name, None));
            return Ok(());
        }
        self.unlink(path)
    }
}

/// What [`FileSystem`] asks of a disk that is shared.
#[derive(Debug, Clone)]
pub struct Shared(pub Arc<SimDisk>);

#[derive(Debug)]
struct SimFile {
    disk: Arc<SimDisk>,
    path: String,
    node: u64,
    at: usize,
}

impl FileSystem for Shared {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.0.inner();
        let path = inner.breakage.redirect(path);
        let shown = path.display().to_string();
        let node = match inner.seen.find(&path) {
            Ok(_) if how.create == Create::New => return Err(io::ErrorKind::AlreadyExists.into()),
            Ok(node) if how.write && inner.found(node).kind == Kind::Dir => {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok(node) => node,
            Err(error) if error.kind() == io::ErrorKind::NotFound && how.create != Create::Never => {
                let (dir, name) = inner.place(&path)?;
                let node = inner.node(Node::File(Arc::default()));
                inner.change(format!("create {shown}"), dir, What::Name(name, Some(node)));
                node
            }
            Err(error) => return Err(error),
        };
        Ok(Box::new(SimFile {
            disk: Arc::clone(&self.0),
            path: shown,
            node,
            at: 0,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.0.inner();
        let (from, to) = (inner.breakage.redirect(from), inner.breakage.redirect(to));
        let node = inner.seen.find(&from)?;
        let ((dir, old), (other, new)) = (inner.place(&from)?, inner.place(&to)?);
        if dir != other {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if let Ok(target) = inner.seen.find(&to) {
            if inner.found(target).kind == Kind::Dir {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if inner.breakage.overwrites() {
                let bytes = inner.seen.file(node).cloned().unwrap_or_default();
                let shown = to.display().to_string();
                inner.length(&shown, target, 0);
                inner.write(&shown, target, 0, &bytes)?;
                inner.sync(format!("fsync {shown}"), target);
                return inner.unlink(&from);
            }
        }
        let name = format!("rename {} {}", from.display(), to.display());
        inner.change(name, dir, What::Rename(old, new, node));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.0.inner();
        let node = inner.seen.find(from)?;
        if inner.seen.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (dir, name) = inner.place(to)?;
        let text = format!("link {} {}", from.display(), to.display());
        inner.change(text, dir, What::Name(name, Some(node)));
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.inner();
        let path = inner.breakage.redirect(path);
        inner.unlink(&path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.inner();
        if inner.seen.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let (dir, name) = inner.place(path)?;
        let node = inner.node(Node::Dir(BTreeMap::new()));
        inner.change(format!("mkdir {}", path.display()), dir, What::Name(name, Some(node)));
        Ok(())
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.0.inner().remove_tree(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.inner();
        let node = inner.seen.find(path)?;
        if inner.found(node).kind != Kind::Dir {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if !inner.breakage.forgets_dir_sync() {
            inner.sync(
                format!("fsync {}/", path.display().to_string().trim_end_matches('/')),
                node,
            );
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let inner = self.0.inner();
        let names = inner.names(path)?;
        let entries = names.into_iter().map(|(name, node)| Entry {
            name: OsString::from(name),
            kind: inner.found(node).kind,
        });
        Ok(entries.collect())
    }

    fn find(&self, path: &Path) -> io::Result<Found> {
        let inner = self.0.inner();
        let path = inner.breakage.redirect(path);
        Ok(inner.found(inner.seen.find(&path)?))
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.find(path).is_ok_and(|found| found.kind == Kind::Dir)
    }

    fn unique(&self) -> (u32, u64) {
        let mut inner = self.0.inner();
        let counter = inner.unique;
        inner.unique += 1;
        (1, counter)
    }
}

impl DiskFile for SimFile {
    fn set_len(&mut self, length: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        if inner.found(self.node).length != length {
            inner.length(&self.path, self.node, length);
        }
        Ok(())
    }

    fn set_mode(&mut self, _mode: u32) -> io::Result<()> {
        Ok(())
    }

    fn set_owner(&mut self, _user: Option<u32>, _group: Option<u32>) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        if !inner.breakage.forgets_sync(&self.path) {
            inner.sync(format!("fsync {}", self.path), self.node);
        }
        Ok(())
    }

    fn found(&self) -> io::Result<Found> {
        Ok(self.disk.inner().found(self.node))
    }
}

impl Read for SimFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let inner = self.disk.inner();
        let Some(Node::File(bytes)) = inner.seen.nodes.get(&self.node) else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let there = bytes.get(self.at..).unwrap_or_default();
        let length = there.len().min(buffer.len());
        buffer[..length].copy_from_slice(&there[..length]);
        self.at += length;
        Ok(length)
    }
}

impl Write for SimFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if !buffer.is_empty() {
            self.disk.inner().write(&self.path, self.node, self.at, buffer)?;
            self.at += buffer.len();
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for SimFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let length = self.disk.inner().found(self.node).length;
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => (self.at as u64).checked_add_signed(by),
            SeekFrom::End(by) => length.checked_add_signed(by),
        };
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(at)
    }
}
