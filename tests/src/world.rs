//! A vendor, a server and a device in one directory, all three the real programs: what the demo shows and the scenarios
//! check.
//!
//! ```text
//! DIR/keys/*.pem   DIR/repo/ (vendor)  --fwsign publish-->  fwserve on DIR/published/  <--poll--  DIR/device/
//! ```

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, bail, ensure};

use crate::bins::binary;

/// Product of the device.
pub const PRODUCT: &str = "router";
/// Roles that have a key each, besides the two of root.
const ROLES: [&str; 4] = ["targets", "snapshot", "timestamp", "product"];

/// What a slot of the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// Directories with unpacked archives.
    Dirs,
    /// Files with raw images.
    Files,
}

/// Vendor, server and device.
#[derive(Debug)]
pub struct World {
    dir: PathBuf,
    port: u16,
    /// Certificate and key of the server, when it speaks TLS.
    tls: Option<(String, String)>,
    server: Option<Child>,
}

/// What a program printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code; −1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The last line of standard output as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        let line = self.out.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("not JSON: {line:?} ({})", self.err))
    }
}

impl World {
    /// An empty world in `dir`, whose server will listen on a free port of the loopback interface.
    ///
    /// # Errors
    /// When the directory cannot be used or no port is free.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        // The server gets its port again after a restart, as a device's configuration names one URL.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self {
            dir: dir.to_owned(),
            port,
            tls: None,
            server: None,
        })
    }

    /// A path in the world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// URL of the server.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Lets the server speak TLS from its next start on, with files of the world.
    pub fn use_tls(&mut self, certificate: &str, key: &str) {
        self.tls = Some((certificate.to_owned(), key.to_owned()));
    }

    /// Runs `fwsign` in the world's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fwsign(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        self.run(&mut self.command("fwsign", arguments))
    }

    /// Runs `fwsign`, which must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn sign(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        let ran = self.fwsign(arguments)?;
        ensure!(
            ran.code == 0,
            "fwsign {} ended with {}: {}",
            arguments.join(" "),
            ran.code,
            ran.err
        );
        Ok(ran)
    }

    /// Runs `fwagent` on the device.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fwagent(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        self.run(&mut self.agent_command(arguments))
    }

    /// `fwagent` on the device, to be started.
    pub fn agent_command(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["--config", "device.toml"];
        all.extend(arguments);
        self.command("fwagent", &all)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary(program));
        command
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            // A proxy of whoever runs this is not for the loopback interface.
            .env("NO_PROXY", "127.0.0.1")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<Ran> {
        let output = command.output().with_context(|| format!("starting {command:?}"))?;
        Ok(Ran::of(output))
    }

    /// The vendor's first day: keys and an empty repository.
    ///
    /// # Errors
    /// When a step fails.
    pub fn found_vendor(&self) -> anyhow::Result<()> {
        fs::create_dir_all(self.path("keys"))?;
        for name in ["root-1", "root-2"].iter().chain(&ROLES) {
            self.sign(&["keygen", "--unencrypted", &format!("keys/{name}.pem")])?;
        }
        let product = format!("{PRODUCT}=keys/product.pem");
        self.sign(&[
            "init",
            "repo",
            "--root-key",
            "keys/root-1.pem",
            "--root-key",
            "keys/root-2.pem",
            "--targets-key",
            "keys/targets.pem",
            "--snapshot-key",
            "keys/snapshot.pem",
            "--timestamp-key",
            "keys/timestamp.pem",
            "--product",
            &product,
        ])?;
        Ok(())
    }

    /// Signs a release of a directory tree or of a raw image.
    ///
    /// # Errors
    /// When it fails.
    pub fn release(&self, version: &str, content: &Path, more: &[&str]) -> anyhow::Result<Ran> {
        let content_path = content.display().to_string();
        let kind = if content.is_dir() { "--tar" } else { "--image" };
        let mut arguments = vec![
            "release",
            "add",
            "repo",
            "--product",
            PRODUCT,
            "--version",
            version,
            "--hardware",
            "rev-b",
            kind,
            &content_path,
            "--level",
            "3",
            "--keys-dir",
            "keys",
        ];
        arguments.extend(more);
        self.sign(&arguments)
    }

    /// Starts the server on a directory, with the publish API, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn serve(&mut self, published: &str) -> anyhow::Result<()> {
        self.stop_server();
        fs::create_dir_all(self.path(published))?;
        if !self.path("token").exists() {
            let mut made = self.command("fwserve", &["token", "new", "--name", "ci", "--file", "tokens"]);
            let made = self.run(&mut made)?;
            ensure!(made.code == 0, "fwserve token new: {}", made.err);
            fs::write(self.path("token"), made.out)?;
        }
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = self.command(
            "fwserve",
            &[
                "serve",
                "--repo",
                published,
                "--listen",
                &listen,
                "--publish-token-file",
                "tokens",
                "--trusted-root",
                "repo/metadata/1.root.json",
                "--access-log",
                "access.log",
            ],
        );
        if let Some((certificate, key)) = &self.tls {
            command.args(["--tls-cert", certificate, "--tls-key", key]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        if !line.starts_with("listening") {
            // It has said why on standard error.
            let _ = child.kill();
            bail!("fwserve did not start: {:?}", child.wait()?);
        }
        self.server = Some(child);
        Ok(())
    }

    /// Stops the server, as a crash would.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself; either way it is gone afterwards.
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Publishes the vendor's repository to the server.
    ///
    /// # Errors
    /// When it fails.
    pub fn publish(&self) -> anyhow::Result<Ran> {
        self.sign(&["publish", "repo", "--server", &self.url(), "--token-file", "token"])
    }

    /// Writes the device's configuration: two slots below `device/`, quick polls, `more` at the end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, slots: Slots, more: &str) -> anyhow::Result<()> {
        let mut text = format!(
            "[device]\nproduct = \"{PRODUCT}\"\nhardware = \"rev-b\"\n\n[server]\nurl = \"{}\"\n\n\
             [state]\ndir = \"device/state\"\n\n[poll]\ninterval_s = 1\njitter_s = 0\nretry_s = 1\n\n\
             [restart]\nmode = \"exit\"\n",
            self.url()
        );
        for name in ["a", "b"] {
            let (kind, suffix) = match slots {
                Slots::Dirs => ("dir", ""),
                Slots::Files => ("file", ".img"),
            };
            text.push_str(&format!(
                "\n[[slot]]\nname = \"{name}\"\nkind = \"{kind}\"\npath = \"device/slot-{name}{suffix}\"\n"
            ));
        }
        text.push_str(more);
        let mut file = fs::File::create(self.path("device.toml"))?;
        file.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Lets the device's configuration name another server.
    ///
    /// # Errors
    /// When it cannot be rewritten.
    pub fn point_at(&self, url: &str) -> anyhow::Result<()> {
        let path = self.path("device.toml");
        let text = fs::read_to_string(&path)?;
        let lines = text.lines().map(|line| {
            if line.starts_with("url = ") {
                format!("url = \"{url}\"\n")
            } else {
                format!("{line}\n")
            }
        });
        fs::write(path, lines.collect::<String>())?;
        Ok(())
    }

    /// Runs `fwsign`, which must succeed, at another time: so many days from now, or before now.
    ///
    /// # Errors
    /// When it does not.
    pub fn sign_at(&self, days: i64, arguments: &[&str]) -> anyhow::Result<Ran> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let then = i64::try_from(now.as_secs())? + days * 86_400;
        let mut command = self.command("fwsign", arguments);
        let ran = self.run(command.env("SOURCE_DATE_EPOCH", then.to_string()))?;
        ensure!(ran.code == 0, "fwsign {}: {}", arguments.join(" "), ran.err);
        Ok(ran)
    }

    /// What `fwagent status --json` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        let ran = self.fwagent(&["--json", "status"])?;
        ensure!(ran.code == 0, "fwagent status: {}{}", ran.out, ran.err);
        ran.json()
    }

    /// Copies a directory of the world.
    ///
    /// # Errors
    /// When it fails.
    pub fn copy(&self, from: &str, to: &str) -> anyhow::Result<()> {
        copy_tree(&self.path(from), &self.path(to)).with_context(|| format!("copying {from} to {to}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_server();
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
