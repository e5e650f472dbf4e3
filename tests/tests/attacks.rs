//! One test for each attack that TUF 1.0.34 §1.5.2 names. Each shows that the honest repository is accepted, that the
//! attack is refused for the right reason, and that it leaves what the device trusts byte for byte as it was.

#![allow(clippy::unwrap_used)]

use fwmeta::client::ClientError;
use fwmeta::key::Signer;
use fwmeta::role::MetaFile;
use fwmeta::target::MismatchError;
use fwmeta::trusted::Refusal;
use fwtests::repo_sim::{DAY, Lie, NOW, RepoSim, SimError, TestKey, paths};
use fwtests::sim_device::SimDevice;

/// A repository and a device that has seen all of it.
fn up_to_date() -> (RepoSim, SimDevice) {
    let mut sim = RepoSim::new();
    sim.add_target("targets", "app", b"app 1");
    sim.delegate("targets", "router", paths(&["router/*"]));
    sim.add_target("router", "router/image", b"image 1");
    sim.publish(&["router", "targets", "snapshot", "timestamp"]);
    let mut device = SimDevice::new(&mut sim);
    assert!(device.find(&mut sim, "router/image").unwrap().is_some());
    (sim, device)
}

fn refusal(error: ClientError) -> Refusal {
    match error {
        ClientError::Refused(error) => error.reason,
        other => panic!("not a refusal: {other:?}"),
    }
}

/// The device refuses what the repository offers and trusts what it trusted before. Gives the reason.
fn refused(device: &mut SimDevice, sim: &mut RepoSim) -> Refusal {
    let before = device.store.clone();
    let error = device.find(sim, "router/image").unwrap_err();
    assert_eq!(device.store, before, "a refused attack changed the trusted metadata");
    refusal(error)
}

#[test]
fn arbitrary_software_signed_by_a_stranger() {
    let (mut sim, mut device) = up_to_date();
    let mut honest = device.clone();
    sim.add_target("router", "router/image", b"malware");
    let owner = sim.signers.insert("router".to_owned(), vec![TestKey::new(666)]);
    sim.publish(&["router", "snapshot", "timestamp"]);
    // Snapshot and timestamp are right, so they are taken; the role itself is not.
    let before = device.store.clone();
    let error = device.find(&mut sim, "router/image").unwrap_err();
    assert!(matches!(refusal(error), Refusal::Threshold { .. }));
    assert_eq!(device.version("router"), Some(1));
    for role in ["root", "targets"] {
        let role = fwmeta::role::RoleName::parse(role).unwrap();
        assert_eq!(device.store.0[&role], before.0[&role]);
    }

    sim.signers.insert("router".to_owned(), owner.unwrap());
    sim.publish(&["router", "snapshot", "timestamp"]);
    let file = honest.find(&mut sim, "router/image").unwrap().unwrap();
    file.check_bytes(b"malware").unwrap();
}

#[test]
fn arbitrary_software_in_place_of_a_target() {
    let (mut sim, mut device) = up_to_date();
    let file = device.find(&mut sim, "router/image").unwrap().unwrap();
    file.check_bytes(b"image 1").unwrap();
    assert!(matches!(file.check_bytes(b"image X"), Err(MismatchError::Hash { .. })));
    assert!(matches!(
        file.check_bytes(b"image 1 "),
        Err(MismatchError::Length { .. })
    ));
}

