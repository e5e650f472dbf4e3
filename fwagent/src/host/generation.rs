//! Trusted metadata as durable generations (DESIGN §5.5).
//!
//! ```text
//! DIR/factory-root.json      put there by the factory, never replaced
//! DIR/objects/<SHA-256>      metadata as received, never changed
//! DIR/generation.a, .b       which objects are the current generation and which the one before
//! ```
//!
//! A cycle stages what it verifies; [`commit`](MetadataStore::commit) writes the new objects, then the record that names
//! them. So a loss of power leaves the old generation or the new one. An object that does not match its digest makes its
//! whole generation damaged, and the one before is used; when that is damaged too, or no copy of the record can be read,
//! the device starts over from the factory root, and the floors in the agent's record keep it from going back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use fwdurable::Disk;
use fwdurable::twin::{Loaded, Twin, TwinError};
use fwmeta::client::Cache;
use fwmeta::json::{Doc, Value, object};
use fwmeta::role::RoleName;
use fwmeta::{hex, limits};
use sha2::{Digest, Sha256};

use crate::ports::{KnownTimestamp, MetadataStore, PortError};

/// Longest record: the roles of a product with very many hash bins, twice.
const RECORD_BYTES: usize = 8 * 1024 * 1024;
/// Roots that may have followed the factory root.
const ROOTS: usize = 4096;

/// The objects of one generation, by their SHA-256 in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Generation {
    /// Roots after the factory one, oldest first.
    roots: Vec<String>,
    /// Metadata of the other roles.
    roles: BTreeMap<String, String>,
    /// Entity tag that the server gave with the timestamp.
    etag: Option<String>,
}

/// Why a generation could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// The record of generations is damaged.
    #[error("record of trusted metadata")]
    Record(#[from] TwinError),
    /// The file system failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
}

/// Trusted metadata in a directory.
#[derive(Debug)]
pub struct GenerationStore {
    disk: Disk,
    dir: PathBuf,
    twin: Twin,
    current: Generation,
    staged: Option<Generation>,
    /// Objects that the staged generation has and the disk has not.
    new_objects: BTreeMap<String, Vec<u8>>,
    damaged: u32,
    /// The record cannot be read and says nothing any more; the next commit replaces it.
    unreadable: bool,
}

impl GenerationStore {
    /// Opens the metadata in `dir`, which must hold a factory root.
    ///
    /// # Errors
    /// [`GenerationError`].
    pub fn open(dir: &Path) -> Result<Self, GenerationError> {
        Self::open_on(&Disk::system(), dir)
    }

