#![allow(clippy::unwrap_used)]
use std::time::Instant;

use tempfile::TempDir;

use super::*;

fn config(dir: &TempDir) -> SocketConfig {
    SocketConfig {
        path: dir.path().join("agent.sock"),
        mode: 0o640,
        uid: None,
        gid: None,
    }
}

fn open(dir: &TempDir) -> (StatusSocket, Hub, PathBuf) {
    let hub = Hub::default();
    let answer: Arc<Answer> = Arc::new(|what| (what == "status").then(|| object([("phase", "idle".into())])));
    let socket = StatusSocket::open(&config(dir), hub.clone(), answer).unwrap();
    (socket, hub, config(dir).path)
}

fn said(stream: &UnixStream) -> String {
    let mut line = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // One byte at a time: nothing that follows is taken.
    let mut byte = [0; 1];
    while !line.ends_with('\n') && (&*stream).read(&mut byte).unwrap() == 1 {
        line.push(char::from(byte[0]));
    }
    line
}

fn wait(what: &str, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn questions_are_answered_and_others_end_the_talk() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, _, path) = open(&dir);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let mut client = UnixStream::connect(&path).unwrap();
    for _ in 0..3 {
        client.write_all(b"{\"get\":\"status\"}\n").unwrap();
        assert_eq!(said(&client), "{\"phase\":\"idle\"}\n");
    }
    for request in [
        &b"\n"[..],
        b"{}\n",
        b"{\"get\":\"secrets\"}\n",
        b"{\"get\":\"status\",\"watch\":\"events\"}\n",
        b"{\"watch\":\"all\"}\n",
        b"GET / HTTP/1.1\r\n",
        b"\xff\n",
        &[b'x'; REQUEST_BYTES as usize],
    ] {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(request).unwrap();
        assert!(said(&client).contains("\"usage\""));
        assert_eq!(said(&client), "", "it was not the end");
    }
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn events_reach_who_watches_and_nobody_holds_them_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, hub, path) = open(&dir);
    let watch = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"{\"watch\":\"events\"}\n").unwrap();
        assert_eq!(said(&client), "{\"watching\":\"events\"}\n");
        client
    };
    let event = |number: u64| object([("event", "status".into()), ("number", number.into())]);
    let (good, deaf) = (watch(), watch());
    hub.publish(&event(1));
    assert_eq!(said(&good), "{\"event\":\"status\",\"number\":1}\n");
    // One that never reads: its buffer fills, and it is gone.
    let start = Instant::now();
    let mut number = 1;
    while hub.watchers().streams.len() == 2 {
        number += 1;
        hub.publish(&event(number));
        assert_eq!(said(&good), format!("{{\"event\":\"status\",\"number\":{number}}}\n"));
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    drop(deaf);
    // Who hangs up makes place, without an event.
    drop(good);
    wait("the place of a client that hung up", || {
        hub.watchers().streams.is_empty()
    });
    hub.publish(&event(0));
    let again = watch();
    hub.publish(&event(7));
    assert!(said(&again).contains('7'));
}

#[test]
fn clients_are_of_a_bounded_number() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, _, path) = open(&dir);
    let ask = || {
        let mut client = UnixStream::connect(&path).unwrap();
        // One that was turned away may have been hung up on already.
        let _ = client.write_all(b"{\"get\":\"status\"}\n");
        let line = said(&client);
        (client, line)
    };
    let held: Vec<_> = (0..CLIENTS).map(|_| ask()).collect();
    assert!(held.iter().all(|(_, line)| line.contains("idle")));
    assert!(ask().1.contains("busy"));
    drop(held);
    wait("a free place", || ask().1.contains("idle"));
}

#[test]
fn only_what_a_crash_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _, path) = open(&dir);
    let refused = |kind| {
        let error = bind(&config(&dir)).unwrap_err();
        assert_eq!(error.kind(), kind);
    };
    refused(io::ErrorKind::AddrInUse);
    UnixStream::connect(&path).unwrap();
    drop(first);
    fs::write(&path, "precious").unwrap();
    refused(io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    // A listener that ended without cleaning up.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (_second, _, _) = open(&dir);
    UnixStream::connect(&path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
