//! What a device does whose clock is wrong: the driver over a repository in memory, for every clock, age of metadata and
//! attack, with the floors before and after, and the way back in each cell (DESIGN §5.6; RULES PW-12, UP-08).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::rc::Rc;
use std::sync::Arc;

use fwagent::drive::{Checked, DriveError, Driver, Ports, Setup};
use fwagent::host::boot_file::BootFile;
use fwagent::host::health::HealthChecks;
use fwagent::host::restart::Restart;
use fwagent::host::settings::{HostSettings, SettingsConfig};
use fwagent::host::slots::HostSlots;
use fwagent::machine::conditions::{Condition, Facts, Policy, UnknownTime};
use fwagent::machine::plan::{Identity, Wish};
use fwagent::machine::release::{ComponentRef, ReleaseRef};
use fwagent::machine::slot::SlotId;
use fwagent::machine::state::State;
use fwagent::machine::time::Freshness;
use fwagent::ports::{
    Clock, Conditions, KnownTimestamp, MetadataStore, PortError, Progress, Source, StateStore, Transport,
};
use fwmeta::client::{Cache, Fetch};
use fwmeta::layout;
use fwmeta::manifest::{ImageKind, SemVer};
use fwmeta::role::RoleName;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use fwtests::release::{component, image_of, list, manifest};
use fwtests::repo_sim::{DAY, NOW, RepoSim};

type Shared<T> = Rc<RefCell<T>>;

/// What the device trusts.
#[derive(Debug, Default, Clone)]
struct Trusted {
    factory: Vec<u8>,
    roots: Vec<Vec<u8>>,
    others: BTreeMap<RoleName, Vec<u8>>,
}

#[derive(Debug)]
struct Metadata {
    kept: Shared<Trusted>,
    staged: Trusted,
}

impl Cache for Metadata {
    type Error = PortError;

    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, PortError> {
        Ok(self.staged.others.get(role).cloned())
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), PortError> {
        if *role == RoleName::root() {
            self.staged.roots.push(bytes.to_owned());
        } else {
            self.staged.others.insert(role.clone(), bytes.to_owned());
        }
        Ok(())
    }

    fn remove(&mut self, role: &RoleName) -> Result<(), PortError> {
        self.staged.others.remove(role);
        Ok(())
    }
}

impl MetadataStore for Metadata {
    fn factory_root(&mut self) -> Result<Vec<u8>, PortError> {
        Ok(self.staged.factory.clone())
    }

    fn root_history(&mut self) -> Result<Vec<Vec<u8>>, PortError> {
        Ok(self.staged.roots.clone())
    }

    fn commit(&mut self) -> Result<(), PortError> {
        *self.kept.borrow_mut() = self.staged.clone();
        Ok(())
    }

    fn discard(&mut self) {
        self.staged = self.kept.borrow().clone();
    }

    fn known_timestamp(&mut self) -> Option<KnownTimestamp> {
        None
    }

    fn stage_etag(&mut self, _: Option<&str>) {}
}

#[derive(Debug)]
struct Server(Shared<RepoSim>);

impl Fetch for Server {
    type Error = PortError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, PortError> {
        let mut sim = self.0.borrow_mut();
        Fetch::fetch(&mut &mut *sim, name, max_length).map_err(|error| PortError::environment(name, Some(error.into())))
    }
}

impl Source for Server {
    fn timestamp_etag(&self) -> Option<&str> {
        None
    }
}

impl Transport for Server {
    type Source = Self;
    type Target = Cursor<Vec<u8>>;

    fn metadata(&mut self, _: Option<KnownTimestamp>) -> Result<Self, PortError> {
        Ok(Self(Rc::clone(&self.0)))
    }

    fn target(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        _: bool,
        _: Progress<'_>,
    ) -> Result<Self::Target, PortError> {
        let digest = file.hashes.sha256.as_ref().map(<[u8; 32]>::as_slice);
        let name = format!("targets/{}", layout::target_name(path, digest));
        let bytes = self.0.borrow_mut().answer(&name).0.expect("a target that is served");
        file.check_bytes(&bytes)
            .map_err(|error| PortError::refused(name, Some(error.into())))?;
        Ok(Cursor::new(bytes))
    }

    fn discard_targets(&mut self) -> Result<(), PortError> {
        Ok(())
    }
}

#[derive(Debug)]
struct States(Shared<State>);

