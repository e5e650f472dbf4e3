//! The device agent: polls a TUF repository, verifies everything, installs atomically into the inactive slot, boots it
//! on trial, confirms it or falls back.
//!
//! ```text
//! host (network, files, clock, commands)  ->  drive  ->  machine (pure: state, event -> state, effects)
//!                                               ^
//!                                          ports (traits)
//! ```

pub mod cli;
pub mod cmd;
pub mod config;
pub mod device;
pub mod drive;
pub mod failure;
pub mod host;
pub mod machine;
pub mod output;
pub mod ports;
#[cfg(feature = "simulate")]
pub mod sim;
pub mod tuf;
