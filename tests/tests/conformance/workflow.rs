//! Basic behaviour: what is asked for, what becomes trusted, exit codes.

use fwmeta::json::Value;
use fwmeta::role::MetaFile;
use fwtests::repo_sim::{Lie, RepoSim, TestKey};

use crate::harness::{Case, in_days, tuf};

const FIRST: [&str; 4] = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"];
const ALL_1: [(&str, u64); 4] = [("root", 1), ("snapshot", 1), ("targets", 1), ("timestamp", 1)];

#[test]
fn refresh_asks_once_for_each_role_and_trusts_it() {
    let case = Case::new();
    assert_eq!(case.refresh(), 0);
    assert_eq!(case.requests(), FIRST);
    case.assert_trusted(&ALL_1);
    for role in ["root", "timestamp", "snapshot", "targets"] {
        assert_eq!(&case.stored(role), case.repo().served(role, 1));
    }
}

#[test]
fn download_refreshes_first() {
    let case = Case::new();
    assert_eq!(case.download(&["nonexistent artifact"]), 1);
    assert_eq!(case.requests(), FIRST);
    case.assert_trusted(&ALL_1);
    assert!(case.downloaded().is_empty());
}

#[test]
fn without_a_valid_root_nothing_is_asked_for() {
    let mut sim = RepoSim::expiring(in_days(30));
    let root = String::from_utf8(sim.served("root", 1).clone()).unwrap();
    let unversioned = root.replace("\"version\":1", "\"revision\":1");
    let forged = root.replacen("\"sig\":\"", "\"sig\":\"00", 1);
    for bad in [unversioned, forged, String::new(), "{".repeat(100_000)] {
        let case = Case::uninitialised(RepoSim::expiring(in_days(30)));
        case.init(bad.as_bytes());
        assert_eq!(case.refresh(), 1);
        // Put there by somebody else.
        std::fs::write(case.metadata_dir().join("root.json"), &bad).unwrap();
        assert_eq!(case.refresh(), 1);
        assert!(case.requests().is_empty());
    }
}

#[test]
fn a_wrongly_signed_role_ends_the_refresh_where_it_stands() {
    let trusted: [(&str, &[(&str, u64)]); 4] = [
        ("root", &[("root", 1)]),
        ("timestamp", &[("root", 2)]),
        ("snapshot", &[("root", 2), ("timestamp", 2)]),
        ("targets", &[("root", 2), ("snapshot", 2), ("timestamp", 2)]),
    ];
    for (role, expected) in trusted {
        for signers in [vec![], vec![TestKey::new(999)]] {
            let case = Case::new();
            case.repo().signers.insert(role.to_owned(), signers);
            case.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
            assert_eq!(case.refresh(), 1, "{role}");
            case.assert_trusted(expected);
        }
    }
}

#[test]
fn the_version_in_the_name_is_the_version_in_the_metadata() {
    let trusted: [(&str, &[(&str, u64)]); 3] = [
        ("root", &[("root", 1)]),
        ("snapshot", &[("root", 2), ("timestamp", 2)]),
        ("targets", &[("root", 2), ("snapshot", 2), ("timestamp", 2)]),
    ];
    for (role, expected) in trusted {
        let case = Case::new();
        {
            let mut repo = case.repo();
            repo.publish(&["root", "targets", "snapshot", "timestamp"]);
            *repo.version_mut(role) = 3;
            let bytes = repo.sign(role);
            *repo.served(role, 3 - 1) = bytes;
        }
        assert_eq!(case.refresh(), 1, "{role}");
        case.assert_trusted(expected);
    }
}

#[test]
fn a_changed_timestamp_of_the_same_version_is_discarded() {
    let case = Case::new();
    assert_eq!(case.refresh(), 0);
    let before = case.stored("timestamp");
    case.repo().timestamp.snapshot.version = 100;
    case.repo().publish_as_is("timestamp");
    assert_eq!(case.refresh(), 0);
    assert_eq!(case.requests().last().unwrap(), "timestamp.json");
    assert_eq!(case.stored("timestamp"), before);
}

#[test]
fn announced_digests_and_lengths_are_checked() {
    let case = Case::new();
    case.repo().announce_hashes = true;
    case.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 1), ("snapshot", 2), ("targets", 2), ("timestamp", 2)]);
    case.repo().publish(&["targets"]);
    let other = MetaFile::of_bytes(3, b"something else");
    let wrong_digest = MetaFile {
        hashes: other.hashes.clone(),
        ..case.repo().snapshot.meta["targets.json"].clone()
    };
    for (version, meta) in [(3, wrong_digest), (4, other)] {
        case.repo().snapshot.meta.insert("targets.json".to_owned(), meta);
        case.repo().publish(&["snapshot", "timestamp"]);
        assert_eq!(case.refresh(), 1);
        case.assert_trusted(&[
            ("root", 1),
            ("snapshot", version),
            ("targets", 2),
            ("timestamp", version),
        ]);
    }
}

