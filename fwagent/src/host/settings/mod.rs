//! The settings of a real device: generations on disk, migrations run, files brought in line.
//!
//! What it decides: which generation is believed when one is damaged. What it does not decide: which generation a slot
//! uses; the agent's record says so, and is written by whoever calls.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fwmeta::json::{Doc, Value, object};
use fwmeta::limits;
use fwmeta::time::UtcSeconds;

use self::carry::Carry;
use self::export::ExportConfig;
use self::objects::Objects;
use self::sandbox::{Sandbox, SandboxConfig};
use crate::machine::settings::document::{self, Form};
use crate::machine::settings::generation::{CAUSE_BYTES, GENERATION_BYTES, Generation, GenerationId};
use crate::machine::settings::key::Classes;
use crate::machine::settings::migrate::{MigrationStep, Returned, carry_back};
use crate::machine::settings::slots::{Change, Origin, Orphan, SlotSettings};
use crate::machine::settings::values::{Edits, MAX_BYTES, Values};
use crate::machine::slot::SlotId;
use crate::machine::state::{REASON_BYTES, State, shortened};
use crate::ports::{PortError, SettingsStore};

pub mod carry;
pub mod confine;
pub mod export;
pub mod objects;
pub mod sandbox;

#[cfg(test)]
mod tests;

/// Longest migration program, in bytes.
pub const PROGRAM_BYTES: usize = limits::MIGRATION_BYTES as usize;

/// How a device keeps its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsConfig {
    /// Which keys are of which class.
    pub classes: Classes,
    /// Earlier generations that are kept of each slot.
    pub history: usize,
    /// File of factory defaults; `{slot}` stands for the path of the running slot.
    pub factory: Option<String>,
    /// Releases whose migration cannot be taken back need no word of an operator.
    pub accept_one_way: bool,
    /// How migrations are run.
    pub sandbox: SandboxConfig,
    /// Files to be written.
    pub exports: Vec<ExportConfig>,
    /// Paths of files that are put back with the software.
    pub carry: Vec<PathBuf>,
}

impl Default for SettingsConfig {
    fn default() -> Self {
        Self {
            classes: Classes::default(),
            history: 8,
            factory: None,
            accept_one_way: false,
            sandbox: SandboxConfig::default(),
            exports: Vec::new(),
            carry: Vec::new(),
        }
    }
}

/// The settings of a device.
#[derive(Debug)]
pub struct HostSettings {
    config: SettingsConfig,
    objects: Objects,
    sandbox: Sandbox,
    carry: Carry,
    dir: PathBuf,
}

/// The settings that are in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// The generation that is whole; `None` when the device has none yet.
    pub id: Option<GenerationId>,
    /// Its schema.
    pub schema: u64,
    /// The values, with protected ones as they were edited last.
    pub values: Values,
    /// The generation that should be in use and is damaged.
    pub damaged: Option<GenerationId>,
}

impl HostSettings {
    /// The settings below the state directory `state_dir`. Migrations end when `stop` is set.
    pub fn new(config: SettingsConfig, state_dir: &std::path::Path, stop: Arc<AtomicBool>) -> Self {
        Self::on(&fwdurable::Disk::system(), config, state_dir, stop)
    }

    /// Like [`new`](Self::new), with generations on another disk. Migrations, exported and carried files need the system's.
    pub fn on(
        disk: &fwdurable::Disk,
        config: SettingsConfig,
        state_dir: &std::path::Path,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let dir = state_dir.join("settings");
        let objects = Objects::on(disk, dir.clone());
        Self {
            sandbox: Sandbox::new(config.sandbox.clone(), dir.join("scratch"), stop),
            carry: Carry::new(config.carry.clone(), objects.clone()),
            objects,
            config,
            dir,
        }
    }

    /// How they are kept.
    pub fn config(&self) -> &SettingsConfig {
        &self.config
    }

    /// The settings in effect for the running software. Reads only, and needs no lock.
    ///
    /// # Errors
    /// [`PortError`] when no generation of it is whole.
    pub fn current(&self, state: &State) -> Result<Current, PortError> {
        let mut current = match state.settings.slots.get(state.runs()) {
            None => Current {
                id: None,
                schema: 0,
                values: Values::default(),
                damaged: None,
            },
            Some(held) => {
                let (id, generation) = self.last_good(state, held)?;
                Current {
                    id: Some(id),
                    schema: held.schema,
                    values: generation.values,
                    damaged: (id != held.generation).then_some(held.generation),
                }
            }
        };
        // A password changed with the software that ran before stays changed, also before edits were carried over.
        if let Some(back) = &state.settings.carry_back
            && let Ok((_, newest)) = self.last_good(state, &back.settings)
        {
            current.values = self.with_protected(&current.values, &newest.values);
        }
        Ok(current)
    }

