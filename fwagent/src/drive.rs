//! The interpreter: fetches, judges, steps, stores, acts; the only place that knows the order of these.
//!
//! ```text
//! check:   metadata -> fwmeta::client -> commit, floors -> plan -> manifest -> Offer, or why none
//! update:  check -> Planned -> step -> store the state -> effects -> events -> … -> Reboot
//! ```
//!
//! What it decides: nothing that [`crate::machine`] or `fwmeta` can decide. What it guarantees: a state is durable before
//! the first effect of its step, metadata below a floor are never committed, and an effect that failed leaves a state
//! from which the next start or poll goes on.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::time::Duration;

use fwmeta::client::{Client, ClientError, Refreshed, Release};
use fwmeta::json::{Value, object};
use fwmeta::limits;
use fwmeta::manifest::{Component, Encoding, Manifest};
use fwmeta::role::{RoleKeys, RoleName, Root};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use fwmeta::trusted::{self, TrustedSet};
use sha2::{Digest, Sha256};

use self::settings::OfferedSettings;
use crate::machine::conditions::{Ask, Condition, Gate, Policy, Withheld, judge as judge_conditions};
use crate::machine::plan::{self, Considered, Identity, Wish};
use crate::machine::release::ReleaseRef;
use crate::machine::rescue::Rescue;
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State};
use crate::machine::step::{Effect, Event, Refusal, step};
use crate::machine::time::{Freshness, Reference};
use crate::ports::{
    BootControl, Clock, Conditions, Health, HealthCheck, MetadataStore, PortError, PortErrorKind, Reboot,
    SettingsStore, SlotStore, Source as _, StateStore, Transport,
};

pub mod settings;

/// The time floor is stored only when it rises by so many seconds: a device that polls often must not wear its flash.
const TIME_FLOOR_STEP: i64 = 3600;
/// Exponent of the largest window that a payload may ask for: 8 MiB.
const WINDOW_LOG: u32 = 23;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The device was never provisioned.
    #[error("this device was never provisioned")]
    NotProvisioned,
    /// Metadata were refused or could not be had.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Metadata have expired: somebody keeps newer ones back, nobody signs them any more, or the clock is ahead.
    #[error("the metadata are stale, and the time is {time}")]
    Stale {
        /// The time that was used.
        time: Reference,
        /// Which role has expired when.
        source: Box<ClientError>,
    },
    /// Metadata are older than what this device has seen.
    #[error("{role}: version {offered} is older than version {floor}, which this device has seen")]
    BelowMetadataFloor {
        /// The role.
        role: RoleName,
        /// The version offered.
        offered: u64,
        /// The highest version seen.
        floor: u64,
    },
    /// The manifest of a release was refused.
    #[error("manifest {path}")]
    Manifest {
        /// Its target path.
        path: TargetPath,
        /// Why.
        source: plan::ManifestRefusal,
    },
    /// A payload that the manifest names is not listed.
    #[error("manifest {manifest} names {payload}, which no role lists")]
    UnlistedPayload {
        /// Target path of the manifest.
        manifest: TargetPath,
        /// Target path of the payload.
        payload: TargetPath,
    },
    /// The event makes no sense now.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// A port failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// All slots are in use.
    #[error("no slot is free: slot {active} is active, and there is no other")]
    NoFreeSlot {
        /// The active slot.
        active: SlotId,
    },
}

impl DriveError {
    /// Whether something was judged and refused, as opposed to not possible now.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Client(error) => error.is_refusal(),
            Self::Port(error) => error.kind == PortErrorKind::Refused,
            Self::Stale { .. }
            | Self::BelowMetadataFloor { .. }
            | Self::Manifest { .. }
            | Self::UnlistedPayload { .. }
            | Self::Refusal(_) => true,
            Self::NotProvisioned | Self::NoFreeSlot { .. } => false,
        }
    }

    /// Whether somebody asked to stop.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Port(error) if error.kind == PortErrorKind::Stopped)
    }

    /// How long the server asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let port: Option<&PortError> = match self {
            Self::Port(error) => Some(error),
            Self::Client(ClientError::Fetch { source, .. }) => source.downcast_ref(),
            _ => None,
        };
        match port?.kind {
            PortErrorKind::Environment { retry_after } => retry_after,
            _ => None,
        }
    }
}

