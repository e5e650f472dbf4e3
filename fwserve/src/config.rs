//! What a server is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The repository directory, which holds `metadata/` and `targets/`.
    pub repo: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key; without them the server speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The publish API; without it the server is read-only and has no `/api`.
    pub publish: Option<PublishConfig>,
    /// Where the access log goes.
    pub access_log: AccessLogTo,
    /// Seconds for which caches may use `timestamp.json` without asking.
    pub timestamp_max_age: u32,
    /// Bounds on connections.
    pub limits: Limits,
}

/// PEM files of a TLS server.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, the server's own first.
    pub certificates: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// The publish API.
#[derive(Debug, Clone)]
pub struct PublishConfig {
    /// File of [`crate::tokens`]; read again when it changes.
    pub token_file: PathBuf,
    /// The root from which the first publication is judged. Without it only a directory that already holds a repository
    /// takes publications.
    pub trusted_root: Option<PathBuf>,
    /// Longest object, in bytes.
    pub max_object: u64,
    /// Whether tokens may travel over plain HTTP to an address that is not loopback, as behind a proxy.
    pub allow_plain_http: bool,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTo {
    /// Nowhere.
    Nowhere,
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

/// Bounds on connections, each against one way of tying the server up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at one time; more wait to be accepted.
    pub connections: usize,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Time for the TLS handshake and the first request head together, and for each later HTTP/1 head.
    pub head_timeout: Duration,
    /// Time for which a connection may be silent in both directions.
    pub idle_timeout: Duration,
    /// Time for which a client may take no byte of an answer.
    pub write_timeout: Duration,
    /// Time that requests in progress get at shutdown.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            head_bytes: 16 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// A plain, read-only server of `repo` on a free loopback port, without an access log.
    pub fn read_only(repo: impl Into<PathBuf>) -> Self {
        Self {
            repo: repo.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            publish: None,
            access_log: AccessLogTo::Nowhere,
            timestamp_max_age: 60,
            limits: Limits::default(),
        }
    }
}
