//! Everything that the agent must remember over a loss of power.

use std::collections::BTreeMap;

use fwmeta::time::UtcSeconds;

use crate::machine::floor::Floors;
use crate::machine::release::ReleaseRef;
use crate::machine::rescue::Rescue;
use crate::machine::settings::slots::SettingsState;
use crate::machine::slot::{SlotId, SlotStatus};

/// Rejected releases that are remembered.
pub const MAX_REJECTED: usize = 16;
/// Longest reason that is remembered, in bytes.
pub const REASON_BYTES: usize = 512;
/// Longest log that is remembered with a reason, in bytes.
pub const LOG_BYTES: usize = 4096;

/// The state of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// What is going on.
    pub phase: Phase,
    /// The slot with the confirmed software: what runs, except during a trial.
    pub active: SlotId,
    /// Slots whose software passed its checks on this device, and what they hold.
    pub confirmed: BTreeMap<SlotId, ReleaseRef>,
    /// Slots that must not be booted, until they are written again: their software failed here, was given up, or is below
    /// the security floor.
    pub bad: BTreeMap<SlotId, ReleaseRef>,
    /// Releases that are not installed again by themselves; the newest last.
    pub rejected: Vec<Rejected>,
    /// What is never accepted again.
    pub floors: Floors,
    /// How the last update ended.
    pub last: Option<Outcome>,
    /// The rescue system, where the configuration has one.
    pub rescue: Option<Rescue>,
    /// How many updates have ended; the number of the last outcome.
    pub outcomes: u64,
    /// Which settings each slot uses.
    pub settings: SettingsState,
    /// The value of the counter in a second medium that this record belongs to; none where there never was one.
    pub counter: Option<u64>,
}

/// What is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: the confirmed software runs.
    Idle,
    /// The boot loader is about to be told not to choose the slot, whose content is as it was.
    Clearing {
        /// The slot.
        slot: SlotId,
        /// What will go into it.
        release: ReleaseRef,
    },
    /// The slot is disabled and being written.
    Staging {
        /// The slot.
        slot: SlotId,
        /// What goes into it.
        release: ReleaseRef,
    },
    /// The slot was read back; the boot loader is about to be told.
    Staged {
        /// The slot.
        slot: SlotId,
        /// What it holds.
        release: ReleaseRef,
    },
    /// The boot loader will try the slot at the next boot.
    Pending {
        /// The slot.
        slot: SlotId,
        /// What it holds.
        release: ReleaseRef,
        /// Attempts that the boot loader was given.
        attempts: u32,
    },
    /// The slot runs on trial.
    Trial {
        /// The slot.
        slot: SlotId,
        /// What it holds.
        release: ReleaseRef,
    },
    /// The trial passed; the boot loader is about to be told.
    Confirming {
        /// The slot.
        slot: SlotId,
        /// What it holds.
        release: ReleaseRef,
    },
    /// The trial failed; the device is about to restart into the confirmed software.
    FallingBack {
        /// The slot that failed.
        slot: SlotId,
        /// What it holds.
        release: ReleaseRef,
        /// Why.
        reason: String,
        /// Last lines of what failed.
        log: String,
    },
    /// An operator asked for the other confirmed slot; the device is about to restart into it.
    RollingBack {
        /// The slot to go to.
        to: SlotId,
    },
    /// The device is about to run the rescue system, from where the active slot can be written.
    ToRescue {
        /// The slot of the rescue system.
        slot: SlotId,
        /// For which release; none when the boot loader chose so.
        release: Option<ReleaseRef>,
        /// Attempts that the boot loader was given; none before it was told.
        attempts: Option<u32>,
    },
}

impl Phase {
    /// The word for people and JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Clearing { .. } => "clearing",
            Self::Staging { .. } => "staging",
            Self::Staged { .. } => "staged",
            Self::Pending { .. } => "pending",
            Self::Trial { .. } => "trial",
            Self::Confirming { .. } => "confirming",
            Self::FallingBack { .. } => "falling-back",
            Self::RollingBack { .. } => "rolling-back",
            Self::ToRescue { .. } => "to-rescue",
        }
    }

    /// The release that the device is busy with.
    pub fn release(&self) -> Option<&ReleaseRef> {
        match self {
            Self::ToRescue { release, .. } => release.as_ref(),
            other => other.update().map(|(_, release)| release),
        }
    }

    /// The slot and release of an update in progress.
    pub fn update(&self) -> Option<(&SlotId, &ReleaseRef)> {
        match self {
            Self::Idle | Self::RollingBack { .. } | Self::ToRescue { .. } => None,
            Self::Clearing { slot, release }
            | Self::Staging { slot, release }
            | Self::Staged { slot, release }
            | Self::Pending { slot, release, .. }
            | Self::Trial { slot, release }
            | Self::Confirming { slot, release }
            | Self::FallingBack { slot, release, .. } => Some((slot, release)),
        }
    }
}

/// A release that is not installed again until the operator says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The release.
    pub release: ReleaseRef,
    /// Why.
    pub reason: String,
}

