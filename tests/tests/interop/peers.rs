//! Devices: our client and those of other people, behind one interface.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwtests::bins::binary;
use fwtests::tools::skip;
use tempfile::TempDir;

/// Where `setup.sh` puts the peers.
pub fn tools() -> PathBuf {
    match std::env::var_os("FWTESTS_TOOLS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop-tools"),
    }
}

/// A file of the tests.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

/// The path of a peer's program if it is installed. Says that a test is skipped if not, which CI does not accept.
pub fn installed(peer: &str, program: &str) -> Option<PathBuf> {
    let path = tools().join(program);
    if path.exists() {
        return Some(path);
    }
    let reason = format!(
        "{peer} is not installed (no {}): run tests/tests/interop/setup.sh",
        path.display()
    );
    skip(&reason);
    None
}

/// Runs a command and returns its standard output, or all that it said as an error.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("starting {}: {error}", command.get_program().display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!(
            "{}: {}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        ))
    }
}

/// An implementation of the client workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Fwagent,
    PythonTuf,
    TufJs,
    /// Keeps no state between its calls.
    Tuftool,
}

impl Client {
    /// Its program; `None`, and said so, when it is not installed.
    pub fn program(self) -> Option<PathBuf> {
        match self {
            Self::Fwagent => Some(binary("fwagent")),
            Self::PythonTuf => installed("python-tuf", "python/bin/python"),
            Self::TufJs => installed("tuf-js", "node/node_modules/tuf-js").map(|_| PathBuf::from("node")),
            Self::Tuftool => installed("tuftool", "bin/tuftool"),
        }
    }
}

/// A device that trusts a vendor's first root.
pub struct Device {
    client: Client,
    program: PathBuf,
    state: TempDir,
    root: PathBuf,
}

/// What a device has after a call.
#[derive(Debug)]
pub struct Fetched {
    /// Version of the timestamp that it trusts; `None` for a client that keeps no state.
    pub timestamp: Option<u64>,
    /// The targets that were asked for.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Device {
    /// A new device.
    pub fn new(client: Client, program: &Path, root: &Path) -> Self {
        Self {
            client,
            program: program.to_owned(),
            state: TempDir::new().expect("a temporary directory"),
            root: root.to_owned(),
        }
    }

    /// Refreshes and downloads targets.
    ///
    /// # Errors
    /// What the client said when it refused.
    pub fn fetch(&self, url: &str, targets: &[&str]) -> Result<Fetched, String> {
        let (metadata, files) = (format!("{url}/metadata/"), format!("{url}/targets/"));
        let (timestamp, paths) = match self.client {
            Client::Fwagent => self.fwagent(&metadata, &files, targets)?,
            Client::PythonTuf => {
                let mut command = Command::new(&self.program);
                command.arg(script("python_client.py"));
                self.by_script(command, &metadata, &files, targets)?
            }
            Client::TufJs => {
                let mut command = Command::new(&self.program);
                command.env("NODE_PATH", tools().join("node/node_modules"));
                command.arg(script("tufjs_client.js"));
                self.by_script(command, &metadata, &files, targets)?
            }
            Client::Tuftool => self.tuftool(&metadata, &files, targets)?,
        };
        let read = |(target, path): (String, PathBuf)| {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{target} in {}: {error}", path.display()));
            (target, bytes)
        };
        Ok(Fetched {
            timestamp,
            files: paths.into_iter().map(read).collect(),
        })
    }

    fn fwagent(&self, metadata: &str, files: &str, targets: &[&str]) -> Result<Found, String> {
        let (dir, downloads) = (self.state.path().join("metadata"), self.state.path().join("targets"));
        let tuf = || {
            let mut command = Command::new(&self.program);
            command.arg("tuf").arg("--metadata-dir").arg(&dir);
            command
        };
        if !dir.join("root.json").exists() {
            run(tuf().arg("init").arg(&self.root))?;
        }
        run(tuf().args(["--metadata-url", metadata, "refresh"]))?;
        let mut found = BTreeMap::new();
        for target in targets {
            let mut command = tuf();
            command.args([
                "--metadata-url",
                metadata,
                "--target-base-url",
                files,
                "--target-name",
                target,
            ]);
            run(command.arg("--target-dir").arg(&downloads).arg("download"))?;
            // Like python-tuf, it stores a target under its escaped path.
            let path = fwmeta::layout::local_part(target);
            found.insert((*target).to_owned(), downloads.join(path));
        }
        let bytes = fs::read(dir.join("timestamp.json")).map_err(|error| error.to_string())?;
        let timestamp: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        Ok((timestamp["signed"]["version"].as_u64(), found))
    }

    fn by_script(&self, mut command: Command, metadata: &str, files: &str, targets: &[&str]) -> Result<Found, String> {
        command
            .arg(self.state.path())
            .arg(&self.root)
            .args([metadata, files])
            .args(targets);
        let text = run(&mut command)?;
        let answer: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let found = answer["files"].as_object().into_iter().flatten();
        let found = found.filter_map(|(target, path)| Some((target.clone(), PathBuf::from(path.as_str()?))));
        Ok((answer["timestamp"].as_u64(), found.collect()))
    }

    fn tuftool(&self, metadata: &str, files: &str, targets: &[&str]) -> Result<Found, String> {
        // It insists on a directory that does not exist.
        let downloads = self.state.path().join("targets");
        let _ = fs::remove_dir_all(&downloads);
        let mut command = Command::new(&self.program);
        command.args([
            "--log-level",
            "error",
            "download",
            "--metadata-url",
            metadata,
            "--targets-url",
            files,
            "--root",
        ]);
        command.arg(&self.root);
        for target in targets {
            command.args(["--target-name", target]);
        }
        run(command.arg(&downloads))?;
        let found = targets
            .iter()
            .map(|target| ((*target).to_owned(), downloads.join(target)));
        Ok((None, found.collect()))
    }
}

/// Version of the timestamp, and where each target lies.
type Found = (Option<u64>, BTreeMap<String, PathBuf>);
