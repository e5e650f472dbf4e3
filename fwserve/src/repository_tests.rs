#![allow(clippy::unwrap_used)]

use super::*;
use std::fs;

fn load(repository: &Repository, name: &str) -> Option<Arc<Object>> {
    match repository.load(name, Effort::Any).unwrap() {
        Found::Object(object) => Some(object),
        Found::Nothing => None,
        Found::Unread => panic!("{name} was worth any effort"),
    }
}

#[test]
fn nothing_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let targets = dir.path().join("targets");
    fs::create_dir_all(targets.join("d")).unwrap();
    fs::write(targets.join("d/f"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), targets.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), targets.join("dirlink")).unwrap();
    let repository = Repository::new(dir.path(), 1);
    assert!(load(&repository, "targets/d/f").is_some());
    for name in [
        "targets/link",
        "targets/dirlink/secret",
        "targets/d",
        "targets/../x",
        "targets/no",
        "targets/d/f/g",
    ] {
        assert!(load(&repository, name).is_none(), "{name}");
    }
}

#[test]
fn a_changed_file_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("metadata")).unwrap();
    let path = dir.path().join("metadata/timestamp.json");
    let text = |object: &Object| match &object.content {
        Content::Memory { identity, .. } => identity.clone(),
        Content::File(_) => panic!("small metadata are kept in memory"),
    };
    let repository = Repository::new(dir.path(), 1);
    let name = "metadata/timestamp.json";
    assert!(load(&repository, name).is_none());
    fwdurable::write_file(&path, b"one").unwrap();
    assert_eq!(text(&load(&repository, name).unwrap()), "one");
    assert_eq!(text(&repository.cached(name).unwrap()), "one");
    fwdurable::write_file(&path, b"two").unwrap();
    assert!(repository.cached(name).is_none());
    assert_eq!(text(&load(&repository, name).unwrap()), "two");
    assert_eq!(text(&repository.cached(name).unwrap()), "two");
    fs::remove_file(&path).unwrap();
    assert!(repository.cached(name).is_none());
}

#[test]
fn memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("metadata")).unwrap();
    let mut repository = Repository::new(dir.path(), 1);
    repository.cache_bytes = 1 << 20;
    // Zeros compress to nearly nothing, so that weight is length.
    for version in 1..=18 {
        let name = format!("metadata/{version}.x.json");
        fs::write(dir.path().join(&name), vec![0; 1 << 16]).unwrap();
        load(&repository, &name).unwrap();
    }
    let total: u64 = repository
        .cache
        .read()
        .unwrap()
        .values()
        .map(|object| object.weight)
        .sum();
    assert!(total <= repository.cache_bytes, "{total}");
    assert!(repository.cached("metadata/18.x.json").is_some());
    assert!(repository.cached("metadata/1.x.json").is_none());
}

#[test]
fn much_work_is_done_once_and_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let targets = dir.path().join("targets");
    fs::create_dir(&targets).unwrap();
    let bytes = vec![7; usize::try_from(LITTLE).unwrap() + 1];
    let names = [
        format!("targets/{}.f", hex::encode(&Sha256::digest(&bytes))),
        format!("targets/{}.f", hex::encode(&Sha512::digest(&bytes))),
    ];
    for name in &names {
        fs::write(dir.path().join(name), &bytes).unwrap();
    }
    let repository = Repository::new(dir.path(), 1);
    for name in &names {
        assert!(matches!(repository.load(name, Effort::Little).unwrap(), Found::Unread));
        assert!(load(&repository, name).is_some());
        assert!(matches!(
            repository.load(name, Effort::Little).unwrap(),
            Found::Object(_)
        ));
    }
    // What was verified before it came here is known.
    let linked = "targets/linked";
    fs::write(dir.path().join(linked), &bytes).unwrap();
    repository.learn(linked, &hex::encode(&Sha256::digest(&bytes))).unwrap();
    assert!(matches!(
        repository.load(linked, Effort::Little).unwrap(),
        Found::Object(_)
    ));
}
