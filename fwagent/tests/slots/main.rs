//! Slots on a real file system: what is accepted is there whole, what is refused leaves everything as it was.

#![allow(clippy::unwrap_used, missing_docs)]

mod block;
mod device;
mod dir;
mod file;
mod hostile;
#[path = "../../../tests/src/loop_device.rs"]
mod loop_device;
mod mutated;
#[path = "../../../tests/src/tools.rs"]
mod tools;
