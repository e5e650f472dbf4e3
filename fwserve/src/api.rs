//! The publish API: tokens, uploads, the switch.
//!
//! ```text
//! GET  /api/v1/repository            200 {"timestamp", "root_version", "snapshot_version"}
//! HEAD /api/v1/objects/<SHA-256>     200 complete | 404 with Upload-Offset
//! PUT  /api/v1/objects/<SHA-256>     201 complete | 202 more to come | 409 other offset | 413 | 422 other contents
//! POST /api/v1/publish               200 {"timestamp"} | 409 conflict | 422 refused, with the reason
//! ```

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fwmeta::json::{Value, object};
use fwmeta::time::UtcSeconds;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;

use crate::answer::{Fault, Peer, Publishing, json, text};
use crate::body::AnswerBody;
use crate::failure::chain;
use crate::publish::{PublishError, PublishRequest, Publisher};
use crate::routes::Route;
use crate::tokens::Tokens;
use crate::uploads::{Status, UploadError};

/// Longest publish request: about 100,000 files.
const REQUEST_BYTES: usize = 16 * 1024 * 1024;
/// Pieces of an upload that may wait for the disk.
const WAITING: usize = 16;
const UPLOAD_OFFSET: &str = "upload-offset";
const UPLOAD_LENGTH: &str = "upload-length";

/// Uploads in progress at one time: each keeps a thread waiting for its client.
const UPLOADS: usize = 32;

/// The API of a server that takes publications.
#[derive(Debug)]
pub(crate) struct Api {
    tokens: Tokens,
    publisher: Arc<Publisher>,
    uploads: Semaphore,
}

impl Api {
    pub(crate) fn new(tokens: Tokens, publisher: Publisher) -> Self {
        Self {
            tokens,
            publisher: Arc::new(publisher),
            uploads: Semaphore::new(UPLOADS),
        }
    }

    pub(crate) async fn answer(&self, route: Route, request: Request<Incoming>, peer: &Peer) -> Response<AnswerBody> {
        let Some(token) = authorized(request.headers(), &self.tokens) else {
            let mut response = error(StatusCode::UNAUTHORIZED, "unauthorized", "a publish token is needed");
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        };
        let mut response = self.work(route, request, peer).await;
        response.extensions_mut().insert(Publishing(token));
        response
    }

    async fn work(&self, route: Route, request: Request<Incoming>, peer: &Peer) -> Response<AnswerBody> {
        let publisher = Arc::clone(&self.publisher);
        match route {
            Route::Repository => {
                blocking(peer, move || match publisher.state() {
                    Ok(state) => json(StatusCode::OK, &state),
                    Err(failure) => publish_failed(&failure),
                })
                .await
            }
            Route::Object(sha256) if request.method() == hyper::Method::PUT => match self.uploads.try_acquire() {
                Ok(_permit) => upload(publisher, sha256, request, peer).await,
                Err(_) => busy("too many uploads are in progress"),
            },
            Route::Object(sha256) => {
                blocking(peer, move || match publisher.status(&sha256) {
                    Ok(Status::Complete(length)) => {
                        let mut response = text(StatusCode::OK, "");
                        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
                        response
                    }
                    Ok(Status::Partial(offset)) => at_offset(text(StatusCode::NOT_FOUND, ""), offset),
                    Err(failure) => upload_failed(&failure.into()),
                })
                .await
            }
            Route::Publish => publish(publisher, request, peer).await,
            Route::Health | Route::File(_) => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

/// The name of the request's token, if it has a good one.
fn authorized(headers: &HeaderMap, tokens: &Tokens) -> Option<String> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| tokens.name_of(token.trim()))
        .flatten()
}

async fn blocking(peer: &Peer, work: impl FnOnce() -> Response<AnswerBody> + Send + 'static) -> Response<AnswerBody> {
    let _working = peer.work.begin();
    spawn_blocking(work)
        .await
        .unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed"))
}

async fn upload(
    publisher: Arc<Publisher>,
    sha256: String,
    request: Request<Incoming>,
    peer: &Peer,
) -> Response<AnswerBody> {
    let number = |name: &str| request.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let (Some(offset), Some(total)) = (number(UPLOAD_OFFSET), number(UPLOAD_LENGTH)) else {
        return error(
            StatusCode::BAD_REQUEST,
            "malformed",
            "Upload-Offset and Upload-Length must be numbers of bytes",
        );
    };
    let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
    let writing = spawn_blocking(move || {
        let Some(mut upload) = publisher.uploads().resume(&sha256, offset, total)? else {
            return Ok(Status::Complete(total));
        };
        while let Some(bytes) = receiver.blocking_recv() {
            upload.write(&bytes)?;
        }
        upload.finish()
    });
    let mut body = request.into_body();
    let mut broken = false;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            // What has arrived stays, for the client to go on.
            broken = true;
            break;
        };
        // The writer has gone: it says why.
        if let Ok(bytes) = frame.into_data()
            && sender.send(bytes).await.is_err()
        {
            break;
        }
    }
    drop(sender);
    // A large object takes a while to verify.
    let _working = peer.work.begin();
    match writing.await {
        Ok(Ok(Status::Complete(length))) => at_offset(text(StatusCode::CREATED, ""), length),
        Ok(Ok(Status::Partial(offset))) if broken => at_offset(text(StatusCode::BAD_REQUEST, ""), offset),
        Ok(Ok(Status::Partial(offset))) => at_offset(text(StatusCode::ACCEPTED, ""), offset),
        Ok(Err(failure)) => upload_failed(&failure),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the upload failed"),
    }
}

