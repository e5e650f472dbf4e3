//! Settings in the steps of the device: the effects around a start, and a life in which no edit is ever lost.

use std::collections::BTreeSet;

use super::*;
use crate::machine::settings::generation::GenerationId;
use crate::machine::settings::migrate::{Direction, MigrationStep};
use crate::machine::settings::slots::{MAX_ORPHANS, Origin, Orphan, SlotSettings};

/// Whether an effect is about settings.
pub fn is_own(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::SettleSettings(_) | Effect::CarrySettingsBack | Effect::PublishSettings
    )
}

fn id(number: u64) -> GenerationId {
    GenerationId {
        number,
        sha256: [number as u8; 32],
    }
}

/// Changes for the grid: an edit where `a` runs and where `b` does, and what becomes of an update's settings.
pub fn changes() -> Vec<Event> {
    let edit = |name| Change::Edited {
        slot: slot(name),
        generation: id(9),
        schema: 0,
        keep: 2,
    };
    let made = |settled| SlotSettings {
        origin: Some(Origin {
            slot: slot("a"),
            fork: id(9),
            steps: Some(Vec::new()),
            settled,
        }),
        ..SlotSettings::first(id(9), 0)
    };
    let prepared = Change::Prepared {
        slot: slot("b"),
        settings: made(false),
        base: id(8),
        carried: None,
    };
    let settled = Change::Settled {
        slot: slot("b"),
        settings: made(true),
        base: id(8),
    };
    let carried = Change::CarriedBack {
        slot: slot("a"),
        generation: id(9),
        schema: 0,
        orphan: None,
        carried: None,
        keep: 2,
    };
    let changes = [edit("a"), edit("b"), prepared, settled, carried];
    changes.map(|change| Event::Settings(change.into())).to_vec()
}

#[test]
fn files_are_written_at_each_start_and_settings_settle_before_health_is_checked() {
    let effects = |state: &State, event: Event| step(state, event, AT).unwrap().effects;
    assert_eq!(effects(&device(), booted("a", None)), [Effect::PublishSettings]);
    let pending = after(&device(), to_trial().into_iter().take(4)).state;
    assert_eq!(
        effects(&pending, booted("b", Some(2))),
        [
            Effect::SettleSettings(slot("b")),
            Effect::PublishSettings,
            Effect::CheckHealth(slot("b"))
        ]
    );
    // Nothing is to be published for software that is about to be left.
    assert_eq!(effects(&pending, booted("a", Some(3))), [Effect::Reboot]);
}

#[test]
fn going_back_selects_the_old_settings_in_the_same_write_and_remembers_the_edits() {
    let mut kept = Kept::new(1);
    let mut state = device();
    let tell = |state: &mut State, event: Event| *state = step(state, event, AT).unwrap().state;
    let change = kept.edit(&state).unwrap();
    tell(&mut state, change);
    for event in to_trial().into_iter().take(2) {
        tell(&mut state, event);
    }
    let change = kept.prepare(&state);
    tell(&mut state, change);
    for event in to_trial().into_iter().skip(2) {
        tell(&mut state, event);
    }
    // Not settled: the trial never ran with settings of its own.
    let back = step(&state, booted("a", Some(0)), AT).unwrap();
    assert!(back.state.settings.carry_back.is_none() && !back.effects.contains(&Effect::CarrySettingsBack));
    let change = kept.settle(&state).unwrap();
    tell(&mut state, change);
    let before = state.settings.slots[&slot("a")].clone();
    let change = kept.edit(&state).unwrap();
    tell(&mut state, change);
    let edited = state.settings.slots[&slot("b")].clone();
    assert_eq!(state.settings.slots[&slot("a")], before);
    let back = step(&state, booted("a", Some(0)), AT).unwrap();
    assert_eq!(back.state.runs(), &slot("a"));
    assert_eq!(back.state.settings.slots.keys().collect::<Vec<_>>(), [&slot("a")]);
    assert_eq!(
        back.state.settings.slots[&slot("a")],
        before,
        "software and settings together"
    );
    assert_eq!(back.state.settings.carry_back.as_ref().unwrap().settings, edited);
    assert_eq!(
        back.effects,
        [
            Effect::Disable(slot("b")),
            Effect::CarrySettingsBack,
            Effect::PublishSettings
        ]
    );
    // Also when the record is read back after another loss of power.
    let again = record::decode(&record::encode(&back.state)).unwrap();
    assert!(
        step(&again, booted("a", None), AT)
            .unwrap()
            .effects
            .contains(&Effect::CarrySettingsBack)
    );
}

