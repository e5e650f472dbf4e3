//! Why a command failed, with its exit code.

use std::fmt;

/// Exit codes shared by all programs of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Bytes were judged and refused.
    Refused = 1,
    /// The command was used wrongly.
    Usage = 2,
    /// Something around the command failed: files, network, time.
    Environment = 3,
    /// There was nothing to do.
    NothingToDo = 4,
}

impl Code {
    /// The word for it in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Environment => "environment",
            Self::NothingToDo => "nothing-to-do",
        }
    }
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Its exit code.
    pub code: Code,
    /// The causes, outermost first.
    pub error: anyhow::Error,
}

/// Result of a command.
pub type Outcome<T> = Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            code: Code::Environment,
            error: error.into(),
        }
    }
}

/// A refusal.
pub fn refused(error: impl Into<anyhow::Error>) -> Failure {
    Failure {
        code: Code::Refused,
        error: error.into(),
    }
}

/// A usage error.
pub fn usage(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Failure {
    Failure {
        code: Code::Usage,
        error: anyhow::Error::msg(message),
    }
}
