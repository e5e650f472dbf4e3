//! What a publisher asks for, and why it is not done: what [`crate::publish`] and the switch share.

use std::collections::BTreeMap;
use std::io;

use fwmeta::hex;
use fwmeta::json::{Doc, Node};
use sha2::{Digest, Sha256};

use crate::candidate::CandidateError;
use crate::routes::{self, TIMESTAMP};

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

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}

pub(crate) fn failed(attempt: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> PublishError {
    move |source| PublishError::Io {
        attempt: attempt(),
        source,
    }
}
