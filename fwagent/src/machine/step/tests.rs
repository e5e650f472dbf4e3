#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use fwmeta::manifest::SemVer;

use super::*;

mod settings;
use crate::machine::boot::BootRecord;
use crate::machine::record;
use crate::machine::release::ComponentRef;
use crate::machine::slot::SlotStatus;

mod rescue;

const AT: UtcSeconds = UtcSeconds(1_800_000_000);

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn release(sequence: u64, security_floor: u64) -> ReleaseRef {
    ReleaseRef {
        manifest_sha256: [sequence as u8; 32],
        version: SemVer::new(1, sequence, 0),
        sequence,
        security_floor,
        channel: "stable".to_owned(),
        security: false,
        components: vec![ComponentRef {
            name: "main".to_owned(),
            slot_class: "system".to_owned(),
            image_sha256: [sequence as u8; 32],
        }],
    }
}

fn device() -> State {
    State::new(slot("a"), Some(release(1, 0)))
}

fn booted(name: &str, armed: Option<u32>) -> Event {
    Event::PowerOn(BootView {
        booted: Some(slot(name)),
        armed: armed.map(|left| (slot("b"), left)).into_iter().collect(),
    })
}

fn planned(sequence: u64) -> Event {
    Event::Planned {
        slot: slot("b"),
        release: release(sequence, 0),
    }
}

fn failed() -> Event {
    Event::HealthFailed {
        reason: "check web: exit status 1".to_owned(),
        log: "no route".to_owned(),
    }
}

/// Applies events that must all be transitions.
fn after(state: &State, events: impl IntoIterator<Item = Event>) -> Step {
    let mut last = step_of(state.clone(), vec![]);
    for event in events {
        last = step(&last.state, event.clone(), AT).unwrap_or_else(|error| panic!("{event:?}: {error}"));
    }
    // Those have tests of their own.
    last.effects.retain(|effect| !settings::is_own(effect));
    last
}

fn to_trial() -> Vec<Event> {
    vec![
        planned(2),
        Event::Cleared,
        Event::Installed,
        Event::Armed { attempts: 3 },
        booted("b", Some(2)),
    ]
}

#[test]
fn an_update_from_plan_to_confirmation() {
    let start = device();
    let step = after(&start, [planned(2)]);
    assert_eq!(step.effects, [Effect::Clear(slot("b"))]);
    let step = after(&step.state, [Event::Cleared]);
    assert_eq!(step.effects, [Effect::Install]);
    let step = after(&step.state, [Event::Installed]);
    assert_eq!(step.effects, [Effect::Arm(slot("b"))]);
    let step = after(&step.state, [Event::Armed { attempts: 3 }]);
    assert_eq!(step.effects, [Effect::Reboot]);
    let step = after(&step.state, [booted("b", Some(2))]);
    assert_eq!(step.effects, [Effect::CheckHealth(slot("b"))]);
    assert_eq!(step.state.floors, start.floors, "floors rise only at confirmation");
    let step = after(&step.state, [Event::HealthPassed]);
    assert_eq!(step.effects, [Effect::Confirm(slot("b"))]);
    assert_eq!(step.state.floors, start.floors, "not before the boot loader knows");
    let step = after(&step.state, [Event::Confirmed]);
    assert_eq!(step.state.active, slot("b"));
    assert!(step.state.floors.permit_install("stable", 1).is_err());
    assert_eq!(step.state.last.as_ref().unwrap().result, UpdateResult::Confirmed);
    assert_eq!(
        step.state.slot(&slot("a")).0,
        SlotStatus::Confirmed,
        "the fall-back stays"
    );
}

#[test]
fn a_failed_check_falls_back_and_the_release_is_rejected() {
    let step = after(&device(), to_trial().into_iter().chain([failed()]));
    assert_eq!(step.effects, [Effect::Disable(slot("b")), Effect::Reboot]);
    let step = after(&step.state, [booted("a", None)]);
    let state = step.state;
    assert_eq!((state.phase.clone(), state.active.clone()), (Phase::Idle, slot("a")));
    assert_eq!(state.slot(&slot("b")).0, SlotStatus::Bad);
    assert!(state.rejection(&[2; 32]).unwrap().reason.contains("check web"));
    assert_eq!(state.last.as_ref().unwrap().log, "no route");
    assert_eq!(state.floors, device().floors);
}

