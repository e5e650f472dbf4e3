//! The agent's record on disk: two checksummed copies.

use std::path::Path;

use fwdurable::Disk;
use fwdurable::twin::{Loaded, Twin};

use crate::machine::record::{self, RECORD_BYTES};
use crate::machine::state::State;
use crate::ports::{PortError, StateStore};

/// The record `state.a` and `state.b` in a directory.
#[derive(Debug)]
pub struct StateFile {
    twin: Twin,
}

impl StateFile {
    /// The record in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self::on(&Disk::system(), dir)
    }

    /// The record in `dir` of a disk.
    pub fn on(disk: &Disk, dir: &Path) -> Self {
        Self {
            twin: disk.twin(dir.join("state"), RECORD_BYTES),
        }
    }

    /// The state stored last, for readers without the lock: unlike [`load`](StateStore::load) it never mends a copy,
    /// because what looks degraded may be another process in the middle of a write.
    ///
    /// # Errors
    /// As [`load`](StateStore::load).
    pub fn peek(&self) -> Result<Option<State>, PortError> {
        Ok(self.read()?.map(|(state, _)| state))
    }

    /// The state, and whether one copy needs to be mended.
    fn read(&self) -> Result<Option<(State, bool)>, PortError> {
        let failed = |error| PortError::environment("reading the agent's record", Some(error));
        match self.twin.load().map_err(|error| failed(error.into()))? {
            Loaded::Empty => Ok(None),
            Loaded::Record { payload, degraded, .. } => {
                let state = record::decode(&payload).map_err(|error| failed(error.into()))?;
                Ok(Some((state, degraded)))
            }
        }
    }
}

impl StateStore for StateFile {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        let Some((state, degraded)) = self.read()? else {
            return Ok(None);
        };
        if degraded {
            // A floor that lives in one copy alone would be lost with it.
            self.twin
                .repair()
                .map_err(|error| PortError::environment("mending the agent's record", Some(error.into())))?;
        }
        Ok(Some(state))
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        self.twin
            .store(&record::encode(state))
            .map_err(|error| PortError::environment("storing the agent's record", Some(error.into())))
    }
}