/// What a check found.
#[derive(Debug)]
pub struct Checked {
    /// Whether the timestamp was a new one.
    pub refreshed: Refreshed,
    /// The release to install, judged in full.
    pub offer: Option<Offer>,
    /// All releases of the product and what was decided about each.
    pub considered: Vec<Considered>,
    /// What had to be left out, and why.
    pub problems: Vec<ClientError>,
    /// What withholds the update now.
    pub held: Option<Held>,
    /// Whether the metadata are the newest, as far as their expiry tells; never stale, which is an error.
    pub freshness: Freshness,
}

/// An update that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What was asked for.
    pub ask: Ask,
    /// Why it has to wait; at least one.
    pub reasons: Vec<Withheld>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        write!(f, "the {} waits: {}", self.ask.gate.word(), reasons.join("; "))
    }
}

impl Held {
    /// The form for `--json`.
    pub fn to_value(&self) -> Value {
        let reasons: Vec<_> = self.reasons.iter().map(Withheld::to_value).collect();
        object([("gate", self.ask.gate.word().into()), ("reasons", reasons.into())])
    }
}

/// A release that this device would install.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The release.
    pub release: ReleaseRef,
    /// Its manifest.
    pub manifest: Manifest,
    /// The payload of each component, in the order of the manifest.
    pub payloads: Vec<TargetFile>,
    /// The way of the settings.
    pub settings: OfferedSettings,
    /// Whether targets carry their digest in their names.
    consistent_snapshot: bool,
}

impl Offer {
    /// Bytes to download at most.
    pub fn download_bytes(&self) -> u64 {
        self.payloads
            .iter()
            .map(|file| file.length)
            .fold(0, u64::saturating_add)
    }
}

/// What the driver is doing, for people and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A release goes into a slot.
    Installing {
        /// The release.
        release: ReleaseRef,
        /// The slot.
        slot: SlotId,
    },
    /// A component is there already.
    Kept {
        /// Its name.
        component: String,
    },
    /// Bytes of a payload.
    Downloading {
        /// The component.
        component: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Bytes of a payload in a bundle, before anything changes.
    Verifying {
        /// The component.
        component: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Bytes of an image on their way into a slot.
    Writing {
        /// The component.
        component: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The update has to wait.
    Held(Held),
    /// Something about settings that could not be done.
    Settings {
        /// What, and why.
        problem: String,
    },
    /// A step was taken.
    Entered {
        /// The phase.
        phase: &'static str,
    },
    /// An effect is about to run.
    Effect(Effect),
}

/// Told of each notice; `false` asks to stop.
pub type Observer = Box<dyn FnMut(&Notice) -> bool>;

/// Whether the device is about to restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// A restart was asked for: do nothing more.
    Restart,
}

/// How a device is set up, as far as the driver must know.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What the device is.
    pub identity: Identity,
    /// All slot sets, in order of preference.
    pub slots: Vec<SlotId>,
    /// The set of the rescue system, if there is one.
    pub rescue: Option<SlotId>,
    /// Slot classes of each set but the rescue system's, sorted.
    pub classes: Vec<String>,
    /// Trial boots before the boot loader goes back.
    pub boot_attempts: u32,
    /// When an update may go on.
    pub policy: Policy,
    /// Releases whose migration of settings cannot be taken back need no word of an operator.
    pub accept_one_way: bool,
}

/// The ports that need no type of their own.
pub struct Ports {
    /// The agent's record.
    pub states: Box<dyn StateStore>,
    /// The slots.
    pub slots: Box<dyn SlotStore>,
    /// The boot loader.
    pub boot: Box<dyn BootControl>,
    /// The health checks.
    pub health: Box<dyn HealthCheck>,
    /// The settings.
    pub settings: Box<dyn SettingsStore>,
    /// The clock.
    pub clock: Box<dyn Clock>,
    /// What decides whether an update may go on.
    pub conditions: Box<dyn Conditions>,
    /// The restart.
    pub reboot: Box<dyn Reboot>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ports")
    }
}

/// A device and its driver.
pub struct Driver<M, T> {
    setup: Setup,
    metadata: M,
    transport: T,
    ports: Ports,
    observer: Observer,
    state: State,
    /// The update in progress in this process; after a restart the next poll brings it again.
    offer: Option<Offer>,
    /// What the operator said to pass over, in this process.
    ignore: BTreeSet<Condition>,
    held: Option<Held>,
}

