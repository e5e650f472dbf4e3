//! Requests to answers: the thin layer that holds routes, repository and API together.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::access_log::AccessLog;
use crate::answer::{Fault, Peer, Publishing, text};
use crate::api::Api;
use crate::body::AnswerBody;
use crate::publish::Publisher;
use crate::repository::{Content, Effort, Found, Object, Repository};
use crate::representation::{self, Answer, Coding};
use crate::routes::{self, Route, TIMESTAMP};
use crate::tokens::Tokens;

/// Large files that are hashed for the first time at one time: that must not take all processors, and must not keep
/// small files waiting.
const LOADS: usize = 2;

/// Everything that a request needs.
#[derive(Debug)]
pub(crate) struct App {
    repository: Arc<Repository>,
    api: Option<Api>,
    log: AccessLog,
    loads: Semaphore,
}

impl App {
    pub(crate) fn new(repository: Arc<Repository>, publisher: Option<(Tokens, Publisher)>, log: AccessLog) -> Self {
        Self {
            repository,
            api: publisher.map(|(tokens, publisher)| Api::new(tokens, publisher)),
            log,
            loads: Semaphore::new(LOADS),
        }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>, peer: &Peer) -> Response<AnswerBody> {
        let mut entry = self
            .log
            .begin(peer.remote, request.method().as_str(), request.uri().path());
        let head_only = request.method() == Method::HEAD;
        let mut response = self.route(request, peer).await;
        let token = response.extensions_mut().remove::<Publishing>();
        let fault = response.extensions_mut().remove::<Fault>();
        if let Some(Fault(fault)) = &fault {
            self.log.fault(fault);
        }
        if let Some(entry) = &mut entry {
            entry.status = response.status().as_u16();
            entry.token = token.map(|Publishing(name)| name);
            entry.fault = fault.map(|Fault(fault)| fault);
        }
        response.map(|body| {
            let body = if head_only { AnswerBody::memory("") } else { body };
            body.logged(entry)
        })
    }

    async fn route(&self, request: Request<Incoming>, peer: &Peer) -> Response<AnswerBody> {
        // Only names that a route has given are in memory.
        if (request.method() == Method::GET || request.method() == Method::HEAD)
            && let Some(object) = routes::plain_name(request.uri().path()).and_then(|name| self.repository.cached(name))
        {
            return represent(&object, &request);
        }
        let Some(route) = routes::route(request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "not found\n");
        };
        if route.is_api() && self.api.is_none() {
            return text(StatusCode::NOT_FOUND, "not found\n");
        }
        if !route.allows(request.method().as_str()) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(route.allow()));
            return response;
        }
        match (route, &self.api) {
            (Route::Health, _) => self.health(peer).await,
            (Route::File(names), _) => self.file(&names, &request, peer).await,
            (route, Some(api)) => api.answer(route, request, peer).await,
            (_, None) => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Healthy is who can read the repository, also while there is none yet.
    async fn health(&self, peer: &Peer) -> Response<AnswerBody> {
        if self.repository.cached(TIMESTAMP).is_some() {
            return text(StatusCode::OK, "ok\n");
        }
        match self.load(TIMESTAMP, peer).await {
            Ok(_) => text(StatusCode::OK, "ok\n"),
            Err(error) => unreadable(TIMESTAMP, &error),
        }
    }

    async fn file(&self, names: &[String], request: &Request<Incoming>, peer: &Peer) -> Response<AnswerBody> {
        for name in names {
            if let Some(object) = self.repository.cached(name) {
                return represent(&object, request);
            }
            match self.load(name, peer).await {
                Ok(Some(object)) => return represent(&object, request),
                Ok(None) => {}
                Err(error) => return unreadable(name, &error),
            }
        }
        text(StatusCode::NOT_FOUND, "not found\n")
    }

    async fn load(&self, name: &str, peer: &Peer) -> io::Result<Option<Arc<Object>>> {
        let _working = peer.work.begin();
        let load = |effort| {
            let (repository, name) = (Arc::clone(&self.repository), name.to_owned());
            spawn_blocking(move || repository.load(&name, effort))
        };
        let mut found = load(Effort::Little).await??;
        if matches!(found, Found::Unread) {
            let _permit = self.loads.acquire().await.map_err(io::Error::other)?;
            found = load(Effort::Any).await??;
        }
        Ok(match found {
            Found::Object(object) => Some(object),
            Found::Nothing | Found::Unread => None,
        })
    }
}

/// Not "not found": a client must not take a failing disk for "no newer root".
fn unreadable(name: &str, error: &io::Error) -> Response<AnswerBody> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "the repository cannot be read\n");
    response
        .extensions_mut()
        .insert(Fault(format!("reading {name}: {error}")));
    response
}

fn represent(object: &Object, request: &Request<Incoming>) -> Response<AnswerBody> {
    let now = SystemTime::now();
    let answer = representation::decide(request.method(), request.headers(), &object.facts, now);
    let (status, headers) = representation::head(answer, &object.facts, now);
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
