//! Publishing: what a repository consists of, and how it gets elsewhere.
//!
//! ```text
//! Publication::read (everything that the timestamp leads to)  ->  judge  ->  to_dir:    copy, switch
//!                                                                       ->  to_server: upload what is missing, switch
//! ```
//!
//! Metadata are read once, into memory: the bytes that are judged are the bytes that are published, whatever else happens
//! to the directory meanwhile. Targets are checked while they are copied. Files that nothing leads to, such as those of a
//! crashed writer, stay behind.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::Context;
use fwmeta::client::{Client, Fetch, MemoryCache};
use fwmeta::key::KeyId;
use fwmeta::role::{RoleName, Root, Snapshot, Targets, Timestamp};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::{layout, limits};
use tempfile::TempDir;

use crate::bounded;
use crate::clock;
use crate::example_keys;
use crate::failure::{Outcome, judged, refused};
use crate::judge::{self, Case};
use crate::repo_dir::{BEFORE_EVERYTHING, DirSource, METADATA, RepoDir, TARGETS, root_name};
use crate::second_opinion::Expiry;
use crate::writer::target_names;

mod api;
mod destination;
mod tls;
mod to_dir;
mod to_server;

pub use crate::api_error::ApiError;
pub use api::{Api, ApiOptions};
pub use to_dir::to_dir;
pub use to_server::to_server;

/// Everything that a repository's timestamp leads to, and the roots that lead to it.
#[derive(Debug)]
pub struct Publication {
    source: RepoDir,
    /// Metadata by name.
    metadata: BTreeMap<String, Vec<u8>>,
    targets: Vec<Target>,
    /// The oldest root.
    anchor: Vec<u8>,
    timestamp: Timestamp,
    root_version: u64,
    example_key: Option<KeyId>,
}

/// A target of a publication.
#[derive(Debug, Clone)]
struct Target {
    path: TargetPath,
    file: TargetFile,
    sha256: [u8; 32],
    /// Names below the targets directory that are to be there.
    names: Vec<String>,
}

impl Target {
    fn new(path: TargetPath, file: TargetFile) -> anyhow::Result<Self> {
        let sha256 = file
            .hashes
            .sha256
            .with_context(|| format!("target {path} has no SHA-256"))?;
        let names = target_names(&path, &sha256);
        Ok(Self {
            path,
            file,
            sha256,
            names,
        })
    }
}

/// How to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether the repository must be a continuation of what is published.
    pub history: History,
    /// Do everything but change the destination.
    pub dry_run: bool,
}

/// Whether a repository must be a continuation of what is published. Devices cannot tell: they accept any newer version
/// by the right keys, and releases of a colleague would silently be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// It must have the published snapshot among its own earlier ones.
    Continued,
    /// For recovery, from a thief's metadata or a lost directory.
    ForkAllowed,
}

/// What was done, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Files that the destination did not have.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Version of the timestamp.
    pub version: u64,
}

/// Remembers what was fetched.
#[derive(Debug)]
struct Recorder {
    source: DirSource,
    seen: BTreeMap<String, Vec<u8>>,
}

impl Fetch for Recorder {
    type Error = io::Error;

    fn fetch(&mut self, name: &str, max_length: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.source.fetch(name, max_length)?;
        if let Some(bytes) = &bytes {
            self.seen.insert(name.to_owned(), bytes.clone());
        }
        Ok(bytes)
    }
}

impl Publication {
    /// Reads a repository, which must verify but for expiry: [`Case`] judges that.
    ///
    /// # Errors
    /// When it does not verify or cannot be read.
    pub fn read(source: &RepoDir) -> Outcome<Self> {
        let anchor = source.oldest_root()?;
        Self::follow(source, anchor)
            .with_context(|| format!("repository {} does not verify", source.path().display()))
            .map_err(judged)
    }

    fn follow(source: &RepoDir, anchor: Vec<u8>) -> anyhow::Result<Self> {
        let recorder = Recorder {
            source: source.source(),
            seen: BTreeMap::new(),
        };
        let mut client = Client::new(recorder, MemoryCache::default(), &anchor, BEFORE_EVERYTHING)?;
        client.refresh()?;
        let mut targets = BTreeMap::new();
        let roles: Vec<Targets> = client.load_all()?.into_values().cloned().collect();
        for role in &roles {
            for (path, file) in &role.targets {
                let target = Target::new(TargetPath::parse(path)?, file.clone())?;
                targets.insert((target.path.clone(), target.sha256), target);
            }
        }
        let example_key = example_keys::trusted_by(client.trusted().root(), &roles);
        let root_version = client.trusted().root().version;
        let timestamp = client.trusted().timestamp().cloned().context("there is no timestamp")?;
        let mut metadata = client.into_parts().0.seen;
        metadata.insert(root_name(Root::parse(&anchor)?.version), anchor.clone());
        Ok(Self {
            source: source.clone(),
            metadata,
            targets: targets.into_values().collect(),
            anchor,
            timestamp,
            root_version,
            example_key,
        })
    }

    /// Refuses a repository that trusts a key of `keys-example/`.
    ///
    /// # Errors
    /// A refusal.
    pub fn refuse_example_keys(&self) -> Outcome<()> {
        match &self.example_key {
            None => Ok(()),
            Some(keyid) => Err(example_keys::refusal(keyid, self.source.path())),
        }
    }

