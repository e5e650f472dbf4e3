//! Exit codes and how a failure becomes one.

use std::error::Error;

use fwmeta::json::{Value, object};

use crate::config::ConfigError;
use crate::drive::DriveError;
use crate::ports::{PortError, PortErrorKind};

/// Exit codes, shared by all programs of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Done = 0,
    /// Refused by verification.
    Refused = 1,
    /// Wrong usage.
    Usage = 2,
    /// The environment failed: network, disk, configuration.
    Environment = 3,
    /// There was nothing to do.
    Nothing = 4,
}

impl Code {
    /// The word in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Environment => "environment",
            Self::Nothing => "nothing-to-do",
        }
    }
}

/// A command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// What went wrong.
    pub error: Box<dyn Error + Send + Sync>,
    /// What the user can do.
    pub advice: Option<&'static str>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: Code, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            code,
            error: error.into(),
            advice: None,
        }
    }
}

impl Failure {
    /// The form for machines.
    pub fn to_value(&self) -> Value {
        object([
            ("error", self.code.word().into()),
            ("message", crate::drive::chain(self.error.as_ref()).into()),
            ("advice", self.advice.into()),
        ])
    }
}

/// What a command gives.
pub type Outcome<T> = Result<T, Failure>;

impl From<DriveError> for Failure {
    fn from(error: DriveError) -> Self {
        let code = if error.is_refusal() {
            Code::Refused
        } else {
            Code::Environment
        };
        let advice = match &error {
            DriveError::Stale { .. } => Some(
                "set the clock if it is wrong; otherwise the server gives out what has expired, and hides what came after",
            ),
            DriveError::NotProvisioned => Some("give it a root of trust with `fwagent provision --root ROOT`"),
            DriveError::Refusal(crate::machine::step::Refusal::UnexpectedSlot { .. }) => {
                Some("boot the expected slot; the agent changes nothing until then")
            }
            _ => None,
        };
        Self {
            code,
            error: error.into(),
            advice,
        }
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        let code = match error.kind {
            PortErrorKind::Refused => Code::Refused,
            PortErrorKind::Environment { .. } | PortErrorKind::Stopped => Code::Environment,
        };
        Self::new(code, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match error {
            ConfigError::Read { .. } => Code::Environment,
            _ => Code::Usage,
        };
        Self::new(code, error)
    }
}
