//! What the tests of the whole share.

pub mod bins;
pub mod repo_sim;
pub mod sim_device;
pub mod sim_server;
pub mod vectors;
pub mod world;
