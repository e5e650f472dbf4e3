//! `fwagent confirm` and `fwagent rollback`: what an operator decides.

use fwmeta::json::object;

use crate::cmd::observer;
use crate::device::Device;
use crate::drive::Next;
use crate::failure::{Code, Outcome};
use crate::machine::slot::SlotId;
use crate::machine::state::Phase;
use crate::machine::step::Event;
use crate::output::Report;
use crate::ports::{Health, HealthCheck, PortError};

/// An operator's word stands in place of the health checks.
#[derive(Debug)]
struct Operator;

impl HealthCheck for Operator {
    fn check(&mut self, _: &SlotId) -> Result<Health, PortError> {
        Ok(Health::Awaited)
    }
}

pub fn confirm(device: Device, json: bool) -> Outcome<Report> {
    decide(device, json, Event::ConfirmAsked)
}

pub fn rollback(device: Device, json: bool) -> Outcome<Report> {
    decide(device, json, Event::RollbackAsked)
}

fn decide(mut device: Device, json: bool, event: Event) -> Outcome<Report> {
    let _lock = device.lock()?;
    let watch = observer(&device, json);
    let states = Box::new(device.states());
    let mut driver = device.driver_with(watch, states, Box::new(Operator))?;
    // A trial begins when the agent first runs in its slot, which may be now. Before that nothing has to be derived:
    // giving up an armed update must not restart the device.
    let running = driver.running()?;
    let in_update = matches!(driver.state().phase.update(), Some((slot, _)) if *slot == running);
    if in_update && driver.power_on()? == Next::Restart {
        return Ok(Report::done(
            "the device restarts to finish what was decided before",
            object([("restart", true.into())]),
        ));
    }
    if event == Event::ConfirmAsked && !matches!(driver.state().phase, Phase::Trial { .. }) {
        let phase = driver.state().phase.word();
        return Ok(Report {
            text: format!("nothing is on trial (the agent is {phase})"),
            json: object([("phase", phase.into())]),
            code: Code::Nothing,
        });
    }
    let next = driver.tell(event)?;
    let state = driver.state();
    let restart = next == Next::Restart;
    let json = object([
        ("phase", state.phase.word().into()),
        ("active", state.active.as_str().into()),
        ("restart", restart.into()),
    ]);
    let text = match (&state.phase, restart) {
        (Phase::RollingBack { to }, _) => format!("slot {to} is booted from now on; the device restarts into it"),
        (_, true) => format!("slot {} is booted again; the device restarts into it", state.active),
        (_, false) => format!("slot {} is confirmed", state.active),
    };
    Ok(Report::done(text, json))
}
