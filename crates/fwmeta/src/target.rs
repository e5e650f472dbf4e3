//! Targets: their paths, lengths and digests (TUF 1.0.34 §4.5).

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256, Sha512};

use crate::json::{Value, object};
use crate::{hex, limits};

/// The path of a target: `/`-separated parts, none of them empty, `.` or `..`; no NUL, no backslash, no leading `/`.
/// Joined to a directory it stays inside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPath(String);

/// The text is not a target path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a target path: {reason}")]
pub struct TargetPathError {
    /// What was to be read, cut to 64 characters.
    pub text: String,
    /// The rule it breaks.
    pub reason: &'static str,
}

impl TargetPath {
    /// Reads a target path.
    ///
    /// # Errors
    /// [`TargetPathError`] naming the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, TargetPathError> {
        let reason = if text.is_empty() {
            "it is empty"
        } else if text.len() > limits::TARGET_PATH_BYTES {
            "it is too long"
        } else if text.starts_with('/') {
            "it begins with /"
        } else if text.contains(['\0', '\\']) {
            "it contains NUL or a backslash"
        } else if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            "it has an empty part, . or .."
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(TargetPathError {
            text: text.chars().take(64).collect(),
            reason,
        })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything before the last `/` (if there is one), and the last part.
    pub fn split(&self) -> (Option<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((dir, file)) => (Some(dir), file),
            None => (None, &self.0),
        }
    }

    /// Hexadecimal SHA-256 of the path: what `path_hash_prefixes` are prefixes of.
    pub fn hash(&self) -> String {
        hex::encode(&Sha256::digest(self.0.as_bytes()))
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Digests of one file. At least one known algorithm is present; digests of unknown algorithms are kept for writing and
/// not checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hashes {
    /// SHA-256.
    pub sha256: Option<[u8; 32]>,
    /// SHA-512, boxed because most metadata carry SHA-256 alone.
    pub sha512: Option<Box<[u8; 64]>>,
    /// Algorithms not known here.
    pub other: BTreeMap<String, String>,
}

impl Hashes {
    /// Reads a `hashes` object.
    pub(crate) fn from_entries<'d>(
        entries: impl Iterator<Item = (std::borrow::Cow<'d, str>, Option<std::borrow::Cow<'d, str>>)>,
    ) -> Option<Self> {
        let mut hashes = Self::default();
        for (algorithm, digest) in entries {
            let digest = digest?;
            match &*algorithm {
                "sha256" => hashes.sha256 = Some(hex::decode_array(&digest)?),
                "sha512" => hashes.sha512 = Some(Box::new(hex::decode_array(&digest)?)),
                _ => {
                    hashes.other.insert(algorithm.into_owned(), digest.into_owned());
                }
            }
        }
        (hashes.sha256.is_some() || hashes.sha512.is_some()).then_some(hashes)
    }

    /// The `hashes` object.
    pub fn to_value(&self) -> Value {
        let mut entries: BTreeMap<String, Value> = self
            .other
            .iter()
            .map(|(algorithm, digest)| (algorithm.clone(), digest.into()))
            .collect();
        if let Some(digest) = &self.sha256 {
            entries.insert("sha256".to_owned(), hex::encode(digest).into());
        }
        if let Some(digest) = &self.sha512 {
            entries.insert("sha512".to_owned(), hex::encode(&**digest).into());
        }
        Value::Object(entries)
    }

    /// The known digests in hexadecimal, SHA-256 first: the prefixes under which a consistent snapshot stores a target.
    pub fn names(&self) -> Vec<String> {
        let sha256 = self.sha256.iter().map(|digest| hex::encode(digest));
        sha256
            .chain(self.sha512.iter().map(|digest| hex::encode(&**digest)))
            .collect()
    }
}

/// What was received differs from what metadata announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MismatchError {
    /// Another length.
    #[error("length is {actual} bytes, announced are {expected}")]
    Length {
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        actual: u64,
    },
    /// Another digest.
    #[error("{algorithm} is {actual}, announced is {expected}")]
    Hash {
        /// `sha256` or `sha512`.
        algorithm: &'static str,
        /// Hexadecimal digest announced.
        expected: String,
        /// Hexadecimal digest of what was received.
        actual: String,
    },
}

