//! The section `time`: what a clock that is wrong may do.

use fwmeta::time::UtcSeconds;
use serde::Deserialize;

use super::{Problem, problem};
use crate::machine::conditions::{Policy, UnknownTime};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TimeSection {
    unknown: Option<Choice>,
    not_before: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Choice {
    Install,
    SecurityOnly,
    Refuse,
}

impl TimeSection {
    pub(super) fn apply(self, policy: &mut Policy) -> Result<(), Problem> {
        policy.unknown_time = match self.unknown {
            Some(Choice::Install) | None => UnknownTime::Install,
            Some(Choice::SecurityOnly) => UnknownTime::SecurityOnly,
            Some(Choice::Refuse) => UnknownTime::Refuse,
        };
        if let Some(text) = self.not_before {
            let given = UtcSeconds::parse(&text).or_else(|error| problem("time.not_before", error.to_string()))?;
            policy.not_before = policy.not_before.max(given);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::time::PROGRAM;

    #[test]
    fn the_moment_that_has_passed_is_never_before_the_program_was_made() {
        for (text, unknown, not_before) in [
            ("", UnknownTime::Install, Some(PROGRAM)),
            ("unknown = \"security-only\"", UnknownTime::SecurityOnly, Some(PROGRAM)),
            (
                "not_before = \"2001-01-01T00:00:00Z\"",
                UnknownTime::Install,
                Some(PROGRAM),
            ),
            (
                "unknown = \"refuse\"\nnot_before = \"2030-01-01T00:00:00Z\"",
                UnknownTime::Refuse,
                Some(UtcSeconds(1_893_456_000)),
            ),
            ("not_before = \"2030-01-01\"", UnknownTime::Install, None),
        ] {
            let mut policy = Policy::default();
            let section: TimeSection = toml::from_str(text).unwrap();
            let applied = section.apply(&mut policy);
            assert_eq!(applied.is_ok().then_some(policy.not_before), not_before, "{text}");
            assert_eq!(policy.unknown_time, unknown);
        }
        assert!(toml::from_str::<TimeSection>("unknown = \"allow\"").is_err());
    }
}
