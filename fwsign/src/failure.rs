//! Why a command failed, with its exit code.

use std::fmt;
use std::io;

use crate::publish::ApiError;
use crate::signer::{ExampleKey, MissingKeys};

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

/// Whatever has no better code is the environment's fault.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let code = if error.is::<MissingKeys>() {
            Code::Usage
        } else if error.is::<ExampleKey>() {
            Code::Refused
        } else {
            error.downcast_ref().map_or(Code::Environment, ApiError::code)
        };
        Self { code, error }
    }
}

/// A refusal.
pub fn refused(error: impl Into<anyhow::Error>) -> Failure {
    Failure {
        code: Code::Refused,
        error: error.into(),
    }
}

/// The failure of a verifier: a refusal, unless it could not read what it was to judge.
pub fn judged(error: anyhow::Error) -> Failure {
    Failure {
        code: judged_code(&error),
        error,
    }
}

/// The code of a verifier's failure, as [`judged`] gives it.
pub fn judged_code(error: &anyhow::Error) -> Code {
    // These say that a file is not what it should be; every other one, that nobody can say what it is.
    let refusals = [
        io::ErrorKind::NotFound,
        io::ErrorKind::FileTooLarge,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::InvalidData,
    ];
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    if causes.any(|cause| !refusals.contains(&cause.kind())) {
        Code::Environment
    } else {
        Code::Refused
    }
}

/// There was nothing to do.
pub fn nothing_to_do(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Failure {
    Failure {
        code: Code::NothingToDo,
        error: anyhow::Error::msg(message),
    }
}

/// A usage error.
pub fn usage(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Failure {
    Failure {
        code: Code::Usage,
        error: anyhow::Error::msg(message),
    }
}
