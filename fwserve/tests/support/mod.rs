//! A vendor in a few lines: keys, signed repositories, and raw HTTP.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::key::{PublicKey, SignError, Signer};
use fwmeta::layout;
use fwmeta::role::{MetaFile, RoleKeys, RoleName, Root, RootRoles, Snapshot, Targets, Timestamp};
use fwmeta::signed;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use sha2::{Digest, Sha256};

pub const EXPIRES: &str = "2099-01-01T00:00:00Z";

#[derive(Debug)]
pub struct Key(SigningKey, PublicKey);

impl Key {
    pub fn new(seed: u8) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::ed25519(key.verifying_key().to_bytes());
        Self(key, public)
    }
}

impl Signer for Key {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

/// Files by name relative to the repository.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Debug)]
pub struct Vendor {
    root_key: Key,
    targets_key: Key,
    timestamp_key: Key,
    pub root_version: u64,
    pub version: u64,
    pub expires: UtcSeconds,
    targets: BTreeMap<String, TargetFile>,
}

impl Vendor {
    pub fn new() -> Self {
        Self {
            root_key: Key::new(1),
            targets_key: Key::new(2),
            timestamp_key: Key::new(3),
            root_version: 1,
            version: 0,
            expires: UtcSeconds::parse(EXPIRES).unwrap(),
            targets: BTreeMap::new(),
        }
    }

    pub fn root(&self) -> Vec<u8> {
        let keys = [&self.root_key, &self.targets_key, &self.timestamp_key];
        let role = |key: &Key| RoleKeys {
            keyids: vec![key.1.id()],
            threshold: 1,
        };
        let root = Root {
            version: self.root_version,
            expires: self.expires,
            consistent_snapshot: true,
            keys: keys.iter().map(|key| (key.1.id(), key.1.clone())).collect(),
            roles: RootRoles {
                root: role(&self.root_key),
                timestamp: role(&self.timestamp_key),
                snapshot: role(&self.timestamp_key),
                targets: role(&self.targets_key),
            },
            extra: BTreeMap::new(),
        };
        signed::sign(&root.to_value(), &[&self.root_key]).unwrap()
    }

    /// A new root with another key for timestamp and snapshot.
    pub fn rotate(&mut self, seed: u8) -> (String, Vec<u8>) {
        self.timestamp_key = Key::new(seed);
        self.root_version += 1;
        (format!("metadata/{}.root.json", self.root_version), self.root())
    }

    /// The next version of everything, with one more target.
    pub fn release(&mut self, path: &str, contents: &[u8]) -> Files {
        let mut files = Files::new();
        let file = TargetFile::of_bytes(contents);
        let parsed = TargetPath::parse(path).unwrap();
        let digest = file.hashes.sha256.unwrap();
        files.insert(
            format!("targets/{}", layout::target_file(&parsed, Some(&digest))),
            contents.to_vec(),
        );
        self.targets.insert(path.to_owned(), file);
        files.extend(self.metadata());
        files
    }

    /// The next version of the metadata.
    pub fn metadata(&mut self) -> Files {
        self.version += 1;
        let (version, expires) = (self.version, self.expires);
        let targets = Targets {
            version,
            expires,
            targets: self.targets.clone(),
            delegations: None,
            extra: BTreeMap::new(),
        };
        let targets = signed::sign(&targets.to_value(), &[&self.targets_key]).unwrap();
        let snapshot = Snapshot {
            version,
            expires,
            meta: [("targets.json".to_owned(), MetaFile::of_bytes(version, &targets))].into(),
            extra: BTreeMap::new(),
        };
        let snapshot = signed::sign(&snapshot.to_value(), &[&self.timestamp_key]).unwrap();
        let timestamp = Timestamp {
            version,
            expires,
            snapshot: MetaFile::of_bytes(version, &snapshot),
            extra: BTreeMap::new(),
        };
        let timestamp = signed::sign(&timestamp.to_value(), &[&self.timestamp_key]).unwrap();
        let name = |role: RoleName, version| format!("metadata/{}", layout::metadata_name(&role, version));
        [
            (name(RoleName::targets(), Some(version)), targets),
            (name(RoleName::snapshot(), Some(version)), snapshot),
            (name(RoleName::timestamp(), None), timestamp),
        ]
        .into()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    fwmeta::hex::encode(&Sha256::digest(bytes))
}

pub fn write(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Everything that readers can see.
pub fn visible(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut stack = vec![dir.join("metadata"), dir.join("targets")];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.exists() {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends these very bytes and reads until the server closes.
pub fn raw(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

pub fn parse(bytes: &[u8]) -> Answer {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: bytes[end + 4..].to_vec(),
    }
}

pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    if !body.is_empty() || method == "PUT" || method == "POST" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    raw(address, &[text.as_bytes(), body].concat())
}

pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(address, "GET", path, headers, b"")
}
