//! What commands print: text for people, or JSON objects, one a line; progress on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use fwmeta::json::{Value, object};

use crate::drive::{Notice, Observer};
use crate::failure::{Code, Failure};
use crate::machine::step::Effect;

/// Smallest pause between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The result of a command.
#[derive(Debug)]
pub struct Report {
    /// For people.
    pub text: String,
    /// For machines.
    pub json: Value,
    /// The exit code.
    pub code: Code,
}

impl Report {
    /// A result of a command that did what it was asked for.
    pub fn done(text: impl Into<String>, json: Value) -> Self {
        Self {
            text: text.into(),
            json,
            code: Code::Done,
        }
    }
}

/// Prints a result.
pub fn report(report: &Report, json: bool) {
    line(&if json {
        report.json.to_json()
    } else {
        report.text.trim_end().to_owned()
    });
}

/// Prints a failure.
pub fn failure(failure: &Failure, json: bool) {
    if json {
        line(&failure.to_value().to_json());
    } else {
        eprintln!("fwagent: {}", crate::drive::chain(failure.error.as_ref()));
        if let Some(advice) = failure.advice {
            eprintln!("fwagent: {advice}");
        }
    }
}

/// Flushed, because others wait for it. A reader that went away is no reason to panic.
pub fn line(text: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Which notices are shown: all but progress that follows other progress too soon.
#[derive(Debug, Default)]
pub struct Pace {
    /// When progress of this kind was shown last; the first of each kind is always shown.
    last: Option<(std::mem::Discriminant<Notice>, Instant)>,
}

impl Pace {
    /// Whether this one is.
    pub fn shows(&mut self, notice: &Notice) -> bool {
        let Some(finished) = progress(notice) else { return true };
        let kind = std::mem::discriminant(notice);
        let due = self
            .last
            .is_none_or(|(other, at)| other != kind || at.elapsed() >= PROGRESS_EVERY);
        if due || finished {
            self.last = Some((kind, Instant::now()));
        }
        due || finished
    }
}

/// Of progress, whether it is the end of it.
fn progress(notice: &Notice) -> Option<bool> {
    match notice {
        Notice::Downloading { done, total, .. }
        | Notice::Verifying { done, total, .. }
        | Notice::Writing { done, total, .. } => Some(done >= total),
        _ => None,
    }
}

/// An observer that shows what the driver does, and that stops it when `stop` says so.
pub fn observer(json: bool, stop: impl Fn() -> bool + 'static) -> Observer {
    let terminal = io::stderr().is_terminal();
    let mut pace = Pace::default();
    let mut bar = false;
    Box::new(move |notice| {
        let shown = pace.shows(notice);
        if json {
            if shown {
                line(&value(notice).to_json());
            }
        } else if let Some(finished) = progress(notice) {
            if terminal && shown {
                bar = !finished;
                eprint!("\r\x1b[K{}", words(notice));
                if finished {
                    eprintln!();
                }
            }
        } else {
            if std::mem::take(&mut bar) {
                eprintln!();
            }
            eprintln!("fwagent: {}", words(notice));
        }
        !stop()
    })
}

/// A notice for machines.
pub fn value(notice: &Notice) -> Value {
    let bytes = |event: &str, component: &String, done: u64, total: u64| {
        object([
            ("event", event.into()),
            ("component", component.into()),
            ("done", done.into()),
            ("total", total.into()),
        ])
    };
    match notice {
        Notice::Installing { release, slot } => object([
            ("event", "installing".into()),
            ("release", release.to_value()),
            ("slot", slot.as_str().into()),
        ]),
        Notice::Kept { component } => object([("event", "kept".into()), ("component", component.into())]),
        Notice::Downloading { component, done, total } => bytes("downloading", component, *done, *total),
        Notice::Verifying { component, done, total } => bytes("verifying", component, *done, *total),
        Notice::Writing { component, done, total } => bytes("writing", component, *done, *total),
        Notice::Held(held) => object([("event", "held".into()), ("held", held.to_value())]),
        Notice::Settings { problem } => object([("event", "settings".into()), ("problem", problem.into())]),
        Notice::Entered { phase } => object([("event", "entered".into()), ("phase", (*phase).into())]),
        Notice::Effect(effect) => object([("event", "effect".into()), ("effect", effect_words(effect).into())]),
    }
}

/// What the driver does, for people.
pub(crate) fn words(notice: &Notice) -> String {
    let bytes = |verb: &str, component: &str, done: u64, total: u64| {
        let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(100);
        format!("{verb} {component}: {percent:3} % of {}", size(total))
    };
    match notice {
        Notice::Installing { release, slot } => {
            format!(
                "installing {} (sequence {}) into slot {slot}",
                release.version, release.sequence
            )
        }
        Notice::Kept { component } => format!("{component} is in its slot already"),
        Notice::Downloading { component, done, total } => bytes("downloading", component, *done, *total),
        Notice::Verifying { component, done, total } => bytes("verifying", component, *done, *total),
        Notice::Writing { component, done, total } => bytes("writing", component, *done, *total),
        Notice::Held(held) => held.to_string(),
        Notice::Settings { problem } => format!("settings: {problem}"),
        Notice::Entered { phase } => format!("now {phase}"),
        Notice::Effect(effect) => effect_words(effect),
    }
}

fn effect_words(effect: &Effect) -> String {
    match effect {
        Effect::Clear(slot) | Effect::Disable(slot) => format!("disable slot {slot}"),
        Effect::Install => "write and read back".to_owned(),
        Effect::Arm(slot) => format!("arm slot {slot}"),
        Effect::CheckHealth(slot) => format!("check health of slot {slot}"),
        Effect::Confirm(slot) => format!("confirm slot {slot}"),
        Effect::Reboot => "restart".to_owned(),
        Effect::SettleSettings(slot) => format!("settle the settings of slot {slot}"),
        Effect::CarrySettingsBack => "carry edits of settings over".to_owned(),
        Effect::PublishSettings => "write the files of settings".to_owned(),
    }
}

/// Bytes in a unit that people read.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut scaled, mut unit) = (bytes, 0);
    while scaled >= 10 * 1024 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!("{scaled} {}", UNITS[unit])
}
