//! One immutable state of all settings, known by a number and by the digest of its bytes.
//!
//! ```text
//! {"format":1,"number":7,"schema":2,"at":"2030-…","cause":"set network.hostname","values":{…}}
//! ```

use std::fmt;

use fwmeta::hex;
use fwmeta::json::{Doc, Value, object};
use fwmeta::time::UtcSeconds;
use sha2::{Digest, Sha256};

use super::values::{MAX_BYTES, Values};

/// Longest cause, in bytes.
pub const CAUSE_BYTES: usize = 256;
/// Longest generation, in bytes: the values as JSON and a little more.
pub const GENERATION_BYTES: usize = MAX_BYTES + 4096;

/// Names a generation: the number is for people, the digest decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GenerationId {
    /// Counts up on the device.
    pub number: u64,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

/// A state of all settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Counts up on the device.
    pub number: u64,
    /// What the software expects: the form of the values.
    pub schema: u64,
    /// When it was made, by the device's clock.
    pub at: UtcSeconds,
    /// What made it; never a value.
    pub cause: String,
    /// The values.
    pub values: Values,
}

impl Generation {
    /// The bytes, and the name that they give it.
    pub fn encode(&self) -> (GenerationId, Vec<u8>) {
        let bytes = object([
            ("format", 1_u64.into()),
            ("number", self.number.into()),
            ("schema", self.schema.into()),
            ("at", self.at.to_string().into()),
            ("cause", (&self.cause).into()),
            ("values", self.values.to_tree()),
        ])
        .to_json()
        .into_bytes();
        let id = GenerationId {
            number: self.number,
            sha256: Sha256::digest(&bytes).into(),
        };
        (id, bytes)
    }

    /// Reads [`encode`](Self::encode) back; `None` for anything else.
    pub fn decode(id: &GenerationId, bytes: &[u8]) -> Option<Self> {
        if bytes.len() > GENERATION_BYTES || <[u8; 32]>::from(Sha256::digest(bytes)) != id.sha256 {
            return None;
        }
        let value = Doc::parse(bytes).ok()?.root().to_value().ok()?;
        let generation = Self {
            number: value.get("number")?.as_u64()?,
            schema: value.get("schema")?.as_u64()?,
            at: UtcSeconds::parse(value.get("at")?.as_str()?).ok()?,
            cause: value
                .get("cause")?
                .as_str()
                .filter(|cause| cause.len() <= CAUSE_BYTES)?
                .to_owned(),
            values: Values::from_tree(value.get("values")?).ok()?,
        };
        let known = value.get("format")?.as_u64()? == 1 && generation.number == id.number;
        known.then_some(generation)
    }
}

impl GenerationId {
    /// The form in records.
    pub fn to_value(&self) -> Value {
        object([
            ("number", self.number.into()),
            ("sha256", hex::encode(&self.sha256).into()),
        ])
    }

    /// Reads [`to_value`](Self::to_value) back.
    pub fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            number: value.get("number")?.as_u64()?,
            sha256: hex::decode_array(value.get("sha256")?.as_str()?)?,
        })
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)
    }
}