    /// Like [`open`](Self::open), on a disk.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: &Disk, dir: &Path) -> Result<Self, GenerationError> {
        let twin = disk.twin(dir.join("generation"), RECORD_BYTES);
        let mut damaged = 0;
        let mut unreadable = false;
        let current = match twin.load() {
            Ok(Loaded::Empty) => Generation::default(),
            Err(TwinError::BothDamaged { .. }) => {
                unreadable = true;
                Generation::default()
            }
            Err(error) => return Err(error.into()),
            Ok(Loaded::Record {
                payload,
                degraded: torn,
                ..
            }) => {
                if torn {
                    twin.repair()?;
                }
                let generations = decode(&payload).unwrap_or_else(|| {
                    unreadable = true;
                    Vec::new()
                });
                let mut whole = Generation::default();
                for generation in generations {
                    if is_whole(disk, dir, &generation) {
                        whole = generation;
                        break;
                    }
                    damaged += 1;
                }
                whole
            }
        };
        damaged += u32::from(unreadable);
        for swept in [dir, &dir.join("objects")] {
            disk.sweep_temporaries(swept).map_err(io_error(swept))?;
        }
        Ok(Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            twin,
            current,
            staged: None,
            new_objects: BTreeMap::new(),
            damaged,
            unreadable,
        })
    }

    /// Puts the factory root in place; refuses to replace another one.
    ///
    /// # Errors
    /// [`GenerationError::Io`], with [`io::ErrorKind::AlreadyExists`] when another root is there.
    pub fn provision(dir: &Path, root: &[u8]) -> Result<(), GenerationError> {
        Self::provision_on(&Disk::system(), dir, root)
    }

    /// Like [`provision`](Self::provision), on a disk.
    ///
    /// # Errors
    /// As [`provision`](Self::provision).
    pub fn provision_on(disk: &Disk, dir: &Path, root: &[u8]) -> Result<(), GenerationError> {
        let objects = dir.join("objects");
        disk.create_dir_all(&objects).map_err(io_error(&objects))?;
        let path = factory_path(dir);
        match disk.read_bounded(&path, limits::ROOT_BYTES) {
            Ok(present) if present == root => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&path)(error)),
        }
        disk.create_new(&path, root, 0o644).map_err(io_error(&path))
    }

    /// How many generations were found damaged and given up when the store was opened.
    pub fn damaged(&self) -> u32 {
        self.damaged
    }

    fn generation(&self) -> &Generation {
        self.staged.as_ref().unwrap_or(&self.current)
    }

    fn staging(&mut self) -> &mut Generation {
        self.staged.get_or_insert_with(|| self.current.clone())
    }

    fn object(&self, sha256: &str) -> Option<Vec<u8>> {
        match self.new_objects.get(sha256) {
            Some(bytes) => Some(bytes.clone()),
            None => read_object(&self.disk, &self.dir, sha256),
        }
    }

    fn write(&mut self) -> Result<(), GenerationError> {
        let Some(staged) = &self.staged else {
            return Ok(());
        };
        // The directory may have been lost with what was in it.
        let objects_dir = self.dir.join("objects");
        let disk = &self.disk;
        disk.create_dir_all(&objects_dir).map_err(io_error(&objects_dir))?;
        for (sha256, bytes) in &self.new_objects {
            let path = object_path(&self.dir, sha256);
            if read_object(disk, &self.dir, sha256).is_none() {
                disk.write_file(&path, bytes).map_err(io_error(&path))?;
            }
        }
        if self.unreadable {
            // A record of two copies never overwrites what it cannot read. This one kept no floor that would be forgotten.
            for copy in ["generation.a", "generation.b"] {
                let path = self.dir.join(copy);
                disk.remove_file(&path).map_err(io_error(&path))?;
            }
            self.unreadable = false;
        }
        self.twin.store(&encode(&[staged, &self.current]))?;
        let kept: BTreeSet<&String> = objects(staged).chain(objects(&self.current)).collect();
        collect_garbage(disk, &self.dir, &kept)?;
        self.current = staged.clone();
        self.staged = None;
        self.new_objects.clear();
        Ok(())
    }
}

impl Cache for GenerationStore {
    type Error = PortError;

    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, PortError> {
        let generation = self.generation();
        let sha256 = if *role == RoleName::root() {
            generation.roots.last()
        } else {
            generation.roles.get(role.as_str())
        };
        Ok(sha256.and_then(|sha256| self.object(sha256)))
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), PortError> {
        let sha256 = hex::encode(&Sha256::digest(bytes));
        self.new_objects.insert(sha256.clone(), bytes.to_vec());
        let staging = self.staging();
        if *role == RoleName::root() {
            staging.roots.push(sha256);
        } else {
            if *role == RoleName::timestamp() {
                staging.etag = None;
            }
            staging.roles.insert(role.as_str().to_owned(), sha256);
        }
        Ok(())
    }

    fn remove(&mut self, role: &RoleName) -> Result<(), PortError> {
        self.staging().roles.remove(role.as_str());
        Ok(())
    }
}

impl MetadataStore for GenerationStore {
    fn factory_root(&mut self) -> Result<Vec<u8>, PortError> {
        let path = factory_path(&self.dir);
        let attempt = format!("reading the factory root {}", path.display());
        let read = self.disk.read_bounded(&path, limits::ROOT_BYTES);
        read.map_err(|error| PortError::environment(attempt, Some(error.into())))
    }

    fn root_history(&mut self) -> Result<Vec<Vec<u8>>, PortError> {
        let roots = self.generation().roots.clone();
        let read = roots.iter().map(|sha256| {
            self.object(sha256)
                .ok_or_else(|| PortError::environment("reading an accepted root", None))
        });
        read.collect()
    }

