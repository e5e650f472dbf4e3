//! The binary's conformance commands against honest and lying servers: exit codes, what is stored, what is asked for.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::key::{PublicKey, SignError, Signer};
use fwmeta::role::{MetaFile, RoleKeys, Root, RootRoles, Snapshot, Targets, Timestamp};
use fwmeta::target::TargetFile;
use fwmeta::time::UtcSeconds;
use fwmeta::{hex, signed};

const CONTENT: &[u8] = b"firmware image";

struct Key(SigningKey, PublicKey);

impl Signer for Key {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

fn key(seed: u8) -> Key {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let public = PublicKey::ed25519(key.verifying_key().to_bytes());
    Key(key, public)
}

/// What the server does when asked for an object.
#[derive(Clone)]
enum Reply {
    Bytes(Vec<u8>),
    /// Fewer bytes than the header promises.
    Truncated(Vec<u8>),
    /// Bytes until the client hangs up.
    Endless,
    /// To itself, for ever.
    RedirectLoop,
    ServerError,
}

type Objects = BTreeMap<String, Reply>;

struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(objects: Objects) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up in the middle is what some of these tests want.
                let _ = answer(stream, &objects, &log);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, objects: &Objects, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(path.clone());
    let head = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
    };
    match objects.get(&path) {
        None => stream.write_all(head("404 Not Found", 0).as_bytes()),
        Some(Reply::Bytes(bytes)) => {
            stream.write_all(head("200 OK", bytes.len()).as_bytes())?;
            stream.write_all(bytes)
        }
        Some(Reply::Truncated(bytes)) => {
            stream.write_all(head("200 OK", bytes.len()).as_bytes())?;
            stream.write_all(&bytes[..bytes.len() / 2])
        }
        Some(Reply::Endless) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
        Some(Reply::RedirectLoop) => {
            let head = "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n";
            stream.write_all(format!("{head}Location: {path}\r\n\r\n").as_bytes())
        }
        Some(Reply::ServerError) => stream.write_all(head("500 Internal Server Error", 0).as_bytes()),
    }
}

/// A repository with one target, and its root.
fn repository() -> (Vec<u8>, Objects) {
    let expires = UtcSeconds::parse("2100-01-01T00:00:00Z").unwrap();
    let key = key(1);
    let role = RoleKeys {
        keyids: vec![key.public().id()],
        threshold: 1,
    };
    let root = Root {
        version: 1,
        expires,
        consistent_snapshot: true,
        keys: [(key.public().id(), key.public().clone())].into(),
        roles: RootRoles {
            root: role.clone(),
            timestamp: role.clone(),
            snapshot: role.clone(),
            targets: role,
        },
        extra: BTreeMap::new(),
    };
    let file = TargetFile::of_bytes(CONTENT);
    let digest = hex::encode(file.hashes.sha256.as_ref().unwrap());
    let targets = Targets {
        version: 1,
        expires,
        targets: [("dir/image".to_owned(), file)].into(),
        delegations: None,
        extra: BTreeMap::new(),
    };
    let snapshot = Snapshot {
        version: 1,
        expires,
        meta: [("targets.json".to_owned(), MetaFile::of_version(1))].into(),
        extra: BTreeMap::new(),
    };
    let timestamp = Timestamp {
        version: 1,
        expires,
        snapshot: MetaFile::of_version(1),
        extra: BTreeMap::new(),
    };
    let sign = |value| signed::sign(&value, &[&key as &dyn Signer]).unwrap();
    let objects = [
        (
            "/metadata/timestamp.json".to_owned(),
            Reply::Bytes(sign(timestamp.to_value())),
        ),
        (
            "/metadata/1.snapshot.json".to_owned(),
            Reply::Bytes(sign(snapshot.to_value())),
        ),
        (
            "/metadata/1.targets.json".to_owned(),
            Reply::Bytes(sign(targets.to_value())),
        ),
        (format!("/targets/dir/{digest}.image"), Reply::Bytes(CONTENT.to_vec())),
    ];
    (sign(root.to_value()), objects.into())
}

