//! The fuzz targets as plain tests: each runs over its seeds and mutations of them, always the same ones.

#![allow(missing_docs)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

fwfuzz::tests!(targets: publish 5000, route 10000, headers 10000, tokens 5000);
