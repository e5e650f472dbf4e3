//! What the driver says while it works: progress, steps, and what an update has to wait for.

use std::fmt;

use fwmeta::json::{Value, object};

use crate::machine::conditions::{Ask, Withheld};
use crate::machine::release::ReleaseRef;
use crate::machine::slot::SlotId;
use crate::machine::step::Effect;

/// An update that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What was asked for.
    pub ask: Ask,
    /// Why it has to wait; at least one.
    pub reasons: Vec<Withheld>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        write!(f, "the {} waits: {}", self.ask.gate.word(), reasons.join("; "))
    }
}

impl Held {
    /// The form for `--json`.
    pub fn to_value(&self) -> Value {
        let reasons: Vec<_> = self.reasons.iter().map(Withheld::to_value).collect();
        object([("gate", self.ask.gate.word().into()), ("reasons", reasons.into())])
    }
}

/// What the driver is doing, for people and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A release goes into a slot.
    Installing {
        /// The release.
        release: ReleaseRef,
        /// The slot.
        slot: SlotId,
    },
    /// A component is there already.
    Kept {
        /// Its name.
        component: String,
    },
    /// Bytes of a payload.
    Downloading {
        /// The component.
        component: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Bytes of a payload in a bundle, before anything changes.
    Verifying {
        /// The component.
        component: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Bytes of an image on their way into a slot.
    Writing {
        /// The component.
        component: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The update has to wait.
    Held(Held),
    /// Something about settings that could not be done.
    Settings {
        /// What, and why.
        problem: String,
    },
    /// A step was taken.
    Entered {
        /// The phase.
        phase: &'static str,
    },
    /// An effect is about to run.
    Effect(Effect),
}

/// Told of each notice; `false` asks to stop.
pub type Observer = Box<dyn FnMut(&Notice) -> bool>;
