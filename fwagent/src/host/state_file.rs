//! The agent's record on disk: two checksummed copies.

use std::path::Path;

use fwdurable::twin::{Loaded, Twin, TwinError};

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
        Self {
            twin: Twin::new(dir.join("state"), RECORD_BYTES),
        }
    }
}

impl StateStore for StateFile {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        let failed = |error: TwinError| PortError::environment("reading the agent's record", Some(error.into()));
        match self.twin.load().map_err(failed)? {
            Loaded::Empty => Ok(None),
            Loaded::Record { payload, degraded, .. } => {
                let state = record::decode(&payload)
                    .map_err(|error| PortError::environment("reading the agent's record", Some(error.into())))?;
                if degraded {
                    // A floor that lives in one copy alone would be lost with it.
                    self.twin
                        .repair()
                        .map_err(|error| PortError::environment("mending the agent's record", Some(error.into())))?;
                }
                Ok(Some(state))
            }
        }
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        self.twin
            .store(&record::encode(state))
            .map_err(|error| PortError::environment("storing the agent's record", Some(error.into())))
    }
}
