//! Whether an update may be installed, or the device restarted into it, now (DESIGN §5.9; RULES PW-13, UP-16, UP-24).
//!
//! What it decides: facts, policy and time give the list of conditions that withhold the update; an empty list allows it.
//! What it does not decide: whether there is an update, and how the facts were gathered.
//!
//! ```text
//!  Gate::Install   before the first byte goes into a slot
//!  Gate::Restart   before the boot loader is told, and before the restart; an update that waits here is not armed
//! ```

use std::collections::BTreeSet;
use std::fmt;

use fwmeta::json::{Value, object};
use fwmeta::time::UtcSeconds;

use crate::machine::hold::Hold;
use crate::machine::time::{PROGRAM, Reference};
use crate::machine::window::Windows;

/// What is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// The first byte goes into a slot.
    Install,
    /// The boot loader is told of the slot, and the device restarts.
    Restart,
}

impl Gate {
    /// The word for people and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Restart => "restart",
        }
    }
}

/// What can withhold an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// External power, or enough charge.
    Power,
    /// Room for what is downloaded.
    Space,
    /// Nobody knows whether the metadata are the newest.
    Time,
    /// A program on the device asks to wait.
    Inhibit,
    /// The user asked to wait.
    Hold,
    /// Updates have their hours.
    Window,
}

impl Condition {
    const ALL: [Self; 6] = [
        Self::Power,
        Self::Space,
        Self::Time,
        Self::Inhibit,
        Self::Hold,
        Self::Window,
    ];

    /// The word for people, JSON and configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Space => "space",
            Self::Time => "time",
            Self::Inhibit => "inhibit",
            Self::Hold => "hold",
            Self::Window => "window",
        }
    }

    /// Reads [`word`](Self::word) back.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|condition| condition.word() == word)
    }

    /// Whether somebody's word can stand in for it. Nobody's word charges a battery, makes room or sets the clock.
    pub fn can_be_ignored(self) -> bool {
        !matches!(self, Self::Power | Self::Space | Self::Time)
    }
}

/// What to do when a fact cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Go on.
    Allow,
    /// Wait.
    Refuse,
}

/// What may be installed while nobody knows whether the metadata are the newest (DESIGN §5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownTime {
    /// Everything: a clock that was never set stops no update.
    Install,
    /// Security releases.
    SecurityOnly,
    /// Nothing.
    Refuse,
}

/// What the device's maker asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Without external power, the charge that every battery needs, in percent. `None`: power does not matter.
    pub min_battery: Option<u8>,
    /// When neither external power nor a charge can be read.
    pub unknown_power: Unknown,
    /// Bytes that must stay free in the state directory.
    pub free_space: u64,
    /// The hours of updates; always, when absent.
    pub windows: Option<Windows>,
    /// The first gate that the windows apply to.
    pub window_from: Gate,
    /// When the clock is not to be believed.
    pub window_unknown_time: Unknown,
    /// What a security release need not wait for.
    pub security_passes: BTreeSet<Condition>,
    /// Payloads are fetched while their installation waits.
    pub prefetch: bool,
    /// When the clock is wrong, so that nobody knows whether metadata are the newest.
    pub unknown_time: UnknownTime,
    /// A moment that has certainly passed.
    pub not_before: UtcSeconds,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_battery: None,
            unknown_power: Unknown::Refuse,
            free_space: 1024 * 1024,
            windows: None,
            window_from: Gate::Install,
            window_unknown_time: Unknown::Allow,
            security_passes: BTreeSet::new(),
            prefetch: false,
            unknown_time: UnknownTime::Install,
            not_before: PROGRAM,
        }
    }
}

/// How the device is powered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Power {
    /// Whether power comes from outside; `None` when nothing says so.
    pub external: Option<bool>,
    /// The lowest charge of its batteries, in percent; `None` without a battery that tells.
    pub battery: Option<u8>,
}

/// A program that asks to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// Who.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// How the device is right now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its power.
    pub power: Power,
    /// Bytes for downloads in the state directory, what is there of them included; `None` when that cannot be read.
    pub free_bytes: Option<u64>,
    /// Programs that ask to wait.
    pub inhibitors: Vec<Inhibitor>,
    /// What the user asked for.
    pub hold: Option<Hold>,
}

