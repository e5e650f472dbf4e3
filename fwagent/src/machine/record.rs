//! The bytes of a [`State`]: JSON with a schema number, kept in two checksummed copies by `fwdurable::twin`.
//!
//! Bytes that do not read back exactly are an error with a defined answer (the other copy; then stop and report), never
//! quietly a new state.

use std::collections::BTreeMap;

use fwmeta::hex;
use fwmeta::json::{Doc, Value, object};
use fwmeta::time::UtcSeconds;

use crate::machine::boot::MAX_SLOTS;
use crate::machine::floor::Floors;
use crate::machine::release::ReleaseRef;
use crate::machine::rescue::Rescue;
use crate::machine::settings::slots::SettingsState;
use crate::machine::slot::SlotId;
use crate::machine::state::{MAX_REJECTED, Outcome, Phase, Rejected, State, UpdateResult};

/// Version of the record's form.
pub const SCHEMA: u64 = 1;

/// Longest record, in bytes: all lists full and all texts escaped stay below.
pub const RECORD_BYTES: usize = 16 * 1024 * 1024;

/// The bytes are no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent's record cannot be read: {reason}")]
pub struct RecordError {
    /// What is wrong.
    pub reason: String,
}

/// The bytes of a state.
pub fn encode(state: &State) -> Vec<u8> {
    let releases = |map: &BTreeMap<SlotId, ReleaseRef>| {
        let entries = map.iter().map(|(slot, release)| (slot.to_string(), release.to_value()));
        Value::Object(entries.collect())
    };
    let rejected = state.rejected.iter().map(|rejected| {
        object([
            ("release", rejected.release.to_value()),
            ("reason", (&rejected.reason).into()),
        ])
    });
    object([
        ("schema", SCHEMA.into()),
        ("phase", phase_value(&state.phase)),
        ("active", state.active.as_str().into()),
        ("confirmed", releases(&state.confirmed)),
        ("bad", releases(&state.bad)),
        ("rejected", rejected.collect::<Vec<_>>().into()),
        ("floors", state.floors.to_value()),
        ("last", state.last.as_ref().map(outcome_value).into()),
        ("rescue", state.rescue.as_ref().map(rescue_value).into()),
        ("outcomes", state.outcomes.into()),
        ("settings", state.settings.to_value()),
        ("counter", state.counter.into()),
    ])
    .to_json()
    .into_bytes()
}

/// Reads [`encode`] back.
///
/// # Errors
/// [`RecordError`].
pub fn decode(bytes: &[u8]) -> Result<State, RecordError> {
    let error = |reason: String| RecordError { reason };
    let doc = Doc::parse(bytes).map_err(|cause| error(cause.to_string()))?;
    let value = doc.root().to_value().map_err(|cause| error(cause.to_string()))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(SCHEMA) => {}
        Some(other) => {
            return Err(error(format!(
                "its schema is {other}, this agent knows {SCHEMA}; a newer agent wrote it"
            )));
        }
        None => return Err(error("it has no schema".to_owned())),
    }
    read(&value).ok_or_else(|| error("a field is missing or malformed".to_owned()))
}

fn read(value: &Value) -> Option<State> {
    let releases = |field: &str| {
        let entries = value.get(field)?.as_object()?;
        if entries.len() > MAX_SLOTS {
            return None;
        }
        let entries = entries
            .iter()
            .map(|(slot, release)| Some((SlotId::parse(slot).ok()?, ReleaseRef::from_value(release)?)));
        entries.collect::<Option<BTreeMap<_, _>>>()
    };
    let rejected = value.get("rejected")?.as_array()?;
    if rejected.len() > MAX_REJECTED {
        return None;
    }
    let rejected = rejected.iter().map(|entry| {
        Some(Rejected {
            release: ReleaseRef::from_value(entry.get("release")?)?,
            reason: text(entry, "reason")?,
        })
    });
    Some(State {
        phase: read_phase(value.get("phase")?)?,
        active: slot(value, "active")?,
        confirmed: releases("confirmed")?,
        bad: releases("bad")?,
        rejected: rejected.collect::<Option<_>>()?,
        floors: Floors::from_value(value.get("floors")?)?,
        last: match value.get("last")? {
            Value::Null => None,
            last => Some(read_outcome(last)?),
        },
        rescue: match value.get("rescue") {
            None | Some(Value::Null) => None,
            Some(rescue) => Some(read_rescue(rescue)?),
        },
        // Records written before outcomes were counted have none.
        outcomes: match value.get("outcomes") {
            None => 0,
            Some(count) => count.as_u64()?,
        },
        // Records of agents before there were settings have none.
        settings: match value.get("settings") {
            None => SettingsState::default(),
            Some(settings) => SettingsState::from_value(settings)?,
        },
        counter: match value.get("counter") {
            None | Some(Value::Null) => None,
            Some(counter) => Some(counter.as_u64()?),
        },
    })
}

