//! Judges a candidate: the published version with uploaded files over it, seen as a device sees it that has trusted the
//! published version.
//!
//! What it decides: whether every device that follows the published version accepts the candidate, whether all targets
//! are there, and which of the offered files the candidate consists of. It changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fwmeta::client::{Client, ClientError, Fetch, MemoryCache, Refreshed};
use fwmeta::layout;
use fwmeta::role::{RoleName, Root};
use fwmeta::target::{Hasher, MismatchError, TargetFile, TargetPath, TargetPathError};
use fwmeta::time::UtcSeconds;
use fwmeta::trusted::{TrustError, TrustedSet};
use fwmeta::{hex, limits};

use crate::routes;
use crate::uploads::Uploads;

/// A time at which nothing has expired.
const BEFORE_EVERYTHING: UtcSeconds = UtcSeconds(i64::MIN);

/// Why a candidate is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CandidateError {
    /// There is no root to start from.
    #[error("the server has no trusted root: configure one for the first publication")]
    NoTrustedRoot,
    /// The published version does not verify, so that nobody can say what devices trust.
    #[error("the published version does not verify")]
    Published(#[source] ClientError),
    /// A device would refuse it.
    #[error("devices would refuse it")]
    Refused(#[source] ClientError),
    /// A root older than the trusted one does not lead to it.
    #[error("{name} does not lead to the trusted root")]
    OldRoot {
        /// The file.
        name: String,
        /// Why.
        source: Box<TrustError>,
    },
    /// A root has the version of the trusted one and other contents.
    #[error("{name} is not the trusted root")]
    OtherRoot {
        /// The file.
        name: String,
    },
    /// The timestamp has the published version and other contents: devices would not take it.
    #[error("timestamp version {version} is published with other contents")]
    SameVersion {
        /// The version.
        version: u64,
    },
    /// Files of one name would have to change.
    #[error("root metadata turn consistent_snapshot off")]
    NotConsistent,
    /// A listed file is neither published nor uploaded.
    #[error("{name} was not uploaded")]
    NotUploaded {
        /// The file.
        name: String,
    },
    /// A target that metadata announce is neither published nor in the candidate.
    #[error("target {path} of {role} is missing: no {name}")]
    MissingTarget {
        /// The target path.
        path: String,
        /// The role that lists it.
        role: RoleName,
        /// The file.
        name: String,
    },
    /// A target path that cannot be stored.
    #[error("target {path:?} of {role}")]
    TargetPath {
        /// The target path.
        path: String,
        /// The role that lists it.
        role: RoleName,
        /// Why.
        source: TargetPathError,
    },
    /// A target path with a part that the server never serves.
    #[error("target {path:?} of {role} has a part that begins with a dot or is too long")]
    Unservable {
        /// The target path.
        path: String,
        /// The role that lists it.
        role: RoleName,
    },
    /// A target is not what metadata announce.
    #[error("target {path} of {role}")]
    Target {
        /// The target path.
        path: String,
        /// The role that lists it.
        role: RoleName,
        /// The difference.
        source: MismatchError,
    },
    /// The file system failed.
    #[error("reading {name}")]
    Io {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl CandidateError {
    /// Whether the candidate was judged, as opposed to the server not being able to judge.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Published(_))
    }
}

/// A repository directory, uploads, and the files that are offered.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// The published version.
    pub dir: &'a Path,
    /// Where the offered files are.
    pub uploads: &'a Uploads,
    /// Names and SHA-256 of the files that are not published yet, and of `metadata/timestamp.json` if it changes.
    pub files: &'a BTreeMap<String, String>,
    /// The root that the operator trusts.
    pub trusted_root: Option<&'a [u8]>,
}

/// What the candidate is.
#[derive(Debug)]
pub struct Verified {
    /// Version of its timestamp.
    pub version: u64,
    /// The offered files that belong to it.
    pub reached: BTreeSet<String>,
}

impl Candidate<'_> {
    /// Judges the candidate at the time `now`.
    ///
    /// # Errors
    /// [`CandidateError`].
    pub fn verify(&self, now: UtcSeconds) -> Result<Verified, CandidateError> {
        for (name, sha256) in self.files {
            if !self.uploads.object(sha256).is_file() {
                return Err(CandidateError::NotUploaded { name: name.clone() });
            }
        }
        let anchor = self.anchor()?;
        let trusted = self.published(&anchor)?;
        let newest = trusted.get(&RoleName::root()).unwrap_or(&anchor).clone();
        let known_timestamp = trusted.get(&RoleName::timestamp()).cloned();
        let overlay = Overlay::new(self, true);
        let refused = CandidateError::Refused;
        let mut client = Client::new(overlay, MemoryCache(trusted), &newest, now).map_err(refused)?;
        let refreshed = client.refresh().map_err(refused)?;
        if !client.trusted().root().consistent_snapshot {
            return Err(CandidateError::NotConsistent);
        }
        let version = client.trusted().timestamp().map_or(0, |timestamp| timestamp.version);
        let offered = client.fetcher().last_timestamp.take();
        if refreshed == Refreshed::Unchanged && offered != known_timestamp {
            return Err(CandidateError::SameVersion { version });
        }
        let mut reached = std::mem::take(&mut client.fetcher().reached);
        // An expired product blocks its own releases on devices; it must not keep others from publishing theirs.
        let overlay = Overlay::new(self, true);
        let mut all = Client::new(overlay, MemoryCache::default(), &newest, BEFORE_EVERYTHING).map_err(refused)?;
        all.refresh().map_err(refused)?;
        for (role, targets) in all.load_all().map_err(refused)? {
            for (path, file) in &targets.targets {
                self.check_target(&role, path, file, &mut reached)?;
            }
        }
        reached.append(&mut all.fetcher().reached);
        self.old_roots(&anchor, &mut reached)?;
        reached.retain(|name| self.files.contains_key(name));
        Ok(Verified { version, reached })
    }

    /// The operator's root, or else the oldest published one.
    fn anchor(&self) -> Result<Vec<u8>, CandidateError> {
        if let Some(root) = self.trusted_root {
            return Ok(root.to_owned());
        }
        let oldest = root_versions(&self.dir.join("metadata")).into_iter().min();
        let Some(oldest) = oldest else {
            return Err(CandidateError::NoTrustedRoot);
        };
        let name = format!("metadata/{}", layout::metadata_name(&RoleName::root(), Some(oldest)));
        fs::read(self.dir.join(&name)).map_err(|source| CandidateError::Io { name, source })
    }

    /// What a device holds that has followed the published version, whenever that was: expiry does not matter.
    fn published(&self, anchor: &[u8]) -> Result<BTreeMap<RoleName, Vec<u8>>, CandidateError> {
        if !self.dir.join(routes::TIMESTAMP).exists() {
            return Ok(BTreeMap::new());
        }
        let memory = MemoryCache::default();
        let mut client = Client::new(Overlay::new(self, false), memory, anchor, BEFORE_EVERYTHING)
            .map_err(CandidateError::Published)?;
        client.refresh().map_err(CandidateError::Published)?;
        Ok(client.into_parts().1.0)
    }

    fn check_target(
        &self,
        role: &RoleName,
        path: &str,
        file: &TargetFile,
        reached: &mut BTreeSet<String>,
    ) -> Result<(), CandidateError> {
        let (role, owned) = (role.clone(), path.to_owned());
        let parsed = match TargetPath::parse(path) {
            Ok(parsed) => parsed,
            Err(source) => {
                return Err(CandidateError::TargetPath {
                    path: owned,
                    role,
                    source,
                });
            }
        };
        let digest = match (&file.hashes.sha256, &file.hashes.sha512) {
            (Some(sha256), _) => sha256.to_vec(),
            (None, Some(sha512)) => sha512.to_vec(),
            (None, None) => Vec::new(),
        };
        let stored = layout::target_file(&parsed, Some(&digest));
        if !stored.split('/').all(routes::is_safe_part) {
            return Err(CandidateError::Unservable { path: owned, role });
        }
        let name = format!("targets/{stored}");
        // `tough` asks for the digest before the first part.
        let tough = format!("targets/{}.{parsed}", hex::encode(&digest));
        let io = |source| CandidateError::Io {
            name: name.clone(),
            source,
        };
        let mut found = false;
        if let Ok(metadata) = fs::symlink_metadata(self.dir.join(&name)) {
            if !metadata.is_file() || metadata.len() != file.length {
                let source = MismatchError::Length {
                    expected: file.length,
                    actual: metadata.len(),
                };
                return Err(CandidateError::Target {
                    path: owned,
                    role,
                    source,
                });
            }
            found = true;
        }
        let mut checked: Option<&String> = None;
        for candidate in [&name, &tough] {
            let Some(sha256) = self.files.get(candidate) else {
                continue;
            };
            if checked != Some(sha256) {
                let (length, hashes) = hash(&self.uploads.object(sha256), file).map_err(io)?;
                if let Err(source) = file.check(length, &hashes) {
                    return Err(CandidateError::Target {
                        path: owned,
                        role,
                        source,
                    });
                }
                checked = Some(sha256);
            }
            reached.insert(candidate.clone());
            found |= candidate == &name;
        }
        if found {
            Ok(())
        } else {
            Err(CandidateError::MissingTarget {
                path: owned,
                role,
                name,
            })
        }
    }

    /// Roots up to the trusted one are not on a device's way from it, but on the way of older devices to it: each must
    /// lead to the next.
    fn old_roots(&self, anchor: &[u8], reached: &mut BTreeSet<String>) -> Result<(), CandidateError> {
        let Ok(root) = Root::parse(anchor) else { return Ok(()) };
        let overlay = Overlay::new(self, true);
        let name = |version| format!("metadata/{}", layout::metadata_name(&RoleName::root(), Some(version)));
        let read = |version: u64| {
            let name = name(version);
            overlay
                .read(&name, limits::ROOT_BYTES)
                .map_err(|source| CandidateError::Io { name, source })
        };
        match read(root.version)? {
            None => {}
            Some(bytes) if bytes == anchor => {
                reached.insert(name(root.version));
            }
            Some(_) => {
                return Err(CandidateError::OtherRoot {
                    name: name(root.version),
                });
            }
        }
        let mut next = anchor.to_owned();
        for version in (1..root.version).rev() {
            let Some(bytes) = read(version)? else { break };
            TrustedSet::new(&bytes, UtcSeconds(i64::MIN))
                .and_then(|mut trusted| trusted.update_root(&next))
                .map_err(|source| CandidateError::OldRoot {
                    name: name(version),
                    source: Box::new(source),
                })?;
            reached.insert(name(version));
            next = bytes;
        }
        Ok(())
    }
}

