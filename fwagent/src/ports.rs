//! What the agent needs from the world, cut by need: each trait has only what [`crate::drive`] calls.
//!
//! Every method may be called again after a loss of power in the middle of it, with the same arguments, and must then
//! reach the same end. What a method reports as done is on the medium.

use std::io::Read;
use std::time::Duration;

use fwmeta::client::{Cache, Fetch};
use fwmeta::manifest::Component;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::machine::boot::BootView;
use crate::machine::conditions::Facts;
use crate::machine::settings::migrate::MigrationStep;
use crate::machine::settings::slots::Change;
use crate::machine::slot::SlotId;
use crate::machine::state::State;

/// Why a port failed.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}")]
pub struct PortError {
    /// What was attempted, on what.
    pub attempt: String,
    /// Whether it can succeed when it is tried again.
    pub kind: PortErrorKind,
    /// The cause.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the driver may do about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortErrorKind {
    /// The content itself is wrong: trying again brings the same.
    Refused,
    /// The device or the network failed: later it may work.
    Environment {
        /// How long the other side asks to wait.
        retry_after: Option<Duration>,
    },
    /// Somebody asked to stop.
    Stopped,
}

impl PortError {
    /// The content is wrong.
    pub fn refused(
        attempt: impl Into<String>,
        source: impl Into<Option<Box<dyn std::error::Error + Send + Sync>>>,
    ) -> Self {
        Self {
            attempt: attempt.into(),
            kind: PortErrorKind::Refused,
            source: source.into(),
        }
    }

    /// The device or the network failed.
    pub fn environment(
        attempt: impl Into<String>,
        source: impl Into<Option<Box<dyn std::error::Error + Send + Sync>>>,
    ) -> Self {
        Self {
            attempt: attempt.into(),
            kind: PortErrorKind::Environment { retry_after: None },
            source: source.into(),
        }
    }
}

/// Told of progress: bytes so far and in all. `false` asks to stop.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// The agent's own record: what it intends, what its slots hold, what it will never accept again.
pub trait StateStore {
    /// The state stored last; `None` when there never was one. A record that is damaged beyond its copies is an error,
    /// never `None`.
    ///
    /// # Errors
    /// [`PortError`].
    fn load(&mut self) -> Result<Option<State>, PortError>;

    /// Stores a state, durably.
    ///
    /// # Errors
    /// [`PortError`]; the old state or the new one is then stored.
    fn store(&mut self, state: &State) -> Result<(), PortError>;
}

/// Trusted metadata. What a cycle changes is staged through [`Cache`] and committed as one generation.
pub trait MetadataStore: Cache {
    /// The root that the factory put here; nothing ever replaces it.
    ///
    /// # Errors
    /// [`PortError`].
    fn factory_root(&mut self) -> Result<Vec<u8>, PortError>;

    /// The roots after the factory one that this device has accepted, oldest first.
    ///
    /// # Errors
    /// [`PortError`].
    fn root_history(&mut self) -> Result<Vec<Vec<u8>>, PortError>;

    /// Makes what was staged the current generation, durably and as a whole; nothing when nothing was staged.
    ///
    /// # Errors
    /// [`PortError`]; the old generation or the new one is then current.
    fn commit(&mut self) -> Result<(), PortError>;

    /// Forgets what was staged.
    fn discard(&mut self);

    /// The current timestamp with its entity tag, if there is one.
    fn known_timestamp(&mut self) -> Option<KnownTimestamp>;

    /// Stages the entity tag of the current timestamp.
    fn stage_etag(&mut self, etag: Option<&str>);
}

/// Metadata of the repository, for one cycle.
pub trait Source: Fetch<Error = PortError> {
    /// Entity tag of the timestamp that was fetched, or confirmed as unchanged.
    fn timestamp_etag(&self) -> Option<&str>;
}

/// The timestamp of an earlier cycle, to be asked for conditionally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownTimestamp {
    /// Entity tag that the server gave with it.
    pub etag: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The repository.
pub trait Transport {
    /// Reads metadata.
    type Source: Source;
    /// A target that was fetched whole and verified.
    type Target: Read + 'static;

    /// A source of metadata for one cycle.
    ///
    /// # Errors
    /// [`PortError`].
    fn metadata(&mut self, known: Option<KnownTimestamp>) -> Result<Self::Source, PortError>;

    /// Called for each payload before anything on the device changes: whoever can tell at little cost that a target
    /// cannot be had, or is not what metadata describe, does so here.
    ///
    /// # Errors
    /// [`PortError`].
    fn prepare(
        &mut self,
        _path: &TargetPath,
        _file: &TargetFile,
        _consistent_snapshot: bool,
        _progress: Progress<'_>,
    ) -> Result<(), PortError> {
        Ok(())
    }

    /// Fetches a target, verified against the length and digests that trusted metadata give, and opens it. What an
    /// earlier attempt left is continued.
    ///
    /// # Errors
    /// [`PortError`].
    fn target(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        progress: Progress<'_>,
    ) -> Result<Self::Target, PortError>;

    /// Forgets fetched targets: called when they are in their slots.
    ///
    /// # Errors
    /// [`PortError`].
    fn discard_targets(&mut self) -> Result<(), PortError>;
}

/// The slots.
pub trait SlotStore {
    /// Checks before the first byte is written that `component` can go into its slot of the set `slot`: there is such a
    /// slot, of the right kind, large enough, and nothing uses it.
    ///
    /// # Errors
    /// [`PortError`].
    fn check(&mut self, slot: &SlotId, component: &Component) -> Result<(), PortError>;