#[test]
fn rollback_of_timestamp() {
    let (mut sim, mut device) = up_to_date();
    let old = sim.objects["metadata/timestamp.json"].clone();
    sim.publish(&["timestamp"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("timestamp"), Some(3));

    sim.objects.insert("metadata/timestamp.json".to_owned(), old);
    let reason = refused(&mut device, &mut sim);
    assert_eq!(reason, Refusal::Rollback { new: 2, trusted: 3 });
}

#[test]
fn rollback_of_snapshot_by_a_new_timestamp() {
    for announce_hashes in [false, true] {
        let (mut sim, mut device) = up_to_date();
        sim.announce_hashes = announce_hashes;
        sim.publish(&["snapshot", "timestamp"]);
        device.refresh(&mut sim).unwrap();
        sim.timestamp.snapshot = MetaFile::of_version(2);
        sim.publish(&["timestamp"]);
        let reason = refused(&mut device, &mut sim);
        assert!(
            matches!(
                reason,
                Refusal::MetaRollback {
                    new: Some(2),
                    trusted: 3,
                    ..
                }
            ),
            "{reason:?}"
        );

        sim.publish(&["snapshot", "timestamp"]);
        device.refresh(&mut sim).unwrap();
        assert_eq!(device.version("snapshot"), Some(4));
    }
}

#[test]
fn rollback_of_snapshot_after_the_stored_timestamp_was_lost() {
    let (mut sim, mut device) = up_to_date();
    let mut old = sim.timestamp.clone();
    sim.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    device.store.0.remove(&fwmeta::role::RoleName::timestamp());
    old.version = 9;
    sim.timestamp = old;
    sim.publish_as_is("timestamp");
    let error = device.refresh(&mut sim).unwrap_err();
    assert_eq!(refusal(error), Refusal::Rollback { new: 2, trusted: 3 });
    assert_eq!(device.version("snapshot"), Some(3));
}

#[test]
fn rollback_of_targets_and_of_a_delegated_role() {
    for (role, file) in [("targets", "targets.json"), ("router", "router.json")] {
        for announce_hashes in [false, true] {
            let (mut sim, mut device) = up_to_date();
            sim.announce_hashes = announce_hashes;
            sim.publish(&[role, "snapshot", "timestamp"]);
            device.find(&mut sim, "router/image").unwrap().unwrap();
            let trusted = device.version(role).unwrap();

            sim.snapshot
                .meta
                .insert(file.to_owned(), MetaFile::of_version(trusted - 1));
            sim.publish(&["snapshot", "timestamp"]);
            let error = device.find(&mut sim, "router/image").unwrap_err();
            let expected = Refusal::MetaRollback {
                file: file.to_owned(),
                new: Some(trusted - 1),
                trusted,
            };
            assert_eq!(refusal(error), expected);
            assert_eq!(
                (device.version(role), device.version("snapshot")),
                (Some(trusted), Some(3))
            );

            sim.publish(&[role, "snapshot", "timestamp"]);
            device.find(&mut sim, "router/image").unwrap().unwrap();
            assert_eq!(device.version(role), Some(trusted + 1));
        }
    }
}

#[test]
fn a_role_does_not_vanish_from_the_snapshot() {
    let (mut sim, mut device) = up_to_date();
    let kept = sim.snapshot.meta.remove("router.json").unwrap();
    sim.publish(&["snapshot", "timestamp"]);
    let error = device.refresh(&mut sim).unwrap_err();
    assert!(matches!(refusal(error), Refusal::MetaRollback { new: None, .. }));
    assert_eq!(device.version("snapshot"), Some(2));

    sim.snapshot.meta.insert("router.json".to_owned(), kept);
    sim.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("snapshot"), Some(4));
}

