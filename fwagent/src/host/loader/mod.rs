//! Boot loaders that keep their memory in variables: one control over two kinds of medium.
//!
//! ```text
//! Loader  ->  BootVars  pure: what the variables mean               slot_vars, boot_count, gpt_priority
//!         ->  Medium    uboot: single or redundant environment      grub: environment block with a shadow
//!                       gpt: both copies of a partition table
//!         ->  Running   which slot runs: kernel command line, mounts
//! ```
//!
//! These loaders choose by themselves; which slot they chose, they say on the kernel command line of what they booted.

use std::fs::File;

use crate::host::boot_file::BootFile;
use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;
use crate::machine::slot_vars::{BootVars, SlotVarsError};
use crate::ports::{BootControl, PortError};

pub mod boot_count;
pub mod efi;
pub mod efivarfs;
pub mod file_lock;
pub mod gpt;
pub mod grub;
pub mod running;
pub mod systemd_boot;
pub mod tryboot;
pub mod uboot;

pub use running::Running;

/// A boot control of a real device: besides what the driver needs, what the factory and readers do.
pub trait HostBoot: BootControl {
    /// The slot that the loader boots without the agent's doing; `None` on a new device.
    ///
    /// # Errors
    /// [`PortError`].
    fn primary(&mut self) -> Result<Option<SlotId>, PortError>;

    /// Sets a new device up: of the agent's slots only `slot` may be booted.
    ///
    /// # Errors
    /// [`PortError`].
    fn create(&mut self, slot: &SlotId) -> Result<(), PortError>;

    /// Like [`view`](BootControl::view), for readers without the lock: it never writes.
    ///
    /// # Errors
    /// [`PortError`].
    fn peek(&self) -> Result<BootView, PortError>;
}

impl HostBoot for BootFile {
    fn primary(&mut self) -> Result<Option<SlotId>, PortError> {
        Self::primary(self)
    }

    fn create(&mut self, slot: &SlotId) -> Result<(), PortError> {
        Self::create(self, slot)
    }

    fn peek(&self) -> Result<BootView, PortError> {
        Self::peek(self)
    }
}

/// Where variables lie.
pub trait Medium {
    /// The variables.
    type Vars: BootVars;

    /// Keeps other programs from changing the medium, from before it is read until what is given is dropped.
    ///
    /// # Errors
    /// [`PortError`] when another program does not let go of it.
    fn lock(&self) -> Result<Option<File>, PortError> {
        Ok(None)
    }

    /// Reads the variables, and says whether [`mend`](Self::mend) is due. `running` is the slot that runs, if known.
    ///
    /// # Errors
    /// [`PortError`].
    fn read(&self, running: Option<&SlotId>) -> Result<(Self::Vars, bool), PortError>;

    /// Writes what [`read`](Self::read) made out of a damaged medium.
    ///
    /// # Errors
    /// [`PortError`].
    fn mend(&mut self, vars: &Self::Vars) -> Result<(), PortError>;

    /// Replaces the variables, durably, and reads them back. After a loss of power in the middle of it
    /// [`read`](Self::read) gives the old ones or the new ones.
    ///
    /// # Errors
    /// [`PortError`].
    fn write(&mut self, vars: &Self::Vars) -> Result<(), PortError>;
}

/// Boot control over a medium with variables.
#[derive(Debug)]
pub struct Loader<M> {
    medium: M,
    slots: Vec<SlotId>,
    attempts: u32,
    running: Running,
}

impl<M: Medium> Loader<M> {
    /// The boot loader that keeps its variables on `medium`. Confirmed slots get `attempts`, too, since the loader counts
    /// every boot.
    pub fn new(medium: M, slots: Vec<SlotId>, attempts: u32, running: Running) -> Self {
        Self {
            medium,
            slots,
            attempts,
            running,
        }
    }

    fn load(&mut self, running: Option<&SlotId>) -> Result<M::Vars, PortError> {
        let (vars, damaged) = self.medium.read(running)?;
        if damaged {
            self.medium.mend(&vars)?;
        }
        Ok(vars)
    }

    /// Writes only what differs.
    fn change(
        &mut self,
        attempt: &str,
        change: impl FnOnce(&mut M::Vars) -> Result<(), SlotVarsError>,
    ) -> Result<(), PortError> {
        // In the factory nothing of the device may run yet.
        let running = self.running.slot(&self.slots).ok();
        let _lock = self.medium.lock()?;
        let before = self.load(running.as_ref())?;
        let mut after = before.clone();
        change(&mut after).map_err(|error| PortError::environment(attempt, Some(error.into())))?;
        if after == before {
            return Ok(());
        }
        self.medium.write(&after)
    }
}

fn seen(vars: &impl BootVars, slots: &[SlotId], running: &SlotId) -> Result<BootView, PortError> {
    vars.view(slots, running)
        .map_err(|error| PortError::environment("reading the variables of the boot loader", Some(error.into())))
}

impl<M: Medium> BootControl for Loader<M> {
    fn view(&mut self) -> Result<BootView, PortError> {
        let running = self.running.slot(&self.slots)?;
        let _lock = self.medium.lock()?;
        let vars = self.load(Some(&running))?;
        seen(&vars, &self.slots, &running)
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(&format!("disabling slot {slot}"), |vars| vars.disable(slot))
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError> {
        self.change(&format!("arming slot {slot}"), |vars| vars.arm(slot, attempts))
    }

    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError> {
        let attempts = self.attempts;
        self.change(&format!("confirming slot {slot}"), |vars| vars.confirm(slot, attempts))
    }

    fn replenish(&mut self, slot: &SlotId) -> Result<(), PortError> {
        let attempts = self.attempts;
        self.change(&format!("giving slot {slot} its boot attempts back"), |vars| {
            vars.replenish(slot, attempts)
        })
    }
}

impl<M: Medium> HostBoot for Loader<M> {
    fn primary(&mut self) -> Result<Option<SlotId>, PortError> {
        let _lock = self.medium.lock()?;
        let vars = self.load(None)?;
        vars.primary(&self.slots)
            .map_err(|error| PortError::environment("reading the variables of the boot loader", Some(error.into())))
    }

    fn create(&mut self, slot: &SlotId) -> Result<(), PortError> {
        let (slots, attempts) = (self.slots.clone(), self.attempts);
        self.change("setting the boot loader up", |vars| vars.create(&slots, slot, attempts))
    }

    fn peek(&self) -> Result<BootView, PortError> {
        let running = self.running.slot(&self.slots)?;
        let (vars, _) = self.medium.read(Some(&running))?;
        seen(&vars, &self.slots, &running)
    }
}
