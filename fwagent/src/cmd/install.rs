//! `fwagent install`: one check, and the update that it finds; or what would be done with it.

use std::path::Path;

use fwmeta::json::object;

use crate::cli::Install;
use crate::cmd::{check, observer, wish};
use crate::device::{Device, HostDriver};
use crate::drive::Next;
use crate::failure::{Code, Failure, Outcome};
use crate::host::state_file::StateFile;
use crate::machine::conditions::Condition;
use crate::machine::plan::Wish;
use crate::machine::state::{Phase, UpdateResult};
use crate::output::Report;
use crate::ports::PortError;

pub fn run(mut device: Device, args: &Install, json: bool) -> Outcome<Report> {
    let result = install(&mut device, args, json);
    if args.wish.bundle.is_some() && !args.dry_run {
        let path = args.result.clone();
        let path = path.unwrap_or_else(|| device.config.state_dir.join("bundle-result.json"));
        if let Err(failure) = write_result(&device, &result, &path) {
            let why = crate::drive::chain(failure.error.as_ref());
            eprintln!("fwagent: the result could not be written to {}: {why}", path.display());
        }
    }
    result
}

/// A signed statement of what became of a bundle, for a server that never sees this device; also on refusal. It is one of
/// the device's chain, and waits for delivery too.
fn write_result(device: &Device, result: &Outcome<Report>, path: &Path) -> Outcome<()> {
    let (code, reason) = match result {
        Ok(report) => (report.code, report.text.lines().next().unwrap_or_default().to_owned()),
        Err(failure) => (failure.code, crate::drive::chain(failure.error.as_ref())),
    };
    let word = match code {
        Code::Done => "installed",
        Code::Refused => "refused",
        Code::Nothing => "nothing-to-do",
        Code::Usage | Code::Environment => "failed",
    };
    let _lock = device.lock()?;
    let state = StateFile::new(&device.config.state_dir).peek()?;
    let subject = state.as_ref().and_then(|state| state.phase.update());
    let statement = device
        .reporter()
        .tell(word, &reason, subject)
        .map_err(|error| Failure::new(Code::Environment, error))?;
    fwdurable::write_file(path, &statement)
        .map_err(|error| PortError::environment(format!("writing {}", path.display()), Some(error.into())).into())
}

fn install(device: &mut Device, args: &Install, json: bool) -> Outcome<Report> {
    let wish = Wish {
        accept_one_way: args.accept_one_way,
        ..wish(device, &args.wish)?
    };
    let ignore = ignored(&args.ignore)?;
    let _lock = device.lock()?;
    let watch = observer(device, json);
    let mut driver = device.driver(watch)?;
    driver.ignore(ignore);
    if args.dry_run {
        return dry_run(device, &mut driver, &wish);
    }
    let next = driver.power_on()?;
    // What follows may take longer than a trial.
    device.end_watch();
    if next == Next::Restart {
        let text = "an update is installed already; the device restarts into it";
        return Ok(Report::done(text, object([("restart", true.into())])));
    }
    let (checked, next) = match driver.update(&wish) {
        Ok(updated) => updated,
        Err(error) => {
            check::remember_failure(device, &error);
            return Err(error.into());
        }
    };
    check::remember(device, &checked);
    if let Some(held) = driver.held() {
        return Ok(Report {
            text: held.to_string(),
            json: object([("held", held.to_value())]),
            code: Code::Environment,
        });
    }
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

fn ignored(words: &[String]) -> Outcome<Vec<Condition>> {
    let condition = |word: &String| {
        let condition = Condition::of_word(word).filter(|condition| condition.can_be_ignored());
        let text = format!("{word:?} cannot be ignored; window, hold and inhibit can");
        condition.ok_or_else(|| Failure::new(Code::Usage, text))
    };
    words.iter().map(condition).collect()
}

fn dry_run(device: &Device, driver: &mut HostDriver, wish: &Wish) -> Outcome<Report> {
    let rehearsed = driver.rehearse(wish);
    let (checked, slot) = rehearsed.inspect_err(|error| check::remember_failure(device, error))?;
    check::remember(device, &checked);
    let found = check::report(&checked, wish);
    let Some(slot) = slot else {
        return Ok(found);
    };
    let then = match &checked.held {
        Some(_) => "would wait, then".to_owned(),
        None => "would".to_owned(),
    };
    let json = object([
        ("dry_run", true.into()),
        ("slot", slot.as_str().into()),
        ("found", found.json),
    ]);
    let text = format!("{then} go into slot {slot}, and nothing was written\n{}", found.text);
    Ok(Report::done(text, json))
}
