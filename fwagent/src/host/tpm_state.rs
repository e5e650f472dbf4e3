//! The agent's record, bound to a counter in a second medium: copies of the past are refused (DESIGN §5.4).

use crate::host::tpm::{Counter, CounterError};
use crate::machine::counter::{Mismatch, Reading, Standing, judge};
use crate::machine::floor::Floors;
use crate::machine::state::State;
use crate::ports::{PortError, StateStore};

/// What was loaded or stored last.
#[derive(Debug)]
struct Known {
    floors: Floors,
    value: u64,
    /// The counter is still to be raised to `value`.
    unfinished: bool,
}

/// A record around another one, which belongs to a value of `counter`.
#[derive(Debug)]
pub struct TpmState<S, C> {
    inner: S,
    counter: C,
    known: Option<Known>,
}

impl<S: StateStore, C: Counter> TpmState<S, C> {
    /// A record around `inner`.
    pub fn new(inner: S, counter: C) -> Self {
        Self {
            inner,
            counter,
            known: None,
        }
    }

    fn failed(&self, doing: &str, error: CounterError) -> PortError {
        PortError::environment(format!("{doing} {}", self.counter.place()), Some(error.into()))
    }

    fn mismatch(&self, mismatch: Mismatch) -> PortError {
        let attempt = format!("comparing the agent's record with {}", self.counter.place());
        PortError::refused(attempt, Some(mismatch.into()))
    }

    /// The value of the counter.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn read(&mut self) -> Result<Reading, PortError> {
        self.counter.read().map_err(|error| self.failed("reading", error))
    }

    /// Judges the value that a record belongs to.
    fn judge(&mut self, record: Option<u64>) -> Result<Standing, PortError> {
        let reading = self.read()?;
        judge(record, reading).map_err(|mismatch| self.mismatch(mismatch))
    }

    /// Raises the counter to `value`, unless it is there.
    fn finish(&mut self, value: u64) -> Result<(), PortError> {
        if self.judge(Some(value))? == Standing::Sound(value) {
            return Ok(());
        }
        let raised = self.counter.increment();
        raised.map_err(|error| self.failed("raising", error))?;
        match self.judge(Some(value))? {
            Standing::Sound(_) => Ok(()),
            Standing::Unfinished(_) => Err(PortError::environment(
                format!("raising {}: it says done, and is where it was", self.counter.place()),
                None,
            )),
        }
    }

    /// Stores a state that belongs to the next value of the counter from now on, whatever was before: the counter is made
    /// when there is none. Older records are refused afterwards.
    ///
    /// # Errors
    /// [`PortError`]; it can be done again.
    pub fn bind(&mut self, state: &State) -> Result<u64, PortError> {
        if self.read()? == Reading::Missing {
            let defined = self.counter.define();
            defined.map_err(|error| self.failed("defining", error))?;
        }
        if self.read()? == Reading::Unwritten {
            // Its first value is what it was not told to be.
            let raised = self.counter.increment();
            raised.map_err(|error| self.failed("giving a first value to", error))?;
        }
        let counter = self.read()?;
        let Reading::At(value) = counter else {
            return Err(self.mismatch(Mismatch {
                record: state.counter,
                counter,
            }));
        };
        self.store_at(state, value.saturating_add(1))?;
        Ok(value.saturating_add(1))
    }

    /// Stores a state with the value that it belongs to, then raises the counter to that.
    fn store_at(&mut self, state: &State, value: u64) -> Result<(), PortError> {
        let mut state = state.clone();
        state.counter = Some(value);
        // Unless all of it is done, what is stored has to be looked at again.
        self.known = None;
        self.inner.store(&state)?;
        let mut known = Known {
            floors: state.floors,
            value,
            unfinished: true,
        };
        let finished = self.finish(value);
        known.unfinished = finished.is_err();
        self.known = Some(known);
        finished
    }
}

impl<S: StateStore, C: Counter> StateStore for TpmState<S, C> {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        let Some(state) = self.inner.load()? else {
            return Ok(None);
        };
        let value = match self.judge(state.counter)? {
            Standing::Sound(value) => value,
            Standing::Unfinished(value) => {
                self.finish(value)?;
                value
            }
        };
        self.known = Some(Known {
            floors: state.floors.clone(),
            value,
            unfinished: false,
        });
        Ok(Some(state))
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        if self.known.is_none() {
            self.load()?;
        }
        let Some(known) = &self.known else {
            let text = format!("storing a record that belongs to no value of {}", self.counter.place());
            return Err(PortError::environment(text, None));
        };
        let (value, unfinished) = (known.value, known.unfinished);
        // Floors rise or stay. Those of metadata and time rise often, and are no reason to wear the TPM.
        let rises = state.floors.components().ne(known.floors.components());
        if unfinished {
            self.finish(value)?;
        }
        if rises {
            return self.store_at(state, value.saturating_add(1));
        }
        let mut state = state.clone();
        state.counter = Some(value);
        self.known = None;
        self.inner.store(&state)?;
        self.known = Some(Known {
            floors: state.floors,
            value,
            unfinished: false,
        });
        Ok(())
    }
}
