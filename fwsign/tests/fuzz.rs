//! The fuzz targets as plain tests: each runs over its seeds and mutations of them, always the same ones.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use fwsign::keyfile::{self, KeyFileError};
use zeroize::Zeroizing;

#[path = "../fuzz/src/lib.rs"]
mod targets;

fwfuzz::tests!(targets: pem 3000, plain 3000, encrypted 3000, passphrase 1000);

/// Mutations of what is refused at once would reach nothing.
#[test]
fn seeds_are_accepted() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/pem");
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let given = || Ok::<_, KeyFileError>(Some(Zeroizing::new("fuzz".to_owned())));
        keyfile::load(&path, given).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
