//! The publish API of a running server, over HTTP: bounded, resumable, and careful with the token.
//!
//! ```text
//! GET  /api/v1/repository            what is published
//! HEAD /api/v1/objects/<SHA-256>     200 there | 404 with Upload-Offset
//! PUT  /api/v1/objects/<SHA-256>     201 complete | 202 go on | 409 at another offset, or busy | 422 other contents
//! POST /api/v1/publish               200 | 409 conflict | 422 refused | 503 busy
//! ```
//!
//! What breaks off or is busy is tried again, later each time and a bounded number of times without progress. What the
//! server refuses is passed on in its words.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use fwmeta::json::{Doc, Node, Value};
use fwmeta::role::RoleName;
use fwmeta::{layout, limits};
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};

use super::destination::{base_url, is_loopback, token};
use super::tls;
use crate::api_error::ApiError;

/// Bytes of one request of an upload: what a broken connection can lose.
const PIECE: usize = 4 << 20;
/// Bytes of the first one. It fits into the buffers of a connection, so that a server that refuses at once can say why.
const FIRST_PIECE: usize = 64 << 10;
/// Tries without progress before giving up.
const TRIES: u32 = 6;
/// Pause before the second try; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest `Retry-After` that is heeded.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Time for one request. The server reads all new payloads before it answers a publication.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Longest answer: a snapshot.
const ANSWER_BYTES: u64 = limits::SNAPSHOT_BYTES;
const UPLOAD_OFFSET: &str = "upload-offset";
const UPLOAD_LENGTH: &str = "upload-length";

/// Where the server is and how to reach it.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// Base URL of the server.
    pub url: String,
    /// File whose first line is the token.
    pub token_file: PathBuf,
    /// PEM file of the only certificate authorities to trust; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Whether the token may travel over plain HTTP to another machine.
    pub allow_plain_http: bool,
}

type Result<T> = std::result::Result<T, ApiError>;

/// What a server has published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    /// Version and SHA-256 of the timestamp.
    pub(super) timestamp: Option<(u64, String)>,
    pub(super) root_version: u64,
    pub(super) snapshot_version: Option<u64>,
}

/// How much of an object the server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Have {
    All,
    Bytes(u64),
}

/// A server with a publish API.
#[derive(Debug)]
pub struct Api {
    client: Client,
    base: Url,
    token: HeaderValue,
    token_file: PathBuf,
}