    /// A generation by its name, if it is whole.
    pub fn generation(&self, id: &GenerationId) -> Option<Generation> {
        Generation::decode(id, &self.objects.get(&id.sha256, GENERATION_BYTES)?)
    }

    /// Makes a generation, durably. The caller makes the record name it.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn make(
        &self,
        state: &State,
        schema: u64,
        values: Values,
        cause: &str,
        at: UtcSeconds,
    ) -> Result<GenerationId, PortError> {
        let generation = Generation {
            number: state.settings.last_number.saturating_add(1),
            schema,
            at,
            cause: shortened(cause, CAUSE_BYTES),
            values,
        };
        let (id, bytes) = generation.encode();
        self.objects.put_twice(&bytes).map_err(|error| {
            PortError::environment(format!("storing generation {id} of the settings"), Some(error.into()))
        })?;
        Ok(id)
    }

    /// An edit of the running software's settings.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn edit(
        &self,
        state: &State,
        schema: u64,
        values: Values,
        cause: &str,
        at: UtcSeconds,
    ) -> Result<Change, PortError> {
        Ok(Change::Edited {
            slot: state.runs().clone(),
            generation: self.make(state, schema, values, cause, at)?,
            schema,
            keep: self.config.history,
        })
    }

    /// The factory defaults: their schema and values; none when no file is configured. `slot_path` is where the running
    /// slot's content lies.
    ///
    /// # Errors
    /// [`PortError`] when the file cannot be read or used.
    pub fn factory(&self, slot_path: Option<PathBuf>) -> Result<Option<(u64, Values)>, PortError> {
        let Some(path) = &self.config.factory else {
            return Ok(None);
        };
        let slot_path = slot_path.map(|path| path.display().to_string()).unwrap_or_default();
        let path = path.replace("{slot}", &slot_path);
        let attempt = || format!("reading the factory defaults {path}");
        let bytes = objects::read_bounded(path.as_ref(), document::DOCUMENT_BYTES)
            .map_err(|error| PortError::environment(attempt(), Some(error.into())))?;
        document::whole(&bytes, Form::of_name(&path))
            .map(Some)
            .map_err(|error| PortError::refused(attempt(), Some(error.into())))
    }

    /// The edits of an orphan.
    ///
    /// # Errors
    /// [`PortError`] when they are damaged.
    pub fn orphan(&self, orphan: &Orphan) -> Result<Edits, PortError> {
        let read = || {
            let bytes = self.objects.get(&orphan.sha256, 2 * MAX_BYTES)?;
            let value = Doc::parse(&bytes).ok()?.root().to_value().ok()?;
            Edits::from_patch(value.get("edits")?).ok()
        };
        read().ok_or_else(|| PortError::environment("reading orphaned edits: they are damaged", None))
    }

    /// The newest generation that is whole: the one in use, an earlier one of the slot, or another slot's of the same
    /// schema. Never factory values.
    fn last_good(&self, state: &State, held: &SlotSettings) -> Result<(GenerationId, Generation), PortError> {
        let fork = held.origin.as_ref().map(|origin| &origin.fork);
        let own = std::iter::once(&held.generation)
            .chain(held.history.iter().rev())
            .chain(fork);
        let others = state.settings.slots.values();
        let others = others.flat_map(|other| std::iter::once(&other.generation).chain(other.history.iter().rev()));
        own.chain(others)
            .find_map(|id| {
                let generation = self.generation(id).filter(|found| found.schema == held.schema)?;
                Some((*id, generation))
            })
            .ok_or_else(|| {
                let attempt = format!(
                    "reading the settings: generation {} and all earlier ones are damaged",
                    held.generation
                );
                PortError::environment(attempt, None)
            })
    }

    /// `values`, with what is protected as in `newest`, which has the last word.
    fn with_protected(&self, values: &Values, newest: &Values) -> Values {
        let classes = &self.config.classes;
        let protected = newest.protected(classes);
        let ordinary = values.ordinary(classes);
        ordinary.joined(&protected).unwrap_or_else(|_| {
            // A value stands where the path to a protected one leads through.
            let free = |key: &_| !protected.iter().any(|(held, _)| held.is_within(key));
            ordinary.filtered(free).joined(&protected).unwrap_or(protected.clone())
        })
    }

    /// Takes steps, one after the other. The inner error says why a program failed.
    fn migrate(&self, values: &Values, steps: &[MigrationStep]) -> Result<Result<Values, String>, PortError> {
        let mut values = values.clone();
        for step in steps {
            match self.step(step, &values)? {
                Ok(next) => values = next,
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(values))
    }

    fn step(&self, step: &MigrationStep, ordinary: &Values) -> Result<Result<Values, String>, PortError> {
        let name = format!("migration from schema {} to {}", step.from, step.to);
        if self.objects.get(&step.program, PROGRAM_BYTES).is_none() {
            return Ok(Err(format!("{name}: its program is damaged")));
        }
        let answer = self
            .sandbox
            .run(&self.objects.path(&step.program), &step.input(ordinary))?;
        Ok(answer
            .and_then(|bytes| {
                MigrationStep::output(&bytes, &self.config.classes).map_err(|error| crate::drive::chain(&error))
            })
            .map_err(|reason| format!("{name}: {reason}")))
    }

    /// Settings for `slot`, made of the active slot's.
    fn derive(
        &self,
        state: &State,
        schema: Option<u64>,
        steps: Vec<MigrationStep>,
        settled: bool,
        at: UtcSeconds,
    ) -> Result<(SlotSettings, GenerationId), PortError> {
        let source = state.active.clone();
        let (base, generation) = match state.settings.slots.get(&source) {
            Some(held) => self.last_good(state, held)?,
            None => {
                let id = self.make(state, 0, Values::default(), "no settings before", at)?;
                let made = self.generation(&id);
                (
                    id,
                    made.ok_or_else(|| PortError::environment("reading settings back", None))?,
                )
            }
        };
        let schema = schema.unwrap_or(generation.schema);
        let leads_to = steps.last().map_or(generation.schema, |step| step.to);
        if steps.first().is_some_and(|step| step.from != generation.schema) || leads_to != schema {
            let attempt = format!(
                "migrating the settings: they are of schema {}, and the update leads from {} to {schema}",
                generation.schema,
                steps.first().map_or(schema, |step| step.from)
            );
            return Err(PortError::refused(attempt, None));
        }
        let id = if steps.is_empty() {
            // Immutable, so that two slots may share it.
            base
        } else {
            let classes = &self.config.classes;
            let migrated = self.migrate(&generation.values.ordinary(classes), &steps)?;
            let migrated = migrated.and_then(|ordinary| {
                let joined = ordinary.joined(&generation.values.protected(classes));
                joined.map_err(|error| error.to_string())
            });
            let values =
                migrated.map_err(|reason| PortError::refused(format!("migrating the settings: {reason}"), None))?;
            // After a base that was made just now.
            let mut next = state.clone();
            next.settings.last_number = next.settings.last_number.max(base.number);
            let cause = format!("migrated from generation {base}, schema {}", generation.schema);
            self.make(&next, schema, values, &cause, at)?
        };
        let origin = Origin {
            slot: source,
            fork: id,
            steps: Some(steps),
            settled,
        };
        let settings = SlotSettings {
            origin: Some(origin),
            ..SlotSettings::first(id, schema)
        };
        Ok((settings, base))
    }

    fn keep_orphan(&self, edits: &Edits, schema: u64, reason: &str, at: UtcSeconds) -> Result<Orphan, PortError> {
        let bytes = object([("schema", schema.into()), ("edits", edits.to_patch())]).to_json();
        let sha256 = self
            .objects
            .put(bytes.as_bytes())
            .map_err(|error| PortError::environment("storing edits of settings", Some(error.into())))?;
        Ok(Orphan {
            sha256,
            schema,
            keys: edits.len() as u64,
            reason: shortened(reason, REASON_BYTES),
            at,
        })
    }
}