#[test]
fn used_up_attempts_are_a_fall_back_and_a_missing_restart_is_not() {
    let pending = after(&device(), to_trial().into_iter().take(4)).state;
    let again = after(&pending, [booted("a", Some(3))]);
    assert_eq!((again.state, again.effects), (pending.clone(), vec![Effect::Reboot]));
    for (left, in_trial) in [(Some(0), false), (None, false), (Some(1), false), (Some(0), true)] {
        let state = if in_trial {
            after(&pending, [booted("b", Some(2))]).state
        } else {
            pending.clone()
        };
        let end = after(&state, [booted("a", left)]);
        assert_eq!(end.state.phase, Phase::Idle, "{left:?}");
        assert_eq!(end.effects, [Effect::Disable(slot("b"))]);
        assert!(end.state.rejection(&[2; 32]).is_some());
    }
}

#[test]
fn a_slot_that_was_not_heard_of_is_explained_by_what_it_left_behind() {
    let pending = after(&device(), to_trial().into_iter().take(4)).state;
    let trial = after(&pending, [booted("b", Some(2))]).state;
    for before in [&pending, &trial] {
        let mut end = after(before, [booted("a", Some(0))]);
        assert!(end.is_unexplained(before));
        end.explain(&format!("{}Kernel panic", "x".repeat(LOG_BYTES)));
        let last = end.state.last.as_ref().unwrap();
        assert!(last.log.ends_with("xKernel panic") && last.log.len() == LOG_BYTES);
        assert!(last.reason.contains("attempt") || last.reason.contains("went back"));
    }
    // A trial that failed by itself has said why; nor is there an outcome before the attempts are used up.
    let failing = after(&trial, [failed()]).state;
    for (before, event) in [
        (&failing, booted("a", None)),
        (&pending, booted("a", Some(3))),
        (&pending, booted("b", Some(2))),
        (&trial, Event::HealthPassed),
    ] {
        assert!(!after(before, [event.clone()]).is_unexplained(before), "{event:?}");
    }
    // An outcome of an earlier update is not touched.
    let mut again = failing.clone();
    again.last = after(&pending, [booted("a", Some(0))]).state.last;
    assert!(!after(&again, [booted("b", None)]).is_unexplained(&again));
}

#[test]
fn a_cut_between_verdict_and_confirmation_is_finished_or_forgotten_but_never_rejected() {
    let confirming = after(&device(), to_trial().into_iter().chain([Event::HealthPassed])).state;
    let again = after(&confirming, [booted("b", None)]);
    assert_eq!(again.effects, [Effect::Confirm(slot("b"))]);
    let back = after(&confirming, [booted("a", Some(0))]).state;
    assert_eq!(back.phase, Phase::Idle);
    assert!(back.rejection(&[2; 32]).is_none());
    assert_eq!(back.floors, device().floors);
}

#[test]
fn a_slot_that_was_to_be_written_and_boots_before_it_was_cleared_is_what_it_was() {
    let updated = after(
        &device(),
        to_trial().into_iter().chain([Event::HealthPassed, Event::Confirmed]),
    )
    .state;
    let next = Event::Planned {
        slot: slot("a"),
        release: release(3, 0),
    };
    let clearing = after(&updated, [next]).state;
    assert_eq!(clearing.slot(&slot("a")).0, SlotStatus::Confirmed);
    // The loader counted the active slot out before it was told: the earlier software runs and is active now.
    let back = after(&clearing, [booted("a", None)]);
    assert_eq!(
        (back.state.active.clone(), back.state.phase.clone()),
        (slot("a"), Phase::Idle)
    );
    assert_eq!(back.state.floors, updated.floors);
    // Once it was cleared nobody may boot it: what it holds is undefined.
    let staging = after(&clearing, [Event::Cleared]).state;
    assert!(matches!(
        step(&staging, booted("a", None), AT),
        Err(Refusal::UnexpectedSlot { running, expected }) if running == slot("a") && expected == staging.active
    ));
}

#[test]
fn what_waits_for_its_restart_is_not_armed_and_gives_way_to_what_is_newer() {
    let staged = after(&device(), to_trial().into_iter().take(3)).state;
    let armed = after(&staged, [Event::Armed { attempts: 3 }]).state;
    for state in [&staged, &armed] {
        let waits = after(state, [Event::Withheld]);
        assert_eq!(
            (&waits.state, waits.effects),
            (&staged, vec![Effect::Disable(slot("b"))])
        );
    }
    let again = after(&staged, [booted("a", None)]);
    assert_eq!((&again.state, again.effects), (&staged, vec![Effect::Arm(slot("b"))]));
    let newer = after(&staged, [planned(3)]);
    assert_eq!(newer.effects, [Effect::Clear(slot("b"))]);
    assert_eq!(newer.state.slot(&slot("b")).0, SlotStatus::Bad);
    // Armed unknown to the record, it boots before it was cleared: then out of it, and on with the newer one.
    let stray = after(&newer.state, [booted("b", Some(2))]);
    assert_eq!(stray.effects, [Effect::Disable(slot("b")), Effect::Reboot]);
    let back = after(&stray.state, [booted("a", None)]).state;
    assert_eq!((&back.phase, &back.active), (&Phase::Idle, &slot("a")));
    assert!(back.rejected.is_empty());
}

