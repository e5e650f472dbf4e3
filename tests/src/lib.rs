//! What the tests of the whole share.

pub mod bins;
pub mod device;
pub mod lie_server;
pub mod loop_device;
pub mod measure;
pub mod random;
pub mod release;
pub mod repo_sim;
pub mod report_server;
pub mod sim_device;
pub mod sim_server;
pub mod swtpm;
pub mod tools;
pub mod vectors;
pub mod vm;
pub mod world;
