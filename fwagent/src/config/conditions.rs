//! The section `conditions`: when an update may be installed, and when the device may restart into it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::conditions::ConditionsConfig;
use crate::machine::conditions::{Condition, Gate, Policy, Unknown};
use crate::machine::window::Windows;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConditionsSection {
    min_battery: Option<u8>,
    unknown_power: Option<Choice>,
    power_supply_dir: Option<PathBuf>,
    free_space: Option<u64>,
    window: Vec<String>,
    utc_offset: Option<String>,
    window_from: Option<From>,
    window_unknown_time: Option<Choice>,
    hold_max_s: Option<u64>,
    inhibit_dir: Option<PathBuf>,
    inhibit_command: Vec<String>,
    inhibit_timeout_s: Option<u64>,
    security_passes: Vec<String>,
    prefetch: bool,
    recheck_s: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Choice {
    Allow,
    Refuse,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum From {
    Install,
    Restart,
}

impl Choice {
    fn unknown(self) -> Unknown {
        match self {
            Self::Allow => Unknown::Allow,
            Self::Refuse => Unknown::Refuse,
        }
    }
}

impl ConditionsSection {
    pub(super) fn build(self, base: &Path) -> Result<ConditionsConfig, Problem> {
        let default = Policy::default();
        if self.min_battery.is_some_and(|percent| percent > 100) {
            return problem("conditions.min_battery", "is more than 100 percent");
        }
        let idle = [
            ("utc_offset", self.window.is_empty() && self.utc_offset.is_some()),
            ("window_from", self.window.is_empty() && self.window_from.is_some()),
            (
                "window_unknown_time",
                self.window.is_empty() && self.window_unknown_time.is_some(),
            ),
            (
                "unknown_power",
                self.min_battery.is_none() && self.unknown_power.is_some(),
            ),
            (
                "inhibit_timeout_s",
                self.inhibit_command.is_empty() && self.inhibit_timeout_s.is_some(),
            ),
        ];
        if let Some((field, _)) = idle.into_iter().find(|(_, idle)| *idle) {
            let text = "is given, and nothing in the section has a use for it";
            return problem(format!("conditions.{field}"), text);
        }
        for (field, value) in [
            ("recheck_s", self.recheck_s),
            ("inhibit_timeout_s", self.inhibit_timeout_s),
            ("hold_max_s", self.hold_max_s),
        ] {
            if value == Some(0) {
                return problem(format!("conditions.{field}"), "is 0 seconds");
            }
        }
        let windows = if self.window.is_empty() {
            None
        } else {
            let read = Windows::parse(&self.window, self.utc_offset.as_deref().unwrap_or("Z"));
            Some(read.or_else(|error| problem("conditions.window", error.to_string()))?)
        };
        let mut security_passes = BTreeSet::new();
        for word in &self.security_passes {
            let condition = Condition::of_word(word).filter(|condition| condition.can_be_ignored());
            let text = format!("has {word:?}, not window, hold or inhibit");
            security_passes.insert(condition.ok_or(("conditions.security_passes".to_owned(), text))?);
        }
        let below = |given: Option<PathBuf>, default: &str| base.join(given.unwrap_or_else(|| default.into()));
        Ok(ConditionsConfig {
            policy: Policy {
                min_battery: self.min_battery,
                unknown_power: self.unknown_power.map_or(default.unknown_power, Choice::unknown),
                free_space: self.free_space.unwrap_or(default.free_space),
                windows,
                window_from: match self.window_from {
                    Some(From::Restart) => Gate::Restart,
                    Some(From::Install) | None => Gate::Install,
                },
                window_unknown_time: self
                    .window_unknown_time
                    .map_or(default.window_unknown_time, Choice::unknown),
                security_passes,
                prefetch: self.prefetch,
                ..default
            },
            power_supply_dir: below(self.power_supply_dir, "/sys/class/power_supply"),
            inhibit_dir: below(self.inhibit_dir, "/run/fwagent/inhibit"),
            inhibit_command: self.inhibit_command,
            inhibit_timeout: Duration::from_secs(self.inhibit_timeout_s.unwrap_or(10)),
            hold_max: self.hold_max_s,
            recheck: Duration::from_secs(self.recheck_s.unwrap_or(60)),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn build(text: &str) -> Result<ConditionsConfig, String> {
        let section: ConditionsSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section
            .build(Path::new("/etc/fwagent"))
            .map_err(|(field, problem)| format!("{field} {problem}"))
    }

    #[test]
    fn an_empty_section_asks_for_no_power_and_no_hours() {
        let config = build("").unwrap();
        assert_eq!(config.policy, Policy::default());
        assert_eq!(config.power_supply_dir, Path::new("/sys/class/power_supply"));
        assert_eq!((config.hold_max, config.recheck), (None, Duration::from_secs(60)));
    }

    #[test]
    fn a_full_section() {
        let config = build(
            "min_battery = 30\nunknown_power = \"allow\"\npower_supply_dir = \"power\"\nfree_space = 5\n\
             window = [\"mon-fri 22:00-05:00\"]\nutc_offset = \"+09:00\"\nwindow_from = \"restart\"\n\
             window_unknown_time = \"refuse\"\nhold_max_s = 86400\ninhibit_dir = \"/run/x\"\n\
             inhibit_command = [\"busy\"]\ninhibit_timeout_s = 3\nsecurity_passes = [\"window\", \"hold\"]\n\
             prefetch = true\nrecheck_s = 7\n",
        )
        .unwrap();
        let policy = &config.policy;
        assert_eq!((policy.min_battery, policy.unknown_power), (Some(30), Unknown::Allow));
        assert_eq!(
            policy.windows.as_ref().unwrap().to_string(),
            "mon-fri 22:00-05:00 (UTC+09:00)"
        );
        assert_eq!(
            (policy.window_from, policy.window_unknown_time),
            (Gate::Restart, Unknown::Refuse)
        );
        assert_eq!(policy.security_passes, [Condition::Hold, Condition::Window].into());
        assert!(policy.prefetch && policy.free_space == 5);
        assert_eq!(config.power_supply_dir, Path::new("/etc/fwagent/power"));
        assert_eq!(config.inhibit_dir, Path::new("/run/x"));
        assert_eq!(config.hold_max, Some(86_400));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, expected) in [
            ("min_battery = 101", "min_battery"),
            ("window = [\"22-5\"]", "conditions.window"),
            ("window = [\"22:00-05:00\"]\nutc_offset = \"JST\"", "offset from UTC"),
            ("utc_offset = \"Z\"", "conditions.utc_offset is given"),
            ("unknown_power = \"allow\"", "conditions.unknown_power is given"),
            ("security_passes = [\"power\"]", "\"power\", not window"),
            ("recheck_s = 0", "0 seconds"),
            ("windows = []", "unknown field"),
            ("window_from = \"download\"", "unknown variant"),
        ] {
            let error = build(text).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
