//! `verify`: whatever is changed in a repository is found, by both verifiers, and agreement is needed.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::Path;

use support::{Workshop, copy_tree, fwsign, text, tree};

fn verify(dir: &Path) -> support::Run {
    fwsign(["verify", text(dir)])
}

/// A repository with two releases, and a copy of it to be damaged.
fn shop() -> Workshop {
    let shop = Workshop::new();
    shop.release("1.0.0", &[]).expect(0);
    shop.release("1.1.0", &[]).expect(0);
    verify(&shop.repo()).expect(0);
    shop
}

#[test]
fn every_changed_byte_of_what_counts_is_found() {
    let shop = shop();
    // Everything that the timestamp leads to; the other versions are history.
    let counts = |name: &str| {
        let current = [
            "1.root.json",
            "1.targets.json",
            "3.router.json",
            "3.snapshot.json",
            "timestamp.json",
        ];
        name.starts_with("targets/") || current.iter().any(|file| name == format!("metadata/{file}"))
    };
    let files: Vec<_> = tree(&shop.repo())
        .into_iter()
        .filter(|(name, _)| !name.ends_with('/') && counts(name))
        .collect();
    assert_eq!(
        files.len(),
        5 + 2 * 4,
        "two releases of manifest and payload, each under two names"
    );
    for (at, (name, bytes)) in files.iter().enumerate() {
        let dir = shop.copy(&format!("bad{at}"));
        let mut bad = bytes.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(dir.join(name), bad).unwrap();
        verify(&dir).expect(1);
        fs::write(dir.join(name), &bytes[..bytes.len() - 1]).unwrap();
        verify(&dir).expect(1);
        fs::remove_file(dir.join(name)).unwrap();
        let expected = if name == "metadata/1.root.json" { 3 } else { 1 };
        verify(&dir).expect(expected);
        fs::write(dir.join(name), bytes).unwrap();
        verify(&dir).expect(0);
        fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn a_changed_payload_is_found_by_both_and_not_by_a_look_at_metadata() {
    let shop = shop();
    let (names, bytes) = (tree(&shop.repo()), fs::read(shop.payload("1.1.0")).unwrap());
    let mut bad = bytes.clone();
    bad[10] ^= 1;
    for (name, contents) in names {
        if contents == bytes {
            fs::write(shop.repo().join(name), &bad).unwrap();
        }
    }
    let run = shop.verify().expect_error(1, "both verifiers refuse");
    assert!(run.stderr.contains("main.img.zst"), "{}", run.stderr);
    fwsign(["verify", text(&shop.repo()), "--metadata-only"]).expect(0);
}

#[test]
fn verifiers_that_disagree_refuse() {
    let shop = shop();
    let dir = shop.copy("one");
    let payload = shop.payload("1.1.0");
    let digest_last = payload.strip_prefix(shop.repo()).unwrap();
    fs::remove_file(dir.join(digest_last)).unwrap();
    let run = verify(&dir).expect_error(1, "the verifiers disagree");
    assert!(run.stderr.contains("tough:  accepted"), "{}", run.stderr);

    let dir = shop.copy("other");
    let name = digest_last.file_name().unwrap().to_str().unwrap();
    let (digest, file) = name.split_once('.').unwrap();
    let digest_first = dir.join(format!("targets/{digest}.router/1.1.0/{file}"));
    fs::remove_file(digest_first).unwrap();
    let run = verify(&dir).expect_error(1, "the verifiers disagree");
    assert!(run.stderr.contains("fwmeta: accepted"), "{}", run.stderr);
}

#[test]
fn metadata_of_other_keys_and_older_metadata_are_refused() {
    let (shop, other) = (shop(), Workshop::empty());
    // The same vendor's keys but another root.
    other.init(&["--root-days", "100"]).expect(0);
    let root = other.metadata("1.root.json");
    verify(&shop.repo()).expect(0);
    fwsign(["verify", text(&shop.repo()), "--root", text(&root)]).expect(0);
    // A root with foreign keys does not lead to this repository.
    let foreign = Workshop::empty();
    let mut command = support::command();
    command.arg("init").arg(foreign.repo());
    for option in [
        "--root-key",
        "--root-key",
        "--targets-key",
        "--snapshot-key",
        "--timestamp-key",
    ] {
        command.arg(option).arg(foreign.key("stranger"));
    }
    let run: support::Run = command.args(["--root-threshold", "1"]).output().unwrap().into();
    run.expect(0);
    let root = foreign.metadata("1.root.json");
    fwsign(["verify", text(&shop.repo()), "--root", text(&root)]).expect_error(1, "both verifiers refuse");
    for bad in [&b""[..], b"{}", &vec![b'['; 100_000]] {
        let root = shop.file("root.json", bad);
        fwsign(["verify", text(&shop.repo()), "--root", text(&root)]).expect_error(1, "both verifiers refuse");
    }
    let root = shop.file("root.json", &vec![b' '; 600_000]);
    fwsign(["verify", text(&shop.repo()), "--root", text(&root)]).expect_error(3, "longer than");
    fwsign(["verify", text(&shop.repo()), "--root", "/nonexistent"]).expect_error(3, "/nonexistent");
    // An older product file in place of the one that the snapshot announces.
    let dir = shop.copy("old");
    fs::copy(dir.join("metadata/2.router.json"), dir.join("metadata/3.router.json")).unwrap();
    verify(&dir).expect_error(1, "both verifiers refuse");
}

#[test]
fn verify_changes_nothing() {
    let shop = shop();
    let before = tree(&shop.repo());
    let dir = shop.path("read-only");
    copy_tree(&shop.repo(), &dir);
    shop.verify().expect(0);
    fwsign(["status", text(&shop.repo())]).expect(0);
    assert_eq!(tree(&shop.repo()), before);
    fs::remove_file(dir.join(".lock")).unwrap();
    verify(&dir).expect(0);
    assert!(!dir.join(".lock").exists());
}