impl SettingsStore for HostSettings {
    fn keep_program(&mut self, program: &[u8]) -> Result<[u8; 32], PortError> {
        self.objects
            .put(program)
            .map_err(|error| PortError::environment("storing a migration program", Some(error.into())))
    }

    fn prepare(
        &mut self,
        state: &State,
        slot: &SlotId,
        schema: Option<u64>,
        steps: Vec<MigrationStep>,
        at: UtcSeconds,
    ) -> Result<Change, PortError> {
        let (settings, base) = self.derive(state, schema, steps, false, at)?;
        Ok(Change::Prepared {
            slot: slot.clone(),
            settings,
            base,
            carried: self.carry.snapshot()?,
        })
    }

    fn settle(&mut self, state: &State, slot: &SlotId, at: UtcSeconds) -> Result<Option<Change>, PortError> {
        let prepared = state.settings.slots.get(slot);
        let origin = prepared.and_then(|held| held.origin.as_ref());
        if origin.is_some_and(|origin| origin.settled) {
            return Ok(None);
        }
        let schema = prepared.map(|held| held.schema);
        let steps = origin.and_then(|origin| origin.steps.clone()).unwrap_or_default();
        let (settings, base) = self.derive(state, schema, steps, true, at)?;
        Ok(Some(Change::Settled {
            slot: slot.clone(),
            settings,
            base,
        }))
    }