#[test]
fn the_operator_rolls_back_and_the_floor_stays() {
    let confirmed = after(
        &device(),
        to_trial().into_iter().chain([Event::HealthPassed, Event::Confirmed]),
    )
    .state;
    let asked = after(&confirmed, [Event::RollbackAsked]);
    assert_eq!(asked.effects, [Effect::Confirm(slot("a")), Effect::Reboot]);
    let done = after(&asked.state, [Event::Confirmed, booted("a", None)]).state;
    assert_eq!((done.active.clone(), done.phase.clone()), (slot("a"), Phase::Idle));
    assert_eq!(done.floors, confirmed.floors);
    assert!(done.rejection(&[2; 32]).is_some(), "it does not come back by itself");
    // There is nothing else to go back to on a device that never updated.
    assert_eq!(
        step(&device(), Event::RollbackAsked, AT),
        Err(Refusal::NothingToRollBackTo)
    );
}

#[test]
fn a_security_floor_takes_the_old_slot_away() {
    let mut events = to_trial();
    events[0] = Event::Planned {
        slot: slot("b"),
        release: release(2, 2),
    };
    let passed = after(&device(), events.into_iter().chain([Event::HealthPassed]));
    assert_eq!(passed.effects, [Effect::Confirm(slot("b"))]);
    assert_eq!(passed.state.below_next_floor(), [slot("a")]);
    let end = after(&passed.state, [Event::Confirmed]);
    assert!(end.effects.is_empty() && !end.state.confirmed.contains_key(&slot("a")));
    assert_eq!(end.state.slot(&slot("a")).0, SlotStatus::Bad);
    assert_eq!(
        step(&end.state, Event::RollbackAsked, AT),
        Err(Refusal::NothingToRollBackTo)
    );
}

#[test]
fn a_slot_that_was_given_up_is_left_although_the_boot_loader_was_not_told_in_time() {
    let pending = after(&device(), to_trial().into_iter().take(4)).state;
    let given_up = after(&pending, [Event::RollbackAsked]);
    assert_eq!(given_up.effects, [Effect::Disable(slot("b"))]);
    // The power went before that: the loader tries the slot.
    let tried = after(&given_up.state, [booted("b", Some(2))]);
    assert_eq!(tried.effects, [Effect::Disable(slot("b")), Effect::Reboot]);
    let back = after(&tried.state, [booted("a", None)]);
    assert_eq!(
        (back.state, back.effects),
        (given_up.state, vec![Effect::Disable(slot("b"))])
    );
}

#[test]
fn what_may_never_happen_is_refused() {
    let refused = |state: &State, event| step(state, event, AT).unwrap_err();
    let active = Event::Planned {
        slot: slot("a"),
        release: release(2, 0),
    };
    assert!(matches!(refused(&device(), active), Refusal::ActiveSlot { .. }));
    let mut risen = device();
    risen.floors.confirm(&release(5, 0));
    assert!(matches!(refused(&risen, planned(4)), Refusal::BelowFloor(_)));
    assert!(step(&risen, planned(5), AT).is_ok());
    assert!(matches!(
        refused(&device(), booted("b", None)),
        Refusal::UnexpectedSlot { .. }
    ));
    let trial = after(&device(), to_trial()).state;
    assert!(matches!(refused(&trial, planned(3)), Refusal::NotNow { .. }));
}

/// All phases, each as an update leaves it.
fn phases() -> Vec<State> {
    let mut states = vec![device()];
    let mut events = to_trial();
    events.push(Event::HealthPassed);
    for end in 1..=events.len() {
        states.push(after(&device(), events[..end].iter().cloned()).state);
    }
    states.push(after(&device(), to_trial().into_iter().chain([failed()])).state);
    let confirmed = after(&states[6], [Event::Confirmed]).state;
    states.push(after(&confirmed, [Event::RollbackAsked]).state);
    states
}

