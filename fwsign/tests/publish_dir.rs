//! `publish --dir`: a copy that is never half, and that devices which follow it accept.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::{Run, Workshop, command, copy_tree, fwsign, signed, text, tree};

fn verify(dir: &Path) -> Run {
    fwsign(["verify", text(dir)])
}

#[test]
fn publishing_brings_what_the_timestamp_leads_to_and_skips_what_is_there() {
    let shop = Workshop::new();
    shop.release("1.0.0", &[]).expect(0);
    // Nothing leads to these.
    shop.file("repo/metadata/9.router.json", b"of a crashed writer");
    shop.file("repo/targets/router/0.1.0/x", b"of a crashed writer");
    let public = shop.path("public/updates");
    let dry = shop.publish_to(&public, &["--dry-run"]).expect(0);
    assert!(
        dry.stdout.starts_with("would publish timestamp version 2"),
        "{}",
        dry.stdout
    );
    assert!(!public.exists(), "a dry run makes nothing");
    shop.publish_to(&public, &[]).expect(0);
    verify(&public).expect(0);
    let expected = [
        "metadata/1.root.json",
        "metadata/1.targets.json",
        "metadata/2.router.json",
        "metadata/2.snapshot.json",
        "metadata/timestamp.json",
    ];
    let names = |dir: &Path| -> Vec<String> { tree(dir).into_keys().filter(|name| !name.ends_with('/')).collect() };
    let metadata: Vec<_> = names(&public)
        .into_iter()
        .filter(|name| name.starts_with("metadata"))
        .collect();
    assert_eq!(metadata, expected);
    assert_eq!(
        names(&public).len(),
        expected.len() + 4,
        "manifest and payload, each under two names"
    );
    let before = tree(&public);
    shop.publish_to(&public, &[]).expect_error(4, "already");
    assert_eq!(tree(&public), before);

    shop.release("1.1.0", &[]).expect(0);
    let mut publish = command();
    publish
        .arg("--json")
        .arg("publish")
        .arg(shop.repo())
        .arg("--dir")
        .arg(&public);
    let json = Run::from(publish.output().unwrap()).expect(0).json();
    // Two targets, router, snapshot, timestamp.
    assert_eq!((&json["files"], &json["timestamp_version"]), (&5.into(), &3.into()));
    assert_eq!(json["written"], true);
    verify(&public).expect(0);
    // History stays for whoever is in the middle of it.
    assert!(public.join("metadata/2.snapshot.json").exists());
}

#[test]
fn rollback_freeze_and_forks_are_refused() {
    let shop = Workshop::new();
    let old = shop.copy("old");
    let public = shop.path("public");
    shop.release("1.0.0", &[]).expect(0);
    shop.publish_to(&public, &[]).expect(0);
    let before = tree(&public);
    let publish = |repo: &Path| fwsign(["publish", text(repo), "--dir", text(&public)]);
    publish(&old).expect_error(1, "version 1 is older than trusted version 2");
    // Another continuation of the same past: equal versions, other contents.
    let image = shop.file("fork", b"another image");
    let mut fork = command();
    fork.args(["release", "add"])
        .arg(&old)
        .args(["--product", "router", "--version", "1.0.0", "--hardware", "x"]);
    for key in ["s", "ts", "p"] {
        fork.arg("--key").arg(shop.key(key));
    }
    Run::from(fork.arg("--image").arg(image).output().unwrap()).expect(0);
    publish(&old).expect_error(1, "published files never change");
    // A timestamp of the same version and another snapshot time: devices would silently ignore it.
    let again = shop.copy("again");
    fs::copy(
        shop.path("repo/metadata/timestamp.json"),
        again.join("metadata/timestamp.json"),
    )
    .unwrap();
    shop.refresh().expect(0);
    let mut refresh = command();
    refresh
        .arg("refresh")
        .arg(&again)
        .args(["--timestamp-days", "3", "--within-days", "8", "--key"])
        .arg(shop.key("ts"));
    Run::from(refresh.output().unwrap()).expect(0);
    assert_eq!(tree(&public), before);
    publish(&again).expect(0);
    let before = tree(&public);
    shop.publish_to(&public, &[])
        .expect_error(1, "timestamp version 3 is published with other contents");
    // Ahead by numbers, but without the release: a device could not tell.
    for _ in 0..2 {
        let mut refresh = command();
        refresh.arg("refresh").arg(&old).args(["--role", "router"]);
        for key in ["s", "ts", "p"] {
            refresh.arg("--key").arg(shop.key(key));
        }
        Run::from(refresh.output().unwrap()).expect(0);
    }
    publish(&old).expect_error(1, "its 2.snapshot.json differs from this repository");
    assert_eq!(tree(&public), before);
    let copy = shop.path("forked");
    copy_tree(&public, &copy);
    fwsign(["publish", text(&old), "--dir", text(&copy), "--allow-fork"]).expect(0);
    verify(&copy).expect(0);
    // Another vendor altogether.
    let foreign = Workshop::empty();
    foreign.init(&["--root-days", "17"]).expect(0);
    publish(&foreign.repo()).expect(1);
    assert_eq!(tree(&public), before);
    verify(&public).expect(0);
}

