//! A server for reports over a real loopback socket, as good or bad as a test wants: HTTP/1.1, one thread a connection, one
//! request each.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How a report is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It is taken.
    Take,
    /// It is taken, and the answer is lost.
    TakeAndHangUp,
    /// It is taken, and the answer comes so late.
    TakeLate(Duration),
    /// It is taken, and the answer is without end.
    TakeEndless,
    /// It is not taken: this status, and these header lines.
    Status(u16, &'static str),
    /// It is not even read.
    HangUp,
}

/// A report as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The idempotency key.
    pub key: String,
    /// The statement.
    pub body: Vec<u8>,
    /// Whether the server took it.
    pub taken: bool,
}

/// The server. Serves until the end of the test process.
#[derive(Debug, Clone)]
pub struct ReportServer {
    url: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    next: VecDeque<Manner>,
    then: Option<Manner>,
    received: Vec<Received>,
}

impl ReportServer {
    /// Starts one that takes everything.
    ///
    /// # Panics
    /// When no loopback port can be had.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("the address of a bound socket");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Self {
            url: format!("http://{address}/reports"),
            shared,
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where reports are sent.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers the next requests so, in order, and all after them in the manner `then`.
    pub fn behave(&self, next: &[Manner], then: Manner) {
        let mut shared = self.shared();
        shared.next = next.iter().copied().collect();
        shared.then = Some(then);
    }

    /// Everything that came.
    pub fn received(&self) -> Vec<Received> {
        self.shared().received.clone()
    }
}

fn answer(mut stream: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    let manner = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let next = shared.next.pop_front();
        next.or(shared.then).unwrap_or(Manner::Take)
    };
    if manner == Manner::HangUp {
        return Ok(());
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut key, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "idempotency-key" => key = value.trim().to_owned(),
                "content-length" => length = value.trim().parse().unwrap_or(0),
                _ => {}
            }
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let taken = !matches!(manner, Manner::Status(..));
    shared
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .received
        .push(Received { key, body, taken });
    let mut say = |status: &str, more: &str| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n{more}\r\n");
        stream.write_all(head.as_bytes())
    };
    match manner {
        Manner::Take => say("204 No Content", ""),
        Manner::TakeAndHangUp | Manner::HangUp => Ok(()),
        Manner::TakeLate(pause) => {
            thread::sleep(pause);
            say("200 OK", "")
        }
        Manner::Status(status, more) => say(&format!("{status} No"), more),
        Manner::TakeEndless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
    }
}
