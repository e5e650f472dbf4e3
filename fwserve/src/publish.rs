//! Switches from the published version to a candidate: judged first, then all or nothing.
//!
//! ```text
//! lock  base is current?  judge  | journal  targets  metadata  [ roots  timestamp ]  remove journal
//!                                |  ^ from here on a crash is completed at the next start; before, nothing has changed
//! ```
//!
//! Files are hard links of verified uploads and are never replaced. Between the brackets no reader of this server sees
//! metadata: a new root may end the keys of the old timestamp.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fwdurable::Lock;
use fwmeta::hex;
use fwmeta::json::{Doc, Node, Value, object};
use fwmeta::role::Timestamp;
use fwmeta::time::UtcSeconds;
use sha2::{Digest, Sha256};

use crate::candidate::{Candidate, CandidateError, root_versions};
use crate::config::PublishConfig;
use crate::repository::Repository;
use crate::routes;
use crate::uploads::{Status, Uploads};

const TIMESTAMP: &str = "metadata/timestamp.json";
const JOURNAL: &str = "journal.json";
/// Time to wait for another program that writes the repository.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a publication did not happen. The repository is unchanged, except after an interrupted switch, which is completed
/// at the next start or publication.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The request makes no sense.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// Somebody else published since the publisher looked.
    #[error("published timestamp is {current}, publication is based on {base}")]
    Stale {
        /// SHA-256 of the published timestamp, or `none`.
        current: String,
        /// SHA-256 of the publisher's base, or `none`.
        base: String,
    },
    /// A published file would have to change.
    #[error("{name} is published with sha256 {published}, not {offered}")]
    Taken {
        /// The file.
        name: String,
        /// Its digest.
        published: String,
        /// The digest that was offered.
        offered: String,
    },
    /// Another program has been writing the repository for too long.
    #[error("another program is writing the repository")]
    Busy,
    /// The candidate was judged and refused, or could not be judged.
    #[error(transparent)]
    Candidate(#[from] Box<CandidateError>),
    /// The file system failed.
    #[error("{attempt}")]
    Io {
        /// What was attempted.
        attempt: String,
        /// Why.
        source: io::Error,
    },
}

/// The published timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its version.
    pub version: u64,
    /// SHA-256 of its bytes in hexadecimal.
    pub sha256: String,
    /// Files that were offered and do not belong to what it describes.
    pub ignored: Vec<String>,
}

/// A request to publish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishRequest {
    /// SHA-256 of the timestamp from which the publisher started.
    pub base: Option<String>,
    /// Names and SHA-256 of files.
    pub files: BTreeMap<String, String>,
}

impl PublishRequest {
    /// Reads `{"base": …, "files": {…}}`.
    ///
    /// # Errors
    /// [`PublishError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PublishError> {
        let malformed = |what: String| PublishError::Malformed(what);
        let doc = Doc::parse(bytes).map_err(|error| malformed(error.to_string()))?;
        let digest = |node: Node<'_>| {
            node.as_str()
                .filter(|text| routes::is_sha256(text))
                .map(|text| text.into_owned())
        };
        let base = match doc.root().get("base") {
            Some(base) if base.is_null() => None,
            Some(base) => Some(digest(base).ok_or_else(|| malformed("base is no sha256".to_owned()))?),
            None => return Err(malformed("base is missing".to_owned())),
        };
        let listed = doc.root().get("files").filter(|files| files.is_object());
        let listed = listed.ok_or_else(|| malformed("files is no object".to_owned()))?;
        let mut files = BTreeMap::new();
        for (name, node) in listed.entries() {
            if !is_publishable(&name) {
                return Err(malformed(format!("{name:?} is no name of a versioned file")));
            }
            let sha256 = digest(node).ok_or_else(|| malformed(format!("{name:?} has no sha256")))?;
            files.insert(name.into_owned(), sha256);
        }
        Ok(Self { base, files })
    }
}

fn is_publishable(name: &str) -> bool {
    if let Some(part) = name.strip_prefix("metadata/") {
        return name == TIMESTAMP || (routes::is_safe_part(part) && routes::is_versioned(part));
    }
    let target = name.strip_prefix("targets/");
    target.is_some_and(|target| target.split('/').all(routes::is_safe_part) && routes::claimed_digest(name).is_some())
}

