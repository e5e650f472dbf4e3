//! The published keys of `keys-example/`: everybody has their private halves, so nothing they sign can be trusted.

use fwmeta::key::KeyId;

/// Key ids, one for each pair in `keys-example/`.
const KEY_IDS: &[&str] = &[];

/// Whether this is one of them.
pub fn contains(keyid: &KeyId) -> bool {
    KEY_IDS.contains(&keyid.as_str())
}