    fn timestamp_bytes(&self) -> &[u8] {
        self.metadata
            .get(&timestamp_name())
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// Checks that this repository continues one whose snapshot of this version is `published`. A snapshot has the digests
    /// of all that it leads to, so that one comparison is enough.
    fn check_continues(&self, history: History, version: u64, published: &[u8], place: &str) -> Outcome<()> {
        if history == History::ForkAllowed {
            return Ok(());
        }
        let name = layout::metadata_name(&RoleName::snapshot(), Some(version));
        let path = self.source.metadata().join(&name);
        let problem = match bounded::read(&path, limits::SNAPSHOT_BYTES) {
            Ok(own) if own == published => return Ok(()),
            Ok(_) => "differs from",
            Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing from",
            Err(error) => return Err(anyhow::Error::new(error).context(path.display().to_string()).into()),
        };
        Err(refused(anyhow::anyhow!(
            "repository {} does not continue what {place} has published: its {name} {problem} this repository, so somebody \
             else published; add your releases to a copy of what is published, or pass --allow-fork to drop it",
            self.source.path().display()
        )))
    }

    /// Judges what readers of the destination would get, who know `published` of it already.
    fn judge(&self, published: Option<&Published>, targets: &[Target]) -> Outcome<()> {
        let dir = self.candidate(published.map(|published| &published.repo))?;
        let targets: Vec<_> = targets
            .iter()
            .map(|target| (target.path.clone(), target.file.clone()))
            .collect();
        let case = Case {
            candidate: &RepoDir::new(dir.path()),
            anchor: published.map_or(&self.anchor, |published| &published.root),
            known: published.map(|published| published.known.clone()).unwrap_or_default(),
            now: clock::now()?,
            expiry: Expiry::Enforced,
            targets: &targets,
        };
        let expired = case.judge()?;
        judge::warn_expired(&expired);
        Ok(())
    }

    /// The candidate as a directory: this publication's metadata, the roots of the destination, the targets of the source.
    fn candidate(&self, published: Option<&RepoDir>) -> anyhow::Result<TempDir> {
        let dir = tempfile::tempdir().context("making a temporary directory")?;
        let metadata = dir.path().join(METADATA);
        let fill = || -> anyhow::Result<()> {
            fs::create_dir(&metadata)?;
            for (name, bytes) in &self.metadata {
                fs::write(metadata.join(name), bytes)?;
            }
            if let Some(published) = published {
                for name in published.root_versions()?.into_iter().map(root_name) {
                    if !self.metadata.contains_key(&name) {
                        let bytes = bounded::read(&published.metadata().join(&name), limits::ROOT_BYTES)?;
                        fs::write(metadata.join(name), bytes)?;
                    }
                }
            }
            let targets = std::path::absolute(self.source.targets())?;
            Ok(std::os::unix::fs::symlink(targets, dir.path().join(TARGETS))?)
        };
        fill().with_context(|| format!("laying the candidate out in {}", dir.path().display()))?;
        Ok(dir)
    }

    fn target_source(&self, target: &Target) -> PathBuf {
        self.source.target_path(&target.path, &target.file)
    }
}

fn timestamp_name() -> String {
    layout::metadata_name(&RoleName::timestamp(), None)
}

/// What a destination directory says at present.
#[derive(Debug)]
struct Published {
    repo: RepoDir,
    /// Its newest root.
    root: Vec<u8>,
    /// What a device knows that has followed it, whenever that was.
    known: MemoryCache,
}

impl Published {
    /// `None` when nothing is published yet.
    fn read(repo: &RepoDir) -> Outcome<Option<Self>> {
        if !repo.metadata().join(timestamp_name()).exists() {
            return Ok(None);
        }
        let anchor = repo.oldest_root()?;
        let follow = || -> anyhow::Result<Self> {
            let mut client = Client::new(repo.source(), MemoryCache::default(), &anchor, BEFORE_EVERYTHING)?;
            client.refresh()?;
            client.load_all()?;
            let known = client.into_parts().1;
            Ok(Self {
                repo: repo.clone(),
                root: known.0.get(&RoleName::root()).unwrap_or(&anchor).clone(),
                known,
            })
        };
        let published = follow().with_context(|| {
            format!(
                "what is published in {} does not verify, so that nobody can say what devices trust",
                repo.path().display()
            )
        });
        Ok(Some(published?))
    }

    /// Its snapshot, with the version.
    fn snapshot(&self) -> anyhow::Result<(u64, &[u8])> {
        let bytes = self
            .known
            .0
            .get(&RoleName::snapshot())
            .context("nothing is known of a snapshot")?;
        Ok((Snapshot::parse(bytes)?.version, bytes))
    }
}

/// A published file would have to change.
#[derive(Debug, thiserror::Error)]
#[error("{name} is published with {published}, not {offered}: published files never change")]
struct Conflict {
    name: String,
    published: String,
    offered: String,
}

fn conflict(name: String, published: String, offered: String) -> crate::failure::Failure {
    refused(Conflict {
        name,
        published,
        offered,
    })
}

fn sha256(bytes: &[u8]) -> String {
    TargetFile::of_bytes(bytes)
        .hashes
        .sha256
        .map(|digest| fwmeta::hex::encode(&digest))
        .unwrap_or_default()
}
