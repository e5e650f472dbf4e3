//! The real binary: killed at any moment, ended in order, and wrongly called.
#![allow(clippy::unwrap_used)]

#[path = "support/publisher.rs"]
mod publisher;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fwserve::config::PublishConfig;
use publisher::{TIMESTAMP, body, call, first, prepare, publish, repo, upload};
use support::{Files, Vendor, connect, get, visible};

/// The real binary, with its address.
fn spawn(dir: &Path, publish: &PublishConfig) -> (Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fwserve"))
        .args(["serve", "--listen", "127.0.0.1:0", "--repo"])
        .arg(repo(dir))
        .arg("--publish-token-file")
        .arg(&publish.token_file)
        .arg("--trusted-root")
        .arg(publish.trusted_root.as_ref().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().strip_prefix("listening on http://").expect("the address");
    (child, address.parse().unwrap())
}

fn assert_files(address: SocketAddr, files: &Files) {
    for (name, bytes) in files {
        assert_eq!(&get(address, &format!("/{name}"), &[]).body, bytes, "{name}");
    }
}

#[test]
fn a_killed_server_leaves_the_old_or_the_new_repository() {
    const ROUNDS: u32 = 24;
    let dir = tempfile::tempdir().unwrap();
    let mut vendor = Vendor::new();
    let (config, token) = prepare(dir.path(), &vendor);
    let (mut child, mut address) = spawn(dir.path(), &config);
    let mut current = first(&mut vendor);
    let begun = std::time::Instant::now();
    assert_eq!(publish(address, &token, None, &current).status, 200);
    let one_publication = begun.elapsed();
    let mut everything = visible(&repo(dir.path()));
    let (mut old, mut new) = (0, 0);
    for round in 0..ROUNDS {
        // In every other round root and timestamp must change together.
        let rotated = (round % 2 == 1).then(|| vendor.rotate(10 + u8::try_from(round).unwrap()));
        let mut next = vendor.release(&format!("p/{round}/g"), format!("round {round}").as_bytes());
        next.extend(rotated);
        for bytes in next.values() {
            assert_eq!(upload(address, &token, bytes).status, 201);
        }
        let body = body(Some(&current[TIMESTAMP]), &next);
        let mut stream = connect(address);
        write!(
            stream,
            "POST /api/v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        // Somewhere in the request, whatever the speed of the machine.
        std::thread::sleep(one_publication * round / ROUNDS);
        child.kill().unwrap();
        child.wait().unwrap();
        (child, address) = spawn(dir.path(), &config);
        let served = get(address, "/metadata/timestamp.json", &[]).body;
        let root = next.keys().find(|name| name.ends_with(".root.json"));
        if served == current[TIMESTAMP] {
            old += 1;
            assert_files(address, &everything);
            if let Some(root) = root {
                assert_eq!(
                    get(address, &format!("/{root}"), &[]).status,
                    404,
                    "a root of the new version"
                );
            }
            // Uploads outlive the crash: the same publication now succeeds.
            let answer = call(address, &token, "POST", "/api/v1/publish", &[], body.as_bytes());
            assert_eq!(answer.status, 200, "{}", answer.text());
        } else {
            new += 1;
            assert_eq!(served, next[TIMESTAMP], "round {round}");
        }
        everything.extend(next.clone());
        assert_files(address, &everything);
        current = next;
    }
    println!("{old} times the old repository, {new} times the new one");
    // The end is orderly.
    let status = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_command_line_reports_faults() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fwserve"))
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    assert_eq!(run(&["serve"]).0, 2);
    let (code, text) = run(&["serve", "--repo", "nowhere"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.starts_with("fwserve: repository nowhere: "), "{text}");
    let (code, text) = run(&["serve", "--repo", "nowhere", "--json"]);
    assert_eq!(code, 3);
    assert!(
        text.starts_with(r#"{"error":"environment","message":"repository nowhere"#),
        "{text}"
    );
    let (code, token) = run(&["token", "new", "--name", "ci", "--file", "tokens"]);
    assert_eq!((code, token.trim().len()), (0, 68), "{token}");
    assert_eq!(run(&["token", "new", "--name", "ci", "--file", "tokens"]).0, 2);
    let (code, text) = run(&[
        "serve",
        "--repo",
        ".",
        "--listen",
        "0.0.0.0:0",
        "--publish-token-file",
        "tokens",
    ]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("plain HTTP"), "{text}");
}
