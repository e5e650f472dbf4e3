//! The clock of the operating system, and its random source.

use std::time::{SystemTime, UNIX_EPOCH};

use fwmeta::time::UtcSeconds;

use crate::ports::Clock;

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&mut self) -> UtcSeconds {
        let now = SystemTime::now();
        let seconds = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            // Before 1970 is a clock that was never set.
            Err(_) => 0,
        };
        UtcSeconds(seconds).plus_seconds(0)
    }
}

/// A random number. Jitter needs no secrecy, so a system without random source gets the time instead.
pub fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(since.subsec_nanos()).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}
