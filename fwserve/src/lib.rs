//! `fwserve`: serves a TUF repository directory over HTTP, and takes publications that it has verified.
//!
//! ```text
//! socket -> http -> routes (pure: which object) -> repository (bytes and facts) -> representation (pure: which head)
//!                \-> api -> uploads (content-addressed staging) -> publish -> candidate (judge), switch (all or nothing)
//! ```
//!
//! What it decides: which bytes a path names, and whether a candidate may replace the published version. It judges a
//! candidate by `fwmeta::client`, the workflow that devices run, from the root that it trusts. What it never does: sign,
//! or change a published file other than `timestamp.json`.

pub mod access_log;
mod answer;
mod api;
mod body;
pub mod candidate;
pub mod config;
pub mod failure;
mod http;
mod publication;
pub mod publish;
pub mod repository;
pub mod representation;
pub mod routes;
mod server;
mod switch;
mod timed_io;
mod tls;
pub mod tokens;
pub mod uploads;

pub use config::Config;
pub use server::{Running, StartError, start};