    fn commit(&mut self) -> Result<(), PortError> {
        self.write()
            .map_err(|error| PortError::environment("committing the trusted metadata", Some(error.into())))
    }

    fn discard(&mut self) {
        self.staged = None;
        self.new_objects.clear();
    }

    fn known_timestamp(&mut self) -> Option<KnownTimestamp> {
        let etag = self.current.etag.clone()?;
        let bytes = read_object(&self.disk, &self.dir, self.current.roles.get("timestamp")?)?;
        Some(KnownTimestamp { etag, bytes })
    }

    fn stage_etag(&mut self, etag: Option<&str>) {
        if self.generation().etag.as_deref() != etag {
            self.staging().etag = etag.map(str::to_owned);
        }
    }
}

fn factory_path(dir: &Path) -> PathBuf {
    dir.join("factory-root.json")
}

fn object_path(dir: &Path, sha256: &str) -> PathBuf {
    dir.join("objects").join(sha256)
}

/// The object, if it is there and whole.
fn read_object(disk: &Disk, dir: &Path, sha256: &str) -> Option<Vec<u8>> {
    let bytes = disk
        .read_bounded(&object_path(dir, sha256), limits::TARGETS_BYTES)
        .ok()?;
    (hex::encode(&Sha256::digest(&bytes)) == sha256).then_some(bytes)
}

fn is_whole(disk: &Disk, dir: &Path, generation: &Generation) -> bool {
    objects(generation).all(|sha256| read_object(disk, dir, sha256).is_some())
}

fn objects(generation: &Generation) -> impl Iterator<Item = &String> {
    generation.roots.iter().chain(generation.roles.values())
}

/// Removes objects that no generation names. One that stays after a crash goes at the next commit.
fn collect_garbage(disk: &Disk, dir: &Path, kept: &BTreeSet<&String>) -> Result<(), GenerationError> {
    let objects = dir.join("objects");
    for entry in disk.list(&objects).map_err(io_error(&objects))? {
        let name = entry.name.to_string_lossy().into_owned();
        if !name.starts_with('.') && !kept.contains(&name) {
            let path = objects.join(entry.name);
            disk.primitives().unlink(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> GenerationError + use<> {
    let path = path.to_owned();
    move |source| GenerationError::Io { path, source }
}

fn encode(generations: &[&Generation]) -> Vec<u8> {
    let generations = generations.iter().map(|generation| {
        let roots: Vec<Value> = generation.roots.iter().map(Value::from).collect();
        let roles = generation
            .roles
            .iter()
            .map(|(role, sha256)| (role.clone(), sha256.into()));
        object([
            ("roots", roots.into()),
            ("roles", Value::Object(roles.collect())),
            ("etag", generation.etag.clone().into()),
        ])
    });
    object([
        ("schema", 1_u64.into()),
        ("generations", generations.collect::<Vec<_>>().into()),
    ])
    .to_json()
    .into_bytes()
}

/// The generations of a record, the current one first.
fn decode(bytes: &[u8]) -> Option<Vec<Generation>> {
    let value = Doc::parse(bytes).ok()?.root().to_value().ok()?;
    if value.get("schema")?.as_u64()? != 1 {
        return None;
    }
    let digest = |value: &Value| {
        let text = value.as_str()?;
        hex::decode_array::<32>(text)?;
        Some(text.to_owned())
    };
    let generations = value.get("generations")?.as_array()?.iter().map(|generation| {
        let roots = generation.get("roots")?.as_array()?;
        if roots.len() > ROOTS {
            return None;
        }
        let roles = generation.get("roles")?.as_object()?.iter();
        Some(Generation {
            roots: roots.iter().map(digest).collect::<Option<_>>()?,
            roles: roles
                .map(|(role, sha256)| Some((role.clone(), digest(sha256)?)))
                .collect::<Option<_>>()?,
            etag: generation.get("etag")?.as_str().map(str::to_owned),
        })
    });
    generations.collect()
}

#[cfg(test)]
mod tests;
