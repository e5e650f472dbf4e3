//! The device agent: polls a TUF repository, verifies everything, installs atomically into the inactive slot, boots it
//! on trial, confirms it or falls back.
//!
//! ```text
//! host (network, files, clock, commands)  ->  drive  ->  machine (pure: state, event -> state, effects)
//!                                               ^
//!                                          ports (traits)
//! ```

pub mod host;
pub mod tuf;
