//! A running server over real sockets: what it gives, what it refuses, and how it ends.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use fwserve::config::AccessLogTo;
use fwserve::{Config, Running};
use support::{Vendor, connect, get, parse, raw, request, sha256, write};

struct Served {
    dir: tempfile::TempDir,
    running: Running,
    files: support::Files,
}

fn serve(change: impl FnOnce(&mut Config)) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let mut vendor = Vendor::new();
    let mut files = vendor.release("p/1/small", b"small target");
    files.extend(vendor.release(
        "p/1/large.img",
        &(0..3_000_000u32).map(|n| (n >> 8) as u8).collect::<Vec<_>>(),
    ));
    files.insert("metadata/1.root.json".to_owned(), vendor.root());
    files.insert("metadata/1.a%2Fb.json".to_owned(), b"{}".to_vec());
    write(dir.path(), &files);
    fs::write(dir.path().join(".lock"), "").unwrap();
    let mut config = Config::read_only(dir.path());
    change(&mut config);
    let running = fwserve::start(config).unwrap();
    Served { dir, running, files }
}

#[test]
fn every_file_is_served_as_it_is() {
    let served = serve(|_| {});
    let address = served.running.address();
    for (name, bytes) in &served.files {
        let path = format!("/{name}");
        let answer = get(address, &path, &[]);
        assert_eq!((answer.status, &answer.body), (200, bytes), "{name}");
        let etag = format!("\"{}\"", sha256(bytes));
        assert_eq!(answer.header("etag"), Some(etag.as_str()));
        let caching = answer.header("cache-control").unwrap();
        if name.ends_with("timestamp.json") {
            assert_eq!(caching, "public, max-age=60, must-revalidate");
        } else {
            assert_eq!(caching, "public, max-age=31536000, immutable", "{name}");
        }
        let head = request(address, "HEAD", &path, &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0), "{name}");
        assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
        let again = get(address, &path, &[("If-None-Match", &etag)]);
        assert_eq!((again.status, again.body.len()), (304, 0), "{name}");
        let part = get(address, &path, &[("Range", "bytes=1-1")]);
        assert_eq!((part.status, part.body), (206, bytes[1..2].to_vec()), "{name}");
    }
    let large = served
        .files
        .iter()
        .find(|(name, _)| name.ends_with("large.img"))
        .unwrap();
    let part = get(address, &format!("/{}", large.0), &[("Range", "bytes=299990-2700000")]);
    assert_eq!(part.body, large.1[299_990..=2_700_000]);
    assert_eq!(part.header("content-range"), Some("bytes 299990-2700000/3000000"));
    assert_eq!(get(address, "/healthz", &[]).text(), "ok\n");
}

#[test]
fn compressed_metadata_are_the_same_metadata() {
    let served = serve(|_| {});
    let address = served.running.address();
    let plain = &served.files["metadata/1.root.json"];
    let gzip = get(address, "/metadata/1.root.json", &[("Accept-Encoding", "gzip")]);
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    assert_eq!(gzip.header("vary"), Some("accept-encoding"));
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(gzip.body.as_slice())
        .read_to_end(&mut text)
        .unwrap();
    assert_eq!(&text, plain);
    let zstd = get(
        address,
        "/metadata/1.root.json",
        &[("Accept-Encoding", "gzip;q=0.5, zstd")],
    );
    assert_eq!(zstd.header("content-encoding"), Some("zstd"));
    assert_eq!(&zstd::bulk::decompress(&zstd.body, 1 << 20).unwrap(), plain);
    assert_ne!(gzip.header("etag"), zstd.header("etag"));
}

#[test]
fn no_path_leads_out() {
    let served = serve(|_| {});
    let address = served.running.address();
    let outside = served.dir.path().join("secret");
    fs::write(&outside, "secret").unwrap();
    std::os::unix::fs::symlink(&outside, served.dir.path().join("targets/link")).unwrap();
    for path in [
        "/secret",
        "/.lock",
        "/metadata/../secret",
        "/metadata/%2e%2e/secret",
        "/metadata/..%2fsecret",
        "/targets/../secret",
        "/targets/%2e%2e/secret",
        "/targets/p/../../secret",
        "/targets/..%2fsecret",
        "/targets/..%5csecret",
        "/targets//secret",
        "/targets/link",
        "/targets/p",
        "/targets/",
        "/metadata/1.root.json/",
        "/metadata/1.root.json%00",
        "//etc/passwd",
        "/api/v1/repository",
        "/",
    ] {
        let answer = get(address, path, &[]);
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.text().contains("secret"), "{path}");
    }
    // The controls: the same server gives what it should, and escapes are decoded once.
    assert_eq!(get(address, "/metadata/1%2eroot.json", &[]).status, 200);
    let post = request(address, "POST", "/metadata/1.root.json", &[], b"x");
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
    let lying = format!("targets/{}.f", "ab".repeat(32));
    fs::write(served.dir.path().join(&lying), "x").unwrap();
    let answer = get(address, &format!("/{lying}"), &[]);
    assert_eq!(
        answer.header("cache-control"),
        Some("no-cache"),
        "the name claims another digest"
    );
}

