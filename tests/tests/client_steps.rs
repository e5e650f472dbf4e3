//! The client workflow of TUF 1.0.34 §5 step by step, on a repository in memory: what is asked for, in which order, what
//! is accepted, what is stored.

#![allow(clippy::unwrap_used)]

use fwmeta::client::{ClientError, Refreshed};
use fwmeta::delegation::PathSet;
use fwmeta::limits;
use fwmeta::role::{RoleError, RoleName};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::trusted::{Accepted, Origin, Refusal, TrustedSet};
use fwtests::repo_sim::{DAY, Lie, NOW, RepoSim, paths};
use fwtests::sim_device::SimDevice;

fn new() -> (RepoSim, SimDevice) {
    let mut sim = RepoSim::new();
    let device = SimDevice::new(&mut sim);
    (sim, device)
}

fn refusal(error: ClientError) -> Refusal {
    match error {
        ClientError::Refused(error) => error.reason,
        other => panic!("not a refusal: {other:?}"),
    }
}

fn asked(sim: &mut RepoSim) -> Vec<String> {
    let log = sim.take_log();
    log.iter()
        .map(|name| name.trim_start_matches("metadata/").to_owned())
        .collect()
}

#[test]
fn the_first_cycle_asks_for_each_role_once_and_stores_the_bytes_as_received() {
    let (mut sim, mut device) = new();
    // White space that no canonical form keeps.
    for name in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        sim.objects
            .get_mut(&format!("metadata/{name}"))
            .unwrap()
            .extend(b" \n ");
    }
    assert_eq!(device.refresh(&mut sim).unwrap(), Refreshed::Changed);
    assert_eq!(
        asked(&mut sim),
        ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    );
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let stored = &device.store.0[&RoleName::parse(role).unwrap()];
        assert_eq!(stored, sim.served(role, 1), "{role}");
    }
}

#[test]
fn what_is_current_is_not_fetched_again() {
    let (mut sim, mut device) = new();
    sim.delegate("targets", "a", paths(&["*"]));
    sim.publish(&["a", "targets", "snapshot", "timestamp"]);
    assert!(device.find(&mut sim, "missing").unwrap().is_none());
    sim.take_log();
    assert!(device.find(&mut sim, "missing").unwrap().is_none());
    assert_eq!(asked(&mut sim), ["2.root.json", "timestamp.json"]);
    sim.publish(&["timestamp"]);
    assert_eq!(device.refresh(&mut sim).unwrap(), Refreshed::Changed);
    assert_eq!(asked(&mut sim), ["2.root.json", "timestamp.json"]);
    sim.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(asked(&mut sim), ["2.root.json", "timestamp.json", "3.snapshot.json"]);
}

#[test]
fn without_consistent_snapshots_only_root_has_a_version_in_its_name() {
    let (mut sim, mut device) = new();
    sim.root.consistent_snapshot = false;
    sim.delegate("targets", "a/b", paths(&["*"]));
    sim.publish(&["root", "a/b", "targets", "snapshot", "timestamp"]);
    assert!(device.find(&mut sim, "missing").unwrap().is_none());
    assert_eq!(
        asked(&mut sim),
        [
            "2.root.json",
            "3.root.json",
            "timestamp.json",
            "snapshot.json",
            "targets.json",
            "a%2Fb.json"
        ]
    );
}

