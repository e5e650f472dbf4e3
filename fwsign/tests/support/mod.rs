//! A workshop for tests: keys, a repository, the real binary, and a look at everything that readers can see.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

pub mod server;

/// What a run of the program gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Asserts the exit code, showing everything when it is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Asserts exit code and a part of the error.
    #[track_caller]
    pub fn expect_error(self, code: i32, part: &str) -> Self {
        let run = self.expect(code);
        assert!(run.stderr.contains(part), "no {part:?} in: {}", run.stderr);
        run
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program with a clean environment and no terminal.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwsign"));
    command.stdin(Stdio::null());
    for variable in [
        "SOURCE_DATE_EPOCH",
        "FWSIGN_PASSPHRASE",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(variable);
    }
    command
}

pub fn fwsign<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    command().args(args).output().unwrap().into()
}

/// Names and contents below a directory, but for the lock, which is no content.
pub type Tree = BTreeMap<String, Vec<u8>>;

pub fn tree(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(path) = stack.pop() {
        let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            stack.extend(entries.map(|entry| entry.unwrap().path()));
            tree.insert(format!("{name}/"), Vec::new());
        } else if name != ".lock" {
            tree.insert(name, fs::read(&path).unwrap());
        }
    }
    tree
}

/// Keys that all tests of a process share: making them costs little, but each test would do it again.
fn keys() -> &'static Path {
    static KEYS: OnceLock<TempDir> = OnceLock::new();
    KEYS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["r1", "r2", "t", "s", "ts", "p", "p2", "stranger"] {
            let file = dir.path().join(format!("{name}.pem"));
            fwsign(["keygen", "--unencrypted", file.to_str().unwrap()]).expect(0);
        }
        dir
    })
    .path()
}

/// Text of a path.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Keys and a directory.
#[derive(Debug)]
pub struct Workshop {
    dir: TempDir,
}

impl Workshop {
    /// Nothing but keys.
    pub fn empty() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A repository with the product `router`.
    pub fn new() -> Self {
        let shop = Self::empty();
        shop.init(&[]).expect(0);
        shop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    pub fn metadata(&self, name: &str) -> PathBuf {
        self.repo().join("metadata").join(name)
    }

    pub fn key(&self, name: &str) -> PathBuf {
        keys().join(format!("{name}.pem"))
    }

    /// A file with these contents.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn init(&self, more: &[&str]) -> Run {
        self.init_command(more).output().unwrap().into()
    }

    pub fn init_command(&self, more: &[&str]) -> Command {
        let mut command = command();
        command.arg("init").arg(self.repo());
        for (option, key) in [
            ("--root-key", "r1"),
            ("--root-key", "r2"),
            ("--targets-key", "t"),
            ("--snapshot-key", "s"),
            ("--timestamp-key", "ts"),
        ] {
            command.arg(option).arg(self.key(key));
        }
        command
            .arg("--product")
            .arg(format!("router={}", self.key("p").display()));
        command.args(more);
        command
    }

    /// `noun… REPO` with all keys.
    pub fn with_keys(&self, command: &[&str], more: &[&str]) -> Run {
        self.command_with_keys(command, more).output().unwrap().into()
    }

    pub fn command_with_keys(&self, nouns: &[&str], more: &[&str]) -> Command {
        let mut command = command();
        command.args(nouns).arg(self.repo());
        for key in ["t", "s", "ts", "p"] {
            command.arg("--key").arg(self.key(key));
        }
        command.args(more);
        command
    }

    /// Adds a release of a small image.
    pub fn release(&self, version: &str, more: &[&str]) -> Run {
        self.release_command(version, more).output().unwrap().into()
    }

    pub fn release_command(&self, version: &str, more: &[&str]) -> Command {
        let image = self.file("image", format!("image of {version}").repeat(500).as_bytes());
        let mut command = self.command_with_keys(
            &["release", "add"],
            &[
                "--product",
                "router",
                "--hardware",
                "rev-b",
                "--level",
                "1",
                "--version",
                version,
            ],
        );
        command.arg("--image").arg(image).args(more);
        command
    }

    pub fn refresh(&self) -> Run {
        self.with_keys(&["refresh"], &[])
    }

    pub fn verify(&self) -> Run {
        fwsign(["verify", text(&self.repo())])
    }

    pub fn publish_to(&self, dir: &Path, more: &[&str]) -> Run {
        let mut command = command();
        command.arg("publish").arg(self.repo()).arg("--dir").arg(dir).args(more);
        command.output().unwrap().into()
    }

    /// A copy of the repository beside it.
    pub fn copy(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        copy_tree(&self.repo(), &to);
        to
    }

    /// The manifest of a release of the router, read from the targets directory.
    pub fn manifest(&self, version: &str) -> serde_json::Value {
        let dir = self.repo().join("targets/router").join(version);
        let file = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let file = file
            .filter(|path| text(path).ends_with(".manifest.json"))
            .last()
            .unwrap();
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    /// The file that holds a release's payload.
    pub fn payload(&self, version: &str) -> PathBuf {
        let dir = self.repo().join("targets/router").join(version);
        let mut files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| text(path).ends_with(".zst")).unwrap()
    }
}

/// The `signed` part of a metadata file.
pub fn signed(path: &Path) -> serde_json::Value {
    let value: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    value["signed"].clone()
}

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
