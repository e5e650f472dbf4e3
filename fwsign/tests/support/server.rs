//! A small server that speaks the publish API, and can be told to misbehave. It judges nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub const TOKEN: &str = "correct-horse-battery-staple";

/// How to answer a request instead of doing what it asks.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Takes this many bytes of the body, keeps them, and closes the connection without an answer.
    Break(usize),
    /// Does what is asked, and closes the connection without an answer.
    DoAndBreak,
    /// Answers this, with these header lines and body.
    Answer(u16, &'static str, &'static str),
}

#[derive(Debug, Default)]
pub struct State {
    /// Complete objects.
    pub objects: BTreeMap<String, Vec<u8>>,
    pub parts: BTreeMap<String, Vec<u8>>,
    /// Published files and their contents.
    pub files: BTreeMap<String, Vec<u8>>,
    /// `METHOD PATH` of each request.
    pub requests: Vec<String>,
    /// Values of `Authorization`.
    pub tokens: Vec<String>,
    /// Faults for requests whose `METHOD PATH` begins with the text; used up in order.
    pub faults: VecDeque<(&'static str, Fault)>,
}

#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while let Some(true) = serve(stream.as_ref().unwrap(), &shared) {});
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn fault(&self, request: &'static str, fault: Fault) {
        self.state.lock().unwrap().faults.push_back((request, fault));
    }

    /// How many requests began with this.
    pub fn count(&self, request: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|line| line.starts_with(request)).count()
    }

    pub fn published(&self) -> BTreeMap<String, Vec<u8>> {
        self.state.lock().unwrap().files.clone()
    }
}

/// Serves one request; `Some(true)` when the connection can be used again.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> Option<bool> {
    let mut reader = BufReader::new(stream);
    let request = head(&mut reader)?;
    let line = format!("{} {}", request.method, request.path);
    let length: usize = request
        .headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(line.clone());
        state.tokens.extend(request.headers.get("authorization").cloned());
        let at = state.faults.iter().position(|(prefix, _)| line.starts_with(prefix));
        at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
    };
    let mut body = vec![0; length];
    match fault {
        Some(Fault::Break(bytes)) => {
            body.truncate(bytes);
            reader.read_exact(&mut body).unwrap();
            if request.method == "PUT" {
                let object = request.path.rsplit('/').next().unwrap().to_owned();
                state.lock().unwrap().parts.entry(object).or_default().extend(body);
            }
            None
        }
        Some(Fault::Answer(status, headers, text)) => {
            reader.read_exact(&mut body).unwrap();
            answer(stream, &request, status, headers, text)
        }
        fault => {
            reader.read_exact(&mut body).unwrap();
            let (status, headers, text) = if request.headers.get("authorization") == Some(&format!("Bearer {TOKEN}")) {
                perform(&mut state.lock().unwrap(), &request, body)
            } else {
                (401, String::new(), String::new())
            };
            if fault.is_some() {
                return None;
            }
            answer(stream, &request, status, &headers, &text)
        }
    }
}

fn head(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(Request { method, path, headers });
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
}

fn answer(mut stream: &TcpStream, request: &Request, status: u16, headers: &str, text: &str) -> Option<bool> {
    let length = if request.method == "HEAD" { 0 } else { text.len() };
    let head = format!("HTTP/1.1 {status} x\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&text.as_bytes()[..length]).ok()?;
    Some(true)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn perform(state: &mut State, request: &Request, body: Vec<u8>) -> (u16, String, String) {
    let none = String::new;
    if request.path == "/api/v1/repository" {
        let timestamp = state.files.get("metadata/timestamp.json").map(|bytes| {
            let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            serde_json::json!({"version": value["signed"]["version"], "sha256": sha256(bytes)})
        });
        let snapshot = state.files.get("metadata/timestamp.json").map(|bytes| {
            let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            value["signed"]["meta"]["snapshot.json"]["version"].clone()
        });
        let roots = state.files.keys().filter(|name| name.ends_with(".root.json")).count();
        let state = serde_json::json!({"timestamp": timestamp, "root_version": roots, "snapshot_version": snapshot});
        return (200, none(), state.to_string());
    }
    if let Some(bytes) = state.files.get(request.path.trim_start_matches('/')) {
        return (200, none(), String::from_utf8(bytes.clone()).unwrap());
    }
    if request.path == "/api/v1/publish" {
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let current = state.files.get("metadata/timestamp.json").map(|bytes| sha256(bytes));
        if value["base"].as_str() != current.as_deref() {
            return (
                409,
                none(),
                r#"{"error":"conflict","reason":"published timestamp is another"}"#.to_owned(),
            );
        }
        for (name, digest) in value["files"].as_object().unwrap() {
            let bytes = state
                .objects
                .get(digest.as_str().unwrap())
                .expect("everything was uploaded");
            state.files.insert(name.clone(), bytes.clone());
        }
        let timestamp = &state.files["metadata/timestamp.json"];
        let version: serde_json::Value = serde_json::from_slice(timestamp).unwrap();
        let text = serde_json::json!({
            "timestamp": {"version": version["signed"]["version"], "sha256": sha256(timestamp)}, "ignored": [],
        });
        return (200, none(), text.to_string());
    }
    let object = request.path.strip_prefix("/api/v1/objects/").unwrap().to_owned();
    if state.objects.contains_key(&object) {
        let status = if request.method == "PUT" { 201 } else { 200 };
        return (status, none(), none());
    }
    let have = state.parts.get(&object).map_or(0, Vec::len);
    let at = |offset: usize| format!("Upload-Offset: {offset}\r\n");
    if request.method == "HEAD" {
        return (404, at(have), none());
    }
    let number = |name: &str| request.headers[name].parse::<usize>().unwrap();
    if number("upload-offset") != have {
        let text = r#"{"error":"conflict","reason":"upload is elsewhere"}"#;
        return (409, at(have), text.to_owned());
    }
    let part = state.parts.entry(object.clone()).or_default();
    part.extend(body);
    if part.len() < number("upload-length") {
        return (202, at(part.len()), none());
    }
    let bytes = state.parts.remove(&object).unwrap();
    if sha256(&bytes) != object {
        return (
            422,
            none(),
            r#"{"error":"refused","reason":"sha256 of the upload is another"}"#.to_owned(),
        );
    }
    state.objects.insert(object, bytes);
    (201, none(), none())
}