fn upload_failed(failure: &UploadError) -> Response<AnswerBody> {
    let (status, word) = match failure {
        UploadError::Offset { .. } | UploadError::Busy => (StatusCode::CONFLICT, "conflict"),
        UploadError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        UploadError::Overrun { .. } => (StatusCode::BAD_REQUEST, "malformed"),
        UploadError::Hash { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
        UploadError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "environment"),
    };
    let response = error(status, word, &chain(failure));
    match failure {
        UploadError::Busy => retry_later(response),
        UploadError::Offset { have, .. } => at_offset(response, *have),
        _ => response,
    }
}

async fn publish(publisher: Arc<Publisher>, request: Request<Incoming>, peer: &Peer) -> Response<AnswerBody> {
    let body = match Limited::new(request.into_body(), REQUEST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(failure) if failure.is::<LengthLimitError>() => {
            return error(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the request is too long");
        }
        Err(_) => return error(StatusCode::BAD_REQUEST, "malformed", "the request broke off"),
    };
    blocking(peer, move || {
        let published = PublishRequest::parse(&body).and_then(|request| publisher.publish(&request, now()));
        match published {
            Err(failure) => publish_failed(&failure),
            Ok(published) => {
                let timestamp = object([
                    ("version", published.version.into()),
                    ("sha256", published.sha256.into()),
                ]);
                let ignored: Vec<Value> = published.ignored.into_iter().map(Value::from).collect();
                json(
                    StatusCode::OK,
                    &object([("timestamp", timestamp), ("ignored", ignored.into())]),
                )
            }
        }
    })
    .await
}

fn publish_failed(failure: &PublishError) -> Response<AnswerBody> {
    let (status, word) = match failure {
        PublishError::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed"),
        PublishError::Stale { .. } | PublishError::Taken { .. } => (StatusCode::CONFLICT, "conflict"),
        PublishError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        PublishError::Candidate(candidate) if candidate.is_refusal() => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
        PublishError::Candidate(_) | PublishError::Interrupted { .. } | PublishError::Io { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "environment")
        }
    };
    let response = error(status, word, &chain(failure));
    if matches!(failure, PublishError::Busy) {
        return retry_later(response);
    }
    response
}

fn busy(reason: &str) -> Response<AnswerBody> {
    retry_later(error(StatusCode::SERVICE_UNAVAILABLE, "busy", reason))
}

fn retry_later(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(5));
    response
}

fn error(status: StatusCode, word: &str, reason: &str) -> Response<AnswerBody> {
    let mut response = json(status, &object([("error", word.into()), ("reason", reason.into())]));
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        response.extensions_mut().insert(Fault(reason.to_owned()));
    }
    response
}

fn at_offset(mut response: Response<AnswerBody>, offset: u64) -> Response<AnswerBody> {
    response.headers_mut().insert(UPLOAD_OFFSET, HeaderValue::from(offset));
    response
}

/// A clock before 1970 is as good as 1970: what expires has then not expired.
fn now() -> UtcSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UtcSeconds(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