#[test]
fn rollback_of_root() {
    let (mut sim, mut device) = up_to_date();
    sim.publish(&["root"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("root"), Some(2));

    let old = sim.served("root", 1).clone();
    sim.objects.insert("metadata/3.root.json".to_owned(), old);
    let reason = refused(&mut device, &mut sim);
    assert_eq!(reason, Refusal::WrongVersion { expected: 3, actual: 1 });
}

#[test]
fn freeze_ends_with_the_expiry_of_each_role() {
    for role in ["root", "timestamp", "snapshot", "targets", "router"] {
        let (mut sim, mut device) = up_to_date();
        let expires = NOW.plus_seconds(DAY);
        match role {
            "root" => sim.root.expires = expires,
            "timestamp" => sim.timestamp.expires = expires,
            "snapshot" => sim.snapshot.expires = expires,
            _ => sim.role(role).expires = expires,
        }
        match role {
            "root" => sim.publish(&["root"]),
            "timestamp" => sim.publish(&["timestamp"]),
            "snapshot" => sim.publish(&["snapshot", "timestamp"]),
            _ => sim.publish(&[role, "snapshot", "timestamp"]),
        }
        device.now = expires.plus_seconds(-1);
        device.find(&mut sim, "router/image").unwrap().unwrap();
        device.now = expires;
        let reason = refused(&mut device, &mut sim);
        assert_eq!(reason, Refusal::Expired { expires, now: expires }, "{role}");
    }
}

#[test]
fn withholding_answers_is_an_error_and_not_news() {
    for lie in [Lie::Status(404), Lie::Status(503), Lie::RedirectLoop, Lie::Truncated] {
        let (mut sim, mut device) = up_to_date();
        sim.publish(&["timestamp"]);
        sim.lies.insert("metadata/timestamp.json".to_owned(), lie.clone());
        let before = device.store.clone();
        let error = device.refresh(&mut sim).unwrap_err();
        assert_eq!(error.is_refusal(), lie == Lie::Truncated, "{error:?}");
        assert_eq!(device.store, before);
        sim.lies.clear();
        device.refresh(&mut sim).unwrap();
        assert_eq!(device.version("timestamp"), Some(3));
    }
}

#[test]
fn an_error_for_the_next_root_does_not_hide_it() {
    let (mut sim, mut device) = up_to_date();
    sim.publish(&["root"]);
    sim.lies.insert("metadata/2.root.json".to_owned(), Lie::Status(500));
    let before = device.store.clone();
    let error = device.refresh(&mut sim).unwrap_err();
    assert!(
        matches!(error, ClientError::Fetch { ref name, .. } if name == "2.root.json"),
        "{error:?}"
    );
    assert_eq!(device.store, before);
}

#[test]
fn endless_data_for_each_role() {
    for role in ["root", "timestamp", "snapshot", "targets", "router"] {
        let (mut sim, mut device) = up_to_date();
        let mut honest = device.clone();
        sim.publish(&["root", "router", "targets", "snapshot", "timestamp"]);
        let version = *sim.version_mut(role);
        let object = sim.object(role, version);
        sim.lies.insert(object, Lie::Endless);
        let error = device.find(&mut sim, "router/image").unwrap_err();
        let ClientError::Fetch { source, .. } = error else {
            panic!("{role}: {error:?}")
        };
        assert!(matches!(source.downcast_ref(), Some(SimError::TooLong { .. })));
        assert_eq!(device.version(role), Some(version - 1), "{role}");

        sim.lies.clear();
        honest.find(&mut sim, "router/image").unwrap().unwrap();
        assert_eq!(honest.version(role), Some(version));
    }
}

#[test]
fn announced_lengths_bound_what_is_fetched() {
    let (mut sim, mut device) = up_to_date();
    sim.announce_hashes = true;
    sim.publish(&["targets", "snapshot", "timestamp"]);
    let honest = sim.served("targets", 3).clone();
    sim.served("targets", 3).push(b' ');
    let error = device.refresh(&mut sim).unwrap_err();
    let ClientError::Fetch { source, .. } = error else {
        panic!("{error:?}")
    };
    let limit = honest.len() as u64;
    assert_eq!(source.downcast_ref(), Some(&SimError::TooLong { limit }));
    assert_eq!(device.version("targets"), Some(2));
    *sim.served("targets", 3) = honest;
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("targets"), Some(3));
}

#[test]
fn extraneous_dependencies_outside_a_delegation_are_not_seen() {
    let (mut sim, mut device) = up_to_date();
    // The keys of `router` list software of others, which their delegation does not cover.
    for path in ["camera/image", "router/deep/image", "router", "routerx/image"] {
        sim.add_target("router", path, b"unwanted");
    }
    sim.publish(&["router", "snapshot", "timestamp"]);
    for path in ["camera/image", "router/deep/image", "router", "routerx/image"] {
        assert_eq!(device.find(&mut sim, path).unwrap(), None, "{path}");
    }
    assert!(device.find(&mut sim, "router/image").unwrap().is_some());
    assert_eq!(device.version("router"), Some(2));
}

