//! The device state machine: a state and an event give the next state and effects, or a refusal.
//!
//! ```text
//!        Planned           Cleared           Installed         Armed           PowerOn (in the new slot)
//!   Idle ------> Clearing ---------> Staging ----------> Staged ------> Pending ------------------> Trial
//!     ^   clear            install            arm ^   Withheld  | reboot             check health      |
//!     |                                           +------------+ disable                              |
//!     |                                                                                               |
//!     |   Confirmed                        HealthPassed, ConfirmAsked                                 |
//!     +<----------- Confirming <----------------------------------------------------------------------+
//!     |   floors rise            confirm                                                              |
//!     |   PowerOn (in the old slot)        HealthFailed, RollbackAsked                                |
//!     +<----------- FallingBack <---------------------------------------------------------------------+
//!     |   reject                 disable, reboot
//!     +<----------- RollingBack <--- RollbackAsked when idle: confirm the other slot, reboot
//!     +<----------- ToRescue <------ RescueNeeded when idle: see `rescue`
//! ```
//!
//! Whoever interprets a step stores the next state durably **before** the first effect. So each effect may run twice,
//! and after a loss of power `PowerOn` derives again what is to be done. The rules behind each cell are those of DESIGN
//! §5: the active slot is never written; a slot is disabled before its first byte changes and armed only after it was
//! read back; attempts are spent by the boot loader before the trial; floors rise only at confirmation.

use fwmeta::time::UtcSeconds;

use crate::machine::boot::BootView;
use crate::machine::release::ReleaseRef;
use crate::machine::rescue;
use crate::machine::settings::follow;
use crate::machine::settings::slots::Change;
use crate::machine::slot::SlotId;
use crate::machine::state::{LOG_BYTES, Outcome, Phase, REASON_BYTES, State, UpdateResult, shortened};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The agent starts, after a boot or after it alone was restarted.
    PowerOn(BootView),
    /// A release was chosen and its manifest verified.
    Planned {
        /// Where it goes.
        slot: SlotId,
        /// Which.
        release: ReleaseRef,
    },
    /// A release was chosen and its manifest verified, and there is no slot but the active one that may be written.
    RescueNeeded {
        /// Which.
        release: ReleaseRef,
    },
    /// The boot loader does not choose the slot that is to be written.
    Cleared,
    /// All images are in the slot and were read back.
    Installed,
    /// The slot could not be written.
    InstallFailed {
        /// Why.
        reason: String,
        /// The content is wrong: the same release would fail again.
        refused: bool,
    },
    /// The boot loader will try the slot.
    Armed {
        /// How often.
        attempts: u32,
    },
    /// All health checks passed.
    HealthPassed,
    /// The device must not restart into the slot now (see [`crate::machine::conditions`]).
    Withheld,
    /// A health check failed, or nobody confirmed in time.
    HealthFailed {
        /// Which, and how.
        reason: String,
        /// Last lines that it printed.
        log: String,
    },
    /// The boot loader was told that the slot is good.
    Confirmed,
    /// An operator confirms the trial.
    ConfirmAsked,
    /// An operator wants the earlier software.
    RollbackAsked,
    /// Settings changed, or were made for a slot.
    Settings(Box<Change>),
}

/// Something to be done. Each may run twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make sure that the boot loader does not choose the slot that is to be written; gives `Cleared`.
    Clear(SlotId),
    /// Make sure that the boot loader does not choose the slot.
    Disable(SlotId),
    /// Write the images of the update in progress and read them back; gives `Installed` or `InstallFailed`.
    Install,
    /// Let the boot loader try the slot; gives `Armed`.
    Arm(SlotId),
    /// Run the health checks; gives `HealthPassed`, `HealthFailed`, or nothing while an operator is awaited.
    CheckHealth(SlotId),
    /// Make the slot the one that is booted, and then let none of [`State::below_next_floor`] be booted: before the
    /// floors rise, since a boot loader that counts every boot may go back to an earlier slot at any of them. Gives
    /// `Confirmed`.
    Confirm(SlotId),
    /// Restart the device.
    Reboot,
    /// Make the settings of the slot on trial of the current ones, unless it was done; gives `Settings`, or `HealthFailed`
    /// when they cannot be migrated.
    SettleSettings(SlotId),
    /// Carry edits over that were made with the software that ran before; gives `Settings`.
    CarrySettingsBack,
    /// Write the files that the device's own software reads.
    PublishSettings,
}

