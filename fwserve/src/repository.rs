//! A repository directory as it is served: files by name, with their facts, hot ones in memory.
//!
//! A cached file is used only while the file system says that it is still the same one (device, inode, length, time), so
//! that a repository that other programs write is served as it is. Names come from [`crate::routes`]; here every
//! directory on the way is opened without following symbolic links, so that nothing leads out.

use std::any::TypeId;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use fwmeta::hex;
use hyper::header::HeaderValue;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256, Sha512};

use crate::representation::Facts;
use crate::routes::{self, Caching};

/// Metadata up to this length are kept in memory with their compressed forms: about 80,000 targets.
const METADATA_IN_MEMORY: u64 = 32 * 1024 * 1024;
/// Targets up to this length are kept in memory: manifests.
const TARGET_IN_MEMORY: u64 = 64 * 1024;
/// Shorter files gain nothing from compression.
const WORTH_COMPRESSING: u64 = 256;
/// Bytes of file contents and compressed forms kept in memory.
const CACHE_BYTES: u64 = 128 * 1024 * 1024;
/// Hashing or compressing more than this is much work.
const LITTLE: u64 = 1024 * 1024;
/// Files whose digest is remembered.
const DIGESTS: usize = 65_536;
/// Bytes read at a time when hashing.
const CHUNK: usize = 256 * 1024;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Identity {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }

    /// Of what has this path; `None` when that is not a file, or is not there.
    fn of_path(path: &CStr) -> Option<Self> {
        let stat = rustix::fs::lstat(path).ok()?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
        is_file.then(|| Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            length: u64::try_from(stat.st_size).unwrap_or(0),
            seconds: stat.st_mtime,
            nanoseconds: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        })
    }
}

/// A file as it is served.
#[derive(Debug)]
pub struct Object {
    /// What answers say about it.
    pub facts: Facts,
    /// Its bytes.
    pub content: Content,
    path: CString,
    identity: Identity,
    weight: u64,
    used: AtomicU64,
}

/// The bytes of a file.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Memory {
        /// As it is.
        identity: Bytes,
        /// Compressed, when that is shorter.
        gzip: Option<Bytes>,
        /// Compressed, when that is shorter.
        zstd: Option<Bytes>,
    },
    /// To be read while it is sent.
    File(Arc<File>),
}

/// How much work a request for a file is worth, for a caller that bounds how much of it is done at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Not the hashing of a large file.
    Little,
    /// Whatever it takes.
    Any,
}

/// What is under a name.
#[derive(Debug)]
pub enum Found {
    /// No file.
    Nothing,
    /// This file.
    Object(Arc<Object>),
    /// A file that takes more work.
    Unread,
}

/// A digest is remembered by the state of the file and by the algorithm.
type DigestKey = (Identity, TypeId);

/// A served directory.
#[derive(Debug)]
pub struct Repository {
    dir: PathBuf,
    short: HeaderValue,
    cache: RwLock<HashMap<String, Arc<Object>>>,
    cache_bytes: u64,
    digests: Mutex<HashMap<DigestKey, String>>,
    /// Held for reading while metadata are looked up, for writing while a publication switches.
    switch: RwLock<()>,
    clock: AtomicU64,
}

