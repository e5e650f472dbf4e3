//! The access log: one JSON object a line and request, written when its answer has ended.
//!
//! ```text
//! {"bytes":512,"method":"GET","ms":1,"path":"/metadata/timestamp.json","remote":"192.0.2.1:4242","status":200,"time":"…"}
//! ```
//!
//! A publisher's request has the name of its token as `token`, and an answer of 500 or 503 its reason as `fault`. Header values are never logged, and so tokens are not. Control characters are escaped by JSON.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fwmeta::json::{Value, object};
use fwmeta::time::UtcSeconds;

use crate::config::AccessLogTo;

/// Bytes of a path in the log; longer ones are cut.
const PATH_BYTES: usize = 1024;

type Writer = Arc<Mutex<Box<dyn Write + Send>>>;

/// Where lines go.
#[derive(Clone)]
pub struct AccessLog {
    writer: Option<Writer>,
    last_fault: Arc<Mutex<String>>,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").finish_non_exhaustive()
    }
}

impl AccessLog {
    /// Opens the log.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(to: &AccessLogTo) -> io::Result<Self> {
        let writer: Box<dyn Write + Send> = match to {
            AccessLogTo::Nowhere => return Ok(Self::new(None)),
            AccessLogTo::Stdout => Box::new(io::stdout()),
            AccessLogTo::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        Ok(Self::new(Some(writer)))
    }

    fn new(writer: Option<Box<dyn Write + Send>>) -> Self {
        Self {
            writer: writer.map(|writer| Arc::new(Mutex::new(writer))),
            last_fault: Arc::default(),
        }
    }

    /// Tells the operator on standard error why the server could not do what it should; the same reason only once until
    /// there is another.
    pub fn fault(&self, reason: &str) {
        let mut last = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != reason {
            reason.clone_into(&mut last);
            let _ = writeln!(io::stderr(), "fwserve: {reason}");
        }
    }

    /// Begins the entry of a request; `None` when nothing is logged.
    pub fn begin(&self, remote: SocketAddr, method: &str, path: &str) -> Option<Entry> {
        let writer = self.writer.clone()?;
        let mut end = path.len().min(PATH_BYTES);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        Some(Entry {
            writer,
            remote,
            method: method.to_owned(),
            path: path[..end].to_owned(),
            begun: Instant::now(),
            status: 0,
            bytes: 0,
            token: None,
            fault: None,
        })
    }
}

/// A request in progress. Its line is written on drop, so also when the client goes away.
pub struct Entry {
    writer: Writer,
    remote: SocketAddr,
    method: String,
    path: String,
    begun: Instant,
    /// Status of the answer; 0 when there was none.
    pub status: u16,
    /// Bytes of body handed to the connection.
    pub bytes: u64,
    /// Name of the token of a publisher's request.
    pub token: Option<String>,
    /// Why the server could not do what it should.
    pub fault: Option<String>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = object([
            (
                "time",
                UtcSeconds(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
                    .to_string()
                    .into(),
            ),
            ("remote", self.remote.to_string().into()),
            ("method", self.method.as_str().into()),
            ("path", self.path.as_str().into()),
            ("status", u64::from(self.status).into()),
            ("bytes", self.bytes.into()),
            (
                "ms",
                u64::try_from(self.begun.elapsed().as_millis())
                    .unwrap_or(u64::MAX)
                    .into(),
            ),
        ]);
        if let Value::Object(members) = &mut line {
            for (name, value) in [("token", self.token.take()), ("fault", self.fault.take())] {
                members.extend(value.map(|value| (name.to_owned(), value.into())));
            }
        }
        let mut line = line.to_json();
        line.push('\n');
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not stop the serving of updates.
        let _ = writer.write_all(line.as_bytes()).and_then(|()| writer.flush());
    }
}