impl<M: fmt::Debug, T: fmt::Debug> fmt::Debug for Driver<M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("setup", &self.setup)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<M: MetadataStore, T: Transport> Driver<M, T> {
    /// A driver for a provisioned device. Loads its state and changes nothing.
    ///
    /// # Errors
    /// [`DriveError::NotProvisioned`], [`DriveError::Port`].
    pub fn new(
        setup: Setup,
        metadata: M,
        transport: T,
        mut ports: Ports,
        observer: Observer,
    ) -> Result<Self, DriveError> {
        let mut state = ports.states.load()?.ok_or(DriveError::NotProvisioned)?;
        // What the configuration says goes; it is stored with the next step.
        if state.rescue.as_ref().map(|rescue| &rescue.slot) != setup.rescue.as_ref() {
            state.rescue = setup.rescue.clone().map(Rescue::new);
        }
        Ok(Self {
            setup,
            metadata,
            transport,
            ports,
            observer,
            state,
            offer: None,
            ignore: BTreeSet::new(),
            held: None,
        })
    }

    /// The state as it is stored.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Passes over conditions that are not met, on the operator's word.
    pub fn ignore(&mut self, conditions: impl IntoIterator<Item = Condition>) {
        self.ignore.extend(conditions);
    }

    /// What time it is, as far as the device knows.
    fn time(&mut self) -> Reference {
        let passed = self.state.floors.time.max(self.setup.policy.not_before);
        Reference::new(self.ports.clock.now(), passed)
    }

    /// What withheld the update when it was last tried.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether the update may go through a gate.
    fn pass(&mut self, gate: Gate, security: bool, bytes: u64) -> bool {
        let ask = Ask {
            gate,
            security,
            bytes,
            ignore: self.ignore.clone(),
        };
        let time = self.time();
        let reasons = judge_conditions(&self.setup.policy, &self.ports.conditions.facts(), time, &ask);
        self.held = (!reasons.is_empty()).then_some(Held { ask, reasons });
        self.held.is_none()
    }

    /// Whether the boot loader may be told of the update in progress, and the device may restart into it.
    fn may_restart(&mut self) -> bool {
        let security = self.state.phase.release().is_some_and(|release| release.security);
        let may = self.pass(Gate::Restart, security, 0);
        if let Some(held) = &self.held {
            (self.observer)(&Notice::Held(held.clone()));
        }
        may
    }

    /// Whether an update is in its slot and not tried yet.
    pub fn waits(&self) -> bool {
        matches!(self.state.phase, Phase::Staged { .. } | Phase::Pending { .. })
    }

