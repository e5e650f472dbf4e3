//! The four kinds of role metadata as types (TUF 1.0.34 §4.3–§4.6).
//!
//! Reading decides whether a `signed` object is well formed; it says nothing about signatures, expiry or versions, which
//! [`crate::trusted`] judges. Unknown fields are kept in `extra` and written back.

use std::collections::BTreeMap;

use crate::delegation::Delegations;
use crate::json::{JsonError, Value, object};
use crate::key::{KeyError, KeyId, PublicKey, keys_to_value};
pub use crate::role_name::{RoleKeys, RoleName, RoleNameError};
use crate::signed::{Envelope, EnvelopeError};
use crate::target::{Hashes, TargetFile};
use crate::time::{TimeError, UtcSeconds};

mod read;

/// The specification version that we write; any 1.x is read.
pub const SPEC_VERSION: &str = "1.0.34";

/// The keys of the four top-level roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRoles {
    /// Signs root metadata.
    pub root: RoleKeys,
    /// Signs timestamp metadata.
    pub timestamp: RoleKeys,
    /// Signs snapshot metadata.
    pub snapshot: RoleKeys,
    /// Signs top-level targets metadata.
    pub targets: RoleKeys,
}

/// Root metadata (§4.3).
#[derive(Debug, Clone)]
pub struct Root {
    /// Version, at least 1.
    pub version: u64,
    /// The moment from which it is no longer valid.
    pub expires: UtcSeconds,
    /// Whether object names carry versions and digests (§6.2).
    pub consistent_snapshot: bool,
    /// All keys that a role refers to, and possibly more.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Keys and thresholds of the top-level roles.
    pub roles: RootRoles,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// Timestamp metadata (§4.6).
#[derive(Debug, Clone)]
pub struct Timestamp {
    /// Version, at least 1.
    pub version: u64,
    /// The moment from which it is no longer valid.
    pub expires: UtcSeconds,
    /// The current snapshot.
    pub snapshot: MetaFile,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// Snapshot metadata (§4.4).
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Version, at least 1.
    pub version: u64,
    /// The moment from which it is no longer valid.
    pub expires: UtcSeconds,
    /// Every targets metadata file, by role name with `.json`.
    pub meta: BTreeMap<String, MetaFile>,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// What timestamp or snapshot say of another metadata file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaFile {
    /// Its version, at least 1.
    pub version: u64,
    /// Its length in bytes, when given.
    pub length: Option<u64>,
    /// Its digests, when given.
    pub hashes: Option<Hashes>,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// Targets metadata, top-level or delegated (§4.5).
#[derive(Debug, Clone)]
pub struct Targets {
    /// Version, at least 1.
    pub version: u64,
    /// The moment from which it is no longer valid.
    pub expires: UtcSeconds,
    /// Targets by path. Paths that [`crate::target::TargetPath`] refuses are kept and can never be found.
    pub targets: BTreeMap<String, TargetFile>,
    /// Roles to which this one delegates.
    pub delegations: Option<Delegations>,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// Bytes are not the metadata of the expected role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleError {
    /// Not a metadata envelope.
    #[error("not a metadata file")]
    Envelope(#[from] EnvelopeError),
    /// `_type` is another role's.
    #[error("metadata type is {actual:?}, expected {expected:?}")]
    Type {
        /// The type asked for.
        expected: &'static str,
        /// The type found.
        actual: String,
    },
    /// A specification version that is not 1.x.
    #[error("specification version {actual:?} is not 1.x")]
    SpecVersion {
        /// The version found.
        actual: String,
    },
    /// Longer than the bound for its role.
    #[error("{length} bytes exceed the limit of {limit}")]
    TooLong {
        /// Bytes received.
        length: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A field is missing, has the wrong type or is out of range.
    #[error("field {field} is missing or malformed")]
    Field {
        /// Path of the field.
        field: &'static str,
    },
    /// More entries than the bounds allow.
    #[error("field {field} has more than {limit} entries")]
    TooMany {
        /// Path of the field.
        field: &'static str,
        /// Entries allowed.
        limit: usize,
    },
    /// A role lists a key id twice.
    #[error("field {field} lists key id {keyid} twice")]
    RepeatedKeyId {
        /// Path of the field.
        field: &'static str,
        /// The repeated key id.
        keyid: KeyId,
    },
    /// Two delegated roles have one name, or one has the name of a top-level role.
    #[error("delegated role name {name:?} is taken")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A role name that is empty or too long.
    #[error(transparent)]
    Name(#[from] RoleNameError),
    /// `expires` is not a time.
    #[error("field expires")]
    Expires(#[from] TimeError),
    /// A key object is malformed.
    #[error("field keys")]
    Key(#[from] KeyError),
    /// An unknown field has no canonical form.
    #[error("field {field}")]
    Value {
        /// Path of the field.
        field: &'static str,
        /// Why.
        source: JsonError,
    },
}

/// A kind of role metadata that can be read from an envelope.
pub trait Metadata: Sized {
    /// Value of `_type`.
    const TYPE: &'static str;

    /// Reads the `signed` object of an envelope. Checks form only, no signature.
    ///
    /// # Errors
    /// [`RoleError`].
    fn from_envelope(envelope: &Envelope<'_>) -> Result<Self, RoleError>;

    /// Version of the metadata.
    fn version(&self) -> u64;

    /// The moment from which the metadata is no longer valid.
    fn expires(&self) -> UtcSeconds;

    /// The `signed` object, to be signed.
    fn to_value(&self) -> Value;

    /// Reads a whole file. Checks form only, no signature.
    ///
    /// # Errors
    /// [`RoleError`].
    fn parse(bytes: &[u8]) -> Result<Self, RoleError> {
        Self::from_envelope(&Envelope::parse(bytes)?)
    }
}

macro_rules! metadata {
    ($type:ident, $name:literal, |$self:ident| $fields:expr) => {
        impl Metadata for $type {
            const TYPE: &'static str = $name;

            fn from_envelope(envelope: &Envelope<'_>) -> Result<Self, RoleError> {
                Self::read(envelope.signed())
            }

            fn version(&self) -> u64 {
                self.version
            }

            fn expires(&self) -> UtcSeconds {
                self.expires
            }

            fn to_value(&self) -> Value {
                let $self = self;
                let mut entries = self.extra.clone();
                // A newer 1.x that somebody else wrote is kept; otherwise we say which text we follow.
                entries
                    .entry("spec_version".to_owned())
                    .or_insert_with(|| SPEC_VERSION.into());
                entries.insert("_type".to_owned(), $name.into());
                entries.insert("version".to_owned(), self.version.into());
                entries.insert("expires".to_owned(), self.expires.to_string().into());
                for (key, value) in $fields {
                    entries.insert(key.to_owned(), value);
                }
                Value::Object(entries)
            }
        }

        impl $type {
            /// Reads a whole file. Checks form only, no signature.
            ///
            /// # Errors
            /// [`RoleError`].
            pub fn parse(bytes: &[u8]) -> Result<Self, RoleError> {
                <Self as Metadata>::parse(bytes)
            }

            /// The `signed` object, to be signed.
            pub fn to_value(&self) -> Value {
                <Self as Metadata>::to_value(self)
            }
        }
    };
}

metadata!(Root, "root", |root| [
    ("consistent_snapshot", root.consistent_snapshot.into()),
    ("keys", keys_to_value(&root.keys)),
    (
        "roles",
        object([
            ("root", root.roles.root.to_value()),
            ("timestamp", root.roles.timestamp.to_value()),
            ("snapshot", root.roles.snapshot.to_value()),
            ("targets", root.roles.targets.to_value()),
        ])
    ),
]);

metadata!(Timestamp, "timestamp", |timestamp| [(
    "meta",
    object([("snapshot.json", timestamp.snapshot.to_value())])
)]);

metadata!(Snapshot, "snapshot", |snapshot| [(
    "meta",
    Value::Object(
        snapshot
            .meta
            .iter()
            .map(|(name, meta)| (name.clone(), meta.to_value()))
            .collect()
    )
)]);

metadata!(Targets, "targets", |targets| {
    let files = targets
        .targets
        .iter()
        .map(|(path, file)| (path.clone(), file.to_value()))
        .collect();
    let delegations = targets
        .delegations
        .as_ref()
        .map(|delegations| ("delegations", delegations.to_value()));
    std::iter::once(("targets", Value::Object(files))).chain(delegations)
});

impl Root {
    /// Keys and threshold of a top-level role; `None` for any other name.
    pub fn role(&self, name: &RoleName) -> Option<&RoleKeys> {
        Some(match name.as_str() {
            "root" => &self.roles.root,
            "timestamp" => &self.roles.timestamp,
            "snapshot" => &self.roles.snapshot,
            "targets" => &self.roles.targets,
            _ => return None,
        })
    }
}

impl MetaFile {
    /// Says only the version.
    pub fn of_version(version: u64) -> Self {
        Self {
            version,
            length: None,
            hashes: None,
            extra: BTreeMap::new(),
        }
    }

    /// Says version, length and SHA-256 of these bytes.
    pub fn of_bytes(version: u64, bytes: &[u8]) -> Self {
        let file = TargetFile::of_bytes(bytes);
        let hashes = Hashes {
            sha512: None,
            ..file.hashes
        };
        Self {
            version,
            length: Some(file.length),
            hashes: Some(hashes),
            extra: BTreeMap::new(),
        }
    }

    fn to_value(&self) -> Value {
        let mut entries = self.extra.clone();
        entries.insert("version".to_owned(), self.version.into());
        if let Some(length) = self.length {
            entries.insert("length".to_owned(), length.into());
        }
        if let Some(hashes) = &self.hashes {
            entries.insert("hashes".to_owned(), hashes.to_value());
        }
        Value::Object(entries)
    }
}
