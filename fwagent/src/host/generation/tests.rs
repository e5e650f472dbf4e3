#![allow(clippy::unwrap_used)]
use std::fs;

use super::*;

fn store(dir: &Path) -> GenerationStore {
    GenerationStore::provision(dir, b"factory").unwrap();
    GenerationStore::open(dir).unwrap()
}

fn put(store: &mut GenerationStore, timestamp: &[u8], root: Option<&[u8]>) {
    if let Some(root) = root {
        store.store(&RoleName::root(), root).unwrap();
    }
    store.store(&RoleName::timestamp(), timestamp).unwrap();
}

fn timestamp(store: &mut GenerationStore) -> Option<Vec<u8>> {
    store.load(&RoleName::timestamp()).unwrap()
}

fn damage(dir: &Path, bytes: &[u8]) {
    let path = object_path(dir, &hex::encode(&Sha256::digest(bytes)));
    assert!(path.exists());
    fs::write(path, b"rotten").unwrap();
}

#[test]
fn staged_metadata_are_seen_at_once_and_kept_only_by_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = store(dir.path());
    assert_eq!(first.factory_root().unwrap(), b"factory");
    assert_eq!(timestamp(&mut first), None);
    put(&mut first, b"one", Some(b"root 2"));
    assert_eq!(timestamp(&mut first).unwrap(), b"one");
    assert_eq!(
        timestamp(&mut store(dir.path())),
        None,
        "nothing is kept before the commit"
    );
    first.commit().unwrap();
    let mut second = store(dir.path());
    assert_eq!(timestamp(&mut second).unwrap(), b"one");
    assert_eq!(second.root_history().unwrap(), [b"root 2"]);
    put(&mut second, b"two", Some(b"root 3"));
    second.discard();
    assert_eq!(timestamp(&mut second).unwrap(), b"one");
    second.remove(&RoleName::timestamp()).unwrap();
    second.commit().unwrap();
    assert_eq!(timestamp(&mut store(dir.path())), None);
}

#[test]
fn a_damaged_generation_gives_way_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut store_ = store(dir.path());
    put(&mut store_, b"one", Some(b"root 2"));
    store_.commit().unwrap();
    put(&mut store_, b"two", Some(b"root 3"));
    store_.commit().unwrap();
    assert_eq!(store(dir.path()).root_history().unwrap(), [b"root 2", b"root 3"]);
    damage(dir.path(), b"two");
    let mut fallen = store(dir.path());
    assert_eq!(
        (timestamp(&mut fallen).unwrap(), fallen.damaged()),
        (b"one".to_vec(), 1)
    );
    assert_eq!(fallen.root_history().unwrap(), [b"root 2"]);
    damage(dir.path(), b"root 2");
    let mut lost = store(dir.path());
    assert_eq!((timestamp(&mut lost), lost.damaged()), (None, 2));
    assert_eq!(lost.factory_root().unwrap(), b"factory");
}

#[test]
fn a_record_that_cannot_be_read_is_a_new_beginning() {
    for damaged in [&b"torn"[..], b""] {
        let dir = tempfile::tempdir().unwrap();
        let mut first = store(dir.path());
        put(&mut first, b"one", Some(b"root 2"));
        first.commit().unwrap();
        fs::write(dir.path().join("generation.a"), damaged).unwrap();
        let mut mended = store(dir.path());
        assert_eq!(
            (timestamp(&mut mended).unwrap(), mended.damaged()),
            (b"one".to_vec(), 0)
        );
        for copy in ["generation.a", "generation.b"] {
            fs::write(dir.path().join(copy), damaged).unwrap();
        }
        let mut lost = store(dir.path());
        assert_eq!((timestamp(&mut lost), lost.damaged()), (None, 1));
        put(&mut lost, b"two", None);
        lost.commit().unwrap();
        let mut next = store(dir.path());
        assert_eq!((timestamp(&mut next).unwrap(), next.damaged()), (b"two".to_vec(), 0));
    }
}

#[test]
fn objects_of_older_generations_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(dir.path());
    for timestamp in [b"one", b"two", b"six"] {
        put(&mut store, timestamp, None);
        store.stage_etag(Some("\"tag\""));
        store.commit().unwrap();
    }
    let names = fs::read_dir(dir.path().join("objects")).unwrap().count();
    assert_eq!(names, 2);
    let known = store.known_timestamp().unwrap();
    assert_eq!((known.etag.as_str(), known.bytes), ("\"tag\"", b"six".to_vec()));
}

#[test]
fn the_factory_root_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    GenerationStore::provision(dir.path(), b"factory").unwrap();
    assert!(GenerationStore::provision(dir.path(), b"other").is_err());
    assert_eq!(store(dir.path()).factory_root().unwrap(), b"factory");
}

#[test]
fn records_are_read_strictly() {
    let generation = Generation {
        roots: vec!["00".repeat(32)],
        roles: BTreeMap::from([("timestamp".to_owned(), "11".repeat(32))]),
        etag: None,
    };
    assert_eq!(decode(&encode(&[&generation])), Some(vec![generation]));
    for bytes in [
        &b""[..],
        b"{}",
        b"{\"schema\":2,\"generations\":[]}",
        b"{\"schema\":1,\"generations\":[{\"roots\":[\"../x\"],\"roles\":{},\"etag\":null}]}",
    ] {
        assert_eq!(decode(bytes), None);
    }
}
