//! Requests to answers: the thin layer that holds routes, repository and API together.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::access_log::AccessLog;
use crate::api;
use crate::body::AnswerBody;
use crate::publish::Publisher;
use crate::repository::{Content, Object, Repository};
use crate::representation::{self, Answer, Coding};
use crate::routes::{self, Route};
use crate::tokens::Tokens;

/// Files that are read from disk for the first time at one time: hashing must not take all processors.
const LOADS: usize = 4;

/// Everything that a request needs.
#[derive(Debug)]
pub(crate) struct App {
    repository: Arc<Repository>,
    publisher: Option<(Tokens, Arc<Publisher>)>,
    log: AccessLog,
    loads: Semaphore,
}

impl App {
    pub(crate) fn new(repository: Arc<Repository>, publisher: Option<(Tokens, Publisher)>, log: AccessLog) -> Self {
        Self {
            repository,
            publisher: publisher.map(|(tokens, publisher)| (tokens, Arc::new(publisher))),
            log,
            loads: Semaphore::new(LOADS),
        }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<AnswerBody> {
        let mut entry = self.log.begin(remote, request.method().as_str(), request.uri().path());
        let head_only = request.method() == Method::HEAD;
        let response = self.route(request).await;
        if let Some(entry) = &mut entry {
            entry.status = response.status().as_u16();
        }
        response.map(|body| {
            let body = if head_only { AnswerBody::memory("") } else { body };
            body.logged(entry)
        })
    }

    async fn route(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let Some(route) = routes::route(request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "not found\n");
        };
        if route.is_api() && self.publisher.is_none() {
            return text(StatusCode::NOT_FOUND, "not found\n");
        }
        if !route.allows(request.method().as_str()) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(route.allow()));
            return response;
        }
        match (route, &self.publisher) {
            (Route::Health, _) => text(StatusCode::OK, "ok\n"),
            (Route::File(names), _) => self.file(&names, &request).await,
            (route, Some((tokens, publisher))) => api::answer(route, request, tokens, publisher).await,
            (_, None) => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    async fn file(&self, names: &[String], request: &Request<Incoming>) -> Response<AnswerBody> {
        for name in names {
            if let Some(object) = self.repository.cached(name) {
                return represent(&object, request);
            }
            let Ok(_permit) = self.loads.acquire().await else { break };
            let (repository, name) = (Arc::clone(&self.repository), name.clone());
            match spawn_blocking(move || repository.load(&name)).await {
                Ok(Ok(Some(object))) => return represent(&object, request),
                Ok(Ok(None)) => {}
                Ok(Err(_)) | Err(_) => {
                    // Not "not found": a client must not take a failing disk for "no newer root".
                    return text(StatusCode::SERVICE_UNAVAILABLE, "the repository cannot be read\n");
                }
            }
        }
        text(StatusCode::NOT_FOUND, "not found\n")
    }
}

fn represent(object: &Object, request: &Request<Incoming>) -> Response<AnswerBody> {
    let answer = representation::decide(request.method(), request.headers(), &object.facts);
    let (status, headers) = representation::head(answer, &object.facts);
    let (offset, length) = match answer {
        Answer::Part { first, last } => (first, last - first + 1),
        Answer::Whole(_) => (0, object.facts.length()),
        Answer::NotModified(_) | Answer::PreconditionFailed | Answer::Unsatisfiable => (0, 0),
    };
    let body = match &object.content {
        Content::File(file) => AnswerBody::file(Arc::clone(file), offset, length),
        Content::Memory { identity, gzip, zstd } => AnswerBody::memory(match (answer, gzip, zstd) {
            (Answer::Whole(Coding::Gzip), Some(gzip), _) => gzip.clone(),
            (Answer::Whole(Coding::Zstd), _, Some(zstd)) => zstd.clone(),
            // Both bounds are within a length that is in memory.
            _ => identity.slice(offset as usize..(offset + length) as usize),
        }),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// A short answer that caches must not keep.
pub(crate) fn text(status: StatusCode, message: &'static str) -> Response<AnswerBody> {
    finish(status, "text/plain; charset=utf-8", message.to_owned())
}

/// A JSON answer that caches must not keep.
pub(crate) fn json(status: StatusCode, value: &fwmeta::json::Value) -> Response<AnswerBody> {
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
