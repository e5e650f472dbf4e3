//! Sending: one small document, one answer of which only the status counts.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderName};

use super::{Http, retry_after};

/// Names a request: the same name is the same request again (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a server made of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It has it.
    Taken,
    /// It will not have it, however often it is sent.
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// Not now.
    Later {
        /// The HTTP status.
        status: u16,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
}

/// A document could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("POST {url}")]
pub struct PostError {
    /// Where to.
    pub url: String,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Http {
    /// Posts a JSON document. Redirects are not followed, and the body of the answer is not read: whatever a server sends
    /// there costs nothing.
    ///
    /// # Errors
    /// [`PostError`] when no answer came: the server may or may not have the document.
    pub fn post(&self, url: &str, key: &str, json: String) -> Result<Posted, PostError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PostError {
            url: url.to_owned(),
            source,
        };
        let parsed = super::parse(url).map_err(|error| failed(error.into()))?;
        let request = self.client.post(parsed).header(CONTENT_TYPE, "application/json");
        let sent = request.header(IDEMPOTENCY_KEY, key).body(json).send();
        let response = sent.map_err(|error| failed(error.without_url().into()))?;
        let status = response.status();
        Ok(match status {
            status if status.is_success() => Posted::Taken,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Posted::Later {
                status: status.as_u16(),
                retry_after: retry_after(response.headers()),
            },
            status if status.is_client_error() => Posted::Refused {
                status: status.as_u16(),
            },
            _ => Posted::Later {
                status: status.as_u16(),
                retry_after: retry_after(response.headers()),
            },
        })
    }
}
