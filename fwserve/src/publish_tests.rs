#![allow(clippy::unwrap_used)]

use fwmeta::time::UtcSeconds;

use super::*;
use crate::candidate::CandidateError;

#[path = "../tests/support/mod.rs"]
mod support;
use support::{Files, Vendor, visible, write};

fn now() -> UtcSeconds {
    UtcSeconds::parse("2030-01-01T00:00:00Z").unwrap()
}

fn open(dir: &Path) -> Publisher {
    let config = PublishConfig {
        token_file: PathBuf::new(),
        trusted_root: None,
        max_object: 1 << 20,
        allow_plain_http: false,
    };
    Publisher::open(Arc::new(Repository::new(dir, 60)), &config).unwrap()
}

/// Uploads the files and makes the request for them.
fn offer(publisher: &Publisher, files: &Files) -> PublishRequest {
    for bytes in files.values() {
        let length = bytes.len() as u64;
        if let Some(mut upload) = publisher.uploads().resume(&sha256(bytes), 0, length).unwrap() {
            upload.write(bytes).unwrap();
            upload.finish().unwrap();
        }
    }
    PublishRequest {
        base: publisher.timestamp().unwrap().map(|bytes| sha256(&bytes)),
        files: files
            .iter()
            .map(|(name, bytes)| (name.clone(), sha256(bytes)))
            .collect(),
    }
}

/// A directory with one release, and a second release that also rotates the online key.
fn prepared() -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    let mut vendor = Vendor::new();
    let mut first = vendor.release("p/1/f", b"one");
    first.insert("metadata/1.root.json".to_owned(), vendor.root());
    write(dir.path(), &first);
    let (name, root) = vendor.rotate(9);
    let mut second = vendor.release("p/2/f", b"two");
    second.insert(name, root);
    (dir, second)
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_repository() {
    let (dir, second) = prepared();
    let publisher = open(dir.path());
    let request = offer(&publisher, &second);
    let mut steps = Vec::new();
    let journal = Journal {
        base: request.base.clone(),
        files: request.files.clone(),
    };
    publisher
        .switch()
        .to(&journal, &mut |step| {
            steps.push(step.to_owned());
            Ok(())
        })
        .unwrap();
    let new = visible(dir.path());
    assert_eq!(steps.len(), 7, "{steps:?}");
    assert_eq!(steps[0], "journal");
    assert!(steps[1].starts_with("targets/"), "{steps:?}");
    assert_eq!(steps[4..], ["metadata/2.root.json", TIMESTAMP, "remove journal"]);
    for (cut, next_step) in steps.iter().enumerate() {
        let (dir, second) = prepared();
        let old = visible(dir.path());
        let publisher = open(dir.path());
        let request = offer(&publisher, &second);
        let mut count = 0;
        let stopped = publisher.switch().to(&journal, &mut |_| {
            count += 1;
            if count > cut { Err(PublishError::Busy) } else { Ok(()) }
        });
        assert!(stopped.is_err());
        drop(publisher);
        // The next start.
        let publisher = open(dir.path());
        let after = visible(dir.path());
        assert_eq!(
            after,
            if cut == 0 { old } else { new.clone() },
            "cut before {}",
            next_step
        );
        if cut == 0 {
            publisher.publish(&request, now()).unwrap();
            assert_eq!(visible(dir.path()), new);
        }
        assert!(!publisher.switch().journal().exists());
    }
}

