//! What must hold.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use fwmeta::hex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{SETTINGS, Story};
use crate::device::floors_at_least;
use crate::vm::guest::Fate;
use crate::vm::run;

/// Something that must hold did not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(String);

/// The error for it.
pub(super) fn violated<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(Violation(text.into()).into())
}

/// A release that was published.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) fate: Fate,
    pub(super) size: u64,
    pub(super) sha256: String,
}

impl Release {
    pub(super) fn of(fate: Fate, image: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(image)?;
        Ok(Self {
            fate,
            size: bytes.len() as u64,
            sha256: digest(&bytes),
        })
    }
}

impl Story {
    /// What must hold: the device knows what it runs, no floor has fallen, and when it has just come up, every slot that
    /// is said to hold a release holds it byte for byte.
    pub(super) fn sound(&mut self, text: &str, status: &Value, up: Option<&str>) -> anyhow::Result<()> {
        if status.get("phase").is_none() {
            return violated(format!("the agent has no status: {text}"));
        }
        if status["running"] != self.chosen.as_str() {
            return violated(format!(
                "the loader chose slot {}, and the agent says {status}",
                self.chosen
            ));
        }
        if !self.floors.is_null() && !floors_at_least(&status["floors"], &self.floors) {
            return violated(format!("floors fell from {} to {}", self.floors, status["floors"]));
        }
        self.floors = status["floors"].clone();
        self.ended(&status["last"])?;
        let Some(up) = up else {
            return Ok(());
        };
        if status["running_release"]["version"] != up {
            return violated(format!("{up} runs, and the agent says {status}"));
        }
        for slot in status["slots"].as_array().into_iter().flatten() {
            let name = slot["slot"].as_str().unwrap_or_default();
            if let Some(version) = slot["release"]["version"].as_str()
                && slot["status"] != "empty"
            {
                self.holds(name, version)?;
            }
        }
        Ok(())
    }

    /// Counts how an update ended; only a good one may be confirmed.
    pub(super) fn ended(&mut self, last: &Value) -> anyhow::Result<()> {
        let (result, version) = (&last["result"], &last["release"]["version"]);
        if *last == self.last || last.is_null() {
            return Ok(());
        }
        self.last = last.clone();
        let fate = self
            .releases
            .get(version.as_str().unwrap_or_default())
            .map(|release| release.fate);
        let Some(fate) = fate else {
            return violated(format!("an update ended that was never released: {last}"));
        };
        let result = result.as_str().unwrap_or_default();
        *self
            .summary
            .results
            .entry(format!("{} {result}", fate.word()))
            .or_default() += 1;
        if result == "confirmed" && fate != Fate::Good {
            return violated(format!("{version}, which is {}, was confirmed", fate.word()));
        }
        Ok(())
    }

    pub(super) fn holds(&self, slot: &str, version: &str) -> anyhow::Result<()> {
        let Some(release) = self.releases.get(version) else {
            return violated(format!(
                "slot {slot} is said to hold {version}, which was never released"
            ));
        };
        let partition = self.layout.find(&format!("root{slot}"))?;
        let bytes = self.server.disk(|disk| disk.read(partition.offset, release.size))?;
        if digest(&bytes) != release.sha256 {
            return violated(format!(
                "slot {slot} is said to hold {version}, and holds something else"
            ));
        }
        Ok(())
    }

    /// After a clean stop: the file system is consistent, the settings are there, and nothing is left over.
    pub(super) fn data_is_whole(&mut self) -> anyhow::Result<()> {
        let partition = self.layout.find("data")?;
        self.server.freeze();
        self.machine.take().context("the device is switched off")?.kill()?;
        let bytes = self
            .server
            .when_gone(|disk| disk.read(partition.offset, partition.size))?;
        let image = self.world.path("data.img");
        fs::write(&image, bytes)?;
        let check = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&image)
            .output()
            .context("starting e2fsck")?;
        if !check.status.success() {
            return violated(format!(
                "the data partition: {}",
                String::from_utf8_lossy(&check.stdout)
            ));
        }
        let dump = self.world.path("data");
        fs::create_dir(&dump)?;
        let request = format!("rdump / {}", dump.display());
        run(Command::new("debugfs").args(["-R", &request]).arg(&image))?;
        if fs::read_to_string(dump.join("settings"))? != SETTINGS {
            return violated("the settings are not what they were");
        }
        let left: Vec<String> = crate::device::files_of(&dump.join("state"))?
            .into_keys()
            .filter(|path| path.contains(".tmp-") || path.contains(".partial"))
            .collect();
        if !left.is_empty() {
            return violated(format!("left over: {left:?}"));
        }
        Ok(())
    }
}

pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}

pub(super) fn ensure_held(held: bool, what: &str, status: &Value) -> anyhow::Result<()> {
    if held {
        return Ok(());
    }
    violated(format!("expected was {what}: {status}"))
}
