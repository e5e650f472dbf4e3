//! `fwagent settings …` and `fwagent factory-reset`: the settings of the software that runs.
//!
//! Whoever only reads needs no lock. Whoever edits holds the lock that all commands share, finishes what a return left to
//! do, makes a generation and stores one record.

use std::io::{self, Read};
use std::path::Path;

use fwmeta::json::{Doc, Value, object};

use crate::cli::settings::{Apply, Export, FactoryReset, Get, Import, List, Set, SettingsCommand};
use crate::device::Device;
use crate::drive::{DriveError, chain};
use crate::failure::{Code, Failure, Outcome};
use crate::host::clock::SystemClock;
use crate::host::settings::objects::read_bounded;
use crate::host::settings::{Current, HostSettings, shown};
use crate::host::state_file::StateFile;
use crate::machine::settings::document::{self, DOCUMENT_BYTES, Form};
use crate::machine::settings::generation::GenerationId;
use crate::machine::settings::key::{Class, Key};
use crate::machine::settings::slots::{Change, Orphan};
use crate::machine::settings::values::{Edits, Values};
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State};
use crate::machine::step::{Event, step};
use crate::output::Report;
use crate::ports::{Clock, PortError, SettingsStore, StateStore};

pub fn run(device: &Device, command: &SettingsCommand) -> Outcome<Report> {
    match command {
        SettingsCommand::Get(args) => get(device, args),
        SettingsCommand::Set(args) => set(device, args),
        SettingsCommand::Apply(args) => apply(device, args),
        SettingsCommand::List(args) => list(device, args),
        SettingsCommand::History => history(device),
        SettingsCommand::Export(args) => export(device, args),
        SettingsCommand::Import(args) => import(device, args),
    }
}

fn usage(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Code::Usage, error)
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Code::Refused, error)
}

fn read(device: &Device) -> Outcome<(State, HostSettings, Current)> {
    let state = StateFile::new(&device.config.state_dir)
        .peek()?
        .ok_or(DriveError::NotProvisioned)?;
    let settings = device.settings();
    let current = settings.current(&state)?;
    Ok((state, settings, current))
}

fn get(device: &Device, args: &Get) -> Outcome<Report> {
    let key = Key::parse(&args.key).map_err(usage)?;
    let (_, settings, current) = read(device)?;
    let (visible, hidden) = shown(&current.values, &settings.config().classes, args.show_secrets);
    let Some(value) = visible.get(&key) else {
        let within = |hidden: &Value| {
            let hidden = hidden.as_str().and_then(|text| Key::parse(text).ok());
            hidden.is_some_and(|hidden| hidden.is_within(&key))
        };
        if hidden.iter().any(within) {
            return Err(Failure {
                code: Code::Usage,
                error: format!("{key} is of a protected class").into(),
                advice: Some("print it with --show-secrets"),
            });
        }
        return Ok(Report {
            text: format!("{key} is not set"),
            json: object([("key", key.as_str().into()), ("value", Value::Null)]),
            code: Code::Nothing,
        });
    };
    let text = match &value {
        Value::Str(text) => text.clone(),
        Value::Object(_) => value.to_json_pretty(),
        other => other.to_json(),
    };
    let json = object([("key", key.as_str().into()), ("value", value)]);
    Ok(Report::done(text, json))
}

