//! The fuzz targets as plain tests: each runs over its seeds and a few thousand mutations of them, always the same ones.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod targets;

fwfuzz::tests!(targets: json 2000, metadata 2000, manifest 2000, custom 2000, glob 2000, time 2000, statement 2000, trusted 2000);

/// Mutations of what is refused at once would reach nothing.
#[test]
fn a_seed_is_a_statement() {
    let seed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/statement/signed")).unwrap();
    fwmeta::statement::device_of(&seed).unwrap();
}

#[test]
fn a_seed_reaches_every_role() {
    let seed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/trusted/cycle")).unwrap();
    assert_eq!(targets::trusted_state(&seed), Some([2, 2, 2, 1, 1, 1]));
}
