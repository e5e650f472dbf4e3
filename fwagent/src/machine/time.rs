//! What time it is, as far as a device can know (DESIGN §5.6).

use fwmeta::time::UtcSeconds;

/// The time that decisions are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The later of clock and floor.
    pub at: UtcSeconds,
    /// Whether the clock may be right: it is not before a moment that has certainly passed.
    pub clock_believed: bool,
}

impl Reference {
    /// Of a clock and the latest moment that has certainly passed.
    pub fn new(clock: UtcSeconds, floor: UtcSeconds) -> Self {
        Self {
            at: clock.max(floor),
            clock_believed: clock >= floor,
        }
    }
}
