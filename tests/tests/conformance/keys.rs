//! Thresholds, repeated keys and signatures, unusual keys, and rotation of the keys of every role.

use fwmeta::json::Value;
use fwmeta::key::{KeyId, PublicKey, Signer};
use fwtests::repo_sim::{RepoSim, TestKey};

use crate::harness::{Case, in_days};

#[test]
fn fewer_signatures_than_the_threshold() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        repo.role_keys("snapshot").threshold = 3;
        repo.add_key("snapshot");
        repo.add_key("snapshot");
        repo.publish(&["root", "targets", "snapshot", "timestamp"]);
    }
    assert_eq!(case.refresh(), 0);
    case.repo().signers.get_mut("snapshot").unwrap().pop();
    case.repo().publish(&["targets", "snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 1);
    case.assert_trusted(&[("root", 2), ("snapshot", 2), ("targets", 2), ("timestamp", 3)]);
}

#[test]
fn fewer_keys_than_the_threshold() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        for _ in 0..4 {
            repo.add_key("snapshot");
        }
        repo.role_keys("snapshot").threshold = 6;
        repo.publish(&["root", "snapshot", "timestamp"]);
    }
    assert_eq!(case.refresh(), 1);
    case.assert_trusted(&[("root", 2), ("timestamp", 2)]);
}

#[test]
fn a_key_listed_many_times_counts_once() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        let key = repo.add_key("snapshot");
        for _ in 0..8 {
            repo.list_key("snapshot", &key);
        }
        repo.role_keys("snapshot").threshold = 6;
        repo.publish(&["root", "snapshot", "timestamp"]);
        repeat_first_signature(repo.served("snapshot", 2), 8);
    }
    assert_eq!(case.refresh(), 1);
    assert!(!case.trusted().iter().any(|(role, _)| role == "snapshot"));
}

#[test]
fn a_key_id_that_signs_twice_refuses_the_file() {
    let case = Case::new();
    repeat_first_signature(case.repo().served("snapshot", 1), 1);
    assert_eq!(case.refresh(), 1);
    case.assert_trusted(&[("root", 1), ("timestamp", 1)]);
}

fn repeat_first_signature(file: &mut Vec<u8>, times: usize) {
    let text = String::from_utf8(file.clone()).unwrap();
    let end = text.find('}').unwrap();
    let start = text[1..end].rfind('{').unwrap() + 1;
    let entry = &text[start..=end];
    *file = text.replacen(entry, &vec![entry; times + 1].join(","), 1).into_bytes();
}

#[test]
fn a_wrong_signature_beside_enough_right_ones_does_no_harm() {
    for bad in ["", "00", "not hexadecimal", &"ab".repeat(64)] {
        let case = Case::new();
        {
            let mut repo = case.repo();
            repo.add_key("timestamp");
            repo.publish(&["root", "timestamp"]);
            let file = repo.served("timestamp", 2);
            let text = String::from_utf8(file.clone()).unwrap();
            let start = text.find("\"sig\":\"").unwrap() + 7;
            let end = start + text[start..].find('"').unwrap();
            *file = text.replacen(&text[start..end], bad, 1).into_bytes();
        }
        assert_eq!(case.refresh(), 0, "{bad:?}");
        case.assert_trusted(&[("root", 2), ("snapshot", 1), ("targets", 1), ("timestamp", 2)]);
    }
}

/// A key object with a field more; `id` when the key shall not be listed under its own.
fn relist(repo: &mut RepoSim, role: &str, field: &str, value: Value, id: Option<&str>) {
    let old = repo.role_keys(role).keyids.remove(0);
    let key = repo.root.keys.remove(&old).unwrap();
    let Value::Object(mut entries) = key.to_value() else {
        unreachable!()
    };
    entries.insert(field.to_owned(), value);
    let key = PublicKey::from_value(Value::Object(entries)).unwrap();
    let id = id.map_or_else(|| key.id(), KeyId::new);
    repo.root.keys.insert(id.clone(), key);
    repo.role_keys(role).keyids.push(id);
}