#[test]
fn what_is_expired_or_damaged_is_not_published() {
    let shop = Workshop::new();
    shop.release("1.0.0", &[]).expect(0);
    let public = shop.path("public");
    let damaged = shop.copy("damaged");
    let payload = shop.payload("1.0.0");
    let payload = damaged.join(payload.strip_prefix(shop.repo()).unwrap());
    let mut bytes = fs::read(&payload).unwrap();
    bytes[20] ^= 1;
    fs::write(&payload, &bytes).unwrap();
    fwsign(["publish", text(&damaged), "--dir", text(&public)]).expect_error(1, "main.img.zst");
    fs::remove_file(&payload).unwrap();
    fwsign(["publish", text(&damaged), "--dir", text(&public)]).expect_error(1, "main.img.zst");
    let old = Workshop::empty();
    let init: Run = old
        .init_command(&[])
        .env("SOURCE_DATE_EPOCH", "1000000000")
        .output()
        .unwrap()
        .into();
    init.expect(0);
    old.publish_to(&public, &[]).expect_error(1, "expired");
    let left = tree(&public);
    assert!(left.keys().all(|name| name == "/"), "{left:?}");
    shop.publish_to(&public, &[]).expect(0);
    fwsign(["publish", text(&shop.path("none")), "--dir", text(&public)]).expect_error(3, "none");
    fwsign(["publish", text(&shop.repo()), "--dir", text(&shop.repo())]).expect_error(2, "is the repository itself");
    fwsign(["publish", text(&shop.repo())]).expect(2);
    fwsign([
        "publish",
        text(&shop.repo()),
        "--dir",
        "x",
        "--server",
        "y",
        "--token-file",
        "z",
    ])
    .expect(2);
    verify(&public).expect(0);
}

#[test]
fn a_destination_that_does_not_verify_is_left_alone() {
    let shop = Workshop::new();
    let public = shop.path("public");
    shop.publish_to(&public, &[]).expect(0);
    shop.release("1.0.0", &[]).expect(0);
    let snapshot = public.join("metadata/1.snapshot.json");
    let good = fs::read(&snapshot).unwrap();
    fs::write(&snapshot, b"{}").unwrap();
    let before = tree(&public);
    shop.publish_to(&public, &[])
        .expect_error(3, "nobody can say what devices trust");
    assert_eq!(tree(&public), before);
    fs::write(&snapshot, good).unwrap();
    // A published file that must not change.
    let taken = public.join("metadata/2.snapshot.json");
    fs::write(&taken, b"something else").unwrap();
    let before = tree(&public);
    shop.publish_to(&public, &[])
        .expect_error(1, "published files never change");
    assert_eq!(tree(&public), before);
    fs::remove_file(taken).unwrap();
    shop.publish_to(&public, &[]).expect(0);
    // A target that was lost is brought again, one of another length is a conflict.
    let payload = public.join(shop.payload("1.0.0").strip_prefix(shop.repo()).unwrap());
    fs::remove_file(&payload).unwrap();
    shop.publish_to(&public, &[]).expect(0);
    verify(&public).expect(0);
    fs::write(&payload, b"short").unwrap();
    shop.publish_to(&public, &[]).expect_error(1, "5 bytes");
}

