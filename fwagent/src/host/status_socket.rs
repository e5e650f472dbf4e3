//! The Unix socket on which a running agent says how it is: one JSON object a line, both ways, read-only.
//!
//! ```text
//! {"get":"status"}     what `fwagent status --json` prints          {"get":"explain"}  likewise
//! {"watch":"events"}   {"watching":"events"}, then what `fwagent run --json` prints, as it happens
//! anything else        {"error":"usage", …}, and the end
//! ```
//!
//! What it decides: who is heard, and that nobody holds the agent up. A client has one thread, of a bounded number; lines
//! are bounded; an event is given to the kernel or the client is dropped. What it does not decide: what an answer says, and
//! who may connect, which is the file's mode and owner.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use fwmeta::json::{Doc, Value, object};
use rustix::fs::Mode;
use rustix::process::umask;

/// Clients at once.
pub const CLIENTS: usize = 8;
/// Longest request, in bytes.
pub const REQUEST_BYTES: u64 = 4096;
/// Time for a client to say what it wants, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for the kernel to take an event for a client; it buffers some hundred of them.
const EVENT_PATIENCE: Duration = Duration::from_millis(1);
/// Stack of a thread, in bytes.
const STACK: usize = 256 * 1024;

/// Where the socket is, and whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// The file.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner; the agent's when absent.
    pub uid: Option<u32>,
    /// Its group; the agent's when absent.
    pub gid: Option<u32>,
}

/// Who watches events; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    watchers: Arc<Mutex<Watchers>>,
}

#[derive(Debug, Default)]
struct Watchers {
    next: u64,
    streams: Vec<(u64, UnixStream)>,
}

impl Hub {
    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a line to everybody who watches. Whoever does not read is dropped.
    pub fn publish(&self, event: &Value) {
        let streams = &mut self.watchers().streams;
        if streams.is_empty() {
            return;
        }
        let line = format!("{}\n", event.to_json());
        streams.retain_mut(|(_, stream)| {
            let kept = stream.write_all(line.as_bytes()).is_ok();
            if !kept {
                // Its thread waits for the end.
                let _ = stream.shutdown(Shutdown::Both);
            }
            kept
        });
    }

    /// Adds a client, whose first line comes before any event, under a number.
    fn add(&self, mut stream: UnixStream) -> io::Result<u64> {
        stream.set_write_timeout(Some(EVENT_PATIENCE))?;
        let mut watchers = self.watchers();
        writeln!(stream, "{}", object([("watching", "events".into())]).to_json())?;
        let number = watchers.next;
        watchers.next += 1;
        watchers.streams.push((number, stream));
        Ok(number)
    }

    fn remove(&self, number: u64) {
        self.watchers().streams.retain(|(other, _)| *other != number);
    }
}

/// Answers `status` and `explain`.
pub type Answer = dyn Fn(&str) -> Option<Value> + Send + Sync;

/// A socket that is listened on; the file goes with it.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
    inode: u64,
}

impl StatusSocket {
    /// Listens until the process ends.
    ///
    /// # Errors
    /// When something else has the place, another program listens there, or the file system fails.
    pub fn open(config: &SocketConfig, hub: Hub, answer: Arc<Answer>) -> io::Result<Self> {
        let listener = bind(config)?;
        let inode = fs::symlink_metadata(&config.path)?.ino();
        let clients = Arc::new(AtomicUsize::new(0));
        thread::Builder::new().stack_size(STACK).spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => admit(stream, &clients, &hub, &answer),
                    // Out of descriptors, say: then later.
                    Err(_) => thread::sleep(Duration::from_secs(1)),
                }
            }
        })?;
        Ok(Self {
            path: config.path.clone(),
            inode,
        })
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // The next start replaces what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket at its place in one step, with its mode and owner from the first moment. What a crash left is replaced;
/// nothing else is.
fn bind(config: &SocketConfig) -> io::Result<UnixListener> {
    let path = &config.path;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something is there that is no socket",
            ));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another program listens there",
                ));
            }
        },
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(&temporary);
    umask(before);
    let placed = bound.and_then(|listener| {
        if config.uid.is_some() || config.gid.is_some() {
            chown(&temporary, config.uid, config.gid)?;
        }
        fs::set_permissions(&temporary, fs::Permissions::from_mode(config.mode))?;
        fs::rename(&temporary, path)?;
        Ok(listener)
    });
    if placed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    placed
}

fn admit(mut stream: UnixStream, clients: &Arc<AtomicUsize>, hub: &Hub, answer: &Arc<Answer>) {
    struct Place(Arc<AtomicUsize>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let place = Place(Arc::clone(clients));
    if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
        let _ = stream.set_write_timeout(Some(EVENT_PATIENCE));
        let _ = writeln!(stream, "{}", error("busy", "there are too many clients").to_json());
        return;
    }
    let (hub, answer) = (hub.clone(), Arc::clone(answer));
    // Without a thread there is no place taken, and the client sees the end.
    let _ = thread::Builder::new().stack_size(STACK).spawn(move || {
        let _place = place;
        // What a client does is its own affair.
        let _ = serve(stream, &hub, &*answer);
    });
}

fn serve(mut stream: UnixStream, hub: &Hub, answer: &Answer) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = Vec::new();
        let length = (&mut reader).take(REQUEST_BYTES).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        let reply = match request(&line) {
            Some(Request::Get(what)) => answer(&what),
            Some(Request::Watch) => {
                let watcher = stream.try_clone()?;
                let number = hub.add(watcher)?;
                // Whatever it says now, it is the end of watching.
                let _ = stream.set_read_timeout(None).and_then(|()| reader.read(&mut [0; 1]));
                hub.remove(number);
                return Ok(());
            }
            None => None,
        };
        let known = reply.is_some();
        let usage = || {
            let known = "{\"get\":\"status\"}, {\"get\":\"explain\"}, {\"watch\":\"events\"}";
            error("usage", &format!("not a request; these are: {known}"))
        };
        writeln!(stream, "{}", reply.unwrap_or_else(usage).to_json())?;
        if !known {
            return Ok(());
        }
    }
}

enum Request {
    Get(String),
    Watch,
}

fn request(line: &[u8]) -> Option<Request> {
    let value = Doc::parse(line.strip_suffix(b"\n")?).ok()?.root().to_value().ok()?;
    let entries = value.as_object()?;
    let (name, what) = entries.iter().next().filter(|_| entries.len() == 1)?;
    match (name.as_str(), what.as_str()?) {
        ("get", what) => Some(Request::Get(what.to_owned())),
        ("watch", "events") => Some(Request::Watch),
        _ => None,
    }
}

fn error(word: &str, message: &str) -> Value {
    object([("error", word.into()), ("message", message.into())])
}

/// A client's end, with the first line of the answer to `request`.
///
/// # Errors
/// When nobody listens, or no answer comes.
pub fn ask(path: &Path, request: &Value) -> io::Result<(String, BufReader<UnixStream>)> {
    /// Longest line that a client takes, in bytes.
    const ANSWER_BYTES: u64 = 16 * 1024 * 1024;
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{}", request.to_json())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    (&mut reader).take(ANSWER_BYTES).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the agent hung up"));
    }
    Ok((line.trim_end().to_owned(), reader))
}

#[cfg(test)]
mod tests;