#[test]
fn mix_and_match_of_metadata_from_different_times() {
    for announce_hashes in [false, true] {
        for role in ["snapshot", "targets", "router"] {
            let (mut sim, mut device) = up_to_date();
            sim.announce_hashes = announce_hashes;
            let old_version = *sim.version_mut(role);
            let old = sim.served(role, old_version).clone();
            sim.publish(&["router", "targets", "snapshot", "timestamp"]);
            let honest = std::mem::replace(sim.served(role, old_version + 1), old);
            let error = device.find(&mut sim, "router/image").unwrap_err();
            match refusal(error) {
                Refusal::Mismatch { .. } => assert!(announce_hashes),
                Refusal::WrongVersion { expected, actual } => {
                    assert_eq!((expected, actual), (old_version + 1, old_version));
                    assert!(!announce_hashes);
                }
                other => panic!("{role}: {other:?}"),
            }
            assert_eq!(device.version(role), Some(old_version));
            *sim.served(role, old_version + 1) = honest;
            device.find(&mut sim, "router/image").unwrap().unwrap();
        }
    }
}

#[test]
fn wrong_software_that_is_itself_genuine() {
    let (mut sim, mut device) = up_to_date();
    let app = device.find(&mut sim, "app").unwrap().unwrap();
    let image = device.find(&mut sim, "router/image").unwrap().unwrap();
    // A mirror that swaps two signed files gives each under the other's name.
    assert!(app.check_bytes(b"image 1").is_err());
    assert!(image.check_bytes(b"app 1").is_err());
    app.check_bytes(b"app 1").unwrap();
    image.check_bytes(b"image 1").unwrap();
}

#[test]
fn a_malicious_mirror_changes_nothing_for_the_honest_one() {
    let (mut honest, mut device) = up_to_date();
    let (mut mirror, _) = up_to_date();
    for number in 0..4 {
        mirror
            .signers
            .insert("timestamp".to_owned(), vec![TestKey::new(700 + number)]);
        mirror.publish(&["timestamp"]);
        let reason = refused(&mut device, &mut mirror);
        assert!(matches!(reason, Refusal::Threshold { .. }));
    }
    honest.publish(&["router", "snapshot", "timestamp"]);
    device.find(&mut honest, "router/image").unwrap().unwrap();
    assert_eq!(device.version("router"), Some(2));
}

