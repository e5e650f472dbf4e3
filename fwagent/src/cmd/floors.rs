//! `fwagent floors`: whether the record belongs to the counter in the TPM, and the operator's word that it does.

use fwmeta::json::{Value, object};

use crate::cli::FloorsArgs;
use crate::device::Device;
use crate::drive::{DriveError, chain};
use crate::failure::{Code, Failure, Outcome};
use crate::host::state_file::StateFile;
use crate::host::tpm::Counter;
use crate::host::tpm_state::TpmState;
use crate::machine::counter::{self, Mismatch, Reading, Standing, judge};
use crate::output::Report;
use crate::ports::{PortError, StateStore};

/// What the second medium says.
pub struct Look {
    /// A line for people.
    pub text: String,
    /// The form for `--json`.
    pub json: Value,
    judged: Result<Standing, Option<Mismatch>>,
}

/// Looks at the counter, where one is configured. It reads only.
pub fn look(device: &Device) -> Option<Look> {
    let mut tpm = device.config.tpm.clone()?;
    let place = tpm.place();
    // First, since another process may raise both meanwhile, the record before the counter.
    let reading = match tpm.read() {
        Ok(reading) => reading,
        Err(error) => {
            let text = format!("reading {place}: {}", chain(&error));
            let json = object([("standing", "unreachable".into()), ("problem", (&text).into())]);
            let text = format!("floors: {text}; nothing is installed or confirmed until it answers\n");
            return Some(Look {
                text,
                json,
                judged: Err(None),
            });
        }
    };
    let state = StateFile::new(&device.config.state_dir).peek().ok().flatten();
    let record = state.and_then(|state| state.counter);
    let judged = judge(record, reading);
    let text = match &judged {
        Ok(Standing::Sound(value)) => format!("floors: the record belongs to value {value} of {place}\n"),
        Ok(Standing::Unfinished(value)) => {
            format!("floors: the record belongs to value {value}, to which {place} is still to be raised\n")
        }
        Err(mismatch) => format!("floors: {place}: {mismatch}\n"),
    };
    Some(Look {
        text,
        json: counter::to_value(record, reading),
        judged: judged.map_err(Some),
    })
}

pub fn run(device: &Device, args: &FloorsArgs) -> Outcome<Report> {
    let Some(tpm) = device.config.tpm.clone() else {
        return Err(Failure {
            code: Code::Usage,
            error: "the floors are bound to no counter".into(),
            advice: Some("name a TPM as floors.tpm in the configuration"),
        });
    };
    if args.accept_tpm {
        return accept(device, TpmState::new(StateFile::new(&device.config.state_dir), tpm));
    }
    StateFile::new(&device.config.state_dir)
        .peek()?
        .ok_or(DriveError::NotProvisioned)?;
    let look = look(device).ok_or_else(|| Failure::new(Code::Environment, "no counter"))?;
    let code = match look.judged {
        Ok(_) => Code::Done,
        Err(Some(_)) => Code::Refused,
        Err(None) => Code::Environment,
    };
    Ok(Report {
        text: look.text,
        json: look.json,
        code,
    })
}

/// Takes the record as it is, on the operator's word.
fn accept(device: &Device, mut states: TpmState<StateFile, impl Counter>) -> Outcome<Report> {
    let _lock = device.lock()?;
    let state = StateFile::new(&device.config.state_dir)
        .load()?
        .ok_or(DriveError::NotProvisioned)?;
    let reading = states.read()?;
    let Err(mismatch) = judge(state.counter, reading) else {
        return Ok(Report {
            text: "the record belongs to the counter; nothing was changed".to_owned(),
            json: counter::to_value(state.counter, reading),
            code: Code::Nothing,
        });
    };
    let value = states.bind(&state)?;
    let said = format!(
        "the operator took the record as it is; it belongs to value {value} of the counter now, and did not before: {}",
        mismatch.word()
    );
    // What was done is done; its owner should know that it was.
    if let Err(error) = device.reporter().tell("tpm-accepted", &said, None) {
        eprintln!("fwagent: reporting: {}", chain(&error));
    }
    Ok(Report::done(said, counter::to_value(Some(value), Reading::At(value))))
}

/// Refuses to provision a device whose counter belongs to a record that is gone, unless the operator says so.
pub fn before_provision(device: &Device, accepted: bool) -> Outcome<()> {
    let Some(mut tpm) = device.config.tpm.clone() else {
        return Ok(());
    };
    let place = tpm.place();
    let failed = |error| PortError::environment(format!("reading {place}"), Some(Box::from(error)));
    match tpm.read().map_err(failed)? {
        Reading::At(value) if !accepted => Err(Failure {
            code: Code::Refused,
            error: format!("{place} is at {value}: this device was provisioned before, and its record is gone").into(),
            advice: Some("put the record back; or say with --accept-tpm that the floors it had may be lost"),
        }),
        _ => Ok(()),
    }
}