fn all_events() -> Vec<Event> {
    vec![
        booted("a", Some(3)),
        booted("a", Some(0)),
        booted("b", Some(2)),
        booted("b", None),
        Event::PowerOn(BootView {
            booted: None,
            armed: BTreeMap::new(),
        }),
        planned(2),
        planned(3),
        Event::Cleared,
        Event::Installed,
        Event::InstallFailed {
            reason: "digest".to_owned(),
            refused: true,
        },
        Event::Armed { attempts: 3 },
        Event::Withheld,
        Event::HealthPassed,
        failed(),
        Event::Confirmed,
        Event::ConfirmAsked,
        Event::RollbackAsked,
        Event::RescueNeeded { release: release(2, 0) },
    ]
}

/// The phase that follows, as grids show it.
fn letter(state: &State, event: Event) -> char {
    match step(state, event, AT) {
        Err(_) => '-',
        Ok(step) => match step.state.phase {
            Phase::Idle => 'i',
            Phase::Clearing { .. } => 'l',
            Phase::Staging { .. } => 's',
            Phase::Staged { .. } => 'S',
            Phase::Pending { .. } => 'p',
            Phase::Trial { .. } => 't',
            Phase::Confirming { .. } => 'c',
            Phase::FallingBack { .. } => 'f',
            Phase::RollingBack { .. } => 'r',
            Phase::ToRescue { .. } => 'R',
        },
    }
}

#[test]
fn every_cell_is_the_transition_or_refusal_listed_here() {
    // One row a phase, one column an event of `all_events`: i idle, l clearing, s staging, S staged, p pending, t trial,
    // c confirming, f falling back, r rolling back, - refused.
    let grid = [
        ("idle", "ii--i" /* power-on */, "ll-----------", "i----"),
        ("clearing", "ii--i", "lls--------i-", "l----"),
        ("staging", "ss--s", "ss-Si------i-", "s-s--"),
        ("staged", "SSttS", "ll---pS----i-", "S----"),
        ("pending", "pitti", "------S----i-", "p----"),
        ("trial", "iitti", "-------cf-cf-", "-t-t-"),
        ("confirming", "iicci", "---------i---", "-c---"),
        ("falling-back", "iiffi", "-------------", "-f---"),
        ("rolling-back", "iirrr", "---------r---", "-r---"),
    ];
    let states = phases();
    assert_eq!(states.len(), grid.len());
    for (state, (name, power_on, others, own)) in states.iter().zip(grid) {
        assert_eq!(state.phase.word(), name);
        let expected = format!("{power_on}{others}{own}");
        let events = all_events().into_iter().chain(settings::changes());
        let actual: String = events.map(|event| letter(state, event)).collect();
        assert_eq!(actual, expected, "{name}");
    }
}

#[test]
fn every_state_survives_its_record() {
    for state in phases() {
        assert_eq!(record::decode(&record::encode(&state)), Ok(state.clone()));
        let bytes = record::encode(&state);
        assert!(record::decode(&bytes[..bytes.len() - 1]).is_err());
    }
    assert!(record::decode(b"{\"schema\":2}").unwrap_err().reason.contains("newer"));
}

/// A device with the real step and boot record, and power cuts at every border between them.
struct Device {
    state: State,
    boot: BootRecord,
    /// Slots whose content is a whole image.
    whole: BTreeMap<SlotId, bool>,
    restart: bool,
    /// The device must not restart into an update.
    withheld: bool,
    settings: settings::Kept,
}

