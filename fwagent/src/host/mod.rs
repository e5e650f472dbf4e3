//! The real world behind the ports: network, files, bundles, clock, boot records, commands.

pub mod boot_file;
pub mod bundle;
pub mod clock;
pub mod conditions;
pub mod dir_cache;
pub mod generation;
pub mod health;
pub mod hold_file;
pub mod http;
pub mod identity;
pub mod loader;
pub mod notify;
pub mod process;
pub mod reporter;
pub mod repository;
pub mod restart;
pub mod settings;
pub mod slots;
pub mod state_file;
pub mod status_socket;
pub mod survey;
pub mod system;
mod tls;
pub mod transport;
pub mod tree;
pub mod unpack;