/// A switch that stopped before its `cut`th step.
fn interrupted(publisher: &Publisher, files: &Files, cut: usize) {
    let request = offer(publisher, files);
    let journal = Journal {
        base: request.base,
        files: request.files,
    };
    let mut count = 0;
    let stopped = publisher.switch().to(&journal, &mut |_| {
        count += 1;
        if count > cut { Err(PublishError::Busy) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(PublishError::Busy)), "{stopped:?}");
}

#[test]
fn an_interrupted_switch_is_completed_however_late_and_then_swept() {
    let (dir, second) = prepared();
    let publisher = open(dir.path());
    interrupted(&publisher, &second, 2);
    let uploads = publisher.uploads().dir().to_owned();
    drop(publisher);
    let long_ago = SystemTime::now() - Duration::from_secs(365 * 24 * 3600);
    let age = |path: &Path| {
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap()
    };
    for entry in fs::read_dir(&uploads).unwrap() {
        age(&entry.unwrap().path());
    }
    let abandoned = uploads.join(format!("{}.part", "ab".repeat(32)));
    fs::write(&abandoned, "x").unwrap();
    age(&abandoned);
    let torn = [
        dir.path().join("metadata/.timestamp.json.tmp-1-1"),
        uploads.join(".journal.json.tmp-1-1"),
    ];
    for path in &torn {
        fs::write(path, "torn").unwrap();
    }
    drop(open(dir.path()));
    for (name, bytes) in &second {
        assert_eq!(&visible(dir.path())[name], bytes, "{name}");
    }
    assert!(torn.iter().all(|path| !path.exists()));
    assert_eq!(fs::read_dir(&uploads).unwrap().count(), 0);
}

#[test]
fn a_switch_that_cannot_be_completed_says_which_file_stands_in_its_way() {
    let (dir, second) = prepared();
    let publisher = open(dir.path());
    interrupted(&publisher, &second, 1);
    drop(publisher);
    let name = second.keys().find(|name| name.ends_with(".snapshot.json")).unwrap();
    fs::write(dir.path().join(name), "another").unwrap();
    let config = PublishConfig {
        token_file: PathBuf::new(),
        trusted_root: None,
        max_object: 1 << 20,
        allow_plain_http: false,
    };
    let error = Publisher::open(Arc::new(Repository::new(dir.path(), 60)), &config).unwrap_err();
    assert!(
        matches!(&error, PublishError::Interrupted { name: found, published, .. }
            if found == name && *published == sha256(b"another")),
        "{error:?}"
    );
    // What its message advises.
    fwdurable::write_file(&dir.path().join(TIMESTAMP), b"newer").unwrap();
    open(dir.path());
}

#[test]
fn a_journal_is_dropped_when_somebody_else_has_published() {
    let (dir, second) = prepared();
    let publisher = open(dir.path());
    interrupted(&publisher, &second, 1);
    drop(publisher);
    fwdurable::write_file(&dir.path().join(TIMESTAMP), b"another").unwrap();
    let before = visible(dir.path());
    let publisher = open(dir.path());
    assert_eq!(visible(dir.path()), before);
    assert!(!publisher.switch().journal().exists());
}

#[test]
fn what_devices_refuse_is_refused_and_changes_nothing() {
    type Spoil = fn(&mut Vendor) -> Files;
    let table: [(&str, Spoil, &str); 7] = [
        (
            "expired",
            |vendor| {
                vendor.expires = UtcSeconds::parse("2029-01-01T00:00:00Z").unwrap();
                vendor.release("p/2/f", b"two")
            },
            "devices would refuse it: timestamp metadata refused: expired at 2029-01-01T00:00:00Z, reference time is 2030-01-01T00:00:00Z",
        ),
        (
            "rollback",
            |vendor| {
                vendor.version -= 2;
                vendor.release("p/2/f", b"two")
            },
            "devices would refuse it: timestamp metadata refused: version 2 is older than trusted version 3",
        ),
        (
            "same version",
            |vendor| {
                vendor.version -= 1;
                vendor.expires = vendor.expires.plus_seconds(1);
                let mut files = vendor.metadata();
                files.retain(|name, _| name == TIMESTAMP);
                files
            },
            "timestamp version 3 is published with other contents",
        ),
        (
            "wrong key",
            |vendor| {
                vendor.rotate(7);
                vendor.release("p/2/f", b"two")
            },
            "devices would refuse it: timestamp metadata refused: keys of root: ",
        ),
        (
            "missing target",
            |vendor| {
                let mut files = vendor.release("p/2/f", b"two");
                files.retain(|name, _| !name.starts_with("targets/"));
                files
            },
            "target p/2/f of targets is missing: no targets/p/2/",
        ),
        (
            "missing snapshot",
            |vendor| {
                let mut files = vendor.release("p/2/f", b"two");
                files.retain(|name, _| !name.contains("snapshot"));
                files
            },
            "devices would refuse it: the repository has no ",
        ),
        (
            "other contents",
            |vendor| {
                let mut files = vendor.release("p/2/f", b"two");
                for (name, bytes) in &mut files {
                    if name.starts_with("targets/") {
                        *bytes = b"owt".to_vec();
                    }
                }
                files
            },
            "target p/2/f of targets: sha256 is ",
        ),
    ];
    for (what, spoil, reason) in table {
        let dir = tempfile::tempdir().unwrap();
        let mut vendor = Vendor::new();
        vendor.version = 2;
        let mut first = vendor.release("p/1/f", b"one");
        first.insert("metadata/1.root.json".to_owned(), vendor.root());
        write(dir.path(), &first);
        let before = visible(dir.path());
        let publisher = open(dir.path());
        let request = offer(&publisher, &spoil(&mut vendor));
        let error = publisher.publish(&request, now()).unwrap_err();
        let text = crate::failure::chain(&error);
        assert!(text.starts_with(reason), "{what}: {text}");
        assert!(
            matches!(&error, PublishError::Candidate(candidate) if candidate.is_refusal()),
            "{what}: {error:?}"
        );
        assert_eq!(visible(dir.path()), before, "{what}");
    }
    // The positive control: the same steps with nothing spoiled.
    let (dir, second) = prepared();
    let publisher = open(dir.path());
    let published = publisher.publish(&offer(&publisher, &second), now()).unwrap();
    assert_eq!((published.version, published.ignored), (2, vec![]));
    assert_eq!(published.sha256, sha256(&second[TIMESTAMP]));
    for (name, bytes) in &second {
        assert_eq!(&visible(dir.path())[name], bytes, "{name}");
    }
}

#[test]
fn files_that_do_not_belong_are_left_out_and_taken_names_conflict() {
    let (dir, mut second) = prepared();
    let publisher = open(dir.path());
    second.insert("metadata/99.root.json".to_owned(), b"bogus".to_vec());
    let published = publisher.publish(&offer(&publisher, &second), now()).unwrap();
    assert_eq!(published.ignored, ["metadata/99.root.json"]);
    assert!(!dir.path().join("metadata/99.root.json").exists());
    let before = visible(dir.path());
    let other: Files = [("metadata/2.targets.json".to_owned(), b"other".to_vec())].into();
    let error = publisher.publish(&offer(&publisher, &other), now()).unwrap_err();
    assert!(matches!(error, PublishError::Taken { .. }), "{error:?}");
    let mut stale = offer(&publisher, &Files::new());
    stale.base = None;
    assert!(matches!(
        publisher.publish(&stale, now()),
        Err(PublishError::Stale { .. })
    ));
    assert_eq!(visible(dir.path()), before);
}

#[test]
fn the_first_publication_needs_a_trusted_root() {
    let dir = tempfile::tempdir().unwrap();
    let mut vendor = Vendor::new();
    let root = vendor.root();
    let mut first = vendor.release("p/1/f", b"one");
    first.insert("metadata/1.root.json".to_owned(), root.clone());
    let publisher = open(dir.path());
    let error = publisher.publish(&offer(&publisher, &first), now()).unwrap_err();
    assert!(
        matches!(&error, PublishError::Candidate(candidate) if matches!(**candidate, CandidateError::NoTrustedRoot)),
        "{error:?}"
    );
    assert_eq!(visible(dir.path()), Files::new());
    drop(publisher);
    let path = dir.path().join("trusted.json");
    fs::write(&path, root).unwrap();
    let config = PublishConfig {
        token_file: PathBuf::new(),
        trusted_root: Some(path),
        max_object: 1 << 20,
        allow_plain_http: false,
    };
    let publisher = Publisher::open(Arc::new(Repository::new(dir.path(), 60)), &config).unwrap();
    publisher.publish(&offer(&publisher, &first), now()).unwrap();
    assert_eq!(visible(dir.path()), first);
}

#[test]
fn requests_are_read_strictly() {
    let digest = "ab".repeat(32);
    let good = format!(r#"{{"base":null,"files":{{"metadata/1.root.json":"{digest}"}}}}"#);
    assert_eq!(PublishRequest::parse(good.as_bytes()).unwrap().files.len(), 1);
    for bad in [
        String::new(),
        "[]".to_owned(),
        r#"{"files":{}}"#.to_owned(),
        r#"{"base":"x","files":{}}"#.to_owned(),
        r#"{"base":null,"files":[]}"#.to_owned(),
        r#"{"base":null,"files":{"metadata/1.root.json":"x"}}"#.to_owned(),
        good.replace("1.root", "root"),
        good.replace("metadata/1.root.json", "metadata/../1.root.json"),
        good.replace("metadata/1.root.json", "targets/../x"),
        good.replace("metadata/1.root.json", "targets/p/f"),
        good.replace("metadata/1.root.json", ".lock"),
    ] {
        let error = PublishRequest::parse(bad.as_bytes());
        assert!(matches!(error, Err(PublishError::Malformed(_))), "{bad}");
    }
}
