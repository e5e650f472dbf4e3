#![allow(clippy::unwrap_used)]
use super::*;

fn at(text: &str) -> Reference {
    let at = UtcSeconds::parse(text).unwrap();
    Reference::new(at, at)
}

fn noon() -> Reference {
    at("2026-11-25T12:00:00Z")
}

fn ask(gate: Gate) -> Ask {
    Ask {
        gate,
        security: false,
        bytes: 1000,
        ignore: BTreeSet::new(),
    }
}

fn good() -> Facts {
    Facts {
        power: Power {
            external: Some(true),
            battery: Some(5),
        },
        free_bytes: Some(1 << 30),
        ..Facts::default()
    }
}

fn conditions(policy: &Policy, facts: &Facts, time: Reference, ask: &Ask) -> Vec<Condition> {
    judge(policy, facts, time, ask)
        .iter()
        .map(|one| one.condition)
        .collect()
}

fn everything() -> (Policy, Facts) {
    let policy = Policy {
        min_battery: Some(30),
        windows: Some(Windows::parse(&["22:00-05:00".to_owned()], "Z").unwrap()),
        ..Policy::default()
    };
    let facts = Facts {
        power: Power {
            external: Some(false),
            battery: Some(29),
        },
        free_bytes: Some(10),
        inhibitors: vec![Inhibitor {
            name: "recorder".to_owned(),
            reason: "recording".to_owned(),
        }],
        hold: Some(Hold {
            since: UtcSeconds(0),
            until: None,
            reason: String::new(),
        }),
    };
    (policy, facts)
}

#[test]
fn a_device_without_conditions_waits_for_nothing() {
    for gate in [Gate::Install, Gate::Restart] {
        assert_eq!(judge(&Policy::default(), &good(), noon(), &ask(gate)), []);
        let blind = Facts::default();
        assert_eq!(judge(&Policy::default(), &blind, noon(), &ask(gate)), []);
    }
}

#[test]
fn everything_that_withholds_is_listed_with_its_reason() {
    let (policy, facts) = everything();
    let all = judge(&policy, &facts, noon(), &ask(Gate::Install));
    let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "power: the battery is at 29 %, below the 30 % that are needed without external power",
            "space: 10 bytes are free in the state directory, 1049576 are needed: 1000 to download, 1048576 in reserve",
            "inhibit: recorder: recording",
            "hold: held until `fwagent resume`",
            "window: the hours of updates are 22:00-05:00 (UTC+00:00); the next begin at 2026-11-25T22:00:00Z",
        ]
    );
    assert_eq!(all[4].until, Some(UtcSeconds::parse("2026-11-25T22:00:00Z").unwrap()));
    // A restart downloads nothing.
    let restart = conditions(&policy, &facts, noon(), &ask(Gate::Restart));
    assert_eq!(
        restart,
        [Condition::Power, Condition::Inhibit, Condition::Hold, Condition::Window]
    );
}

#[test]
fn power() {
    let policy = |unknown_power| Policy {
        min_battery: Some(30),
        unknown_power,
        ..Policy::default()
    };
    for (external, battery, allowed) in [
        (Some(true), None, true),
        (Some(true), Some(0), true),
        (Some(false), Some(30), true),
        (None, Some(100), true),
        (Some(false), Some(29), false),
        (None, Some(0), false),
    ] {
        let facts = Facts {
            power: Power { external, battery },
            ..good()
        };
        for unknown in [Unknown::Allow, Unknown::Refuse] {
            let found = judge(&policy(unknown), &facts, noon(), &ask(Gate::Install));
            assert_eq!(found.is_empty(), allowed, "{external:?} {battery:?}");
        }
    }
    for external in [None, Some(false)] {
        let power = Power {
            external,
            battery: None,
        };
        let facts = Facts { power, ..good() };
        assert_eq!(judge(&policy(Unknown::Allow), &facts, noon(), &ask(Gate::Restart)), []);
        let refused = conditions(&policy(Unknown::Refuse), &facts, noon(), &ask(Gate::Restart));
        assert_eq!(refused, [Condition::Power]);
    }
}

#[test]
fn nobody_s_word_charges_a_battery_or_makes_room() {
    let (policy, facts) = everything();
    let left = [Condition::Power, Condition::Space];
    let told = Ask {
        ignore: Condition::ALL.into(),
        ..ask(Gate::Install)
    };
    assert_eq!(conditions(&policy, &facts, noon(), &told), left);
    let generous = Policy {
        security_passes: Condition::ALL.into(),
        ..policy
    };
    let security = Ask {
        security: true,
        ..ask(Gate::Install)
    };
    assert_eq!(conditions(&generous, &facts, noon(), &security), left);
    // It is for security releases alone.
    assert_eq!(conditions(&generous, &facts, noon(), &ask(Gate::Install)).len(), 5);
}

#[test]
fn windows_apply_from_their_gate_on() {
    let (policy, _) = everything();
    let restart_only = Policy {
        window_from: Gate::Restart,
        ..policy.clone()
    };
    let facts = good();
    assert_eq!(judge(&restart_only, &facts, noon(), &ask(Gate::Install)), []);
    let restart = ask(Gate::Restart);
    assert_eq!(conditions(&restart_only, &facts, noon(), &restart), [Condition::Window]);
    assert_eq!(judge(&policy, &facts, at("2026-11-25T23:00:00Z"), &restart), []);
}

#[test]
fn a_clock_that_is_not_to_be_believed_opens_or_closes_the_window_as_configured() {
    let (policy, _) = everything();
    let night_of_1970 = UtcSeconds(23 * 3600);
    let unknown = Reference::new(night_of_1970, noon().at);
    assert_eq!(judge(&policy, &good(), unknown, &ask(Gate::Install)), []);
    let strict = Policy {
        window_unknown_time: Unknown::Refuse,
        ..policy
    };
    let withheld = judge(&strict, &good(), unknown, &ask(Gate::Install));
    assert!(withheld[0].reason.contains("not to be believed") && withheld[0].until.is_none());
}

#[test]
fn a_hold_that_has_ended_holds_nothing() {
    let facts = Facts {
        hold: Some(Hold {
            since: UtcSeconds(0),
            until: Some(noon().at),
            reason: "holidays".to_owned(),
        }),
        ..good()
    };
    let before = Reference::new(noon().at.plus_seconds(-1), UtcSeconds(0));
    let held = judge(&Policy::default(), &facts, before, &ask(Gate::Install));
    assert_eq!(held[0].until, Some(noon().at));
    assert!(held[0].to_string().ends_with(": holidays"));
    assert_eq!(judge(&Policy::default(), &facts, noon(), &ask(Gate::Install)), []);
}

#[test]
fn a_clock_that_is_wrong_stops_what_the_maker_says() {
    let wrong = Reference::new(UtcSeconds(0), noon().at);
    let security = Ask {
        security: true,
        ..ask(Gate::Install)
    };
    for (unknown_time, feature, mends) in [
        (UnknownTime::Install, true, true),
        (UnknownTime::SecurityOnly, false, true),
        (UnknownTime::Refuse, false, false),
    ] {
        let policy = Policy {
            unknown_time,
            ..Policy::default()
        };
        let allowed = |time, ask: &Ask| conditions(&policy, &good(), time, ask) != [Condition::Time];
        assert_eq!(
            (allowed(wrong, &ask(Gate::Install)), allowed(wrong, &security)),
            (feature, mends)
        );
        assert!(allowed(noon(), &ask(Gate::Install)) && allowed(noon(), &security));
        // What is in its slot was judged before.
        assert!(allowed(wrong, &ask(Gate::Restart)));
    }
}
