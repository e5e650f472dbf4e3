//! The section `[watchdog]`: what resets the device when a release on trial hangs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::watchdog::WatchdogConfig;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchdogSection {
    device: PathBuf,
    #[serde(default = "five")]
    interval_s: u64,
    #[serde(default = "one_minute")]
    grace_s: u64,
    #[serde(default)]
    required: bool,
}

fn five() -> u64 {
    5
}

fn one_minute() -> u64 {
    60
}

impl WatchdogSection {
    pub(super) fn build(self, base: &Path) -> Result<WatchdogConfig, Problem> {
        if !(1..=60).contains(&self.interval_s) {
            return problem("watchdog.interval_s", "is not from 1 to 60");
        }
        // Less than the time between two looks at a trial that an operator decides would reset it while it is well.
        if !(5..=3600).contains(&self.grace_s) {
            return problem("watchdog.grace_s", "is not from 5 to 3600");
        }
        Ok(WatchdogConfig {
            device: base.join(self.device),
            interval: Duration::from_secs(self.interval_s),
            grace: Duration::from_secs(self.grace_s),
            required: self.required,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_have_bounds() {
        let built = |more: &str| {
            let section = toml::from_str::<WatchdogSection>(&format!("device = \"/dev/watchdog\"\n{more}"));
            section.unwrap().build(Path::new("/etc"))
        };
        let usual = built("").unwrap();
        assert_eq!((usual.interval.as_secs(), usual.grace.as_secs()), (5, 60));
        assert!(!usual.required && usual.device == Path::new("/dev/watchdog"));
        for good in ["interval_s = 1", "interval_s = 60", "grace_s = 5", "grace_s = 3600"] {
            assert!(built(good).is_ok(), "{good}");
        }
        for (bad, field) in [
            ("interval_s = 0", "watchdog.interval_s"),
            ("interval_s = 61", "watchdog.interval_s"),
            ("grace_s = 4", "watchdog.grace_s"),
            ("grace_s = 3601", "watchdog.grace_s"),
        ] {
            assert_eq!(built(bad).unwrap_err().0, field);
        }
    }
}