/// How an update ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub result: UpdateResult,
    /// Which release.
    pub release: ReleaseRef,
    /// The slot concerned.
    pub slot: SlotId,
    /// Why, when it did not succeed.
    pub reason: String,
    /// Last lines of what failed.
    pub log: String,
    /// When, by the clock of the device.
    pub at: UtcSeconds,
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateResult {
    /// It runs and passed its checks.
    Confirmed,
    /// It did not pass; the earlier software runs.
    FellBack,
    /// An operator went back, or gave it up before it ran.
    RolledBack,
    /// Its content could not be installed.
    InstallFailed,
}

impl UpdateResult {
    const ALL: [Self; 4] = [Self::Confirmed, Self::FellBack, Self::RolledBack, Self::InstallFailed];

    /// The word for people and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::FellBack => "fell-back",
            Self::RolledBack => "rolled-back",
            Self::InstallFailed => "install-failed",
        }
    }

    /// Reads [`word`](Self::word) back.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|result| result.word() == word)
    }
}

impl State {
    /// A device that runs `active`, which holds `release` if that is known.
    pub fn new(active: SlotId, release: Option<ReleaseRef>) -> Self {
        let mut floors = Floors::default();
        if let Some(release) = &release {
            floors.confirm(release);
        }
        Self {
            phase: Phase::Idle,
            confirmed: release.map(|release| (active.clone(), release)).into_iter().collect(),
            active,
            bad: BTreeMap::new(),
            rejected: Vec::new(),
            floors,
            last: None,
            rescue: None,
            outcomes: 0,
            settings: SettingsState::default(),
            counter: None,
        }
    }

    /// The confirmed software that runs or that a failed trial falls back to; `None` when it was never recorded.
    pub fn installed(&self) -> Option<&ReleaseRef> {
        self.confirmed.get(&self.active)
    }

    /// What a slot is, and what it holds.
    pub fn slot(&self, slot: &SlotId) -> (SlotStatus, Option<&ReleaseRef>) {
        if let Some((updated, release)) = self.phase.update()
            && updated == slot
            && !matches!(self.phase, Phase::Clearing { .. })
        {
            let status = match &self.phase {
                Phase::Staged { .. } => SlotStatus::Staged,
                Phase::Pending { .. } => SlotStatus::Pending,
                Phase::Trial { .. } | Phase::Confirming { .. } => SlotStatus::Tentative,
                Phase::FallingBack { .. } => SlotStatus::Bad,
                Phase::Idle
                | Phase::Clearing { .. }
                | Phase::RollingBack { .. }
                | Phase::ToRescue { .. }
                | Phase::Staging { .. } => SlotStatus::Empty,
            };
            return (status, Some(release));
        }
        if let Some(release) = self.confirmed.get(slot) {
            return (SlotStatus::Confirmed, Some(release));
        }
        match self.bad.get(slot) {
            Some(release) => (SlotStatus::Bad, Some(release)),
            None if *slot == self.active || self.is_rescue(slot) => (SlotStatus::Confirmed, None),
            None => (SlotStatus::Empty, None),
        }
    }

    /// Confirmed slots that the release of the update in progress declares dangerous: once its floors hold, nothing in
    /// them may be booted any more.
    pub fn below_next_floor(&self) -> Vec<SlotId> {
        let Some((slot, release)) = self.phase.update() else {
            return Vec::new();
        };
        let mut floors = self.floors.clone();
        floors.confirm(release);
        let others = self.confirmed.iter().filter(|(other, _)| *other != slot);
        others
            .filter(|(_, held)| floors.permit_boot(&held.channel, held.sequence).is_err())
            .map(|(other, _)| other.clone())
            .collect()
    }

    /// Whether a slot is that of the rescue system: never written, and always there to go back to.
    pub fn is_rescue(&self, slot: &SlotId) -> bool {
        self.rescue.as_ref().is_some_and(|rescue| rescue.slot == *slot)
    }

    /// Why a release is not installed again by itself, if so.
    pub fn rejection(&self, manifest_sha256: &[u8; 32]) -> Option<&Rejected> {
        self.rejected
            .iter()
            .find(|rejected| rejected.release.manifest_sha256 == *manifest_sha256)
    }

    /// Remembers not to install a release again.
    pub fn reject(&mut self, release: &ReleaseRef, reason: &str) {
        self.forgive(&release.manifest_sha256);
        if self.rejected.len() >= MAX_REJECTED {
            self.rejected.remove(0);
        }
        self.rejected.push(Rejected {
            release: release.clone(),
            reason: shortened(reason, REASON_BYTES),
        });
    }

    /// Forgets rejected releases that a floor refuses anyway.
    pub fn forget_rejected_below_floors(&mut self) {
        let floors = &self.floors;
        self.rejected.retain(|rejected| {
            let release = &rejected.release;
            floors.permit_install(&release.channel, release.sequence).is_ok()
        });
    }

    /// Lets a release be installed again.
    pub fn forgive(&mut self, manifest_sha256: &[u8; 32]) {
        self.rejected
            .retain(|rejected| rejected.release.manifest_sha256 != *manifest_sha256);
    }
}

/// The last `limit` bytes of a text, at the border of a character.
pub fn shortened(text: &str, limit: usize) -> String {
    let mut from = text.len().saturating_sub(limit);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}
