//! Which generation each slot uses, and what a trial needs to go back: the settings' part of the agent's record.

use std::collections::{BTreeMap, BTreeSet};

use fwmeta::hex;
use fwmeta::json::{Value, object};
use fwmeta::time::UtcSeconds;

use super::generation::GenerationId;
use super::migrate::{MAX_STEPS, MigrationStep};
use crate::machine::boot::MAX_SLOTS;
use crate::machine::slot::SlotId;
use crate::machine::state::{REASON_BYTES, shortened};

/// Earlier generations of a slot that may be kept.
pub const MAX_HISTORY: usize = 64;
/// Orphaned edits that are kept, oldest first out.
pub const MAX_ORPHANS: usize = 16;
/// Damaged generations that are remembered.
pub const MAX_DAMAGED: usize = 8;

/// The settings' part of the agent's record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsState {
    /// What each slot uses. A slot whose software has no settings yet is not there.
    pub slots: BTreeMap<SlotId, SlotSettings>,
    /// Number of the last generation that was made.
    pub last_number: u64,
    /// The device went back: the edits that were made with the other software are to be carried over.
    pub carry_back: Option<CarryBack>,
    /// Edits that could not be carried over, until an operator applies or discards them.
    pub orphans: Vec<Orphan>,
    /// Orphans that had to make room.
    pub orphans_dropped: u64,
    /// Generations that were found damaged and given up for an earlier one; the newest last.
    pub damaged: Vec<GenerationId>,
}

/// The settings of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSettings {
    /// The generation in use.
    pub generation: GenerationId,
    /// Its schema.
    pub schema: u64,
    /// Earlier generations of this slot, the newest last.
    pub history: Vec<GenerationId>,
    /// Where they came from, while that slot still has what it had.
    pub origin: Option<Origin>,
    /// Files of the device's own software as this slot's software left them: digest of the list.
    pub carried: Option<[u8; 32]>,
}

/// How the settings of a slot were made of another slot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The other slot.
    pub slot: SlotId,
    /// The generation at the fork: edits since are what differs from it.
    pub fork: GenerationId,
    /// How the other slot's became it. `None`: there is no way back for edits.
    pub steps: Option<Vec<MigrationStep>>,
    /// The software has run with them. Before that they are only a dry run, to be made again.
    pub settled: bool,
}

/// Edits on their way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarryBack {
    /// The slot whose software ran.
    pub slot: SlotId,
    /// Its settings.
    pub settings: SlotSettings,
}

/// Edits that could not be carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Digest of the edits.
    pub sha256: [u8; 32],
    /// Schema in which they were made.
    pub schema: u64,
    /// How many settings are concerned.
    pub keys: u64,
    /// Why.
    pub reason: String,
    /// When.
    pub at: UtcSeconds,
}

/// Something happened to settings. Every generation that is named here is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// They were edited.
    Edited {
        /// The slot that runs.
        slot: SlotId,
        /// The new generation.
        generation: GenerationId,
        /// Its schema; differs only when there was none before.
        schema: u64,
        /// How many earlier ones to keep.
        keep: usize,
    },
    /// An update's slot got its copy: a dry run.
    Prepared {
        /// The slot.
        slot: SlotId,
        /// Its settings.
        settings: SlotSettings,
        /// The generation of the running software that they were made of.
        base: GenerationId,
        /// Files as the running software left them.
        carried: Option<[u8; 32]>,
    },
    /// The slot on trial got its copy of what was current at its first start.
    Settled {
        /// The slot.
        slot: SlotId,
        /// Its settings.
        settings: SlotSettings,
        /// The generation of the earlier software that they were made of.
        base: GenerationId,
    },
    /// Edits were carried back.
    CarriedBack {
        /// The slot that runs.
        slot: SlotId,
        /// Its generation now.
        generation: GenerationId,
        /// Its schema; differs only when there was none before.
        schema: u64,
        /// What could not be carried back.
        orphan: Option<Orphan>,
        /// Files as the other software left them, if it may run again.
        carried: Option<[u8; 32]>,
        /// How many earlier ones to keep.
        keep: usize,
    },
    /// A generation was damaged, and an earlier one takes its place.
    Damaged {
        /// The slot.
        slot: SlotId,
        /// What takes its place.
        instead: GenerationId,
    },
    /// An operator applied orphaned edits, or discards them.
    OrphanDone {
        /// Their digest.
        sha256: [u8; 32],
    },
}

impl SlotSettings {
    /// Settings that were made of no others.
    pub fn first(generation: GenerationId, schema: u64) -> Self {
        Self {
            generation,
            schema,
            history: Vec::new(),
            origin: None,
            carried: None,
        }
    }

    /// Takes a new generation and keeps at most `keep` earlier ones.
    pub fn advance(&mut self, generation: GenerationId, keep: usize) {
        if generation == self.generation {
            return;
        }
        self.history.push(std::mem::replace(&mut self.generation, generation));
        let excess = self.history.len().saturating_sub(keep.min(MAX_HISTORY));
        self.history.drain(..excess);
    }
}

