//! The only place that counts signatures.
//!
//! A role is satisfied when at least `threshold` **different keys** of it have signed the canonical form of what was
//! received (TUF 1.0.34 §5.3.4 and its siblings). Ids do not count: the same key listed under two ids is one key.
//! Signatures by keys that the role does not list, or whose scheme is unknown here, are passed over.

use std::collections::BTreeMap;

use crate::key::{KeyId, PublicKey};
use crate::role_name::RoleKeys;
use crate::signed::Signature;

/// Fewer different keys of the role have signed than its threshold asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("signed by {valid} of the {threshold} keys needed")]
pub struct ThresholdNotMet {
    /// Different keys whose signature is right.
    pub valid: u64,
    /// Different keys that would be needed.
    pub threshold: u64,
}

/// Checks `signatures` over `message` against a role.
///
/// # Errors
/// [`ThresholdNotMet`].
pub fn verify(
    role: &RoleKeys,
    keys: &BTreeMap<KeyId, PublicKey>,
    signatures: &[Signature],
    message: &[u8],
) -> Result<(), ThresholdNotMet> {
    let mut valid: Vec<&PublicKey> = Vec::new();
    for signature in signatures {
        if valid.len() as u64 >= role.threshold {
            break;
        }
        let listed = role.keyids.contains(&signature.keyid);
        let Some(key) = listed.then(|| keys.get(&signature.keyid)).flatten() else {
            continue;
        };
        let counted = valid.iter().any(|other| other.same_key(key));
        if !counted && key.verify(message, &signature.bytes) {
            valid.push(key);
        }
    }
    let valid = valid.len() as u64;
    // `RoleKeys` never holds a threshold of 0, but a count must not depend on that.
    if valid >= role.threshold.max(1) {
        Ok(())
    } else {
        Err(ThresholdNotMet {
            valid,
            threshold: role.threshold,
        })
    }
}
