//! Rollback of each role, and recovery from versions that a thief drove up.

use crate::harness::Case;

#[test]
fn an_older_snapshot_without_a_timestamp_for_it_is_never_fetched() {
    let case = Case::new();
    case.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.repo().snapshot.version = 1;
    case.repo().publish_as_is("snapshot");
    assert_eq!(case.refresh(), 0);
    assert_eq!(case.requests().last().unwrap(), "timestamp.json");
    case.assert_trusted(&[("root", 1), ("snapshot", 2), ("targets", 1), ("timestamp", 2)]);
}

#[test]
fn timestamp() {
    let case = Case::new();
    case.repo().publish(&["timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.repo().timestamp.version = 1;
    case.repo().publish_as_is("timestamp");
    assert_eq!(case.refresh(), 1);
    assert_eq!(case.requests().last().unwrap(), "timestamp.json");
    case.assert_trusted(&[("root", 1), ("snapshot", 1), ("targets", 1), ("timestamp", 2)]);
}

#[test]
fn snapshot() {
    for announce_hashes in [false, true] {
        let case = Case::new();
        case.repo().announce_hashes = announce_hashes;
        case.repo().publish(&["snapshot", "timestamp"]);
        assert_eq!(case.refresh(), 0);
        case.repo().snapshot.version = 1;
        case.repo().publish_as_is("snapshot");
        case.repo().publish(&["timestamp"]);
        assert_eq!(case.refresh(), 1);
        assert_eq!(case.requests().last().unwrap(), "timestamp.json");
        case.assert_trusted(&[("root", 1), ("snapshot", 2), ("targets", 1), ("timestamp", 2)]);
    }
}

#[test]
fn targets() {
    for announce_hashes in [false, true] {
        let case = Case::new();
        case.repo().announce_hashes = announce_hashes;
        case.repo().publish(&["targets", "snapshot", "timestamp"]);
        assert_eq!(case.refresh(), 0);
        case.repo().targets.get_mut("targets").unwrap().version = 1;
        case.repo().publish_as_is("targets");
        case.repo().publish(&["snapshot", "timestamp"]);
        assert_eq!(case.refresh(), 1);
        case.assert_trusted(&[("root", 1), ("snapshot", 2), ("targets", 2), ("timestamp", 3)]);
    }
}

#[test]
fn a_snapshot_of_another_version_than_announced() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        repo.snapshot.version = 2;
        let bytes = repo.sign("snapshot");
        *repo.served("snapshot", 1) = bytes;
    }
    assert_eq!(case.refresh(), 1);
    assert_eq!(case.requests().last().unwrap(), "1.snapshot.json");
    case.assert_trusted(&[("root", 1), ("timestamp", 1)]);
}

#[test]
fn recovery_of_timestamp_by_new_timestamp_keys() {
    let case = Case::new();
    case.repo().timestamp.version = 99_999;
    case.repo().publish_as_is("timestamp");
    assert_eq!(case.refresh(), 0);
    case.repo().rotate("timestamp");
    case.repo().timestamp.version = 1;
    case.repo().publish(&["root", "snapshot"]);
    case.repo().publish_as_is("timestamp");
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 2), ("snapshot", 2), ("targets", 1), ("timestamp", 1)]);
}

#[test]
fn recovery_of_snapshot_by_new_snapshot_and_timestamp_keys() {
    let case = Case::new();
    case.repo().snapshot.version = 99_999;
    case.repo().publish_as_is("snapshot");
    case.repo().publish(&["timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.repo().rotate("snapshot");
    case.repo().rotate("timestamp");
    case.repo().snapshot.version = 1;
    case.repo().publish(&["root"]);
    case.repo().publish_as_is("snapshot");
    case.repo().publish(&["timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 2), ("snapshot", 1), ("targets", 1), ("timestamp", 3)]);
}

#[test]
fn recovery_of_targets_by_new_snapshot_keys() {
    let case = Case::new();
    case.repo().role("targets").version = 99_999;
    case.repo().publish_as_is("targets");
    case.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.repo().rotate("snapshot");
    case.repo().role("targets").version = 1;
    case.repo().publish(&["root"]);
    case.repo().publish_as_is("targets");
    case.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 2), ("snapshot", 3), ("targets", 1), ("timestamp", 3)]);
}
