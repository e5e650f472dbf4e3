//! A publisher in a few lines: tokens, uploads, requests.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fwserve::config::PublishConfig;

use crate::support::{Answer, Files, Vendor, request, sha256};

pub fn prepare(dir: &Path, vendor: &Vendor) -> (PublishConfig, String) {
    let (token_file, root) = (dir.join("tokens"), dir.join("root.json"));
    fs::write(&root, vendor.root()).unwrap();
    let token = fwserve::tokens::create(&token_file, "test").unwrap();
    let config = PublishConfig {
        token_file,
        trusted_root: Some(root),
        max_object: 1 << 20,
        allow_plain_http: false,
    };
    (config, token)
}

pub fn repo(dir: &Path) -> PathBuf {
    let repo = dir.join("repo");
    fs::create_dir_all(&repo).unwrap();
    repo
}

pub fn call(
    address: SocketAddr,
    token: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let bearer = format!("Bearer {token}");
    let mut all = vec![("Authorization", bearer.as_str())];
    all.extend(headers);
    request(address, method, path, &all, body)
}

pub fn upload(address: SocketAddr, token: &str, bytes: &[u8]) -> Answer {
    let path = format!("/api/v1/objects/{}", sha256(bytes));
    let length = bytes.len().to_string();
    let headers = [("Upload-Offset", "0"), ("Upload-Length", length.as_str())];
    call(address, token, "PUT", &path, &headers, bytes)
}

pub fn body(base: Option<&[u8]>, files: &Files) -> String {
    let base = base.map_or("null".to_owned(), |bytes| format!("\"{}\"", sha256(bytes)));
    let files: Vec<_> = files
        .iter()
        .map(|(name, bytes)| format!("\"{name}\":\"{}\"", sha256(bytes)))
        .collect();
    format!("{{\"base\":{base},\"files\":{{{}}}}}", files.join(","))
}

pub fn publish(address: SocketAddr, token: &str, base: Option<&[u8]>, files: &Files) -> Answer {
    for bytes in files.values() {
        assert_eq!(upload(address, token, bytes).status, 201);
    }
    call(
        address,
        token,
        "POST",
        "/api/v1/publish",
        &[],
        body(base, files).as_bytes(),
    )
}

pub const TIMESTAMP: &str = "metadata/timestamp.json";

pub fn first(vendor: &mut Vendor) -> Files {
    let mut files = vendor.release("p/1/f", b"one");
    files.insert("metadata/1.root.json".to_owned(), vendor.root());
    files
}
