//! HTTP/2 and TLS with real clients.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "../../tests/src/tools.rs"]
mod tools;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use fwserve::config::TlsFiles;
use fwserve::{Config, Running};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use support::{Files, Vendor, write};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

fn serve(dir: &Path, tls: Option<TlsFiles>) -> (Running, Files) {
    let mut vendor = Vendor::new();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n >> 8) as u8).collect();
    let mut files = vendor.release("p/1/large.img", &large);
    files.insert("metadata/1.root.json".to_owned(), vendor.root());
    write(dir, &files);
    let mut config = Config::read_only(dir);
    config.tls = tls;
    (fwserve::start(config).unwrap(), files)
}

fn client<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

fn get(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().uri(format!("https://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> http2::SendRequest<Empty<Bytes>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// Every file at the same time over one connection.
async fn fetch_all(mut sender: http2::SendRequest<Empty<Bytes>>, files: &Files) {
    let mut answers = Vec::new();
    for (name, bytes) in files {
        sender.ready().await.unwrap();
        answers.push((
            name,
            bytes,
            tokio::spawn(sender.send_request(get(&format!("/{name}"), &[]))),
        ));
    }
    for (name, bytes, answer) in answers {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        assert!(answer.headers().contains_key("etag"), "{name}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body == *bytes, "{name} has other contents");
    }
}

#[test]
fn http2_without_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (running, files) = serve(dir.path(), None);
    client(async {
        let mut sender = connect(TcpStream::connect(running.address()).await.unwrap()).await;
        let range = get(
            &format!("/{}", files.keys().find(|name| name.ends_with("large.img")).unwrap()),
            &[("range", "bytes=300000-300009")],
        );
        let part = sender.send_request(range).await.unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.into_body().collect().await.unwrap().to_bytes().len(), 10);
        for (path, status) in [
            ("/targets/../secret", StatusCode::NOT_FOUND),
            ("/targets/%2e%2e/secret", StatusCode::NOT_FOUND),
            ("/healthz", StatusCode::OK),
        ] {
            assert_eq!(
                sender.send_request(get(path, &[])).await.unwrap().status(),
                status,
                "{path}"
            );
        }
        let huge = "a".repeat(100_000);
        let refused = sender.send_request(get("/healthz", &[("x", &huge)])).await;
        assert!(
            !refused.is_ok_and(|answer| answer.status() == StatusCode::OK),
            "a head of 100,000 bytes was taken"
        );
        let sender = connect(TcpStream::connect(running.address()).await.unwrap()).await;
        fetch_all(sender, &files).await;
    });
}

#[test]
fn tls_negotiates_both_protocols() {
    let dir = tempfile::tempdir().unwrap();
    let Some(openssl) = tools::program("openssl") else {
        return;
    };
    let files = certificate(&openssl, dir.path());
    let trusted = files.certificates.clone();
    let repo = dir.path().join("repo");
    fs::create_dir(&repo).unwrap();
    let (running, files) = serve(&repo, Some(files));
    assert!(running.url().starts_with("https://"));
    client(async {
        fetch_all(
            connect(handshake(running.address(), &trusted, "h2").await).await,
            &files,
        )
        .await;
        let stream = handshake(running.address(), &trusted, "http/1.1").await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let answer = sender
            .send_request(get("/healthz", &[("host", "localhost")]))
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    });
    // Plain HTTP on a TLS port gets no answer of HTTP, and the server goes on.
    let mut plain = support::connect(running.address());
    std::io::Write::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut plain, &mut bytes);
    assert!(!bytes.starts_with(b"HTTP/"));
    client(async { handshake(running.address(), &trusted, "h2").await });
}

async fn handshake(address: SocketAddr, trusted: &Path, protocol: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    stream
}

fn certificate(openssl: &Path, dir: &Path) -> TlsFiles {
    let (certificates, key): (PathBuf, PathBuf) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = Command::new(openssl)
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost".split(' '))
        .args("-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost".split(' '))
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificates)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    TlsFiles { certificates, key }
}