/// What follows from an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The next state, to be stored before the first effect.
    pub state: State,
    /// What to do, in order.
    pub effects: Vec<Effect>,
}

impl Step {
    /// Whether this step, from `before`, records a fall-back of which nothing is known but that the boot loader went back:
    /// the agent never ran in the slot, or was not heard any more.
    pub fn is_unexplained(&self, before: &State) -> bool {
        let unheard = matches!(before.phase, Phase::Pending { .. } | Phase::Trial { .. });
        let last = self.state.last.as_ref();
        unheard
            && self.state.outcomes != before.outcomes
            && last.is_some_and(|last| last.result == UpdateResult::FellBack && last.log.is_empty())
    }

    /// Adds what the slot left behind to the outcome; the last [`LOG_BYTES`] of it.
    pub fn explain(&mut self, evidence: &str) {
        if let Some(last) = &mut self.state.last {
            last.log = shortened(evidence, LOG_BYTES);
        }
    }
}

/// The event makes no sense in this state; the state does not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not in this phase.
    #[error("{event} is not possible while the agent is {phase}")]
    NotNow {
        /// The event.
        event: &'static str,
        /// The phase.
        phase: &'static str,
    },
    /// The active slot is never written.
    #[error("slot {slot} is the active one and is never written")]
    ActiveSlot {
        /// The slot.
        slot: SlotId,
    },
    /// The rescue system is never written.
    #[error("slot {slot} is that of the rescue system and is never written")]
    RescueSlot {
        /// The slot.
        slot: SlotId,
    },
    /// The device runs a slot that the agent neither confirmed nor armed.
    #[error("the device runs slot {running}, which was neither confirmed nor armed; expected was slot {expected}")]
    UnexpectedSlot {
        /// The slot that runs.
        running: SlotId,
        /// The slot that should.
        expected: SlotId,
    },
    /// Settings are edited for the software that runs.
    #[error("slot {running} runs, and these settings are of another one")]
    SettingsOfAnotherSlot {
        /// The slot that runs.
        running: SlotId,
    },
    /// There is no earlier software that may be booted.
    #[error("there is no other confirmed slot at or above the security floor to go back to")]
    NothingToRollBackTo,
    /// The release is below a floor.
    #[error(transparent)]
    BelowFloor(#[from] crate::machine::floor::BelowFloor),
}

impl Event {
    fn word(&self) -> &'static str {
        match self {
            Self::PowerOn(_) => "power-on",
            Self::Planned { .. } | Self::RescueNeeded { .. } => "a new update",
            Self::Cleared => "clearing a slot",
            Self::Installed | Self::InstallFailed { .. } => "the end of an installation",
            Self::Armed { .. } => "arming",
            Self::Withheld => "waiting before the restart",
            Self::HealthPassed | Self::HealthFailed { .. } => "a health verdict",
            Self::Confirmed | Self::ConfirmAsked => "confirmation",
            Self::RollbackAsked => "rolling back",
            Self::Settings(_) => "a change of settings",
        }
    }
}

/// One step. `at` is the time by the device's clock, for the record only: no decision depends on it.
///
/// # Errors
/// [`Refusal`]; every pair of phase and event that is no transition is one.
pub fn step(state: &State, event: Event, at: UtcSeconds) -> Result<Step, Refusal> {
    let power_on = matches!(event, Event::PowerOn(_));
    let mut taken = transition(state, event, at)?;
    follow::follow(state, power_on, &mut taken);
    Ok(taken)
}