    /// Derives from the boot loader what became of the last effects, and goes on from there.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn power_on(&mut self) -> Result<Next, DriveError> {
        let view = self.ports.boot.view()?;
        // Before any effect of the step, since a restart may be one: whatever else happens, there is this slot to go back
        // to. A slot on trial is neither active nor confirmed.
        if let Some(running) = &view.booted
            && (*running == self.state.active
                || self.state.confirmed.contains_key(running)
                || self.state.is_rescue(running))
        {
            self.ports.boot.replenish(running)?;
        }
        self.examine_settings()?;
        self.dispatch(Event::PowerOn(view))
    }

    /// The slot that runs now.
    ///
    /// # Errors
    /// [`DriveError::Port`].
    pub fn running(&mut self) -> Result<SlotId, DriveError> {
        let booted = self.ports.boot.view()?.booted;
        Ok(booted.unwrap_or_else(|| self.state.active.clone()))
    }

    /// Takes an operator's word on the trial, or ends it for a reason.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn tell(&mut self, event: Event) -> Result<Next, DriveError> {
        self.dispatch(event)
    }

    /// Brings the trusted metadata up to date and chooses a release.
    ///
    /// # Errors
    /// [`DriveError`]; what was verified before the failure is kept.
    pub fn check(&mut self, wish: &Wish) -> Result<Checked, DriveError> {
        self.held = None;
        let time = self.time();
        let factory = self.metadata.factory_root()?;
        let history = self.metadata.root_history()?;
        let source = self.transport.metadata(self.metadata.known_timestamp())?;
        let mut client = Client::new(source, &mut self.metadata, &factory, time.at)?;
        for root in &history {
            client.replay_root(root)?;
        }
        let refreshed = client.refresh();
        let seen = Seen::of(client.trusted());
        if let Err(error) = seen.check(&self.state) {
            client.cache().discard();
            return Err(refreshed.err().map_or(error, DriveError::from));
        }
        let checked = match refreshed {
            Ok(refreshed) => examine(
                &mut client,
                &mut self.transport,
                &self.setup,
                &self.state,
                wish,
                refreshed,
            ),
            Err(error) if is_expiry(&error) => Err(DriveError::Stale {
                time,
                source: Box::new(error),
            }),
            Err(error) => Err(error.into()),
        };
        // Whatever was verified stays, also when something after it was refused.
        let (source, metadata) = client.into_parts();
        if checked.is_ok() {
            metadata.stage_etag(source.timestamp_etag());
        }
        metadata.commit()?;
        let mut checked = checked?;
        checked.freshness = time.freshness(seen.expires);
        // By a clock that is ahead, a delegated role may be the only one that has expired.
        let expired = checked.problems.iter().any(is_expiry);
        let risen = time.justified_floor(seen.expires).filter(|_| !expired);
        self.raise_floors(seen, risen)?;
        if let Some(offer) = &checked.offer {
            self.pass(Gate::Install, offer.release.security, offer.download_bytes());
            checked.held = self.held.clone();
        } else if self.waits() {
            let security = self.state.phase.update().is_some_and(|(_, release)| release.security);
            self.pass(Gate::Restart, security, 0);
            checked.held = self.held.clone();
        }
        Ok(checked)
    }

    /// Raises the metadata floors, and the time floor when that is worth a write.
    fn raise_floors(&mut self, seen: Seen, time: Option<UtcSeconds>) -> Result<(), DriveError> {
        let mut next = self.state.clone();
        next.floors.root = next.floors.root.max(seen.root);
        for (floor, version) in [
            (&mut next.floors.timestamp, seen.timestamp),
            (&mut next.floors.snapshot, seen.snapshot),
        ] {
            if let Some((version, keys)) = version {
                floor.raise(version, keys);
            }
        }
        let risen = next.floors != self.state.floors;
        let time = time.unwrap_or(next.floors.time);
        if risen || time.0.saturating_sub(next.floors.time.0) >= TIME_FLOOR_STEP {
            next.floors.raise_time(time);
            self.ports.states.store(&next)?;
            self.state = next;
        }
        Ok(())
    }

    /// Checks, and installs the release that was found: into a free slot, verified, armed, and a restart asked for.
    ///
    /// # Errors
    /// [`DriveError`]; the running software is as it was.
    pub fn update(&mut self, wish: &Wish) -> Result<(Checked, Next), DriveError> {
        self.finish_settings()?;
        let checked = self.check(wish)?;
        let Some(offer) = &checked.offer else {
            return Ok((checked, Next::Continue));
        };
        let slot = self.place(offer)?;
        if let Some(held) = &checked.held {
            (self.observer)(&Notice::Held(held.clone()));
            let fetches = held
                .reasons
                .iter()
                .all(|withheld| withheld.condition == Condition::Window);
            if fetches && self.setup.policy.prefetch {
                let offer = offer.clone();
                for (component, file) in offer.manifest.components.iter().zip(&offer.payloads) {
                    self.fetch(component, file, offer.consistent_snapshot)?;
                }
            }
            return Ok((checked, Next::Continue));
        }
        for (component, file) in offer.manifest.components.iter().zip(&offer.payloads) {
            let (name, observer) = (&component.name, &mut self.observer);
            let path = &component.payload.target;
            self.transport
                .prepare(path, file, offer.consistent_snapshot, &mut |done, total| {
                    observer(&Notice::Verifying {
                        component: name.clone(),
                        done,
                        total,
                    })
                })?;
        }
        let release = offer.release.clone();
        let Some(slot) = slot else {
            let next = self.dispatch(Event::RescueNeeded { release })?;
            return Ok((checked, next));
        };
        (self.observer)(&Notice::Installing {
            release: release.clone(),
            slot: slot.clone(),
        });
        self.offer = Some(offer.clone());
        let next = self.dispatch(Event::Planned { slot, release });
        self.offer = None;
        Ok((checked, next?))
    }

    /// Puts the first software into the slot of a new device, which nothing runs from yet. For the factory: the caller
    /// stores the state that says so.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn fill_first(&mut self, slot: &SlotId, offer: &Offer) -> Result<ReleaseRef, DriveError> {
        for component in &offer.manifest.components {
            self.ports.slots.check(slot, component)?;
        }
        for (component, file) in offer.manifest.components.iter().zip(&offer.payloads) {
            self.fill(slot, component, file, offer.consistent_snapshot)?;
        }
        self.transport.discard_targets()?;
        Ok(offer.release.clone())
    }

    /// What [`update`](Self::update) would do: everything up to the first write into a slot or a record of the update.
    ///
    /// # Errors
    /// [`DriveError`], as the update itself would end.
    pub fn rehearse(&mut self, wish: &Wish) -> Result<(Checked, Option<SlotId>), DriveError> {
        let checked = self.check(wish)?;
        let Some(offer) = &checked.offer else {
            return Ok((checked, None));
        };
        let slot = self.place(offer)?.unwrap_or_else(|| self.state.active.clone());
        Ok((checked, Some(slot)))
    }

    /// The slot that takes an offer, checked. `None` when only the rescue system can write it.
    fn place(&mut self, offer: &Offer) -> Result<Option<SlotId>, DriveError> {
        let Some(slot) = self.free_slot()? else {
            return Ok(None);
        };
        if self.ports.boot.view()?.booted.as_ref() == Some(&slot) {
            // Whatever the record says: a start that could not finish may have left it so.
            return Err(Refusal::ActiveSlot { slot }.into());
        }
        for component in &offer.manifest.components {
            self.ports.slots.check(&slot, component)?;
        }
        Ok(Some(slot))
    }

    /// The slot that an update goes into: the one in progress, or the first that is not active. `None` when only the
    /// rescue system can write it.
    fn free_slot(&self) -> Result<Option<SlotId>, DriveError> {
        if let Some((slot, _)) = self.state.phase.update() {
            return Ok(Some(slot.clone()));
        }
        let active = &self.state.active;
        let mut slots = self.setup.slots.iter();
        let free = slots.find(|slot| *slot != active && !self.state.is_rescue(slot));
        if free.is_none() && (self.state.rescue.is_none() || self.state.is_rescue(active)) {
            let active = active.clone();
            return Err(DriveError::NoFreeSlot { active });
        }
        Ok(free.cloned())
    }

    /// Takes a step: stores the next state, then runs the effects and whatever follows from them.
    fn dispatch(&mut self, event: Event) -> Result<Next, DriveError> {
        let mut taken = step(&self.state, event, self.ports.clock.now())?;
        if taken.is_unexplained(&self.state) {
            taken.explain(&self.ports.health.evidence());
        }
        if taken.state != self.state {
            self.ports.states.store(&taken.state)?;
            let moved = taken.state.phase != self.state.phase;
            self.state = taken.state;
            if moved {
                (self.observer)(&Notice::Entered {
                    phase: self.state.phase.word(),
                });
            }
        }
        for effect in taken.effects {
            (self.observer)(&Notice::Effect(effect.clone()));
            let follows = match effect {
                Effect::Clear(slot) => {
                    self.ports.boot.disable(&slot)?;
                    Some(Event::Cleared)
                }
                Effect::Disable(slot) => {
                    self.ports.boot.disable(&slot)?;
                    None
                }
                Effect::Install => self.install()?,
                Effect::Arm(_) if !self.may_restart() => Some(Event::Withheld),
                Effect::Arm(slot) => {
                    let attempts = self.setup.boot_attempts;
                    self.ports.boot.arm(&slot, attempts)?;
                    Some(Event::Armed { attempts })
                }
                Effect::CheckHealth(slot) => match self.ports.health.check(&slot)? {
                    Health::Passed => Some(Event::HealthPassed),
                    Health::Failed { reason, log } => Some(Event::HealthFailed { reason, log }),
                    Health::Awaited | Health::Stopped => None,
                },
                Effect::Confirm(slot) => {
                    self.ports.boot.confirm(&slot)?;
                    for below in self.state.below_next_floor() {
                        self.ports.boot.disable(&below)?;
                    }
                    Some(Event::Confirmed)
                }
                Effect::SettleSettings(_) => self.settle_settings()?,
                Effect::CarrySettingsBack => self.carry_settings_back()?,
                Effect::PublishSettings => {
                    self.publish_settings();
                    None
                }
                // Only into an update: whoever falls back must not wait.
                Effect::Reboot if matches!(self.state.phase, Phase::Pending { .. }) && !self.may_restart() => {
                    Some(Event::Withheld)
                }
                Effect::Reboot => {
                    if let Phase::Pending { slot, .. } = &self.state.phase {
                        self.ports.boot.spend(slot)?;
                        self.ports.reboot.reboot_for_trial()?;
                    } else {
                        self.ports.reboot.reboot()?;
                    }
                    return Ok(Next::Restart);
                }
            };
            if let Some(event) = follows
                && self.dispatch(event)? == Next::Restart
            {
                return Ok(Next::Restart);
            }
        }
        Ok(Next::Continue)
    }

    /// Writes the images of the offer into the slot of the update in progress. What can be tried again later is an
    /// error and leaves the state as it is; what would fail again is an event.
    fn install(&mut self) -> Result<Option<Event>, DriveError> {
        let (Some(offer), Some((slot, _))) = (self.offer.clone(), self.state.phase.update()) else {
            return Ok(None);
        };
        let slot = slot.clone();
        for (component, file) in offer.manifest.components.iter().zip(&offer.payloads) {
            match self.fill(&slot, component, file, offer.consistent_snapshot) {
                Ok(()) => {}
                Err(error) if error.kind == PortErrorKind::Refused => {
                    let reason = format!("component {}: {}", component.name, chain(&error));
                    self.transport.discard_targets()?;
                    return Ok(Some(Event::InstallFailed { reason, refused: true }));
                }
                Err(error) => return Err(error.into()),
            }
        }
        match self.prepare_settings(&offer) {
            Err(DriveError::Port(error)) if error.kind == PortErrorKind::Refused => {
                let reason = chain(&error);
                self.transport.discard_targets()?;
                return Ok(Some(Event::InstallFailed { reason, refused: true }));
            }
            other => other?,
        }
        self.transport.discard_targets()?;
        Ok(Some(Event::Installed))
    }

    /// Fetches the payload of a component, or continues.
    fn fetch(
        &mut self,
        component: &Component,
        file: &TargetFile,
        consistent_snapshot: bool,
    ) -> Result<T::Target, PortError> {
        let observer = &mut self.observer;
        self.transport.target(
            &component.payload.target,
            file,
            consistent_snapshot,
            &mut |done, total| {
                observer(&Notice::Downloading {
                    component: component.name.clone(),
                    done,
                    total,
                })
            },
        )
    }

    fn fill(
        &mut self,
        slot: &SlotId,
        component: &Component,
        file: &TargetFile,
        consistent_snapshot: bool,
    ) -> Result<(), PortError> {
        let name = component.name.clone();
        if self.ports.slots.holds(slot, component)? {
            (self.observer)(&Notice::Kept { component: name });
            return Ok(());
        }
        let payload = self.fetch(component, file, consistent_snapshot)?;
        let observer = &mut self.observer;
        let mut image: Box<dyn Read> = match component.payload.encoding {
            Encoding::Identity => Box::new(payload),
            Encoding::Zstd => {
                let mut decoder = zstd::Decoder::new(payload)
                    .map_err(|error| PortError::environment("setting up decompression", Some(error.into())))?
                    .single_frame();
                decoder
                    .window_log_max(WINDOW_LOG)
                    .map_err(|error| PortError::environment("setting up decompression", Some(error.into())))?;
                Box::new(decoder)
            }
        };
        self.ports.slots.write(slot, component, &mut image, &mut |done, total| {
            observer(&Notice::Writing {
                component: name.clone(),
                done,
                total,
            })
        })
    }
}

