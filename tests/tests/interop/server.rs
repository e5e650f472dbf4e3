//! Servers on a loopback port: ours, and the plainest one there is.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fwtests::bins::binary;

use crate::peers::run;

/// A server that ends with its value.
pub struct Server {
    child: Child,
    /// Base URL without a slash at its end.
    pub url: String,
}

impl Server {
    /// The real fwserve, which takes publications for `DIR/repo` by the token in `DIR/token`.
    pub fn taking(dir: &Path, root: &Path) -> Self {
        let tokens = dir.join("tokens");
        let mut command = Command::new(binary("fwserve"));
        let made = run(command.args(["token", "new", "--name", "ci", "--file"]).arg(&tokens));
        fs::write(dir.join("token"), made.expect("a token")).expect("writing the token");
        fs::create_dir(dir.join("repo")).expect("a directory for the repository");
        let mut command = Command::new(binary("fwserve"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--repo"])
            .arg(dir.join("repo"));
        command
            .arg("--publish-token-file")
            .arg(tokens)
            .arg("--trusted-root")
            .arg(root);
        Self::start(command, our_address)
    }

    /// The real fwserve, read-only.
    pub fn fwserve(repo: &Path) -> Self {
        let mut command = Command::new(binary("fwserve"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--repo"]).arg(repo);
        Self::start(command, our_address)
    }

    /// Python's file server, which knows nothing about repositories.
    pub fn python(repo: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"]);
        command.arg(repo).stderr(Stdio::null());
        Self::start(command, |line| {
            let port = line.split(" port ").nth(1)?.split(' ').next()?;
            Some(format!("http://127.0.0.1:{port}"))
        })
    }

    /// Starts a server that prints where it listens as its first line.
    fn start(mut command: Command, url: impl Fn(&str) -> Option<String>) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {}: {error}", command.get_program().display()));
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the first line");
        let url = url(line.trim()).unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { child, url }
    }
}

fn our_address(line: &str) -> Option<String> {
    line.strip_prefix("listening on ").map(str::to_owned)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
