//! Signs firmware releases: keys, TUF repository, releases, verification, publishing.
//!
//! ```text
//! cmd (files, options)  ->  release (pure)  ->  signer  ->  transaction  ->  judge: fwmeta and tough  ->  writer
//! publish: what a repository consists of          ->        judge           ->  writer, or the server's API
//! ```

mod api_error;
pub mod bounded;
pub mod bundle;
pub mod cli;
pub mod clock;
pub mod cmd;
mod code;
pub mod example_keys;
pub mod failure;
pub mod judge;
pub mod keyfile;
pub mod migration;
pub mod output;
pub mod passphrase;
pub mod payload;
pub mod progress;
pub mod publish;
pub mod release;
pub mod repo_dir;
pub mod second_opinion;
pub mod signer;
pub mod transaction;
pub mod writer;
