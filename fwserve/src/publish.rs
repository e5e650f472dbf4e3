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
use fwmeta::json::{Value, object};
use fwmeta::role::Timestamp;
use fwmeta::time::UtcSeconds;

use crate::candidate::{Candidate, root_versions};
use crate::config::PublishConfig;
pub use crate::publication::{PublishError, PublishRequest};
use crate::publication::{failed, sha256};
use crate::repository::Repository;
use crate::routes::{self, TIMESTAMP};
use crate::switch::{Journal, Switch};
use crate::uploads::{Status, Uploads};

/// Time to wait for another program that writes the repository.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

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

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
