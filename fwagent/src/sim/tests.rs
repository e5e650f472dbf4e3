#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use fwdurable::Disk;
use fwdurable::disk::Open;

use super::*;
use crate::sim::disk::{SECTOR, Shared, SimDisk};
use crate::sim::scenario::SCENARIOS;

fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap()
}

fn simulate(name: &str, breakage: Breakage, plan: Plan) -> Tally {
    Simulation::new(scenario(name), breakage)
        .unwrap()
        .run(plan, &mut |_, _| {})
}

const SHORT: Plan = Plan {
    seed: 1,
    double: Double::Drawn(60),
    stop: false,
};

fn survives(name: &str) -> Tally {
    let tally = simulate(name, Breakage::None, SHORT);
    assert_eq!(tally.violations, 0, "{name}: {:?}", tally.shown);
    assert_eq!(tally.doubles, 60);
    assert!(tally.operations >= 40, "{name}: {tally:?}");
    assert!(tally.singles() > 4 * tally.operations, "{name}: {tally:?}");
    assert_eq!(tally.old + tally.new, tally.singles() + tally.doubles);
    for kind in ["before", "after", "torn write", "unsynced lost", "unsynced reordered"] {
        assert!(tally.states[kind] > 0, "{name}: {kind}");
    }
    tally
}

#[test]
fn an_installation_survives_every_cut() {
    let tally = survives("install");
    assert!(tally.old > 100 && tally.new > 100, "{tally:?}");
}

#[test]
fn a_fall_back_survives_every_cut() {
    let tally = survives("fall-back");
    assert!(tally.old > 100 && tally.new > 100, "{tally:?}");
}

#[test]
fn a_roll_back_and_new_metadata_survive_every_cut() {
    survives("roll-back");
    survives("metadata");
}

#[test]
fn changed_settings_survive_every_cut() {
    survives("settings");
    // A rig that cannot fail proves nothing.
    for breakage in [Breakage::NoFsync, Breakage::NoDirFsync] {
        let tally = simulate("settings", breakage, SHORT);
        let seen: std::collections::BTreeSet<_> = tally.shown.iter().map(|shown| shown.violation.invariant).collect();
        assert!(
            seen.contains("I2") || seen.contains("I5"),
            "{}: {seen:?}",
            breakage.word()
        );
    }
}

/// Every mistake, in the scenario in which it shows.
#[test]
fn each_deliberate_mistake_is_caught() {
    let expected = [
        (Breakage::NoFsync, "install", &["I5", "I4"][..]),
        (Breakage::NoDirFsync, "install", &["I4", "I5"]),
        (Breakage::InPlace, "metadata", &["I5"]),
        (Breakage::UnsyncedSlot, "install", &["I1"]),
        (Breakage::LateRecord, "install", &["I6"]),
        (Breakage::EarlyFloor, "fall-back", &["I4"]),
        (Breakage::FreeAttempts, "hang", &["I8"]),
        (Breakage::NoTrial, "hang", &["I8"]),
        (Breakage::ActiveSlot, "install", &["I1"]),
    ];
    assert_eq!(expected.map(|(breakage, ..)| breakage), Breakage::ALL);
    for (breakage, name, invariants) in expected {
        let tally = simulate(name, breakage, Plan { stop: true, ..SHORT });
        assert!(tally.violations > 0, "{} is not caught", breakage.word());
        let shown = &tally.shown[0];
        assert!(
            invariants.contains(&shown.violation.invariant),
            "{}: {shown:?}",
            breakage.word()
        );
        // The case that is printed shows it again.
        if let Some(case) = &shown.case {
            let again = Simulation::new(scenario(name), breakage)
                .unwrap()
                .single(case)
                .unwrap_err();
            assert_eq!(again.invariant, shown.violation.invariant);
        }
    }
}

#[test]
fn one_seed_is_one_trace_and_every_case_runs_again() {
    let first = simulate("metadata", Breakage::None, SHORT);
    let again = simulate("metadata", Breakage::None, SHORT);
    assert_eq!(first.trace, again.trace);
    let other = simulate("metadata", Breakage::None, Plan { seed: 2, ..SHORT });
    assert_ne!(first.trace, other.trace);
    let simulation = Simulation::new(scenario("metadata"), Breakage::None).unwrap();
    let cut = |operation, variant: &str| Cut {
        operation,
        variant: variant.parse().unwrap(),
    };
    let case = Case {
        cut: cut(12, "lost"),
        second: Some(cut(3, "after")),
    };
    assert_eq!(
        case.to_string(),
        "--cut 12 --variant lost --recovery-cut 3 --recovery-variant after"
    );
    let story = simulation.single(&case).unwrap();
    assert_eq!(
        story.iter().filter(|line| line.starts_with("cut ")).count(),
        2,
        "{story:?}"
    );
    for wrong in [cut(0, "before"), cut(100_000, "before"), cut(1, "some:11111111")] {
        let case = Case {
            cut: wrong,
            second: None,
        };
        assert_eq!(simulation.single(&case).unwrap_err().invariant, "I0");
    }
}

