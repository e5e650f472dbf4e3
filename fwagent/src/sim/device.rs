//! The simulated device: the real driver over the real stores on a simulated disk, the real boot loader's half of boot
//! control `file`, and in place of the rest of the world a signed repository, a clock, and a health check that knows how
//! it will end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use fwdurable::Disk;
use fwmeta::manifest::Component;
use fwmeta::time::UtcSeconds;

use crate::drive::{Driver, Next, Ports, Setup, chain};
use crate::host::boot_file::BootFile;
use crate::host::generation::GenerationStore;
use crate::host::slots::FileSlot;
use crate::host::state_file::StateFile;
use crate::machine::conditions::{Facts, Policy};
use crate::machine::plan::{Identity, Wish};
use crate::machine::slot::SlotId;
use crate::machine::state::State;
use crate::machine::step::Event;
use crate::ports::{Clock, Conditions, Health, HealthCheck, PortError, Progress, Reboot, SlotStore, StateStore as _};
use crate::sim::broken::Breakage;
use crate::sim::disk::{Shared, SimDisk, Tree};
use crate::sim::repository::{CHANNEL, CLASS, HARDWARE, NOW, Objects, PRODUCT, Published, Repository, SimTransport};
use crate::sim::scenario::{Behaviour, Operator, Scenario};
use crate::sim::settings;
use crate::sim::witness::{
    Notary, Recorder, SharedNotary, Versions, WatchedBoot, WatchedMetadata, WatchedStates, Witness, watch_boot,
};

/// Trial boots before the boot loader goes back.
pub const ATTEMPTS: u32 = 3;
/// Boots after which a device counts as one that never comes to rest: all attempts of two trials, and some.
pub const MOST_BOOTS: u32 = 2 * ATTEMPTS + 4;
/// Where the agent keeps what it must remember.
pub const STATE_DIR: &str = "/state";
/// Seconds between two polls, enough for the time floor to rise.
const POLL: i64 = 4000;
/// Seconds that a boot takes.
const BOOT: i64 = 60;

/// An invariant of RULES §4.4 does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// `I1` to `I9`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// Makes a violation.
pub fn violated(invariant: &'static str, what: impl Into<String>) -> Violation {
    Violation {
        invariant,
        what: what.into(),
    }
}

/// What does not change during a scenario.
#[derive(Debug)]
pub struct Scene {
    /// The scenario.
    pub scenario: &'static Scenario,
    /// All releases.
    pub releases: BTreeMap<u64, Published>,
    /// What the server gave out before the scenario, the oldest first.
    pub earlier: Vec<Objects>,
    /// What it gives out now.
    pub now: Objects,
    /// Newer metadata that list nothing but the oldest release.
    pub forged: Objects,
    factory_root: Vec<u8>,
}

impl Scene {
    /// Publishes what the scenario needs.
    ///
    /// # Errors
    /// [`Violation`] of `I0`: the simulation is at fault.
    pub fn new(scenario: &'static Scenario) -> Result<Self, Violation> {
        let fault = |error: crate::sim::repository::RepositoryError| violated("I0", error.to_string());
        let mut repository = Repository::new().map_err(fault)?;
        let mut stages = Vec::new();
        for what in scenario.factory.iter().chain(scenario.before).chain(scenario.published) {
            stages.push(repository.publish(*what).map_err(fault)?);
        }
        let forged = repository.only(1).map_err(fault)?;
        let earlier = stages.len() - scenario.published.len();
        let now = stages.last().cloned().unwrap_or_default();
        stages.truncate(earlier);
        Ok(Self {
            scenario,
            releases: repository.releases.clone(),
            earlier: stages,
            now,
            forged,
            factory_root: repository.factory_root.clone(),
        })
    }

    fn newest(&self) -> u64 {
        self.releases.keys().next_back().copied().unwrap_or_default()
    }

    fn behaviour(&self, sequence: u64) -> Behaviour {
        if sequence == self.newest() {
            self.scenario.behaviour
        } else {
            Behaviour::Passes
        }
    }

    /// Sequence of the release whose image this is, whole.
    pub fn image(&self, bytes: &[u8]) -> Option<u64> {
        let whole = self.releases.iter().find(|(_, published)| published.image == bytes);
        whole.map(|(sequence, _)| *sequence)
    }
}

/// Slot `a` or `b`.
///
/// # Errors
/// [`Violation`] of `I0`, for no name used here.
pub fn slot(name: &str) -> Result<SlotId, Violation> {
    SlotId::parse(name).map_err(|error| violated("I0", error.to_string()))
}

/// Where a slot is.
pub fn slot_path(slot: &SlotId) -> PathBuf {
    Path::new("/slots").join(slot.as_str())
}

