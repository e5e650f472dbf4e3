//! The commands, one file each.

use fwmeta::role::{RoleKeys, RoleName};

use crate::cli::{Command, ProductCommand, ReleaseCommand};
use crate::failure::{Outcome, usage};
use crate::output::Report;

mod bundle;
mod init;
mod keygen;
mod product;
mod publish;
mod refresh;
mod release;
mod status;
mod verify;

/// Runs a command.
///
/// # Errors
/// [`crate::failure::Failure`].
pub fn run(command: &Command) -> Outcome<Report> {
    match command {
        Command::Keygen(args) => keygen::run(args),
        Command::Init(args) => init::run(args),
        Command::Product(ProductCommand::Add(args)) => product::run(args),
        Command::Release(ReleaseCommand::Add(args)) => release::run(args),
        Command::Refresh(args) => refresh::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Status(args) => status::run(args),
        Command::Publish(args) => publish::run(args),
        Command::Bundle(args) => bundle::run(args),
    }
}

/// Roles and directories of roll-outs, which no product may speak for.
const RESERVED: [&str; 3] = ["rollout", "rollout-hold", "hold"];

/// A product name becomes a role name, a directory and part of URLs.
fn product_name(text: &str) -> Outcome<RoleName> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let plain = !text.starts_with('.') && text.len() <= fwmeta::limits::NAME_BYTES && text.bytes().all(allowed);
    match RoleName::parse(text) {
        Ok(role) if plain && !role.is_top_level() && !RESERVED.contains(&text) => Ok(role),
        _ => Err(usage(format!(
            "{text:?} is not a product name: use A–Z a–z 0–9 . _ + -, not beginning with a dot, and no name of another role"
        ))),
    }
}

fn check_threshold(role: &str, threshold: u64, keys: &RoleKeys) -> Outcome<()> {
    let available = keys.keyids.len() as u64;
    if threshold == 0 || threshold > available {
        return Err(usage(format!(
            "{role}: a threshold of {threshold} cannot be met by {available} different key(s): give more, or set another"
        )));
    }
    Ok(())
}
