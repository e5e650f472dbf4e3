//! The transport against servers that answer ranges, conditions and redirects well, badly or not at all.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fwagent::host::http::{Answer, Http, HttpError, HttpOptions, partial_path};
use fwmeta::target::TargetFile;

const CONTENT: &[u8] = b"0123456789abcdef";

/// Answers the n-th request with the n-th of `replies` and then closes; the requests as received.
fn serve(replies: Vec<Vec<u8>>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/object", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    thread::spawn(move || {
        for reply in replies {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            while reader.read_line(&mut request).unwrap() > 2 {}
            log.lock().unwrap().push(request.to_ascii_lowercase());
            // The client may hang up early.
            let _ = stream.write_all(&reply);
        }
    });
    (url, requests)
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn http() -> Http {
    Http::new(HttpOptions::default()).unwrap()
}

fn download(url: &str, path: &Path) -> Result<(), HttpError> {
    http().download(url, &TargetFile::of_bytes(CONTENT), path, &mut |_, _| true)
}

/// Downloads with `stored` bytes left by an earlier attempt; the result must be the target. Gives the requests.
fn resumed(stored: &[u8], replies: Vec<Vec<u8>>) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("target");
    std::fs::write(partial_path(&path), stored).unwrap();
    let (url, requests) = serve(replies);
    download(&url, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert!(!partial_path(&path).exists());
    requests.lock().unwrap().clone()
}

#[test]
fn an_unfinished_download_is_continued() {
    let rest = reply("206 Partial Content", "Content-Range: bytes 4-15/16\r\n", &CONTENT[4..]);
    let requests = resumed(&CONTENT[..4], vec![rest]);
    assert_eq!(requests.len(), 1);
    assert!(requests[0].contains("range: bytes=4-"), "{requests:?}");
}

#[test]
fn a_server_that_ignores_ranges_is_taken_from_the_beginning() {
    assert_eq!(resumed(&CONTENT[..4], vec![reply("200 OK", "", CONTENT)]).len(), 1);
}

#[test]
fn another_range_than_asked_for_is_not_appended() {
    let shifted = reply("206 Partial Content", "Content-Range: bytes 2-15/16\r\n", &CONTENT[2..]);
    let requests = resumed(&CONTENT[..4], vec![shifted, reply("200 OK", "", CONTENT)]);
    assert_eq!(requests.len(), 2);
    assert!(!requests[1].contains("range:"), "{requests:?}");
}

#[test]
fn leftovers_of_another_file_are_thrown_away() {
    let rest = reply("206 Partial Content", "Content-Range: bytes 4-15/16\r\n", &CONTENT[4..]);
    let requests = resumed(b"XXXX", vec![rest, reply("200 OK", "", CONTENT)]);
    assert_eq!(requests.len(), 2);
    assert!(!requests[1].contains("range:"), "{requests:?}");
}

#[test]
fn a_broken_transfer_is_resumed_by_itself() {
    let mut broken = reply("200 OK", "", CONTENT);
    broken.truncate(broken.len() - 6);
    let rest = reply(
        "206 Partial Content",
        "Content-Range: bytes 10-15/16\r\n",
        &CONTENT[10..],
    );
    let requests = resumed(b"", vec![broken, rest]);
    assert!(requests[1].contains("range: bytes=10-"), "{requests:?}");
}

#[test]
fn a_stopped_download_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("target");
    let (url, _) = serve(vec![reply("200 OK", "", CONTENT)]);
    let stopped = http().download(&url, &TargetFile::of_bytes(CONTENT), &path, &mut |_, _| false);
    assert!(matches!(stopped, Err(HttpError::Stopped)), "{stopped:?}");
    assert!(!path.exists());
    let stored = std::fs::read(partial_path(&path)).unwrap();
    assert!(!stored.is_empty() && CONTENT.starts_with(&stored), "{stored:?}");
}