struct Answer {
    request: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Api {
    /// Prepares to talk to a server; nothing is sent yet.
    ///
    /// # Errors
    /// [`ApiError`] for an unusable URL, token or CA file, and when the token would travel unprotected.
    pub fn new(options: &ApiOptions) -> Result<Self> {
        let base = base_url(&options.url)?;
        let local = is_loopback(&base);
        if base.scheme() == "http" && !local && !options.allow_plain_http {
            return Err(ApiError::PlainHttp { url: base.to_string() });
        }
        let tls = tls::client_config(options.ca_file.as_deref()).map_err(ApiError::Setup)?;
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("fwsign/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(20))
            .timeout(TIMEOUT)
            // Whoever answers could send the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false);
        if local {
            // A proxy is another machine.
            builder = builder.no_proxy();
        }
        Ok(Self {
            client: builder.build().map_err(|error| ApiError::Setup(error.to_string()))?,
            base,
            token: token(&options.token_file)?,
            token_file: options.token_file.clone(),
        })
    }

    /// The server, for people.
    pub(super) fn url(&self) -> &str {
        self.base.as_str()
    }

    /// What is published.
    pub(super) fn state(&self) -> Result<State> {
        retrying(|| {
            let answer = self.expect(Method::GET, "api/v1/repository", |request| request, &[StatusCode::OK])?;
            let malformed = || answer.malformed("no state of a repository".to_owned());
            let doc = Doc::parse(&answer.body).map_err(|error| answer.malformed(error.to_string()))?;
            let state = doc.root();
            let timestamp = match state.get("timestamp") {
                Some(timestamp) if timestamp.is_null() => None,
                Some(timestamp) => Some(version_and_sha256(timestamp).ok_or_else(malformed)?),
                None => return Err(malformed()),
            };
            let root_version = state.get("root_version").and_then(Node::as_u64).unwrap_or(0);
            Ok(State {
                timestamp,
                root_version,
                snapshot_version: state.get("snapshot_version").and_then(Node::as_u64),
            })
        })
    }

    /// A published snapshot.
    pub(super) fn snapshot(&self, version: u64) -> Result<Vec<u8>> {
        let path = format!(
            "metadata/{}",
            layout::metadata_name(&RoleName::snapshot(), Some(version))
        );
        retrying(|| {
            Ok(self
                .expect(Method::GET, &path, |request| request, &[StatusCode::OK])?
                .body)
        })
    }

    /// How much of an object is there.
    pub(super) fn have(&self, sha256: &str) -> Result<Have> {
        retrying(|| self.have_once(sha256))
    }

    fn have_once(&self, sha256: &str) -> Result<Have> {
        let path = object_path(sha256);
        let expected = [StatusCode::OK, StatusCode::NOT_FOUND];
        let answer = self.expect(Method::HEAD, &path, |request| request, &expected)?;
        match (answer.status, answer.offset()) {
            (StatusCode::OK, _) => Ok(Have::All),
            (_, Some(offset)) => Ok(Have::Bytes(offset)),
            (_, None) => Err(ApiError::NoApi {
                request: answer.request,
            }),
        }
    }

    /// Uploads an object of `length` bytes from byte `offset` on. `read` fills a buffer with the bytes at an offset;
    /// `progress` is told how many more the server has.
    pub(super) fn upload(
        &self,
        sha256: &str,
        length: u64,
        mut offset: u64,
        read: &mut dyn FnMut(u64, &mut [u8]) -> std::io::Result<()>,
        progress: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let mut best = offset;
        let mut failures = 0;
        let mut piece = FIRST_PIECE;
        loop {
            let size = usize::try_from(length.saturating_sub(offset))
                .unwrap_or(piece)
                .min(piece);
            let mut bytes = vec![0; size];
            read(offset, &mut bytes)?;
            // After a failure only the server knows where it is.
            let (have, failure) = match self.put(sha256, length, offset, bytes) {
                Ok(have) => (have, None),
                Err(error) if !error.is_transient() => return Err(error.into()),
                Err(error) => (self.have(sha256)?, Some(error)),
            };
            offset = match have {
                Have::All => {
                    progress(length - best.min(length));
                    return Ok(());
                }
                Have::Bytes(offset) => offset.min(length),
            };
            if offset > best {
                progress(offset - best);
                best = offset;
                failures = 0;
                piece = PIECE;
                continue;
            }
            failures += 1;
            let failure = failure.unwrap_or_else(|| ApiError::Malformed {
                request: format!("PUT {}{}", self.base, object_path(sha256)),
                what: format!("it stays at byte {best} of {length}"),
            });
            if failures >= TRIES {
                return Err(
                    anyhow::Error::new(failure).context(format!("giving up after {TRIES} tries without progress"))
                );
            }
            pause(failures, &failure);
        }
    }

    fn put(&self, sha256: &str, length: u64, offset: u64, bytes: Vec<u8>) -> Result<Have> {
        let prepare = |request: RequestBuilder| {
            request
                .header(UPLOAD_OFFSET, offset)
                .header(UPLOAD_LENGTH, length)
                .body(bytes)
        };
        let expected = [StatusCode::CREATED, StatusCode::ACCEPTED, StatusCode::CONFLICT];
        let answer = self.expect(Method::PUT, &object_path(sha256), prepare, &expected)?;
        match (answer.status, answer.offset()) {
            (StatusCode::CREATED, _) => Ok(Have::All),
            (_, Some(offset)) => Ok(Have::Bytes(offset)),
            // Another upload of the same object is in progress: perhaps our own, whose connection broke.
            (StatusCode::CONFLICT, None) => Err(ApiError::Answer {
                status: StatusCode::SERVICE_UNAVAILABLE.as_u16(),
                reason: answer.reason(),
                retry_after: None,
                request: answer.request,
            }),
            (_, None) => Err(answer.malformed("no Upload-Offset".to_owned())),
        }
    }

    /// Asks the server to switch. `timestamp` is the SHA-256 of the timestamp that will then be published: after an answer
    /// that got lost it tells whether the switch happened. The result lists the files that the server ignored.
    pub(super) fn publish(&self, request: &Value, timestamp: &str) -> Result<Vec<String>> {
        let body = request.to_json().into_bytes();
        retrying(|| {
            let json = |request: RequestBuilder| request.header("content-type", "application/json").body(body.clone());
            let answer = match self.expect(Method::POST, "api/v1/publish", json, &[StatusCode::OK]) {
                Err(error) if error.is_transient() => {
                    let published = self.state()?.timestamp;
                    return if published.is_some_and(|(_, sha256)| sha256 == timestamp) {
                        Ok(Vec::new())
                    } else {
                        Err(error)
                    };
                }
                other => other?,
            };
            let doc = Doc::parse(&answer.body).map_err(|error| answer.malformed(error.to_string()))?;
            let published = doc.root().get("timestamp").and_then(version_and_sha256);
            match published {
                Some((_, sha256)) if sha256 == timestamp => {}
                Some((_, sha256)) => {
                    let what = format!("it published timestamp {sha256} instead of {timestamp}");
                    return Err(answer.malformed(what));
                }
                None => return Err(answer.malformed("no timestamp".to_owned())),
            }
            let ignored = doc.root().get("ignored");
            let names = ignored
                .into_iter()
                .flat_map(|names| names.items().filter_map(Node::as_str));
            Ok(names.map(|name| printable(&name)).collect())
        })
    }

    /// Sends a request; an answer that is none of `expected` is an error.
    fn expect(
        &self,
        method: Method,
        path: &str,
        prepare: impl FnOnce(RequestBuilder) -> RequestBuilder,
        expected: &[StatusCode],
    ) -> Result<Answer> {
        let url = format!("{}{path}", self.base);
        let request = format!("{method} {url}");
        let builder = self
            .client
            .request(method, url)
            .header(AUTHORIZATION, self.token.clone());
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ApiError::Transfer {
            request: request.clone(),
            source,
        };
        let mut response = prepare(builder)
            .send()
            .map_err(|error| broken(error.without_url().into()))?;
        let mut body = Vec::new();
        Read::by_ref(&mut response)
            .take(ANSWER_BYTES)
            .read_to_end(&mut body)
            .map_err(|error| broken(error.into()))?;
        let answer = Answer::new(request, &response, body);
        if expected.contains(&answer.status) {
            return Ok(answer);
        }
        Err(match answer.status {
            StatusCode::UNAUTHORIZED => ApiError::Unauthorized {
                request: answer.request,
                token_file: self.token_file.clone(),
            },
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => ApiError::NoApi {
                request: answer.request,
            },
            status if status.is_redirection() => ApiError::Redirect {
                location: answer.header(LOCATION.as_str()).map(printable).unwrap_or_default(),
                request: answer.request,
            },
            status => ApiError::Answer {
                status: status.as_u16(),
                reason: answer.reason(),
                retry_after: answer.retry_after(),
                request: answer.request,
            },
        })
    }
}

impl Answer {
    fn new(request: String, response: &Response, body: Vec<u8>) -> Self {
        Self {
            request,
            status: response.status(),
            headers: response.headers().clone(),
            body,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn offset(&self) -> Option<u64> {
        self.header(UPLOAD_OFFSET)?.parse().ok()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER.as_str())?.parse().ok().map(Duration::from_secs)
    }

    /// The server's words, fit for a terminal.
    fn reason(&self) -> String {
        let doc = Doc::parse(&self.body).ok();
        let reason = doc.as_ref().and_then(|doc| doc.root().get("reason")?.as_str());
        match reason {
            Some(reason) => printable(&reason),
            None => self
                .status
                .canonical_reason()
                .unwrap_or("no reason given")
                .to_lowercase(),
        }
    }

    fn malformed(&self, what: String) -> ApiError {
        ApiError::Malformed {
            request: self.request.clone(),
            what,
        }
    }
}

fn object_path(sha256: &str) -> String {
    format!("api/v1/objects/{sha256}")
}

fn version_and_sha256(node: Node<'_>) -> Option<(u64, String)> {
    Some((
        node.get("version")?.as_u64()?,
        node.get("sha256")?.as_str()?.into_owned(),
    ))
}

fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(2000).collect()
}

/// Tries until it succeeds or does not fail transiently, [`TRIES`] times at most.
fn retrying<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut failures = 0;
    loop {
        match attempt() {
            Err(error) if error.is_transient() && failures + 1 < TRIES => {
                failures += 1;
                pause(failures, &error);
            }
            other => return other,
        }
    }
}

fn pause(failures: u32, error: &ApiError) {
    let doubled = PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    std::thread::sleep(error.retry_after().unwrap_or(doubled).min(PAUSE_MAX));
}
