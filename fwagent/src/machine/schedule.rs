//! When to poll next: an interval with random jitter, exponential back-off after failures, and what the server asks.
//!
//! Jitter keeps a fleet that was switched on at one moment from polling in step (RULES UP-16); back-off keeps it from
//! hammering a server that is down.

use std::time::Duration;

use fwmeta::time::UtcSeconds;

use crate::machine::conditions::{Condition, Withheld};

/// Longest pause after failures.
const BACK_OFF_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// How often to poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Between two polls that succeed.
    pub poll: Duration,
    /// Added at random, from nothing to this.
    pub jitter: Duration,
    /// After the first failure; doubled with each further one.
    pub retry: Duration,
}

impl Interval {
    /// The pause before the first poll after a start: only jitter, so that a device that was off learns of updates soon
    /// and a fleet does not come back in step.
    pub fn first(&self, random: u64) -> Duration {
        share(self.jitter, random)
    }

    /// The pause after a poll, `failures` of which failed in a row. The server may ask for more, never for less.
    pub fn next(&self, failures: u32, retry_after: Option<Duration>, random: u64) -> Duration {
        let pause = if failures == 0 {
            self.poll.saturating_add(share(self.jitter, random))
        } else {
            let factor = 2_u32.saturating_pow(failures.saturating_sub(1).min(20));
            let limit = BACK_OFF_MAX.max(self.poll);
            let backed_off = self.retry.saturating_mul(factor).min(limit);
            // Between half and the whole of it, so that devices that failed together spread.
            backed_off / 2 + share(backed_off / 2, random)
        };
        pause.max(retry_after.unwrap_or_default())
    }
}

/// How long to wait before it is worth looking again whether an update is still withheld: until the moment that all
/// reasons give, or `recheck` when one gives none or can end earlier.
pub fn next_look(reasons: &[Withheld], now: UtcSeconds, recheck: Duration) -> Duration {
    let mut until = now;
    for reason in reasons {
        match reason.until.filter(|_| reason.condition == Condition::Window) {
            Some(opens) => until = until.max(opens),
            None => return recheck,
        }
    }
    let seconds = u64::try_from(until.0.saturating_sub(now.0)).unwrap_or(0);
    // Not a busy loop when a clock and a window disagree by a second.
    Duration::from_secs(seconds.max(1))
}

/// `random` maps evenly to a share of `whole`.
fn share(whole: Duration, random: u64) -> Duration {
    let nanoseconds = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    let scaled = (u128::from(nanoseconds) * u128::from(random)) >> 64;
    // Less than `nanoseconds`, hence within u64.
    Duration::from_nanos(scaled as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Interval = Interval {
        poll: Duration::from_secs(3600),
        jitter: Duration::from_secs(600),
        retry: Duration::from_secs(30),
    };
    const HALF: u64 = 1 << 63;

    #[test]
    fn success_waits_the_interval_and_jitter() {
        assert_eq!(INTERVAL.next(0, None, 0), Duration::from_secs(3600));
        assert_eq!(INTERVAL.next(0, None, HALF), Duration::from_secs(3900));
        assert!(INTERVAL.next(0, None, u64::MAX) < Duration::from_secs(4200));
        assert!(INTERVAL.first(u64::MAX) < Duration::from_secs(600));
    }

    #[test]
    fn failures_back_off_up_to_a_bound() {
        assert_eq!(INTERVAL.next(1, None, 0), Duration::from_secs(15));
        assert_eq!(INTERVAL.next(3, None, 0), Duration::from_secs(60));
        assert_eq!(INTERVAL.next(u32::MAX, None, 0), BACK_OFF_MAX / 2);
        assert!(INTERVAL.next(u32::MAX, None, u64::MAX) <= BACK_OFF_MAX);
    }

    #[test]
    fn the_server_may_ask_for_more_and_never_for_less() {
        let asked = Some(Duration::from_secs(7200));
        assert_eq!(INTERVAL.next(1, asked, 0), Duration::from_secs(7200));
        assert_eq!(
            INTERVAL.next(0, Some(Duration::from_secs(1)), 0),
            Duration::from_secs(3600)
        );
    }

    #[test]
    fn a_window_is_slept_for_and_everything_else_is_looked_at_again() {
        let now = UtcSeconds(1000);
        let reason = |condition, until: Option<i64>| Withheld {
            condition,
            reason: String::new(),
            until: until.map(UtcSeconds),
        };
        let look = |reasons: &[Withheld]| next_look(reasons, now, Duration::from_secs(60)).as_secs();
        assert_eq!(look(&[reason(Condition::Window, Some(1500))]), 500);
        assert_eq!(look(&[reason(Condition::Window, Some(900))]), 1);
        assert_eq!(look(&[reason(Condition::Window, None)]), 60);
        // It may be taken back.
        assert_eq!(look(&[reason(Condition::Hold, Some(1500))]), 60);
        let both = [reason(Condition::Window, Some(1500)), reason(Condition::Power, None)];
        assert_eq!(look(&both), 60);
    }
}
