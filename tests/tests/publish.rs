//! `fwsign publish --server` to a running `fwserve`: two real programs over a real socket.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use fwtests::bins::binary;
use tempfile::TempDir;

/// A vendor with a repository, and what it publishes to.
struct Scene {
    dir: TempDir,
    server: Option<Running>,
}

/// A server that ends with the test.
struct Running {
    child: Child,
    url: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn expect_error(self, code: i32, part: &str) -> Self {
        let run = self.expect(code);
        assert!(run.stderr.contains(part), "no {part:?} in: {}", run.stderr);
        run
    }
}

fn run(name: &str, args: &[&str]) -> Run {
    let output = Command::new(binary(name))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            dir: tempfile::tempdir().unwrap(),
            server: None,
        };
        for key in ["r1", "r2", "t", "s", "ts", "p"] {
            run("fwsign", &["keygen", "--unencrypted", text(&scene.key(key))]).expect(0);
        }
        let product = format!("router={}", text(&scene.key("p")));
        let keys = [
            ("--root-key", "r1"),
            ("--root-key", "r2"),
            ("--targets-key", "t"),
            ("--snapshot-key", "s"),
            ("--timestamp-key", "ts"),
        ];
        let keys: Vec<_> = keys
            .map(|(option, key)| [option.to_owned(), text(&scene.key(key)).to_owned()])
            .concat();
        let mut init: Vec<&str> = vec!["init"];
        let repo = scene.repo();
        init.push(text(&repo));
        init.extend(keys.iter().map(String::as_str));
        init.extend(["--product", &product]);
        run("fwsign", &init).expect(0);
        let token = run(
            "fwserve",
            &["token", "new", "--name", "ci", "--file", text(&scene.path("tokens"))],
        )
        .expect(0);
        fs::write(scene.path("token"), token.stdout).unwrap();
        fs::create_dir(scene.path("served")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    fn key(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.pem"))
    }

    /// Starts the server; its first line says where it listens.
    fn serve(&mut self) {
        let mut child = Command::new(binary("fwserve"))
            .args(["serve", "--listen", "127.0.0.1:0", "--repo"])
            .arg(self.path("served"))
            .arg("--publish-token-file")
            .arg(self.path("tokens"))
            .arg("--trusted-root")
            .arg(self.repo().join("metadata/1.root.json"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        self.server = Some(Running { child, url });
    }

    fn url(&self) -> String {
        self.server.as_ref().unwrap().url.clone()
    }

    fn release(&self, repo: &Path, version: &str, image: &[u8]) {
        let file = self.path("image");
        fs::write(&file, image).unwrap();
        let keys = ["s", "ts", "p"].map(|key| self.key(key));
        let mut args = vec![
            "release",
            "add",
            text(repo),
            "--product",
            "router",
            "--hardware",
            "a",
            "--level",
            "1",
        ];
        args.extend(["--version", version, "--image", text(&file)]);
        args.extend(keys.iter().flat_map(|key| ["--key", text(key)]));
        run("fwsign", &args).expect(0);
    }

    fn publish(&self, repo: &Path, more: &[&str]) -> Run {
        let (url, token) = (self.url(), self.path("token"));
        let args = ["publish", text(repo), "--server", &url, "--token-file", text(&token)];
        run("fwsign", &[&args[..], more].concat())
    }

    fn served(&self) -> BTreeMap<String, Vec<u8>> {
        let (mut files, root) = (BTreeMap::new(), self.path("served"));
        let mut stack = vec![root.join("metadata"), root.join("targets")];
        while let Some(path) = stack.pop() {
            if path.is_dir() {
                stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.exists() {
                let name = text(path.strip_prefix(&root).unwrap()).to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
        files
    }
}

/// An image that does not compress, so that it travels in several pieces.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::new();
    for _ in 0..1_500_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state >> 24).to_le_bytes());
    }
    bytes
}

fn get(url: &str) -> Vec<u8> {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{url}: {}",
        String::from_utf8_lossy(&answer[..end])
    );
    answer.split_off(end + 4)
}

#[test]
fn releases_reach_a_server_that_was_empty_and_are_served() {
    let mut scene = Scene::new();
    scene.serve();
    scene.release(&scene.repo(), "1.0.0", &noise(1));
    let dry = scene.publish(&scene.repo(), &["--dry-run"]).expect(0);
    assert!(dry.stdout.starts_with("would publish"), "{}", dry.stdout);
    assert!(scene.served().is_empty());
    let run = scene.publish(&scene.repo(), &[]).expect(0);
    assert!(
        !run.stderr.contains("no use for"),
        "everything offered is part of the repository: {}",
        run.stderr
    );
    // What is served is the vendor's repository, and both verifiers accept it.
    for (name, bytes) in scene.served() {
        assert!(fs::read(scene.repo().join(&name)).unwrap() == bytes, "{name}");
        assert!(get(&format!("{}/{name}", scene.url())) == bytes, "{name}");
    }
    crate::run("fwsign", &["verify", text(&scene.path("served"))]).expect(0);
    scene.publish(&scene.repo(), &[]).expect_error(4, "already");
    scene.release(&scene.repo(), "1.1.0", &noise(2));
    scene.publish(&scene.repo(), &[]).expect(0);
    crate::run("fwsign", &["verify", text(&scene.path("served"))]).expect(0);
    // The directory is plain files: a copy made by other means goes on under the same rules.
    let copy = scene.path("copy");
    let served = scene.path("served");
    crate::run("fwsign", &["publish", text(&served), "--dir", text(&copy)]).expect(0);
    crate::run("fwsign", &["publish", text(&scene.repo()), "--dir", text(&copy)]).expect_error(4, "already");
}

