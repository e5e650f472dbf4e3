//! Boot control `tryboot`: the boot loader of the Raspberry Pi, by `autoboot.txt`.
//!
//! ```text
//! arm       1. autoboot.txt: [tryboot] is the slot     2. STATE/tryboot: armed
//! spend     STATE/tryboot: spent in this boot          then `reboot "0 tryboot"`
//! confirm   autoboot.txt: the numbers swapped
//! ```
//!
//! The file is at most one sector and is overwritten where it lies, in its length; a loss of power leaves that sector old
//! or new, as media promise. A rename, on FAT, would be several sectors of directory and table that promise nothing.
//!
//! The loader's flag is gone after the boot that it caused, and after a loss of power before that boot. What the agent
//! finds when it starts in the old slot follows from its own record: the attempt is spent, durably, before the restart is
//! asked for, and used up as soon as the kernel was booted anew. So a slot that could not be tried because the power went
//! during the restart counts as failed; it is never tried twice.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fwdurable::twin::{Loaded, Twin};

use crate::host::loader::uboot::write_in_place;
use crate::host::loader::{HostBoot, Running};
use crate::machine::autoboot::{AUTOBOOT_BYTES, Attempt, Autoboot, AutobootError, Partitions, boot_id};
use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;
use crate::ports::{BootControl, PortError};

/// Name of this boot of the kernel.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Longest record of an attempt, in bytes.
const ATTEMPT_BYTES: usize = 256;

/// Where things lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrybootPaths {
    /// `autoboot.txt` on the first FAT partition.
    pub autoboot: PathBuf,
    /// What the loader tells the kernel: `/proc/device-tree/chosen/bootloader`.
    pub firmware: PathBuf,
    /// [`BOOT_ID`].
    pub boot_id: PathBuf,
}

/// The boot loader of the Raspberry Pi.
#[derive(Debug)]
pub struct Tryboot {
    paths: TrybootPaths,
    slots: Partitions,
    attempt: Twin,
    running: Running,
}

impl Tryboot {
    /// The loader that boots these partitions, with the record of the attempt in the directory `state`.
    pub fn new(paths: TrybootPaths, slots: Partitions, state: &Path, running: Running) -> Self {
        let attempt = Twin::new(state.join("tryboot"), ATTEMPT_BYTES);
        Self {
            paths,
            slots,
            attempt,
            running,
        }
    }

