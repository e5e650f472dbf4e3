//! What the agent was told is done, at every moment: after a cut it must still be there.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use fwmeta::client::Cache;
use fwmeta::json::{Doc, Value};
use fwmeta::role::RoleName;

use crate::host::boot_file::BootFile;
use crate::host::generation::GenerationStore;
use crate::host::state_file::StateFile;
use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State};
use crate::ports::{BootControl, KnownTimestamp, MetadataStore, PortError, StateStore};
use crate::sim::broken::Breakage;
use crate::sim::disk::SimDisk;

/// The boot loader's memory, as far as it can be seen.
pub type BootMemory = (Option<SlotId>, BootView);

/// What was reported as stored, and what was on its way.
#[derive(Debug, Clone, Default)]
pub struct Witness {
    /// The state that was stored last.
    pub state: Option<State>,
    /// A state whose storing has begun.
    pub storing: Option<State>,
    /// The boot loader's memory that was stored last.
    pub boot: Option<BootMemory>,
    /// Whether a change of it has begun.
    pub boot_changes: bool,
    /// The metadata that were committed last.
    pub metadata: Versions,
    /// A floor that fell, which none ever may.
    pub fallen: Option<String>,
}

/// Versions of the trusted metadata; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Versions {
    /// Of root, timestamp, snapshot and targets.
    pub of: [u64; 4],
}

impl Versions {
    /// What a store holds.
    pub fn read(store: &mut impl Cache) -> Self {
        let roles = [
            RoleName::root(),
            RoleName::timestamp(),
            RoleName::snapshot(),
            RoleName::targets(),
        ];
        Self {
            of: roles.map(|role| {
                let bytes = store.load(&role).ok().flatten().unwrap_or_default();
                version(&bytes).unwrap_or_default()
            }),
        }
    }

    /// Whether no version is below that of `earlier`.
    pub fn never_below(&self, earlier: &Self) -> bool {
        self.of.iter().zip(earlier.of).all(|(now, then)| *now >= then)
    }
}

fn version(bytes: &[u8]) -> Option<u64> {
    let value = Doc::parse(bytes).ok()?.root().to_value().ok()?;
    value.get("signed")?.get("version").and_then(Value::as_u64)
}

/// All witnesses of a run, in order. The disk notes which of them a cut belongs to.
#[derive(Debug)]
pub struct Notary {
    disk: Arc<SimDisk>,
    history: Vec<Witness>,
}

impl Notary {
    /// Begins with what is known of the disk.
    pub fn new(disk: Arc<SimDisk>, first: Witness) -> Self {
        disk.mark(0);
        Self {
            disk,
            history: vec![first],
        }
    }

    /// What is known now.
    pub fn now(&self) -> Witness {
        self.history.last().cloned().unwrap_or_default()
    }

    /// All of them.
    pub fn history(&self) -> &[Witness] {
        &self.history
    }

    fn note(&mut self, change: impl FnOnce(&mut Witness)) {
        let mut next = self.now();
        change(&mut next);
        self.history.push(next);
        self.disk.mark(self.history.len() - 1);
    }
}

/// Shared by the ports of a run.
pub type SharedNotary = Rc<RefCell<Notary>>;

/// The agent's record, watched.
#[derive(Debug)]
pub struct Recorder {
    states: RefCell<StateFile>,
    notary: SharedNotary,
    breakage: Breakage,
    /// With [`Breakage::LateRecord`]: what is not stored yet.
    late: RefCell<Option<State>>,
}

impl Recorder {
    /// Watches `states`.
    pub fn new(states: StateFile, notary: SharedNotary, breakage: Breakage) -> Rc<Self> {
        Rc::new(Self {
            states: RefCell::new(states),
            notary,
            breakage,
            late: RefCell::new(None),
        })
    }

    fn write(&self, state: &State) -> Result<(), PortError> {
        self.notary.borrow_mut().note(|witness| {
            if let Some(before) = &witness.state
                && !state.floors.never_below(&before.floors)
            {
                witness.fallen = Some("a floor in the agent's record".to_owned());
            }
            witness.storing = Some(state.clone());
        });
        self.states.borrow_mut().store(state)?;
        self.notary
            .borrow_mut()
            .note(|witness| witness.state = witness.storing.take());
        Ok(())
    }

    /// Stores what should have been stored before the effect that has just happened.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn catch_up(&self) -> Result<(), PortError> {
        let late = self.late.borrow_mut().take();
        late.map_or(Ok(()), |state| self.write(&state))
    }
}

