//! What a role is called and which keys speak for it: what root and delegations say of a role alike.

use std::fmt;

use crate::json::{Value, object};
use crate::key::KeyId;
use crate::limits;

/// Name of a role: not empty, at most [`limits::ROLE_NAME_BYTES`] bytes, otherwise any text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName(String);

impl RoleName {
    /// Reads a role name.
    ///
    /// # Errors
    /// [`RoleNameError`].
    pub fn parse(text: &str) -> Result<Self, RoleNameError> {
        if text.is_empty() || text.len() > limits::ROLE_NAME_BYTES {
            return Err(RoleNameError {
                name: text.chars().take(64).collect(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// The root role.
    pub fn root() -> Self {
        Self("root".to_owned())
    }

    /// The timestamp role.
    pub fn timestamp() -> Self {
        Self("timestamp".to_owned())
    }

    /// The snapshot role.
    pub fn snapshot() -> Self {
        Self("snapshot".to_owned())
    }

    /// The top-level targets role.
    pub fn targets() -> Self {
        Self("targets".to_owned())
    }

    /// Whether this is one of the four top-level roles, whose names no delegated role may take.
    pub fn is_top_level(&self) -> bool {
        matches!(self.as_str(), "root" | "timestamp" | "snapshot" | "targets")
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its key in `snapshot.meta`.
    pub fn meta_name(&self) -> String {
        format!("{}.json", self.0)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A role name that is empty or too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a role name")]
pub struct RoleNameError {
    /// The name, cut to 64 characters.
    pub name: String,
}

/// The keys of a role and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// Ids of its keys, none twice.
    pub keyids: Vec<KeyId>,
    /// Different keys that must sign; at least 1.
    pub threshold: u64,
}

impl RoleKeys {
    pub(crate) fn keyids_value(&self) -> Value {
        Value::Array(self.keyids.iter().map(|keyid| keyid.as_str().into()).collect())
    }

    pub(crate) fn to_value(&self) -> Value {
        object([("keyids", self.keyids_value()), ("threshold", self.threshold.into())])
    }
}