#[test]
fn an_update_into_the_slot_ends_the_way_back_to_what_it_held() {
    let mut kept = Kept::new(1);
    let mut events = to_trial();
    events.truncate(2);
    let staging = after(&device(), events).state;
    let prepared = after(&staging, [kept.prepare(&staging)]).state;
    let trial = after(&prepared, to_trial().into_iter().skip(2)).state;
    let settled = after(&trial, [kept.settle(&trial).unwrap()]).state;
    let confirmed = after(&settled, [Event::HealthPassed, Event::Confirmed]).state;
    let origin = |state: &State| state.settings.slots[&slot("b")].origin.clone();
    assert!(origin(&confirmed).is_some() && confirmed.settings.slots.contains_key(&slot("a")));
    let plan = Event::Planned {
        slot: slot("a"),
        release: release(3, 0),
    };
    let clearing = after(&confirmed, [plan]).state;
    assert!(origin(&clearing).is_some(), "it may still be booted");
    let next = after(&clearing, [Event::Cleared]).state;
    assert!(origin(&next).is_none() && !next.settings.slots.contains_key(&slot("a")));
}

#[test]
fn a_damaged_generation_gives_way_and_is_remembered() {
    let mut state = device();
    let mut kept = Kept::new(3);
    for _ in 0..3 {
        let edit = kept.edit(&state).unwrap();
        state = after(&state, [edit]).state;
    }
    let held = state.settings.slots[&slot("a")].clone();
    let damaged = Change::Damaged {
        slot: slot("a"),
        instead: held.history[1],
    };
    let state = after(&state, [Event::Settings(damaged.into())]).state;
    assert_eq!(state.settings.slots[&slot("a")].generation, held.history[1]);
    assert_eq!(state.settings.slots[&slot("a")].history, [held.history[0]]);
    assert_eq!(state.settings.damaged, [held.generation]);
    assert_eq!(
        state.settings.last_number, held.generation.number,
        "numbers are never used again"
    );
}

#[test]
fn history_and_orphans_are_bounded() {
    let mut state = device();
    let mut kept = Kept::new(5);
    for _ in 0..20 {
        let edit = kept.edit(&state).unwrap();
        state = after(&state, [edit]).state;
    }
    assert_eq!(state.settings.slots[&slot("a")].history.len(), KEEP);
}

/// What a generation holds: ordinary edits, and the password.
#[derive(Debug, Clone, Default)]
struct Content {
    edits: BTreeSet<u64>,
    password: u64,
}

const KEEP: usize = 3;

/// The settings store of a device in memory: generations by their number.
#[derive(Debug)]
pub struct Kept {
    made: BTreeMap<u64, Content>,
    orphaned: BTreeMap<[u8; 32], BTreeSet<u64>>,
    random: u64,
    last_edit: u64,
    /// Edits that the record knew, and the newest password among them.
    known: BTreeSet<u64>,
    password: u64,
    /// What the last edit was, until the record knows it.
    offered: Option<(u64, Content)>,
}

