//! The published keys of `keys-example/`: everybody has their private halves, so nothing they sign can be trusted.

use std::path::Path;

use fwmeta::key::KeyId;
use fwmeta::role::{Root, Targets};

use crate::failure::{Failure, refused};

/// Key ids, one for each pair in `keys-example/`.
const KEY_IDS: &[&str] = &[
    // root
    "f8b29e66358571b0cf1363dfe8e20ab0082ffced028221685de10606620fbaf2",
    "ff47144bf8f3689bee02b8db9bbe72d7749cba207c884f995efd4633a939d527",
    // targets
    "ca5af4f769eb4265f1b8ba82417f5d90b89882253f0979a2e5813c3b9ce1293b",
    // snapshot
    "ae3be8499a94ec1eeac657912e87306aa0fc24278067e2415ca5e71416350818",
    // timestamp
    "7f5cdd7022fa7e45ee52b143becab5f5b8ee3bedb49f181fc6b2d80639abe93d",
    // product
    "25363a491a1f15d6476cd26fcacde424f86e0e4eed91ea94286424408ccfcebc",
];

/// Whether this is one of them.
pub fn contains(keyid: &KeyId) -> bool {
    KEY_IDS.contains(&keyid.as_str())
}

/// The first example key that a repository trusts.
pub fn trusted_by<'a>(root: &Root, targets: impl IntoIterator<Item = &'a Targets>) -> Option<KeyId> {
    // Ids are computed: metadata may give a key any other.
    let of_root = root.keys.values().map(|key| key.id());
    let delegations = targets.into_iter().filter_map(|targets| targets.delegations.as_ref());
    let of_products = delegations.flat_map(|delegations| delegations.keys.values().map(|key| key.id()));
    of_root.chain(of_products).find(contains)
}

/// Why nothing of this repository goes out.
pub fn refusal(keyid: &KeyId, repository: &Path) -> Failure {
    refused(anyhow::anyhow!(
        "repository {} trusts example key {keyid}, with which anybody can sign; make your own keys with `fwsign keygen`, \
         or pass --allow-example-keys for a demonstration",
        repository.display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use fwmeta::key::Signer;

    use super::*;
    use crate::signer::{ExampleKey, OpenArgs};

    #[test]
    fn exactly_the_keys_of_the_directory_are_known_and_refused() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keys-example");
        let allowing = OpenArgs {
            allow_example_keys: true,
            ..OpenArgs::default()
        };
        let mut ids = BTreeSet::new();
        for role in ["root", "targets", "snapshot", "timestamp", "product"] {
            for entry in std::fs::read_dir(dir.join(role)).unwrap() {
                let path = entry.unwrap().path();
                if path.to_str().unwrap().ends_with(".pub.pem") {
                    continue;
                }
                let keyid = allowing.open(&path).unwrap().public().id();
                assert!(contains(&keyid), "{} is not known", path.display());
                ids.insert(keyid);
                let refused = OpenArgs::default().open(&path).unwrap_err();
                assert!(refused.is::<ExampleKey>(), "{refused}");
            }
        }
        assert_eq!(ids.len(), KEY_IDS.len());
    }
}
