#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::tempdir;

use crate::twin::{Damage, Loaded, Twin, TwinError};
use crate::*;

fn record(payload: &[u8], counter: u64, degraded: bool) -> Loaded {
    Loaded::Record {
        payload: payload.to_vec(),
        counter,
        degraded,
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn write_file_replaces_whole_and_leaves_no_temporary() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("state");
    write_file(&path, b"a long first version").unwrap();
    write_file_mode(&path, b"short", 0o600).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"short");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Only root may give files away; anybody may give one to themselves, and the mode survives that.
    let owner = fs::metadata(&path).unwrap();
    write_file_owned(&path, b"mine", 0o640, Some(owner.uid()), Some(owner.gid())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(names(dir.path()), ["state"]);
}

#[test]
fn what_an_earlier_process_of_the_same_id_left_is_no_obstacle() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("state");
    // Other tests count on at the same time, so that all names of the near future are taken.
    for counter in 0..500 {
        fs::write(
            dir.path().join(format!(".state.tmp-{}-{counter}", std::process::id())),
            b"torn",
        )
        .unwrap();
    }
    write_file(&path, b"whole").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    sweep_temporaries(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["state"]);
}

#[test]
fn failed_write_keeps_the_old_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("taken");
    fs::create_dir(&path).unwrap();
    assert!(write_file(&path, b"x").is_err());
    assert!(path.is_dir());
    assert_eq!(names(dir.path()), ["taken"]);
    assert_eq!(
        write_file(Path::new("/"), b"x").unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn create_new_never_replaces() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("key");
    create_new(&path, b"first", 0o600).unwrap();
    assert_eq!(
        create_new(&path, b"second", 0o600).unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(names(dir.path()), ["key"]);
}

#[test]
fn removing_what_is_absent_is_success() {
    let dir = tempdir().unwrap();
    remove_file(&dir.path().join("none")).unwrap();
    remove_tree(&dir.path().join("none")).unwrap();
    remove_file(&dir.path().join("none/below")).unwrap();
    remove_tree(&dir.path().join("none/below")).unwrap();
    write_file(&dir.path().join("one"), b"1").unwrap();
    remove_file(&dir.path().join("one")).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn trees_are_created_synced_moved_and_removed() {
    let dir = tempdir().unwrap();
    let deep = dir.path().join("a/b/c");
    create_dir_all(&deep).unwrap();
    create_dir_all(&deep).unwrap();
    fs::write(deep.join("f"), b"1").unwrap();
    symlink("/nonexistent", deep.join("dangling")).unwrap();
    sync_tree(dir.path()).unwrap();
    rename(&deep, &dir.path().join("moved")).unwrap();
    assert_eq!(fs::read(dir.path().join("moved/f")).unwrap(), b"1");
    remove_tree(&dir.path().join("moved")).unwrap();
    assert_eq!(names(dir.path()), ["a"]);
    fs::write(dir.path().join("plain"), b"").unwrap();
    assert!(create_dir_all(&dir.path().join("plain/under")).is_err());
}

#[test]
fn sweep_removes_only_our_temporaries() {
    let dir = tempdir().unwrap();
    let kept = [
        ".a.tmp-",
        ".a.tmp-1-",
        ".a.tmp-1-1.bak",
        ".hidden",
        ".x.tmp-file",
        "not.tmp-1-1",
        "state",
    ];
    for name in kept.iter().chain(&[".state.tmp-17-0", ".a.tmp-1-1.tmp-2-3"]) {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    sweep_temporaries(dir.path()).unwrap();
    assert_eq!(names(dir.path()), kept);
    sweep_temporaries(&dir.path().join("none")).unwrap();
}

#[test]
fn lock_excludes_until_dropped() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = Lock::try_exclusive(&path).unwrap().unwrap();
    assert!(Lock::try_exclusive(&path).unwrap().is_none());
    drop(held);
    Lock::exclusive(&path).unwrap();
}

#[test]
fn twin_round_trip_counts() {
    let dir = tempdir().unwrap();
    let twin = Twin::new(dir.path().join("r"), 64);
    assert_eq!(twin.load().unwrap(), Loaded::Empty);
    twin.repair().unwrap();
    assert_eq!(twin.load().unwrap(), Loaded::Empty);
    twin.store(b"one").unwrap();
    twin.store(b"").unwrap();
    assert_eq!(twin.load().unwrap(), record(b"", 2, false));
    assert!(matches!(
        twin.store(&[0; 65]),
        Err(TwinError::TooLarge {
            length: 65,
            limit: 64,
            ..
        })
    ));
    assert_eq!(twin.load().unwrap(), record(b"", 2, false));
}

#[test]
fn every_flipped_byte_of_one_copy_is_survived_and_repaired() {
    let dir = tempdir().unwrap();
    let twin = Twin::new(dir.path().join("r"), 64);
    twin.store(b"floor 7").unwrap();
    for copy in ["r.a", "r.b"] {
        let path = dir.path().join(copy);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&path, &bad).unwrap();
            assert_eq!(twin.load().unwrap(), record(b"floor 7", 1, true), "{copy} byte {at}");
            assert_eq!(fs::read(&path).unwrap(), bad, "load must not write");
            twin.repair().unwrap();
            assert_eq!(fs::read(&path).unwrap(), good);
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert_eq!(
                twin.load().unwrap(),
                record(b"floor 7", 1, true),
                "{copy} cut at {length}"
            );
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert_eq!(twin.load().unwrap(), record(b"floor 7", 1, true));
        fs::remove_file(&path).unwrap();
        assert_eq!(twin.load().unwrap(), record(b"floor 7", 1, true));
        twin.repair().unwrap();
        assert_eq!(twin.load().unwrap(), record(b"floor 7", 1, false));
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_survived() {
    let dir = tempdir().unwrap();
    let twin = Twin::new(dir.path().join("r"), 64);
    twin.store(b"floor 7").unwrap();
    fs::remove_file(dir.path().join("r.a")).unwrap();
    // Reading fails, as on a bad block.
    fs::create_dir(dir.path().join("r.a")).unwrap();
    assert_eq!(twin.load().unwrap(), record(b"floor 7", 1, true));
    fs::write(dir.path().join("r.b"), b"").unwrap();
    assert!(matches!(
        twin.load(),
        Err(TwinError::BothDamaged {
            first: Damage::Unreadable,
            second: Damage::Length,
            ..
        })
    ));
}

#[test]
fn both_damaged_is_an_error_and_is_not_overwritten() {
    let dir = tempdir().unwrap();
    let twin = Twin::new(dir.path().join("r"), 64);
    twin.store(b"floor 7").unwrap();
    fs::write(dir.path().join("r.a"), b"short").unwrap();
    fs::remove_file(dir.path().join("r.b")).unwrap();
    for result in [twin.load().map(|_| ()), twin.store(b"floor 0"), twin.repair()] {
        assert!(matches!(
            result,
            Err(TwinError::BothDamaged {
                first: Damage::Length,
                second: Damage::Missing,
                ..
            })
        ));
    }
    assert_eq!(fs::read(dir.path().join("r.a")).unwrap(), b"short");
}

#[test]
fn a_cut_between_the_two_copies_gives_the_new_payload_and_the_counter_goes_on() {
    let dir = tempdir().unwrap();
    let twin = Twin::new(dir.path().join("r"), 64);
    twin.store(b"old").unwrap();
    let old = fs::read(dir.path().join("r.b")).unwrap();
    twin.store(b"new").unwrap();
    fs::write(dir.path().join("r.b"), &old).unwrap();
    assert_eq!(twin.load().unwrap(), record(b"new", 2, true));
    // Now the newer copy is lost before anybody repaired: what remains is intact, and a store still works.
    fs::write(dir.path().join("r.a"), b"").unwrap();
    assert_eq!(twin.load().unwrap(), record(b"old", 1, true));
    twin.store(b"third").unwrap();
    assert_eq!(twin.load().unwrap(), record(b"third", 2, false));
}
