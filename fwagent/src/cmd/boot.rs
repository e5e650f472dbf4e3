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

/// Longest pause between a command that ends at once and the next boot.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A command that ran for so long did not end at once.
const STEADY: Duration = Duration::from_secs(10);
/// Time that a command has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(50);

pub fn run(device: &Device, args: &Boot) -> Outcome<Report> {
    // Before a supervisor tries for ever.
    device.boot_file()?;
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
    let mut record = device.boot_file()?;
    let _lock = device.lock()?;
    let slot = record.power_on()?;
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
    let stopping = || device.stop.load(Ordering::Relaxed);
    let mut quick_ends = 0_u32;
    while !stopping() {
        let started = Instant::now();
        match boot_once(device, words) {
            Ok(()) => {}
            Err(_) if stopping() => break,
            // Another command may hold the lock, or the disk be full for a while: whoever depends on the supervisor is
            // better served by another try.
            Err(failure) => eprintln!("fwagent: cannot boot: {}", chain(failure.error.as_ref())),
        }
        // Whatever the status: an agent that ends for a restart has run for a while, too.
        quick_ends = if started.elapsed() >= STEADY {
            0
        } else {
            quick_ends.saturating_add(1)
        };
        pause(device, back_off(quick_ends));
    }
    Ok(Report::done("stopped", object([("stopped", true.into())])))
}

/// One boot, until its command ends. A slot whose program cannot be started is a slot that failed to boot.
fn boot_once(device: &Device, words: &[String]) -> Outcome<()> {
    let (slot, path) = choose(device)?;
    eprintln!("fwagent: booting slot {slot}");
    let mut command = command(words, &slot, &path);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let failure = cannot_start(&command, error);
            eprintln!("fwagent: slot {slot}: {}", chain(failure.error.as_ref()));
            return Ok(());
        }
    };
    let status = wait(device, &mut child)?;
    if !status.success() {
        eprintln!("fwagent: slot {slot}: the command ended with {status}");
    }
    Ok(())
}

/// The first few restarts are quick, because an update is two of them.
fn back_off(quick_ends: u32) -> Duration {
    Duration::from_millis(100)
        .saturating_mul(2_u32.saturating_pow(quick_ends.saturating_sub(3).min(16)))
        .min(BACK_OFF_MAX)
}

fn pause(device: &Device, pause: Duration) {
    let start = Instant::now();
    while start.elapsed() < pause && !device.stop.load(Ordering::Relaxed) {
        std::thread::sleep(TICK.min(pause));
    }
}

/// Waits for the command; passes a stop on to it and, when it does not heed that, kills it.
fn wait(device: &Device, child: &mut Child) -> Outcome<ExitStatus> {
    let failed = |error: std::io::Error| PortError::environment("waiting for the command", Some(error.into()));
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
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
    fn a_command_that_ends_at_once_is_not_started_in_a_tight_loop() {
        assert_eq!([0, 1, 3].map(back_off), [Duration::from_millis(100); 3]);
        assert_eq!(back_off(6), Duration::from_millis(800));
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }
}
