//! Downloads: digests, substitution, the cache of artifacts, odd target names.

use fwmeta::hex;
use fwmeta::target::{Hashes, TargetFile};
use fwtests::repo_sim::Lie;

use crate::harness::Case;

fn publish(case: &Case) {
    case.repo().publish(&["targets", "snapshot", "timestamp"]);
}

/// Serves other bytes under the names of a target, as metadata describe it now.
fn substitute(case: &Case, path: &str, bytes: &[u8]) {
    let mut repo = case.repo();
    let hashes = repo.role("targets").targets[path].hashes.clone();
    for object in repo.target_objects(path, &hashes) {
        repo.objects.insert(object, bytes.to_vec());
    }
}

#[test]
fn refresh_downloads_no_target_and_download_does() {
    for path in ["target_file.txt", "path/to/a/target_file.txt"] {
        let case = Case::new();
        case.repo().add_target("targets", path, b"contents");
        publish(&case);
        assert_eq!(case.refresh(), 0);
        assert!(case.downloaded().is_empty());
        assert_eq!(case.download(&[path]), 0);
        assert_eq!(case.downloaded(), [b"contents"]);
    }
}

#[test]
fn a_target_that_is_there_is_not_fetched_again() {
    let case = Case::new();
    case.repo().add_target("targets", "file", b"contents");
    publish(&case);
    assert_eq!(case.download(&["file"]), 0);
    assert!(case.requests().last().unwrap().starts_with("targets/"));
    assert_eq!(case.download(&["file"]), 0);
    assert_eq!(case.requests(), ["2.root.json", "timestamp.json"]);
}

#[test]
fn a_substituted_target_is_refused() {
    let case = Case::new();
    case.repo().add_target("targets", "one", b"contents 1");
    case.repo().add_target("targets", "two", b"contents 2");
    publish(&case);
    assert_eq!(case.download(&["one"]), 0);
    for evil in [&b"contents X"[..], b"short", b"much longer than announced", b""] {
        substitute(&case, "one", evil);
        substitute(&case, "two", evil);
        assert_eq!(case.download(&["one"]), 0, "it is there already");
        assert_eq!(case.download(&["two"]), 1);
        assert_eq!(case.downloaded(), [b"contents 1"]);
    }
    substitute(&case, "two", b"contents 2");
    assert_eq!(case.download(&["two"]), 0);
    assert_eq!(case.downloaded(), [b"contents 1", b"contents 2"]);
}

#[test]
fn a_lying_server_leaves_no_file() {
    for lie in [
        Lie::Truncated,
        Lie::Endless,
        Lie::Status(404),
        Lie::Status(500),
        Lie::RedirectLoop,
    ] {
        let case = Case::new();
        case.repo().add_target("targets", "file", b"contents");
        publish(&case);
        let object = {
            let mut repo = case.repo();
            let hashes = repo.role("targets").targets["file"].hashes.clone();
            repo.target_objects("file", &hashes).remove(0)
        };
        case.repo().lies.insert(object, lie.clone());
        assert_eq!(case.download(&["file"]), 1, "{lie:?}");
        assert!(case.downloaded().is_empty(), "{lie:?}");
        case.repo().lies.clear();
        assert_eq!(case.download(&["file"]), 0, "{lie:?}");
    }
}

#[test]
fn a_target_that_changes_many_times_keeps_its_file() {
    let case = Case::new();
    for round in 0..6 {
        let contents = format!("contents {round}");
        case.repo().add_target("targets", "file", contents.as_bytes());
        case.repo().add_target("targets", &format!("new-{round}"), b"new");
        publish(&case);
        // The client sees every second version only.
        if round % 2 == 0 {
            assert_eq!(case.download(&["file"]), 0);
            assert_eq!(case.downloaded(), [contents.as_bytes()]);
            substitute(&case, "file", b"malicious contents");
            publish(&case);
            assert_eq!(case.download(&["file"]), 0);
            assert_eq!(case.downloaded(), [contents.as_bytes()]);
        }
    }
}

#[test]
fn each_hash_algorithm_alone_and_both() {
    for (sha256, sha512) in [(true, false), (false, true), (true, true)] {
        let case = Case::new();
        let mut file = TargetFile::of_bytes(b"contents");
        if !sha256 {
            file.hashes.sha256 = None;
        }
        if !sha512 {
            file.hashes.sha512 = None;
        }
        case.repo()
            .add_target_file("targets", "file", file.clone(), b"contents");
        publish(&case);
        assert_eq!(case.download(&["file"]), 0);
        assert_eq!(case.downloaded(), [b"contents"]);
        let names = file.hashes.names();
        let request = case.requests().pop().unwrap();
        assert!(
            names.iter().any(|digest| request == format!("targets/{digest}.file")),
            "{request}"
        );
    }
}

#[test]
fn every_known_digest_must_fit() {
    let wrong = TargetFile::of_bytes(b"other contents").hashes;
    let right = TargetFile::of_bytes(b"contents").hashes;
    for hashes in [
        Hashes {
            sha512: wrong.sha512.clone(),
            ..right.clone()
        },
        Hashes {
            sha256: wrong.sha256,
            ..right.clone()
        },
    ] {
        let case = Case::new();
        let file = TargetFile {
            hashes,
            ..TargetFile::of_bytes(b"contents")
        };
        case.repo().add_target_file("targets", "file", file, b"contents");
        publish(&case);
        assert_eq!(case.download(&["file"]), 1);
        assert!(case.downloaded().is_empty());
    }
}

#[test]
fn an_empty_target() {
    let case = Case::new();
    case.repo().add_target("targets", "empty", b"");
    publish(&case);
    assert_eq!(case.download(&["empty"]), 0);
    assert_eq!(case.downloaded(), [b""]);
}

#[test]
fn odd_target_names_are_quoted_in_requests_and_harmless_as_files() {
    for path in [
        "?",
        "#",
        "a b",
        "dir/..x",
        ".hidden",
        "%2e%2e/x",
        "é\n",
        "-rf",
        &"long/".repeat(100).replace("/l", "/x"),
    ] {
        let path = path.trim_end_matches('/');
        let case = Case::new();
        case.repo().add_target("targets", path, path.as_bytes());
        publish(&case);
        // One argument, so that a name may begin with a dash.
        assert_eq!(case.download(&[path]), 0, "{path:?}");
        assert_eq!(case.downloaded(), [path.as_bytes()]);
        let digest = hex::encode(
            case.repo().role("targets").targets[path]
                .hashes
                .sha256
                .as_ref()
                .unwrap(),
        );
        assert!(case.requests().pop().unwrap().contains(&format!("{digest}.")));
    }
}

#[test]
fn target_names_that_lead_out_of_the_directory_are_refused() {
    for path in ["../evil", "/etc/evil", "a/../../evil", "", "a//b", "a\\b"] {
        let case = Case::new();
        let file = TargetFile::of_bytes(b"evil");
        case.repo().role("targets").targets.insert(path.to_owned(), file);
        publish(&case);
        assert_eq!(case.download(&[path]), 1, "{path:?}");
        assert!(case.downloaded().is_empty());
        assert!(
            case.requests().iter().all(|name| !name.starts_with("targets/")),
            "{path:?}"
        );
    }
}
