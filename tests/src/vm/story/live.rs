//! Living: the device is switched on and off, and what its console says is understood.

use anyhow::Context;
use serde_json::Value;

use super::cut::Cut;
use super::sound::{digest, violated};
use super::{SETTINGS, Story};
use crate::vm::machine::{Happening, Machine};

/// More boots than any update takes without cuts: two attempts for one that fails, and the boot after it.
const MOST_BOOTS: u32 = 8;
/// More polls than a device needs to decide about a release.
const MOST_POLLS: u32 = 30;
/// What is new.
pub(super) enum Seen {
    /// The agent waits for its next poll; this is its status.
    Waits(Value),
    /// The power has failed.
    Off,
    /// The device has stopped by itself.
    Stopped,
    /// Nothing that matters.
    Other,
}

impl Story {
    pub(super) fn machine(&mut self) -> anyhow::Result<&mut Machine> {
        self.machine.as_mut().context("the device is switched off")
    }

    pub(super) fn switch_on(&mut self, cut: Option<Cut>) -> anyhow::Result<()> {
        let machine = Machine::start(self.options.loader, &self.parts, &self.socket)?;
        if let Some(Cut::Request(at)) = cut {
            self.server.freeze_at(at, machine.on_freeze());
        }
        self.machine = Some(machine);
        self.cut = cut;
        (self.lines, self.boots, self.polls) = (0, 0, 0);
        self.phase = "loader".to_owned();
        self.up = None;
        Ok(())
    }

    /// The power fails.
    pub(super) fn switch_off(&mut self) -> anyhow::Result<()> {
        let Some(machine) = self.machine.take() else {
            return Ok(());
        };
        // It may have armed a slot or not, and the loader may have spent the attempt.
        self.armed = None;
        self.server.freeze();
        machine.kill()?;
        let damage = self.server.power_cut(&mut self.random);
        let cut = self.cut.take().map_or("hung or settled", Cut::word);
        *self.summary.cuts.entry(cut).or_default() += 1;
        *self.summary.fates.entry(format!("{:?}", damage.fate)).or_default() += 1;
        *self.summary.phases.entry(self.phase.clone()).or_default() += 1;
        self.summary.requests = self.server.counts();
        self.summary.sectors.0 += damage.pending;
        self.summary.sectors.1 += damage.lost;
        Ok(())
    }

    /// Waits for what happens next and judges it.
    pub(super) fn step(&mut self) -> anyhow::Result<Seen> {
        match self.machine()?.next() {
            Happening::Frozen => {
                self.switch_off()?;
                Ok(Seen::Off)
            }
            Happening::Ended => Ok(Seen::Stopped),
            Happening::Silence => violated("the device is dead: nothing was heard for a long time"),
            Happening::Line(line) => {
                if self.options.console {
                    eprintln!("| {line}");
                }
                // Lines of progress would be most of those that a cut can be drawn from.
                let progress = line.contains("\"event\":\"downloading\"") || line.contains("\"event\":\"writing\"");
                self.lines += u64::from(!progress);
                if matches!(self.cut, Some(Cut::Line(at)) if self.lines >= at) {
                    self.switch_off()?;
                    return Ok(Seen::Off);
                }
                self.line(&line)
            }
        }
    }

    pub(super) fn line(&mut self, line: &str) -> anyhow::Result<Seen> {
        if let Some(at) = line.find("fwvm ") {
            let (word, rest) = line[at + 5..].split_once(' ').unwrap_or((&line[at + 5..], ""));
            return self.marker(word, rest);
        }
        if line.contains("EXT4-fs error") {
            return violated(line);
        }
        if let Ok(said) = serde_json::from_str::<Value>(line) {
            if said.get("error").is_some() {
                return violated(format!("the agent ended: {said}"));
            }
            if let Some(phase) = said["phase"].as_str() {
                self.phase = phase.to_owned();
            }
            if let Some(slot) = said["effect"].as_str().and_then(|text| text.strip_prefix("arm slot ")) {
                self.armed = Some(slot.to_owned());
            }
            if said["status"]
                .as_str()
                .is_some_and(|text| text.starts_with("next poll"))
            {
                self.polls += 1;
                if self.polls > MOST_POLLS {
                    return violated(format!(
                        "{} is not decided about after {} polls",
                        self.newest, self.polls
                    ));
                }
                self.machine()?.say("status")?;
            }
        }
        Ok(Seen::Other)
    }

    pub(super) fn marker(&mut self, word: &str, rest: &str) -> anyhow::Result<Seen> {
        match word {
            "loader" => {
                self.summary.boots += 1;
                self.boots += 1;
                if self.boots > MOST_BOOTS {
                    return violated(format!(
                        "{} boots, and {} is not decided about",
                        self.boots, self.newest
                    ));
                }
                self.chosen = rest.split(' ').next().unwrap_or_default().to_owned();
                // What the agent did before it restarted must be there, although nothing was written back.
                if let Some(armed) = self.armed.take().filter(|armed| *armed != self.chosen) {
                    let text = format!("the agent armed slot {armed} and restarted, and the loader chose {rest}");
                    return violated(text);
                }
                self.phase = "start".to_owned();
            }
            "settings" if rest != digest(SETTINGS.as_bytes()) => {
                return violated("the settings are not what they were");
            }
            "broken:" => return violated(rest),
            "up" => {
                self.summary.ups += 1;
                self.up = Some(rest.to_owned());
            }
            "status" => {
                let status: Value = serde_json::from_str(rest).unwrap_or(Value::Null);
                let up = self.up.take();
                self.sound(rest, &status, up.as_deref())?;
                if up.is_none() {
                    return Ok(Seen::Waits(status));
                }
                self.phase = status["phase"].as_str().unwrap_or_default().to_owned();
            }
            // Somebody switches it off and on again.
            "hangs" => {
                self.switch_off()?;
                return Ok(Seen::Off);
            }
            "off" => return Ok(Seen::Stopped),
            _ => {}
        }
        Ok(Seen::Other)
    }
}