    fn carry_back(&mut self, state: &State, at: UtcSeconds) -> Result<Option<Change>, PortError> {
        let Some(back) = &state.settings.carry_back else {
            return Ok(None);
        };
        let slot = state.runs().clone();
        let classes = self.config.classes.clone();
        let held = state.settings.slots.get(&slot);
        let Some(held) = held else {
            // Software without settings of its own, such as a rescue system, takes those that there are.
            let (generation, _) = self.last_good(state, &back.settings)?;
            return Ok(Some(Change::CarriedBack {
                slot,
                generation,
                schema: back.settings.schema,
                orphan: None,
                carried: None,
                keep: self.config.history,
            }));
        };
        let (target_id, target) = self.last_good(state, held)?;
        let schema = held.schema;
        let ordinary = target.values.ordinary(&classes);
        let (_, edited) = self.last_good(state, &back.settings)?;
        let origin = back.settings.origin.as_ref().filter(|origin| origin.slot == slot);
        let fork = origin.and_then(|origin| self.generation(&origin.fork));
        // Without a fork nothing is known of what was edited: all that differs is kept.
        let fork_values = fork.map_or_else(|| ordinary.clone(), |fork| fork.values.ordinary(&classes));
        let edited_values = edited.values.ordinary(&classes);
        let steps = origin.and_then(|origin| origin.steps.as_deref());
        let returned = carry_back(&fork_values, &edited_values, steps, |step, values| {
            self.step(step, values)
        });
        let returned = match returned {
            Ok(returned) => returned,
            // Whatever is missing for a sandbox may be missing for long. Nothing is lost by this.
            Err(error) => Returned::Orphaned {
                reason: crate::drive::chain(&error),
            },
        };
        let (ordinary, reason) = match returned {
            Returned::Edits(edits) => match ordinary.edited(&edits) {
                Ok(values) => (values, None),
                Err(error) => (ordinary, Some(error.to_string())),
            },
            Returned::Orphaned { reason } => (ordinary, Some(reason)),
        };
        let orphan = reason.map(|reason| {
            let edits = fork_values.edits_to(&edited_values);
            self.keep_orphan(&edits, back.settings.schema, &reason, at)
        });
        let values = self.with_protected(&ordinary, &edited.values);
        let generation = match target.values == values {
            true => target_id,
            false => {
                let cause = format!("edits of generation {} carried over", back.settings.generation);
                self.make(state, schema, values, &cause, at)?
            }
        };
        // As the other software left them, should it run again; then as the running software left them.
        let carried = match state.settings.slots.contains_key(&back.slot) {
            true => self.carry.snapshot()?,
            false => None,
        };
        if let Some(list) = held.carried {
            self.carry.put_back(&list)?;
        }
        Ok(Some(Change::CarriedBack {
            slot,
            generation,
            schema,
            orphan: orphan.transpose()?,
            carried,
            keep: self.config.history,
        }))
    }

    fn examine(&mut self, state: &State) -> Result<Option<Change>, PortError> {
        let slot = state.runs();
        let Some(held) = state.settings.slots.get(slot) else {
            return Ok(None);
        };
        let (id, _) = self.last_good(state, held)?;
        self.objects
            .mend(&id.sha256, GENERATION_BYTES)
            .map_err(|error| PortError::environment("mending the settings", Some(error.into())))?;
        Ok((id != held.generation).then(|| Change::Damaged {
            slot: slot.clone(),
            instead: id,
        }))
    }

    fn publish(&mut self, state: &State) -> Vec<String> {
        if self.config.exports.is_empty() {
            return Vec::new();
        }
        match self.current(state) {
            Ok(current) => export::publish(&self.config, &current.values, &self.dir),
            Err(error) => vec![crate::drive::chain(&error)],
        }
    }

    fn tidy(&mut self, state: &State) -> Result<(), PortError> {
        let mut kept: BTreeSet<[u8; 32]> = state.settings.objects();
        for list in state.settings.carried() {
            kept.extend(self.carry.objects(&list));
        }
        self.objects
            .keep_only(&kept)
            .map_err(|error| PortError::environment("removing old settings", Some(error.into())))
    }
}

/// For people and machines: what is hidden, and the rest.
pub fn shown(values: &Values, classes: &Classes, secrets: bool) -> (Values, Vec<Value>) {
    let visible = |key: &_| secrets || !classes.of(key).is_protected();
    let hidden = values.iter().filter(|(key, _)| !visible(key));
    let hidden = hidden.map(|(key, _)| key.as_str().into()).collect();
    (values.filtered(visible), hidden)
}
