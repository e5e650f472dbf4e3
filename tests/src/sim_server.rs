//! Serves a [`RepoSim`] over a real loopback socket: HTTP/1.1, one thread a connection, one request each.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::repo_sim::{Lie, RepoSim};

/// A repository that a process can be pointed at. Serves until the end of the test process.
#[derive(Debug)]
pub struct SimServer {
    url: String,
    repo: Arc<Mutex<RepoSim>>,
}

impl SimServer {
    /// Starts serving.
    ///
    /// # Panics
    /// When no loopback port can be had.
    pub fn start(repo: RepoSim) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let url = format!(
            "http://{}",
            listener.local_addr().expect("the address of a bound socket")
        );
        let repo = Arc::new(Mutex::new(repo));
        let served = Arc::clone(&repo);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let repo = Arc::clone(&served);
                // A client that hangs up in the middle is what some tests want.
                thread::spawn(move || answer(stream, &repo));
            }
        });
        Self { url, repo }
    }

    /// The repository, to be edited between requests.
    pub fn repo(&self) -> MutexGuard<'_, RepoSim> {
        self.repo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Base URL of the metadata, with a final slash as some callers give it.
    pub fn metadata_url(&self) -> String {
        format!("{}/metadata/", self.url)
    }

    /// Base URL of the targets, with a final slash.
    pub fn targets_url(&self) -> String {
        format!("{}/targets/", self.url)
    }
}

fn answer(mut stream: TcpStream, repo: &Mutex<RepoSim>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (object, lie) = repo
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .answer(path.trim_start_matches('/'));
    match (object, lie) {
        (Some(bytes), None) => respond(&mut stream, "200 OK", bytes.len(), &bytes),
        (None, None) => respond(&mut stream, "404 Not Found", 0, b""),
        (_, Some(Lie::Status(status))) => respond(&mut stream, &format!("{status} Lie"), 0, b""),
        (object, Some(Lie::Truncated)) => {
            let bytes = object.unwrap_or_default();
            respond(&mut stream, "200 OK", bytes.len(), &bytes[..bytes.len() / 2])
        }
        (_, Some(Lie::RedirectLoop)) => {
            let head = "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n";
            stream.write_all(format!("{head}Location: {path}\r\n\r\n").as_bytes())
        }
        (_, Some(Lie::Endless)) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
    }
}

fn respond(stream: &mut TcpStream, status: &str, length: usize, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
