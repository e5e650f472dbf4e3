//! The way from one settings schema to another, and what becomes of edits on the way back.
//!
//! A release lists steps between schemas, each a program. A step is taken upwards (`from` to `to`) or, when it is
//! reversible, downwards. Programs see ordinary settings only, so that no migration can read, lose or set what is of a
//! protected class; their answer is one JSON object:
//!
//! ```text
//! stdin   {"from":1,"to":2,"direction":"up","settings":{…}}
//! stdout  {…}                                              the settings of schema 2
//! ```

use std::collections::{BTreeMap, VecDeque};

use fwmeta::hex;
use fwmeta::json::{Doc, Value, object};
use fwmeta::manifest::{Migration, Settings};

use super::key::{Classes, Key};
use super::values::{Edits, Values, ValuesError};

/// Steps of one way.
pub const MAX_STEPS: usize = 32;

/// Which way a program is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As the manifest lists it.
    Up,
    /// Back.
    Down,
}

impl Direction {
    /// The word of the protocol.
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    fn reversed(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// One step of the way, with the program that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStep {
    /// Schema of the input.
    pub from: u64,
    /// Schema of the output.
    pub to: u64,
    /// Which way the program runs.
    pub direction: Direction,
    /// Whether the step can be taken back.
    pub reversible: bool,
    /// SHA-256 of the program.
    pub program: [u8; 32],
}

/// One step of the way, by the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedStep<'m> {
    /// The migration.
    pub migration: &'m Migration,
    /// Which way.
    pub direction: Direction,
}

/// A release does not lead from the device's schema to its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "settings of this device are of schema {from}, the release needs {to}, and its migrations ({listed}) do not lead there"
)]
pub struct NoWay {
    /// Schema of the device.
    pub from: u64,
    /// Schema of the release.
    pub to: u64,
    /// What the release brings.
    pub listed: String,
}

/// The shortest way; of several the one that prefers what the manifest lists first.
///
/// # Errors
/// [`NoWay`].
pub fn way(from: u64, settings: &Settings) -> Result<Vec<PlannedStep<'_>>, NoWay> {
    let mut reached: BTreeMap<u64, Option<(u64, PlannedStep<'_>)>> = BTreeMap::from([(from, None)]);
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        for migration in &settings.migrations {
            for direction in [Direction::Up, Direction::Down] {
                let (start, end) = match direction {
                    Direction::Up => (migration.from, migration.to),
                    Direction::Down => (migration.to, migration.from),
                };
                let usable = direction == Direction::Up || migration.reversible;
                if start == at && usable && !reached.contains_key(&end) {
                    reached.insert(end, Some((at, PlannedStep { migration, direction })));
                    queue.push_back(end);
                }
            }
        }
    }
    let mut steps = Vec::new();
    let mut at = settings.schema;
    while let Some(Some((before, step))) = reached.get(&at) {
        steps.push(*step);
        at = *before;
    }
    steps.reverse();
    if !reached.contains_key(&settings.schema) || steps.len() > MAX_STEPS {
        let listed = settings.migrations.iter().map(|migration| {
            let back = if migration.reversible { " and back" } else { "" };
            format!("{} to {}{back}", migration.from, migration.to)
        });
        let listed: Vec<String> = listed.collect();
        return Err(NoWay {
            from,
            to: settings.schema,
            listed: if listed.is_empty() {
                "none".to_owned()
            } else {
                listed.join(", ")
            },
        });
    }
    Ok(steps)
}

impl PlannedStep<'_> {
    /// The step, with the digest of its program.
    pub fn with_program(&self, program: [u8; 32]) -> MigrationStep {
        let Migration { from, to, .. } = *self.migration;
        let (from, to) = match self.direction {
            Direction::Up => (from, to),
            Direction::Down => (to, from),
        };
        MigrationStep {
            from,
            to,
            direction: self.direction,
            reversible: self.migration.reversible,
            program,
        }
    }
}

/// The way back; `None` when a step cannot be taken back.
pub fn back(steps: &[MigrationStep]) -> Option<Vec<MigrationStep>> {
    let reversed = steps.iter().rev().map(|step| {
        step.reversible.then(|| MigrationStep {
            from: step.to,
            to: step.from,
            direction: step.direction.reversed(),
            ..step.clone()
        })
    });
    reversed.collect()
}