#[test]
fn leftovers_and_kills_leave_the_old_version_or_the_new_one() {
    let shop = Workshop::new();
    let public = shop.path("public");
    shop.publish_to(&public, &[]).expect(0);
    let base = shop.copy("unused");
    fs::remove_dir_all(base).unwrap();
    let noise: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let image = shop.file("big", &noise);
    shop.with_keys(
        &["release", "add"],
        &[
            "--product",
            "router",
            "--version",
            "1.0.0",
            "--hardware",
            "a",
            "--level",
            "1",
            "--image",
            text(&image),
        ],
    )
    .expect(0);
    let before = tree(&public);
    let (mut killed, mut switched) = (0, 0);
    for delay in (0..20).map(|step| step * 30) {
        let copy = shop.path(&format!("public-{delay}"));
        copy_tree(&public, &copy);
        fs::create_dir_all(copy.join(".staging/metadata")).unwrap();
        fs::write(copy.join(".staging/metadata/timestamp.json"), "half").unwrap();
        let mut publish = command();
        publish
            .arg("publish")
            .arg(shop.repo())
            .arg("--dir")
            .arg(&copy)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = publish.spawn().unwrap();
        // The last one is let go.
        if delay < 570 {
            std::thread::sleep(Duration::from_millis(delay));
            let _ = child.kill();
        }
        killed += u32::from(!child.wait().unwrap().success());
        verify(&copy).expect(0);
        let new = signed(&copy.join("metadata/timestamp.json"))["version"] == 2;
        if !new {
            assert_eq!(
                fs::read(copy.join("metadata/timestamp.json")).unwrap(),
                before["metadata/timestamp.json"]
            );
            shop.publish_to(&copy, &[]).expect(0);
        }
        switched += u32::from(new);
        verify(&copy).expect(0);
        assert!(!copy.join(".staging").exists() || new);
        fs::remove_dir_all(copy).unwrap();
    }
    assert!(killed > 0 && switched > 0, "killed {killed}, switched {switched}");
}

#[test]
fn two_publishers_of_one_directory_take_turns() {
    let shop = Workshop::new();
    let public = shop.path("public");
    shop.publish_to(&public, &[]).expect(0);
    let old = shop.copy("old");
    shop.release("1.0.0", &[]).expect(0);
    let first = shop.copy("first");
    let mut refresh = command();
    refresh
        .arg("refresh")
        .arg(&old)
        .arg("--key")
        .arg(shop.key("s"))
        .arg("--key")
        .arg(shop.key("ts"));
    Run::from(refresh.output().unwrap()).expect(0);
    // Both continue version 1 with a version 2.
    let children = [&first, &old].map(|repo| {
        let mut publish = command();
        publish
            .arg("publish")
            .arg(repo)
            .arg("--dir")
            .arg(&public)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        publish.spawn().unwrap()
    });
    let mut codes = children.map(|child| Run::from(child.wait_with_output().unwrap()).code);
    codes.sort_unstable();
    assert_eq!(codes, [0, 1], "one wins and the other is told");
    verify(&public).expect(0);
    let lock = fwdurable::Lock::try_exclusive(&public.join(".lock")).unwrap().unwrap();
    shop.publish_to(&public, &[])
        .expect_error(3, "is being written by another process");
    drop(lock);
}