fn text(value: &Value, field: &str) -> Option<String> {
    Some(value.get(field)?.as_str()?.to_owned())
}

fn slot(value: &Value, field: &str) -> Option<SlotId> {
    SlotId::parse(value.get(field)?.as_str()?).ok()
}

fn phase_value(phase: &Phase) -> Value {
    let mut entries = BTreeMap::from([("name".to_owned(), Value::from(phase.word()))]);
    if let Some((slot, release)) = phase.update() {
        entries.insert("slot".to_owned(), slot.as_str().into());
        entries.insert("release".to_owned(), release.to_value());
    }
    match phase {
        Phase::Pending { attempts, .. } => {
            entries.insert("attempts".to_owned(), (*attempts).into());
        }
        Phase::FallingBack { reason, log, .. } => {
            entries.insert("reason".to_owned(), reason.into());
            entries.insert("log".to_owned(), log.into());
        }
        Phase::RollingBack { to } => {
            entries.insert("slot".to_owned(), to.as_str().into());
        }
        Phase::ToRescue {
            slot,
            release,
            attempts,
        } => {
            entries.insert("slot".to_owned(), slot.as_str().into());
            entries.insert("release".to_owned(), release.as_ref().map(ReleaseRef::to_value).into());
            entries.insert("attempts".to_owned(), (*attempts).into());
        }
        _ => {}
    }
    Value::Object(entries)
}

fn read_phase(value: &Value) -> Option<Phase> {
    let release = || ReleaseRef::from_value(value.get("release")?);
    let slot = || slot(value, "slot");
    Some(match value.get("name")?.as_str()? {
        "idle" => Phase::Idle,
        "clearing" => Phase::Clearing {
            slot: slot()?,
            release: release()?,
        },
        "staging" => Phase::Staging {
            slot: slot()?,
            release: release()?,
        },
        "staged" => Phase::Staged {
            slot: slot()?,
            release: release()?,
        },
        "pending" => Phase::Pending {
            slot: slot()?,
            release: release()?,
            attempts: u32::try_from(value.get("attempts")?.as_u64()?).ok()?,
        },
        "trial" => Phase::Trial {
            slot: slot()?,
            release: release()?,
        },
        "confirming" => Phase::Confirming {
            slot: slot()?,
            release: release()?,
        },
        "falling-back" => Phase::FallingBack {
            slot: slot()?,
            release: release()?,
            reason: text(value, "reason")?,
            log: text(value, "log")?,
        },
        "rolling-back" => Phase::RollingBack { to: slot()? },
        "to-rescue" => Phase::ToRescue {
            slot: slot()?,
            release: match value.get("release")? {
                Value::Null => None,
                release => Some(ReleaseRef::from_value(release)?),
            },
            attempts: match value.get("attempts")? {
                Value::Null => None,
                attempts => Some(u32::try_from(attempts.as_u64()?).ok()?),
            },
        },
        _ => return None,
    })
}

fn rescue_value(rescue: &Rescue) -> Value {
    let trips = rescue.trips.map(|(digest, count)| {
        let digest = hex::encode(&digest);
        object([("manifest_sha256", digest.into()), ("count", count.into())])
    });
    object([("slot", rescue.slot.as_str().into()), ("trips", trips.into())])
}

fn read_rescue(value: &Value) -> Option<Rescue> {
    let trips = match value.get("trips")? {
        Value::Null => None,
        trips => Some((
            hex::decode_array(trips.get("manifest_sha256")?.as_str()?)?,
            u32::try_from(trips.get("count")?.as_u64()?).ok()?,
        )),
    };
    Some(Rescue {
        slot: slot(value, "slot")?,
        trips,
    })
}

/// The form of an outcome in records and on terminals.
pub fn outcome_value(outcome: &Outcome) -> Value {
    object([
        ("result", outcome.result.word().into()),
        ("release", outcome.release.to_value()),
        ("slot", outcome.slot.as_str().into()),
        ("reason", (&outcome.reason).into()),
        ("log", (&outcome.log).into()),
        ("at", outcome.at.to_string().into()),
    ])
}

fn read_outcome(value: &Value) -> Option<Outcome> {
    Some(Outcome {
        result: UpdateResult::of_word(value.get("result")?.as_str()?)?,
        release: ReleaseRef::from_value(value.get("release")?)?,
        slot: slot(value, "slot")?,
        reason: text(value, "reason")?,
        log: text(value, "log")?,
        at: UtcSeconds::parse(value.get("at")?.as_str()?).ok()?,
    })
}
