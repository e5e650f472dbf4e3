//! HTTP transport: bounded in bytes and time, resumable, no trust in what it brings.
//!
//! What it decides: how to ask, when an answer is too long, too slow or not an answer, and when to ask again. What it
//! does not decide: whether bytes are right; metadata are judged by `fwmeta`, targets here by the length and digests
//! that verified metadata gave.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fwmeta::client::Fetch;
use fwmeta::target::{Hasher, MismatchError, TargetFile};
use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_NONE_MATCH, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{StatusCode, Url};

use crate::host::tls;

pub mod post;

/// Redirects followed for one object.
const REDIRECTS: usize = 5;
/// Longest `Retry-After` that is heeded: a server cannot silence a device for longer than a day.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a broken transfer is resumed before the error is passed on.
const RESUMES: u32 = 3;
/// Longest entity tag that is stored and sent back, in bytes.
const ETAG_BYTES: usize = 256;

/// How to reach servers.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// Time without a single byte after which a transfer counts as stalled.
    pub stall_timeout: Duration,
    /// Time for one metadata object, however steadily it drips.
    pub metadata_timeout: Duration,
    /// PEM file of the only certificate authorities to trust; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Proxy for all requests; the environment's (`http_proxy`, …) when absent.
    pub proxy: Option<String>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(30),
            metadata_timeout: Duration::from_secs(120),
            ca_file: None,
            proxy: None,
        }
    }
}

/// A transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The client could not be set up.
    #[error("cannot set up HTTP: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
    /// The text is not a URL that can be fetched.
    #[error("{url:?} is not an http or https URL")]
    Url {
        /// The text.
        url: String,
    },
    /// No connection, or it broke.
    #[error("GET {url}")]
    Transfer {
        /// The URL.
        url: String,
        /// The error of the transport.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that is neither the object nor "not there".
    #[error("GET {url}: server answered {status}")]
    Status {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server redirects in a way that is not followed.
    #[error("GET {url}: redirect to {location:?} is not followed: {reason}")]
    Redirect {
        /// The URL.
        url: String,
        /// Where the server points.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// More bytes than allowed.
    #[error("GET {url}: more than the {limit} bytes allowed")]
    TooLong {
        /// The URL.
        url: String,
        /// Bytes allowed.
        limit: u64,
    },
    /// Not finished in time.
    #[error("GET {url}: not finished after {seconds} s")]
    TooSlow {
        /// The URL.
        url: String,
        /// Seconds allowed.
        seconds: u64,
    },
    /// The target that arrived is not the one that metadata describe.
    #[error("GET {url}: not the target that metadata describe")]
    WrongTarget {
        /// The URL.
        url: String,
        /// The difference.
        source: MismatchError,
    },
    /// The repository does not have a target that its metadata list.
    #[error("GET {url}: the server does not have it")]
    MissingTarget {
        /// The URL.
        url: String,
    },
    /// The local file system failed.
    #[error("writing {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl HttpError {
    /// How long the server asked to wait, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn transfer(url: &Url, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Transfer {
            url: url.to_string(),
            source: source.into(),
        }
    }
}

/// Told of each stored piece of a target: bytes so far and in all. `false` asks to stop.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// An HTTP client; cheap to clone, connections are shared.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client,
    options: Arc<HttpOptions>,
}