fn transition(state: &State, event: Event, at: UtcSeconds) -> Result<Step, Refusal> {
    let not_now = Refusal::NotNow {
        event: event.word(),
        phase: state.phase.word(),
    };
    match (state.phase.clone(), event) {
        (_, Event::PowerOn(view)) => power_on(state, &view, at),
        // What is armed is tried first: until then its slot may be booted, and must not be written. What waits for its
        // restart is not armed, and gives way to what is newer.
        (
            Phase::Idle | Phase::Clearing { .. } | Phase::Staging { .. } | Phase::Staged { .. },
            Event::Planned { slot, release },
        ) => planned(state, slot, release),
        (Phase::Clearing { slot, release }, Event::Cleared) => {
            let mut next = state.clone();
            next.confirmed.remove(&slot);
            next.bad.remove(&slot);
            next.phase = Phase::Staging { slot, release };
            Ok(step_of(next, vec![Effect::Install]))
        }
        (Phase::Staging { slot, release }, Event::Installed) => {
            let arm = Effect::Arm(slot.clone());
            Ok(to(state, Phase::Staged { slot, release }, vec![arm]))
        }
        (Phase::Staging { slot, release }, Event::InstallFailed { reason, refused }) => {
            let mut next = state.clone();
            if refused {
                next.reject(&release, &reason);
            }
            end(&mut next, UpdateResult::InstallFailed, release, slot, &reason, "", at);
            // The slot stays disabled: what it holds is undefined.
            Ok(step_of(next, vec![]))
        }
        (Phase::Staged { slot, release }, Event::Armed { attempts }) => Ok(to(
            state,
            Phase::Pending {
                slot,
                release,
                attempts,
            },
            vec![Effect::Reboot],
        )),
        // Whoever switches the device off and on meanwhile gets the software that he had.
        (Phase::Staged { slot, release } | Phase::Pending { slot, release, .. }, Event::Withheld) => {
            let disable = Effect::Disable(slot.clone());
            Ok(to(state, Phase::Staged { slot, release }, vec![disable]))
        }
        (Phase::Trial { slot, release }, Event::HealthPassed | Event::ConfirmAsked) => {
            let confirm = Effect::Confirm(slot.clone());
            Ok(to(state, Phase::Confirming { slot, release }, vec![confirm]))
        }
        (Phase::Trial { slot, release }, Event::HealthFailed { reason, log }) => {
            Ok(fall_back(state, slot, release, &reason, &log))
        }
        (Phase::Trial { slot, release }, Event::RollbackAsked) => {
            Ok(fall_back(state, slot, release, "rolled back by the operator", ""))
        }
        (Phase::Confirming { slot, release }, Event::Confirmed) => Ok(confirmed(state, slot, release, at)),
        // The boot loader knows; that the device runs the other slot is believed only after the restart.
        (Phase::RollingBack { .. }, Event::Confirmed) => Ok(step_of(state.clone(), vec![])),
        (
            Phase::Clearing { slot, release }
            | Phase::Staging { slot, release }
            | Phase::Staged { slot, release }
            | Phase::Pending { slot, release, .. },
            Event::RollbackAsked,
        ) => {
            let mut next = state.clone();
            let reason = "given up by the operator";
            next.reject(&release, reason);
            // Before it was cleared, it holds what it held.
            if !matches!(state.phase, Phase::Clearing { .. }) {
                next.bad.insert(slot.clone(), release.clone());
            }
            let disable = Effect::Disable(slot.clone());
            end(&mut next, UpdateResult::RolledBack, release, slot, reason, "", at);
            Ok(step_of(next, vec![disable]))
        }
        (Phase::Idle, Event::RollbackAsked) => roll_back(state),
        (Phase::Idle, Event::RescueNeeded { release }) => rescue::needed(state, release, at),
        (
            Phase::ToRescue {
                slot,
                release,
                attempts: None,
            },
            Event::Armed { attempts },
        ) if release.is_some() => {
            let attempts = Some(attempts);
            let phase = Phase::ToRescue {
                slot,
                release,
                attempts,
            };
            Ok(to(state, phase, vec![Effect::Reboot]))
        }
        (Phase::ToRescue { slot, release, .. }, Event::Withheld) if release.is_some() => {
            Ok(rescue::withheld(state, slot))
        }
        (Phase::ToRescue { slot, .. }, Event::Confirmed) => Ok(rescue::reached(state, slot)),
        (_, Event::Settings(change)) => Ok(step_of(follow::changed(state, *change)?, vec![])),
        _ => Err(not_now),
    }
}

pub(super) fn step_of(state: State, effects: Vec<Effect>) -> Step {
    Step { state, effects }
}

pub(super) fn to(state: &State, phase: Phase, effects: Vec<Effect>) -> Step {
    let mut next = state.clone();
    next.phase = phase;
    step_of(next, effects)
}

fn planned(state: &State, slot: SlotId, release: ReleaseRef) -> Result<Step, Refusal> {
    if slot == state.active {
        return Err(Refusal::ActiveSlot { slot });
    }
    if state.is_rescue(&slot) {
        return Err(Refusal::RescueSlot { slot });
    }
    // Judged before, when the release was chosen; but what is written here may become bootable.
    state.floors.permit_install(&release.channel, release.sequence)?;
    if matches!(&state.phase, Phase::Staging { slot: staged, .. } if *staged == slot) {
        // Cleared already; what it holds is undefined.
        let disable = Effect::Disable(slot.clone());
        return Ok(to(
            state,
            Phase::Staging { slot, release },
            vec![disable, Effect::Install],
        ));
    }
    let clear = Effect::Clear(slot.clone());
    let mut next = to(state, Phase::Clearing { slot, release }, vec![clear]);
    if let Phase::Staged { slot, release } = &state.phase {
        // It may be armed unknown to the record, when the power went in between.
        next.state.bad.insert(slot.clone(), release.clone());
    }
    Ok(next)
}

