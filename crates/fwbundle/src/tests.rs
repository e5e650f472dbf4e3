#![allow(clippy::unwrap_used)]
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use fwmeta::client::Fetch;
use fwmeta::target::{TargetFile, TargetPath};
use tempfile::TempDir;

use super::*;

const PATH: &str = "router/1.0.0/payload";

/// A bundle with these entries after the first, in a file.
fn bundle(entries: &[(&str, &[u8])]) -> (TempDir, PathBuf) {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for (name, bytes) in entries {
        writer.add(name, bytes.len() as u64, &mut &bytes[..]).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    fs::write(&path, writer.finish().unwrap()).unwrap();
    (dir, path)
}

fn with_payload(payload: &[u8]) -> (TempDir, PathBuf, TargetPath, TargetFile) {
    let target = TargetPath::parse(PATH).unwrap();
    let file = TargetFile::of_bytes(payload);
    let name = reader::target_name(&target, &file, true);
    let (dir, path) = bundle(&[("metadata/1.root.json", b"{}"), (&name, payload)]);
    (dir, path, target, file)
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn what_is_written_is_read() {
    for length in [0, 1, 512, 100_000, 300_000] {
        let payload = noise(length);
        let (_dir, path, target, file) = with_payload(&payload);
        let bundle = Bundle::open(&path).unwrap();
        let mut seen = 0;
        let mut reader = bundle
            .target(&target, &file, true, &mut |done, total| {
                seen = done;
                total == file.length
            })
            .unwrap();
        assert_eq!(seen, file.length);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, payload);
        let stopped = bundle.target(&target, &file, true, &mut |_, _| false);
        assert_eq!(matches!(stopped, Err(BundleError::Stopped)), length > 0);
    }
}

#[test]
fn a_medium_that_changes_after_the_verification_gives_nothing_unverified() {
    let payload = noise(300_000);
    for at in [0, 70_000, 299_999] {
        let (_dir, path, target, file) = with_payload(&payload);
        let bundle = Bundle::open(&path).unwrap();
        let mut reader = bundle.target(&target, &file, true, &mut |_, _| true).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let start = bytes.len() - 1024 - payload.len().next_multiple_of(512);
        bytes[start + at] ^= 1;
        // In place: the file that is open.
        fs::write(&path, &bytes).unwrap();
        let mut read = Vec::new();
        let error = reader.read_to_end(&mut read).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
        assert!(read.len() <= at && payload.starts_with(&read), "{at}");
        // Not by asking again either.
        let mut more = [0; 16];
        assert!(reader.read(&mut more).is_err());
        // Cut off, it is the same.
        fs::write(&path, &bytes[..start]).unwrap();
        assert!(reader.read(&mut more).is_err());
        let again = Bundle::open(&path);
        assert!(matches!(again, Err(BundleError::Malformed { .. })), "{again:?}");
    }
}

#[test]
fn a_target_that_is_not_the_one_described_is_refused() {
    let payload = noise(1000);
    let (_dir, path, target, file) = with_payload(&payload);
    let bundle = Bundle::open(&path).unwrap();
    let take = |target: &TargetPath, file: &TargetFile| bundle.target(target, file, true, &mut |_, _| true);
    assert!(take(&target, &file).is_ok());
    let longer = TargetFile {
        length: 1001,
        ..file.clone()
    };
    assert!(matches!(take(&target, &longer), Err(BundleError::WrongTarget { .. })));
    let mut other = file.clone();
    other.hashes.sha512.as_mut().unwrap()[0] ^= 1;
    assert!(matches!(take(&target, &other), Err(BundleError::WrongTarget { .. })));
    let elsewhere = TargetPath::parse("router/1.0.0/other").unwrap();
    assert!(matches!(
        take(&elsewhere, &file),
        Err(BundleError::MissingTarget { .. })
    ));
}

#[test]
fn a_root_that_is_left_out_is_not_taken_for_the_end_of_the_chain() {
    let (_dir, path) = bundle(&[
        ("metadata/1.root.json", b"1"),
        ("metadata/2.root.json", b"2"),
        ("metadata/4.root.json", b"4"),
        ("metadata/timestamp.json", b"t"),
    ]);
    let mut metadata = Bundle::open(&path).unwrap().metadata();
    assert_eq!(metadata.fetch("2.root.json", 10).unwrap(), Some(b"2".to_vec()));
    let missing = metadata.fetch("3.root.json", 10).unwrap_err();
    assert!(
        matches!(missing, BundleError::MissingRoot { wanted: 3, newest: 4 }),
        "{missing}"
    );
    assert_eq!(metadata.fetch("5.root.json", 10).unwrap(), None);
    assert_eq!(metadata.fetch("9.snapshot.json", 10).unwrap(), None);
    let long = metadata.fetch("timestamp.json", 0);
    assert!(matches!(long, Err(BundleError::TooLong { .. })));
}

#[test]
fn names_and_their_order_are_those_of_a_bundle() {
    let accepted = |entries: &[(&str, &[u8])]| {
        let (_dir, path) = bundle(entries);
        Bundle::open(&path).map(drop)
    };
    accepted(&[("metadata/1.root.json", b""), ("targets/a/b", b"x")]).unwrap();
    for names in [
        &["targets/a", "metadata/1.root.json"][..],
        &["metadata/1.root.json", "fwbundle"],
        &["metadata/../x.json"],
        &["metadata/.x.json"],
        &["metadata/x"],
        &["targets/../x"],
        &["targets//x"],
        &["targets/"],
        &["/etc/passwd"],
        &["other/x"],
    ] {
        let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, &b"x"[..])).collect();
        let result = accepted(&entries);
        assert!(
            matches!(result, Err(BundleError::Malformed { .. })),
            "{names:?} {result:?}"
        );
    }
    let twice = accepted(&[("targets/a", b""), ("targets/a", b"")]);
    assert!(matches!(twice, Err(BundleError::Duplicate { .. })));
    let names: Vec<String> = (0..ENTRIES).map(|number| format!("targets/{number}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    accepted(&many[1..]).unwrap();
    assert!(matches!(accepted(&many), Err(BundleError::TooManyEntries)));
}

#[test]
fn a_bundle_is_a_plain_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Bundle::open(dir.path()), Err(BundleError::Io { .. })));
    assert!(matches!(
        Bundle::open(&dir.path().join("none")),
        Err(BundleError::Io { .. })
    ));
    let mut writer = Writer::new(Vec::new()).unwrap();
    for wrong in [1, 3] {
        let error = writer.add("targets/a", wrong, &mut &b"xx"[..]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