fn tuf(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwagent"));
    command.arg("tuf").args(args).env("NO_PROXY", "127.0.0.1");
    command.output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn initialised(dir: &Path, root: &[u8]) -> String {
    let file = dir.join("factory");
    std::fs::write(&file, root).unwrap();
    let metadata = dir.join("metadata").to_str().unwrap().to_owned();
    let output = tuf(&["--metadata-dir", &metadata, "init", file.to_str().unwrap()]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    metadata
}

fn download(server: &Server, metadata: &str, targets: &Path, name: &str) -> Output {
    let (meta_url, target_url) = (format!("{}/metadata", server.url), format!("{}/targets", server.url));
    let targets = targets.to_str().unwrap();
    // The command stands before its options here, after them elsewhere: both must work.
    let args = [
        "download",
        "--metadata-dir",
        metadata,
        "--metadata-url",
        &meta_url,
        "--target-name",
        name,
    ];
    tuf(&[&args[..], &["--target-base-url", &target_url, "--target-dir", targets]].concat())
}

fn refresh(server: &Server, metadata: &str) -> Output {
    let url = format!("{}/metadata", server.url);
    tuf(&["--metadata-dir", metadata, "--metadata-url", &url, "refresh"])
}

fn files(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn init_stores_the_root_as_received() {
    let dir = tempfile::tempdir().unwrap();
    let (root, _) = repository();
    let metadata = initialised(dir.path(), &root);
    assert_eq!(files(&metadata), ["root.json"]);
    assert_eq!(std::fs::read(Path::new(&metadata).join("root.json")).unwrap(), root);
}

#[test]
fn init_refuses_a_root_that_does_not_verify_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (root, _) = repository();
    let forged = String::from_utf8(root).unwrap().replace("2100-01-01", "2101-01-01");
    let file = dir.path().join("forged");
    std::fs::write(&file, forged).unwrap();
    let metadata = dir.path().join("metadata");
    let output = tuf(&[
        "--metadata-dir",
        metadata.to_str().unwrap(),
        "init",
        file.to_str().unwrap(),
    ]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(!metadata.join("root.json").exists());
}

#[test]
fn every_failure_exits_with_one() {
    for args in [
        &[][..],
        &["--no-such-option"],
        &["refresh"],
        &["--metadata-dir", "/nonexistent/dir", "refresh"],
    ] {
        let output = tuf(args);
        assert_eq!(code(&output), Some(1), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?} fails without a word");
    }
}

#[test]
fn download_stores_the_target_once() {
    let dir = tempfile::tempdir().unwrap();
    let (root, objects) = repository();
    let server = Server::start(objects);
    let metadata = initialised(dir.path(), &root);
    let targets = dir.path().join("targets");
    let output = download(&server, &metadata, &targets, "dir/image");
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(files(&targets), ["dir%2Fimage"]);
    assert_eq!(std::fs::read(targets.join("dir%2Fimage")).unwrap(), CONTENT);
    assert_eq!(
        files(&metadata),
        ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    );

    server.asked();
    let output = download(&server, &metadata, &targets, "dir/image");
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(server.asked(), ["/metadata/2.root.json", "/metadata/timestamp.json"]);
    assert_eq!(code(&download(&server, &metadata, &targets, "dir/other")), Some(1));
}

#[test]
fn a_wrong_or_truncated_target_leaves_nothing_behind() {
    for reply in [
        Reply::Bytes(b"firmware imagX".to_vec()),
        Reply::Truncated(CONTENT.to_vec()),
        Reply::Endless,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (root, mut objects) = repository();
        let name = objects
            .keys()
            .find(|name| name.starts_with("/targets/"))
            .unwrap()
            .clone();
        objects.insert(name, reply);
        let server = Server::start(objects);
        let metadata = initialised(dir.path(), &root);
        let targets = dir.path().join("targets");
        let output = download(&server, &metadata, &targets, "dir/image");
        assert_eq!(code(&output), Some(1), "{output:?}");
        assert!(files(&targets).is_empty(), "{:?}", files(&targets));
    }
}

#[test]
fn a_lying_server_changes_nothing() {
    for reply in [
        Reply::Bytes(b"<html>welcome to the hotel</html>".to_vec()),
        Reply::Truncated(vec![b'{'; 100]),
        Reply::Endless,
        Reply::RedirectLoop,
        Reply::ServerError,
    ] {
        for object in ["/metadata/2.root.json", "/metadata/timestamp.json"] {
            let dir = tempfile::tempdir().unwrap();
            let (root, mut objects) = repository();
            objects.insert(object.to_owned(), reply.clone());
            let server = Server::start(objects);
            let metadata = initialised(dir.path(), &root);
            let output = refresh(&server, &metadata);
            assert_eq!(code(&output), Some(1), "{object}: {output:?}");
            assert_eq!(files(&metadata), ["root.json"], "{object}");
            assert_eq!(std::fs::read(Path::new(&metadata).join("root.json")).unwrap(), root);
        }
    }
}