    /// Whether the slot already holds exactly the component's image; its content decides, not a note about it.
    ///
    /// # Errors
    /// [`PortError`].
    fn holds(&mut self, slot: &SlotId, component: &Component) -> Result<bool, PortError>;

    /// Replaces the content of the slot by `image`, durably, then reads it back from the slot and compares it with the
    /// component's size and digests. `image` is not trusted: it may be too long, too short or wrong.
    ///
    /// # Errors
    /// [`PortError`]; the slot's content is then undefined.
    fn write(
        &mut self,
        slot: &SlotId,
        component: &Component,
        image: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<(), PortError>;
}

/// The boot loader's memory.
pub trait BootControl {
    /// What the boot loader knows, and which slot it booted.
    ///
    /// # Errors
    /// [`PortError`].
    fn view(&mut self) -> Result<BootView, PortError>;

    /// Makes sure that the boot loader does not choose `slot`.
    ///
    /// # Errors
    /// [`PortError`].
    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError>;

    /// Lets the boot loader try `slot` first, at most `attempts` times; then it goes back to a confirmed slot.
    ///
    /// # Errors
    /// [`PortError`].
    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError>;

    /// The device is about to be restarted into the armed `slot`: spends the attempt, durably, where the boot loader
    /// cannot do that itself.
    ///
    /// # Errors
    /// [`PortError`]; the device must not be restarted then.
    fn spend(&mut self, _slot: &SlotId) -> Result<(), PortError> {
        Ok(())
    }

    /// Makes `slot` the one that is booted from now on, without counting.
    ///
    /// # Errors
    /// [`PortError`].
    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError>;

    /// The confirmed `slot` runs: gives it back what a boot loader that counts every boot has taken.
    ///
    /// # Errors
    /// [`PortError`].
    fn replenish(&mut self, _slot: &SlotId) -> Result<(), PortError> {
        Ok(())
    }
}

/// What the health checks found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All passed.
    Passed,
    /// One failed.
    Failed {
        /// Which, and how.
        reason: String,
        /// The last lines that it printed.
        log: String,
    },
    /// Nobody has said yet: the operator confirms.
    Awaited,
    /// Somebody asked the agent to stop; the checks will run again.
    Stopped,
}

/// The health checks of the running slot.
pub trait HealthCheck {
    /// Runs all checks, each within its time.
    ///
    /// # Errors
    /// [`PortError`] when no verdict could be reached; a check that cannot be started has failed.
    fn check(&mut self, slot: &SlotId) -> Result<Health, PortError>;

    /// What a slot left behind whose agent said nothing, for people: harmless text, empty when there is none.
    fn evidence(&mut self) -> String {
        String::new()
    }
}

/// The settings that travel with the software. What a change names is on the medium before the change is returned.
pub trait SettingsStore {
    /// Keeps a migration program; its SHA-256.
    ///
    /// # Errors
    /// [`PortError`].
    fn keep_program(&mut self, program: &[u8]) -> Result<[u8; 32], PortError>;

    /// Makes the settings of a slot that is being written of the current ones: the dry run of the migrations. `schema` is
    /// that of the release, if it names one.
    ///
    /// # Errors
    /// [`PortError`]; of kind refused when a migration failed.
    fn prepare(
        &mut self,
        state: &State,
        slot: &SlotId,
        schema: Option<u64>,
        steps: Vec<MigrationStep>,
        at: UtcSeconds,
    ) -> Result<Change, PortError>;

    /// Makes the settings of the slot on trial of what is current now; nothing when that was done before.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    fn settle(&mut self, state: &State, slot: &SlotId, at: UtcSeconds) -> Result<Option<Change>, PortError>;

    /// Carries edits over that were made with the software that ran before; nothing when there are none to be carried.
    ///
    /// # Errors
    /// [`PortError`]; the edits stay where they are.
    fn carry_back(&mut self, state: &State, at: UtcSeconds) -> Result<Option<Change>, PortError>;

    /// Looks at the settings of the running slot, and names the last good generation when the current one is damaged.
    ///
    /// # Errors
    /// [`PortError`] when none is whole.
    fn examine(&mut self, state: &State) -> Result<Option<Change>, PortError>;

    /// Brings the files in line that the device's own software reads. What could not be done, for people.
    fn publish(&mut self, state: &State) -> Vec<String>;

    /// Forgets what the stored state does not name.
    ///
    /// # Errors
    /// [`PortError`].
    fn tidy(&mut self, state: &State) -> Result<(), PortError>;
}

/// The clock on the wall.
pub trait Clock {
    /// The time it shows, right or wrong.
    fn now(&mut self) -> UtcSeconds;
}

/// What decides whether an update may go on.
pub trait Conditions {
    /// How the device is now. What cannot be read is unknown.
    fn facts(&mut self) -> Facts;
}

/// Restarting the device.
pub trait Reboot {
    /// Asks for a restart. Returns when it is under way or the caller is to end.
    ///
    /// # Errors
    /// [`PortError`].
    fn reboot(&mut self) -> Result<(), PortError>;

    /// Asks for the restart that a trial begins with, which some boot loaders must be told apart.
    ///
    /// # Errors
    /// [`PortError`].
    fn reboot_for_trial(&mut self) -> Result<(), PortError> {
        self.reboot()
    }
}
