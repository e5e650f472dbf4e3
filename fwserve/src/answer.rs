//! What all that answers requests shares: short answers, for whom they are, and notes on them for the log.

use std::net::SocketAddr;

use fwmeta::json::Value;
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use crate::body::AnswerBody;
use crate::timed_io::Work;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) remote: SocketAddr,
    /// What is being done for it.
    pub(crate) work: Work,
}

/// The name of the token that a request came with, for the log.
#[derive(Debug, Clone)]
pub(crate) struct Publishing(pub(crate) String);

/// Why the server could not do what it should, for the log and standard error.
#[derive(Debug, Clone)]
pub(crate) struct Fault(pub(crate) String);

/// A short answer that caches must not keep.
pub(crate) fn text(status: StatusCode, message: &'static str) -> Response<AnswerBody> {
    finish(status, "text/plain; charset=utf-8", message.to_owned())
}

/// A JSON answer that caches must not keep.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<AnswerBody> {
    finish(status, "application/json", value.to_json())
}

fn finish(status: StatusCode, content_type: &'static str, body: String) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::memory(body));
    *response.status_mut() = status;
    let length = HeaderValue::from(hyper::body::Body::size_hint(response.body()).lower());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