fn fall_back(state: &State, slot: SlotId, release: ReleaseRef, reason: &str, log: &str) -> Step {
    let disable = Effect::Disable(slot.clone());
    let phase = Phase::FallingBack {
        slot,
        release,
        reason: shortened(reason, REASON_BYTES),
        log: shortened(log, LOG_BYTES),
    };
    to(state, phase, vec![disable, Effect::Reboot])
}

fn confirmed(state: &State, slot: SlotId, release: ReleaseRef, at: UtcSeconds) -> Step {
    let mut next = state.clone();
    next.active = slot.clone();
    next.floors.confirm(&release);
    next.forgive(&release.manifest_sha256);
    next.forget_rejected_below_floors();
    if let Some(rescue) = &mut next.rescue {
        rescue.trips = rescue.trips.filter(|(digest, _)| *digest != release.manifest_sha256);
    }
    next.confirmed.insert(slot.clone(), release.clone());
    next.bad.remove(&slot);
    // Fall-backs that this release declares dangerous; the boot loader knows already.
    for other in state.below_next_floor() {
        if let Some(held) = next.confirmed.remove(&other) {
            next.bad.insert(other, held);
        }
    }
    end(&mut next, UpdateResult::Confirmed, release, slot, "", "", at);
    step_of(next, vec![])
}

fn roll_back(state: &State) -> Result<Step, Refusal> {
    let other = state
        .confirmed
        .iter()
        .find(|(slot, held)| **slot != state.active && state.floors.permit_boot(&held.channel, held.sequence).is_ok());
    let rescue = state
        .rescue
        .as_ref()
        .map(|rescue| &rescue.slot)
        .filter(|slot| **slot != state.active);
    let slot = other.map(|(slot, _)| slot).or(rescue);
    let slot = slot.ok_or(Refusal::NothingToRollBackTo)?;
    let effects = vec![Effect::Confirm(slot.clone()), Effect::Reboot];
    Ok(to(state, Phase::RollingBack { to: slot.clone() }, effects))
}

/// Ends the update in progress.
pub(super) fn end(
    next: &mut State,
    result: UpdateResult,
    release: ReleaseRef,
    slot: SlotId,
    reason: &str,
    log: &str,
    at: UtcSeconds,
) {
    next.phase = Phase::Idle;
    next.outcomes = next.outcomes.saturating_add(1);
    next.last = Some(Outcome {
        result,
        release,
        slot,
        reason: shortened(reason, REASON_BYTES),
        log: shortened(log, LOG_BYTES),
        at,
    });
}

