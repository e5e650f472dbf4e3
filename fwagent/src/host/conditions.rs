//! Gathers the facts that decide whether an update may go on: power, disk space, inhibitors, the user's hold.
//!
//! What it decides: how files and commands of the system are read. What it does not decide: what follows from the facts
//! ([`crate::machine::conditions`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::host::health::readable;
use crate::host::hold_file::HoldFile;
use crate::host::process::{End, Run, run};
use crate::machine::conditions::{Facts, Inhibitor, Policy, Power};
use crate::ports::Conditions;

/// Most entries that are looked at in a directory of the system.
const MAX_ENTRIES: usize = 64;
/// Longest reason of an inhibitor, in bytes.
const REASON_BYTES: u64 = 512;

/// Where the facts are, and what they must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionsConfig {
    /// What the device's maker asks for.
    pub policy: Policy,
    /// Where the kernel shows power supplies.
    pub power_supply_dir: PathBuf,
    /// Where programs put files while an update must wait.
    pub inhibit_dir: PathBuf,
    /// Holds an update off while it does not end with status 0; never asked when empty.
    pub inhibit_command: Vec<String>,
    /// Time for that.
    pub inhibit_timeout: Duration,
    /// Longest hold of the user, in seconds.
    pub hold_max: Option<u64>,
    /// How often to look again while an update waits for something that gives no time.
    pub recheck: Duration,
}

/// The conditions of this device.
#[derive(Debug)]
pub struct HostConditions {
    config: ConditionsConfig,
    state_dir: PathBuf,
    stop: Arc<AtomicBool>,
}

impl HostConditions {
    /// Those of a device with this state directory. When `stop` is set, an inhibit command ends at once.
    pub fn new(config: ConditionsConfig, state_dir: &Path, stop: Arc<AtomicBool>) -> Self {
        Self {
            config,
            state_dir: state_dir.to_owned(),
            stop,
        }
    }

    fn command(&self) -> Option<Inhibitor> {
        let argv: Vec<OsString> = self.config.inhibit_command.iter().map(OsString::from).collect();
        let name = self.config.inhibit_command.first()?.clone();
        let finished = run(&Run {
            argv: &argv,
            env: &[],
            timeout: self.config.inhibit_timeout,
            stop: &self.stop,
        });
        let reason = match finished {
            Err(error) => format!("cannot be started: {error}"),
            Ok(finished) => match finished.end {
                End::Exited(status) if status.success() => return None,
                End::Exited(status) => {
                    let said = readable(&finished.output);
                    let last = said.lines().last().unwrap_or_default();
                    if last.is_empty() {
                        format!("ended with {status}")
                    } else {
                        shortened(last)
                    }
                }
                End::TimedOut => format!("did not end within {:?}", self.config.inhibit_timeout),
                End::Stopped => "the agent is asked to end".to_owned(),
            },
        };
        Some(Inhibitor { name, reason })
    }
}

impl Conditions for HostConditions {
    fn facts(&mut self) -> Facts {
        let mut inhibitors = inhibitors(&self.config.inhibit_dir);
        inhibitors.extend(self.command());
        Facts {
            power: power(&self.config.power_supply_dir),
            free_bytes: free_bytes(&self.state_dir),
            inhibitors,
            hold: HoldFile::new(&self.state_dir).read(),
        }
    }
}

/// What the power supplies in a directory say, as the kernel's `power_supply` class lays it out. Batteries of mice and
/// the like, which tell a scope, do not count.
fn power(dir: &Path) -> Power {
    let mut power = Power::default();
    for supply in entries(dir).unwrap_or_default() {
        let field = |name: &str| text(&supply.join(name), 64);
        let number = |name: &str| field(name).ok().and_then(|text| text.parse::<u8>().ok());
        if field("scope").is_ok_and(|scope| scope == "Device") || number("present") == Some(0) {
            continue;
        }
        match field("type").as_deref() {
            Ok("Battery" | "UPS") => {
                let charge = number("capacity").filter(|charge| *charge <= 100);
                power.battery = power.battery.into_iter().chain(charge).min();
            }
            Ok("Mains" | "USB" | "Wireless") => {
                if let Some(online) = number("online") {
                    power.external = Some(power.external == Some(true) || online > 0);
                }
            }
            _ => {}
        }
    }
    power
}

/// Bytes that downloads may take in all: what is free, and what they have already.
fn free_bytes(state_dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(state_dir).ok()?;
    let downloads = entries(&state_dir.join("downloads")).unwrap_or_default();
    let taken = downloads
        .iter()
        .filter_map(|path| Some(fs::symlink_metadata(path).ok()?.len()));
    Some(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(taken.sum()))
}