/// Chooses a release, reads and judges its manifest, and finds its payloads.
fn examine<M: MetadataStore, T: Transport>(
    client: &mut Client<T::Source, &mut M>,
    transport: &mut T,
    setup: &Setup,
    state: &State,
    wish: &Wish,
    refreshed: Refreshed,
) -> Result<Checked, DriveError> {
    let listed = client.releases(&setup.identity.product)?;
    let decision = plan::choose(listed.found, &setup.identity, state, wish);
    let mut considered = decision.considered;
    let offer = match decision.chosen {
        Some(chosen) => {
            let offer = judge(client, transport, setup, state, &chosen)?;
            let accepted = wish.accept_one_way || setup.accept_one_way;
            OfferedSettings::withhold(offer, accepted, &mut considered)
        }
        None => None,
    };
    Ok(Checked {
        refreshed,
        offer,
        considered,
        problems: listed.problems,
        held: None,
        freshness: Freshness::Unknown,
    })
}

fn judge<M: MetadataStore, T: Transport>(
    client: &mut Client<T::Source, &mut M>,
    transport: &mut T,
    setup: &Setup,
    state: &State,
    chosen: &Release,
) -> Result<Offer, DriveError> {
    let consistent_snapshot = client.trusted().root().consistent_snapshot;
    let input = transport.target(&chosen.path, &chosen.file, consistent_snapshot, &mut |_, _| true)?;
    let mut bytes = Vec::new();
    let read = input.take(limits::MANIFEST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| PortError::environment(format!("reading {}", chosen.path), Some(error.into())))?;
    let refused = |source| DriveError::Manifest {
        path: chosen.path.clone(),
        source,
    };
    let manifest = Manifest::parse(&bytes).map_err(|error| refused(error.into()))?;
    plan::check_manifest(&manifest, chosen, &setup.identity, &setup.classes).map_err(refused)?;
    let mut payloads = Vec::with_capacity(manifest.components.len());
    for component in &manifest.components {
        let payload = &component.payload.target;
        let file = client.find_target(payload)?;
        payloads.push(file.ok_or_else(|| DriveError::UnlistedPayload {
            manifest: chosen.path.clone(),
            payload: payload.clone(),
        })?);
    }
    Ok(Offer {
        release: ReleaseRef::of_manifest(&manifest, Sha256::digest(&bytes).into()),
        settings: settings::offered::<M, T>(client, state, &manifest, &chosen.path)?,
        manifest,
        payloads,
        consistent_snapshot,
    })
}

