//! A device under test: what scenarios do with it, and what they compare.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fwmeta::hex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::bins::binary;
use crate::world::{Ran, Slots, World};

/// Only a broken agent lets anybody wait so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Health check out of the slot: every release of a tree brings its own.
pub const CHECK: &str = "\n[[health.check]]\nname = \"own\"\ncommand = [\"{slot}/check\"]\ntimeout_s = 60\n";

/// The health check of a device with such slots: out of the slot for a tree, and of an image its last bytes.
pub fn check_of(slots: Slots) -> &'static str {
    match slots {
        Slots::Dirs => CHECK,
        Slots::Files => {
            "\n[[health.check]]\nname = \"byte\"\ncommand = [\"sh\", \"-c\", \"! tail -c 3 \\\"$0\\\" | grep -q bad\", \
             \"{slot}\"]\n"
        }
    }
}

/// A world in a temporary directory, whose vendor has keys and a repository, and whose server runs.
#[derive(Debug)]
pub struct Scene {
    /// The world.
    pub world: World,
    _dir: TempDir,
}

/// How a release does in its health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It passes.
    Good,
    /// It fails.
    Bad,
}

impl Scene {
    /// A vendor and a server; nothing is published.
    ///
    /// # Errors
    /// When a step fails.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut world = World::new(dir.path())?;
        world.found_vendor()?;
        world.serve("published")?;
        Ok(Self { world, _dir: dir })
    }

    /// With 1.0.0 published, and a device that is provisioned with it.
    ///
    /// # Errors
    /// When a step fails.
    pub fn provisioned(slots: Slots, config: &str) -> anyhow::Result<Self> {
        let scene = Self::new()?;
        match slots {
            Slots::Dirs => scene.publish_tree("1.0.0", Health::Good, &[])?,
            Slots::Files => scene.publish_image("1.0.0", &[])?,
        };
        scene.world.configure(slots, config)?;
        scene.ends(
            0,
            &["provision", "--root", "repo/metadata/1.root.json", "--from-server"],
        )?;
        Ok(scene)
    }

    /// Replaces a text in the device's configuration.
    ///
    /// # Errors
    /// When it is not there.
    pub fn edit(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.world.path("device.toml");
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "the configuration has no {from:?}");
        fs::write(path, text.replace(from, to))?;
        Ok(())
    }

    /// Runs `fwagent`, which must end with this code.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn ends(&self, code: i32, arguments: &[&str]) -> anyhow::Result<Ran> {
        let ran = self.world.fwagent(arguments)?;
        ensure!(
            ran.code == code,
            "fwagent {} ended with {} instead of {code}:\n{}{}",
            arguments.join(" "),
            ran.code,
            ran.out,
            ran.err
        );
        Ok(ran)
    }

    /// Like [`ends`](Self::ends), and nothing on the device may change.
    ///
    /// # Errors
    /// When it ends otherwise, or something changes.
    pub fn refuses(&self, code: i32, arguments: &[&str]) -> anyhow::Result<Ran> {
        let before = self.device()?;
        let ran = self.ends(code, arguments)?;
        same(&before, &self.device()?)?;
        Ok(ran)
    }

    /// A tree to be released, with a file `version` and a health check.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn tree(&self, version: &str, health: Health) -> anyhow::Result<PathBuf> {
        let root = self.world.path(&format!("build/{version}"));
        fs::create_dir_all(root.join("etc"))?;
        fs::write(root.join("version"), version)?;
        fs::write(root.join("etc/data"), noise(version, 20_000))?;
        let script = match health {
            Health::Good => "#!/bin/sh\nexit 0\n",
            Health::Bad => "#!/bin/sh\necho 'the radio is silent'\nexit 7\n",
        };
        fs::write(root.join("check"), script)?;
        fs::set_permissions(root.join("check"), fs::Permissions::from_mode(0o755))?;
        Ok(root)
    }

    /// Releases and publishes a [`tree`](Self::tree).
    ///
    /// # Errors
    /// When a step fails.
    pub fn publish_tree(&self, version: &str, health: Health, more: &[&str]) -> anyhow::Result<PathBuf> {
        let tree = self.tree(version, health)?;
        self.world.release(version, &tree, more)?;
        self.world.publish()?;
        Ok(tree)
    }

    /// Releases and publishes a raw image.
    ///
    /// # Errors
    /// When a step fails.
    pub fn publish_image(&self, version: &str, more: &[&str]) -> anyhow::Result<PathBuf> {
        let image = self.world.path(&format!("{version}.img"));
        fs::write(&image, noise(version, 300_000))?;
        self.world.release(version, &image, more)?;
        self.world.publish()?;
        Ok(image)
    }

    /// Releases and publishes a tree or an image that does so under [`check_of`].
    ///
    /// # Errors
    /// When a step fails.
    pub fn publish_either(&self, slots: Slots, version: &str, health: Health) -> anyhow::Result<()> {
        match slots {
            Slots::Dirs => {
                self.publish_tree(version, health, &[])?;
            }
            Slots::Files => {
                let image = self.world.path(&format!("{version}.img"));
                let mut bytes = noise(version, 300_000);
                bytes.extend_from_slice(if health == Health::Bad { b"bad" } else { b"ok" });
                fs::write(&image, bytes)?;
                self.world.release(version, &image, &[])?;
                self.world.publish()?;
            }
        }
        Ok(())
    }

    /// Checks that what was booted is, byte for byte, what the record says, and that no floor has fallen; the status.
    ///
    /// # Errors
    /// When it is not so.
    pub fn sound(&self, slots: Slots, slot: &str, floors: &mut Value) -> anyhow::Result<Value> {
        let status = self.world.status()?;
        ensure!(status["running"] == slot, "{slot} was booted: {status}");
        let version = status["running_release"]["version"].as_str();
        let version = version.with_context(|| format!("slot {slot} was booted, which holds nothing: {status}"))?;
        let equal = match slots {
            Slots::Dirs => {
                let held = fs::canonicalize(self.world.path(&format!("device/slot-{slot}/current")))?;
                files_of(&held)? == files_of(&self.world.path(&format!("build/{version}")))?
            }
            Slots::Files => {
                let held = fs::read(self.world.path(&format!("device/slot-{slot}.img")))?;
                held == fs::read(self.world.path(&format!("{version}.img")))?
            }
        };
        ensure!(equal, "slot {slot} is not {version}");
        ensure!(
            floors_at_least(&status["floors"], floors),
            "floors fell from {floors} to {}",
            status["floors"]
        );
        *floors = status["floors"].clone();
        Ok(status)
    }

    /// Chooses a slot and spends an attempt, as a boot loader does; the slot's name.
    ///
    /// # Errors
    /// When there is nothing to boot.
    pub fn boot(&self) -> anyhow::Result<String> {
        let ran = self.ends(0, &["--json", "boot"])?;
        let slot = ran.json()?["slot"].as_str().map(str::to_owned);
        slot.context("boot names no slot")
    }

    /// The file `version` in a directory slot.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn version_in(&self, slot: &str) -> anyhow::Result<String> {
        let path = self.world.path(&format!("device/slot-{slot}/current/version"));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Every file of the device by its path, with its digest; without locks, notes, statements and downloads.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn device(&self) -> anyhow::Result<Files> {
        files_of(&self.world.path("device"))
    }

    /// The verdict that the last check reached about a version, out of `explain`.
    ///
    /// # Errors
    /// When there is none.
    pub fn verdict(&self, version: &str) -> anyhow::Result<String> {
        let explained = self.ends(0, &["--json", "explain"])?.json()?;
        let considered = explained["last_check"]["found"]["considered"].as_array();
        let one = considered
            .into_iter()
            .flatten()
            .find(|one| one["version"] == version)
            .with_context(|| format!("{version} was not considered: {explained}"))?;
        let verdict = one["verdict"].as_str().unwrap_or_default().to_owned();
        let text = self.ends(0, &["explain"])?.out;
        ensure!(text.contains(&verdict), "explain does not say {verdict:?}: {text}");
        Ok(verdict)
    }

    /// Starts `fwagent --json run`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self) -> anyhow::Result<Agent> {
        Agent::start(&mut self.world.agent_command(&["--json", "run"]))
    }

    /// Switches the device on: boots, and runs the agent in the slot, anew whenever it ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn switch_on(&self) -> anyhow::Result<Agent> {
        let agent = binary("fwagent").display().to_string();
        let arguments = [
            "boot",
            "--supervise",
            "--",
            &agent,
            "--config",
            "device.toml",
            "--json",
            "run",
        ];
        Agent::start(&mut self.world.agent_command(&arguments))
    }

    /// Waits until the device's status is as wanted.
    ///
    /// # Errors
    /// When it never is.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let start = Instant::now();
        loop {
            let status = self.world.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(start.elapsed() < PATIENCE, "the device did not {what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the device rests on a version.
    ///
    /// # Errors
    /// When it never does.
    pub fn rests_on(&self, version: &str) -> anyhow::Result<Value> {
        self.wait(&format!("come to rest on {version}"), |status| {
            status["phase"] == "idle" && status["running_release"]["version"] == version
        })
    }

    /// Statuses that the server gave for paths that end so, in order.
    ///
    /// # Errors
    /// When there is no log.
    pub fn served(&self, suffix: &str) -> anyhow::Result<Vec<u64>> {
        let log = fs::read_to_string(self.world.path("access.log"))?;
        let mut statuses = Vec::new();
        for line in log.lines() {
            let entry: Value = serde_json::from_str(line)?;
            if entry["path"].as_str().is_some_and(|path| path.ends_with(suffix)) {
                statuses.extend(entry["status"].as_u64());
            }
        }
        Ok(statuses)
    }
}

/// Files by path.
pub type Files = BTreeMap<String, String>;

/// Every file of a device in `root` by its path, with its digest; without locks, notes, statements and downloads.
///
/// # Errors
/// When it cannot be read.
pub fn files_of(root: &Path) -> anyhow::Result<Files> {
    let mut files = Files::new();
    if root.exists() {
        list(root, "", &mut files)?;
    }
    files.retain(|path, _| {
        let note = path.ends_with("last-check.json") || path.starts_with("/state/report.");
        let result = path.ends_with("bundle-result.json");
        !(note || result || path.ends_with(".lock") || path.starts_with("/state/downloads"))
    });
    Ok(files)
}

/// Whether no floor of a status is below that of an earlier one.
pub fn floors_at_least(now: &Value, before: &Value) -> bool {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let component = |floors: &Value, field: &str| number(&floors["components"][0][field]);
    let metadata = |role: &str| number(&now[role]["version"]) >= number(&before[role]["version"]);
    number(&now["root"]) >= number(&before["root"])
        && metadata("timestamp")
        && metadata("snapshot")
        && now["time"].as_str() >= before["time"].as_str()
        && component(now, "sequence") >= component(before, "sequence")
        && component(now, "security") >= component(before, "security")
}

/// Names the files that differ, if any.
///
/// # Errors
/// When any does.
pub fn same(before: &Files, after: &Files) -> anyhow::Result<()> {
    let paths: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .collect();
    ensure!(changed.is_empty(), "changed on the device: {changed:?}");
    Ok(())
}

fn list(dir: &Path, prefix: &str, files: &mut Files) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.insert(name.clone(), "directory".to_owned());
            list(&entry.path(), &name, files)?;
        } else if kind.is_symlink() {
            files.insert(name, format!("link to {}", fs::read_link(entry.path())?.display()));
        } else {
            let bytes = fs::read(entry.path())?;
            files.insert(name, hex::encode(&Sha256::digest(&bytes)));
        }
    }
    Ok(())
}