/// The one that switches.
#[derive(Debug)]
pub struct Publisher {
    repository: Arc<Repository>,
    uploads: Uploads,
    trusted_root: Option<Vec<u8>>,
    turn: Mutex<()>,
    /// A published file for each SHA-256: what need not be uploaded again. Only a hint; a name may claim anything.
    published: Mutex<HashMap<String, String>>,
}

impl Publisher {
    /// Prepares publication, and completes a switch that a crash interrupted.
    ///
    /// # Errors
    /// [`PublishError::Io`], [`PublishError::Busy`].
    pub fn open(repository: Arc<Repository>, config: &PublishConfig) -> Result<Self, PublishError> {
        let trusted_root = match &config.trusted_root {
            None => None,
            Some(path) => Some(fs::read(path).map_err(failed(|| format!("reading trusted root {}", path.display())))?),
        };
        let uploads = Uploads::open(repository.dir(), config.max_object).map_err(failed(|| {
            format!("preparing uploads in {}", repository.dir().display())
        }))?;
        let publisher = Self {
            repository,
            uploads,
            trusted_root,
            turn: Mutex::new(()),
            published: Mutex::default(),
        };
        let _lock = publisher.lock()?;
        publisher.recover()?;
        publisher
            .index()
            .map_err(failed(|| "listing the published files".to_owned()))?;
        Ok(publisher)
    }