#[test]
fn rollback_forks_and_strangers_are_refused_and_nothing_changes() {
    let mut scene = Scene::new();
    scene.serve();
    let fork = scene.path("fork");
    copy(&scene.repo(), &fork);
    let old = scene.path("old");
    copy(&scene.repo(), &old);
    scene.release(&scene.repo(), "1.0.0", b"one");
    scene.publish(&scene.repo(), &[]).expect(0);
    let before = scene.served();
    scene.publish(&old, &[]).expect_error(1, "older than version 2");
    scene.release(&fork, "1.0.0", b"another");
    scene.publish(&fork, &[]).expect_error(1, "somebody else published");
    // Ahead by numbers, but it is another history.
    scene.release(&fork, "1.1.0", b"more");
    scene.publish(&fork, &[]).expect_error(1, "does not continue");
    assert!(scene.served() == before);
    // Another vendor: the server judges from the root that it trusts.
    let stranger = Scene::new();
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        stranger.release(&stranger.repo(), version, version.as_bytes());
    }
    scene
        .publish(&stranger.repo(), &[])
        .expect_error(1, "does not continue");
    scene
        .publish(&stranger.repo(), &["--allow-fork"])
        .expect_error(1, "1.root.json is published with sha256");
    fs::remove_file(stranger.repo().join("metadata/1.root.json")).unwrap();
    fs::copy(
        scene.repo().join("metadata/1.root.json"),
        stranger.repo().join("metadata/1.root.json"),
    )
    .unwrap();
    scene
        .publish(&stranger.repo(), &["--allow-fork"])
        .expect_error(1, "does not verify");
    assert!(scene.served() == before);
    fs::write(scene.path("token"), "guessed\n").unwrap();
    scene.release(&scene.repo(), "1.1.0", b"two");
    scene
        .publish(&scene.repo(), &[])
        .expect_error(3, "does not accept the token");
    assert!(scene.served() == before);
}

#[test]
fn an_expired_product_keeps_nobody_else_from_publishing() {
    let mut scene = Scene::new();
    scene.serve();
    scene.release(&scene.repo(), "1.0.0", b"one");
    scene.publish(&scene.repo(), &[]).expect(0);
    let ten_days_ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 10 * 86_400;
    let refreshed = |extra: &[&str]| {
        let output = Command::new(binary("fwsign"))
            .args(["refresh", text(&scene.repo()), "--keys-dir", text(scene.dir.path())])
            .args(["--timestamp-days", "100", "--snapshot-days", "100"])
            .args(extra)
            .env("SOURCE_DATE_EPOCH", ten_days_ago.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    refreshed(&["--role", "router", "--product-days", "1"]);
    scene.publish(&scene.repo(), &[]).expect(0);
    let status = run("fwsign", &["status", text(&scene.repo())]).expect(1);
    assert!(status.stdout.contains("router"), "{}", status.stdout);
    // Positive control: an expired role that everybody needs is refused.
    let before = scene.served();
    refreshed(&["--role", "targets", "--targets-days", "1"]);
    scene.publish(&scene.repo(), &[]).expect_error(1, "expired");
    assert!(scene.served() == before);
}

#[test]
fn a_killed_publisher_and_a_restarted_server_lose_nothing() {
    let mut scene = Scene::new();
    scene.serve();
    scene.publish(&scene.repo(), &[]).expect(0);
    scene.release(&scene.repo(), "1.0.0", &noise(3));
    let before = scene.served();
    let mut interrupted = 0;
    for delay in [0, 30, 60, 120, 200, 300] {
        let (url, token) = (scene.url(), scene.path("token"));
        let mut child = Command::new(binary("fwsign"))
            .args([
                "publish",
                text(&scene.repo()),
                "--server",
                &url,
                "--token-file",
                text(&token),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        let finished = child.wait().unwrap().success();
        interrupted += u32::from(!finished);
        crate::run("fwsign", &["verify", text(&scene.path("served"))]).expect(0);
        if scene.served() != before {
            break;
        }
        // A new process of the server finds the parts of uploads.
        scene.server = None;
        scene.serve();
    }
    assert!(interrupted > 0, "no publisher was killed in time");
    let run = scene.publish(&scene.repo(), &[]);
    assert!(matches!(run.code, 0 | 4), "{}", run.stderr);
    crate::run("fwsign", &["verify", text(&scene.path("served"))]).expect(0);
    let names: Vec<_> = scene
        .served()
        .into_keys()
        .filter(|name| name.starts_with("targets/router/1.0.0/"))
        .collect();
    assert_eq!(names.len(), 2, "manifest and payload: {names:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
