//! The section `restart`: how the device is restarted, and how into a trial.

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::restart::Restart;

const REBOOT: &str = "/sbin/reboot";
/// What the boot loader of the Raspberry Pi is told by the restart: the usual partition, with the flag.
const TRYBOOT: &str = "0 tryboot";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RestartSection {
    mode: RestartMode,
    command: Option<Vec<String>>,
    trial_command: Option<Vec<String>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RestartMode {
    #[default]
    Command,
    Exit,
    Manual,
}

impl RestartSection {
    /// `flagged`: the boot loader must be told of a trial by the restart itself.
    pub(super) fn check(&self, flagged: bool) -> Result<(), Problem> {
        for (field, command) in [
            ("restart.command", &self.command),
            ("restart.trial_command", &self.trial_command),
        ] {
            if command.as_ref().is_some_and(Vec::is_empty) {
                return problem(field, "is empty");
            }
            if self.mode != RestartMode::Command && command.is_some() {
                return problem(field, "is given, and restart.mode is not \"command\"");
            }
        }
        if self.trial_command.is_some() && !flagged {
            return problem("restart.trial_command", "is given, and boot.control is not \"tryboot\"");
        }
        if self.mode != RestartMode::Command && flagged {
            return problem(
                "restart.mode",
                "is not \"command\", and boot.control \"tryboot\" needs a restart with its flag",
            );
        }
        Ok(())
    }

    pub(super) fn build(self, flagged: bool) -> Restart {
        match self.mode {
            RestartMode::Command => {
                let usual = self.command.unwrap_or_else(|| vec![REBOOT.to_owned()]);
                let with_flag = || vec![REBOOT.to_owned(), TRYBOOT.to_owned()];
                let trial = match self.trial_command {
                    Some(command) => command,
                    None if flagged => with_flag(),
                    None => usual.clone(),
                };
                Restart::Command { usual, trial }
            }
            RestartMode::Exit => Restart::Exit,
            RestartMode::Manual => Restart::Manual,
        }
    }
}
