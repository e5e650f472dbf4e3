//! What time it is, as far as a device can know, and whether metadata are fresh by it (DESIGN §5.6; RULES PW-12, UP-08).
//!
//! ```text
//!  clock before the floor   the clock is wrong: decisions go by the floor        fresh? unknown
//!  expired by the later     nobody may tell the device that this is the newest   stale: refused
//!  otherwise                                                                     fresh
//! ```
//!
//! The floor is a moment that has certainly passed: the latest at which metadata were verified as fresh, or the one that
//! the device's maker gives. A clock that is ahead makes metadata stale and raises nothing, since the floor rises only with
//! metadata that are all valid, and never to their expiry: what is published today stays acceptable when the clock is set
//! right again.

use std::fmt;

use fwmeta::json::{Value, object};
use fwmeta::time::UtcSeconds;

/// No clock is right that shows an earlier moment than this program can have been built at: 2026-01-01T00:00:00Z.
pub const PROGRAM: UtcSeconds = UtcSeconds(1_767_225_600);

/// The time that decisions are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The later of clock and floor.
    pub at: UtcSeconds,
    /// What the clock shows.
    pub clock: UtcSeconds,
    /// Whether the clock may be right: it is not before a moment that has certainly passed.
    pub clock_believed: bool,
}

/// Whether metadata are the newest that there are, as far as their expiry tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Not expired, by a clock that may be right.
    Fresh,
    /// Expired, for all that is known. Nobody knows what came after them.
    Stale,
    /// Not expired at the floor; the clock is wrong.
    Unknown,
}

impl Freshness {
    /// The word for people and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

impl Reference {
    /// Of a clock and the latest moment that has certainly passed.
    pub fn new(clock: UtcSeconds, floor: UtcSeconds) -> Self {
        Self {
            at: clock.max(floor),
            clock,
            clock_believed: clock >= floor,
        }
    }

    /// Whether metadata that expire at this moment, the earliest of all that count, are fresh.
    pub fn freshness(self, expires: UtcSeconds) -> Freshness {
        if expires <= self.at {
            Freshness::Stale
        } else if self.clock_believed {
            Freshness::Fresh
        } else {
            Freshness::Unknown
        }
    }

    /// The floor that verified metadata justify which expire at this moment, the earliest of all: none by a clock that is
    /// not believed, or by which one of them is stale.
    pub fn justified_floor(self, expires: UtcSeconds) -> Option<UtcSeconds> {
        (self.freshness(expires) == Freshness::Fresh).then_some(self.at)
    }
}

impl Reference {
    /// The form for `--json`.
    pub fn to_value(self) -> Value {
        object([
            ("at", self.at.to_string().into()),
            ("clock", self.clock.to_string().into()),
            ("clock_believed", self.clock_believed.into()),
        ])
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.clock_believed {
            write!(f, "{} by the clock", self.clock)
        } else {
            write!(
                f,
                "unknown: the clock shows {}, and {} has certainly passed",
                self.clock, self.at
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_answers() {
        let floor = UtcSeconds(1000);
        for (clock, expires, freshness) in [
            (1000, 1001, Freshness::Fresh),
            (5000, 5001, Freshness::Fresh),
            (5000, 5000, Freshness::Stale),
            (1000, 1000, Freshness::Stale),
            (999, 1001, Freshness::Unknown),
            (0, i64::MAX, Freshness::Unknown),
            // Whatever the clock shows, what had expired at the floor has expired.
            (0, 1000, Freshness::Stale),
            (i64::MAX, i64::MAX, Freshness::Stale),
        ] {
            let time = Reference::new(UtcSeconds(clock), floor);
            assert_eq!(time.freshness(UtcSeconds(expires)), freshness, "{clock} {expires}");
            let justified = time.justified_floor(UtcSeconds(expires));
            assert_eq!(justified.is_some(), freshness == Freshness::Fresh);
            // Never below the floor, and before everything expires.
            assert!(justified.is_none_or(|at| at >= floor && at < UtcSeconds(expires)));
        }
    }
}
