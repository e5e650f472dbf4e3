//! Why a command failed, with its exit code.

use std::fmt;
use std::io;

use crate::api_error::ApiError;
pub use crate::code::Code;
use crate::signer::{ExampleKey, MissingKeys};

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