impl Device {
    /// Interprets a step as the driver does; `budget` counts the durable operations until the power goes.
    fn run(&mut self, event: Event, healthy: bool, budget: &mut u32) {
        let Ok(step) = step(&self.state, event, AT) else {
            return;
        };
        if !spend(budget) {
            return;
        }
        let floors = self.state.floors.clone();
        self.state = step.state;
        self.settings.check(&self.state);
        assert!(floors.components().all(|(component, channel, floor)| {
            self.state.floors.components().any(|(other, in_channel, now)| {
                (component, channel) == (other, in_channel)
                    && now.sequence >= floor.sequence
                    && now.security >= floor.security
            })
        }));
        for effect in step.effects {
            if self.restart || *budget == 0 {
                return;
            }
            let follows = match effect {
                Effect::Clear(slot) => {
                    if !spend(budget) {
                        return;
                    }
                    self.boot = self.boot.disabled(&slot);
                    Some(Event::Cleared)
                }
                Effect::Disable(slot) => {
                    if !spend(budget) {
                        return;
                    }
                    self.boot = self.boot.disabled(&slot);
                    None
                }
                Effect::Install => {
                    let slot = self.state.phase.update().unwrap().0.clone();
                    assert_ne!(
                        Some(&slot),
                        self.boot.booted.as_ref(),
                        "the running slot is never written"
                    );
                    assert!(!self.state.is_rescue(&slot), "the rescue system is never written");
                    assert!(
                        !self.boot.bootable.contains(&slot),
                        "disabled before its first byte changes"
                    );
                    self.whole.insert(slot.clone(), false);
                    if !spend(budget) {
                        return;
                    }
                    self.whole.insert(slot, true);
                    let prepared = self.settings.prepare(&self.state);
                    self.run(prepared, healthy, budget);
                    if *budget == 0 {
                        return;
                    }
                    Some(Event::Installed)
                }
                Effect::Arm(_) if self.withheld => Some(Event::Withheld),
                Effect::Arm(slot) => {
                    if !spend(budget) {
                        return;
                    }
                    assert!(self.whole[&slot], "armed only after it was read back");
                    self.boot = self.boot.armed(&slot, 2);
                    Some(Event::Armed { attempts: 2 })
                }
                Effect::SettleSettings(_) => self.settings.settle(&self.state),
                Effect::CarrySettingsBack => self.settings.carry_back(&self.state),
                Effect::PublishSettings => None,
                Effect::CheckHealth(_) if healthy => Some(Event::HealthPassed),
                Effect::CheckHealth(_) => Some(failed()),
                Effect::Confirm(slot) => {
                    if !spend(budget) {
                        return;
                    }
                    self.boot = self.boot.confirmed(&slot);
                    for below in self.state.below_next_floor() {
                        if !spend(budget) {
                            return;
                        }
                        self.boot = self.boot.disabled(&below);
                    }
                    Some(Event::Confirmed)
                }
                Effect::Reboot if self.withheld && matches!(self.state.phase, Phase::Pending { .. }) => {
                    Some(Event::Withheld)
                }
                Effect::Reboot => {
                    self.restart = true;
                    None
                }
            };
            if let Some(event) = follows {
                self.run(event, healthy, budget);
            }
        }
    }

    fn power_on(&mut self, healthy: bool, budget: &mut u32) {
        self.restart = false;
        let (chosen, next) = self.boot.power_on().unwrap();
        assert!(self.whole[&chosen], "only a whole image boots");
        let sequence = |release: &ReleaseRef| release.sequence;
        if let (_, Some(held)) = self.state.slot(&chosen) {
            assert!(self.state.floors.permit_boot("stable", sequence(held)).is_ok());
        }
        self.boot = next;
        self.run(Event::PowerOn(self.boot.view()), healthy, budget);
    }
}

fn spend(budget: &mut u32) -> bool {
    *budget = budget.saturating_sub(1);
    *budget > 0
}

#[test]
fn random_life_with_power_cuts_keeps_the_rules() {
    for seed in 1..=400_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut device = Device {
            state: device(),
            boot: BootRecord::new(slot("a")),
            whole: BTreeMap::from([(slot("a"), true)]),
            restart: false,
            withheld: false,
            settings: settings::Kept::new(seed),
        };
        let mut sequence = 1;
        for _ in 0..60 {
            let mut budget = u32::try_from(2 + next(12)).unwrap();
            let healthy = next(3) > 0;
            device.withheld = next(3) == 0;
            device.power_on(healthy, &mut budget);
            while budget > 0 && !device.restart && next(4) > 0 {
                device.withheld = next(3) == 0;
                let inactive = slot(if device.state.active == slot("a") { "b" } else { "a" });
                let event = match next(8) {
                    0 | 1 => Event::RollbackAsked,
                    2..=4 => match device.settings.edit(&device.state) {
                        Some(edit) => edit,
                        None => continue,
                    },
                    _ => {
                        sequence += 1;
                        Event::Planned {
                            slot: inactive,
                            release: release(sequence, if next(5) == 0 { sequence } else { 0 }),
                        }
                    }
                };
                device.run(event, healthy, &mut budget);
            }
        }
        // Left alone with power, it comes to rest and can update again.
        device.withheld = false;
        for _ in 0..4 {
            device.power_on(true, &mut 1000);
        }
        assert_eq!(
            device.state.phase.word().replace("staging", "idle"),
            "idle",
            "seed {seed}"
        );
        sequence += 1;
        let inactive = slot(if device.state.active == slot("a") { "b" } else { "a" });
        let event = Event::Planned {
            slot: inactive.clone(),
            release: release(sequence, 0),
        };
        device.run(event, true, &mut 1000);
        device.power_on(true, &mut 1000);
        assert_eq!(
            (&device.state.active, &device.state.phase),
            (&inactive, &Phase::Idle),
            "seed {seed}"
        );
    }
}