/// A device.
#[derive(Debug)]
pub struct SimDevice {
    scene: Rc<Scene>,
    /// Its disk.
    pub disk: Arc<SimDisk>,
    notary: SharedNotary,
    breakage: Breakage,
    server: Objects,
    clock: Rc<Cell<i64>>,
    /// Boots so far.
    pub boots: u32,
    /// What was booted first.
    pub first: Option<u64>,
    /// Lines for people, when somebody wants them.
    pub story: Option<Rc<RefCell<Vec<String>>>>,
}

impl SimDevice {
    /// A device as it leaves the factory and was used since, with all of it on the medium.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn prepared(scene: &Rc<Scene>) -> Result<(Tree, Witness), Violation> {
        let fault = |error: PortError| violated("I0", chain(&error));
        let mut device = Self::new(scene, Tree::default(), Witness::default(), Breakage::None);
        let (disk, a) = (device.system(), slot("a")?);
        let factory = scene.scenario.factory.len();
        let Some(published) = scene.releases.get(&(factory as u64)) else {
            return Err(violated("I0", "the factory has no release"));
        };
        GenerationStore::provision_on(&disk, &Path::new(STATE_DIR).join("metadata"), &scene.factory_root)
            .map_err(|error| violated("I0", chain(&error)))?;
        disk.create_dir_all(Path::new("/slots"))
            .and_then(|()| disk.write_file(&slot_path(&a), &published.image))
            .map_err(|error| violated("I0", error.to_string()))?;
        let mut states = StateFile::on(&disk, Path::new(STATE_DIR));
        let state = State::new(a.clone(), Some(published.release.clone()));
        states.store(&state).map_err(fault)?;
        BootFile::on(&disk, Path::new(STATE_DIR)).create(&a).map_err(fault)?;
        device.edit(1)?;
        for objects in scene.earlier.iter().skip(factory.saturating_sub(1)) {
            device.server = Rc::clone(objects);
            device.boots = 0;
            device.settle(Operator::Away)?;
        }
        Ok((device.disk.seen(), device.witness()))
    }

    /// A device whose power comes back, with this on its disk.
    pub fn new(scene: &Rc<Scene>, tree: Tree, witness: Witness, breakage: Breakage) -> Self {
        let disk = SimDisk::new(tree, breakage);
        Self {
            scene: Rc::clone(scene),
            notary: Rc::new(RefCell::new(Notary::new(Arc::clone(&disk), witness))),
            disk,
            breakage,
            server: Rc::clone(&scene.now),
            clock: Rc::new(Cell::new(NOW.0)),
            boots: 0,
            first: None,
            story: None,
        }
    }

    /// The clock stands at 1970, as one without a battery does when the power comes back.
    pub fn forget_time(&self) {
        self.clock.set(0);
    }

    fn system(&self) -> Disk {
        Disk::new(Arc::new(Shared(Arc::clone(&self.disk))))
    }

    /// What was promised by now.
    pub fn witness(&self) -> Witness {
        self.notary.borrow().now()
    }

    /// What was promised, over time.
    pub fn history(&self) -> Vec<Witness> {
        self.notary.borrow().history().to_vec()
    }

    /// What the stores hold, read by code that mends nothing.
    pub fn record(&self) -> StateFile {
        StateFile::on(&self.system(), Path::new(STATE_DIR))
    }

    /// The boot loader's memory.
    pub fn boot_record(&self) -> BootFile {
        BootFile::on(&self.system(), Path::new(STATE_DIR))
    }

    /// Opens the trusted metadata, which may mend them.
    ///
    /// # Errors
    /// [`Violation`] when they cannot be opened.
    pub fn metadata(&self) -> Result<GenerationStore, Violation> {
        GenerationStore::open_on(&self.system(), &Path::new(STATE_DIR).join("metadata")).map_err(|error| {
            violated(
                "I6",
                format!("the trusted metadata cannot be opened: {}", chain(&error)),
            )
        })
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        if let Some(story) = &self.story {
            story
                .borrow_mut()
                .push(format!("op {:>4}  {}", self.disk.operations(), text()));
        }
    }

    /// The boot loader starts a slot: which, and what is in it.
    fn boot(&mut self) -> Result<(SlotId, u64), Violation> {
        self.boots += 1;
        if self.boots > MOST_BOOTS {
            return Err(violated(
                "I8",
                format!("the device does not come to rest within {MOST_BOOTS} boots"),
            ));
        }
        self.clock.set(self.clock.get() + BOOT);
        self.disk.start_process();
        let free = self.breakage == Breakage::FreeAttempts;
        let mut loader = self.boot_record();
        let booted = watch_boot(&self.notary, &mut loader, |boot| {
            let slot = boot.power_on()?;
            let armed = boot.peek()?.armed.contains_key(&slot);
            if free && armed {
                crate::ports::BootControl::arm(boot, &slot, ATTEMPTS)?;
            }
            Ok(slot)
        });
        let slot = booted.map_err(|error| violated("I1", format!("nothing boots: {}", chain(&error))))?;
        let tree = self.disk.seen();
        let held = tree.read(&slot_path(&slot)).and_then(|bytes| self.scene.image(bytes));
        let Some(sequence) = held else {
            return Err(violated(
                "I1",
                format!("slot {slot} is booted, and what it holds is no whole image"),
            ));
        };
        self.first.get_or_insert(sequence);
        self.tell(|| format!("boot {} starts slot {slot}, sequence {sequence}", self.boots));
        let state = self.record().peek().ok().flatten();
        if let Some(Err(below)) = state.map(|state| state.floors.permit_boot(CHANNEL, sequence)) {
            return Err(violated("I4", format!("what is booted may not be: {below}")));
        }
        Ok((slot, sequence))
    }

    /// An agent that starts in `running`, which holds `sequence`.
    ///
    /// # Errors
    /// [`Violation`] when it cannot start.
    pub fn agent(
        &self,
        running: &SlotId,
        sequence: u64,
        server: &Objects,
    ) -> Result<(Driver<WatchedMetadata, SimTransport>, Rc<Recorder>), Violation> {
        let (disk, dir) = (self.system(), Path::new(STATE_DIR));
        // As in `Device::driver_with`.
        disk.sweep_temporaries(dir)
            .map_err(|error| violated("I6", format!("{STATE_DIR} cannot be cleaned: {error}")))?;
        let metadata = WatchedMetadata {
            inner: self.metadata()?,
            notary: Rc::clone(&self.notary),
        };
        let recorder = Recorder::new(self.record(), Rc::clone(&self.notary), self.breakage);
        let ports = Ports {
            states: Box::new(WatchedStates(Rc::clone(&recorder))),
            slots: Box::new(SimSlots {
                disk,
                recorder: Rc::clone(&recorder),
                instead: (self.breakage == Breakage::ActiveSlot).then(|| running.clone()),
            }),
            boot: Box::new(WatchedBoot::new(self.boot_record(), Rc::clone(&recorder))),
            health: Box::new(SimHealth(self.scene.behaviour(sequence))),
            settings: Box::new(settings::store(&self.system())),
            clock: Box::new(SimClock(Rc::clone(&self.clock))),
            conditions: Box::new(SimConditions),
            reboot: Box::new(SimReboot(Rc::clone(&recorder))),
        };
        let setup = Setup {
            identity: Identity {
                vendor: None,
                product: PRODUCT.to_owned(),
                hardware: HARDWARE.to_owned(),
                channel: CHANNEL.to_owned(),
            },
            slots: vec![slot("a")?, slot("b")?],
            classes: vec![CLASS.to_owned()],
            boot_attempts: ATTEMPTS,
            policy: Policy::default(),
            accept_one_way: false,
            rescue: None,
        };
        let transport = SimTransport {
            objects: Rc::clone(server),
        };
        let story = self.story.clone();
        let at = Arc::clone(&self.disk);
        let observer = Box::new(move |notice: &crate::drive::Notice| {
            if let Some(story) = &story {
                story
                    .borrow_mut()
                    .push(format!("op {:>4}    {}", at.operations(), crate::output::words(notice)));
            }
            true
        });
        let driver = Driver::new(setup, metadata, transport, ports, observer)
            .map_err(|error| violated("I6", format!("the agent does not start: {}", chain(&error))))?;
        Ok((driver, recorder))
    }

    /// The settings become those of generation `number`.
    fn edit(&self, number: u64) -> Result<(), Violation> {
        let recorder = Recorder::new(self.record(), Rc::clone(&self.notary), self.breakage);
        settings::edit(&self.system(), &recorder, number, UtcSeconds(self.clock.get()))
    }

    /// Whether the settings are those that the record names.
    ///
    /// # Errors
    /// [`Violation`] when they are not.
    pub fn has_settings_of(&self, state: &State) -> Result<(), Violation> {
        settings::whole(&self.system(), state)
    }

    /// Lets the device run, boot after boot and poll after poll, until a poll finds nothing to do. The operator acts after
    /// the first start.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn settle(&mut self, operator: Operator) -> Result<(), Violation> {
        let mut operator = operator;
        let stuck = |what: &str, error: &dyn std::error::Error| violated("I6", format!("{what}: {error}"));
        loop {
            let (running, sequence) = self.boot()?;
            if self.scene.behaviour(sequence) == Behaviour::Hangs {
                self.tell(|| "it hangs".to_owned());
                continue;
            }
            let (mut driver, mut recorder) = self.agent(&running, sequence, &Rc::clone(&self.server))?;
            let late = |error: PortError| stuck("the record", &error);
            let next = driver
                .power_on()
                .map_err(|error| stuck("the agent is stuck after a boot", &Chained(&error)))?;
            recorder.catch_up().map_err(late)?;
            if next == Next::Restart {
                continue;
            }
            let acts = std::mem::replace(&mut operator, Operator::Away);
            if acts == Operator::Edits {
                drop(driver);
                for number in 2..2 + settings::EDITS {
                    self.tell(|| format!("the operator makes generation {number} of the settings"));
                    self.edit(number)?;
                }
                // Another process did it, so that the agent starts anew.
                (driver, recorder) = self.agent(&running, sequence, &Rc::clone(&self.server))?;
            }
            if acts == Operator::RollsBack {
                self.tell(|| "the operator rolls back".to_owned());
                let next = driver
                    .tell(Event::RollbackAsked)
                    .map_err(|error| stuck("rolling back", &Chained(&error)))?;
                recorder.catch_up().map_err(late)?;
                if next == Next::Restart {
                    continue;
                }
            }
            // A poll that finds nothing new ends it; an update that could not be installed is followed by one.
            let mut quiet = false;
            while !quiet {
                self.clock.set(self.clock.get() + POLL);
                let (checked, next) = driver
                    .update(&Wish::default())
                    .map_err(|error| stuck("a poll fails", &Chained(&error)))?;
                recorder.catch_up().map_err(late)?;
                if next == Next::Restart {
                    break;
                }
                quiet = checked.offer.is_none();
            }
            if quiet {
                self.tell(|| format!("at rest: {}", driver.state().phase.word()));
                return self.standing();
            }
        }
    }

    /// No floor fell on the way.
    fn standing(&self) -> Result<(), Violation> {
        match self.witness().fallen {
            None => Ok(()),
            Some(what) => Err(violated("I4", format!("{what} fell"))),
        }
    }

    /// Sets what is known when the device was not watched from the beginning.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn observed(&self) -> Result<Witness, Violation> {
        let fault = |error: PortError| violated("I5", chain(&error));
        let boot = self.boot_record();
        Ok(Witness {
            state: self.record().peek().map_err(fault)?,
            storing: None,
            boot: Some((boot.primary().map_err(fault)?, boot.peek().map_err(fault)?)),
            boot_changes: false,
            metadata: Versions::read(&mut self.metadata()?),
            fallen: None,
        })
    }
}

