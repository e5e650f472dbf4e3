//! Our equivalent of each family of the public TUF conformance suite, through the real binary over real sockets: basic
//! client behaviour, files and caches, keys and thresholds, key rotation, rollback and recovery, expiry under a shifted
//! clock, delegation graphs, quoting, hash algorithms.

#![allow(clippy::unwrap_used)]

#[path = "conformance/delegations.rs"]
mod delegations;
#[path = "conformance/downloads.rs"]
mod downloads;
#[path = "conformance/expiry.rs"]
mod expiry;
#[path = "conformance/harness.rs"]
mod harness;
#[path = "conformance/keys.rs"]
mod keys;
#[path = "conformance/rollback.rs"]
mod rollback;
#[path = "conformance/static_repositories.rs"]
mod static_repositories;
#[path = "conformance/workflow.rs"]
mod workflow;
