//! The real world behind the ports: network, files, clock, boot records, commands.

pub mod boot_file;
pub mod clock;
pub mod conditions;
pub mod dir_cache;
pub mod generation;
pub mod health;
pub mod hold_file;
pub mod http;
pub mod loader;
pub mod notify;
pub mod process;
pub mod repository;
pub mod restart;
pub mod slots;
pub mod state_file;
pub mod survey;
pub mod system;
mod tls;
pub mod tree;
pub mod unpack;
