//! The configuration file: TOML, read once into types that cannot be invalid. Unknown fields are refused, because a
//! mistyped safety setting must not be taken for its default. Relative paths are relative to the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use self::boot::BootSection;
pub use self::boot::{BootConfig, UbootScheme};
use self::conditions::ConditionsSection;
use self::floors::FloorsSection;
use self::restart::RestartSection;
use self::settings::SettingsSection;
use self::status::StatusSection;
use self::time::TimeSection;
use self::watchdog::WatchdogSection;
use crate::host::conditions::ConditionsConfig;
use crate::host::evidence::{Evidence, MAX_PATTERNS};
use crate::host::health::CheckConfig;
use crate::host::http::HttpOptions;
use crate::host::restart::Restart;
use crate::host::settings::SettingsConfig;
use crate::host::slots::{SlotConfig, SlotKind};
use crate::host::status_socket::SocketConfig;
use crate::host::tpm::Tpm;
use crate::host::watchdog::WatchdogConfig;
use crate::machine::boot::MAX_SLOTS;
use crate::machine::plan::Identity;
use crate::machine::schedule::Interval;
use crate::machine::slot::SlotId;

mod boot;
mod conditions;
mod floors;
mod restart;
mod settings;
mod status;
mod time;
mod watchdog;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/fwagent/fwagent.toml";
/// Longest configuration file, in bytes.
const FILE_BYTES: u64 = 1024 * 1024;

/// How a device is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the device is.
    pub identity: Identity,
    /// Base URL of metadata.
    pub metadata_url: String,
    /// Base URL of targets.
    pub targets_url: String,
    /// How to reach the server.
    pub http: HttpOptions,
    /// Directory of the agent's state.
    pub state_dir: PathBuf,
    /// The boot loader.
    pub boot: BootConfig,
    /// Trial boots before the boot loader goes back.
    pub boot_attempts: u32,
    /// All slots.
    pub slots: Vec<SlotConfig>,
    /// The set of the rescue system, if there is one.
    pub rescue: Option<SlotId>,
    /// When to poll.
    pub interval: Interval,
    /// The health checks.
    pub checks: Vec<CheckConfig>,
    /// Time for all health checks of a trial together.
    pub health_deadline: Option<Duration>,
    /// What a slot may have left behind that never came up.
    pub evidence: Evidence,
    /// What resets the device when a trial hangs.
    pub watchdog: Option<WatchdogConfig>,
    /// How a trial is confirmed.
    pub confirm: Confirm,
    /// How to restart.
    pub restart: Restart,
    /// When an update may go on.
    pub conditions: ConditionsConfig,
    /// Where statements are sent.
    pub report_url: Option<String>,
    /// Where a running agent says how it is.
    pub status: Option<SocketConfig>,
    /// How settings are kept.
    pub settings: SettingsConfig,
    /// The counter that the floors are bound to.
    pub tpm: Option<Tpm>,
}

/// How a trial is confirmed after its checks passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// At once.
    Auto,
    /// By `fwagent confirm`, within this time.
    Manual {
        /// Then the trial has failed.
        within: Duration,
    },
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a field is missing, unknown or of the wrong type.
    #[error("configuration {}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("configuration {}: {field} {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    device: Device,
    server: Server,
    state: StateSection,
    #[serde(default)]
    boot: BootSection,
    #[serde(default)]
    slot: Vec<Slot>,
    #[serde(default)]
    poll: Poll,
    #[serde(default)]
    health: HealthSection,
    #[serde(default)]
    restart: RestartSection,
    #[serde(default)]
    conditions: ConditionsSection,
    report: Option<Report>,
    status: Option<StatusSection>,
    floors: Option<FloorsSection>,
    watchdog: Option<WatchdogSection>,
    #[serde(default)]
    time: TimeSection,
    #[serde(default)]
    settings: SettingsSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    vendor: Option<String>,
    product: String,
    hardware: String,
    #[serde(default = "stable")]
    channel: String,
}

fn stable() -> String {
    "stable".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    url: String,
    metadata_url: Option<String>,
    targets_url: Option<String>,
    ca_file: Option<PathBuf>,
    proxy: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    url: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateSection {
    dir: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    name: String,
    #[serde(default = "system")]
    class: String,
    kind: SlotKind,
    path: PathBuf,
    size: Option<u64>,
    #[serde(default)]
    role: Role,
}

/// What a slot set is for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    #[default]
    Main,
    Rescue,
}

