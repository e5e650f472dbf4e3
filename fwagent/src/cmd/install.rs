//! `fwagent install`: one check, and the update that it finds.

use fwmeta::json::object;

use crate::cli::Install;
use crate::cmd::{check, observer, wish};
use crate::device::Device;
use crate::drive::Next;
use crate::failure::{Code, Outcome};
use crate::machine::state::{Phase, UpdateResult};
use crate::output::Report;

pub fn run(mut device: Device, args: &Install, json: bool) -> Outcome<Report> {
    let wish = wish(&args.wish)?;
    let _lock = device.lock()?;
    let watch = observer(&device, json);
    let mut driver = device.driver(watch)?;
    if driver.power_on()? == Next::Restart {
        let text = "an update is installed already; the device restarts into it";
        return Ok(Report::done(text, object([("restart", true.into())])));
    }
    let (checked, next) = match driver.update(&wish) {
        Ok(updated) => updated,
        Err(error) => {
            check::remember_failure(&device, &error);
            return Err(error.into());
        }
    };
    check::remember(&device, &checked);
    let Some(offer) = &checked.offer else {
        return Ok(check::report(&checked, &wish));
    };
    let state = driver.state();
    let json = object([
        ("release", offer.release.to_value()),
        ("phase", state.phase.word().into()),
        ("restart", (next == Next::Restart).into()),
    ]);
    if let (Phase::Idle, Some(last)) = (&state.phase, &state.last)
        && last.result == UpdateResult::InstallFailed
    {
        return Ok(Report {
            text: format!("{} cannot be installed: {}", offer.release.version, last.reason),
            json,
            code: Code::Refused,
        });
    }
    let slot = state
        .phase
        .update()
        .map(|(slot, _)| slot.to_string())
        .unwrap_or_default();
    let text = format!(
        "installed {} (sequence {}) into slot {slot}; it is tried at the next boot",
        offer.release.version, offer.release.sequence
    );
    Ok(Report::done(text, json))
}
