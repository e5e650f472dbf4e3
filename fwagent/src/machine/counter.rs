//! The agent's record and a counter that only counts up, in another medium: does the one belong to the other?
//!
//! Whenever a floor of a component rises, the record is stored with the next value, then the counter is raised to it. So a
//! record is as old as the counter or one step ahead of it. One that is behind is a copy of the past, whose floors are lower
//! than those that the device had.

use std::fmt;

use fwmeta::json::{Value, object};

/// What the counter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// There is no counter.
    Missing,
    /// It has no value yet.
    Unwritten,
    /// Its value.
    At(u64),
}

/// The record does not belong to the counter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mismatch {
    /// The value that the record belongs to; none before there was a counter.
    pub record: Option<u64>,
    /// The counter.
    pub counter: Reading,
}

/// A record that belongs to the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// To this value.
    Sound(u64),
    /// To this value, which is the next one: the power went before the counter was raised.
    Unfinished(u64),
}

/// Compares the value that a record belongs to with the counter.
///
/// # Errors
/// [`Mismatch`].
pub fn judge(record: Option<u64>, counter: Reading) -> Result<Standing, Mismatch> {
    match (record, counter) {
        (Some(record), Reading::At(value)) if record == value => Ok(Standing::Sound(record)),
        (Some(record), Reading::At(value)) if value.checked_add(1) == Some(record) => Ok(Standing::Unfinished(record)),
        _ => Err(Mismatch { record, counter }),
    }
}

impl Mismatch {
    /// The word in JSON.
    pub fn word(&self) -> &'static str {
        match (self.record, self.counter) {
            (None, _) => "not-bound",
            (Some(_), Reading::Missing | Reading::Unwritten) => "no-counter",
            (Some(record), Reading::At(value)) if record < value => "older-record",
            _ => "other-counter",
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.record, self.counter) {
            (None, Reading::At(value)) => write!(
                f,
                "the record belongs to no value, and the counter is at {value}: the record is older than the counter, or \
                 the counter is another device's"
            ),
            (None, _) => f.write_str("the record belongs to no value, since there was no counter when it was made"),
            (Some(record), Reading::At(value)) if record < value => write!(
                f,
                "the record belongs to value {record}, and the counter is at {value}: an older record was put back, with \
                 lower floors"
            ),
            (Some(record), Reading::At(value)) => write!(
                f,
                "the record belongs to value {record}, and the counter is at {value}: it is another TPM, or the record is \
                 another device's"
            ),
            (Some(record), _) => write!(
                f,
                "the record belongs to value {record}, and there is no counter: the TPM was cleared, or it is another one"
            ),
        }?;
        f.write_str(
            "; the software that runs is kept, and nothing is installed or confirmed; who knows why may take the record as \
             it is with `fwagent floors --accept-tpm`",
        )
    }
}

/// The form for `--json`.
pub fn to_value(record: Option<u64>, counter: Reading) -> Value {
    let judged = judge(record, counter);
    let word = match &judged {
        Ok(Standing::Sound(_)) => "sound",
        Ok(Standing::Unfinished(_)) => "unfinished",
        Err(mismatch) => mismatch.word(),
    };
    let value = match counter {
        Reading::At(value) => Some(value),
        _ => None,
    };
    object([
        ("standing", word.into()),
        ("record", record.into()),
        ("counter", value.into()),
        ("problem", judged.err().map(|mismatch| mismatch.to_string()).into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_value_and_the_next_one_belong_together() {
        use Reading::{At, Missing, Unwritten};
        for (record, counter, expected) in [
            (Some(5), At(5), Ok(Standing::Sound(5))),
            (Some(6), At(5), Ok(Standing::Unfinished(6))),
            (Some(4), At(5), Err("older-record")),
            (Some(7), At(5), Err("other-counter")),
            (Some(0), At(u64::MAX), Err("older-record")),
            (Some(u64::MAX), At(u64::MAX), Ok(Standing::Sound(u64::MAX))),
            (Some(5), Missing, Err("no-counter")),
            (Some(0), Unwritten, Err("no-counter")),
            (None, At(5), Err("not-bound")),
            (None, At(0), Err("not-bound")),
            (None, Missing, Err("not-bound")),
            (None, Unwritten, Err("not-bound")),
        ] {
            let judged = judge(record, counter);
            assert_eq!(judged.clone().map_err(|mismatch| mismatch.word()), expected);
            if let Err(mismatch) = judged {
                let text = mismatch.to_string();
                assert!(text.contains("--accept-tpm"), "{text}");
                for value in [record, if let At(value) = counter { Some(value) } else { None }] {
                    assert!(value.is_none_or(|value| text.contains(&value.to_string())), "{text}");
                }
            }
        }
    }
}