#[test]
fn a_broken_transfer_is_not_resumed_after_a_stop() {
    let mut broken = reply("200 OK", "", CONTENT);
    broken.truncate(broken.len() - 6);
    let (url, requests) = serve(vec![broken; 4]);
    let dir = tempfile::tempdir().unwrap();
    let file = TargetFile::of_bytes(CONTENT);
    let mut calls = 0;
    let stopped = http().download(&url, &file, &dir.path().join("target"), &mut |_, _| {
        calls += 1;
        calls < 2
    });
    assert!(matches!(stopped, Err(HttpError::Stopped)), "{stopped:?}");
    assert_eq!((calls, requests.lock().unwrap().len()), (2, 1));
}

#[test]
fn an_unchanged_object_is_not_sent_again() {
    let etag = "ETag: \"v1\"\r\n";
    let (url, requests) = serve(vec![reply("200 OK", etag, b"{}"), reply("304 Not Modified", etag, b"")]);
    let found = Answer::Found {
        bytes: b"{}".to_vec(),
        etag: Some("\"v1\"".to_owned()),
    };
    assert_eq!(http().get(&url, None, 100).unwrap(), found);
    assert_eq!(http().get(&url, Some("\"v1\""), 100).unwrap(), Answer::NotModified);
    assert!(requests.lock().unwrap()[1].contains("if-none-match: \"v1\""));
}

#[test]
fn not_modified_without_being_asked_is_an_error() {
    let (url, _) = serve(vec![reply("304 Not Modified", "", b"")]);
    let error = http().get(&url, None, 100).unwrap_err();
    assert!(matches!(error, HttpError::Status { status: 304, .. }), "{error:?}");
}

#[test]
fn retry_after_is_heeded_for_a_day_at_most() {
    for (header, expected) in [
        ("Retry-After: 120\r\n", Some(Duration::from_secs(120))),
        ("Retry-After: 99999999\r\n", Some(Duration::from_secs(86400))),
        ("Retry-After: soon\r\n", None),
        ("", None),
    ] {
        let (url, _) = serve(vec![reply("503 Service Unavailable", header, b"")]);
        let error = http().get(&url, None, 100).unwrap_err();
        assert!(matches!(error, HttpError::Status { status: 503, .. }), "{error:?}");
        assert_eq!(error.retry_after(), expected, "{header:?}");
    }
}

#[test]
fn only_missing_and_forbidden_mean_not_there() {
    for status in ["404 Not Found", "403 Forbidden"] {
        let (url, _) = serve(vec![reply(status, "", b"")]);
        assert_eq!(http().get(&url, None, 100).unwrap(), Answer::NotFound, "{status}");
    }
    let (url, _) = serve(vec![reply("410 Gone", "", b"")]);
    assert!(matches!(
        http().get(&url, None, 100),
        Err(HttpError::Status { status: 410, .. })
    ));
}

#[test]
fn the_limit_is_exact() {
    let (url, _) = serve(vec![reply("200 OK", "", CONTENT), reply("200 OK", "", CONTENT)]);
    assert!(http().get(&url, None, 16).is_ok());
    assert!(matches!(
        http().get(&url, None, 15),
        Err(HttpError::TooLong { limit: 15, .. })
    ));
}

#[test]
fn a_redirect_to_another_scheme_is_refused() {
    let (url, _) = serve(vec![reply("302 Found", "Location: file:///etc/hostname\r\n", b"")]);
    let error = http().get(&url, None, 100).unwrap_err();
    assert!(matches!(error, HttpError::Redirect { .. }), "{error:?}");
}

#[test]
fn a_silent_server_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/object", listener.local_addr().unwrap());
    let options = HttpOptions {
        stall_timeout: Duration::from_millis(200),
        ..HttpOptions::default()
    };
    let start = Instant::now();
    let error = Http::new(options).unwrap().get(&url, None, 100).unwrap_err();
    assert!(matches!(error, HttpError::Transfer { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