/// The versions of the roots in a metadata directory.
pub(crate) fn root_versions(metadata: &Path) -> Vec<u64> {
    let entries = fs::read_dir(metadata).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".root.json")?.parse().ok())
        .collect()
}

fn hash(path: &Path, expected: &TargetFile) -> io::Result<(u64, fwmeta::target::Hashes)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::for_checking(&expected.hashes);
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&chunk[..length]);
    }
}

/// The metadata of the published version, with the offered ones over them if asked.
struct Overlay<'a> {
    dir: PathBuf,
    uploads: &'a Uploads,
    files: Option<&'a BTreeMap<String, String>>,
    reached: BTreeSet<String>,
    last_timestamp: Option<Vec<u8>>,
}

impl<'a> Overlay<'a> {
    fn new(candidate: &Candidate<'a>, with_files: bool) -> Self {
        Self {
            dir: candidate.dir.to_owned(),
            uploads: candidate.uploads,
            files: with_files.then_some(candidate.files),
            reached: BTreeSet::new(),
            last_timestamp: None,
        }
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let path = match self.files.and_then(|files| files.get(name)) {
            Some(sha256) => self.uploads.object(sha256),
            None => self.dir.join(name),
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        if file.take(limit.saturating_add(1)).read_to_end(&mut bytes)? as u64 > limit {
            let message = format!("{name} is longer than {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(Some(bytes))
    }
}

impl Fetch for Overlay<'_> {
    type Error = io::Error;

    fn fetch(&mut self, name: &str, max_length: u64) -> io::Result<Option<Vec<u8>>> {
        let name = format!("metadata/{name}");
        let bytes = self.read(&name, max_length)?;
        if name == routes::TIMESTAMP {
            self.last_timestamp.clone_from(&bytes);
        }
        self.reached.insert(name);
        Ok(bytes)
    }
}
