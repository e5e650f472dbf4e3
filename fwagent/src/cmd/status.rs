//! `fwagent status` and `fwagent explain`: what is, and why. They read and never write, and need no lock.

use std::collections::BTreeSet;

use std::io;
use std::path::Path;

use fwmeta::json::{Doc, Value, object};

use crate::cmd::check::NOTE;
use crate::cmd::{floors, settings};
use crate::device::Device;
use crate::drive::{DriveError, Held};
use crate::failure::{Code, Failure, Outcome};
use crate::host::state_file::StateFile;
use crate::host::status_socket::ask;
use crate::machine::conditions::{Ask, Gate};
use crate::machine::record::outcome_value;
use crate::machine::release::ReleaseRef;
use crate::machine::slot::SlotId;
use crate::machine::state::{Phase, State};
use crate::output::Report;
use crate::ports::Conditions;

pub fn run(device: &Device, args: &crate::cli::Status) -> Outcome<Report> {
    let Some(path) = &args.socket else {
        return status(device);
    };
    let (line, _) = ask(path, &object([("get", "status".into())])).map_err(|error| unreachable(path, error))?;
    let value = Doc::parse(line.as_bytes())
        .ok()
        .and_then(|doc| doc.root().to_value().ok());
    let value = value.ok_or_else(|| Failure::new(Code::Environment, format!("{} gave no status", path.display())))?;
    let code = if value.get("error").is_some() {
        Code::Environment
    } else {
        Code::Done
    };
    Ok(Report {
        text: value.to_json_pretty(),
        json: value,
        code,
    })
}

/// Nobody answers at a socket.
pub fn unreachable(path: &Path, error: io::Error) -> Failure {
    Failure {
        code: Code::Environment,
        error: format!("asking the agent at {}: {error}", path.display()).into(),
        advice: Some("`fwagent run` listens there when status.socket of its configuration says so"),
    }
}

pub fn status(device: &Device) -> Outcome<Report> {
    let (state, running) = read(device)?;
    Ok(Report::done(
        text(device, &state, &running),
        value(device, &state, &running),
    ))
}

pub fn explain(device: &Device) -> Outcome<Report> {
    let (state, running) = read(device)?;
    let note = std::fs::read(device.config.state_dir.join(NOTE)).ok();
    let note = note
        .as_deref()
        .and_then(|bytes| Doc::parse(bytes).ok()?.root().to_value().ok());
    let mut lines = text(device, &state, &running);
    lines.push_str(&why(&state));
    match &note {
        Some(note) => lines.push_str(&note_lines(note)),
        None => lines.push_str("last check: none yet; run `fwagent check`\n"),
    }
    for rejected in &state.rejected {
        lines.push_str(&format!(
            "not again by itself: {} (sequence {}), because: {}; `fwagent install --version {} --retry` tries it\n",
            rejected.release.version, rejected.release.sequence, rejected.reason, rejected.release.version
        ));
    }
    let json = object([
        ("status", value(device, &state, &running)),
        ("last_check", note.into()),
        (
            "rejected",
            state
                .rejected
                .iter()
                .map(|rejected| {
                    object([
                        ("release", rejected.release.to_value()),
                        ("reason", (&rejected.reason).into()),
                    ])
                })
                .collect::<Vec<_>>()
                .into(),
        ),
    ]);
    Ok(Report::done(lines, json))
}

fn read(device: &Device) -> Outcome<(State, SlotId)> {
    let state = StateFile::new(&device.config.state_dir)
        .peek()?
        .ok_or(DriveError::NotProvisioned)?;
    let running = device.boot().peek()?.booted.unwrap_or_else(|| state.active.clone());
    Ok((state, running))
}

fn named(release: Option<&ReleaseRef>) -> String {
    match release {
        Some(release) => format!("{} (sequence {})", release.version, release.sequence),
        None => "unknown software".to_owned(),
    }
}

