//! The shared language of fwsign, fwserve and fwagent: TUF metadata and its verification workflow, and the release
//! manifest.
//!
//! This crate decides and never acts: there is no file, socket, clock or random source in it. Bytes, state and a time
//! go in; a verdict comes out. Fetching, storing and counting happen in the products, through the two traits of
//! [`client`].
//!
//! Follows TUF specification 1.0.34 and the vocabulary of RFC 9019 and RFC 9124. Deliberate departures, all to the
//! stricter side, are marked `Departs:` where they are made:
//!
//! * JSON with duplicate keys, lone surrogates, or beyond the bounds of [`limits`] is refused;
//! * a key id that signs twice refuses the file; the same key under two ids counts once;
//! * a delegated role reached through two parents is verified against each;
//! * snapshot metadata below the trusted version are refused even when no trusted timestamp is left to compare with.
//!
//! One to the more generous side: signatures of scheme `rsa-pkcs1v15-sha256`, which the specification does not list and
//! other implementations write, are verified too.
//!
//! Out of scope: private keys (fwsign), transport and storage (each product), TAP 4 and TAP 15.

pub mod canonical;
pub mod client;
pub mod delegation;
pub mod hex;
pub mod json;
pub mod key;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod role;
mod role_name;
pub mod signed;
pub mod statement;
pub mod target;
pub mod threshold;
pub mod time;
pub mod trusted;
