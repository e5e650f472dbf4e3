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

use fwmeta::client::Client;
use fwmeta::manifest::{Component, Encoding};
use fwmeta::target::TargetFile;
use fwmeta::time::UtcSeconds;

use crate::machine::conditions::{Ask, Condition, Gate, Policy, judge as judge_conditions};
use crate::machine::plan::{Identity, Wish};
use crate::machine::release::ReleaseRef;
use crate::machine::rescue::Rescue;
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State};
use crate::machine::step::{Effect, Event, Refusal, step};
use crate::machine::time::Reference;
use crate::ports::{
    BootControl, Clock, Conditions, Health, HealthCheck, MetadataStore, PortError, PortErrorKind, Reboot,
    SettingsStore, SlotStore, Source as _, StateStore, Transport,
};

mod error;
mod examine;
mod notice;
pub mod settings;

pub use self::error::{DriveError, chain};
pub use self::examine::{Checked, Offer};
use self::examine::{Seen, examine, is_expiry};
pub use self::notice::{Held, Notice, Observer};

/// The time floor is stored only when it rises by so many seconds: a device that polls often must not wear its flash.
const TIME_FLOOR_STEP: i64 = 3600;
/// Exponent of the largest window that a payload may ask for: 8 MiB.
const WINDOW_LOG: u32 = 23;

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