fn text(device: &Device, state: &State, running: &SlotId) -> String {
    let identity = &device.config.identity;
    let mut text = format!(
        "device: {} {}, channel {}\n",
        identity.product, identity.hardware, identity.channel
    );
    text.push_str(&format!(
        "runs: {} from slot {running}; the agent is {}\n",
        named(state.slot(running).1),
        state.phase.word()
    ));
    for slot in device.config.slot_sets() {
        let (status, release) = state.slot(&slot);
        let held = release
            .map(|release| format!(", {}", named(Some(release))))
            .unwrap_or_default();
        text.push_str(&format!("slot {slot}: {}{held}\n", status.word()));
    }
    text.push_str(&settings::summary(state, running).0);
    for (component, channel, floor) in state.floors.components() {
        text.push_str(&format!(
            "floor of {component} in {channel}: installs nothing below sequence {}, boots nothing below {}\n",
            floor.sequence, floor.security
        ));
    }
    if let Some(look) = floors::look(device) {
        text.push_str(&look.text);
    }
    text.push_str(&format!("time: {}\n", device.time(state)));
    if let Some(held) = held(device, state) {
        text.push_str(&format!("{held}\n"));
    }
    if let Some(last) = &state.last {
        let reason = if last.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", last.reason)
        };
        text.push_str(&format!(
            "last update: {} {} at {}{reason}\n",
            named(Some(&last.release)),
            last.result.word(),
            last.at
        ));
        for line in last.log.lines() {
            text.push_str(&format!("  | {line}\n"));
        }
    }
    text
}

fn value(device: &Device, state: &State, running: &SlotId) -> Value {
    let identity = &device.config.identity;
    let slots = device.config.slot_sets().into_iter().map(|slot| {
        let (status, release) = state.slot(&slot);
        object([
            ("slot", slot.as_str().into()),
            ("status", status.word().into()),
            ("release", release.map(ReleaseRef::to_value).into()),
        ])
    });
    object([
        ("product", (&identity.product).into()),
        ("hardware", (&identity.hardware).into()),
        ("channel", (&identity.channel).into()),
        ("running", running.as_str().into()),
        (
            "running_release",
            state.slot(running).1.map(ReleaseRef::to_value).into(),
        ),
        ("active", state.active.as_str().into()),
        ("phase", state.phase.word().into()),
        ("slots", slots.collect::<Vec<_>>().into()),
        ("settings", settings::summary(state, running).1),
        ("floors", state.floors.to_value()),
        ("tpm", floors::look(device).map(|look| look.json).into()),
        ("time", device.time(state).to_value()),
        ("held", held(device, state).as_ref().map(Held::to_value).into()),
        ("last", state.last.as_ref().map(outcome_value).into()),
    ])
}

/// What withholds the update in progress, or would withhold one. A command that holds off is not asked: this only reads.
fn held(device: &Device, state: &State) -> Option<Held> {
    let facts = device.conditions(Vec::new()).facts();
    let (security, gates) = match state.phase.update() {
        Some((_, release)) => (release.security, &[Gate::Restart][..]),
        None => (false, &[Gate::Install, Gate::Restart][..]),
    };
    let ask = |gate: &Gate| Ask {
        gate: *gate,
        security,
        bytes: 0,
        ignore: BTreeSet::new(),
    };
    gates.iter().find_map(|gate| device.held(state, &facts, ask(gate)))
}

/// What the phase means for the next step.
fn why(state: &State) -> String {
    let text = match &state.phase {
        Phase::Idle => return String::new(),
        Phase::Clearing { .. } | Phase::Staging { .. } => "next: the installation goes on at the next poll",
        Phase::Staged { .. } => "next: the slot is armed when nothing withholds the restart",
        Phase::Pending { .. } => "next: the device must restart into the new slot",
        Phase::Trial { .. } => "next: the health checks, or `fwagent confirm`, decide about the new software",
        Phase::Confirming { .. } => "next: the boot loader is told that the new software is good",
        Phase::FallingBack { .. } => "next: the device must restart into the earlier software",
        Phase::ToRescue { .. } => "next: the device must restart into the rescue system, which can write this slot",
        Phase::RollingBack { .. } => "next: the device must restart into the slot that the operator chose",
    };
    format!("{text}\n")
}

fn note_lines(note: &Value) -> String {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let mut lines = format!("last check with this result: {}\n", text(note, "at"));
    let Some(found) = note.get("found") else {
        return lines;
    };
    if found
        .get("freshness")
        .is_some_and(|freshness| *freshness != Value::Null)
    {
        lines.push_str(&format!("  freshness: {}\n", text(found, "freshness")));
    }
    if found.get("error").is_some() {
        lines.push_str(&format!("  failed: {}\n", text(found, "error")));
    }
    for one in found.get("considered").and_then(Value::as_array).unwrap_or_default() {
        let sequence = one.get("sequence").and_then(Value::as_u64).unwrap_or_default();
        lines.push_str(&format!(
            "  {} (sequence {sequence}) {}\n",
            text(one, "version"),
            text(one, "verdict")
        ));
    }
    for problem in found.get("problems").and_then(Value::as_array).unwrap_or_default() {
        lines.push_str(&format!("  left out: {}\n", problem.as_str().unwrap_or_default()));
    }
    lines
}