#[test]
fn metadata_are_stored_as_received() {
    let case = Case::new();
    case.repo().served("timestamp", 1).extend(b" \n");
    assert_eq!(case.refresh(), 0);
    assert_eq!(&case.stored("timestamp"), case.repo().served("timestamp", 1));
}

#[test]
fn unknown_fields_anywhere_are_signed_content() {
    let case = Case::new();
    assert_eq!(case.refresh(), 0);
    let extra = fwmeta::json::object([("a", Value::from(1_u32)), ("b", Value::Array(vec![]))]);
    case.repo().root.extra.insert("custom-field".to_owned(), extra.clone());
    case.repo()
        .snapshot
        .extra
        .insert("custom-field".to_owned(), extra.clone());
    case.repo()
        .timestamp
        .snapshot
        .extra
        .insert("custom-field".to_owned(), extra);
    case.repo().publish(&["root", "snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 2), ("snapshot", 2), ("targets", 1), ("timestamp", 2)]);
}

#[test]
fn missing_objects_fail_the_refresh_and_keep_what_was_verified() {
    let case = Case::new();
    assert_eq!(case.refresh(), 0);
    case.repo().timestamp.snapshot.version += 1;
    case.repo().publish(&["timestamp"]);
    assert_eq!(case.refresh(), 1);
    assert_eq!(case.requests().last().unwrap(), "2.snapshot.json");
    case.assert_trusted(&[("root", 1), ("snapshot", 1), ("targets", 1), ("timestamp", 2)]);

    let case = Case::new();
    assert_eq!(case.refresh(), 0);
    case.repo().snapshot.meta.get_mut("targets.json").unwrap().version += 1;
    case.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 1);
    assert_eq!(case.requests().last().unwrap(), "2.targets.json");
    case.assert_trusted(&[("root", 1), ("snapshot", 2), ("targets", 1), ("timestamp", 2)]);

    let case = Case::new();
    assert_eq!(case.refresh(), 0);
    case.repo()
        .lies
        .insert("metadata/timestamp.json".to_owned(), Lie::Status(404));
    assert_eq!(case.refresh(), 1);
    assert_eq!(case.requests().last().unwrap(), "timestamp.json");
    case.assert_trusted(&ALL_1);
}

#[test]
fn a_snapshot_signed_as_timestamp_is_no_timestamp() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        let signers = repo.signers["timestamp"].clone();
        repo.list_key("snapshot", &signers[0]);
        repo.signers.insert("snapshot".to_owned(), signers);
        repo.snapshot.meta = [("snapshot.json".to_owned(), MetaFile::of_version(1))].into();
        repo.publish(&["root"]);
        let bytes = repo.sign("snapshot");
        *repo.served("timestamp", 1) = bytes;
    }
    assert_eq!(case.refresh(), 1);
    case.assert_trusted(&[("root", 2)]);
}

#[test]
fn lying_servers_change_nothing() {
    for lie in [Lie::Truncated, Lie::Endless, Lie::Status(500), Lie::RedirectLoop] {
        for role in ["root", "timestamp", "snapshot", "targets"] {
            let case = Case::new();
            assert_eq!(case.refresh(), 0);
            let before = case.stored(role);
            {
                let mut repo = case.repo();
                repo.publish(&["root", "targets", "snapshot", "timestamp"]);
                let object = repo.object(role, 2);
                repo.lies.insert(object, lie.clone());
            }
            assert_eq!(case.refresh(), 1, "{role}: {lie:?}");
            assert_eq!(case.stored(role), before, "{role}: {lie:?}");
            case.repo().lies.clear();
            assert_eq!(case.refresh(), 0);
        }
    }
}

#[test]
fn a_repository_without_consistent_snapshots() {
    let case = Case::new();
    case.repo().root.consistent_snapshot = false;
    case.repo().add_target("targets", "dir/file", b"content");
    case.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
    assert_eq!(case.download(&["dir/file"]), 0);
    assert_eq!(
        case.requests(),
        [
            "2.root.json",
            "3.root.json",
            "timestamp.json",
            "snapshot.json",
            "targets.json",
            "targets/dir/file"
        ]
    );
    assert_eq!(case.downloaded(), [b"content"]);
}

#[test]
fn every_failure_exits_with_one_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for args in [
        &[][..],
        &["--no-such-option"],
        &["no-such-command"],
        &["refresh"],
        &["--metadata-dir", dir, "refresh"],
        &["--metadata-dir", dir, "init"],
        &["--metadata-dir", dir, "init", "/nonexistent"],
        &["--metadata-dir", dir, "init", "a", "b"],
        &["--metadata-dir", dir, "--metadata-url", "gopher://x", "refresh"],
        &[
            "--metadata-dir",
            dir,
            "--metadata-url",
            "http://127.0.0.1:1/",
            "download",
        ],
        &[
            "--metadata-dir",
            "/proc/nonexistent",
            "--metadata-url",
            "http://127.0.0.1:1/",
            "refresh",
        ],
    ] {
        let output = tuf(args, None);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(tuf(&["--help"], None).status.code(), Some(0));
}