/// What is to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What is about to happen.
    pub gate: Gate,
    /// Whether the release mends a vulnerability.
    pub security: bool,
    /// Bytes to be downloaded.
    pub bytes: u64,
    /// What the operator said to pass over.
    pub ignore: BTreeSet<Condition>,
}

/// A condition that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// Which.
    pub condition: Condition,
    /// Why, with the values that disagree.
    pub reason: String,
    /// When it will be met, if that is known.
    pub until: Option<UtcSeconds>,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.condition.word(), self.reason)
    }
}

impl Withheld {
    /// The form for `--json`.
    pub fn to_value(&self) -> Value {
        object([
            ("condition", self.condition.word().into()),
            ("reason", (&self.reason).into()),
            ("until", self.until.map(|until| until.to_string()).into()),
        ])
    }
}

/// All conditions that withhold what is asked for; none when it may be done.
pub fn judge(policy: &Policy, facts: &Facts, time: Reference, ask: &Ask) -> Vec<Withheld> {
    let passes = |condition: Condition| {
        condition.can_be_ignored()
            && (ask.ignore.contains(&condition) || (ask.security && policy.security_passes.contains(&condition)))
    };
    let mut withheld: Vec<Withheld> = Vec::new();
    let mut add = |condition, reason: Option<(String, Option<UtcSeconds>)>| {
        if let Some((reason, until)) = reason.filter(|_| !passes(condition)) {
            withheld.push(Withheld {
                condition,
                reason,
                until,
            });
        }
    };
    add(
        Condition::Power,
        power(policy, facts.power).map(|reason| (reason, None)),
    );
    if ask.gate == Gate::Install {
        add(Condition::Space, space(policy, facts, ask).map(|reason| (reason, None)));
        add(
            Condition::Time,
            unknown_time(policy, time, ask).map(|reason| (reason, None)),
        );
    }
    for inhibitor in &facts.inhibitors {
        let reason = format!("{}: {}", inhibitor.name, inhibitor.reason);
        add(Condition::Inhibit, Some((reason, None)));
    }
    let hold = facts.hold.as_ref().filter(|hold| hold.holds_at(time.at));
    add(Condition::Hold, hold.map(|hold| (hold.to_string(), hold.until)));
    if ask.gate >= policy.window_from {
        add(Condition::Window, window(policy, time));
    }
    withheld
}

fn power(policy: &Policy, power: Power) -> Option<String> {
    let needed = policy.min_battery?;
    match (power.external, power.battery) {
        (Some(true), _) => None,
        (_, Some(charge)) if charge >= needed => None,
        (_, Some(charge)) => Some(format!(
            "the battery is at {charge} %, below the {needed} % that are needed without external power"
        )),
        // External power is known to be off, and what runs the device is not known.
        (_, None) if policy.unknown_power == Unknown::Allow => None,
        (_, None) => Some("neither external power nor the charge of a battery can be seen".to_owned()),
    }
}

fn space(policy: &Policy, facts: &Facts, ask: &Ask) -> Option<String> {
    let needed = ask.bytes.saturating_add(policy.free_space);
    // A disk that cannot be asked is found out by the write itself.
    let free = facts.free_bytes.filter(|free| *free < needed)?;
    Some(format!(
        "{free} bytes are free in the state directory, {needed} are needed: {} to download, {} in reserve",
        ask.bytes, policy.free_space
    ))
}

fn unknown_time(policy: &Policy, time: Reference, ask: &Ask) -> Option<String> {
    let allowed = match policy.unknown_time {
        UnknownTime::Install => true,
        UnknownTime::SecurityOnly => ask.security,
        UnknownTime::Refuse => false,
    };
    (!allowed && !time.clock_believed).then(|| format!("the time is {time}; set the clock"))
}

fn window(policy: &Policy, time: Reference) -> Option<(String, Option<UtcSeconds>)> {
    let windows = policy.windows.as_ref()?;
    if !time.clock_believed {
        let reason = format!("the hours of updates are {windows}, and the clock is not to be believed");
        return (policy.window_unknown_time == Unknown::Refuse).then_some((reason, None));
    }
    if windows.is_open(time.at) {
        return None;
    }
    let opens = windows.next_open(time.at);
    Some((
        format!("the hours of updates are {windows}; the next begin at {opens}"),
        Some(opens),
    ))
}

#[cfg(test)]
mod tests;