    /// The uploads.
    pub fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// How much of an object is here, among the uploads or published.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn status(&self, sha256: &str) -> io::Result<Status> {
        let status = self.uploads.status(sha256)?;
        if status == Status::Partial(0)
            && let Some(path) = self.published_object(sha256)?
        {
            return Ok(Status::Complete(fs::metadata(path)?.len()));
        }
        Ok(status)
    }

    /// A published file that really has this digest.
    fn published_object(&self, sha256: &str) -> io::Result<Option<PathBuf>> {
        let name = {
            let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            published.get(sha256).cloned()
        };
        let Some(name) = name else { return Ok(None) };
        let holds = self.repository.sha256(&name)?.as_deref() == Some(sha256);
        Ok(holds.then(|| self.repository.dir().join(name)))
    }

    /// Lists what is published: targets by the digests that they claim, metadata by their own.
    fn index(&self) -> io::Result<()> {
        let mut published = HashMap::new();
        let dir = self.repository.dir();
        let mut stack = vec![dir.join("metadata"), dir.join("targets")];
        while let Some(path) = stack.pop() {
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    stack.push(entry.path());
                    continue;
                }
                let path = entry.path();
                let Some(name) = path.strip_prefix(dir).ok().and_then(Path::to_str) else {
                    continue;
                };
                let digest = match routes::claimed_digest(name) {
                    Some(digest) => Some(digest.to_owned()),
                    None if name.starts_with("metadata/") => self.repository.sha256(name)?,
                    None => None,
                };
                published.extend(digest.map(|digest| (digest, name.to_owned())));
            }
        }
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = published;
        Ok(())
    }

    /// What is published: `{"timestamp": {"version", "sha256"} | null, "root_version", "snapshot_version"}`.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn state(&self) -> Result<Value, PublishError> {
        let bytes = self.timestamp()?;
        let timestamp = bytes
            .as_ref()
            .and_then(|bytes| Some((Timestamp::parse(bytes).ok()?, sha256(bytes))));
        let root = root_versions(&self.repository.dir().join("metadata")).into_iter().max();
        let number = |number: Option<u64>| number.map_or(Value::Null, Value::from);
        let snapshot = number(timestamp.as_ref().map(|(timestamp, _)| timestamp.snapshot.version));
        let timestamp = timestamp.map_or(Value::Null, |(timestamp, sha256)| {
            object([("version", timestamp.version.into()), ("sha256", sha256.into())])
        });
        Ok(object([
            ("timestamp", timestamp),
            ("root_version", number(root)),
            ("snapshot_version", snapshot),
        ]))
    }

    /// Judges a candidate at the time `now` and switches to it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(&self, request: &PublishRequest, now: UtcSeconds) -> Result<Published, PublishError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        self.recover()?;
        let published = self.timestamp()?.map(|bytes| sha256(&bytes));
        if published != request.base {
            let word = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "none".to_owned());
            return Err(PublishError::Stale {
                current: word(&published),
                base: word(&request.base),
            });
        }
        let files = self.unpublished(&request.files)?;
        for sha256 in files.values() {
            let object = self.uploads.object(sha256);
            let reused = || match self.published_object(sha256)? {
                Some(path) if !object.exists() => fs::hard_link(path, &object),
                _ => Ok(()),
            };
            reused().map_err(failed(|| format!("reusing {sha256}")))?;
        }
        let candidate = Candidate {
            dir: self.repository.dir(),
            uploads: &self.uploads,
            files: &files,
            trusted_root: self.trusted_root.as_deref(),
        };
        let verified = candidate.verify(now).map_err(Box::new)?;
        let (reached, ignored): (BTreeMap<_, _>, BTreeMap<_, _>) =
            files.into_iter().partition(|(name, _)| verified.reached.contains(name));
        if !reached.is_empty() {
            let journal = Journal {
                base: published,
                files: reached,
            };
            self.switch(&journal, &mut |_| Ok(()))?;
            let mut known = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            known.extend(journal.files.into_iter().map(|(name, sha256)| (sha256, name)));
        }
        for (name, sha256) in &request.files {
            if !ignored.contains_key(name) {
                // What stays is swept later.
                let _ = fs::remove_file(self.uploads.object(sha256));
            }
        }
        let current = self.timestamp()?.unwrap_or_default();
        Ok(Published {
            version: verified.version,
            sha256: sha256(&current),
            ignored: ignored.into_keys().collect(),
        })
    }

    /// The offered files that are not published yet.
    fn unpublished(&self, files: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, PublishError> {
        let mut unpublished = BTreeMap::new();
        for (name, offered) in files {
            let published = self
                .repository
                .sha256(name)
                .map_err(failed(|| format!("reading {name}")))?;
            match published {
                Some(published) if published == *offered => continue,
                Some(published) if name != TIMESTAMP => {
                    return Err(PublishError::Taken {
                        name: name.clone(),
                        published,
                        offered: offered.clone(),
                    });
                }
                _ => unpublished.insert(name.clone(), offered.clone()),
            };
        }
        Ok(unpublished)
    }

    /// Makes the files of a judged candidate visible. `step` is told the name of each step before it is taken.
    fn switch(
        &self,
        journal: &Journal,
        step: &mut dyn FnMut(&str) -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        step("journal")?;
        fwdurable::write_file_mode(&self.journal(), journal.to_value().to_json().as_bytes(), 0o600)
            .map_err(failed(|| "writing the journal".to_owned()))?;
        self.complete(journal, step)
    }

    /// The part of a switch that may be taken again.
    fn complete(
        &self,
        journal: &Journal,
        step: &mut dyn FnMut(&str) -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        let root = |name: &str| {
            name.strip_prefix("metadata/")?
                .strip_suffix(".root.json")?
                .parse::<u64>()
                .ok()
        };
        let (mut roots, mut others) = (BTreeMap::new(), Vec::new());
        for (name, sha256) in &journal.files {
            match root(name) {
                Some(version) => {
                    roots.insert(version, (name, sha256));
                }
                None if name == TIMESTAMP => {}
                None => others.push((name, sha256)),
            }
        }
        // Targets before the metadata that announce them.
        others.sort_by_key(|(name, _)| name.starts_with("metadata/"));
        self.link_all(&others, step)?;
        {
            let _switching = self.repository.begin_switch();
            let roots: Vec<_> = roots.into_values().collect();
            self.link_all(&roots, step)?;
            if let Some(sha256) = journal.files.get(TIMESTAMP) {
                step(TIMESTAMP)?;
                self.replace_timestamp(sha256)?;
            }
        }
        step("remove journal")?;
        fwdurable::remove_file(&self.journal()).map_err(failed(|| "removing the journal".to_owned()))?;
        for sha256 in journal.files.values() {
            // What stays is swept later.
            let _ = fs::remove_file(self.uploads.object(sha256));
        }
        Ok(())
    }

    fn link_all(
        &self,
        files: &[(&String, &String)],
        step: &mut dyn FnMut(&str) -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        for (name, sha256) in files {
            step(name)?;
            let visible = self.repository.dir().join(name);
            let dir = visible.parent().unwrap_or(self.repository.dir()).to_owned();
            let linked = fwdurable::create_dir_all(&dir).and_then(|()| self.link(name, sha256, &visible));
            linked.map_err(failed(|| format!("publishing {name}")))?;
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        for dir in dirs {
            fwdurable::sync_dir(&dir).map_err(failed(|| format!("syncing {}", dir.display())))?;
        }
        Ok(())
    }

    fn link(&self, name: &str, sha256: &str, visible: &Path) -> io::Result<()> {
        match fs::hard_link(self.uploads.object(sha256), visible) {
            // After a crash: linked by the first attempt, whose upload may be removed already.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                if self.repository.sha256(name)?.as_deref() == Some(sha256) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            other => other,
        }
    }

    fn replace_timestamp(&self, expected: &str) -> Result<(), PublishError> {
        let attempt = || failed(|| format!("publishing {TIMESTAMP}"));
        let bytes = match fs::read(self.uploads.object(expected)) {
            Ok(bytes) => bytes,
            Err(_) if self.timestamp()?.is_some_and(|bytes| sha256(&bytes) == expected) => return Ok(()),
            Err(error) => return Err(attempt()(error)),
        };
        fwdurable::write_file(&self.repository.dir().join(TIMESTAMP), &bytes).map_err(attempt())
    }

    /// Completes a switch that was interrupted after its journal was durable. Another program may have written the
    /// repository since: then what the journal says no longer holds, and it is dropped.
    fn recover(&self) -> Result<(), PublishError> {
        let bytes = match fs::read(self.journal()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed(|| "reading the journal".to_owned()))?,
        };
        let journal = Journal::parse(&bytes)?;
        let published = self.timestamp()?.map(|bytes| sha256(&bytes));
        if published == journal.base || published.as_ref() == journal.files.get(TIMESTAMP) {
            return self.complete(&journal, &mut |_| Ok(()));
        }
        fwdurable::remove_file(&self.journal()).map_err(failed(|| "removing the journal".to_owned()))
    }

    fn journal(&self) -> PathBuf {
        self.uploads.dir().join(JOURNAL)
    }

    fn timestamp(&self) -> Result<Option<Vec<u8>>, PublishError> {
        match fs::read(self.repository.dir().join(TIMESTAMP)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(failed(|| format!("reading {TIMESTAMP}"))),
        }
    }

    fn lock(&self) -> Result<Lock, PublishError> {
        let path = self.repository.dir().join(".lock");
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let lock = Lock::try_exclusive(&path).map_err(failed(|| format!("locking {}", path.display())))?;
            match lock {
                Some(lock) => return Ok(lock),
                None if Instant::now() >= deadline => return Err(PublishError::Busy),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// A switch that has begun.
#[derive(Debug, PartialEq, Eq)]
struct Journal {
    /// The timestamp from which it started.
    base: Option<String>,
    files: BTreeMap<String, String>,
}

impl Journal {
    fn to_value(&self) -> Value {
        let files = self
            .files
            .iter()
            .map(|(name, sha256)| (name.clone(), sha256.as_str().into()));
        object([
            ("base", self.base.as_deref().map_or(Value::Null, Value::from)),
            ("files", Value::Object(files.collect())),
        ])
    }

    /// It has the form of a request.
    fn parse(bytes: &[u8]) -> Result<Self, PublishError> {
        let PublishRequest { base, files } = PublishRequest::parse(bytes)?;
        Ok(Self { base, files })
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}

fn failed(attempt: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> PublishError {
    move |source| PublishError::Io {
        attempt: attempt(),
        source,
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
