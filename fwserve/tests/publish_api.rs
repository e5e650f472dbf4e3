//! Publishing over real sockets.
#![allow(clippy::unwrap_used)]

#[path = "support/publisher.rs"]
mod publisher;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use fwserve::config::AccessLogTo;
use fwserve::{Config, Running};
use publisher::{TIMESTAMP, body, call, first, prepare, publish, repo, upload};
use support::{Answer, Files, Vendor, connect, get, request, sha256, visible};

struct Served {
    dir: tempfile::TempDir,
    token: String,
    running: Running,
    vendor: Vendor,
}

fn serve() -> Served {
    serve_with(|_, _| {})
}

fn serve_with(change: impl FnOnce(&mut Config, &Path)) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let vendor = Vendor::new();
    let (publish, token) = prepare(dir.path(), &vendor);
    let mut config = Config::read_only(repo(dir.path()));
    config.publish = Some(publish);
    change(&mut config, dir.path());
    let running = fwserve::start(config).unwrap();
    Served {
        dir,
        token,
        running,
        vendor,
    }
}

#[test]
fn a_publication_is_served() {
    let mut served = serve();
    let (address, token) = (served.running.address(), served.token.clone());
    let state = call(address, &token, "GET", "/api/v1/repository", &[], b"");
    assert_eq!(
        state.text(),
        r#"{"root_version":null,"snapshot_version":null,"timestamp":null}"#
    );
    let files = first(&mut served.vendor);
    let answer = publish(address, &token, None, &files);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let digest = sha256(&files[TIMESTAMP]);
    assert_eq!(
        answer.text(),
        format!(r#"{{"ignored":[],"timestamp":{{"sha256":"{digest}","version":1}}}}"#)
    );
    for (name, bytes) in &files {
        assert_eq!(&get(address, &format!("/{name}"), &[]).body, bytes, "{name}");
    }
    let state = call(address, &token, "GET", "/api/v1/repository", &[], b"");
    assert_eq!(
        state.text(),
        format!(r#"{{"root_version":1,"snapshot_version":1,"timestamp":{{"sha256":"{digest}","version":1}}}}"#)
    );
    // The second one: a rotation of the online key, and the timestamp in the readers' memory is replaced.
    let (name, root) = served.vendor.rotate(9);
    let mut second = served.vendor.release("p/2/f", b"two");
    second.insert(name, root);
    let answer = publish(address, &token, Some(&files[TIMESTAMP]), &second);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(get(address, "/metadata/timestamp.json", &[]).body, second[TIMESTAMP]);
    // What is published need not be uploaded again, also under another name, and may be listed again.
    for bytes in second.values() {
        let path = format!("/api/v1/objects/{}", sha256(bytes));
        assert_eq!(call(address, &token, "HEAD", &path, &[], b"").status, 200);
    }
    let uploads = repo(served.dir.path()).join(".uploads");
    assert_eq!(fs::read_dir(&uploads).unwrap().count(), 0, "uploads are used up");
    let answer = call(
        address,
        &token,
        "POST",
        "/api/v1/publish",
        &[],
        body(Some(&second[TIMESTAMP]), &second).as_bytes(),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let third = served.vendor.release("q/1/same", b"two");
    for (name, bytes) in &third {
        if name.starts_with("metadata/") {
            assert_eq!(upload(address, &token, bytes).status, 201);
        }
    }
    let request = body(Some(&second[TIMESTAMP]), &third);
    let answer = call(address, &token, "POST", "/api/v1/publish", &[], request.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    for (name, bytes) in &third {
        assert_eq!(&get(address, &format!("/{name}"), &[]).body, bytes, "{name}");
    }
}

#[test]
fn nothing_is_done_without_a_token() {
    let served = serve();
    let address = served.running.address();
    let object = format!("/api/v1/objects/{}", "ab".repeat(32));
    for (method, path) in [
        ("GET", "/api/v1/repository"),
        ("HEAD", &*object),
        ("PUT", &*object),
        ("POST", "/api/v1/publish"),
    ] {
        for authorization in [
            "",
            "Bearer ",
            "Bearer wrong",
            "Basic x",
            &*format!("Basic {}", served.token),
        ] {
            let answer = request(address, method, path, &[("Authorization", authorization)], b"");
            assert_eq!(answer.status, 401, "{method} {path} {authorization}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let answer = call(address, &served.token, "GET", "/api/v1/repository", &[], b"");
    assert_eq!(answer.status, 200, "the control");
    assert_eq!(visible(&repo(served.dir.path())), Files::new());
}

#[test]
fn the_log_names_who_published_and_not_the_secret() {
    let served = serve_with(|config, dir| config.access_log = AccessLogTo::File(dir.join("log")));
    call(
        served.running.address(),
        &served.token,
        "GET",
        "/api/v1/repository",
        &[],
        b"",
    );
    call(
        served.running.address(),
        "fwp_wrong",
        "GET",
        "/api/v1/repository",
        &[],
        b"",
    );
    served.running.stop();
    let log = fs::read_to_string(served.dir.path().join("log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines[0].contains(r#""status":200"#) && lines[0].contains(r#""token":"test""#),
        "{log}"
    );
    assert!(
        lines[1].contains(r#""status":401"#) && !lines[1].contains("token"),
        "{log}"
    );
    assert!(!log.contains("fwp_"), "{log}");
}

#[test]
fn uploads_resume_after_a_broken_connection() {
    let served = serve();
    let (address, token) = (served.running.address(), &served.token);
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
    let path = format!("/api/v1/objects/{}", sha256(&bytes));
    let head = |expected: u16| {
        let answer = call(address, token, "HEAD", &path, &[], b"");
        assert_eq!(answer.status, expected);
        answer
    };
    assert_eq!(head(404).header("upload-offset"), Some("0"));
    let mut stream = connect(address);
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nUpload-Offset: 0\r\nUpload-Length: 100000\r\n\
         Content-Length: 100000\r\n\r\n"
    )
    .unwrap();
    stream.write_all(&bytes[..40_000]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    let put = |offset: usize, end: usize| {
        let offset_text = offset.to_string();
        let headers = [("Upload-Offset", offset_text.as_str()), ("Upload-Length", "100000")];
        call(address, token, "PUT", &path, &headers, &bytes[offset..end])
    };
    let answer = put(0, 100);
    assert_eq!(
        (answer.status, answer.header("upload-offset")),
        (409, Some("40000")),
        "{}",
        answer.text()
    );
    assert_eq!(head(404).header("upload-offset"), Some("40000"));
    let answer = put(40_000, 70_000);
    assert_eq!((answer.status, answer.header("upload-offset")), (202, Some("70000")));
    assert_eq!(put(70_000, 100_000).status, 201);
    assert_eq!(head(200).header("content-length"), Some("100000"));
    assert_eq!(put(0, 100_000).status, 201, "what is complete need not come again");
}

#[test]
fn a_stalled_upload_is_cut_and_goes_on_later() {
    let served = serve_with(|config, _| config.limits.idle_timeout = Duration::from_millis(300));
    let (address, token) = (served.running.address(), &served.token);
    let path = format!("/api/v1/objects/{}", sha256(b"hello world"));
    let mut stream = connect(address);
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nUpload-Offset: 0\r\nUpload-Length: 11\r\n\
         Content-Length: 11\r\n\r\nhello"
    )
    .unwrap();
    // The client sends nothing more: the end must come from the server.
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    assert!(
        !matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "{ended:?}"
    );
    assert!(
        !answer.starts_with(b"HTTP/1.1 2"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let head = call(address, token, "HEAD", &path, &[], b"");
    assert_eq!((head.status, head.header("upload-offset")), (404, Some("5")));
    let headers = [("Upload-Offset", "5"), ("Upload-Length", "11")];
    assert_eq!(call(address, token, "PUT", &path, &headers, b" world").status, 201);
}

#[test]
fn a_publication_waits_for_another_program_that_writes_the_repository() {
    let mut served = serve();
    let (address, token) = (served.running.address(), served.token.clone());
    let files = first(&mut served.vendor);
    for bytes in files.values() {
        assert_eq!(upload(address, &token, bytes).status, 201);
    }
    let repo = repo(served.dir.path());
    let held = fwdurable::Lock::try_exclusive(&repo.join(".lock"))
        .unwrap()
        .expect("nobody writes");
    let waiting = std::thread::spawn({
        let request = body(None, &files);
        move || call(address, &token, "POST", "/api/v1/publish", &[], request.as_bytes())
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        visible(&repo),
        Files::new(),
        "nothing changes while another program has the lock"
    );
    drop(held);
    let answer = waiting.join().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(visible(&repo), files);
}

#[test]
fn bad_uploads_are_refused() {
    let served = serve();
    let (address, token) = (served.running.address(), &served.token);
    let path = format!("/api/v1/objects/{}", sha256(b"right"));
    let put = |length: &str, body: &[u8]| {
        let headers = [("Upload-Offset", "0"), ("Upload-Length", length)];
        call(address, token, "PUT", &path, &headers, body)
    };
    let answer = put("5", b"wrong");
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("sha256 of the upload is"), "{}", answer.text());
    let head = call(address, token, "HEAD", &path, &[], b"");
    assert_eq!(head.header("upload-offset"), Some("0"), "what was wrong is discarded");
    assert_eq!(put("1048577", b"right").status, 413);
    for digest in ["", "x", "..%2f..%2fetc", &*sha256(b"right").to_uppercase()] {
        let path = format!("/api/v1/objects/{digest}");
        let headers = [("Upload-Offset", "0"), ("Upload-Length", "5")];
        assert_eq!(
            call(address, token, "PUT", &path, &headers, b"right").status,
            404,
            "{digest}"
        );
    }
    assert_eq!(put("x", b"right").status, 400);
    assert_eq!(put("4", b"right").status, 400);
    assert_eq!(call(address, token, "PUT", &path, &[], b"right").status, 400);
    assert_eq!(put("5", b"right").status, 201, "the control");
}

#[test]
fn refusals_give_the_exact_reason_and_change_nothing() {
    let mut served = serve();
    let (address, token) = (served.running.address(), served.token.clone());
    let files = first(&mut served.vendor);
    assert_eq!(publish(address, &token, None, &files).status, 200);
    let before = visible(&repo(served.dir.path()));
    let good = served.vendor.release("p/2/f", b"two");
    served.vendor.rotate(8);
    let bad = served.vendor.release("p/2/f", b"two");
    let answer = publish(address, &token, Some(&files[TIMESTAMP]), &bad);
    assert_eq!(answer.status, 422);
    assert!(
        answer.text().starts_with(
            r#"{"error":"refused","reason":"devices would refuse it: timestamp metadata refused: keys of root: "#
        ),
        "{}",
        answer.text()
    );
    assert_eq!(visible(&repo(served.dir.path())), before);
    let stale = call(
        address,
        &token,
        "POST",
        "/api/v1/publish",
        &[],
        body(Some(b"older"), &good).as_bytes(),
    );
    assert_eq!(stale.status, 409, "{}", stale.text());
    assert!(stale.text().contains("\"error\":\"conflict\""));
    for garbage in ["", "{", "[1]", "{\"base\":null,\"files\":{\"../x\":\"y\"}}"] {
        let answer = call(address, &token, "POST", "/api/v1/publish", &[], garbage.as_bytes());
        assert_eq!(answer.status, 400, "{garbage}");
    }
    let endless = vec![b' '; 17 << 20];
    let mut stream = connect(address);
    write!(
        stream,
        "POST /api/v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        1u64 << 40
    )
    .unwrap();
    // It may be cut off before all is sent.
    let _ = stream.write_all(&endless);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    if !answer.is_empty() {
        assert_eq!(support::parse(&answer).status, 413);
    }
    assert_eq!(visible(&repo(served.dir.path())), before);
    let answer = publish(address, &token, Some(&files[TIMESTAMP]), &good);
    assert_eq!(answer.status, 200, "the control: {}", answer.text());
}

#[test]
fn of_concurrent_publishers_one_wins() {
    let mut served = serve();
    let (address, token) = (served.running.address(), served.token.clone());
    let files = first(&mut served.vendor);
    assert_eq!(publish(address, &token, None, &files).status, 200);
    let candidates: Vec<Files> = (0..4)
        .map(|n| {
            let mut vendor = Vendor::new();
            vendor.version = 1 + n;
            vendor.release("p/2/f", format!("contents {n}").as_bytes())
        })
        .collect();
    for candidate in &candidates {
        for bytes in candidate.values() {
            assert_eq!(upload(address, &token, bytes).status, 201);
        }
    }
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let threads: Vec<_> = candidates
            .iter()
            .map(|candidate| {
                let body = body(Some(&files[TIMESTAMP]), candidate);
                let token = &token;
                scope.spawn(move || call(address, token, "POST", "/api/v1/publish", &[], body.as_bytes()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let won: Vec<usize> = (0..4).filter(|n| answers[*n].status == 200).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 409).count(),
        3,
        "{answers:?}"
    );
    assert_eq!(
        get(address, "/metadata/timestamp.json", &[]).body,
        candidates[won[0]][TIMESTAMP]
    );
}