impl Repository {
    /// Serves `dir`, whose `timestamp.json` caches may keep for `timestamp_max_age` seconds.
    pub fn new(dir: &Path, timestamp_max_age: u32) -> Self {
        let short = format!("public, max-age={timestamp_max_age}, must-revalidate");
        Self {
            dir: dir.to_owned(),
            short: HeaderValue::from_str(&short).unwrap_or_else(|_| HeaderValue::from_static("no-cache")),
            cache: RwLock::default(),
            cache_bytes: CACHE_BYTES,
            digests: Mutex::default(),
            switch: RwLock::default(),
            clock: AtomicU64::new(0),
        }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps every reader out while metadata that belong together change.
    pub(crate) fn begin_switch(&self) -> RwLockWriteGuard<'_, ()> {
        self.switch.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.switch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file from memory, if it is there and still the one on disk: one system call.
    pub fn cached(&self, name: &str) -> Option<Arc<Object>> {
        let _reading = self.reading();
        let object = {
            let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(cache.get(name)?)
        };
        (Identity::of_path(&object.path) == Some(object.identity)).then(|| {
            object.used.store(self.tick(), Ordering::Relaxed);
            object
        })
    }

    /// A file from disk. Blocks.
    ///
    /// # Errors
    /// Any error of the file system other than that the file is not there.
    pub fn load(&self, name: &str, effort: Effort) -> io::Result<Found> {
        let opened = {
            let _reading = self.reading();
            open_beneath(&self.dir, name)?
        };
        let Some(file) = opened else { return Ok(Found::Nothing) };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Found::Nothing);
        }
        let identity = Identity::of(&metadata);
        let is_metadata = name.starts_with("metadata/");
        let in_memory = identity.length
            <= if is_metadata {
                METADATA_IN_MEMORY
            } else {
                TARGET_IN_MEMORY
            };
        let claimed = routes::claimed_digest(name).map(str::to_ascii_lowercase);
        let claims_sha512 = claimed.as_ref().is_some_and(|claimed| claimed.len() == 128);
        let is_known = !in_memory
            && self.known::<Sha256>(identity).is_some()
            && (!claims_sha512 || self.known::<Sha512>(identity).is_some());
        if effort == Effort::Little && identity.length > LITTLE && !is_known {
            return Ok(Found::Unread);
        }
        let in_memory = in_memory.then(|| read_whole(&file, identity.length)).transpose()?;
        let digest = match &in_memory {
            Some(bytes) => hex::encode(&Sha256::digest(bytes)),
            None => self.digest::<Sha256>(&file, identity)?,
        };
        let claim_holds = match claimed {
            None => false,
            Some(claimed) if claims_sha512 => claimed == self.digest::<Sha512>(&file, identity)?,
            Some(claimed) => claimed == digest,
        };
        let cache_control = match caching(name, claim_holds) {
            Caching::Immutable => HeaderValue::from_static("public, max-age=31536000, immutable"),
            Caching::Short => self.short.clone(),
            Caching::Revalidate => HeaderValue::from_static("no-cache"),
        };
        let modified = metadata.modified()?;
        let mut facts = Facts::new(identity.length, &digest, modified, &cache_control, content_type(name));
        let mut weight = 0;
        let content = match in_memory {
            None => Content::File(Arc::new(file)),
            Some(bytes) => {
                let (gzip, zstd) = if is_metadata { compress(&bytes)? } else { (None, None) };
                let length = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| bytes.len() as u64);
                if is_metadata {
                    facts = facts.with_codings(length(&gzip), length(&zstd));
                }
                weight = identity.length
                    + length(&gzip).unwrap_or(0)
                    + length(&zstd).unwrap_or(0)
                    + name.len() as u64
                    + 1024;
                Content::Memory {
                    identity: bytes,
                    gzip,
                    zstd,
                }
            }
        };
        let object = Arc::new(Object {
            facts,
            content,
            path: CString::new(self.dir.join(name).into_os_string().into_vec())?,
            identity,
            weight,
            used: AtomicU64::new(self.tick()),
        });
        if weight > 0 {
            self.remember(name, &object);
        }
        Ok(Found::Object(object))
    }

    /// Notes the SHA-256 of a file that was verified before it got this name, so that its first reader need not wait.
    pub(crate) fn learn(&self, name: &str, sha256: &str) -> io::Result<()> {
        let metadata = std::fs::symlink_metadata(self.dir.join(name))?;
        self.note::<Sha256>(Identity::of(&metadata), sha256.to_owned());
        Ok(())
    }

    /// The SHA-256 of a published file in hexadecimal, hashed once; `None` when there is no such file.
    ///
    /// # Errors
    /// Any error of the file system other than that the file is not there.
    pub fn sha256(&self, name: &str) -> io::Result<Option<String>> {
        let Some(file) = open_beneath(&self.dir, name)? else {
            return Ok(None);
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        self.digest::<Sha256>(&file, Identity::of(&metadata)).map(Some)
    }

    fn digest<D: Digest + 'static>(&self, file: &File, identity: Identity) -> io::Result<String> {
        if let Some(digest) = self.known::<D>(identity) {
            return Ok(digest);
        }
        let digest = hex::encode(&hash_file::<D>(file)?);
        self.note::<D>(identity, digest.clone());
        Ok(digest)
    }

    fn known<D: 'static>(&self, identity: Identity) -> Option<String> {
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.get(&(identity, TypeId::of::<D>())).cloned()
    }

    fn note<D: 'static>(&self, identity: Identity, digest: String) {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests.len() >= DIGESTS {
            // Rare, and costs no more than hashing again what is asked for again.
            digests.clear();
        }
        digests.insert((identity, TypeId::of::<D>()), digest);
    }

    fn remember(&self, name: &str, object: &Arc<Object>) {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        cache.insert(name.to_owned(), Arc::clone(object));
        let mut total: u64 = cache.values().map(|object| object.weight).sum();
        while total > self.cache_bytes {
            let oldest = cache
                .iter()
                .min_by_key(|(_, object)| object.used.load(Ordering::Relaxed));
            let Some((oldest, weight)) = oldest.map(|(name, object)| (name.clone(), object.weight)) else {
                break;
            };
            cache.remove(&oldest);
            total -= weight;
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

/// A name that claims a digest makes a file immutable only if the claim is true.
fn caching(name: &str, claim_holds: bool) -> Caching {
    match name.strip_prefix("metadata/") {
        Some("timestamp.json") => Caching::Short,
        Some(part) if routes::is_versioned(part) => Caching::Immutable,
        None if claim_holds => Caching::Immutable,
        _ => Caching::Revalidate,
    }
}

/// Opens `name` below `dir`, following no symbolic link; `None` when it, or a directory on the way, is not there.
fn open_beneath(dir: &Path, name: &str) -> io::Result<Option<File>> {
    // NONBLOCK: opening a FIFO must not hang. It has no effect on files.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let absent = |error: rustix::io::Errno| {
        use rustix::io::Errno;
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO => Ok(None),
            other => Err(io::Error::from(other)),
        }
    };
    let mut at = match rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(at) => at,
        Err(error) => return absent(error),
    };
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        if !routes::is_safe_part(part) {
            return Ok(None);
        }
        let flags = if parts.peek().is_some() {
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
        } else {
            flags
        };
        at = match rustix::fs::openat(&at, part, flags, Mode::empty()) {
            Ok(next) => next,
            Err(error) => return absent(error),
        };
    }
    Ok(Some(File::from(at)))
}

