//! The repository directory after crashes and under several writers: the old version or the new one, and the next command
//! goes on.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use support::{Run, Workshop, fwsign, signed, text, tree};

#[test]
fn leftovers_of_a_crashed_writer_are_no_obstacle() {
    let shop = Workshop::new();
    // A candidate that was being written, a lock file that nobody holds, and a temporary file.
    shop.file("repo/.staging/metadata/timestamp.json", b"half a fi");
    shop.file("repo/.staging/targets/router/1.0.0/x", b"");
    shop.file("repo/.staging/payload", &[0; 1000]);
    shop.file("repo/.lock", b"");
    shop.file("repo/metadata/.timestamp.json.tmp-12-3", b"torn");
    shop.verify().expect(0);
    shop.release("1.0.0", &[]).expect(0);
    let left = tree(&shop.repo());
    assert!(
        !left
            .keys()
            .any(|name| name.contains(".staging") || name.contains(".tmp-")),
        "{:?}",
        left.keys()
    );
    shop.verify().expect(0);
}

#[test]
fn versions_that_a_crashed_writer_took_are_passed_over() {
    let shop = Workshop::new();
    // Linked, but the timestamp was not switched: nothing leads to them, and published names never change.
    for name in ["2.router.json", "2.snapshot.json", "3.snapshot.json"] {
        shop.file(&format!("repo/metadata/{name}"), b"another candidate");
    }
    shop.verify().expect(0);
    shop.release("1.0.0", &[]).expect(0);
    assert_eq!(fs::read(shop.metadata("2.router.json")).unwrap(), b"another candidate");
    assert_eq!(
        signed(&shop.metadata("timestamp.json"))["meta"]["snapshot.json"]["version"],
        4
    );
    assert_eq!(
        signed(&shop.metadata("4.snapshot.json"))["meta"]["router.json"]["version"],
        3
    );
    shop.verify().expect(0);
}

#[test]
fn a_killed_writer_leaves_the_old_repository_or_the_new_one() {
    let shop = Workshop::new();
    let (mut killed, mut released) = (0, 0);
    // The shortest delay kills the command before it begins, and the last run is let go.
    for (at, delay) in (0..24).map(|step| step * 40).enumerate() {
        let version = format!("1.{at}.0");
        let before = fs::read(shop.metadata("timestamp.json")).unwrap();
        let mut child = shop
            .release_command(&version, &[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if at < 23 {
            std::thread::sleep(Duration::from_millis(delay));
            let _ = child.kill();
        }
        let finished = child.wait().unwrap().success();
        let switched = fs::read(shop.metadata("timestamp.json")).unwrap() != before;
        assert!(switched || !finished);
        shop.verify().expect(0);
        let listed = fwsign(["status", text(&shop.repo())])
            .expect(0)
            .stdout
            .contains(&format!("router {version} "));
        assert_eq!(listed, switched, "release and timestamp appear together");
        killed += u32::from(!finished);
        released += u32::from(switched);
    }
    assert!(killed > 0 && released > 0, "killed {killed}, released {released}");
    shop.release("2.0.0", &[]).expect(0);
    shop.verify().expect(0);
}

#[test]
fn a_killed_init_can_be_repeated() {
    for delay in [5, 20, 40, 80, 160] {
        let shop = Workshop::empty();
        let mut child = shop
            .init_command(&[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
        if !shop.repo().join("metadata").exists() {
            shop.init(&[]).expect(0);
        }
        shop.verify().expect(0);
    }
}

#[test]
fn several_writers_take_turns_and_lose_nothing() {
    let shop = Workshop::new();
    let image = shop.file("image", b"one image for all");
    let children: Vec<_> = (0..4)
        .map(|at| {
            let version = format!("1.{at}.0");
            let options = [
                "--product",
                "router",
                "--hardware",
                "a",
                "--version",
                &version,
                "--image",
                text(&image),
            ];
            let mut command = shop.command_with_keys(&["release", "add"], &options);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        Run::from(child.wait_with_output().unwrap()).expect(0);
    }
    let mut sequences: Vec<_> = (0..4)
        .map(|at| shop.manifest(&format!("1.{at}.0"))["sequence"].as_u64().unwrap())
        .collect();
    sequences.sort_unstable();
    assert_eq!(sequences, [1, 2, 3, 4]);
    shop.verify().expect(0);
}

#[test]
fn a_writer_that_does_not_end_is_not_waited_for_for_ever() {
    let shop = Workshop::new();
    let before = tree(&shop.repo());
    let lock = fwdurable::Lock::try_exclusive(&shop.repo().join(".lock"))
        .unwrap()
        .unwrap();
    shop.refresh().expect_error(3, "is being written by another process");
    // Readers do not care.
    shop.verify().expect(0);
    assert_eq!(tree(&shop.repo()), before);
    drop(lock);
    shop.refresh().expect(0);
}

#[test]
fn a_full_or_read_only_directory_leaves_the_repository_as_it_was() {
    let shop = Workshop::new();
    let before = tree(&shop.repo());
    // A file where a directory must be made: the commit fails at its first target.
    let obstacle = shop.file("repo/targets", b"in the way");
    shop.release("1.0.0", &[]).expect(3);
    assert_eq!(
        fs::read(shop.metadata("timestamp.json")).unwrap(),
        before["metadata/timestamp.json"]
    );
    fs::remove_file(obstacle).unwrap();
    assert_eq!(tree(&shop.repo()), before);
    shop.release("1.0.0", &[]).expect(0);
    shop.verify().expect(0);
}
