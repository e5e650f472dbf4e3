//! `fwagent hold` and `fwagent resume`: the user keeps the device as it is, for a time.

use fwmeta::json::object;
use fwmeta::time::UtcSeconds;

use crate::cli::Hold as Arguments;
use crate::device::Device;
use crate::drive::DriveError;
use crate::failure::{Code, Failure, Outcome};
use crate::host::hold_file::HoldFile;
use crate::host::state_file::StateFile;
use crate::machine::hold::{Hold, REASON_BYTES, duration};
use crate::machine::state::shortened;
use crate::output::Report;

pub fn hold(device: &Device, args: &Arguments) -> Outcome<Report> {
    let usage = |text: String| Failure::new(Code::Usage, text);
    let _lock = device.lock()?;
    let now = now(device)?;
    let until = match (&args.until, &args.r#for) {
        (Some(text), _) => Some(UtcSeconds::parse(text).map_err(|error| usage(error.to_string()))?),
        (None, Some(text)) => {
            let seconds = duration(text).and_then(|seconds| i64::try_from(seconds).ok());
            let seconds =
                seconds.ok_or_else(|| usage(format!("{text:?} is not a duration such as 90m, 12h, 7d or 2w")))?;
            Some(now.plus_seconds(seconds))
        }
        (None, None) => None,
    };
    if let Some(until) = until.filter(|until| *until <= now) {
        return Err(usage(format!("a hold until {until} has ended already: it is {now}")));
    }
    let file = HoldFile::new(&device.config.state_dir);
    let reason = shortened(&args.reason, REASON_BYTES);
    let longest = device.config.conditions.hold_max;
    let hold = Hold::new(now, until, reason, file.read().as_ref(), longest).map_err(|error| Failure {
        code: Code::Usage,
        error: error.into(),
        advice: Some("`fwagent resume` ends the hold; ask for a shorter one"),
    })?;
    file.store(&hold)?;
    Ok(Report::done(
        format!("updates are {hold}"),
        object([("hold", hold.to_value())]),
    ))
}

pub fn resume(device: &Device) -> Outcome<Report> {
    let _lock = device.lock()?;
    let now = now(device)?;
    let file = HoldFile::new(&device.config.state_dir);
    let held = file.read();
    file.remove()?;
    let ended = held.is_some_and(|held| held.holds_at(now));
    Ok(Report {
        text: if ended { "updates go on" } else { "nothing was held" }.to_owned(),
        json: object([("resumed", ended.into())]),
        code: if ended { Code::Done } else { Code::Nothing },
    })
}

fn now(device: &Device) -> Outcome<UtcSeconds> {
    let state = StateFile::new(&device.config.state_dir)
        .peek()?
        .ok_or(DriveError::NotProvisioned)?;
    Ok(device.time(&state).at)
}
