//! A device with a rescue system and one main system: who runs main cannot write it, so the device restarts into rescue
//! for that. The rescue slot itself is never written by an update.
//!
//! ```text
//!            RescueNeeded             Armed               PowerOn (in rescue)          Confirmed
//! Idle, main -----------> ToRescue -----------> ToRescue ---------------------> ToRescue ---------> Idle, rescue
//!    ^         arm rescue           reboot          |        confirm rescue
//!    +----------------------------------------------+  PowerOn (in main, no attempts left): the release is rejected
//! ```
//!
//! From there on rescue is the active slot, and an update of main is like any other: a trial that fails falls back to
//! rescue. Main is written only after the boot loader was told to boot rescue. A release for which the device went to
//! rescue [`MAX_TRIPS`] times without confirming it is rejected, so that it never goes to and fro for ever.

use fwmeta::time::UtcSeconds;

use crate::machine::boot::BootView;
use crate::machine::release::ReleaseRef;
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State, UpdateResult};
use crate::machine::step::{Effect, Refusal, Step, end, idle_power_on, step_of, to};

/// Times that a device goes to rescue for the same release.
pub const MAX_TRIPS: u32 = 3;

/// The rescue system of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescue {
    /// Its slot.
    pub slot: SlotId,
    /// For which release the device went there last, by the digest of its manifest, and how often.
    pub trips: Option<([u8; 32], u32)>,
}

impl Rescue {
    /// A rescue system that was not needed yet.
    pub fn new(slot: SlotId) -> Self {
        Self { slot, trips: None }
    }
}

/// The active slot must be written: goes to rescue for that.
pub(super) fn needed(state: &State, release: ReleaseRef, at: UtcSeconds) -> Result<Step, Refusal> {
    let active = state.active.clone();
    let Some(rescue) = state.rescue.as_ref().filter(|rescue| rescue.slot != active) else {
        return Err(Refusal::ActiveSlot { slot: active });
    };
    state.floors.permit_install(&release.channel, release.sequence)?;
    let digest = release.manifest_sha256;
    let count = rescue
        .trips
        .filter(|(other, _)| *other == digest)
        .map_or(0, |(_, count)| count);
    let mut next = state.clone();
    if count >= MAX_TRIPS {
        let reason = format!("not confirmed after {count} restarts into the rescue system");
        next.rescue = Some(Rescue::new(rescue.slot.clone()));
        next.reject(&release, &reason);
        end(&mut next, UpdateResult::InstallFailed, release, active, &reason, "", at);
        return Ok(step_of(next, vec![]));
    }
    let slot = rescue.slot.clone();
    next.rescue = Some(Rescue {
        slot: slot.clone(),
        trips: Some((digest, count + 1)),
    });
    next.phase = Phase::ToRescue {
        slot: slot.clone(),
        release: Some(release),
        attempts: None,
    };
    Ok(step_of(next, vec![Effect::Arm(slot)]))
}

/// The device must not restart now: it stays in main, and this was no trip.
pub(super) fn withheld(state: &State, slot: SlotId) -> Step {
    let mut next = to(state, Phase::Idle, vec![Effect::Disable(slot)]);
    if let Some((_, count)) = next.state.rescue.as_mut().and_then(|rescue| rescue.trips.as_mut()) {
        *count = count.saturating_sub(1);
    }
    next
}

/// The boot loader runs rescue by itself: it is told that this is right.
pub(super) fn chosen(state: &State, slot: SlotId, mut effects: Vec<Effect>, at: UtcSeconds) -> Step {
    let mut next = state.clone();
    if let Some(release) = state.installed() {
        let reason = "the boot loader went to the rescue system";
        let (release, left) = (release.clone(), state.active.clone());
        end(&mut next, UpdateResult::FellBack, release, left, reason, "", at);
    }
    effects.push(Effect::Confirm(slot.clone()));
    next.phase = Phase::ToRescue {
        slot,
        release: None,
        attempts: None,
    };
    step_of(next, effects)
}

/// The boot loader knows: rescue is the active slot.
pub(super) fn reached(state: &State, slot: SlotId) -> Step {
    let mut next = state.clone();
    next.active = slot;
    next.phase = Phase::Idle;
    step_of(next, vec![])
}

/// The device starts on its way to rescue.
pub(super) fn power_on(
    state: &State,
    (slot, release, attempts): (SlotId, Option<ReleaseRef>, Option<u32>),
    view: &BootView,
    running: SlotId,
    at: UtcSeconds,
) -> Result<Step, Refusal> {
    if running == slot {
        return Ok(step_of(state.clone(), vec![Effect::Confirm(slot)]));
    }
    let Some(release) = release.filter(|_| running == state.active) else {
        // It ran rescue by the boot loader's will, which has changed.
        return idle_power_on(&to(state, Phase::Idle, vec![]).state, running, at);
    };
    let left = view.armed.get(&slot).copied().unwrap_or(0);
    match attempts {
        None => Ok(step_of(state.clone(), vec![Effect::Arm(slot)])),
        // No attempt was spent: the restart has not happened yet.
        Some(attempts) if left >= attempts => Ok(step_of(state.clone(), vec![Effect::Reboot])),
        Some(attempts) => {
            let mut next = state.clone();
            let reason = format!("the rescue system did not come up within {attempts} boot attempts");
            next.reject(&release, &reason);
            end(&mut next, UpdateResult::InstallFailed, release, slot, &reason, "", at);
            Ok(step_of(next, vec![]))
        }
    }
}