impl StateStore for States {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        Ok(Some(self.0.borrow().clone()))
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        *self.0.borrow_mut() = state.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct At(UtcSeconds);

impl Clock for At {
    fn now(&mut self) -> UtcSeconds {
        self.0
    }
}

struct Ready;

impl Conditions for Ready {
    fn facts(&mut self) -> Facts {
        Facts::default()
    }
}

/// A device that runs sequence 1, and its repository.
struct Device {
    sim: Shared<RepoSim>,
    trusted: Shared<Trusted>,
    state: Shared<State>,
    policy: Policy,
}

impl Device {
    fn new(mut sim: RepoSim, policy: Policy) -> Self {
        let factory = sim.served("root", 1).clone();
        let installed = ReleaseRef {
            manifest_sha256: [1; 32],
            version: SemVer::new(1, 0, 0),
            sequence: 1,
            security_floor: 0,
            channel: "stable".to_owned(),
            security: false,
            components: vec![ComponentRef {
                name: "main".to_owned(),
                slot_class: "system".to_owned(),
                image_sha256: [1; 32],
            }],
        };
        Self {
            sim: Rc::new(RefCell::new(sim)),
            trusted: Rc::new(RefCell::new(Trusted {
                factory,
                ..Trusted::default()
            })),
            state: Rc::new(RefCell::new(State::new(SlotId::parse("a").unwrap(), Some(installed)))),
            policy,
        }
    }

    fn check(&self, clock: UtcSeconds) -> Result<Checked, DriveError> {
        let nowhere = std::path::Path::new("/nonexistent");
        let setup = Setup {
            identity: Identity {
                vendor: None,
                product: "router".to_owned(),
                hardware: "rev-b".to_owned(),
                channel: "stable".to_owned(),
            },
            slots: ["a", "b"].map(|name| SlotId::parse(name).unwrap()).to_vec(),
            classes: vec!["system".to_owned()],
            boot_attempts: 3,
            policy: self.policy.clone(),
            accept_one_way: false,
            rescue: None,
        };
        // A check uses neither slots, boot loader nor settings.
        let ports = Ports {
            states: Box::new(States(Rc::clone(&self.state))),
            slots: Box::new(HostSlots::new(Vec::new())),
            boot: Box::new(BootFile::new(nowhere)),
            health: Box::new(HealthChecks::new(Vec::new(), false, Arc::default(), |_| None)),
            settings: Box::new(HostSettings::new(SettingsConfig::default(), nowhere, Arc::default())),
            clock: Box::new(At(clock)),
            conditions: Box::new(Ready),
            reboot: Box::new(Restart::Manual),
        };
        let metadata = Metadata {
            kept: Rc::clone(&self.trusted),
            staged: self.trusted.borrow().clone(),
        };
        let server = Server(Rc::clone(&self.sim));
        Driver::new(setup, metadata, server, ports, Box::new(|_| true))?.check(&Wish::default())
    }

