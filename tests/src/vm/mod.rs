//! A device in a virtual machine: real boot loaders, a real kernel, the real agent, and a disk that loses what was not
//! flushed.

pub mod disk;
pub mod nbd;