/// Replaces the key ids in the signatures of a served file by the one that root lists for the role.
fn rename_signer(repo: &mut RepoSim, role: &str, version: u64) {
    let (old, new) = (
        repo.signers[role][0].public().id(),
        repo.role_keys(role).keyids[0].clone(),
    );
    let file = repo.served(role, version);
    let text = String::from_utf8(file.clone()).unwrap();
    *file = text
        .replace(&format!("\"keyid\":\"{old}\""), &format!("\"keyid\":\"{new}\""))
        .into_bytes();
}

#[test]
fn unknown_key_fields_and_free_key_ids() {
    for id in [None, Some("any text at all")] {
        let case = Case::new();
        assert_eq!(case.refresh(), 0);
        {
            let mut repo = case.repo();
            let md5 = Value::Array(vec![Value::from("md5")]);
            relist(&mut repo, "snapshot", "keyid_hash_algorithms", md5, id);
            repo.publish(&["root", "snapshot", "timestamp"]);
            rename_signer(&mut repo, "snapshot", 2);
        }
        assert_eq!(case.refresh(), 0, "{id:?}");
        case.assert_trusted(&[("root", 2), ("snapshot", 2), ("targets", 1), ("timestamp", 2)]);
    }
}

#[test]
fn keys_of_unknown_schemes_are_passed_over() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        let unknown = fwmeta::json::object([
            ("keytype", "post-quantum".into()),
            ("scheme", "sphincs-2040".into()),
            ("keyval", fwmeta::json::object([("public", "…".into())])),
        ]);
        let unknown = PublicKey::from_value(unknown).unwrap();
        for role in ["root", "snapshot"] {
            repo.role_keys(role).keyids.push(unknown.id());
        }
        repo.root.keys.insert(unknown.id(), unknown);
        repo.publish(&["root", "snapshot", "timestamp"]);
    }
    assert_eq!(case.refresh(), 0);
    case.repo().role_keys("snapshot").threshold = 2;
    case.repo().publish(&["root", "snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 1, "the unknown key does not count");
}

/// Keys that a version lists, its threshold, and the keys that sign it, all by number.
type Version<'a> = (&'a [usize], u64, &'a [usize]);

#[test]
fn root_rotations() {
    const FIVE: &[usize] = &[0, 1, 2, 3, 4];
    const OTHER_FIVE: &[usize] = &[5, 6, 7, 8, 9];
    const ONE_CHANGED: &[usize] = &[0, 1, 3, 4, 5];
    let cases: [(&str, bool, &[Version<'_>]); 15] = [
        ("1 of 1", true, &[(&[1], 1, &[1]), (&[2], 1, &[2, 1]), (&[2], 1, &[2])]),
        (
            "1 of 1, unused signatures",
            true,
            &[(&[1], 1, &[3, 1, 4]), (&[2], 1, &[3, 2, 1, 4]), (&[2], 1, &[3, 2, 4])],
        ),
        (
            "3 of 5, different signers",
            true,
            &[
                (FIVE, 3, &[0, 2, 4]),
                (FIVE, 3, &[0, 4, 1]),
                (FIVE, 3, &[0, 1, 3]),
                (FIVE, 3, &[0, 1, 3]),
            ],
        ),
        (
            "3 of 5, one key changed",
            true,
            &[(FIVE, 3, &[0, 2, 4]), (ONE_CHANGED, 3, &[0, 4, 1])],
        ),
        (
            "3 of 5, one key changed with an intermediate step",
            true,
            &[
                (FIVE, 3, &[0, 2, 4]),
                (ONE_CHANGED, 3, &[0, 2, 4, 5]),
                (ONE_CHANGED, 3, &[0, 4, 5]),
            ],
        ),
        (
            "3 of 5, all keys changed with an intermediate step",
            true,
            &[
                (FIVE, 3, &[0, 2, 4]),
                (OTHER_FIVE, 3, &[0, 2, 4, 5, 6, 7]),
                (OTHER_FIVE, 3, &[5, 6, 7]),
            ],
        ),
        (
            "1 of 3 to 2 of 3",
            true,
            &[(&[1, 2, 3], 1, &[1]), (&[1, 2, 3], 2, &[1, 2])],
        ),
        (
            "2 of 3 to 1 of 3",
            true,
            &[
                (&[1, 2, 3], 2, &[1, 2]),
                (&[1, 2, 3], 1, &[1, 2]),
                (&[1, 2, 3], 1, &[1]),
            ],
        ),
        ("1 of 1 to 2 of 2", true, &[(&[1], 1, &[1]), (&[1, 2], 2, &[1, 2])]),
        (
            "not signed by the old key",
            false,
            &[(&[1], 1, &[1]), (&[2], 1, &[2, 3, 4])],
        ),
        (
            "not signed by the new key",
            false,
            &[(&[1], 1, &[1]), (&[2], 1, &[1, 3, 4])],
        ),
        (
            "too few of the new keys",
            false,
            &[(FIVE, 3, &[0, 2, 4]), (ONE_CHANGED, 3, &[0, 2, 4])],
        ),
        (
            "too few of the old keys",
            false,
            &[(FIVE, 3, &[0, 2, 4]), (ONE_CHANGED, 3, &[0, 4, 5])],
        ),
        (
            "the new threshold is not met",
            false,
            &[(&[1, 2, 3], 1, &[1]), (&[1, 2, 3], 2, &[2])],
        ),
        (
            "the old threshold is not met",
            false,
            &[(&[1, 2, 3], 2, &[1, 2]), (&[1, 2, 3], 1, &[1])],
        ),
    ];
    for (what, accepted, versions) in cases {
        let mut sim = RepoSim::expiring(in_days(30));
        let keys: Vec<_> = (0..10).map(|number| TestKey::new(100 + number)).collect();
        for (number, version) in (1..).zip(versions) {
            use_keys(&mut sim, "root", &keys, *version);
            sim.root.version = number;
            sim.publish_as_is("root");
        }
        let case = Case::of(sim);
        assert_eq!(case.refresh(), i32::from(!accepted), "{what}");
        let last = versions.len() as u64 - u64::from(!accepted);
        assert_eq!(&case.stored("root"), case.repo().served("root", last), "{what}");
    }
}

#[test]
fn rotations_of_the_other_roles() {
    const FIVE: &[usize] = &[0, 1, 2, 3, 4];
    const ONE_CHANGED: &[usize] = &[0, 1, 3, 4, 5];
    let cases: [(&str, bool, Version<'_>); 10] = [
        ("1 of 1", true, (&[2], 1, &[2])),
        ("1 of 1, unused signatures", true, (&[1], 1, &[3, 1, 4])),
        ("not signed by the new key", false, (&[2], 1, &[1, 3, 4])),
        (
            "one of three is not a key of the role",
            false,
            (ONE_CHANGED, 3, &[0, 2, 4]),
        ),
        ("two of three", false, (ONE_CHANGED, 3, &[0, 4])),
        ("first", true, (FIVE, 3, &[0, 2, 4])),
        ("second", true, (FIVE, 3, &[0, 4, 1])),
        ("third", true, (FIVE, 3, &[0, 1, 3])),
        ("fourth", true, (FIVE, 3, &[1, 2, 3])),
        ("fifth", true, (FIVE, 3, &[2, 3, 4])),
    ];
    let keys: Vec<_> = (0..10).map(|number| TestKey::new(200 + number)).collect();
    for (what, accepted, version) in cases {
        for role in ["timestamp", "snapshot", "targets"] {
            let case = Case::new();
            use_keys(&mut case.repo(), role, &keys, version);
            case.repo().publish(&["root", "targets", "snapshot", "timestamp"]);
            assert_eq!(case.refresh(), i32::from(!accepted), "{role}: {what}");
            if accepted {
                assert_eq!(&case.stored(role), case.repo().served(role, 2), "{role}: {what}");
            } else {
                assert!(!case.trusted().iter().any(|(name, _)| name == role), "{role}: {what}");
            }
        }
    }
}

fn use_keys(sim: &mut RepoSim, role: &str, keys: &[TestKey], (listed, threshold, signing): Version<'_>) {
    sim.role_keys(role).keyids.clear();
    sim.role_keys(role).threshold = threshold;
    for number in listed {
        sim.list_key(role, &keys[*number]);
    }
    let signers = signing.iter().map(|number| keys[*number].clone()).collect();
    sim.signers.insert(role.to_owned(), signers);
}
