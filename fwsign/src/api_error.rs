//! What can go wrong between here and a server, and what it means for the caller.

use std::path::PathBuf;
use std::time::Duration;

use crate::code::Code;

/// A request to the server failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The URL cannot be used.
    #[error("--server {url:?} {reason}")]
    Url {
        /// The URL.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// The token would be readable on its way.
    #[error(
        "--server {url} is plain HTTP to another machine, where anybody on the way reads the token: use https, or pass \
             --allow-plain-http on a network that you trust"
    )]
    PlainHttp {
        /// The URL.
        url: String,
    },
    /// The token file cannot be used.
    #[error("token file {}: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why; never its contents.
        reason: String,
    },
    /// The client could not be set up.
    #[error("setting up HTTP: {0}")]
    Setup(String),
    /// No answer.
    #[error("{request}: no answer")]
    Transfer {
        /// Method and URL.
        request: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The token was refused.
    #[error("{request}: the server does not accept the token of {}: is it listed in the server's token file?", token_file.display())]
    Unauthorized {
        /// Method and URL.
        request: String,
        /// Where the token comes from.
        token_file: PathBuf,
    },
    /// There is no such API.
    #[error("{request}: no publish API there (404): is it a fwserve that was started with --publish-token-file?")]
    NoApi {
        /// Method and URL.
        request: String,
    },
    /// The answer points elsewhere.
    #[error(
        "{request}: the server redirects to {location:?}, where the token is not sent: give that address as --server"
    )]
    Redirect {
        /// Method and URL.
        request: String,
        /// Where to.
        location: String,
    },
    /// The server said no, and why.
    #[error("{request}: the server answers {status}: {reason}")]
    Answer {
        /// Method and URL.
        request: String,
        /// HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// An answer that makes no sense.
    #[error("{request}: the answer is not one of a publish API: {what}")]
    Malformed {
        /// Method and URL.
        request: String,
        /// What is wrong.
        what: String,
    },
}

impl ApiError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transfer { .. } => true,
            Self::Answer { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// The exit code for it.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Url { .. } | Self::PlainHttp { .. } => Code::Usage,
            Self::Answer { status: 409 | 422, .. } => Code::Refused,
            _ => Code::Environment,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