impl Kept {
    pub fn new(seed: u64) -> Self {
        Self {
            made: BTreeMap::new(),
            orphaned: BTreeMap::new(),
            random: seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1,
            last_edit: 0,
            known: BTreeSet::new(),
            password: 0,
            offered: None,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn make(&mut self, state: &State, content: Content) -> GenerationId {
        // Generations that no record names have numbers that are used again; what they held is gone.
        self.offered = None;
        let number = state.settings.last_number + 1;
        self.made.insert(number, content);
        GenerationId {
            number,
            sha256: [0; 32],
        }
    }

    fn content(&self, settings: Option<&SlotSettings>) -> Content {
        settings.map_or_else(Content::default, |held| self.made[&held.generation.number].clone())
    }

    /// What `fwagent settings set` does; nothing where it refuses.
    pub fn edit(&mut self, state: &State) -> Option<Event> {
        let running = state.runs().clone();
        let held = state.settings.slots.get(&running);
        let settled = held
            .and_then(|held| held.origin.as_ref())
            .is_none_or(|origin| origin.settled);
        if matches!(state.phase, Phase::Trial { .. }) && (!settled || held.is_none())
            || state.settings.carry_back.is_some()
        {
            return None;
        }
        let mut content = self.content(held);
        self.last_edit += 1;
        if self.below(2) == 0 {
            content.password = self.last_edit;
        } else {
            content.edits.insert(self.last_edit);
        }
        let generation = self.make(state, content.clone());
        self.offered = Some((generation.number, content));
        Some(Event::Settings(Box::new(Change::Edited {
            slot: running,
            generation,
            schema: 0,
            keep: KEEP,
        })))
    }

    fn derive(&mut self, state: &State, settled: bool) -> (SlotSettings, GenerationId) {
        let held = state.settings.slots.get(&state.active);
        let base = held.map(|held| held.generation);
        let base = base.unwrap_or_else(|| self.make(state, Content::default()));
        let steps = match self.below(3) {
            0 => vec![],
            reversible => vec![MigrationStep {
                from: 0,
                to: 0,
                direction: Direction::Up,
                reversible: reversible == 1,
                program: [0; 32],
            }],
        };
        let made = SlotSettings {
            origin: Some(Origin {
                slot: state.active.clone(),
                fork: base,
                steps: Some(steps),
                settled,
            }),
            ..SlotSettings::first(base, 0)
        };
        (made, base)
    }

    pub fn prepare(&mut self, state: &State) -> Event {
        let slot = state.phase.update().unwrap().0.clone();
        let (settings, base) = self.derive(state, false);
        Event::Settings(Box::new(Change::Prepared {
            slot,
            settings,
            base,
            carried: None,
        }))
    }

    pub fn settle(&mut self, state: &State) -> Option<Event> {
        let slot = state.phase.update().unwrap().0.clone();
        let held = state.settings.slots.get(&slot);
        if held
            .and_then(|held| held.origin.as_ref())
            .is_some_and(|origin| origin.settled)
        {
            return None;
        }
        let (settings, base) = self.derive(state, true);
        Some(Event::Settings(Box::new(Change::Settled { slot, settings, base })))
    }

    pub fn carry_back(&mut self, state: &State) -> Option<Event> {
        let back = state.settings.carry_back.as_ref()?;
        let slot = state.runs().clone();
        let held = state.settings.slots.get(&slot);
        let mut content = self.content(held);
        let edited = self.content(Some(&back.settings));
        content.password = edited.password;
        let origin = back.settings.origin.as_ref().filter(|origin| origin.slot == slot);
        let reversible = origin
            .and_then(|origin| origin.steps.as_ref())
            .is_some_and(|steps| steps.iter().all(|step| step.reversible));
        let fork = origin.map_or_else(BTreeSet::new, |origin| self.made[&origin.fork.number].edits.clone());
        let edits: BTreeSet<u64> = edited.edits.difference(&fork).copied().collect();
        let mut orphan = None;
        if reversible {
            content.edits.extend(edits);
        } else if !edits.is_empty() {
            let mut sha256 = [0; 32];
            sha256[..8].copy_from_slice(&self.last_edit.to_le_bytes());
            self.orphaned.entry(sha256).or_default().extend(&edits);
            orphan = Some(Orphan {
                sha256,
                schema: 0,
                keys: edits.len() as u64,
                reason: "one way".to_owned(),
                at: AT,
            });
        }
        Some(Event::Settings(Box::new(Change::CarriedBack {
            slot,
            generation: self.make(state, content),
            schema: 0,
            orphan,
            carried: None,
            keep: KEEP,
        })))
    }

    /// Called with each state that is stored: whatever the record ever knew, somebody can still find, and what is
    /// protected is as it was edited last.
    pub fn check(&mut self, state: &State) {
        let names = |number: u64| {
            let slots = state.settings.slots.values();
            slots.map(|held| held.generation.number).any(|held| held == number)
        };
        if let Some((number, content)) = self.offered.take_if(|(number, _)| names(*number)) {
            assert!(self.made.contains_key(&number));
            self.known.extend(&content.edits);
            self.password = content.password;
        }
        let runs = state.settings.slots.get(state.runs());
        let settled = runs
            .and_then(|held| held.origin.as_ref())
            .is_none_or(|origin| origin.settled);
        let in_effect = match settled && runs.is_some() {
            true => runs,
            // About to be made of these.
            false => state.settings.slots.get(&state.active),
        };
        let back = state.settings.carry_back.as_ref().map(|back| &back.settings);
        let mut found = self.content(in_effect);
        if let Some(back) = back {
            let back = self.content(Some(back));
            found.password = back.password;
            found.edits.extend(back.edits);
        }
        for orphan in &state.settings.orphans {
            found.edits.extend(&self.orphaned[&orphan.sha256]);
        }
        assert!(state.settings.orphans.len() <= MAX_ORPHANS);
        assert_eq!(found.password, self.password, "{state:?}");
        if state.settings.orphans_dropped == 0 {
            assert!(
                found.edits.is_superset(&self.known),
                "lost {:?}: {state:?}",
                self.known.difference(&found.edits).collect::<Vec<_>>()
            );
        }
        if self.below(64) == 0 {
            assert_eq!(record::decode(&record::encode(state)).as_ref(), Ok(state));
        }
    }
}
