//! The settings of the simulated device, and an operator who changes them.
//!
//! The factory stores generation 1; each edit makes the next. So the number that the agent's record names says which values
//! the device must have, and anything else is a violation: mixed, older, or those of the factory that nobody asked for.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use fwdurable::Disk;
use fwmeta::json::object;
use fwmeta::time::UtcSeconds;

use crate::drive::chain;
use crate::host::settings::{HostSettings, SettingsConfig};
use crate::machine::settings::values::{Edits, Values};
use crate::machine::state::State;
use crate::machine::step::{Event, step};
use crate::ports::{PortError, SettingsStore as _, StateStore as _};
use crate::sim::device::{STATE_DIR, Violation, violated};
use crate::sim::witness::{Recorder, WatchedStates};

/// Schema of all generations.
const SCHEMA: u64 = 1;
/// Generations that an operator makes after that of the factory.
pub const EDITS: u64 = 2;

/// The store.
pub fn store(disk: &Disk) -> HostSettings {
    HostSettings::on(disk, SettingsConfig::default(), Path::new(STATE_DIR), Arc::default())
}

/// What generation `number` holds.
fn values(number: u64) -> Result<Values, Violation> {
    let tree = object([
        ("access", object([("password", format!("secret {number}").into())])),
        // Longer than a sector, so that it can be torn.
        ("network", object([("banner", number.to_string().repeat(700).into())])),
    ]);
    let values = Edits::from_patch(&tree).and_then(|edits| Values::default().edited(&edits));
    values.map_err(|error| violated("I0", error.to_string()))
}

/// Makes generation `number` the one in use, as `fwagent settings` does.
///
/// # Errors
/// [`Violation`] when that fails.
pub fn edit(disk: &Disk, recorder: &Rc<Recorder>, number: u64, at: UtcSeconds) -> Result<(), Violation> {
    let stuck = |error: PortError| violated("I6", format!("changing settings: {}", chain(&error)));
    let mut states = WatchedStates(Rc::clone(recorder));
    let Some(state) = states.load().map_err(stuck)? else {
        return Err(violated("I5", "the agent's record is gone"));
    };
    let mut settings = store(disk);
    let change = settings
        .edit(&state, SCHEMA, values(number)?, "an operator", at)
        .map_err(stuck)?;
    let next = step(&state, Event::Settings(change.into()), at)
        .map_err(|error| violated("I6", format!("changing settings: {error}")))?;
    states.store(&next.state).map_err(stuck)?;
    recorder.catch_up().map_err(stuck)?;
    settings.tidy(&next.state).map_err(stuck)
}

/// I2 and I3: the settings are, whole, those of the generation that the record names.
///
/// # Errors
/// [`Violation`].
pub fn whole(disk: &Disk, state: &State) -> Result<(), Violation> {
    let current = store(disk)
        .current(state)
        .map_err(|error| violated("I2", chain(&error)))?;
    let named = state
        .settings
        .slots
        .get(state.runs())
        .map(|held| held.generation.number);
    let Some(number) = named else {
        return Err(violated("I2", "the running software has no settings any more"));
    };
    if let Some(damaged) = current.damaged {
        return Err(violated(
            "I2",
            format!("generation {damaged} of the settings is damaged"),
        ));
    }
    if current.values != values(number)? {
        return Err(violated(
            "I2",
            format!("the settings are not those of generation {number}"),
        ));
    }
    Ok(())
}
