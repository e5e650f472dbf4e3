//! Hours in which updates are allowed: `22:00-05:00`, `mon-fri 22:00-05:00`, `sat,sun 00:00-24:00`.
//!
//! A window belongs to the day on which it begins, and may end on the next. Days and hours are those of one fixed offset
//! from UTC: an agent has no table of time zones.

use std::fmt;

use fwmeta::time::UtcSeconds;

/// Most windows of a device.
pub const MAX_WINDOWS: usize = 64;

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;
const WEEK: i64 = 7 * DAY;
/// Names of days, Monday first.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// The windows of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// As they were given.
    texts: Vec<String>,
    /// Seconds from Monday 00:00 to the beginning, and seconds of length.
    spans: Vec<(i64, i64)>,
    /// Seconds that local time is ahead of UTC.
    offset: i64,
}

/// The text is no window or no offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct WindowError {
    text: String,
    expected: &'static str,
}

impl Windows {
    /// Reads windows and the offset of their hours from UTC, `+09:00` or `Z`.
    ///
    /// # Errors
    /// [`WindowError`]; also when there are none, or more than [`MAX_WINDOWS`].
    pub fn parse(texts: &[String], offset: &str) -> Result<Self, WindowError> {
        let error = |text: &str, expected| WindowError {
            text: text.chars().take(64).collect(),
            expected,
        };
        if texts.is_empty() || texts.len() > MAX_WINDOWS {
            return Err(error(&texts.len().to_string(), "a number of windows from 1 to 64"));
        }
        let mut spans = Vec::new();
        for text in texts {
            let read = spans_of(text);
            spans.extend(read.ok_or_else(|| error(text, "a window such as 22:00-05:00 or mon-fri 22:00-05:00"))?);
        }
        Ok(Self {
            texts: texts.to_vec(),
            spans,
            offset: offset_of(offset).ok_or_else(|| error(offset, "an offset from UTC such as +09:00 or Z"))?,
        })
    }

    /// Whether a moment is in one of them. The first second of a window belongs to it, the last does not.
    pub fn is_open(&self, at: UtcSeconds) -> bool {
        let now = self.second_of_week(at);
        self.spans
            .iter()
            .any(|(start, length)| (now - start).rem_euclid(WEEK) < *length)
    }

    /// The first moment at or after `at` that is in one of them; at most a week later.
    pub fn next_open(&self, at: UtcSeconds) -> UtcSeconds {
        if self.is_open(at) {
            return at;
        }
        let now = self.second_of_week(at);
        let wait = self.spans.iter().map(|(start, _)| (start - now).rem_euclid(WEEK)).min();
        at.plus_seconds(wait.unwrap_or(0))
    }

    fn second_of_week(&self, at: UtcSeconds) -> i64 {
        // 1970-01-01 was a Thursday.
        at.plus_seconds(self.offset).plus_seconds(3 * DAY).0.rem_euclid(WEEK)
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.offset < 0 { '-' } else { '+' };
        let minutes = self.offset.abs() / MINUTE;
        write!(
            f,
            "{} (UTC{sign}{:02}:{:02})",
            self.texts.join(", "),
            minutes / 60,
            minutes % 60
        )
    }
}

fn spans_of(text: &str) -> Option<Vec<(i64, i64)>> {
    let mut parts = text.split_ascii_whitespace().rev();
    let (from, to) = parts.next()?.split_once('-')?;
    let (from, to) = (clock_time(from)?, clock_time(to)?);
    if from == DAY || from == to {
        return None;
    }
    let length = (to - from).rem_euclid(DAY);
    let length = if length == 0 { DAY } else { length };
    let days = match parts.next() {
        None => vec![0, 1, 2, 3, 4, 5, 6],
        Some(days) => days_of(days)?,
    };
    if parts.next().is_some() {
        return None;
    }
    Some(days.into_iter().map(|day| (day * DAY + from, length)).collect())
}

/// `mon`, `mon-fri`, `fri-mon`, `sat,sun`.
fn days_of(text: &str) -> Option<Vec<i64>> {
    let day = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let count = (last + DAYS.len() - first) % DAYS.len() + 1;
        days.extend((first..first + count).map(|day| (day % DAYS.len()) as i64));
        if days.len() > DAYS.len() {
            return None;
        }
    }
    Some(days)
}