impl SettingsState {
    /// Digests of all objects that are still needed, besides those that a list of carried files names.
    pub fn objects(&self) -> BTreeSet<[u8; 32]> {
        let back = self.carry_back.as_ref().map(|back| &back.settings);
        let mut kept: BTreeSet<[u8; 32]> = self.orphans.iter().map(|orphan| orphan.sha256).collect();
        for settings in self.slots.values().chain(back) {
            kept.insert(settings.generation.sha256);
            kept.extend(settings.history.iter().map(|id| id.sha256));
            kept.extend(settings.carried);
            if let Some(origin) = &settings.origin {
                kept.insert(origin.fork.sha256);
                kept.extend(origin.steps.iter().flatten().map(|step| step.program));
            }
        }
        kept
    }

    /// Digests of the lists of carried files.
    pub fn carried(&self) -> impl Iterator<Item = [u8; 32]> {
        let back = self.carry_back.as_ref().map(|back| &back.settings);
        self.slots.values().chain(back).filter_map(|settings| settings.carried)
    }

    /// The form in the record.
    pub fn to_value(&self) -> Value {
        let slots = self.slots.iter();
        let slots = slots.map(|(slot, settings)| (slot.to_string(), settings.to_value()));
        let ids = |ids: &[GenerationId]| ids.iter().map(GenerationId::to_value).collect::<Vec<_>>();
        object([
            ("slots", Value::Object(slots.collect())),
            ("last_number", self.last_number.into()),
            (
                "carry_back",
                self.carry_back
                    .as_ref()
                    .map(|back| {
                        object([
                            ("slot", back.slot.as_str().into()),
                            ("settings", back.settings.to_value()),
                        ])
                    })
                    .into(),
            ),
            (
                "orphans",
                self.orphans.iter().map(Orphan::to_value).collect::<Vec<_>>().into(),
            ),
            ("orphans_dropped", self.orphans_dropped.into()),
            ("damaged", ids(&self.damaged).into()),
        ])
    }

    /// Reads [`to_value`](Self::to_value) back.
    pub fn from_value(value: &Value) -> Option<Self> {
        let slots = value.get("slots")?.as_object()?;
        if slots.len() > MAX_SLOTS {
            return None;
        }
        let slots = slots
            .iter()
            .map(|(slot, settings)| Some((SlotId::parse(slot).ok()?, SlotSettings::from_value(settings)?)));
        Some(Self {
            slots: slots.collect::<Option<_>>()?,
            last_number: value.get("last_number")?.as_u64()?,
            carry_back: match value.get("carry_back")? {
                Value::Null => None,
                back => Some(CarryBack {
                    slot: SlotId::parse(back.get("slot")?.as_str()?).ok()?,
                    settings: SlotSettings::from_value(back.get("settings")?)?,
                }),
            },
            orphans: list(value.get("orphans")?, MAX_ORPHANS, Orphan::from_value)?,
            orphans_dropped: value.get("orphans_dropped")?.as_u64()?,
            damaged: list(value.get("damaged")?, MAX_DAMAGED, GenerationId::from_value)?,
        })
    }
}

fn list<T>(value: &Value, most: usize, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let items = value.as_array().filter(|items| items.len() <= most)?;
    items.iter().map(read).collect()
}

fn digest(value: &Value) -> Option<Option<[u8; 32]>> {
    match value {
        Value::Null => Some(None),
        text => hex::decode_array(text.as_str()?).map(Some),
    }
}

impl SlotSettings {
    fn to_value(&self) -> Value {
        let history: Vec<_> = self.history.iter().map(GenerationId::to_value).collect();
        object([
            ("generation", self.generation.to_value()),
            ("schema", self.schema.into()),
            ("history", history.into()),
            ("origin", self.origin.as_ref().map(Origin::to_value).into()),
            ("carried", self.carried.map(|sha256| hex::encode(&sha256)).into()),
        ])
    }

    fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            generation: GenerationId::from_value(value.get("generation")?)?,
            schema: value.get("schema")?.as_u64()?,
            history: list(value.get("history")?, MAX_HISTORY, GenerationId::from_value)?,
            origin: match value.get("origin")? {
                Value::Null => None,
                origin => Some(Origin::from_value(origin)?),
            },
            carried: digest(value.get("carried")?)?,
        })
    }
}

impl Origin {
    fn to_value(&self) -> Value {
        let steps = self.steps.as_ref();
        let steps = steps.map(|steps| steps.iter().map(MigrationStep::to_value).collect::<Vec<_>>());
        object([
            ("slot", self.slot.as_str().into()),
            ("fork", self.fork.to_value()),
            ("steps", steps.into()),
            ("settled", self.settled.into()),
        ])
    }

    fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            slot: SlotId::parse(value.get("slot")?.as_str()?).ok()?,
            fork: GenerationId::from_value(value.get("fork")?)?,
            steps: match value.get("steps")? {
                Value::Null => None,
                steps => Some(list(steps, MAX_STEPS, MigrationStep::from_value)?),
            },
            settled: value.get("settled")?.as_bool()?,
        })
    }
}

impl Orphan {
    /// The form in records and on terminals.
    pub fn to_value(&self) -> Value {
        object([
            ("sha256", hex::encode(&self.sha256).into()),
            ("schema", self.schema.into()),
            ("keys", self.keys.into()),
            ("reason", (&self.reason).into()),
            ("at", self.at.to_string().into()),
        ])
    }

    fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            sha256: hex::decode_array(value.get("sha256")?.as_str()?)?,
            schema: value.get("schema")?.as_u64()?,
            keys: value.get("keys")?.as_u64()?,
            reason: shortened(value.get("reason")?.as_str()?, REASON_BYTES),
            at: UtcSeconds::parse(value.get("at")?.as_str()?).ok()?,
        })
    }
}