impl Http {
    /// Sets up a client.
    ///
    /// # Errors
    /// [`HttpError::Setup`] for an unreadable CA file or a malformed proxy.
    pub fn new(options: HttpOptions) -> Result<Self, HttpError> {
        let setup = |reason: String| HttpError::Setup { reason };
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls::client_config(options.ca_file.as_deref()).map_err(setup)?)
            .user_agent(concat!("fwagent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .timeout(options.stall_timeout)
            // Followed by hand: each step must be bounded and must not leave https.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false);
        if let Some(proxy) = &options.proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|error| setup(format!("proxy: {error}")))?);
        }
        let client = builder.build().map_err(|error| setup(error.to_string()))?;
        Ok(Self {
            client,
            options: Arc::new(options),
        })
    }

    /// Fetches a whole object of at most `limit` bytes, within the time for metadata.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn get(&self, url: &str, etag: Option<&str>, limit: u64) -> Result<Answer, HttpError> {
        let start = Instant::now();
        let url = parse(url)?;
        let response = self.request(&url, |request| match etag {
            Some(etag) => request.header(IF_NONE_MATCH, etag),
            None => request,
        })?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if etag.is_some() => return Ok(Answer::NotModified),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(Answer::NotFound),
            _ => return Err(unexpected(&url, &response)),
        }
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        let etag = etag.filter(|etag| etag.len() <= ETAG_BYTES).map(str::to_owned);
        let bytes = self.read_bounded(response, &url, limit, start)?;
        Ok(Answer::Found { bytes, etag })
    }

    fn read_bounded(
        &self,
        mut response: Response,
        url: &Url,
        limit: u64,
        start: Instant,
    ) -> Result<Vec<u8>, HttpError> {
        let too_long = || HttpError::TooLong {
            url: url.to_string(),
            limit,
        };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = response
                .read(&mut buffer)
                .map_err(|error| HttpError::transfer(url, error))?;
            if length == 0 {
                return Ok(bytes);
            }
            if (bytes.len() + length) as u64 > limit {
                return Err(too_long());
            }
            if start.elapsed() > self.options.metadata_timeout {
                let seconds = self.options.metadata_timeout.as_secs();
                return Err(HttpError::TooSlow {
                    url: url.to_string(),
                    seconds,
                });
            }
            bytes.extend_from_slice(&buffer[..length]);
        }
    }

    /// Sends a request and follows redirects.
    fn request(
        &self,
        url: &Url,
        prepare: impl Fn(reqwest::blocking::RequestBuilder) -> reqwest::blocking::RequestBuilder,
    ) -> Result<Response, HttpError> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let sent = prepare(self.client.get(at.clone())).send();
            let response = sent.map_err(|error| HttpError::transfer(&at, error.without_url()))?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved {
                return Ok(response);
            }
            at = redirect(&at, response.headers())?;
        }
        Err(HttpError::Redirect {
            url: url.to_string(),
            location: at.to_string(),
            reason: "too many redirects",
        })
    }

    /// Downloads a target to `path`, which then has exactly the length and digests of `file`, durably. What an earlier
    /// attempt left beside it is continued. A file that already is the target is not fetched again.
    ///
    /// # Errors
    /// [`HttpError`]; what was received stays beside `path` for the next attempt, except when it was wrong.
    pub fn download(&self, url: &str, file: &TargetFile, path: &Path, progress: Progress<'_>) -> Result<(), HttpError> {
        let url = parse(url)?;
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| HttpError::Io { path, source }
        };
        if is_target(path, file).map_err(io_error(path))? {
            progress(file.length, file.length);
            return Ok(());
        }
        let partial = partial_path(path);
        let mut output = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial);
        let output = output.as_mut().map_err(|error| HttpError::Io {
            path: partial.clone(),
            source: io::Error::new(error.kind(), error.to_string()),
        })?;
        let mut transfer = Transfer {
            http: self,
            url: &url,
            file,
            output,
            path: &partial,
        };
        transfer.run(progress)?;
        output.sync_all().map_err(io_error(&partial))?;
        fwdurable::rename(&partial, path).map_err(io_error(path))
    }
}

/// What a server says of an object.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The object.
    Found {
        /// All of it.
        bytes: Vec<u8>,
        /// Its entity tag.
        etag: Option<String>,
    },
    /// It is still the one whose entity tag was sent.
    NotModified,
    /// It does not exist (404, or 403 as object stores say it).
    NotFound,
}

/// Where the unfinished download of `path` lies. The leading dot keeps it out of listings.
pub fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Whether `path` is a file with the target's length and digests.
fn is_target(path: &Path, target: &TargetFile) -> io::Result<bool> {
    let mut input = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if input.metadata()?.len() != target.length {
        return Ok(false);
    }
    let mut hasher = Hasher::for_checking(&target.hashes);
    hash(&mut input, &mut hasher, target.length)?;
    let (length, hashes) = hasher.finish();
    Ok(target.check(length, &hashes).is_ok())
}

fn hash(input: &mut impl Read, hasher: &mut Hasher, limit: u64) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    let mut input = input.take(limit);
    loop {
        let length = input.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..length]);
    }
}

/// One target on its way into its partial file.
struct Transfer<'a> {
    http: &'a Http,
    url: &'a Url,
    file: &'a TargetFile,
    output: &'a mut File,
    path: &'a Path,
}

