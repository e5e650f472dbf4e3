//! Settings that travel with the software (DESIGN §5.8): values, generations, which slot uses which, migrations, edits.
//!
//! ```text
//! key        -> what a value is called, and the class it is of
//! values     -> a flat map of keys; edits between two of them
//! generation -> one immutable, checksummed state of all settings
//! slots      -> which generation each slot uses; part of the agent's record, so that one write selects both
//! follow     -> what a change of the running slot means for settings
//! migrate    -> the way from one schema to another, and the way back for edits
//! document   -> files that people exchange: JSON and TOML
//! render     -> files that the device's own software reads
//! ```
//!
//! What it decides: what is valid, what an edit changes, what happens to edits when the device goes back. What it does not
//! do: reading files or running migrations; [`crate::host::settings`] does.

pub mod document;
pub mod follow;
pub mod generation;
pub mod key;
pub mod migrate;
pub mod render;
pub mod slots;
pub mod values;

#[cfg(test)]
mod tests;
