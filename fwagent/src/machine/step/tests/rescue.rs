//! A device with a main system, which runs from slot `a`, and a rescue system in slot `r`.

use super::*;
use crate::machine::rescue::{MAX_TRIPS, Rescue};

fn main_runs() -> State {
    State {
        rescue: Some(Rescue::new(slot("r"))),
        ..device()
    }
}

fn needed(sequence: u64) -> Event {
    Event::RescueNeeded {
        release: release(sequence, 0),
    }
}

fn on(name: &str, armed: Option<u32>) -> Event {
    Event::PowerOn(BootView {
        booted: Some(slot(name)),
        armed: armed.map(|left| (slot("r"), left)).into_iter().collect(),
    })
}

fn into(name: &str, sequence: u64) -> Event {
    Event::Planned {
        slot: slot(name),
        release: release(sequence, 0),
    }
}

fn to_rescue(sequence: u64) -> Vec<Event> {
    vec![
        needed(sequence),
        Event::Armed { attempts: 3 },
        on("r", Some(2)),
        Event::Confirmed,
    ]
}

/// From rescue: written, tried, judged.
fn through_trial(sequence: u64, verdict: Event) -> Vec<Event> {
    let (armed, trial) = (Event::Armed { attempts: 3 }, on("a", None));
    vec![
        into("a", sequence),
        Event::Cleared,
        Event::Installed,
        armed,
        trial,
        verdict,
    ]
}

#[test]
fn main_is_updated_from_rescue_and_becomes_active_again() {
    let start = main_runs();
    let step = after(&start, [needed(2)]);
    assert_eq!(step.effects, [Effect::Arm(slot("r"))]);
    assert_eq!(step.state.active, slot("a"));
    let step = after(&step.state, [Event::Armed { attempts: 3 }]);
    assert_eq!(step.effects, [Effect::Reboot]);
    let step = after(&step.state, [on("r", Some(2))]);
    assert_eq!(step.effects, [Effect::Confirm(slot("r"))], "before main is written");
    let rescue = after(&step.state, [Event::Confirmed]).state;
    assert_eq!((&rescue.active, &rescue.phase), (&slot("r"), &Phase::Idle));
    assert_eq!(rescue.slot(&slot("a")).0, SlotStatus::Confirmed);
    let events = through_trial(2, Event::HealthPassed)
        .into_iter()
        .chain([Event::Confirmed]);
    let done = after(&rescue, events).state;
    assert_eq!((&done.active, &done.phase), (&slot("a"), &Phase::Idle));
    assert_eq!(done.rescue, Some(Rescue::new(slot("r"))));
    assert!(done.floors.permit_install("stable", 1).is_err());
}

#[test]
fn a_trial_that_fails_goes_back_to_rescue_which_keeps_working() {
    let events = to_rescue(2).into_iter().chain(through_trial(2, failed()));
    let step = after(&main_runs(), events);
    assert_eq!(step.effects, [Effect::Disable(slot("a")), Effect::Reboot]);
    let back = after(&step.state, [on("r", None)]).state;
    assert_eq!((&back.active, &back.phase), (&slot("r"), &Phase::Idle));
    assert!(back.rejection(&[2; 32]).is_some());
    let next = through_trial(3, Event::HealthPassed)
        .into_iter()
        .chain([Event::Confirmed]);
    assert_eq!(after(&back, next).state.active, slot("a"));
}

#[test]
fn a_rescue_system_that_does_not_come_up_costs_the_release_not_the_device() {
    let armed = after(&main_runs(), to_rescue(2).into_iter().take(2)).state;
    assert_eq!(after(&armed, [on("a", Some(3))]).effects, [Effect::Reboot]);
    for left in [Some(2), Some(0), None] {
        let back = after(&armed, [on("a", left)]);
        assert_eq!((&back.state.active, &back.state.phase), (&slot("a"), &Phase::Idle));
        assert!(back.state.rejection(&[2; 32]).is_some() && back.effects.is_empty());
        assert_eq!(back.state.slot(&slot("a")).0, SlotStatus::Confirmed);
    }
}

#[test]
fn nobody_goes_to_and_fro_for_ever() {
    let mut state = main_runs();
    // Another release is confirmed each time: rescue never sees the one that main sees.
    for trip in 0..MAX_TRIPS {
        assert!(
            matches!(after(&state, [needed(9)]).state.phase, Phase::ToRescue { .. }),
            "trip {trip}"
        );
        let events = to_rescue(9).into_iter().chain(through_trial(2, Event::HealthPassed));
        state = after(&state, events.chain([Event::Confirmed])).state;
    }
    let given_up = after(&state, [needed(9)]);
    assert!(given_up.effects.is_empty() && given_up.state.phase == Phase::Idle);
    assert!(
        given_up
            .state
            .rejection(&[9; 32])
            .unwrap()
            .reason
            .contains("3 restarts")
    );
    // Another release, and the same one when the operator says so, get their own trips.
    for sequence in [10, 9] {
        assert_eq!(
            after(&given_up.state, [needed(sequence)]).effects,
            [Effect::Arm(slot("r"))]
        );
    }
}

#[test]
fn a_restart_that_is_withheld_is_no_trip() {
    let step = after(&main_runs(), [needed(2), Event::Withheld]);
    assert_eq!(step.effects, [Effect::Disable(slot("r"))]);
    assert_eq!(step.state.phase, Phase::Idle);
    assert_eq!(step.state.rescue.unwrap().trips.unwrap().1, 0);
}