#[test]
fn variants_are_read_back() {
    let variants = [
        Variant::Before,
        Variant::After,
        Variant::Lost,
        Variant::AfterLost,
        Variant::Torn(513),
        Variant::Some(vec![true, false, true]),
    ];
    for variant in variants {
        assert_eq!(variant.to_string().parse(), Ok(variant));
    }
    for text in ["", "torn:", "torn:x", "some:2", "later"] {
        assert!(text.parse::<Variant>().is_err(), "{text}");
    }
}

/// What a cut now may leave of `/f`.
fn left(disk: &Arc<SimDisk>, change: impl FnOnce(&Disk)) -> Vec<(String, Option<Vec<u8>>)> {
    change(&Disk::new(Arc::new(Shared(Arc::clone(disk)))));
    disk.record();
    Disk::new(Arc::new(Shared(Arc::clone(disk))))
        .sync_dir(Path::new("/unrelated"))
        .unwrap();
    let wreck = disk.take_wrecks().pop().unwrap();
    let mut found: Vec<_> = variants(&wreck, &mut Random::new(1))
        .into_iter()
        .map(|(variant, tree)| (variant.to_string(), tree.read(Path::new("/f")).map(<[u8]>::to_vec)))
        .collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found.dedup_by(|a, b| a.1 == b.1);
    found
}

fn contents(found: Vec<(String, Option<Vec<u8>>)>) -> Vec<Option<Vec<u8>>> {
    found.into_iter().map(|(_, content)| content).collect()
}

fn fresh() -> Arc<SimDisk> {
    let disk = SimDisk::new(Tree::default(), Breakage::None);
    let handle = Disk::new(Arc::new(Shared(Arc::clone(&disk))));
    handle.create_dir_all(Path::new("/unrelated")).unwrap();
    disk
}

#[test]
fn what_was_not_synced_may_be_lost_in_any_part() {
    let old = vec![b'o'; 2 * SECTOR];
    let disk = fresh();
    Disk::new(Arc::new(Shared(Arc::clone(&disk))))
        .write_file(Path::new("/f"), &old)
        .unwrap();
    // In place: every sector on its own is old or new.
    let found = contents(left(&disk, |disk| {
        let mut file = disk.open(Path::new("/f"), Open::in_place(0o600)).unwrap();
        file.write_all(&vec![b'n'; 2 * SECTOR]).unwrap();
    }));
    let mixed = |first: u8, second: u8| Some([vec![first; SECTOR], vec![second; SECTOR]].concat());
    assert_eq!(
        found,
        [
            mixed(b'n', b'n'),
            mixed(b'n', b'o'),
            mixed(b'o', b'n'),
            mixed(b'o', b'o')
        ]
    );
}

#[test]
fn a_new_file_needs_its_contents_and_its_name() {
    let text = b"new".to_vec();
    // Nothing synced: absent, empty, zeros, or there.
    let found = contents(left(&fresh(), |disk| {
        disk.open(Path::new("/f"), Open::new(0o600))
            .unwrap()
            .write_all(b"new")
            .unwrap();
    }));
    assert_eq!(found, [None, Some(vec![]), Some(vec![0; 3]), Some(text.clone())]);
    // Synced, and the directory not: the name may be lost.
    let found = contents(left(&fresh(), |disk| {
        let mut file = disk.open(Path::new("/f"), Open::new(0o600)).unwrap();
        file.write_all(b"new").and_then(|()| file.sync()).unwrap();
    }));
    assert_eq!(found, [None, Some(text.clone())]);
    // The directory alone: the contents may be.
    let found = contents(left(&fresh(), |disk| {
        disk.open(Path::new("/f"), Open::new(0o600))
            .unwrap()
            .write_all(b"new")
            .unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
    }));
    assert_eq!(found, [Some(vec![]), Some(vec![0; 3]), Some(text.clone())]);
    let found = contents(left(&fresh(), |disk| disk.write_file(Path::new("/f"), b"new").unwrap()));
    assert_eq!(found, [Some(text)]);
}

#[test]
fn a_rename_is_undone_or_whole() {
    let disk = fresh();
    let handle = Disk::new(Arc::new(Shared(Arc::clone(&disk))));
    handle.write_file(Path::new("/f"), b"old").unwrap();
    handle.write_file(Path::new("/g"), b"new").unwrap();
    let found = contents(left(&disk, |disk| {
        disk.primitives().rename(Path::new("/g"), Path::new("/f")).unwrap();
    }));
    assert_eq!(found, [Some(b"new".to_vec()), Some(b"old".to_vec())]);
}

#[test]
fn a_torn_write_ends_anywhere() {
    let disk = fresh();
    let handle = Disk::new(Arc::new(Shared(Arc::clone(&disk))));
    let mut file = handle.open(Path::new("/f"), Open::new(0o600)).unwrap();
    disk.record();
    file.write_all(&[b'n'; SECTOR + 2]).unwrap();
    let wreck = disk.take_wrecks().pop().unwrap();
    for arrived in [1, SECTOR, SECTOR + 1] {
        let tree = Variant::Torn(arrived).tree(&wreck).unwrap();
        assert_eq!(tree.read(Path::new("/f")), Some(&[b'n'].repeat(arrived)[..]));
    }
    assert!(Variant::Torn(SECTOR + 3).tree(&wreck).is_none());
}
