//! Points in time, to the second, in UTC. There is no clock here: the time of a decision is an argument.

use std::fmt;

/// Seconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcSeconds(pub i64);

/// The text is not `YYYY-MM-DDTHH:MM:SSZ`, or no such moment exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time of the form 2030-12-31T23:59:59Z")]
pub struct TimeError {
    /// What was to be read, cut to 64 characters.
    pub text: String,
}

/// 9999-12-31T23:59:59Z, the last moment that the text form can express.
const LAST: i64 = 253_402_300_799;
/// 0000-01-01T00:00:00Z, the first one.
const FIRST: i64 = -62_167_219_200;

impl UtcSeconds {
    /// Reads `YYYY-MM-DDTHH:MM:SSZ` (TUF 1.0.34 §4.2.2). A fraction of a second, which some tools write, is dropped:
    /// an expiry then comes earlier, never later.
    ///
    /// # Errors
    /// [`TimeError`] for any other text and for dates that do not exist.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        Self::read(text).ok_or_else(|| TimeError {
            text: text.chars().take(64).collect(),
        })
    }

    fn read(text: &str) -> Option<Self> {
        let (moment, rest) = text.as_bytes().split_first_chunk::<19>()?;
        let fraction = rest.strip_suffix(b"Z")?;
        if let Some((point, digits)) = fraction.split_first() {
            let well_formed =
                *point == b'.' && (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
            if !well_formed {
                return None;
            }
        }
        for (at, separator) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
            if moment[at] != separator {
                return None;
            }
        }
        let number = |from: usize, to: usize| {
            moment[from..to].iter().try_fold(0_i64, |value, byte| {
                byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0'))
            })
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        Some(Self(
            days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second,
        ))
    }

    /// The moment `seconds` later (earlier when negative), kept within what the text form can express.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds).clamp(FIRST, LAST))
    }
}

impl fmt::Display for UtcSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.clamp(FIRST, LAST);
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Years begin in March here, so that the leap day is the
/// last day of the year and months follow one linear formula.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn known_moments() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-24T00:00:00Z", 1_795_478_400),
            ("2038-01-19T03:14:08Z", 2_147_483_648),
            ("1969-12-31T23:59:59Z", -1),
            ("9999-12-31T23:59:59Z", LAST),
            ("0000-01-01T00:00:00Z", FIRST),
        ] {
            assert_eq!(UtcSeconds::parse(text).unwrap(), UtcSeconds(seconds), "{text}");
            assert_eq!(UtcSeconds(seconds).to_string(), text);
        }
    }

    #[test]
    fn every_day_of_eight_centuries_round_trips() {
        for day in -150_000..150_000 {
            let moment = UtcSeconds(day * 86_400 + 1);
            assert_eq!(UtcSeconds::parse(&moment.to_string()).unwrap(), moment);
        }
    }

    #[test]
    fn fractions_are_dropped_and_other_forms_refused() {
        assert_eq!(UtcSeconds::parse("1970-01-01T00:00:01.999Z").unwrap(), UtcSeconds(1));
        for bad in [
            "",
            "2026-11-24",
            "2026-11-24T00:00:00",
            "2026-11-24T00:00:00+00:00",
            "2026-11-24 00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T00:00:60Z",
            "2026-11-24T00:00:00.Z",
            "2026-11-24T00:00:00.0123456789Z",
            "+026-11-24T00:00:00Z",
            "２026-11-24T00:00:00Z",
        ] {
            assert!(UtcSeconds::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addition_saturates() {
        assert_eq!(UtcSeconds(i64::MAX).plus_seconds(1).0, LAST);
        assert_eq!(UtcSeconds(0).plus_seconds(i64::MIN).0, FIRST);
        assert_eq!(UtcSeconds(5).plus_seconds(-7), UtcSeconds(-2));
    }
}