/// An error that prints its causes, too.
#[derive(Debug)]
struct Chained<'a>(&'a crate::drive::DriveError);

impl std::fmt::Display for Chained<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&chain(self.0))
    }
}

impl std::error::Error for Chained<'_> {}

/// File slots on the simulated disk.
#[derive(Debug)]
struct SimSlots {
    disk: Disk,
    recorder: Rc<Recorder>,
    /// With [`Breakage::ActiveSlot`]: the slot that is written whatever was asked for.
    instead: Option<SlotId>,
}

impl SimSlots {
    fn at(&self, slot: &SlotId) -> FileSlot {
        FileSlot::new(&self.disk, &slot_path(self.instead.as_ref().unwrap_or(slot)))
    }
}

impl SlotStore for SimSlots {
    fn check(&mut self, _: &SlotId, _: &Component) -> Result<(), PortError> {
        Ok(())
    }

    fn holds(&mut self, slot: &SlotId, component: &Component) -> Result<bool, PortError> {
        self.at(slot)
            .holds(component)
            .map_err(|error| PortError::environment(format!("reading slot {slot}"), Some(error.into())))
    }

    fn write(
        &mut self,
        slot: &SlotId,
        component: &Component,
        image: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<(), PortError> {
        let written = self.at(slot).write(component, image, progress);
        self.recorder.catch_up()?;
        written.map_err(|error| PortError {
            attempt: format!("writing slot {slot}"),
            kind: error.kind(),
            source: Some(Box::new(error)),
        })
    }
}

#[derive(Debug)]
struct SimHealth(Behaviour);

impl HealthCheck for SimHealth {
    fn check(&mut self, _: &SlotId) -> Result<Health, PortError> {
        Ok(match self.0 {
            Behaviour::Fails => Health::Failed {
                reason: "it is broken".to_owned(),
                log: "no network".to_owned(),
            },
            _ => Health::Passed,
        })
    }
}

#[derive(Debug)]
struct SimClock(Rc<Cell<i64>>);

impl Clock for SimClock {
    fn now(&mut self) -> UtcSeconds {
        UtcSeconds(self.0.get())
    }
}

/// Nothing keeps an update back.
#[derive(Debug)]
struct SimConditions;

impl Conditions for SimConditions {
    fn facts(&mut self) -> Facts {
        Facts::default()
    }
}

#[derive(Debug)]
struct SimReboot(Rc<Recorder>);

impl Reboot for SimReboot {
    fn reboot(&mut self) -> Result<(), PortError> {
        self.0.catch_up()
    }
}