#[test]
fn the_root_chain_is_walked_version_by_version_and_only_the_last_must_be_current() {
    let (mut sim, mut device) = new();
    sim.root.expires = NOW.plus_seconds(-DAY);
    sim.publish(&["root"]);
    sim.rotate("root");
    // Version 3 is signed by its own key and the one before.
    let new = sim.signers["root"].clone();
    sim.signers.insert(
        "root".to_owned(),
        [new.clone(), vec![fwtests::repo_sim::TestKey::new(2)]].concat(),
    );
    sim.publish(&["root"]);
    sim.signers.insert("root".to_owned(), new);
    sim.root.expires = NOW.plus_seconds(DAY);
    sim.publish(&["root"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("root"), Some(4));
    assert_eq!(
        asked(&mut sim)[..4],
        ["2.root.json", "3.root.json", "4.root.json", "5.root.json"]
    );

    sim.root.expires = NOW;
    sim.publish(&["root"]);
    let error = device.refresh(&mut sim).unwrap_err();
    assert!(matches!(refusal(error), Refusal::Expired { .. }));
    assert_eq!(
        device.version("root"),
        Some(5),
        "verified, so it is stored before its expiry is judged"
    );
    assert_eq!(asked(&mut sim), ["5.root.json", "6.root.json"]);
}

#[test]
fn a_broken_link_keeps_the_chain_up_to_it() {
    let (mut sim, mut device) = new();
    sim.publish(&["root"]);
    sim.rotate("root");
    sim.publish(&["root"]);
    sim.publish(&["root"]);
    let error = device.refresh(&mut sim).unwrap_err();
    let Refusal::Threshold { delegator, .. } = refusal(error) else {
        panic!("the old keys did not sign")
    };
    assert_eq!(delegator, RoleName::root());
    assert_eq!(device.version("root"), Some(2));
    assert_eq!(device.store.0.len(), 1);
}

#[test]
fn a_new_root_must_carry_its_own_signatures_too() {
    let (mut sim, mut device) = new();
    let old = sim.signers["root"].clone();
    sim.rotate("root");
    sim.signers.insert("root".to_owned(), old);
    sim.publish(&["root"]);
    assert!(matches!(
        refusal(device.refresh(&mut sim).unwrap_err()),
        Refusal::Threshold { .. }
    ));
    assert_eq!(device.version("root"), Some(1));
}

#[test]
fn a_root_that_repeats_a_key_id_is_refused() {
    let (mut sim, mut device) = new();
    let keyid = sim.root.roles.snapshot.keyids[0].clone();
    sim.role_keys("snapshot").keyids.push(keyid);
    sim.publish(&["root"]);
    let reason = refusal(device.refresh(&mut sim).unwrap_err());
    assert!(
        matches!(reason, Refusal::Malformed(RoleError::RepeatedKeyId { .. })),
        "{reason:?}"
    );
    assert_eq!(device.version("root"), Some(1));
}

#[test]
fn one_cycle_follows_a_bounded_number_of_roots_and_the_next_goes_on() {
    let (mut sim, mut device) = new();
    let wanted = u64::from(limits::ROOT_ROTATIONS) + 3;
    while sim.root.version < wanted {
        sim.publish(&["root"]);
    }
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("root"), Some(u64::from(limits::ROOT_ROTATIONS) + 1));
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("root"), Some(wanted));
}

#[test]
fn a_timestamp_of_equal_version_is_discarded() {
    let (mut sim, mut device) = new();
    device.refresh(&mut sim).unwrap();
    let before = device.store.clone();
    sim.timestamp.snapshot.version = 100;
    sim.publish_as_is("timestamp");
    sim.take_log();
    assert_eq!(device.refresh(&mut sim).unwrap(), Refreshed::Unchanged);
    assert_eq!(device.store, before);
    assert_eq!(asked(&mut sim), ["2.root.json", "timestamp.json"]);
}

