//! Slots on a real file system: what is accepted is there whole, what is refused leaves everything as it was.

#![allow(clippy::unwrap_used)]

mod device;
mod dir;
mod file;
mod hostile;
mod mutated;