/// Bytes that do not compress, always the same for a seed.
pub fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    let mut counter = 0_u64;
    while bytes.len() < length {
        bytes.extend_from_slice(&Sha256::digest(format!("{seed} {counter}")));
        counter += 1;
    }
    bytes.truncate(length);
    bytes
}

/// A running agent, and what it says.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    said: Arc<Mutex<Vec<Value>>>,
}

impl Agent {
    /// Starts a command that prints JSON objects, one a line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = child.stdout.take().context("no standard output")?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(value);
            }
        });
        Ok(Self { child, said })
    }

    /// Everything that it has said.
    pub fn said(&self) -> Vec<Value> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has said something after the first `skip` lines; how many lines there are up to that, and the line.
    ///
    /// # Errors
    /// When it never does.
    pub fn hears(&mut self, skip: usize, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<(usize, Value)> {
        let start = Instant::now();
        loop {
            let said = self.said();
            if let Some(at) = said.iter().skip(skip).position(&wanted) {
                return Ok((skip + at + 1, said[skip + at].clone()));
            }
            if start.elapsed() > PATIENCE {
                bail!("never said: {said:#?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a status line that begins so.
    ///
    /// # Errors
    /// When there never is one.
    pub fn status(&mut self, skip: usize, beginning: &str) -> anyhow::Result<(usize, String)> {
        let (at, line) = self.hears(skip, |line| {
            line["status"]
                .as_str()
                .is_some_and(|status| status.starts_with(beginning))
        })?;
        Ok((at, line["status"].as_str().unwrap_or_default().to_owned()))
    }

    /// Sends a signal, by its name.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status()?;
        ensure!(sent.success(), "SIG{name} could not be sent");
        Ok(())
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When that fails.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        // It may have ended by itself.
        let _ = self.child.kill();
        Ok(self.child.wait()?)
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(start.elapsed() < PATIENCE, "does not end: {:#?}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, which it must do with code 0.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        let status = self.end()?;
        ensure!(status.success(), "ended with {status}: {:#?}", self.said());
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