fn list(device: &Device, args: &List) -> Outcome<Report> {
    let (state, settings, current) = read(device)?;
    let classes = &settings.config().classes;
    let mut text = header(&current);
    for (key, value) in current.values.iter() {
        let class = classes.of(key);
        let value = match class.is_protected() && !args.show_secrets {
            true => format!("(hidden, of class {})", class.word()),
            false => value.to_json(),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    text.push_str(&notes(&state, &current));
    let (visible, hidden) = shown(&current.values, classes, args.show_secrets);
    let json = object([
        ("generation", number(current.id)),
        ("schema", current.schema.into()),
        ("values", visible.to_tree()),
        ("hidden", Value::Array(hidden)),
        ("orphaned", orphans(&state)),
        ("damaged", damaged(&state, &current)),
    ]);
    Ok(Report::done(text, json))
}

fn header(current: &Current) -> String {
    match current.id {
        Some(id) => format!("generation {id}, schema {}\n", current.schema),
        None => "no settings yet\n".to_owned(),
    }
}

fn number(id: Option<GenerationId>) -> Value {
    id.map(|id| id.number).into()
}

fn orphans(state: &State) -> Value {
    let orphans = state.settings.orphans.iter();
    orphans.map(Orphan::to_value).collect::<Vec<_>>().into()
}

fn damaged(state: &State, current: &Current) -> Value {
    let all = state.settings.damaged.iter().chain(&current.damaged);
    all.map(|id| id.number.into()).collect::<Vec<Value>>().into()
}

/// For `fwagent status`, from the record alone.
pub fn summary(state: &State, slot: &SlotId) -> (String, Value) {
    let held = state.settings.slots.get(slot);
    let waiting = state.settings.orphans.len();
    let mut text = match held {
        Some(held) => format!("settings: generation {}, schema {}", held.generation, held.schema),
        None => "settings: none".to_owned(),
    };
    if state.settings.carry_back.is_some() {
        text.push_str("; edits are yet to be carried over");
    }
    if waiting > 0 {
        text.push_str(&format!(
            "; {waiting} list(s) of edits wait: `fwagent settings history`"
        ));
    }
    if !state.settings.damaged.is_empty() {
        text.push_str("; a generation was damaged: `fwagent settings history`");
    }
    let damaged = state.settings.damaged.iter().map(|id| id.number.into());
    let json = object([
        ("generation", held.map(|held| held.generation.number).into()),
        ("schema", held.map(|held| held.schema).into()),
        ("carrying_back", state.settings.carry_back.is_some().into()),
        ("orphaned", (waiting as u64).into()),
        ("damaged", damaged.collect::<Vec<Value>>().into()),
    ]);
    (format!("{text}\n"), json)
}

/// What an operator should know.
fn notes(state: &State, current: &Current) -> String {
    let mut text = String::new();
    for orphan in &state.settings.orphans {
        text.push_str(&format!(
            "not carried over: {} edit(s) made in schema {} until {}, because: {}; `fwagent settings apply --orphaned`, or \
             `--discard-orphaned`\n",
            orphan.keys, orphan.schema, orphan.at, orphan.reason
        ));
    }
    if state.settings.orphans_dropped > 0 {
        text.push_str(&format!(
            "{} earlier lists of edits that were not carried over had to make room\n",
            state.settings.orphans_dropped
        ));
    }
    for id in state.settings.damaged.iter().chain(&current.damaged) {
        text.push_str(&format!(
            "generation {id} was damaged; the last good one took its place\n"
        ));
    }
    text
}

fn history(device: &Device) -> Outcome<Report> {
    let (state, settings, current) = read(device)?;
    let mut text = header(&current);
    let mut entries = Vec::new();
    for (slot, held) in &state.settings.slots {
        for id in held.history.iter().chain([&held.generation]) {
            let found = settings.generation(id);
            let in_use = *id == held.generation;
            let (at, cause, keys) = match &found {
                Some(found) => (found.at.to_string(), found.cause.clone(), found.values.len() as u64),
                None => ("?".to_owned(), "damaged".to_owned(), 0),
            };
            text.push_str(&format!(
                "slot {slot}: generation {id}, schema {}, {at}, {keys} settings: {cause}{}\n",
                held.schema,
                if in_use { " (in use)" } else { "" }
            ));
            entries.push(object([
                ("slot", slot.as_str().into()),
                ("generation", id.number.into()),
                ("schema", held.schema.into()),
                ("at", at.into()),
                ("cause", cause.into()),
                ("keys", keys.into()),
                ("in_use", in_use.into()),
                ("whole", found.is_some().into()),
            ]));
        }
    }
    text.push_str(&notes(&state, &current));
    let mut waiting = Vec::new();
    for orphan in &state.settings.orphans {
        let edits = settings.orphan(orphan).ok();
        let keys = edits.iter().flat_map(Edits::keys).map(|key| key.as_str().into());
        let keys: Vec<Value> = keys.collect();
        waiting.push(object([
            ("reason", (&orphan.reason).into()),
            ("schema", orphan.schema.into()),
            ("at", orphan.at.to_string().into()),
            ("keys", keys.into()),
        ]));
    }
    let json = object([
        ("generation", number(current.id)),
        ("generations", entries.into()),
        ("orphaned", waiting.into()),
        ("damaged", damaged(&state, &current)),
    ]);
    Ok(Report::done(text, json))
}

fn export(device: &Device, args: &Export) -> Outcome<Report> {
    let (_, settings, current) = read(device)?;
    let (visible, hidden) = shown(&current.values, &settings.config().classes, args.with_secrets);
    let whole = object([("schema", current.schema.into()), ("values", visible.to_tree())]);
    let Some(path) = &args.file else {
        return Ok(Report::done(whole.to_json_pretty(), whole));
    };
    fwdurable::write_file_mode(path, whole.to_json_pretty().as_bytes(), 0o600)
        .map_err(|error| PortError::environment(format!("writing {}", path.display()), Some(error.into())))?;
    let text = format!(
        "{} settings of schema {} in {}; {} left out",
        visible.len(),
        current.schema,
        path.display(),
        hidden.len()
    );
    let json = object([
        ("file", path.display().to_string().into()),
        ("settings", (visible.len() as u64).into()),
        ("hidden", Value::Array(hidden)),
    ]);
    Ok(Report::done(text, json))
}

fn set(device: &Device, args: &Set) -> Outcome<Report> {
    let key = Key::parse(&args.key).map_err(usage)?;
    let mut edits = Edits::default();
    let given = match (&args.value, args.stdin) {
        (Some(value), _) => Some(value.clone()),
        (None, true) => {
            let bytes = input("-".as_ref())?;
            let text = String::from_utf8(bytes).map_err(|_| usage("standard input is not UTF-8"))?;
            Some(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
        }
        (None, false) => None,
    };
    match given {
        None => edits.remove(key.clone()),
        Some(text) => {
            let json = || Doc::parse(text.as_bytes()).ok()?.root().to_value().ok();
            let value = json().filter(|_| !args.text).unwrap_or(Value::Str(text.clone()));
            edits.set(key.clone(), &value).map_err(usage)?;
        }
    }
    let verb = if args.remove { "remove" } else { "set" };
    Editing::open(device, args.expect)?.commit(&edits, &format!("{verb} {key}"), false)
}

fn apply(device: &Device, args: &Apply) -> Outcome<Report> {
    if let Some(path) = &args.file {
        let form = Form::of_name(&path.display().to_string());
        let tree = document::tree(&input(path)?, form);
        let edits = tree.and_then(|tree| Ok(Edits::from_patch(&tree)?));
        let edits = edits.map_err(|error| usage(format!("{}: {}", path.display(), chain(&error))))?;
        return Editing::open(device, args.expect)?.commit(&edits, "apply", args.dry_run);
    }
    let mut editing = Editing::open(device, args.expect)?;
    let orphans = editing.state.settings.orphans.clone();
    if orphans.is_empty() {
        return Ok(Report {
            text: "no edits wait for a decision".to_owned(),
            json: object([("orphaned", Value::Array(Vec::new()))]),
            code: Code::Nothing,
        });
    }
    if args.dry_run {
        return Err(usage(
            "--dry-run needs a file; `fwagent settings history --json` lists orphaned edits",
        ));
    }
    for orphan in &orphans {
        if args.orphaned {
            let edits = editing.settings.orphan(orphan)?;
            editing.change(&edits, "apply --orphaned")?;
        }
        // After the generation: a loss of power in between applies the same edits once more.
        editing.take(Change::OrphanDone { sha256: orphan.sha256 })?;
    }
    editing.finish()
}

fn import(device: &Device, args: &Import) -> Outcome<Report> {
    let form = Form::of_name(&args.file.display().to_string());
    let (schema, imported) = document::whole(&input(&args.file)?, form)
        .map_err(|error| usage(format!("{}: {}", args.file.display(), chain(&error))))?;
    let mut editing = Editing::open(device, args.expect)?;
    if schema != editing.current.schema {
        return Err(refused(format!(
            "{} is of schema {schema}, the software that runs has settings of schema {}",
            args.file.display(),
            editing.current.schema
        )));
    }
    let classes = editing.settings.config().classes.clone();
    let values = if args.with_secrets {
        imported
    } else {
        // Access is never lost by the way.
        let kept = editing.current.values.protected(&classes);
        imported.ordinary(&classes).joined(&kept).map_err(refused)?
    };
    editing.replace(schema, values, "import")?;
    editing.finish()
}

/// The first settings of a new device: the factory defaults, or none, in the schema of its first software.
pub fn first(device: &Device, state: &mut State, schema: Option<u64>) -> Outcome<()> {
    let mut settings = device.settings();
    let slot_path = device.slots().bootable_path(state.runs(), None);
    let (schema, values) = match (settings.factory(slot_path)?, schema) {
        (Some((factory, _)), Some(schema)) if factory != schema => {
            return Err(refused(format!(
                "factory defaults are of schema {factory}, the first software needs {schema}"
            )));
        }
        (Some(factory), _) => factory,
        (None, schema) => (schema.unwrap_or(0), Values::default()),
    };
    let at = SystemClock.now();
    let change = settings.edit(state, schema, values, "factory defaults", at)?;
    *state = step(state, Event::Settings(change.into()), at)
        .map_err(DriveError::from)?
        .state;
    for problem in settings.publish(state) {
        eprintln!("fwagent: settings: {problem}");
    }
    Ok(())
}

/// `fwagent factory-reset`.
pub fn factory_reset(device: &Device, _: &FactoryReset) -> Outcome<Report> {
    let mut editing = Editing::open(device, None)?;
    let slot_path = device.slots().bootable_path(editing.state.runs(), None);
    let (schema, values) = editing
        .settings
        .factory(slot_path)?
        .ok_or_else(|| usage("the configuration names no factory defaults: settings.factory"))?;
    if editing.current.id.is_some() && schema != editing.current.schema {
        return Err(refused(format!(
            "factory defaults are of schema {schema}, the software that runs needs {}",
            editing.current.schema
        )));
    }
    editing.replace(schema, values, "factory reset")?;
    editing.finish()
}

/// Whole input, bounded.
fn input(path: &Path) -> Outcome<Vec<u8>> {
    let read = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = io::stdin().take(DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes);
        read.map(|_| bytes)
    } else {
        read_bounded(path, DOCUMENT_BYTES)
    };
    read.map_err(|error| PortError::environment(format!("reading {}", path.display()), Some(error.into())).into())
}

/// An edit under the lock.
struct Editing {
    state: State,
    states: StateFile,
    settings: HostSettings,
    current: Current,
    before: Current,
    _lock: fwdurable::Lock,
}

impl Editing {
    fn open(device: &Device, expect: Option<u64>) -> Outcome<Self> {
        let lock = device.lock()?;
        let mut states = StateFile::new(&device.config.state_dir);
        let state = states.load()?.ok_or(DriveError::NotProvisioned)?;
        let mut settings = device.settings();
        // The slot that the boot loader chose decides; a record that does not know it yet is the agent's to complete.
        let running = device.boot().view()?.booted.unwrap_or_else(|| state.active.clone());
        let held = state.settings.slots.get(&running);
        let settled = held
            .and_then(|held| held.origin.as_ref())
            .is_none_or(|origin| origin.settled);
        if running != *state.runs() || matches!(state.phase, Phase::Trial { .. }) && !settled {
            return Err(Failure {
                code: Code::Environment,
                error: format!("slot {running} runs, and the agent has not started in it yet").into(),
                advice: Some("start the agent first; it makes the settings of that software"),
            });
        }
        let mut states_and_state = (states, state);
        // Edits of other software that are on their way come first, or they would be taken for older.
        if let Some(change) = settings.carry_back(&states_and_state.1, SystemClock.now())? {
            take(&mut states_and_state.0, &mut states_and_state.1, change)?;
        }
        if let Some(change) = settings.examine(&states_and_state.1)? {
            take(&mut states_and_state.0, &mut states_and_state.1, change)?;
        }
        let (states, state) = states_and_state;
        let current = settings.current(&state)?;
        let in_use = current.id.map_or(0, |id| id.number);
        if let Some(expect) = expect.filter(|expect| *expect != in_use) {
            return Err(refused(format!("generation {in_use} is in use, expected was {expect}")));
        }
        Ok(Self {
            before: current.clone(),
            current,
            state,
            states,
            settings,
            _lock: lock,
        })
    }

    /// One transaction, and the report about it.
    fn commit(mut self, edits: &Edits, cause: &str, dry_run: bool) -> Outcome<Report> {
        if dry_run {
            let values = self.current.values.edited(edits).map_err(refused)?;
            return Ok(self.report(&values, "would change"));
        }
        self.change(edits, cause)?;
        self.finish()
    }

    fn change(&mut self, edits: &Edits, cause: &str) -> Outcome<()> {
        let values = self.current.values.edited(edits).map_err(refused)?;
        self.replace(self.current.schema, values, cause)
    }

    fn replace(&mut self, schema: u64, values: Values, cause: &str) -> Outcome<()> {
        if values == self.current.values && self.current.id.is_some() {
            return Ok(());
        }
        let change = self
            .settings
            .edit(&self.state, schema, values, cause, SystemClock.now())?;
        self.take(change)?;
        self.current = self.settings.current(&self.state)?;
        Ok(())
    }

    fn take(&mut self, change: Change) -> Outcome<()> {
        take(&mut self.states, &mut self.state, change)
    }

    fn finish(mut self) -> Outcome<Report> {
        let mut problems = self.settings.publish(&self.state);
        if let Err(error) = self.settings.tidy(&self.state) {
            problems.push(chain(&error));
        }
        // What was asked for is done; the agent tries the rest again when it starts.
        for problem in &problems {
            eprintln!("fwagent: settings: {problem}");
        }
        let values = self.current.values.clone();
        Ok(self.report(&values, "changed"))
    }

    fn report(&self, values: &Values, verb: &str) -> Report {
        let edits = self.before.values.edits_to(values);
        let classes = &self.settings.config().classes;
        let keys: Vec<Value> = edits.keys().map(|key| key.as_str().into()).collect();
        let protected = edits.keys().filter(|key| classes.of(key) != Class::Ordinary).count() as u64;
        let mut text = match self.current.id {
            _ if edits.is_empty() => "nothing to change\n".to_owned(),
            Some(id) => format!("{verb} {} setting(s); generation {id} is in use\n", edits.len()),
            None => format!("{verb} {} setting(s)\n", edits.len()),
        };
        for key in edits.keys() {
            text.push_str(&format!("  {key}\n"));
        }
        let json = object([
            ("generation", number(self.current.id)),
            ("schema", self.current.schema.into()),
            ("changed", keys.into()),
            ("changed_protected", protected.into()),
        ]);
        let same = edits.is_empty() && self.before.id == self.current.id;
        Report {
            text,
            json,
            code: if same { Code::Nothing } else { Code::Done },
        }
    }
}

/// Takes a change into the record: the moment from which it is true.
fn take(states: &mut StateFile, state: &mut State, change: Change) -> Outcome<()> {
    let next = step(state, Event::Settings(change.into()), SystemClock.now()).map_err(DriveError::from)?;
    states.store(&next.state)?;
    *state = next.state;
    Ok(())
}
