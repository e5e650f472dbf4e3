//! When the power fails: drawn before the device is switched on.

use crate::random::Random;
use crate::vm::nbd::FreezeAt;

/// Cuts are drawn from so many requests of the disk, or lines of the console, after it is switched on: about what an
/// update takes.
const REQUESTS: u64 = 160;
const FLUSHES: u64 = 90;
const LINES: u64 = 50;

/// When the power fails.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut {
    Request(FreezeAt),
    Line(u64),
}

impl Cut {
    pub(super) fn draw(random: &mut Random) -> Self {
        match random.below(5) {
            0 => Self::Line(1 + random.below(LINES)),
            1 => Self::Request(FreezeAt::Write(1 + random.below(REQUESTS))),
            2 | 3 => Self::Request(FreezeAt::BeforeFlush(1 + random.below(FLUSHES))),
            _ => Self::Request(FreezeAt::AfterFlush(1 + random.below(FLUSHES))),
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Request(FreezeAt::Write(_)) => "write",
            Self::Request(FreezeAt::BeforeFlush(_)) => "before a flush",
            Self::Request(FreezeAt::AfterFlush(_)) => "after a flush",
            Self::Line(_) => "console line",
        }
    }
}
