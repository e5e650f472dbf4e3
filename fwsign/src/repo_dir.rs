//! A repository directory, read. [`crate::writer`] writes it.
//!
//! ```text
//! DIR/metadata/<N>.root.json  <N>.snapshot.json  <N>.targets.json  <N>.<role>.json  timestamp.json
//! DIR/targets/<dir>/<SHA-256>.<file>      and, for `tough`, DIR/targets/<SHA-256>.<dir>/<file>
//! DIR/.lock        one writer at a time          DIR/.staging/   a candidate, before it is moved into place
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fwmeta::client::{Client, ClientError, Fetch, MemoryCache};
use fwmeta::key::{KeyId, PublicKey};
use fwmeta::role::{RoleKeys, RoleName, Root, Snapshot, Targets, Timestamp};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use fwmeta::{layout, limits};

use crate::bounded;
use crate::failure::{Outcome, judged};

/// Directory of metadata in a repository.
pub const METADATA: &str = "metadata";
/// Directory of targets in a repository.
pub const TARGETS: &str = "targets";
/// The earliest time there is: nothing has expired yet.
pub const BEFORE_EVERYTHING: UtcSeconds = UtcSeconds(i64::MIN);

/// A repository directory.
#[derive(Debug, Clone)]
pub struct RepoDir {
    dir: PathBuf,
}

/// What a repository says at present, all of it verified.
#[derive(Debug)]
pub struct Current {
    /// The newest root.
    pub root: Root,
    /// The timestamp.
    pub timestamp: Timestamp,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// All targets roles that delegations reach.
    pub targets: BTreeMap<RoleName, Targets>,
}

impl Current {
    /// Who may sign a targets role, and the public keys: for the top-level role by root, for others by the first role that
    /// delegates to them.
    pub fn delegation(&self, role: &RoleName) -> Option<(&RoleKeys, &BTreeMap<KeyId, PublicKey>)> {
        if *role == RoleName::targets() {
            return Some((&self.root.roles.targets, &self.root.keys));
        }
        let delegations = self.targets.values().filter_map(|targets| targets.delegations.as_ref());
        delegations
            .filter_map(|delegations| {
                let delegated = delegations.roles.iter().find(|delegated| delegated.name == *role)?;
                Some((&delegated.keys, &delegations.keys))
            })
            .next()
    }
}

/// Metadata of a directory for [`Client`].
#[derive(Debug, Clone)]
pub struct DirSource {
    metadata: PathBuf,
}

impl Fetch for DirSource {
    type Error = io::Error;

    fn fetch(&mut self, name: &str, max_length: u64) -> io::Result<Option<Vec<u8>>> {
        match bounded::read(&self.metadata.join(name), max_length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }
}

impl RepoDir {
    /// The repository at `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Its metadata directory.
    pub fn metadata(&self) -> PathBuf {
        self.dir.join(METADATA)
    }

    /// Its targets directory.
    pub fn targets(&self) -> PathBuf {
        self.dir.join(TARGETS)
    }

    /// Where its metadata can be fetched by a client.
    pub fn source(&self) -> DirSource {
        DirSource {
            metadata: self.metadata(),
        }
    }

    /// Where a target lies.
    pub fn target_path(&self, path: &TargetPath, file: &TargetFile) -> PathBuf {
        self.targets().join(layout::target_file(path, digest(file)))
    }

    /// The versions of root metadata in the directory, ascending.
    ///
    /// # Errors
    /// When the metadata directory cannot be read.
    pub fn root_versions(&self) -> io::Result<Vec<u64>> {
        let mut versions = Vec::new();
        for entry in fs::read_dir(self.metadata())? {
            let name = entry?.file_name();
            let version = name
                .to_str()
                .and_then(|name| name.strip_suffix(".root.json")?.parse().ok());
            // Not `01.root.json` and `+1.root.json`, which nobody asks for.
            versions.extend(version.filter(|version| *root_name(*version) == *name));
        }
        versions.sort_unstable();
        Ok(versions)
    }

    /// The oldest root version in the directory.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn oldest_root(&self) -> anyhow::Result<Vec<u8>> {
        let versions = self.root_versions();
        let versions = versions.with_context(|| format!("repository {}", self.dir.display()))?;
        let Some(oldest) = versions.first() else {
            bail!(
                "repository {} has no root metadata: make one with `fwsign init`",
                self.dir.display()
            );
        };
        let path = self.metadata().join(root_name(*oldest));
        bounded::read(&path, limits::ROOT_BYTES).with_context(|| path.display().to_string())
    }

    /// The next version number of a role whose current one is `current`. Numbers that a crashed writer used are passed
    /// over, because published names never get other contents.
    pub fn next_version(&self, role: &RoleName, current: u64) -> u64 {
        let taken = |version: &u64| {
            self.metadata()
                .join(layout::metadata_name(role, Some(*version)))
                .exists()
        };
        let mut version = current.saturating_add(1);
        while taken(&version) {
            version = version.saturating_add(1);
        }
        version
    }

    /// Loads everything from the root `anchor` on, as devices would at the time `now`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn load(&self, anchor: &[u8], now: UtcSeconds) -> Result<Current, ClientError> {
        let mut client = Client::new(self.source(), MemoryCache::default(), anchor, now)?;
        client.refresh()?;
        let targets = client
            .load_all()?
            .into_iter()
            .map(|(role, targets)| (role, targets.clone()))
            .collect();
        let trusted = client.trusted();
        match (trusted.timestamp(), trusted.snapshot()) {
            (Some(timestamp), Some(snapshot)) => Ok(Current {
                root: trusted.root().clone(),
                timestamp: timestamp.clone(),
                snapshot: snapshot.clone(),
                targets,
            }),
            // `refresh` has made both.
            _ => Err(ClientError::Missing {
                name: "timestamp.json".to_owned(),
            }),
        }
    }

    /// Loads what is to be signed anew. Expiry does not matter here: renewing what has expired is what signers do.
    ///
    /// # Errors
    /// When the repository does not verify otherwise.
    pub fn load_for_signing(&self) -> Outcome<Current> {
        let current = self.load(&self.oldest_root()?, BEFORE_EVERYTHING);
        current
            .with_context(|| format!("repository {} does not verify", self.dir.display()))
            .map_err(judged)
    }
}

/// Name of a root version.
pub fn root_name(version: u64) -> String {
    layout::metadata_name(&RoleName::root(), Some(version))
}

/// Digest by which a target is stored: SHA-256, which we always write.
pub fn digest(file: &TargetFile) -> Option<&[u8]> {
    file.hashes.sha256.as_ref().map(<[u8; 32]>::as_slice)
}