/// Snapshot under threshold 2, with two keys that sign.
fn two_of_two() -> (RepoSim, SimDevice) {
    let (mut sim, mut device) = up_to_date();
    sim.add_key("snapshot");
    sim.role_keys("snapshot").threshold = 2;
    sim.publish(&["root", "snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("snapshot"), Some(3));
    (sim, device)
}

#[test]
fn keys_below_the_threshold_sign_nothing() {
    let (mut sim, mut device) = two_of_two();
    let second = sim.signers.get_mut("snapshot").unwrap().pop().unwrap();
    sim.publish(&["snapshot", "timestamp"]);
    let error = device.refresh(&mut sim).unwrap_err();
    assert!(matches!(refusal(error), Refusal::Threshold { .. }));
    assert_eq!(device.version("snapshot"), Some(3));

    sim.signers.get_mut("snapshot").unwrap().push(second);
    sim.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("snapshot"), Some(5));
}

#[test]
fn one_key_does_not_count_twice() {
    let (mut sim, mut device) = two_of_two();
    // The same key listed under a second id, and signing under both.
    let key = sim.signers["snapshot"][0].clone();
    let other_id = fwmeta::key::KeyId::new("another name");
    sim.root.keys.insert(other_id.clone(), key.public().clone());
    sim.role_keys("snapshot").keyids = vec![key.public().id(), other_id.clone()];
    sim.signers.insert("snapshot".to_owned(), vec![key.clone()]);
    sim.publish(&["root", "snapshot", "timestamp"]);
    let signed = String::from_utf8(sim.served("snapshot", 4).clone()).unwrap();
    let (start, end) = (signed.find('[').unwrap(), signed.find(']').unwrap());
    let signature = signed[start + 1..end].to_owned();
    let renamed = signature.replace(key.public().id().as_str(), other_id.as_str());
    let twice = signed.replacen(&signature, &format!("{signature},{renamed}"), 1);
    *sim.served("snapshot", 4) = twice.into_bytes();
    let error = device.refresh(&mut sim).unwrap_err();
    let Refusal::Threshold { source, .. } = refusal(error) else {
        panic!("counted by id")
    };
    assert_eq!((source.valid, source.threshold), (1, 2));
    assert_eq!(device.version("snapshot"), None, "its keys were rotated");
}

#[test]
fn a_key_id_that_signs_twice_refuses_the_file() {
    let (mut sim, mut device) = two_of_two();
    sim.publish(&["snapshot", "timestamp"]);
    let honest = sim.served("snapshot", 4).clone();
    let text = String::from_utf8(honest.clone()).unwrap();
    let start = text.find('{').unwrap() + text[1..].find('{').unwrap() + 1;
    let end = start + text[start..].find('}').unwrap() + 1;
    let entry = text[start..end].to_owned();
    *sim.served("snapshot", 4) = text.replacen(&entry, &format!("{entry},{entry}"), 1).into_bytes();
    let error = device.refresh(&mut sim).unwrap_err();
    assert!(matches!(refusal(error), Refusal::Malformed(_)));
    assert_eq!(device.version("snapshot"), Some(3));
    *sim.served("snapshot", 4) = honest;
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("snapshot"), Some(4));
}

#[test]
fn fast_forward_is_undone_by_rotation() {
    for role in ["timestamp", "snapshot", "targets"] {
        let (mut sim, mut device) = up_to_date();
        // A thief of the online keys drives the version up, and the device believes it.
        let honest = *sim.version_mut(role);
        *sim.version_mut(role) = 99_999;
        for role in ["targets", "snapshot", "timestamp"] {
            sim.publish(&[role]);
        }
        device.refresh(&mut sim).unwrap();
        assert_eq!(device.version(role), Some(100_000));

        // Without rotation the honest number is a rollback.
        *sim.version_mut(role) = honest;
        sim.publish(&["targets", "snapshot", "timestamp"]);
        let error = device.refresh(&mut sim).unwrap_err();
        assert!(
            matches!(refusal(error), Refusal::Rollback { .. } | Refusal::MetaRollback { .. }),
            "{role}"
        );
        assert_eq!(device.version(role), Some(100_000));

        sim.rotate("snapshot");
        sim.rotate("timestamp");
        sim.publish(&["root", "snapshot", "timestamp"]);
        device.refresh(&mut sim).unwrap();
        let expected = *sim.version_mut(role);
        assert!(expected < 100);
        assert_eq!(device.version(role), Some(expected), "{role}");
    }
}

#[test]
fn online_keys_cannot_make_software() {
    let (mut sim, mut device) = up_to_date();
    let mut thief = sim.signers["timestamp"].clone();
    thief.extend(sim.signers["snapshot"].clone());
    sim.add_target("targets", "app", b"malware");
    let owners = sim.signers.insert("targets".to_owned(), thief).unwrap();
    sim.publish(&["targets", "snapshot", "timestamp"]);
    let error = device.find(&mut sim, "app").unwrap_err();
    assert!(matches!(refusal(error), Refusal::Threshold { .. }));
    assert_eq!(device.version("targets"), Some(2));
    sim.signers.insert("targets".to_owned(), owners);
    sim.publish(&["targets", "snapshot", "timestamp"]);
    assert!(device.find(&mut sim, "app").unwrap().is_some());
}