impl Transfer<'_> {
    fn run(&mut self, progress: Progress<'_>) -> Result<(), HttpError> {
        let mut resumes = 0;
        loop {
            let resumed = self.stored()? > 0;
            match self.attempt(progress) {
                Ok(()) => return Ok(()),
                // What was there may be from another file; what came whole and is wrong will be wrong again.
                Err(HttpError::WrongTarget { .. }) if resumed && resumes == 0 => self.discard()?,
                Err(error @ (HttpError::WrongTarget { .. } | HttpError::TooLong { .. })) => {
                    self.discard()?;
                    return Err(error);
                }
                Err(HttpError::Transfer { .. }) if resumes < RESUMES && self.stored()? > 0 => {
                    // A server that sends nothing tells nobody of progress: then this is where a stop is heard.
                    if !progress(self.stored()?, self.file.length) {
                        return Err(HttpError::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
            resumes += 1;
        }
    }

    fn attempt(&mut self, progress: Progress<'_>) -> Result<(), HttpError> {
        let mut stored = self.stored()?;
        if stored > self.file.length {
            self.discard()?;
            stored = 0;
        }
        let mut hasher = Hasher::for_checking(&self.file.hashes);
        self.output.seek(SeekFrom::Start(0)).map_err(|error| self.io(error))?;
        hash(&mut *self.output, &mut hasher, stored).map_err(|error| self.io(error))?;
        if stored < self.file.length || self.file.length == 0 {
            self.receive(stored, &mut hasher, progress)?;
        }
        let (length, hashes) = hasher.finish();
        let wrong = |source| HttpError::WrongTarget {
            url: self.url.to_string(),
            source,
        };
        self.file.check(length, &hashes).map_err(wrong)
    }

    fn receive(&mut self, stored: u64, hasher: &mut Hasher, progress: Progress<'_>) -> Result<(), HttpError> {
        let mut response = self.http.request(self.url, |request| {
            if stored == 0 {
                request
            } else {
                request.header(RANGE, format!("bytes={stored}-"))
            }
        })?;
        let continues = match response.status() {
            StatusCode::PARTIAL_CONTENT if stored > 0 => content_range_start(response.headers()) == Some(stored),
            StatusCode::OK => stored == 0,
            StatusCode::RANGE_NOT_SATISFIABLE if stored > 0 => false,
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
                return Err(HttpError::MissingTarget {
                    url: self.url.to_string(),
                });
            }
            _ => return Err(unexpected(self.url, &response)),
        };
        if !continues {
            // The server ignores ranges, or gives another one: take the file from its beginning.
            self.discard()?;
            *hasher = Hasher::for_checking(&self.file.hashes);
            if response.status() != StatusCode::OK {
                response = self.http.request(self.url, |request| request)?;
                if response.status() != StatusCode::OK {
                    return Err(unexpected(self.url, &response));
                }
            }
        }
        self.copy(&mut response, hasher, progress)
    }

    fn copy(&mut self, response: &mut Response, hasher: &mut Hasher, progress: Progress<'_>) -> Result<(), HttpError> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = response
                .read(&mut buffer)
                .map_err(|error| HttpError::transfer(self.url, error))?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
            if hasher.length() > self.file.length {
                return Err(HttpError::TooLong {
                    url: self.url.to_string(),
                    limit: self.file.length,
                });
            }
            self.output
                .write_all(&buffer[..length])
                .map_err(|error| self.io(error))?;
            if !progress(hasher.length(), self.file.length) {
                return Err(HttpError::Stopped);
            }
        }
        if hasher.length() < self.file.length {
            let missing = format!(
                "connection closed after {} of {} bytes",
                hasher.length(),
                self.file.length
            );
            return Err(HttpError::transfer(self.url, missing));
        }
        Ok(())
    }

    fn stored(&self) -> Result<u64, HttpError> {
        Ok(self.output.metadata().map_err(|error| self.io(error))?.len())
    }

    fn discard(&mut self) -> Result<(), HttpError> {
        self.output.set_len(0).map_err(|error| self.io(error))?;
        self.output.seek(SeekFrom::Start(0)).map_err(|error| self.io(error))?;
        Ok(())
    }

    fn io(&self, source: io::Error) -> HttpError {
        HttpError::Io {
            path: self.path.to_owned(),
            source,
        }
    }
}

fn parse(url: &str) -> Result<Url, HttpError> {
    let parsed = Url::parse(url)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    parsed.ok_or_else(|| HttpError::Url { url: url.to_owned() })
}

fn redirect(at: &Url, headers: &HeaderMap) -> Result<Url, HttpError> {
    let location = headers
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .unwrap_or_default();
    let refused = |reason| HttpError::Redirect {
        url: at.to_string(),
        location: location.to_owned(),
        reason,
    };
    let next = at.join(location).map_err(|_| refused("not a URL"))?;
    match (at.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(next),
        _ => Err(refused("it leaves https")),
    }
}

fn unexpected(url: &Url, response: &Response) -> HttpError {
    HttpError::Status {
        url: url.to_string(),
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers()),
    }
}

/// `Retry-After` in seconds. The form with a date is passed over: a device's clock may be anything.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn content_range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

/// The metadata directory of a repository.
#[derive(Debug)]
pub struct MetadataSource {
    http: Http,
    base: String,
    known: Option<Known>,
    fetched_etag: Option<String>,
}

/// An object that an earlier cycle fetched, and its entity tag.
#[derive(Debug, Clone)]
pub struct Known {
    /// Object name.
    pub name: String,
    /// Entity tag that the server gave with it.
    pub etag: String,
    /// The object.
    pub bytes: Vec<u8>,
}

impl MetadataSource {
    /// Metadata below `base`; `known` is asked for conditionally.
    pub fn new(http: Http, base: &str, known: Option<Known>) -> Self {
        Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            known,
            fetched_etag: None,
        }
    }

    /// The entity tag of the timestamp that was fetched or confirmed last.
    pub fn timestamp_etag(&self) -> Option<&str> {
        self.fetched_etag.as_deref()
    }
}

impl Fetch for MetadataSource {
    type Error = HttpError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, HttpError> {
        let known = self.known.as_ref().filter(|known| known.name == name);
        let answer = self.http.get(
            &format!("{}/{name}", self.base),
            known.map(|known| known.etag.as_str()),
            max_length,
        )?;
        let (bytes, etag) = match answer {
            Answer::NotFound => return Ok(None),
            Answer::Found { bytes, etag } => (bytes, etag),
            Answer::NotModified => match known {
                Some(known) => (known.bytes.clone(), Some(known.etag.clone())),
                None => return Ok(None),
            },
        };
        if name == "timestamp.json" {
            self.fetched_etag = etag;
        }
        Ok(Some(bytes))
    }
}
