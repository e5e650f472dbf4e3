//! The user's word that the device is to stay as it is: until a moment, or until he takes it back.

use std::fmt;

use fwmeta::json::{Doc, Value, object};
use fwmeta::time::UtcSeconds;

/// Longest reason, in bytes.
pub const REASON_BYTES: usize = 512;

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Since when; kept when a hold is prolonged.
    pub since: UtcSeconds,
    /// Until when; until further notice when absent.
    pub until: Option<UtcSeconds>,
    /// Why.
    pub reason: String,
}

/// The hold would be longer than the device's maker allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hold until {asked} is longer than allowed: it began at {since} and ends at {latest} at the latest")]
pub struct TooLong {
    asked: UtcSeconds,
    since: UtcSeconds,
    latest: UtcSeconds,
}

impl Hold {
    /// A hold from `now` on, or a longer one in place of `earlier`. Without `until` it lasts as long as is allowed:
    /// `longest` seconds, counted from its beginning, or for ever.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(
        now: UtcSeconds,
        until: Option<UtcSeconds>,
        reason: String,
        earlier: Option<&Self>,
        longest: Option<u64>,
    ) -> Result<Self, TooLong> {
        let earlier = earlier.filter(|earlier| earlier.holds_at(now));
        let since = earlier.map_or(now, |earlier| earlier.since.min(now));
        let latest = longest.map(|longest| since.plus_seconds(i64::try_from(longest).unwrap_or(i64::MAX)));
        if let (Some(asked), Some(latest)) = (until, latest)
            && asked > latest
        {
            return Err(TooLong { asked, since, latest });
        }
        Ok(Self {
            since,
            until: until.or(latest),
            reason,
        })
    }

    /// Whether it holds at this moment.
    pub fn holds_at(&self, now: UtcSeconds) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// The form on disk and on terminals.
    pub fn to_value(&self) -> Value {
        object([
            ("since", self.since.to_string().into()),
            ("until", self.until.map(|until| until.to_string()).into()),
            ("reason", (&self.reason).into()),
        ])
    }

    /// Reads the bytes of [`to_value`](Self::to_value) back; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let value = Doc::parse(bytes).ok()?.root().to_value().ok()?;
        let time = |value: &Value| UtcSeconds::parse(value.as_str()?).ok();
        let reason = value.get("reason")?.as_str()?;
        if reason.len() > REASON_BYTES {
            return None;
        }
        Some(Self {
            since: time(value.get("since")?)?,
            until: match value.get("until")? {
                Value::Null => None,
                until => Some(time(until)?),
            },
            reason: reason.to_owned(),
        })
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "held until {until}")?,
            None => f.write_str("held until `fwagent resume`")?,
        }
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

/// Seconds of a duration such as `90m`, `12h`, `7d` or `2w`; not zero.
pub fn duration(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: UtcSeconds = UtcSeconds(1_800_000_000);

    fn hold(until: Option<i64>, earlier: Option<&Hold>, longest: Option<u64>) -> Result<Hold, TooLong> {
        let until = until.map(|seconds| NOW.plus_seconds(seconds));
        Hold::new(NOW, until, "holidays".to_owned(), earlier, longest)
    }

    #[test]
    fn a_hold_ends_at_its_time_or_never() {
        let short = hold(Some(100), None, None).unwrap();
        assert!(short.holds_at(NOW) && short.holds_at(NOW.plus_seconds(99)));
        assert!(!short.holds_at(NOW.plus_seconds(100)));
        let endless = hold(None, None, None).unwrap();
        assert!(endless.holds_at(NOW.plus_seconds(i64::MAX)));
        assert!(endless.to_string().contains("fwagent resume"));
        for hold in [short, endless] {
            assert_eq!(Hold::decode(hold.to_value().to_json().as_bytes()), Some(hold));
        }
        for bad in ["", "{}", "null", r#"{"since":"x","until":null,"reason":""}"#] {
            assert_eq!(Hold::decode(bad.as_bytes()), None);
        }
    }

    #[test]
    fn the_maximum_counts_from_the_beginning_of_the_hold() {
        assert!(hold(Some(101), None, Some(100)).is_err());
        let first = hold(Some(100), None, Some(100)).unwrap();
        assert_eq!(hold(None, None, Some(100)), Ok(first.clone()));
        // Prolonged half-way, it ends no later; a hold that has ended is no beginning.
        let later = NOW.plus_seconds(50);
        let prolonged = Hold::new(
            later,
            Some(later.plus_seconds(60)),
            String::new(),
            Some(&first),
            Some(100),
        );
        assert!(prolonged.is_err());
        let after = NOW.plus_seconds(100);
        let again = Hold::new(after, None, String::new(), Some(&first), Some(100)).unwrap();
        assert_eq!((again.since, again.until), (after, Some(after.plus_seconds(100))));
    }

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("90m", 5400),
            ("12h", 43_200),
            ("7d", 604_800),
            ("2w", 1_209_600),
            ("5s", 5),
        ] {
            assert_eq!(duration(text), Some(seconds));
        }
        for bad in [
            "",
            "d",
            "0d",
            "7",
            "-1d",
            "+1d",
            "1.5h",
            "7 d",
            "7é",
            "99999999999999999999d",
            "18446744073709551615w",
        ] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }
}
