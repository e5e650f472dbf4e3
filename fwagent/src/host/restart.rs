//! Restarting: by a command of the device, or by ending the agent under a supervisor (`fwagent boot --supervise`, a
//! container runtime), which then chooses the slot anew.

use std::process::{Command, Stdio};

use crate::ports::{PortError, Reboot};

/// How to restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restart {
    /// Run a command, such as `systemctl reboot`.
    Command(Vec<String>),
    /// The agent ends and its supervisor starts what the boot record names.
    Exit,
    /// Somebody else restarts the device; the agent only says that it is due.
    Manual,
}

impl Reboot for Restart {
    fn reboot(&mut self) -> Result<(), PortError> {
        let Self::Command(words) = self else {
            return Ok(());
        };
        let attempt = format!("restarting by `{}`", words.join(" "));
        let Some((program, arguments)) = words.split_first() else {
            return Err(PortError::environment(attempt, None));
        };
        let status = Command::new(program).args(arguments).stdin(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(PortError::environment(format!("{attempt}: {status}"), None)),
            Err(error) => Err(PortError::environment(attempt, Some(error.into()))),
        }
    }
}