/// Seconds from midnight of `HH:MM`, `24:00` included.
fn clock_time(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| -> Option<i64> {
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let seconds = (hours * 60 + minutes) * MINUTE;
    (minutes < 60 && seconds <= DAY).then_some(seconds)
}

fn offset_of(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let (sign, time) = match text.split_at_checked(1)? {
        ("+", time) => (1, time),
        ("-", time) => (-1, time),
        _ => return None,
    };
    clock_time(time)
        .filter(|seconds| *seconds < DAY)
        .map(|seconds| sign * seconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn windows(texts: &[&str], offset: &str) -> Result<Windows, WindowError> {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        Windows::parse(&texts, offset)
    }

    fn at(text: &str) -> UtcSeconds {
        UtcSeconds::parse(text).unwrap()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        // 2026-11-25 is a Wednesday.
        let nights = windows(&["mon-wed 22:00-05:00"], "Z").unwrap();
        for (moment, open) in [
            ("2026-11-25T21:59:59Z", false),
            ("2026-11-25T22:00:00Z", true),
            ("2026-11-26T04:59:59Z", true),
            ("2026-11-26T05:00:00Z", false),
            // Thursday's night is not one of them, and neither is Sunday's, which ends on Monday.
            ("2026-11-26T22:30:00Z", false),
            ("2026-11-30T01:00:00Z", false),
            ("2026-12-01T01:00:00Z", true),
        ] {
            assert_eq!(nights.is_open(at(moment)), open, "{moment}");
        }
        assert_eq!(nights.next_open(at("2026-11-26T05:00:00Z")), at("2026-11-30T22:00:00Z"));
        assert_eq!(nights.next_open(at("2026-11-25T23:00:00Z")), at("2026-11-25T23:00:00Z"));
        assert_eq!(nights.to_string(), "mon-wed 22:00-05:00 (UTC+00:00)");
    }

    #[test]
    fn hours_are_those_of_the_offset() {
        let tokyo = windows(&["sat,sun 00:00-24:00", "03:00-04:00"], "+09:00").unwrap();
        for (moment, open) in [
            // Saturday 00:00 in Tokyo is Friday 15:00 UTC.
            ("2026-11-27T14:59:59Z", false),
            ("2026-11-27T15:00:00Z", true),
            ("2026-11-29T14:59:59Z", true),
            ("2026-11-29T15:00:00Z", false),
            ("2026-11-24T18:30:00Z", true),
        ] {
            assert_eq!(tokyo.is_open(at(moment)), open, "{moment}");
        }
        assert_eq!(tokyo.next_open(at("2026-11-29T15:00:00Z")), at("2026-11-29T18:00:00Z"));
        let newfoundland = windows(&["fri-mon 12:00-13:00"], "-03:30").unwrap();
        assert!(newfoundland.is_open(at("2026-11-30T15:30:00Z")));
        assert!(!newfoundland.is_open(at("2026-12-01T15:30:00Z")));
    }

    #[test]
    fn every_moment_of_a_week_agrees_with_the_next_opening() {
        let some = windows(&["tue 23:30-00:30", "sun 23:00-01:00"], "+05:45").unwrap();
        let start = at("2026-11-23T00:00:00Z");
        let mut seconds_open = 0;
        for minute in 0..7 * 24 * 60 {
            let now = start.plus_seconds(minute * 60);
            let next = some.next_open(now);
            assert!(next >= now && some.is_open(next) && next.0 - now.0 <= WEEK);
            assert_eq!(next == now, some.is_open(now));
            assert!(next == now || !some.is_open(next.plus_seconds(-1)));
            seconds_open += if some.is_open(now) { 60 } else { 0 };
        }
        assert_eq!(seconds_open, 3 * 3600);
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for bad in [
            "",
            "22:00",
            "22-05",
            "22:00-22:00",
            "24:00-05:00",
            "25:00-05:00",
            "22:60-05:00",
            "2:00-05:00",
            "mon",
            "day 22:00-05:00",
            "mon-fri,sat-fri 22:00-05:00",
            "mon fri 22:00-05:00",
            "+1:00-05:00",
        ] {
            assert!(windows(&[bad], "Z").is_err(), "{bad:?}");
        }
        for bad in ["", "9", "+9", "UTC", "+24:00", "09:00", "é"] {
            assert!(windows(&["22:00-05:00"], bad).is_err(), "{bad:?}");
        }
        assert!(windows(&[], "Z").is_err());
        assert!(windows(&["22:00-05:00"; MAX_WINDOWS + 1], "Z").is_err());
        assert!(windows(&["Mon-SUN 00:00-24:00"; MAX_WINDOWS], "Z").is_ok());
    }
}