/// Which slot runs tells what became of the last effects before the power went.
fn power_on(state: &State, view: &BootView, at: UtcSeconds) -> Result<Step, Refusal> {
    let running = view.booted.clone().unwrap_or_else(|| state.active.clone());
    let unexpected = |expected: &SlotId| Refusal::UnexpectedSlot {
        running: running.clone(),
        expected: expected.clone(),
    };
    let in_active = running == state.active;
    match state.phase.clone() {
        Phase::Idle => idle_power_on(state, running, at),
        // Nothing was written yet: the slot is what it was, whether or not the boot loader was told.
        Phase::Clearing { .. } => idle_power_on(&to(state, Phase::Idle, vec![]).state, running, at),
        // Goes on when the next poll plans it again.
        Phase::Staging { slot, .. } if in_active => Ok(step_of(state.clone(), vec![Effect::Disable(slot)])),
        Phase::Staged { slot, .. } if in_active => Ok(step_of(state.clone(), vec![Effect::Arm(slot)])),
        Phase::Pending {
            slot,
            release,
            attempts,
        } if in_active => match view.armed.get(&slot) {
            // No attempt was spent: the restart has not happened yet.
            Some(left) if *left >= attempts => Ok(step_of(state.clone(), vec![Effect::Reboot])),
            Some(left) if *left > 0 => {
                let reason = format!("the boot loader went back with {left} of {attempts} attempts left");
                Ok(fell_back(state, slot, release, &reason, "", at))
            }
            _ => {
                let reason = format!("no confirmation within {attempts} boot attempts");
                Ok(fell_back(state, slot, release, &reason, "", at))
            }
        },
        Phase::Trial { slot, release } if in_active => {
            let reason = "the trial ended without confirmation and the boot loader went back";
            Ok(fell_back(state, slot, release, reason, "", at))
        }
        Phase::Staged { slot, release } | Phase::Pending { slot, release, .. } | Phase::Trial { slot, release }
            if running == slot =>
        {
            let check = Effect::CheckHealth(slot.clone());
            Ok(to(state, Phase::Trial { slot, release }, vec![check]))
        }
        Phase::Confirming { slot, .. } if running == slot => Ok(step_of(state.clone(), vec![Effect::Confirm(slot)])),
        Phase::Confirming { slot, release } if in_active => {
            // It had passed; only the power went too early. So it is not rejected, and the next poll brings it again.
            let mut next = state.clone();
            next.bad.insert(slot.clone(), release.clone());
            let disable = Effect::Disable(slot.clone());
            let reason = "power was lost between the health checks and their record";
            end(&mut next, UpdateResult::FellBack, release, slot, reason, "", at);
            Ok(step_of(next, vec![disable]))
        }
        Phase::FallingBack { slot, .. } if running == slot => {
            Ok(step_of(state.clone(), vec![Effect::Disable(slot), Effect::Reboot]))
        }
        Phase::FallingBack {
            slot,
            release,
            reason,
            log,
        } if in_active => Ok(fell_back(state, slot, release, &reason, &log, at)),
        Phase::RollingBack { to: target } if running == target => {
            let mut next = state.clone();
            let left = state.active.clone();
            next.active = target;
            next.phase = Phase::Idle;
            if let Some(release) = state.installed() {
                let reason = "rolled back by the operator";
                next.reject(release, reason);
                end(
                    &mut next,
                    UpdateResult::RolledBack,
                    release.clone(),
                    left,
                    reason,
                    "",
                    at,
                );
            }
            Ok(step_of(next, vec![]))
        }
        Phase::RollingBack { to: target } if in_active => {
            Ok(step_of(state.clone(), vec![Effect::Confirm(target), Effect::Reboot]))
        }
        Phase::ToRescue {
            slot,
            release,
            attempts,
        } => rescue::power_on(state, (slot, release, attempts), view, running, at),
        Phase::Staging { slot, .. }
        | Phase::Staged { slot, .. }
        | Phase::Pending { slot, .. }
        | Phase::Trial { slot, .. }
        | Phase::Confirming { slot, .. }
        | Phase::FallingBack { slot, .. }
        | Phase::RollingBack { to: slot } => Err(unexpected(if running == slot { &state.active } else { &slot })),
    }
}

pub(super) fn idle_power_on(state: &State, running: SlotId, at: UtcSeconds) -> Result<Step, Refusal> {
    // The power may have gone before the boot loader was told.
    let mut effects: Vec<Effect> = state.bad.keys().cloned().map(Effect::Disable).collect();
    if running == state.active {
        return Ok(step_of(state.clone(), effects));
    }
    if state.bad.contains_key(&running) {
        effects.push(Effect::Reboot);
        return Ok(step_of(state.clone(), effects));
    }
    if state.is_rescue(&running) {
        return Ok(rescue::chosen(state, running, effects, at));
    }
    let Some(release) = state.confirmed.get(&running) else {
        return Err(Refusal::UnexpectedSlot {
            running,
            expected: state.active.clone(),
        });
    };
    // A boot loader with a will of its own chose an earlier confirmed slot. That is the software that runs now; the
    // floors stay where they are.
    state.floors.permit_boot(&release.channel, release.sequence)?;
    let mut next = state.clone();
    let left = std::mem::replace(&mut next.active, running);
    if let Some(given_up) = state.installed() {
        let reason = "the boot loader went back to the other confirmed slot";
        end(
            &mut next,
            UpdateResult::FellBack,
            given_up.clone(),
            left,
            reason,
            "",
            at,
        );
    }
    Ok(step_of(next, effects))
}

fn fell_back(state: &State, slot: SlotId, release: ReleaseRef, reason: &str, log: &str, at: UtcSeconds) -> Step {
    let mut next = state.clone();
    next.reject(&release, reason);
    next.bad.insert(slot.clone(), release.clone());
    let disable = Effect::Disable(slot.clone());
    end(&mut next, UpdateResult::FellBack, release, slot, reason, log, at);
    step_of(next, vec![disable])
}

#[cfg(test)]
mod tests;