    /// The file and its length; `None` when there is none.
    fn read(&self) -> Result<Option<(Autoboot, usize)>, PortError> {
        let mut bytes = Vec::new();
        let file = match File::open(&self.paths.autoboot) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(|file| file.take(AUTOBOOT_BYTES as u64 + 1).read_to_end(&mut bytes)),
        };
        file.map_err(|error| self.failed("reading", error))?;
        let parsed = Autoboot::parse(&bytes).map_err(|error| self.failed("reading", error))?;
        Ok(Some((parsed, bytes.len())))
    }

    fn load(&self) -> Result<(Autoboot, usize), PortError> {
        let missing = || self.failed("reading", "there is none; run `fwagent provision`");
        self.read()?.ok_or_else(missing)
    }

    fn change(
        &self,
        action: &str,
        change: impl FnOnce(&Autoboot, &Partitions) -> Result<Autoboot, AutobootError>,
    ) -> Result<(), PortError> {
        let (before, length) = self.load()?;
        let after = change(&before, &self.slots).map_err(|error| self.failed(action, error))?;
        if after == before {
            return Ok(());
        }
        let bytes = after.render(Some(length)).map_err(|error| self.failed(action, error))?;
        self.overwrite(action, &bytes)
    }

    fn overwrite(&self, action: &str, bytes: &[u8]) -> Result<(), PortError> {
        write_in_place(&self.paths.autoboot, bytes, 0).map_err(|error| self.failed(action, error))?;
        self.read_back(action, bytes)
    }

    fn read_back(&self, action: &str, bytes: &[u8]) -> Result<(), PortError> {
        match std::fs::read(&self.paths.autoboot) {
            Ok(found) if found == bytes => Ok(()),
            Ok(_) => Err(self.failed(action, "it gives back something else")),
            Err(error) => Err(self.failed(action, error)),
        }
    }

    fn failed(&self, action: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PortError {
        let attempt = format!("{action} in {}", self.paths.autoboot.display());
        PortError::environment(attempt, Some(error.into()))
    }

    /// Which slot the loader says that it booted; `None` when it says nothing, as older ones do.
    fn booted(&self) -> Result<Option<SlotId>, PortError> {
        let path = self.paths.firmware.join("partition");
        let failed = |problem: String| {
            let attempt = format!("finding the slot that runs in {}: {problem}", path.display());
            PortError::environment(attempt, None)
        };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|error| failed(error.to_string()))?,
        };
        let Ok(partition) = <[u8; 4]>::try_from(bytes.as_slice()).map(u32::from_be_bytes) else {
            return Err(failed(format!("it has {} bytes, not 4", bytes.len())));
        };
        let slot = u8::try_from(partition)
            .ok()
            .and_then(|partition| self.slots.slot(partition));
        let slot = slot.ok_or_else(|| failed(format!("partition {partition} is no slot of the configuration")))?;
        Ok(Some(slot.clone()))
    }

    fn running(&self) -> Result<SlotId, PortError> {
        let names: Vec<SlotId> = self.slots.0.iter().map(|(slot, _)| slot.clone()).collect();
        let Some(booted) = self.booted()? else {
            return self.running.slot(&names);
        };
        match self.running.said(&names)? {
            Some(named) if named != booted => Err(PortError::environment(
                format!(
                    "finding the slot that runs: it is {named} by what the kernel says, and the boot loader booted the \
                     partition of slot {booted}"
                ),
                None,
            )),
            _ => Ok(booted),
        }
    }

    fn boot_id(&self) -> Result<String, PortError> {
        let attempt = format!("reading {}", self.paths.boot_id.display());
        match std::fs::read_to_string(&self.paths.boot_id) {
            Ok(text) => boot_id(&text).ok_or_else(|| PortError::environment(format!("{attempt}: no identifier"), None)),
            Err(error) => Err(PortError::environment(attempt, Some(error.into()))),
        }
    }

    fn attempt(&self) -> Result<Option<Attempt>, PortError> {
        let reading = "reading the record of the boot attempt";
        match self.attempt.load() {
            Ok(Loaded::Empty) => Ok(None),
            Ok(Loaded::Record { payload, .. }) => {
                let attempt = Attempt::decode(&payload);
                let malformed = || PortError::environment(format!("{reading}: it is malformed"), None);
                attempt.map_or_else(|| Err(malformed()), |attempt| Ok(Some(attempt)))
            }
            Err(error) => Err(PortError::environment(reading, Some(error.into()))),
        }
    }

    fn record(&self, slot: &SlotId, spent: Option<String>) -> Result<(), PortError> {
        let slot = slot.clone();
        let stored = self.attempt.store(&Attempt { slot, spent }.encode());
        stored.map_err(|error| PortError::environment("recording the boot attempt", Some(error.into())))
    }
}

impl BootControl for Tryboot {
    fn view(&mut self) -> Result<BootView, PortError> {
        self.peek()
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(&format!("disabling slot {slot}"), |file, slots| {
            file.disabled(slots, slot)
        })
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError> {
        self.change(&format!("arming slot {slot}"), |file, slots| {
            file.armed(slots, slot, attempts)
        })?;
        self.record(slot, None)
    }

    fn spend(&mut self, slot: &SlotId) -> Result<(), PortError> {
        let boot_id = self.boot_id()?;
        self.record(slot, Some(boot_id))
    }

    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(&format!("confirming slot {slot}"), |file, slots| {
            file.confirmed(slots, slot)
        })
    }

    /// Somebody may have started the other confirmed slot by hand. It is the one that runs from now on.
    fn replenish(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.confirm(slot)
    }
}

impl HostBoot for Tryboot {
    fn primary(&mut self) -> Result<Option<SlotId>, PortError> {
        let file = self.read()?;
        Ok(file.and_then(|(file, _)| self.slots.slot(file.partition).cloned()))
    }

    /// In the factory the file may be made, or get longer.
    fn create(&mut self, slot: &SlotId) -> Result<(), PortError> {
        let action = "setting the boot loader up";
        let failed = |error: AutobootError| self.failed(action, error);
        let found = self.read()?;
        let length = found.as_ref().map(|(_, length)| *length);
        let old = found.map_or_else(|| Autoboot::new(0), |(file, _)| file);
        let mut file = old.confirmed(&self.slots, slot).map_err(failed)?;
        file.trial = file.partition;
        match length.map(|length| file.render(Some(length))) {
            Some(Ok(_)) if file == old => Ok(()),
            Some(Ok(bytes)) => self.overwrite(action, &bytes),
            _ => {
                let bytes = file.render(None).map_err(failed)?;
                fwdurable::write_file(&self.paths.autoboot, &bytes).map_err(|error| self.failed(action, error))?;
                self.read_back(action, &bytes)
            }
        }
    }

    fn peek(&self) -> Result<BootView, PortError> {
        let running = self.running()?;
        let (file, _) = self.load()?;
        let attempt = self.attempt()?;
        Ok(file.view(&self.slots, &running, attempt.as_ref(), &self.boot_id()?))
    }
}