/// One for each file in the directory. A directory that is there and cannot be read may hold anything.
fn inhibitors(dir: &Path) -> Vec<Inhibitor> {
    let files = match entries(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            return vec![Inhibitor {
                name: dir.display().to_string(),
                reason: format!("cannot be read: {error}"),
            }];
        }
    };
    let inhibitor = |path: &PathBuf| {
        let plain = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
        let reason = text(path, REASON_BYTES).ok().filter(|text| plain && !text.is_empty());
        Inhibitor {
            name: readable(path.file_name().unwrap_or_default().as_encoded_bytes()),
            reason: reason.unwrap_or_else(|| "gives no reason".to_owned()),
        }
    };
    files.iter().map(inhibitor).collect()
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)?.take(MAX_ENTRIES) {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The first bytes of a file as harmless text.
fn text(path: &Path, limit: u64) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    // A pipe that somebody put there must not hold up the agent.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(readable(&bytes).trim().to_owned())
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON_BYTES as usize / 4).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn supply(dir: &Path, name: &str, fields: &[(&str, &str)]) {
        let supply = dir.join(name);
        fs::create_dir_all(&supply).unwrap();
        for (field, value) in fields {
            fs::write(supply.join(field), format!("{value}\n")).unwrap();
        }
    }

    fn seen(dir: &Path) -> (Option<bool>, Option<u8>) {
        let power = power(dir);
        (power.external, power.battery)
    }

    #[test]
    fn power_supplies_are_read_as_the_kernel_shows_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(seen(&dir.join("absent")), (None, None));
        assert_eq!(seen(dir), (None, None));
        supply(
            dir,
            "hidpp_battery_0",
            &[("type", "Battery"), ("scope", "Device"), ("capacity", "3")],
        );
        supply(dir, "BAT9", &[("type", "Battery"), ("present", "0"), ("capacity", "0")]);
        supply(dir, "strange", &[("type", "Capacitor"), ("online", "1")]);
        supply(dir, "broken", &[("type", "Battery"), ("capacity", "full")]);
        supply(dir, "mad", &[("type", "Battery"), ("capacity", "101")]);
        assert_eq!(seen(dir), (None, None));
        supply(dir, "AC", &[("type", "Mains"), ("online", "0")]);
        supply(
            dir,
            "BAT0",
            &[("type", "Battery"), ("present", "1"), ("capacity", "80")],
        );
        assert_eq!(seen(dir), (Some(false), Some(80)));
        supply(dir, "BAT1", &[("type", "Battery"), ("capacity", "17")]);
        supply(dir, "usb", &[("type", "USB"), ("online", "1")]);
        supply(dir, "wireless", &[("type", "Wireless"), ("online", "0")]);
        assert_eq!(seen(dir), (Some(true), Some(17)));
    }

    #[test]
    fn whoever_puts_a_file_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("inhibit");
        assert_eq!(inhibitors(&dir), []);
        fs::create_dir(&dir).unwrap();
        assert_eq!(inhibitors(&dir), []);
        fs::write(dir.join("recorder"), "recording until 20:15\n").unwrap();
        fs::write(dir.join("backup"), "").unwrap();
        fs::write(dir.join("evil\x1b"), format!("\x1b[2J{}", "x".repeat(100_000))).unwrap();
        fs::create_dir(dir.join("directory")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let found = inhibitors(&dir);
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["backup", "directory", "evil\u{fffd}", "pipe", "recorder"]);
        assert_eq!(found[4].reason, "recording until 20:15");
        assert!(found[2].reason.len() < 600 && !found[2].reason.contains('\x1b'));
        for silent in [0, 1, 3] {
            assert_eq!(found[silent].reason, "gives no reason");
        }
        // Something else in its place may hold anything.
        let file = dir.join("backup");
        assert!(inhibitors(&file)[0].reason.starts_with("cannot be read"));
    }

    #[test]
    fn a_command_holds_off_until_it_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let says = |script: &str| {
            let config = ConditionsConfig {
                policy: Policy::default(),
                power_supply_dir: dir.path().join("power"),
                inhibit_dir: dir.path().join("inhibit"),
                inhibit_command: ["sh", "-c", script].map(str::to_owned).to_vec(),
                inhibit_timeout: Duration::from_millis(500),
                hold_max: None,
                recheck: Duration::from_secs(60),
            };
            let mut conditions = HostConditions::new(config, dir.path(), Arc::default());
            let facts = conditions.facts();
            assert!(facts.free_bytes.unwrap() > 0);
            facts.inhibitors.into_iter().map(|one| one.reason).collect::<Vec<_>>()
        };
        assert_eq!(says("echo nothing to say"), [""; 0]);
        assert_eq!(
            says("echo first; echo a call is going on; exit 1"),
            ["a call is going on"]
        );
        assert_eq!(says("exit 3"), ["ended with exit status: 3"]);
        assert_eq!(says("sleep 50"), ["did not end within 500ms"]);
    }

    #[test]
    fn what_is_downloaded_already_needs_no_room() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("downloads")).unwrap();
        let before = free_bytes(dir.path()).unwrap();
        // Sparse: it takes no blocks, so that what is free stays as it is.
        let part = File::create(dir.path().join("downloads/part")).unwrap();
        part.set_len(1 << 42).unwrap();
        assert!(free_bytes(dir.path()).unwrap() > before + (1 << 41));
        assert_eq!(free_bytes(&dir.path().join("absent")), None);
    }
}
