//! The real world behind the ports: network, files, clock, boot records, commands.

pub mod dir_cache;
pub mod http;
mod tls;
