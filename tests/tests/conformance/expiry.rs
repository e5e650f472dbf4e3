//! Expiry of each role, also under a clock that libfaketime shifts, as the public suite does it.

use fwtests::repo_sim::RepoSim;
use fwtests::tools::skip;

use crate::harness::{Case, in_days};

const NO_CLOCK: &str = "libfaketime is not installed (Debian: apt-get install faketime)";

#[test]
fn an_expired_new_version_is_not_accepted() {
    let expected: [(&str, [(&str, u64); 4]); 4] = [
        // Stored before its expiry is judged (§5.3.8, §5.3.10).
        ("root", [("root", 2), ("snapshot", 1), ("targets", 1), ("timestamp", 1)]),
        (
            "timestamp",
            [("root", 1), ("snapshot", 1), ("targets", 1), ("timestamp", 1)],
        ),
        (
            "snapshot",
            [("root", 1), ("snapshot", 1), ("targets", 1), ("timestamp", 2)],
        ),
        (
            "targets",
            [("root", 1), ("snapshot", 2), ("targets", 1), ("timestamp", 2)],
        ),
    ];
    for (role, trusted) in expected {
        let case = Case::new();
        assert_eq!(case.refresh(), 0);
        let past = in_days(-5);
        let roles: &[&str] = match role {
            "root" => &["root"],
            "timestamp" => &["timestamp"],
            "snapshot" => &["snapshot", "timestamp"],
            _ => &["targets", "snapshot", "timestamp"],
        };
        match role {
            "root" => case.repo().root.expires = past,
            "timestamp" => case.repo().timestamp.expires = past,
            "snapshot" => case.repo().snapshot.expires = past,
            _ => case.repo().role("targets").expires = past,
        }
        case.repo().publish(roles);
        assert_eq!(case.refresh(), 1, "{role}");
        case.assert_trusted(&trusted);
    }
}

#[test]
fn an_expired_intermediate_root_does_no_harm() {
    let case = Case::new();
    case.repo().root.expires = in_days(-5);
    case.repo().publish(&["root"]);
    case.repo().root.expires = in_days(5);
    case.repo().publish(&["root"]);
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 3), ("snapshot", 1), ("targets", 1), ("timestamp", 1)]);
}

#[test]
fn an_expired_delegated_role_is_neither_used_nor_stored() {
    let case = Case::new();
    {
        let mut repo = case.repo();
        repo.delegate("targets", "delegated", fwtests::repo_sim::paths(&["path/*"]));
        repo.role("delegated").expires = in_days(-1);
        repo.add_target("delegated", "path/target", b"content");
        repo.publish(&["delegated", "targets", "snapshot", "timestamp"]);
    }
    assert_eq!(case.refresh(), 0);
    assert_eq!(case.download(&["path/target"]), 1);
    assert!(case.downloaded().is_empty());
    case.assert_trusted(&[("root", 1), ("snapshot", 2), ("targets", 2), ("timestamp", 2)]);
}

#[test]
fn the_clock_can_be_shifted_forwards_and_backwards() {
    let mut case = Case::new();
    if !case.set_clock("+31d") {
        return skip(NO_CLOCK);
    }
    assert_eq!(case.refresh(), 1);
    case.assert_trusted(&[("root", 1)]);
    for clock in ["+29d", "-3650d"] {
        assert!(case.set_clock(clock));
        assert_eq!(case.refresh(), 0, "{clock}");
    }
}

#[test]
fn an_expired_local_root_leads_to_its_successor() {
    let mut case = Case::new();
    case.repo().root.expires = in_days(7);
    case.repo().publish(&["root"]);
    assert_eq!(case.refresh(), 0);
    case.repo().root.expires = in_days(21);
    case.repo().publish(&["root"]);
    if !case.set_clock("+18d") {
        return skip(NO_CLOCK);
    }
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 3), ("snapshot", 1), ("targets", 1), ("timestamp", 1)]);
}

#[test]
fn expired_local_timestamp_and_snapshot_lead_to_their_successors() {
    let mut sim = RepoSim::expiring(in_days(30));
    sim.timestamp.expires = in_days(7);
    sim.snapshot.expires = in_days(7);
    sim.publish(&["snapshot", "timestamp"]);
    let mut case = Case::of(sim);
    assert_eq!(case.refresh(), 0);
    case.repo().timestamp.expires = in_days(21);
    case.repo().snapshot.expires = in_days(21);
    case.repo().publish(&["targets", "snapshot", "timestamp"]);
    if !case.set_clock("+18d") {
        return skip(NO_CLOCK);
    }
    assert_eq!(case.refresh(), 0);
    case.assert_trusted(&[("root", 1), ("snapshot", 3), ("targets", 2), ("timestamp", 3)]);
    // Expired, they still guard against rollback.
    assert!(case.set_clock("+25d"));
    case.repo().timestamp.expires = in_days(30);
    case.repo().snapshot.expires = in_days(30);
    case.repo().snapshot.meta.get_mut("targets.json").unwrap().version = 1;
    case.repo().publish(&["snapshot", "timestamp"]);
    assert_eq!(case.refresh(), 1);
    case.assert_trusted(&[("root", 1), ("snapshot", 3), ("targets", 2), ("timestamp", 4)]);
}

#[test]
fn an_expired_local_delegated_role_is_replaced_or_refused() {
    let mut case = Case::new();
    {
        let mut repo = case.repo();
        repo.delegate("targets", "delegated", fwtests::repo_sim::paths(&["path/*"]));
        repo.role("delegated").expires = in_days(7);
        repo.add_target("delegated", "path/first", b"first");
        repo.add_target("delegated", "path/second", b"second");
        repo.publish(&["delegated", "targets", "snapshot", "timestamp"]);
    }
    assert_eq!(case.download(&["path/first"]), 0);
    if !case.set_clock("+18d") {
        return skip(NO_CLOCK);
    }
    assert_eq!(case.download(&["path/second"]), 1);
    assert_eq!(case.downloaded(), [b"first"]);
    case.repo().role("delegated").expires = in_days(21);
    case.repo().publish(&["delegated", "snapshot", "timestamp"]);
    assert_eq!(case.download(&["path/second"]), 0);
    assert_eq!(case.downloaded(), [b"first".to_vec(), b"second".to_vec()]);
}
