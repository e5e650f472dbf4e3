//! What a step of the device means for its settings.
//!
//! Settings are chosen by the slot that runs: software and settings change in one write of the record, and there is
//! nothing to switch. What is left to do when the device goes back is to carry edits over, and that is recorded here in
//! the same write, so that a loss of power forgets nothing.

use super::generation::GenerationId;
use super::migrate;
use super::slots::{CarryBack, Change, MAX_DAMAGED, MAX_ORPHANS, Origin, Orphan, SettingsState, SlotSettings};
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State};
use crate::machine::step::{Effect, Refusal, Step};

impl State {
    /// The slot whose software runs, as far as the state knows.
    pub fn runs(&self) -> &SlotId {
        match &self.phase {
            Phase::Trial { slot, .. } | Phase::Confirming { slot, .. } | Phase::FallingBack { slot, .. } => slot,
            _ => &self.active,
        }
    }
}

/// Completes a step: edits on their way back, settings that nobody uses any more, and the effects that bring the device's
/// files in line after a start.
pub fn follow(before: &State, power_on: bool, step: &mut Step) {
    let (left, runs) = (before.runs().clone(), step.state.runs().clone());
    let settings = &mut step.state.settings;
    // Forward, into a trial: the trial's settings are made of the current ones when it settles.
    let forward = matches!(step.state.phase, Phase::Trial { .. });
    if left != runs && !forward {
        if settings.carry_back.as_ref().is_some_and(|back| back.slot == runs) {
            // There and back again before anything was carried over: no edit was possible in between.
            settings.carry_back = None;
        } else if settings.carry_back.is_none()
            && let Some(held) = settings.slots.get(&left)
            // Software that never ran with settings of its own has edited none.
            && held.origin.as_ref().is_none_or(|origin| origin.settled)
        {
            settings.carry_back = Some(CarryBack {
                slot: left,
                settings: held.clone(),
            });
        }
    }
    let state = &mut step.state;
    let underway = match &state.phase {
        // The slot is what it was, and may still be booted.
        Phase::Clearing { .. } => None,
        phase => phase.update().map(|(slot, _)| slot.clone()),
    };
    let (active, confirmed) = (&state.active, &state.confirmed);
    state
        .settings
        .slots
        .retain(|slot, _| slot == active || confirmed.contains_key(slot) || underway.as_ref() == Some(slot));
    // The software that is overwritten needs none, and the way to it leads nowhere.
    if let (Phase::Staging { slot, .. }, false) = (&state.phase, matches!(before.phase, Phase::Staging { .. })) {
        state.settings.slots.remove(slot);
        for held in state.settings.slots.values_mut() {
            held.origin = held.origin.take().filter(|origin| origin.slot != *slot);
        }
    }
    if power_on {
        place_effects(step);
    }
}

/// Before health checks, which may need the files; after the boot loader's memory, which comes first.
fn place_effects(step: &mut Step) {
    let state = &step.state;
    if step.effects.contains(&Effect::Reboot) {
        // Whatever runs now is not what the device is about.
        return;
    }
    let mut own = Vec::new();
    if let Phase::Trial { slot, .. } = &state.phase {
        own.push(Effect::SettleSettings(slot.clone()));
    } else if state.settings.carry_back.is_some() {
        own.push(Effect::CarrySettingsBack);
    }
    own.push(Effect::PublishSettings);
    let check = |effect: &Effect| matches!(effect, Effect::CheckHealth(_));
    let at = step.effects.iter().position(check).unwrap_or(step.effects.len());
    step.effects.splice(at..at, own);
}

/// Takes a change into the state.
///
/// # Errors
/// [`Refusal::SettingsOfAnotherSlot`] when the change is not of a slot that it could be of.
pub fn changed(state: &State, change: Change) -> Result<State, Refusal> {
    let mut next = state.clone();
    let fits = match &change {
        Change::Edited { slot, .. } => slot == state.runs(),
        Change::Damaged { slot, .. } => state.settings.slots.contains_key(slot),
        Change::Prepared { slot, .. } => matches!(&state.phase, Phase::Staging { slot: staged, .. } if staged == slot),
        Change::Settled { slot, .. } => matches!(&state.phase, Phase::Trial { slot: tried, .. } if tried == slot),
        Change::CarriedBack { slot, .. } => slot == state.runs() && state.settings.carry_back.is_some(),
        Change::OrphanDone { .. } => true,
    };
    if !fits {
        return Err(Refusal::SettingsOfAnotherSlot {
            running: state.runs().clone(),
        });
    }
    apply(&mut next.settings, change);
    Ok(next)
}

fn apply(settings: &mut SettingsState, change: Change) {
    match change {
        Change::Edited {
            slot,
            generation,
            schema,
            keep,
        } => {
            settings.last_number = settings.last_number.max(generation.number);
            let held = settings.slots.entry(slot);
            held.or_insert_with(|| SlotSettings::first(generation, schema))
                .advance(generation, keep);
        }
        Change::Prepared {
            slot,
            settings: made,
            base,
            carried,
        } => {
            if let Some(source) = made_of(settings, &made, base) {
                source.carried = carried;
            }
            settings.slots.insert(slot, made);
        }
        Change::Settled {
            slot,
            settings: made,
            base,
        } => {
            made_of(settings, &made, base);
            settings.slots.insert(slot, made);
        }
        Change::CarriedBack {
            slot,
            generation,
            schema,
            orphan,
            carried,
            keep,
        } => {
            settings.last_number = settings.last_number.max(generation.number);
            let Some(back) = settings.carry_back.take() else {
                return;
            };
            if let Some(orphan) = orphan {
                keep_orphan(settings, orphan);
            }
            let origin = settings.slots.get_mut(&back.slot).map(|left| {
                left.carried = carried;
                // Should the device go forth again, this is where the other slot's settings and these parted.
                let came = back.settings.origin.filter(|origin| origin.slot == slot);
                Origin {
                    slot: back.slot,
                    fork: generation,
                    steps: came.and_then(|origin| migrate::back(&origin.steps?)),
                    settled: true,
                }
            });
            let held = settings.slots.entry(slot);
            let held = held.or_insert_with(|| SlotSettings::first(generation, schema));
            held.advance(generation, keep);
            held.origin = origin;
        }
        Change::Damaged { slot, instead } => {
            if let Some(held) = settings.slots.get_mut(&slot) {
                let lost = std::mem::replace(&mut held.generation, instead);
                held.history.retain(|id| *id != instead);
                if settings.damaged.len() >= MAX_DAMAGED {
                    settings.damaged.remove(0);
                }
                settings.damaged.push(lost);
            }
        }
        Change::OrphanDone { sha256 } => settings.orphans.retain(|orphan| orphan.sha256 != sha256),
    }
}

/// The settings that others were made of, which exist from now on if they did not.
fn made_of<'s>(
    settings: &'s mut SettingsState,
    made: &SlotSettings,
    base: GenerationId,
) -> Option<&'s mut SlotSettings> {
    let highest = made.generation.number.max(base.number);
    settings.last_number = settings.last_number.max(highest);
    let source = settings.slots.entry(made.origin.as_ref()?.slot.clone());
    Some(source.or_insert_with(|| SlotSettings::first(base, 0)))
}

fn keep_orphan(settings: &mut SettingsState, orphan: Orphan) {
    settings.orphans.retain(|kept| kept.sha256 != orphan.sha256);
    if settings.orphans.len() >= MAX_ORPHANS {
        settings.orphans.remove(0);
        settings.orphans_dropped = settings.orphans_dropped.saturating_add(1);
    }
    settings.orphans.push(orphan);
}
