//! Boot control `file`: the boot loader's memory in a record of two checksummed copies, for application updates,
//! containers and tests. The boot loader's half is `fwagent boot`.

use std::path::Path;

use fwdurable::Disk;
use fwdurable::twin::{Loaded, Twin};

use crate::machine::boot::{BootRecord, BootView};
use crate::machine::slot::SlotId;
use crate::ports::{BootControl, PortError};

/// Longest record, in bytes.
const RECORD_BYTES: usize = 16 * 1024;

/// The record `boot.a` and `boot.b` in a directory.
#[derive(Debug)]
pub struct BootFile {
    twin: Twin,
}

impl BootFile {
    /// The record in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self::on(&Disk::system(), dir)
    }

    /// The record in `dir` of a disk.
    pub fn on(disk: &Disk, dir: &Path) -> Self {
        Self {
            twin: disk.twin(dir.join("boot"), RECORD_BYTES),
        }
    }

    /// Makes the record of a new device that boots `primary`; an existing one is left alone.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn create(&mut self, primary: &SlotId) -> Result<(), PortError> {
        match self.twin.load().map_err(failed("reading the boot record"))? {
            Loaded::Record { .. } => Ok(()),
            Loaded::Empty => self.store(&BootRecord::new(primary.clone())),
        }
    }

    /// The slot that is booted without a trial; `None` when there is no record yet.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn primary(&self) -> Result<Option<SlotId>, PortError> {
        match self.twin.load().map_err(failed("reading the boot record"))? {
            Loaded::Empty => Ok(None),
            Loaded::Record { .. } => Ok(Some(self.read()?.0.primary)),
        }
    }

    /// The boot loader's half: chooses a slot and spends an attempt, durably, before anything of it runs.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn power_on(&mut self) -> Result<SlotId, PortError> {
        let (slot, next) = self
            .load()?
            .power_on()
            .map_err(|error| PortError::environment("choosing a slot to boot", Some(error.into())))?;
        self.store(&next)?;
        Ok(slot)
    }

    /// What the agent sees of the record, for readers without the lock: unlike [`view`](BootControl::view) it never mends
    /// a copy, because what looks degraded may be another process in the middle of a write.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn peek(&self) -> Result<BootView, PortError> {
        Ok(self.read()?.0.view())
    }

    fn load(&mut self) -> Result<BootRecord, PortError> {
        let (record, degraded) = self.read()?;
        if degraded {
            self.twin.repair().map_err(failed("mending the boot record"))?;
        }
        Ok(record)
    }

    /// The record, and whether one copy needs to be mended.
    fn read(&self) -> Result<(BootRecord, bool), PortError> {
        let attempt = "reading the boot record";
        match self.twin.load().map_err(failed(attempt))? {
            Loaded::Empty => Err(PortError::environment(
                format!("{attempt}: there is none; run `fwagent provision` first"),
                None,
            )),
            Loaded::Record { payload, degraded, .. } => {
                let record = BootRecord::decode(&payload)
                    .ok_or_else(|| PortError::environment(format!("{attempt}: it is malformed"), None))?;
                Ok((record, degraded))
            }
        }
    }

    fn store(&mut self, record: &BootRecord) -> Result<(), PortError> {
        self.twin
            .store(&record.encode())
            .map_err(failed("storing the boot record"))
    }

    fn change(&mut self, change: impl FnOnce(&BootRecord) -> BootRecord) -> Result<(), PortError> {
        let record = self.load()?;
        let next = change(&record);
        if next == record {
            return Ok(());
        }
        self.store(&next)
    }
}

fn failed<E: std::error::Error + Send + Sync + 'static>(attempt: &'static str) -> impl FnOnce(E) -> PortError {
    move |error| PortError::environment(attempt, Some(Box::new(error) as _))
}

impl BootControl for BootFile {
    fn view(&mut self) -> Result<BootView, PortError> {
        Ok(self.load()?.view())
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(|record| record.disabled(slot))
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError> {
        self.change(|record| record.armed(slot, attempts))
    }

    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(|record| record.confirmed(slot))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_damaged_copy_is_mended_and_two_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| SlotId::parse(name).unwrap());
        let mut boot = BootFile::new(dir.path());
        assert!(boot.view().unwrap_err().to_string().contains("provision"));
        boot.create(&a).unwrap();
        boot.arm(&b, 2).unwrap();
        std::fs::write(dir.path().join("boot.a"), b"torn").unwrap();
        assert_eq!(boot.power_on().unwrap(), b);
        assert_eq!(boot.view().unwrap().armed.get(&b), Some(&1));
        std::fs::write(dir.path().join("boot.b"), b"torn").unwrap();
        assert_eq!(boot.view().unwrap().booted, Some(b));
        for copy in ["boot.a", "boot.b"] {
            std::fs::write(dir.path().join(copy), b"torn").unwrap();
        }
        assert!(boot.power_on().is_err() && boot.create(&a).is_err());
    }
}