/// The agent's record as a port.
#[derive(Debug)]
pub struct WatchedStates(pub Rc<Recorder>);

impl StateStore for WatchedStates {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        let state = self.0.states.borrow_mut().load()?;
        self.0.notary.borrow_mut().note(|witness| {
            witness.state = state.clone();
            witness.storing = None;
        });
        Ok(state)
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        let mut state = state.clone();
        if self.0.breakage == Breakage::EarlyFloor {
            let armed = matches!(
                state.phase,
                Phase::Staged { .. } | Phase::Pending { .. } | Phase::Trial { .. }
            );
            if let Some((_, release)) = state.phase.update().filter(|_| armed) {
                let release = release.clone();
                state.floors.confirm(&release);
            }
            // They never fall again, in the broken code as in the real one.
            if let Some(before) = self.0.notary.borrow().now().state
                && !state.floors.never_below(&before.floors)
            {
                state.floors = before.floors;
            }
        }
        if self.0.breakage == Breakage::LateRecord {
            self.0.catch_up()?;
            *self.0.late.borrow_mut() = Some(state);
            return Ok(());
        }
        self.0.write(&state)
    }
}

/// Boot control `file`, watched.
#[derive(Debug)]
pub struct WatchedBoot {
    inner: BootFile,
    recorder: Rc<Recorder>,
}

impl WatchedBoot {
    /// Watches `inner`.
    pub fn new(inner: BootFile, recorder: Rc<Recorder>) -> Self {
        Self { inner, recorder }
    }

    fn change(&mut self, change: impl FnOnce(&mut BootFile) -> Result<(), PortError>) -> Result<(), PortError> {
        watch_boot(&self.recorder.notary, &mut self.inner, change)?;
        self.recorder.catch_up()
    }
}

/// Changes the boot loader's memory and remembers what it is then.
///
/// # Errors
/// [`PortError`].
pub fn watch_boot<T>(
    notary: &SharedNotary,
    boot: &mut BootFile,
    change: impl FnOnce(&mut BootFile) -> Result<T, PortError>,
) -> Result<T, PortError> {
    notary.borrow_mut().note(|witness| witness.boot_changes = true);
    let done = change(boot)?;
    let memory = (boot.primary()?, boot.peek()?);
    notary.borrow_mut().note(|witness| {
        witness.boot_changes = false;
        witness.boot = Some(memory);
    });
    Ok(done)
}

impl BootControl for WatchedBoot {
    fn view(&mut self) -> Result<BootView, PortError> {
        self.inner.view()
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(|boot| boot.disable(slot))
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError> {
        if self.recorder.breakage == Breakage::NoTrial {
            return self.change(|boot| boot.confirm(slot));
        }
        self.change(|boot| boot.arm(slot, attempts))
    }

    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(|boot| boot.confirm(slot))
    }
}

/// Trusted metadata, watched.
#[derive(Debug)]
pub struct WatchedMetadata {
    /// The real store.
    pub inner: GenerationStore,
    /// Who watches.
    pub notary: SharedNotary,
}

impl Cache for WatchedMetadata {
    type Error = PortError;

    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, PortError> {
        self.inner.load(role)
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), PortError> {
        self.inner.store(role, bytes)
    }

    fn remove(&mut self, role: &RoleName) -> Result<(), PortError> {
        self.inner.remove(role)
    }
}

impl MetadataStore for WatchedMetadata {
    fn factory_root(&mut self) -> Result<Vec<u8>, PortError> {
        self.inner.factory_root()
    }

    fn root_history(&mut self) -> Result<Vec<Vec<u8>>, PortError> {
        self.inner.root_history()
    }

    fn commit(&mut self) -> Result<(), PortError> {
        self.inner.commit()?;
        let versions = Versions::read(&mut self.inner);
        self.notary.borrow_mut().note(|witness| {
            if !versions.never_below(&witness.metadata) {
                witness.fallen = Some("a version of the trusted metadata".to_owned());
            }
            witness.metadata = versions;
        });
        Ok(())
    }

    fn discard(&mut self) {
        self.inner.discard();
    }

    fn known_timestamp(&mut self) -> Option<KnownTimestamp> {
        self.inner.known_timestamp()
    }

    fn stage_etag(&mut self, etag: Option<&str>) {
        self.inner.stage_etag(etag);
    }
}