#[test]
fn the_operator_goes_to_rescue_and_back() {
    let step = after(&main_runs(), [Event::RollbackAsked]);
    assert_eq!(step.effects, [Effect::Confirm(slot("r")), Effect::Reboot]);
    let rescue = after(&step.state, [Event::Confirmed, on("r", None)]).state;
    assert_eq!((&rescue.active, &rescue.phase), (&slot("r"), &Phase::Idle));
    assert!(
        rescue.rejection(&[1; 32]).is_some(),
        "main's software does not come back by itself"
    );
    let step = after(&rescue, [Event::RollbackAsked]);
    assert_eq!(step.effects, [Effect::Confirm(slot("a")), Effect::Reboot]);
    assert_eq!(
        after(&step.state, [Event::Confirmed, on("a", None)]).state.active,
        slot("a")
    );
}

#[test]
fn a_boot_loader_that_goes_to_rescue_by_itself_is_followed() {
    let step = after(&main_runs(), [on("r", None)]);
    assert_eq!(step.effects, [Effect::Confirm(slot("r"))]);
    assert_eq!(step.state.last.as_ref().unwrap().result, UpdateResult::FellBack);
    // It changed its mind before it was told.
    let back = after(&step.state, [on("a", None)]).state;
    assert_eq!((&back.active, &back.phase), (&slot("a"), &Phase::Idle));
    assert!(back.rejected.is_empty());
    assert_eq!(after(&step.state, [Event::Confirmed]).state.active, slot("r"));
}

#[test]
fn cells_of_a_device_with_a_rescue_system() {
    let asked = after(&main_runs(), [needed(2)]).state;
    let armed = after(&asked, [Event::Armed { attempts: 3 }]).state;
    let chosen = after(&main_runs(), [on("r", None)]).state;
    let rescue = after(&armed, [on("r", Some(2)), Event::Confirmed]).state;
    let events = || {
        let mut events = vec![on("a", Some(3)), on("a", Some(0)), on("r", Some(2)), on("b", None)];
        events.extend([into("a", 2), into("r", 2), needed(2), needed(1)]);
        events.extend(
            all_events()
                .into_iter()
                .skip(7)
                .filter(|event| !matches!(event, Event::RescueNeeded { .. })),
        );
        events
    };
    // Power-on in main (attempts left, none left), in rescue, elsewhere; planned for main, for rescue; needed (a newer
    // release, the same); then as in the other grid, from `Cleared` on.
    for (state, name, expected) in [
        (main_runs(), "idle", "iiR---RR---------r"),
        (asked, "to-rescue", "RRR--------Ri--i--"),
        (armed, "to-rescue", "RiR---------i--i--"),
        (chosen, "to-rescue", "iiR------------i--"),
        (rescue, "idle", "iii-l------------r"),
    ] {
        assert_eq!(state.phase.word(), name);
        let actual: String = events().into_iter().map(|event| letter(&state, event)).collect();
        assert_eq!(actual, expected, "{state:?}");
        assert_eq!(record::decode(&record::encode(&state)), Ok(state));
    }
    let refused = step(&main_runs(), into("r", 2), AT).unwrap_err();
    assert_eq!(refused, Refusal::RescueSlot { slot: slot("r") });
}

#[test]
fn a_record_without_a_rescue_system_stays_readable() {
    let written = String::from_utf8(record::encode(&device())).unwrap();
    let before = written.replace(",\"rescue\":null", "").replace("\"rescue\":null,", "");
    assert_ne!(before, written);
    assert_eq!(record::decode(before.as_bytes()), Ok(device()));
}

#[test]
fn random_life_between_main_and_rescue_keeps_the_rules() {
    let mut trips = 0;
    for seed in 1..=400_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut device = Device {
            settings: super::settings::Kept::new(seed),
            state: main_runs(),
            boot: BootRecord::new(slot("a")),
            whole: BTreeMap::from([(slot("a"), true), (slot("r"), true)]),
            restart: false,
            withheld: false,
        };
        let mut sequence = 1;
        let update = |device: &Device, sequence| match device.state.is_rescue(&device.state.active) {
            true => into("a", sequence),
            false => needed(sequence),
        };
        for _ in 0..80 {
            let mut budget = u32::try_from(2 + next(14)).unwrap();
            let healthy = next(3) > 0;
            device.withheld = next(4) == 0;
            device.power_on(healthy, &mut budget);
            while budget > 0 && !device.restart && next(4) > 0 {
                let event = match next(5) {
                    0 => Event::RollbackAsked,
                    _ => {
                        sequence += next(2);
                        update(&device, sequence)
                    }
                };
                device.run(event, healthy, &mut budget);
            }
            trips += u32::from(matches!(device.state.phase, Phase::ToRescue { .. }));
        }
        // Left alone with power, it comes to rest and can update again, from wherever it is.
        device.withheld = false;
        for _ in 0..6 {
            device.power_on(true, &mut 1000);
        }
        sequence += 1;
        for _ in 0..6 {
            if device.state.phase == Phase::Idle && device.state.installed() == Some(&release(sequence, 0)) {
                break;
            }
            let event = update(&device, sequence);
            device.run(event, true, &mut 1000);
            device.power_on(true, &mut 1000);
        }
        assert_eq!(
            (&device.state.active, &device.state.phase),
            (&slot("a"), &Phase::Idle),
            "seed {seed}"
        );
    }
    assert!(trips > 100, "{trips}");
}