fn system() -> String {
    "system".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Poll {
    interval_s: u64,
    jitter_s: u64,
    retry_s: u64,
}

impl Default for Poll {
    fn default() -> Self {
        Self {
            interval_s: 3600,
            jitter_s: 600,
            retry_s: 60,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HealthSection {
    confirm: ConfirmKind,
    manual_timeout_s: Option<u64>,
    deadline_s: Option<u64>,
    evidence: Vec<PathBuf>,
    check: Vec<Check>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ConfirmKind {
    #[default]
    Auto,
    Manual,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    name: String,
    command: Vec<String>,
    #[serde(default = "one_minute")]
    timeout_s: u64,
    #[serde(default)]
    retries: u32,
    #[serde(default = "five")]
    retry_delay_s: u64,
}

fn one_minute() -> u64 {
    60
}

fn five() -> u64 {
    5
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        use std::io::Read;
        let read = std::fs::File::open(path).and_then(|file| {
            let mut text = String::new();
            file.take(FILE_BYTES + 1).read_to_string(&mut text)?;
            if text.len() as u64 > FILE_BYTES {
                // Cut, it might be another valid configuration.
                let problem = format!("it is longer than the {FILE_BYTES} bytes allowed");
                return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, problem));
            }
            Ok(text)
        });
        let text = read.map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a configuration file that lies at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        file.check().map_err(|(field, problem)| ConfigError::Invalid {
            path: path.to_owned(),
            field,
            problem,
        })?;
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        file.build(&base).map_err(|(field, problem)| ConfigError::Invalid {
            path: path.to_owned(),
            field,
            problem,
        })
    }

    /// All slot sets, in the order of the file.
    pub fn slot_sets(&self) -> Vec<SlotId> {
        let mut sets: Vec<SlotId> = Vec::new();
        for slot in &self.slots {
            if !sets.contains(&slot.slot) {
                sets.push(slot.slot.clone());
            }
        }
        sets
    }

    /// Slot classes of each set, sorted; the same for all sets but the rescue system's.
    pub fn classes(&self) -> Vec<String> {
        let main = self
            .slots
            .iter()
            .filter(|slot| Some(&slot.slot) != self.rescue.as_ref());
        let classes: BTreeSet<&String> = main.map(|slot| &slot.class).collect();
        classes.into_iter().cloned().collect()
    }
}

/// Whether a path names a file, of which only the name may have `*`.
fn is_pattern(path: &Path) -> bool {
    let starred = |path: &Path| path.as_os_str().as_encoded_bytes().contains(&b'*');
    path.file_name().is_some() && !path.parent().is_some_and(starred)
}

type Problem = (String, String);

fn problem<T>(field: impl Into<String>, text: impl Into<String>) -> Result<T, Problem> {
    Err((field.into(), text.into()))
}

impl File {
    fn check(&self) -> Result<(), Problem> {
        for (field, text) in [
            ("device.product", &self.device.product),
            ("device.hardware", &self.device.hardware),
            ("device.channel", &self.device.channel),
        ] {
            if text.is_empty() || text.contains('/') {
                return problem(field, "is empty or contains /");
            }
        }
        if let Some(report) = &self.report
            && !["http://", "https://"]
                .iter()
                .any(|scheme| report.url.starts_with(scheme))
        {
            return problem("report.url", "is no http or https URL");
        }
        self.boot.check()?;
        if self.poll.interval_s == 0 || self.poll.retry_s == 0 {
            return problem("poll", "has an interval or retry of 0 seconds");
        }
        self.restart.check(self.boot.is_flagged())?;
        if self.health.confirm == ConfirmKind::Auto && self.health.manual_timeout_s.is_some() {
            return problem(
                "health.manual_timeout_s",
                "is given, and health.confirm is not \"manual\"",
            );
        }
        if self.health.deadline_s == Some(0) {
            return problem("health.deadline_s", "is 0 seconds");
        }
        if self.health.evidence.len() > MAX_PATTERNS {
            return problem("health.evidence", format!("has more than {MAX_PATTERNS} paths"));
        }
        if let Some(path) = self.health.evidence.iter().find(|path| !is_pattern(path)) {
            return problem(
                "health.evidence",
                format!("{} names no file, or has * before its last component", path.display()),
            );
        }
        for check in &self.health.check {
            if check.command.is_empty() || check.timeout_s == 0 {
                return problem(
                    format!("health.check {:?}", check.name),
                    "has no command or no time to run",
                );
            }
        }
        self.check_slots()
    }

    fn check_slots(&self) -> Result<(), Problem> {
        let mut classes: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
        let mut paths = BTreeSet::new();
        for slot in &self.slot {
            if !classes.entry(&slot.name).or_default().insert(&slot.class) {
                return problem(
                    format!("slot {}", slot.name),
                    format!("has two of class {}", slot.class),
                );
            }
            if !paths.insert(&slot.path) {
                return problem(format!("slot {}", slot.name), "shares its path with another slot");
            }
        }
        if !(2..=MAX_SLOTS).contains(&classes.len()) {
            return problem(
                "slot",
                format!("names {} slot sets, not from 2 to {MAX_SLOTS}", classes.len()),
            );
        }
        let rescue: BTreeSet<&String> = self
            .slot
            .iter()
            .filter(|slot| slot.role == Role::Rescue)
            .map(|slot| &slot.name)
            .collect();
        if rescue.len() > 1
            || self
                .slot
                .iter()
                .any(|slot| slot.role == Role::Main && rescue.contains(&slot.name))
        {
            return problem(
                "slot",
                "has more than one rescue set, or one of which not all slots have the role",
            );
        }
        let mut each = classes
            .iter()
            .filter(|(name, _)| !rescue.contains(*name))
            .map(|(_, classes)| classes);
        let first = each.next();
        if each.any(|other| Some(other) != first) {
            return problem(
                "slot",
                "has sets with different classes; each set needs one slot of each class",
            );
        }
        Ok(())
    }

    fn build(self, base: &Path) -> Result<Config, Problem> {
        let url = self.server.url.trim_end_matches('/').to_owned();
        let below = |given: Option<String>, part: &str| given.unwrap_or_else(|| format!("{url}/{part}"));
        let (mut slots, mut rescue) = (Vec::with_capacity(self.slot.len()), None);
        for slot in self.slot {
            let name = SlotId::parse(&slot.name).or_else(|error| problem("slot.name", error.to_string()))?;
            if slot.role == Role::Rescue {
                rescue = Some(name.clone());
            }
            slots.push(SlotConfig {
                slot: name,
                class: slot.class,
                kind: slot.kind,
                path: base.join(slot.path),
                size: slot.size,
            });
        }
        let seconds = Duration::from_secs;
        let checks = self.health.check.into_iter().map(|check| CheckConfig {
            name: check.name,
            command: check.command,
            timeout: seconds(check.timeout_s),
            retries: check.retries,
            retry_delay: seconds(check.retry_delay_s),
        });
        let flagged = self.boot.is_flagged();
        Ok(Config {
            identity: Identity {
                vendor: self.device.vendor,
                product: self.device.product,
                hardware: self.device.hardware,
                channel: self.device.channel,
            },
            metadata_url: below(self.server.metadata_url, "metadata"),
            targets_url: below(self.server.targets_url, "targets"),
            http: HttpOptions {
                ca_file: self.server.ca_file.map(|path| base.join(path)),
                proxy: self.server.proxy,
                ..HttpOptions::default()
            },
            state_dir: base.join(self.state.dir),
            boot_attempts: self.boot.attempts(),
            boot: self.boot.build(base, &slots)?,
            slots,
            rescue,
            interval: Interval {
                poll: seconds(self.poll.interval_s),
                jitter: seconds(self.poll.jitter_s),
                retry: seconds(self.poll.retry_s),
            },
            checks: checks.collect(),
            health_deadline: self.health.deadline_s.map(seconds),
            evidence: Evidence {
                patterns: self.health.evidence.iter().map(|path| base.join(path)).collect(),
            },
            watchdog: self.watchdog.map(|watchdog| watchdog.build(base)).transpose()?,
            confirm: match self.health.confirm {
                ConfirmKind::Auto => Confirm::Auto,
                ConfirmKind::Manual => Confirm::Manual {
                    within: seconds(self.health.manual_timeout_s.unwrap_or(24 * 3600)),
                },
            },
            tpm: self.floors.map(|floors| floors.build(base)).transpose()?,
            status: self.status.map(|status| status.build(base)).transpose()?,
            report_url: self.report.map(|report| report.url),
            restart: self.restart.build(flagged),
            conditions: {
                let mut conditions = self.conditions.build(base)?;
                self.time.apply(&mut conditions.policy)?;
                conditions
            },
            settings: self.settings.build(base)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
        [device]
        product = "router"
        hardware = "rev-b"
        [server]
        url = "https://updates.example.com/"
        [state]
        dir = "state"
        [[slot]]
        name = "a"
        kind = "dir"
        path = "slots/a"
        [[slot]]
        name = "b"
        kind = "dir"
        path = "slots/b"
    "#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/fwagent/fwagent.toml")).map_err(|error| crate::drive::chain(&error))
    }

    #[test]
    fn a_short_file_has_safe_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.metadata_url, "https://updates.example.com/metadata");
        assert_eq!(config.state_dir, Path::new("/etc/fwagent/state"));
        assert_eq!(config.slots[1].path, Path::new("/etc/fwagent/slots/b"));
        assert_eq!((config.boot_attempts, config.confirm), (3, Confirm::Auto));
        assert_eq!(config.classes(), ["system"]);
    }

    #[test]
    fn a_rescue_system_may_have_other_classes_and_is_the_only_one() {
        let rescue = GOOD.replace("name = \"b\"", "name = \"b\"\nrole = \"rescue\"\nclass = \"small\"");
        let config = parse(&rescue).unwrap();
        assert_eq!(config.rescue.as_ref().map(SlotId::as_str), Some("b"));
        assert_eq!(config.classes(), ["system"]);
        assert_eq!(config.slot_sets().len(), 2);
        let two = rescue.replace("name = \"a\"", "name = \"a\"\nrole = \"rescue\"");
        assert!(parse(&two).unwrap_err().contains("more than one rescue"));
        let mixed = format!("{rescue}\n[[slot]]\nname = \"b\"\nkind = \"dir\"\npath = \"slots/c\"\n");
        assert!(parse(&mixed).unwrap_err().contains("not all slots"));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fwagent.toml");
        for (padding, good) in [(1000, true), (FILE_BYTES as usize, false)] {
            std::fs::write(&path, format!("{GOOD}\n#{}", "x".repeat(padding))).unwrap();
            assert_eq!(Config::load(&path).is_ok(), good);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (change, expected) in [
            (("product = \"router\"", "product = \"a/b\""), "device.product"),
            (("hardware = \"rev-b\"", ""), "hardware"),
            (("[state]", "[state]\nunknown = 1"), "unknown"),
            (("name = \"b\"", "name = \"a\""), "two of class"),
            (("path = \"slots/b\"", "path = \"slots/a\""), "shares its path"),
            (("name = \"b\"", "name = \"b/c\""), "slot name"),
            (("name = \"b\"", "name = \"b\"\nclass = \"app\""), "different classes"),
            (("[state]", "[boot]\nattempts = 0\n[state]"), "boot.attempts"),
            (("[state]", "[poll]\ninterval_s = 0\n[state]"), "poll"),
            (
                ("[state]", "[restart]\nmode = \"exit\"\ncommand = [\"x\"]\n[state]"),
                "restart.command",
            ),
            (
                ("[state]", "[[health.check]]\nname = \"web\"\ncommand = []\n[state]"),
                "health.check",
            ),
            (("[state]", "[boot]\ncontrol = \"lilo\"\n[state]"), "lilo"),
            (("[state]", "[health]\ndeadline_s = 0\n[state]"), "health.deadline_s"),
            (
                ("[state]", "[health]\nevidence = [\"/*/log\"]\n[state]"),
                "health.evidence",
            ),
            (("[state]", "[health]\nevidence = [\"/\"]\n[state]"), "health.evidence"),
            (("[state]", "[watchdog]\n[state]"), "device"),
            (("path = \"slots/b\"", "path = \"slots/b\"\nrole = \"spare\""), "spare"),
        ] {
            let text = GOOD.replacen(change.0, change.1, 1);
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
