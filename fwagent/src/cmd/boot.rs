//! `fwagent boot`: the boot loader's half of boot control `file`.
//!
//! It chooses the slot and spends an attempt, durably, before anything of the slot runs. With `--supervise` it stays and
//! boots anew whenever the command ends: the whole life of an application or a container that updates itself.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fwmeta::json::object;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::Boot;
use crate::device::Device;
use crate::drive::chain;
use crate::failure::{Code, Failure, Outcome};
use crate::machine::slot::SlotId;
use crate::output::Report;
use crate::ports::PortError;

/// Longest pause between a command that fails at once and the next boot.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A command that ran for so long did not fail at once.
const STEADY: Duration = Duration::from_secs(60);
/// Time that a command has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(50);

pub fn run(device: &Device, args: &Boot) -> Outcome<Report> {
    if args.supervise {
        return supervise(device, &args.command);
    }
    let (slot, path) = choose(device)?;
    if args.command.is_empty() {
        let json = object([("slot", slot.as_str().into()), ("path", path.as_str().into())]);
        return Ok(Report::done(path, json));
    }
    let mut command = command(&args.command, &slot, &path);
    let error = command.exec();
    Err(cannot_start(&command, error))
}

fn choose(device: &Device) -> Outcome<(SlotId, String)> {
    let _lock = device.lock()?;
    let slot = device.boot().power_on()?;
    let path = device.slots().bootable_path(&slot, None);
    let path = path.ok_or_else(|| {
        Failure::new(
            Code::Environment,
            format!("the boot record names slot {slot}, which the configuration does not have"),
        )
    })?;
    Ok((slot, path.display().to_string()))
}

fn command(words: &[String], slot: &SlotId, path: &str) -> Command {
    let mut words = words.iter().map(|word| word.replace("{slot}", path));
    // The caller has checked that there is a program.
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .env("FWAGENT_SLOT", slot.as_str())
        .env("FWAGENT_SLOT_PATH", path);
    command
}

fn cannot_start(command: &Command, error: std::io::Error) -> Failure {
    let attempt = format!("starting {}", command.get_program().display());
    PortError::environment(attempt, Some(error.into())).into()
}

fn supervise(device: &Device, words: &[String]) -> Outcome<Report> {
    let mut quick_failures = 0_u32;
    while !device.stop.load(Ordering::Relaxed) {
        let (slot, path) = choose(device)?;
        eprintln!("fwagent: booting slot {slot}");
        let started = Instant::now();
        let mut command = command(words, &slot, &path);
        let ended = match command.spawn() {
            // A slot whose program cannot be started is a slot that failed to boot.
            Err(error) => {
                let failure = cannot_start(&command, error);
                eprintln!("fwagent: slot {slot}: {}", chain(failure.error.as_ref()));
                None
            }
            Ok(mut child) => wait(device, &mut child)?,
        };
        let well = ended.is_some_and(|status| status.success());
        if let Some(status) = ended.filter(|status| !status.success()) {
            eprintln!("fwagent: slot {slot}: the command ended with {status}");
        }
        quick_failures = if well || started.elapsed() >= STEADY {
            0
        } else {
            quick_failures.saturating_add(1)
        };
        pause(device, back_off(quick_failures));
    }
    Ok(Report::done("stopped", object([("stopped", true.into())])))
}

fn back_off(quick_failures: u32) -> Duration {
    match quick_failures {
        0 => Duration::ZERO,
        failures => Duration::from_millis(250)
            .saturating_mul(2_u32.saturating_pow(failures.min(16) - 1))
            .min(BACK_OFF_MAX),
    }
}

fn pause(device: &Device, pause: Duration) {
    let start = Instant::now();
    while start.elapsed() < pause && !device.stop.load(Ordering::Relaxed) {
        std::thread::sleep(TICK.min(pause));
    }
}

/// Waits for the command; passes a stop on to it and, when it does not heed that, kills it.
fn wait(device: &Device, child: &mut Child) -> Outcome<Option<ExitStatus>> {
    let failed = |error: std::io::Error| PortError::environment("waiting for the command", Some(error.into()));
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(Some(status));
        }
        match asked {
            None if device.stop.load(Ordering::Relaxed) => {
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(pid) = pid {
                    // It may have ended in between; then there is nobody to tell.
                    let _ = kill_process(pid, Signal::TERM);
                }
                asked = Some(Instant::now());
            }
            Some(asked) if asked.elapsed() >= GRACE => {
                child.kill().map_err(failed)?;
            }
            _ => {}
        }
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_fails_at_once_is_not_started_in_a_tight_loop() {
        assert_eq!(back_off(0), Duration::ZERO);
        assert_eq!(back_off(1), Duration::from_millis(250));
        assert_eq!(back_off(3), Duration::from_secs(1));
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }
}