#[test]
fn a_target_is_found_wherever_its_digest_is_put() {
    let served = serve(|_| {});
    let address = served.running.address();
    let (usual, bytes) = served.files.iter().find(|(name, _)| name.ends_with("small")).unwrap();
    let digest = sha256(bytes);
    assert_eq!(*usual, format!("targets/p/1/{digest}.small"));
    let answer = get(address, &format!("/targets/{digest}.p/1/small"), &[]);
    assert_eq!((answer.status, &answer.body), (200, bytes));
    assert_eq!(
        answer.header("cache-control"),
        Some("public, max-age=31536000, immutable")
    );
    assert_eq!(get(address, &format!("/targets/{digest}.p/2/small"), &[]).status, 404);
}

#[test]
fn more_connections_than_allowed_wait() {
    let served = serve(|config| config.limits.connections = 1);
    let address = served.running.address();
    let first = connect(address);
    let mut second = connect(address);
    second
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let early = second.read(&mut [0]);
    assert!(early.is_err(), "answered while the only place was taken");
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut bytes = Vec::new();
    second.read_to_end(&mut bytes).unwrap();
    assert_eq!(parse(&bytes).status, 200);
}

#[test]
fn a_changed_timestamp_is_served_at_once() {
    let served = serve(|_| {});
    let address = served.running.address();
    let path = served.dir.path().join("metadata/timestamp.json");
    let first = get(address, "/metadata/timestamp.json", &[]);
    for text in ["new", "newer"] {
        fwdurable::write_file(&path, text.as_bytes()).unwrap();
        assert_eq!(get(address, "/metadata/timestamp.json", &[]).text(), text);
    }
    let etag = first.header("etag").unwrap();
    assert_eq!(
        get(address, "/metadata/timestamp.json", &[("If-None-Match", etag)]).status,
        200
    );
}

#[test]
fn slow_and_oversized_clients_are_cut() {
    let served = serve(|config| {
        config.limits.head_timeout = Duration::from_millis(300);
        config.limits.idle_timeout = Duration::from_millis(900);
        config.limits.write_timeout = Duration::from_millis(300);
    });
    let address = served.running.address();
    for opening in ["GET / HTTP/1.1\r\nX: ", "PRI * HT", ""] {
        let mut stream = connect(address);
        stream.write_all(opening.as_bytes()).unwrap();
        let begun = Instant::now();
        let mut rest = Vec::new();
        // An answer such as 408 or nothing; either way the end comes.
        let _ = stream.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(5), "{opening:?}");
        assert!(!rest.starts_with(b"HTTP/1.1 2"), "{opening:?}");
    }
    let huge = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let mut stream = connect(address);
    let _ = stream.write_all(huge.as_bytes());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    if !bytes.is_empty() {
        assert_eq!(parse(&bytes).status, 431);
    }
    assert_eq!(raw(address, b"nonsense\r\n\r\n").status, 400);
    assert_eq!(get(address, "/healthz", &[]).status, 200, "the server goes on");
}

#[test]
fn the_log_has_one_line_a_request_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let served = serve(|config| config.access_log = AccessLogTo::File(path.clone()));
    let address = served.running.address();
    get(
        address,
        "/metadata/1.root.json?x=1",
        &[("Authorization", "Bearer hidden")],
    );
    get(address, "/no%0Ane", &[]);
    served.running.stop();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let length = served.files["metadata/1.root.json"].len();
    assert!(lines[0].contains(&format!("\"bytes\":{length}")), "{text}");
    assert!(lines[0].contains("\"path\":\"/metadata/1.root.json\"") && lines[0].contains("\"status\":200"));
    assert!(lines[1].contains("\"status\":404"));
    assert!(!text.contains("hidden"));
}

#[test]
fn a_stopped_server_finishes_what_it_does() {
    let served = serve(|_| {});
    let address = served.running.address();
    let (name, bytes) = served
        .files
        .iter()
        .find(|(name, _)| name.ends_with("large.img"))
        .unwrap();
    let mut stream = connect(address);
    write!(stream, "GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut beginning = [0; 1];
    stream.read_exact(&mut beginning).unwrap();
    let running = served.running;
    let stopping = std::thread::spawn(move || running.stop());
    let mut rest = beginning.to_vec();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(&parse(&rest).body, bytes);
    stopping.join().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}