fn read_whole(file: &File, length: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    let mut reader = file;
    reader.by_ref().take(length + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length {
        Ok(Bytes::from(bytes))
    } else {
        Err(io::Error::other("the file changed while it was read"))
    }
}

/// Digest of a whole file, whatever its read position.
pub(crate) fn hash_file<D: Digest>(file: &File) -> io::Result<Vec<u8>> {
    let mut digest = D::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let length = file.read_at(&mut chunk, offset)?;
        if length == 0 {
            return Ok(digest.finalize().to_vec());
        }
        digest.update(&chunk[..length]);
        offset += length as u64;
    }
}

type Compressed = (Option<Bytes>, Option<Bytes>);

fn compress(bytes: &Bytes) -> io::Result<Compressed> {
    use std::io::Write;
    if (bytes.len() as u64) < WORTH_COMPRESSING {
        return Ok((None, None));
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(bytes)?;
    let shorter = |coded: Vec<u8>| (coded.len() < bytes.len()).then(|| Bytes::from(coded));
    Ok((shorter(gzip.finish()?), shorter(zstd::bulk::compress(bytes, 9)?)))
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "json")) => "application/json",
        Some((_, "zst")) => "application/zstd",
        Some((_, "gz")) => "application/gzip",
        Some((_, "tar")) => "application/x-tar",
        Some((_, "txt")) => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;
