//! Publications: one at a time, from the version that the publisher saw, judged by [`crate::candidate`], then switched to
//! by `switch`, all or nothing.
//!
//! ```text
//! lock  complete what was interrupted  base is current?  judge  switch
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

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
use crate::switch::{Journal, Switch, TIMESTAMP};
use crate::uploads::{Status, Uploads};

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
    /// An interrupted switch cannot be completed, because another program has published a file of the same name since.
    #[error(
        "an interrupted publication cannot be completed: {name} has sha256 {published}, not {offered}; publish a newer \
         version into the directory by other means, and it will be dropped"
    )]
    Interrupted {
        /// The file.
        name: String,
        /// Its digest.
        published: String,
        /// The digest that the interrupted publication has for it.
        offered: String,
    },
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
        publisher.switch().recover()?;
        publisher
            .sweep()
            .map_err(failed(|| "removing what crashes left".to_owned()))?;
        publisher
            .index()
            .map_err(failed(|| "listing the published files".to_owned()))?;
        Ok(publisher)
    }

    fn switch(&self) -> Switch<'_> {
        Switch {
            repository: &self.repository,
            uploads: &self.uploads,
        }
    }

    /// Not before an interrupted switch is complete: it needs its uploads, however old they are.
    fn sweep(&self) -> io::Result<()> {
        fwdurable::sweep_temporaries(&self.repository.dir().join("metadata"))?;
        fwdurable::sweep_temporaries(self.uploads.dir())?;
        self.uploads.sweep(SystemTime::now())
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
        self.switch().recover()?;
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
            self.switch().to(&journal, &mut |_| Ok(()))?;
            let mut known = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            known.extend(journal.files.into_iter().map(|(name, sha256)| (sha256, name)));
        }
        for (name, sha256) in &request.files {
            if !ignored.contains_key(name) {
                let _ = fs::remove_file(self.uploads.object(sha256));
            }
        }
        // What could not be removed now is removed later.
        let _ = self.sweep();
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

    fn timestamp(&self) -> Result<Option<Vec<u8>>, PublishError> {
        self.switch().timestamp()
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

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}

pub(crate) fn failed(attempt: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> PublishError {
    move |source| PublishError::Io {
        attempt: attempt(),
        source,
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