/// Checks `actual`, which has every known digest, against every known one that was announced.
pub(crate) fn check_hashes(expected: &Hashes, actual: &Hashes) -> Result<(), MismatchError> {
    check_one(
        "sha256",
        expected.sha256.as_ref().map(<[u8; 32]>::as_slice),
        actual.sha256.as_ref().map(<[u8; 32]>::as_slice),
    )?;
    check_one(
        "sha512",
        expected.sha512.as_ref().map(|digest| digest.as_slice()),
        actual.sha512.as_ref().map(|digest| digest.as_slice()),
    )
}

fn check_one(algorithm: &'static str, expected: Option<&[u8]>, actual: Option<&[u8]>) -> Result<(), MismatchError> {
    match expected {
        Some(expected) if Some(expected) != actual => Err(MismatchError::Hash {
            algorithm,
            expected: hex::encode(expected),
            actual: actual.map_or_else(|| "unknown".to_owned(), hex::encode),
        }),
        _ => Ok(()),
    }
}

/// Computes length and digests of a stream.
#[derive(Debug, Clone, Default)]
pub struct Hasher {
    length: u64,
    sha256: Sha256,
    sha512: Option<Sha512>,
}

impl Hasher {
    /// Computes SHA-256 and SHA-512.
    pub fn new() -> Self {
        Self {
            length: 0,
            sha256: Sha256::new(),
            sha512: Some(Sha512::new()),
        }
    }

    /// Computes only what is needed to check against `expected`: SHA-512 costs time.
    pub fn for_checking(expected: &Hashes) -> Self {
        Self {
            sha512: expected.sha512.is_some().then(Sha512::new),
            ..Self::new()
        }
    }

    /// Takes the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// Bytes taken so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Length and digests of all that was taken.
    pub fn finish(self) -> (u64, Hashes) {
        let sha512 = self.sha512.map(|sha512| Box::new(sha512.finalize().into()));
        (
            self.length,
            Hashes {
                sha256: Some(self.sha256.finalize().into()),
                sha512,
                other: BTreeMap::new(),
            },
        )
    }
}

/// Length, digests and custom data of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFile {
    /// Length in bytes.
    pub length: u64,
    /// At least one known digest.
    pub hashes: Hashes,
    /// `custom`, not interpreted by TUF.
    pub custom: Option<Value>,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

impl TargetFile {
    /// Describes these bytes, with SHA-256 and SHA-512.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        let (length, hashes) = hasher.finish();
        Self {
            length,
            hashes,
            custom: None,
            extra: BTreeMap::new(),
        }
    }

    /// Checks the length and digests that a [`Hasher`] computed.
    ///
    /// # Errors
    /// [`MismatchError`] for the first that differs.
    pub fn check(&self, length: u64, hashes: &Hashes) -> Result<(), MismatchError> {
        if length != self.length {
            return Err(MismatchError::Length {
                expected: self.length,
                actual: length,
            });
        }
        check_hashes(&self.hashes, hashes)
    }

    /// Checks whole bytes.
    ///
    /// # Errors
    /// [`MismatchError`] for the first that differs.
    pub fn check_bytes(&self, bytes: &[u8]) -> Result<(), MismatchError> {
        let mut hasher = Hasher::for_checking(&self.hashes);
        hasher.update(bytes);
        let (length, hashes) = hasher.finish();
        self.check(length, &hashes)
    }

    /// The target object.
    pub fn to_value(&self) -> Value {
        let mut entries = self.extra.clone();
        entries.insert("length".to_owned(), self.length.into());
        entries.insert("hashes".to_owned(), self.hashes.to_value());
        if let Some(custom) = &self.custom {
            entries.insert("custom".to_owned(), custom.clone());
        }
        Value::Object(entries)
    }

    /// The same target with this `custom.fw`.
    #[must_use]
    pub fn with_fw(mut self, fw: Value) -> Self {
        self.custom = Some(object([("fw", fw)]));
        self
    }
}