#[test]
fn an_expired_local_timestamp_and_snapshot_still_guard_against_rollback() {
    let (mut sim, mut device) = new();
    sim.timestamp.expires = NOW.plus_seconds(DAY);
    sim.snapshot.expires = NOW.plus_seconds(DAY);
    sim.publish(&["targets", "snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    device.now = NOW.plus_seconds(2 * DAY);
    sim.timestamp.expires = NOW.plus_seconds(9 * DAY);
    sim.snapshot.expires = NOW.plus_seconds(9 * DAY);
    sim.snapshot.meta.get_mut("targets.json").unwrap().version = 1;
    sim.publish(&["snapshot", "timestamp"]);
    let reason = refusal(device.refresh(&mut sim).unwrap_err());
    assert!(
        matches!(
            reason,
            Refusal::MetaRollback {
                new: Some(1),
                trusted: 2,
                ..
            }
        ),
        "{reason:?}"
    );
    sim.publish(&["targets", "snapshot", "timestamp"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(
        (device.version("timestamp"), device.version("snapshot")),
        (Some(4), Some(4))
    );
}

#[test]
fn a_missing_object_stops_the_cycle_where_it_is() {
    for (object, stored) in [("3.snapshot.json", [3, 2, 2]), ("3.targets.json", [3, 3, 2])] {
        let (mut sim, mut device) = new();
        sim.publish(&["targets", "snapshot", "timestamp"]);
        device.refresh(&mut sim).unwrap();
        sim.publish(&["targets", "snapshot", "timestamp"]);
        sim.lies.insert(format!("metadata/{object}"), Lie::Status(404));
        let error = device.refresh(&mut sim).unwrap_err();
        assert!(
            matches!(error, ClientError::Missing { ref name } if name == object),
            "{error:?}"
        );
        assert_eq!(asked(&mut sim).last().unwrap(), object);
        let versions = ["timestamp", "snapshot", "targets"].map(|role| device.version(role).unwrap());
        assert_eq!(versions, stored);
    }
}

#[test]
fn the_type_of_metadata_is_checked_though_keys_and_content_fit() {
    let (mut sim, mut device) = new();
    sim.signers
        .insert("snapshot".to_owned(), sim.signers["timestamp"].clone());
    sim.snapshot.meta = [("snapshot.json".to_owned(), fwmeta::role::MetaFile::of_version(1))].into();
    let bytes = sim.sign("snapshot");
    sim.objects.insert("metadata/timestamp.json".to_owned(), bytes);
    let reason = refusal(device.refresh(&mut sim).unwrap_err());
    assert!(
        matches!(reason, Refusal::Malformed(RoleError::Type { .. })),
        "{reason:?}"
    );
    assert_eq!(device.store.0.len(), 1);
}

#[test]
fn unknown_fields_are_covered_by_the_signature() {
    let (mut sim, mut device) = new();
    sim.root
        .extra
        .insert("x-vendor".to_owned(), fwmeta::json::Value::from("é\n\"quoted\""));
    sim.publish(&["root"]);
    device.refresh(&mut sim).unwrap();
    assert_eq!(device.version("root"), Some(2));
    sim.publish(&["root"]);
    let changed = String::from_utf8(sim.served("root", 3).clone())
        .unwrap()
        .replace("quoted", "Quoted");
    *sim.served("root", 3) = changed.into_bytes();
    assert!(matches!(
        refusal(device.refresh(&mut sim).unwrap_err()),
        Refusal::Threshold { .. }
    ));
}

#[test]
fn delegations_by_hash_prefix() {
    let (mut sim, mut device) = new();
    let path = "dir/hashed";
    let hash = TargetPath::parse(path).unwrap().hash();
    sim.delegate("targets", "others", PathSet::HashPrefixes(vec![other_than(&hash)]));
    sim.delegate(
        "targets",
        "bin",
        PathSet::HashPrefixes(vec!["zz".to_owned(), hash[..3].to_owned()]),
    );
    sim.add_target("others", path, b"wrong");
    sim.add_target("bin", path, b"right");
    sim.publish(&["others", "bin", "targets", "snapshot", "timestamp"]);
    let file = device.find(&mut sim, path).unwrap().unwrap();
    file.check_bytes(b"right").unwrap();
    assert!(!asked(&mut sim).contains(&"1.others.json".to_owned()));
}

fn other_than(hash: &str) -> String {
    if hash.starts_with('0') { "1" } else { "0" }.to_owned()
}

#[test]
fn a_search_visits_a_bounded_number_of_roles() {
    let (mut sim, mut device) = new();
    let names: Vec<_> = (0..=limits::DELEGATIONS_VISITED)
        .map(|number| format!("r{number}"))
        .collect();
    for name in &names {
        sim.delegate("targets", name, paths(&["*"]));
    }
    sim.add_target(&names[limits::DELEGATIONS_VISITED - 1], "last", b"in reach");
    sim.add_target(&names[limits::DELEGATIONS_VISITED], "beyond", b"out of reach");
    let roles: Vec<_> = names
        .iter()
        .map(String::as_str)
        .chain(["targets", "snapshot", "timestamp"])
        .collect();
    sim.publish(&roles);
    assert!(device.find(&mut sim, "last").unwrap().is_some());
    let error = device.find(&mut sim, "beyond").unwrap_err();
    assert!(matches!(error, ClientError::TooManyRoles { .. }), "{error:?}");
}

#[test]
fn a_role_reached_through_two_parents_is_verified_against_each() {
    let (mut sim, mut device) = new();
    for parent in ["a", "b"] {
        sim.delegate("targets", parent, paths(&["*", "*/*"]));
        sim.delegate(parent, "shared", paths(&[&format!("{parent}/*")]));
    }
    // `b` lists another key, which does not sign.
    let stranger = sim.new_key();
    let delegations = sim.role("b").delegations.as_mut().unwrap();
    let public = fwmeta::key::Signer::public(&stranger).clone();
    delegations.roles[0].keys.keyids = vec![public.id()];
    delegations.keys.insert(public.id(), public);
    for path in ["a/file", "b/file"] {
        sim.add_target("shared", path, b"x");
    }
    sim.publish(&["shared", "a", "b", "targets", "snapshot", "timestamp"]);
    let mut client = device.client(&mut sim).unwrap();
    client.refresh().unwrap();
    assert!(
        client
            .find_target(&TargetPath::parse("a/file").unwrap())
            .unwrap()
            .is_some()
    );
    let error = client.find_target(&TargetPath::parse("b/file").unwrap()).unwrap_err();
    assert!(matches!(refusal(error), Refusal::Threshold { .. }));
}

#[test]
fn a_bad_role_blocks_only_its_own_paths() {
    let (mut sim, mut device) = new();
    for product in ["camera", "router"] {
        sim.delegate("targets", product, paths(&[&format!("{product}/*/*")]));
    }
    let release = release_file();
    for product in ["camera", "router"] {
        let path = format!("{product}/1.0.0/manifest.json");
        sim.role(product).targets.insert(path, release.clone());
    }
    sim.role("camera").expires = NOW;
    sim.publish(&["camera", "router", "targets", "snapshot", "timestamp"]);
    let mut client = device.client(&mut sim).unwrap();
    client.refresh().unwrap();
    let good = client.releases("router").unwrap();
    assert_eq!((good.found.len(), good.problems.len()), (1, 0));
    let bad = client.releases("camera").unwrap();
    assert_eq!((bad.found.len(), bad.problems.len()), (0, 1));
}

fn release_file() -> TargetFile {
    let fw = fwmeta::json::Doc::parse(
        br#"{"product":"router","hardware":["rev-a"],"version":"1.0.0","sequence":1,
             "channel":"stable","size":1}"#,
    )
    .unwrap()
    .root()
    .to_value()
    .unwrap();
    TargetFile::of_bytes(b"{}").with_fw(fw)
}

#[test]
fn steps_out_of_order_are_refused() {
    let (mut sim, _) = new();
    let root = sim.served("root", 1).clone();
    let (timestamp, snapshot, targets) = (sim.sign("timestamp"), sim.sign("snapshot"), sim.sign("targets"));
    let mut set = TrustedSet::new(&root, NOW).unwrap();
    let out_of_order = |reason: Refusal| assert!(matches!(reason, Refusal::OutOfOrder { .. }), "{reason:?}");
    out_of_order(set.update_timestamp(&timestamp, Origin::Remote).unwrap_err().reason);
    set.finish_root().unwrap();
    out_of_order(set.update_root(&root).unwrap_err().reason);
    out_of_order(set.update_snapshot(&snapshot, Origin::Remote).unwrap_err().reason);
    out_of_order(set.update_targets(&targets).unwrap_err().reason);
    assert_eq!(
        set.update_timestamp(&timestamp, Origin::Remote).unwrap(),
        Accepted::Current
    );
    out_of_order(set.update_targets(&targets).unwrap_err().reason);
    assert_eq!(
        set.update_snapshot(&snapshot, Origin::Remote).unwrap(),
        Accepted::Current
    );
    set.update_targets(&targets).unwrap();
    let reason = set
        .update_delegated(&targets, &RoleName::parse("x").unwrap(), &RoleName::targets())
        .unwrap_err()
        .reason;
    assert_eq!(reason, Refusal::NotInSnapshot);
}

#[test]
fn the_last_version_number_is_the_end_of_the_chain() {
    let mut sim = RepoSim::new();
    sim.root.version = u64::MAX;
    sim.publish_as_is("root");
    let root = sim.served("root", u64::MAX).clone();
    let mut set = TrustedSet::new(&root, NOW).unwrap();
    let reason = set.update_root(&root).unwrap_err().reason;
    assert!(matches!(reason, Refusal::Rollback { .. }), "{reason:?}");
}