    /// One letter for what a check ends with: F fresh, U unknown, small when nothing is offered; S stale; R refused as a
    /// replay of the past.
    fn ends(&self, clock: UtcSeconds) -> char {
        match self.check(clock) {
            Ok(checked) => {
                let letter = match checked.freshness {
                    Freshness::Fresh => 'F',
                    Freshness::Unknown => 'U',
                    Freshness::Stale => '?',
                };
                if checked.offer.is_some() {
                    letter
                } else {
                    letter.to_ascii_lowercase()
                }
            }
            Err(error @ DriveError::Stale { .. }) => {
                assert!(error.is_refusal());
                'S'
            }
            Err(error) => {
                let text = fwagent::drive::chain(&error);
                assert!(error.is_refusal() && text.contains("older than"), "{text}");
                'R'
            }
        }
    }
}

/// Lists release 1.1.0 in the targets role.
fn add_release(sim: &mut RepoSim) {
    let image = b"image of 1.1.0";
    let main = component(
        "main",
        "system",
        ImageKind::Raw,
        image_of(image),
        "router/1.1.0/main.img",
    )
    .unwrap();
    let manifest = manifest("1.1.0", 2, vec![main]).unwrap();
    manifest.validate().unwrap();
    list(sim, "targets", &manifest, &[image]);
}

const TIMESTAMP: &str = "metadata/timestamp.json";

/// A device that was in touch 25 days ago, and what the server gives out now: metadata that expire at `expires`.
fn scene(attack: &str, expires: UtcSeconds, policy: Policy) -> Device {
    let mut sim = RepoSim::new();
    let last_contact = NOW.plus_seconds(-25 * DAY);
    let honest = sim.timestamp.expires;
    match attack {
        "none" => {
            let device = Device::new(sim, policy);
            assert_eq!(device.ends(last_contact), 'f');
            let mut sim = device.sim.borrow_mut();
            add_release(&mut sim);
            sim.timestamp.expires = expires;
            sim.publish(&["targets", "snapshot", "timestamp"]);
            drop(sim);
            device
        }
        "freeze" => {
            sim.timestamp.expires = expires;
            sim.publish(&["timestamp"]);
            let device = Device::new(sim, policy);
            assert_eq!(device.ends(last_contact), 'f');
            let mut sim = device.sim.borrow_mut();
            let old = sim.objects[TIMESTAMP].clone();
            add_release(&mut sim);
            sim.timestamp.expires = honest;
            sim.publish(&["targets", "snapshot", "timestamp"]);
            sim.objects.insert(TIMESTAMP.to_owned(), old);
            drop(sim);
            device
        }
        "fast-forward" => {
            let device = Device::new(sim, policy);
            assert_eq!(device.ends(last_contact), 'f');
            let mut sim = device.sim.borrow_mut();
            // Whoever has the keys of both roles hides what comes by versions that nobody will reach.
            *sim.version_mut("snapshot") = 1_000_000;
            *sim.version_mut("timestamp") = 1_000_000;
            sim.timestamp.expires = expires;
            sim.publish(&["snapshot", "timestamp"]);
            drop(sim);
            device
        }
        "replay" => {
            sim.timestamp.expires = expires;
            sim.publish(&["timestamp"]);
            let old = sim.objects[TIMESTAMP].clone();
            sim.timestamp.expires = honest;
            add_release(&mut sim);
            sim.publish(&["targets", "snapshot", "timestamp"]);
            let device = Device::new(sim, policy);
            assert_eq!(device.ends(last_contact), 'F');
            device.sim.borrow_mut().objects.insert(TIMESTAMP.to_owned(), old);
            device
        }
        other => panic!("no attack {other}"),
    }
}

/// The vendor signs again, after an attack with new keys.
fn honest_again(device: &Device, attack: &str) {
    let mut sim = device.sim.borrow_mut();
    sim.timestamp.expires = NOW.plus_seconds(30 * DAY);
    if attack == "fast-forward" {
        add_release(&mut sim);
        sim.rotate("timestamp");
        sim.rotate("snapshot");
        *sim.version_mut("snapshot") = 5;
        *sim.version_mut("timestamp") = 5;
        sim.publish(&["root", "targets"]);
    }
    sim.publish(&["snapshot", "timestamp"]);
}

#[test]
fn every_clock_age_and_attack() {
    let clocks = [
        ("1970", UtcSeconds(0)),
        ("-2 years", NOW.plus_seconds(-730 * DAY)),
        ("right", NOW),
        ("+10 years", NOW.plus_seconds(3650 * DAY)),
    ];
    // A moment that has certainly passed lies 10 days back: expired is after it, long expired before it.
    let passed = NOW.plus_seconds(-10 * DAY);
    let ages = [
        ("current", NOW.plus_seconds(29 * DAY)),
        ("near expiry", NOW.plus_seconds(60)),
        ("expired", NOW.plus_seconds(-DAY)),
        ("long expired", NOW.plus_seconds(-20 * DAY)),
    ];
    // One row an attack; one word a clock, in it one letter an age.
    let grid = [
        ("none", ["UUUS", "UUUS", "FFSS", "SSSS"]),
        ("freeze", ["uuuS", "uuuS", "ffSS", "SSSS"]),
        ("fast-forward", ["uuuS", "uuuS", "ffSS", "SSSS"]),
        ("replay", ["RRRR", "RRRR", "RRRR", "SSSS"]),
    ];
    for (attack, rows) in grid {
        for ((clock_name, clock), row) in clocks.into_iter().zip(rows) {
            for ((age, expires), expected) in ages.into_iter().zip(row.chars()) {
                let cell = format!("{attack}, clock {clock_name}, metadata {age}");
                let policy = Policy {
                    not_before: passed,
                    ..Policy::default()
                };
                // In touch before that moment was known to have passed.
                let before_policy = Policy::default();
                let mut device = scene(attack, expires, before_policy);
                device.policy = policy;
                let before = device.state.borrow().clone();
                assert_eq!(before.floors.time, NOW.plus_seconds(-25 * DAY), "{cell}");
                assert_eq!(device.ends(clock), expected, "{cell}");

                let after = device.state.borrow().clone();
                let risen = matches!(expected, 'F' | 'f');
                let time = if risen { NOW } else { before.floors.time };
                assert_eq!(after.floors.time, time, "{cell}: the time floor");
                assert!(after.floors.root >= before.floors.root, "{cell}");
                assert!(
                    after.floors.timestamp.version >= before.floors.timestamp.version,
                    "{cell}"
                );
                assert!(
                    after.floors.snapshot.version >= before.floors.snapshot.version,
                    "{cell}"
                );
                if matches!(expected, 'S' | 'R') {
                    assert_eq!(after.floors, before.floors, "{cell}: what was refused left something");
                }
                // A second look finds the same.
                assert_eq!(device.ends(clock), expected, "{cell}, again");

                honest_again(&device, attack);
                let later = NOW.plus_seconds(3600);
                assert_eq!(device.ends(later), 'F', "{cell}: no way back");
                assert_eq!(device.state.borrow().floors.time, later, "{cell}");
            }
        }
    }
}

#[test]
fn what_an_unknown_time_may_do_is_the_maker_s_to_say() {
    for (unknown_time, waits) in [
        (UnknownTime::Install, false),
        (UnknownTime::SecurityOnly, true),
        (UnknownTime::Refuse, true),
    ] {
        let policy = Policy {
            unknown_time,
            ..Policy::default()
        };
        let device = scene("none", NOW.plus_seconds(DAY), policy);
        let held = |clock| {
            let held = device.check(clock).unwrap().held;
            held.map(|held| held.reasons.iter().map(|one| one.condition).collect::<Vec<_>>())
        };
        assert_eq!(held(UtcSeconds(0)), waits.then(|| vec![Condition::Time]));
        assert_eq!(held(NOW), None);
    }
}

#[test]
fn a_delegated_role_that_expired_by_a_clock_that_is_ahead_raises_no_floor() {
    let device = scene("none", NOW.plus_seconds(29 * DAY), Policy::default());
    {
        let mut sim = device.sim.borrow_mut();
        sim.delegate("targets", "late", fwtests::repo_sim::paths(&["router/*/*"]));
        sim.role("late").expires = NOW.plus_seconds(5 * DAY);
        sim.publish(&["late", "targets", "snapshot", "timestamp"]);
    }
    let floor = || device.state.borrow().floors.time;
    let before = floor();
    let checked = device.check(NOW.plus_seconds(20 * DAY)).unwrap();
    assert_eq!((checked.problems.len(), floor()), (1, before));
    // With the clock set right, everything is as good as it was.
    assert!(device.check(NOW).unwrap().problems.is_empty());
    assert_eq!(floor(), NOW);
}

#[test]
fn a_device_from_the_shelf_walks_ten_roots_with_its_clock_at_1970() {
    let shelf = |last_root_expires: UtcSeconds| {
        let mut sim = RepoSim::new();
        // Each root was valid in its year, and signs with new keys.
        for year in (1..=9).rev() {
            sim.root.expires = NOW.plus_seconds(-365 * DAY * year);
            sim.rotate(if year % 2 == 0 { "timestamp" } else { "snapshot" });
            sim.publish(&["root"]);
        }
        sim.root.expires = last_root_expires;
        sim.rotate("targets");
        sim.publish(&["root"]);
        add_release(&mut sim);
        sim.publish(&["targets", "snapshot", "timestamp"]);
        Device::new(sim, Policy::default())
    };
    let device = shelf(NOW.plus_seconds(365 * DAY));
    assert_eq!(device.ends(UtcSeconds(0)), 'U');
    assert_eq!(device.trusted.borrow().roots.len(), 10);
    let floors = device.state.borrow().floors.clone();
    assert_eq!((floors.root, floors.time), (11, UtcSeconds(0)));
    assert_eq!(device.ends(NOW), 'F');
    // The last root must be valid, whatever the clock shows: here it expired before this program was made.
    let given_up = shelf(UtcSeconds::parse("2025-06-01T00:00:00Z").unwrap());
    for clock in [UtcSeconds(0), NOW] {
        assert_eq!(given_up.ends(clock), 'S');
    }
}
