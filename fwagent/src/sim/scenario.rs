//! What the device goes through while the power is cut.

use fwmeta::manifest::Encoding;

use crate::sim::repository::Publication;

/// What the software of a release does when it is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It passes its health checks.
    Passes,
    /// It fails them.
    Fails,
    /// It hangs before the agent starts; a watchdog restarts the device.
    Hangs,
}

/// What an operator does when the scenario begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Nothing.
    Away,
    /// Asks for the earlier software.
    RollsBack,
    /// Changes settings, twice.
    Edits,
}

/// How it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// A release of this sequence is confirmed and runs.
    Runs(u64),
    /// The first runs; the second was rejected and is not installed again.
    Rejects(u64, u64),
    /// The operator's word was heard, or not if it was not recorded: the first runs, or else the second.
    RolledBack(u64, u64),
}

/// A scenario. Releases are named by their sequence.
#[derive(Debug)]
pub struct Scenario {
    /// For the command line.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    /// What was published before the device left the factory; the last release is in slot `a`.
    pub factory: &'static [Publication],
    /// What the device installed since then, undisturbed.
    pub before: &'static [Publication],
    /// What is published when the scenario begins.
    pub published: &'static [Publication],
    /// What the newest release does.
    pub behaviour: Behaviour,
    /// What an operator does.
    pub operator: Operator,
    /// How it must end.
    pub goal: Goal,
}

const FACTORY: &[Publication] = &[Publication::release(1), Publication::release(2)];

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "install",
        about: "an update is installed, tried and confirmed",
        factory: FACTORY,
        before: &[],
        published: &[Publication::release(3)],
        behaviour: Behaviour::Passes,
        operator: Operator::Away,
        goal: Goal::Runs(3),
    },
    Scenario {
        name: "fall-back",
        about: "an update fails its health checks; it would have raised the security floor",
        factory: FACTORY,
        before: &[],
        published: &[Publication::Release {
            sequence: 3,
            security_floor: 3,
            encoding: Encoding::Zstd,
            wrong: false,
        }],
        behaviour: Behaviour::Fails,
        operator: Operator::Away,
        goal: Goal::Rejects(2, 3),
    },
    Scenario {
        name: "hang",
        about: "an update hangs at every boot until its attempts are spent",
        factory: FACTORY,
        before: &[],
        published: &[Publication::release(3)],
        behaviour: Behaviour::Hangs,
        operator: Operator::Away,
        goal: Goal::Rejects(2, 3),
    },
    Scenario {
        name: "refused",
        about: "a payload is not the image that its manifest announces",
        factory: FACTORY,
        before: &[],
        published: &[Publication::Release {
            sequence: 3,
            security_floor: 0,
            encoding: Encoding::Identity,
            wrong: true,
        }],
        behaviour: Behaviour::Passes,
        operator: Operator::Away,
        goal: Goal::Rejects(2, 3),
    },
    Scenario {
        name: "roll-back",
        about: "an operator goes back to the other confirmed slot",
        factory: FACTORY,
        before: &[Publication::release(3)],
        published: &[],
        behaviour: Behaviour::Passes,
        operator: Operator::RollsBack,
        goal: Goal::RolledBack(2, 3),
    },
    Scenario {
        name: "floor",
        about: "an update over a confirmed slot raises the security floor; the fall-back that it forbids is disabled",
        factory: FACTORY,
        before: &[Publication::release(3)],
        published: &[Publication::Release {
            sequence: 4,
            security_floor: 4,
            encoding: Encoding::Zstd,
            wrong: false,
        }],
        behaviour: Behaviour::Passes,
        operator: Operator::Away,
        goal: Goal::Runs(4),
    },
    Scenario {
        name: "metadata",
        about: "new metadata without a release: the root is replaced, with another timestamp key",
        factory: FACTORY,
        before: &[],
        published: &[Publication::Rotation],
        behaviour: Behaviour::Passes,
        operator: Operator::Away,
        goal: Goal::Runs(2),
    },
    Scenario {
        name: "settings",
        about: "an operator changes settings twice, a password among them",
        factory: FACTORY,
        before: &[],
        published: &[],
        behaviour: Behaviour::Passes,
        operator: Operator::Edits,
        goal: Goal::Runs(2),
    },
];
