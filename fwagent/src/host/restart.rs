//! Restarting: by a command of the device, or by ending the agent under a supervisor (`fwagent boot --supervise`, a
//! container runtime), which then chooses the slot anew.

use std::process::{Command, Stdio};

use crate::ports::{PortError, Reboot};

/// How to restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restart {
    /// Run a command.
    Command {
        /// Such as `/sbin/reboot`.
        usual: Vec<String>,
        /// For the restart into a trial, such as `/sbin/reboot`, `0 tryboot`.
        trial: Vec<String>,
    },
    /// The agent ends and its supervisor starts what the boot record names.
    Exit,
    /// Somebody else restarts the device; the agent only says that it is due.
    Manual,
}

impl Reboot for Restart {
    fn reboot(&mut self) -> Result<(), PortError> {
        match self {
            Self::Command { usual, .. } => run(usual),
            Self::Exit | Self::Manual => Ok(()),
        }
    }

    fn reboot_for_trial(&mut self) -> Result<(), PortError> {
        match self {
            Self::Command { trial, .. } => run(trial),
            Self::Exit | Self::Manual => Ok(()),
        }
    }
}

fn run(words: &[String]) -> Result<(), PortError> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_restart_into_a_trial_may_be_another_command() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| vec!["touch".to_owned(), dir.path().join(name).display().to_string()];
        let names = || -> Vec<_> {
            let entries = dir.path().read_dir().unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        let mut restart = Restart::Command {
            usual: touch("usual"),
            trial: touch("trial"),
        };
        restart.reboot_for_trial().unwrap();
        assert_eq!(names(), ["trial"]);
        std::fs::remove_file(dir.path().join("trial")).unwrap();
        restart.reboot().unwrap();
        assert_eq!(names(), ["usual"]);
        let failed = Restart::Command {
            usual: touch("usual"),
            trial: vec!["false".to_owned()],
        };
        assert!(failed.clone().reboot_for_trial().is_err() && Restart::Exit.reboot_for_trial().is_ok());
    }
}
