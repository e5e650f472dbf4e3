//! The switch from the published version to a judged candidate: all or nothing, whenever the power goes.
//!
//! ```text
//! journal  targets  metadata  [ roots  timestamp ]  remove journal
//!        ^ from here on a crash is completed at the next start; before, nothing has changed
//! ```
//!
//! Files are hard links of verified uploads and are never replaced, other than the timestamp. Between the brackets no
//! reader of this server sees metadata: a new root may end the keys of the old timestamp.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fwmeta::json::{Value, object};

use crate::publication::{PublishError, PublishRequest, failed, sha256};
use crate::repository::Repository;
use crate::routes::TIMESTAMP;
use crate::uploads::Uploads;

const JOURNAL: &str = "journal.json";

/// A switch that has begun.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    /// SHA-256 of the timestamp from which it started.
    pub(crate) base: Option<String>,
    /// Names and SHA-256 of the files that become visible.
    pub(crate) files: BTreeMap<String, String>,
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

/// What a switch works on. The caller holds the lock of the repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Switch<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) uploads: &'a Uploads,
}

/// Is told the name of each step before it is taken; an error stops there, as a crash would.
pub(crate) type Step<'a> = &'a mut dyn FnMut(&str) -> Result<(), PublishError>;

impl Switch<'_> {
    /// Makes the files of a judged candidate visible.
    ///
    /// # Errors
    /// [`PublishError::Io`]; the journal then remains for [`recover`](Self::recover).
    pub(crate) fn to(&self, journal: &Journal, step: Step<'_>) -> Result<(), PublishError> {
        step("journal")?;
        fwdurable::write_file_mode(&self.journal(), journal.to_value().to_json().as_bytes(), 0o600)
            .map_err(failed(|| "writing the journal".to_owned()))?;
        self.complete(journal, step)
    }

    /// Completes a switch that was interrupted after its journal was durable. Another program may have published since:
    /// then what the journal says no longer holds, and it is dropped.
    ///
    /// # Errors
    /// [`PublishError::Interrupted`], [`PublishError::Io`].
    pub(crate) fn recover(&self) -> Result<(), PublishError> {
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

    /// The part that may be taken again.
    fn complete(&self, journal: &Journal, step: Step<'_>) -> Result<(), PublishError> {
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
            // Without a new root, the timestamp is the only change that a reader notices, and that one is atomic.
            let _switching = (!roots.is_empty()).then(|| self.repository.begin_switch());
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

    fn link_all(&self, files: &[(&String, &String)], step: Step<'_>) -> Result<(), PublishError> {
        let mut dirs = BTreeSet::new();
        for (name, sha256) in files {
            step(name)?;
            let visible = self.repository.dir().join(name);
            let dir = visible.parent().unwrap_or(self.repository.dir()).to_owned();
            if !dirs.contains(&dir) {
                fwdurable::create_dir_all(&dir).map_err(failed(|| format!("publishing {name}")))?;
                dirs.insert(dir);
            }
            self.link(name, sha256, &visible)?;
        }
        for dir in dirs {
            fwdurable::sync_dir(&dir).map_err(failed(|| format!("syncing {}", dir.display())))?;
        }
        Ok(())
    }

    fn link(&self, name: &str, offered: &str, visible: &Path) -> Result<(), PublishError> {
        let attempt = || failed(|| format!("publishing {name}"));
        match fs::hard_link(self.uploads.object(offered), visible) {
            // After a crash: linked by the first attempt, whose upload may be removed already.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                match self.repository.sha256(name).map_err(attempt())? {
                    Some(published) if published == offered => Ok(()),
                    Some(published) => Err(PublishError::Interrupted {
                        name: name.to_owned(),
                        published,
                        offered: offered.to_owned(),
                    }),
                    None => Err(attempt()(error)),
                }
            }
            linked => linked
                .and_then(|()| self.repository.learn(name, offered))
                .map_err(attempt()),
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

    /// The published timestamp.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub(crate) fn timestamp(&self) -> Result<Option<Vec<u8>>, PublishError> {
        match fs::read(self.repository.dir().join(TIMESTAMP)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(failed(|| format!("reading {TIMESTAMP}"))),
        }
    }

    /// Where the journal lies while a switch is in progress.
    pub(crate) fn journal(&self) -> PathBuf {
        self.uploads.dir().join(JOURNAL)
    }
}