impl MigrationStep {
    /// What the program reads.
    pub fn input(&self, ordinary: &Values) -> Vec<u8> {
        object([
            ("from", self.from.into()),
            ("to", self.to.into()),
            ("direction", self.direction.word().into()),
            ("settings", ordinary.to_tree()),
        ])
        .to_json()
        .into_bytes()
    }

    /// What a program answered.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn output(bytes: &[u8], classes: &Classes) -> Result<Values, AnswerError> {
        let doc = Doc::parse(bytes).map_err(|error| AnswerError::NotJson(error.to_string()))?;
        let tree = doc.root().to_value();
        let values = Values::from_tree(&tree.map_err(|error| AnswerError::NotJson(error.to_string()))?)?;
        if let Some((key, _)) = values.protected(classes).iter().next() {
            return Err(AnswerError::Protected { key: key.clone() });
        }
        Ok(values)
    }

    pub(super) fn to_value(&self) -> Value {
        object([
            ("from", self.from.into()),
            ("to", self.to.into()),
            ("direction", self.direction.word().into()),
            ("reversible", self.reversible.into()),
            ("program", hex::encode(&self.program).into()),
        ])
    }

    pub(super) fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            from: value.get("from")?.as_u64()?,
            to: value.get("to")?.as_u64()?,
            direction: match value.get("direction")?.as_str()? {
                "up" => Direction::Up,
                "down" => Direction::Down,
                _ => return None,
            },
            reversible: value.get("reversible")?.as_bool()?,
            program: hex::decode_array(value.get("program")?.as_str()?)?,
        })
    }
}

/// A migration program answered what cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// It is not one JSON value.
    #[error("its output is not JSON: {0}")]
    NotJson(String),
    /// It is no settings.
    #[error("its output")]
    Values(#[from] ValuesError),
    /// It sets what no migration may.
    #[error("its output sets {key}, which is of a class that no migration may touch")]
    Protected {
        /// The key.
        key: Key,
    },
}

/// What becomes of edits on the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returned {
    /// They are the same with the earlier software.
    Edits(Edits),
    /// They cannot be told in the earlier schema without loss.
    Orphaned {
        /// Why.
        reason: String,
    },
}

/// Carries the ordinary edits between `fork` and `edited` over the way that was taken when the fork was made. `run` takes
/// one step. Nothing is lost when going back and forth again gives the same settings.
///
/// # Errors
/// Those of `run` that say nothing about the program.
pub fn carry_back<E>(
    fork: &Values,
    edited: &Values,
    steps: Option<&[MigrationStep]>,
    mut run: impl FnMut(&MigrationStep, &Values) -> Result<Result<Values, String>, E>,
) -> Result<Returned, E> {
    let orphaned = |reason: String| Ok(Returned::Orphaned { reason });
    if fork == edited {
        return Ok(Returned::Edits(Edits::default()));
    }
    let Some(steps) = steps else {
        return orphaned("no migration leads to the software that runs now".to_owned());
    };
    if steps.is_empty() {
        return Ok(Returned::Edits(fork.edits_to(edited)));
    }
    let Some(down) = back(steps) else {
        return orphaned("the migration of the update cannot be taken back".to_owned());
    };
    let mut along = |steps: &[MigrationStep], values: &Values| -> Result<Result<Values, String>, E> {
        let mut values = values.clone();
        for step in steps {
            match run(step, &values)? {
                Ok(next) => values = next,
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(values))
    };
    let edited_before = match along(&down, edited)? {
        Ok(values) => values,
        Err(reason) => return orphaned(format!("taking the migration back failed: {reason}")),
    };
    match along(steps, &edited_before)? {
        Ok(again) if again == *edited => {}
        Ok(_) => return orphaned("taking the migration back and forth again would lose a part".to_owned()),
        Err(reason) => return orphaned(format!("the migration failed after it was taken back: {reason}")),
    }
    match along(&down, fork)? {
        Ok(fork_before) => Ok(Returned::Edits(fork_before.edits_to(&edited_before))),
        Err(reason) => orphaned(format!("taking the migration back failed: {reason}")),
    }
}