/// The versions that a cycle trusts, with the keys of their roles.
struct Seen {
    root: u64,
    timestamp: Option<(u64, BTreeSet<String>)>,
    snapshot: Option<(u64, BTreeSet<String>)>,
    /// The earliest expiry of the top-level roles.
    expires: UtcSeconds,
}

impl Seen {
    fn of(trusted: &TrustedSet) -> Self {
        let root = trusted.root();
        let keys = |role: &RoleKeys| role_keys(root, role);
        Self {
            root: root.version,
            timestamp: trusted
                .timestamp()
                .map(|timestamp| (timestamp.version, keys(&root.roles.timestamp))),
            snapshot: trusted
                .snapshot()
                .map(|snapshot| (snapshot.version, keys(&root.roles.snapshot))),
            expires: [
                trusted.timestamp().map(|timestamp| timestamp.expires),
                trusted.snapshot().map(|snapshot| snapshot.expires),
                trusted.targets(&RoleName::targets()).map(|targets| targets.expires),
            ]
            .into_iter()
            .flatten()
            .fold(root.expires, UtcSeconds::min),
        }
    }

    fn check(&self, state: &State) -> Result<(), DriveError> {
        let below = |role, offered, floor| Err(DriveError::BelowMetadataFloor { role, offered, floor });
        let floors = &state.floors;
        if self.root < floors.root {
            return below(RoleName::root(), self.root, floors.root);
        }
        for (role, floor, version) in [
            (RoleName::timestamp(), &floors.timestamp, &self.timestamp),
            (RoleName::snapshot(), &floors.snapshot, &self.snapshot),
        ] {
            if let Some((version, keys)) = version
                && !floor.permits(*version, keys)
            {
                return below(role, *version, floor.version);
            }
        }
        Ok(())
    }
}

/// Whether something was refused because it has expired.
fn is_expiry(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(refused) if matches!(refused.reason, trusted::Refusal::Expired { .. }))
}

fn role_keys(root: &Root, role: &RoleKeys) -> BTreeSet<String> {
    role.keyids
        .iter()
        .filter_map(|keyid| root.keys.get(keyid))
        .map(|key| key.to_value().to_json())
        .collect()
}

/// An error and its causes, joined by colons.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
