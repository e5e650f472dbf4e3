//! Serves a directory over a real loopback socket, and lies about what a test names: HTTP/1.1, one thread a connection,
//! one request each. Single ranges are honoured.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How an object is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lie {
    /// With these bytes.
    Body(Vec<u8>),
    /// With this status, these header lines and no body.
    Status(u16, &'static str),
    /// With so many of its bytes, of which all were promised.
    CutAfter(usize),
    /// With what it is, a little at a time.
    Drip,
    /// With bytes without end.
    Endless,
    /// With a redirect to itself.
    RedirectLoop,
}

/// The server. Serves until the end of the test process.
#[derive(Debug, Clone)]
pub struct LieServer {
    url: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    lies: Vec<(String, Lie)>,
    log: Vec<String>,
}

impl LieServer {
    /// Starts serving the directory.
    ///
    /// # Panics
    /// When no loopback port can be had.
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("the address of a bound socket");
        let shared = Arc::new(Mutex::new(Shared {
            root: root.to_owned(),
            lies: Vec::new(),
            log: Vec::new(),
        }));
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                // A client that hangs up in the middle is what some lies lead to.
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Self {
            url: format!("http://{address}"),
            shared,
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Base URL, without a final slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Lies about every object whose path ends so; the earlier lies end.
    pub fn lie(&self, suffix: &str, lie: Lie) {
        self.shared().lies = vec![(suffix.to_owned(), lie)];
    }

    /// Ends all lies.
    pub fn tell_the_truth(&self) {
        self.shared().lies.clear();
    }

    /// Serves another directory from now on.
    pub fn serve(&self, root: &Path) {
        self.shared().root = root.to_owned();
    }

    /// Takes the paths that were asked for since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.shared().log)
    }
}

fn answer(mut stream: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut header, mut from) = (String::new(), None);
    while reader.read_line(&mut header)? > 2 {
        let line = header.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim().trim_end_matches('-').parse::<usize>().ok();
        }
        header.clear();
    }
    let (file, lie) = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.log.push(path.clone());
        let found = shared.lies.iter().find(|(suffix, _)| path.ends_with(suffix));
        let lie = found.map(|(_, lie)| lie.clone());
        (shared.root.join(path.trim_start_matches('/')), lie)
    };
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    match lie {
        Some(Lie::Body(bytes)) => {
            stream.write_all(head("200 OK", &format!("Content-Length: {}\r\n", bytes.len())).as_bytes())?;
            stream.write_all(&bytes)
        }
        Some(Lie::Status(status, more)) => {
            let more = format!("Content-Length: 0\r\n{more}");
            stream.write_all(head(&format!("{status} Lie"), &more).as_bytes())
        }
        Some(Lie::RedirectLoop) => {
            let more = format!("Content-Length: 0\r\nLocation: {path}\r\n");
            stream.write_all(head("302 Found", &more).as_bytes())
        }
        Some(Lie::Endless) => {
            stream.write_all(head("200 OK", "").as_bytes())?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
        lie @ (None | Some(Lie::CutAfter(_) | Lie::Drip)) => {
            let Ok(bytes) = std::fs::read(file) else {
                return stream.write_all(head("404 Not Found", "Content-Length: 0\r\n").as_bytes());
            };
            let start = from.unwrap_or(0).min(bytes.len());
            let (all, part) = (bytes.len(), &bytes[start..]);
            let mut more = format!("Content-Length: {}\r\n", part.len());
            let status = if from.is_some() {
                more.push_str(&format!(
                    "Content-Range: bytes {start}-{}/{all}\r\n",
                    all.saturating_sub(1)
                ));
                "206 Partial Content"
            } else {
                "200 OK"
            };
            stream.write_all(head(status, &more).as_bytes())?;
            let sent = match lie {
                Some(Lie::CutAfter(length)) => length.saturating_sub(start).min(part.len()),
                _ => part.len(),
            };
            if lie == Some(Lie::Drip) {
                for drop in part.chunks(1024) {
                    stream.write_all(drop)?;
                    thread::sleep(Duration::from_millis(20));
                }
                return Ok(());
            }
            stream.write_all(&part[..sent])
        }
    }
}
