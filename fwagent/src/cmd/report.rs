//! `fwagent report`: the statements that wait, and their delivery, which `fwagent run` does by itself.
//!
//! A statement is sent until a server has said that it took it, in the order of their numbers; its digest is the
//! idempotency key, so that twice is once. It leaves the record only then. The lock is not held while the server is asked.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fwmeta::hex;
use fwmeta::json::{Value, object};

use crate::cli::ReportArgs;
use crate::device::Device;
use crate::failure::{Code, Failure, Outcome};
use crate::host::clock::random;
use crate::host::http::post::Posted;
use crate::host::reporter::ReportError;
use crate::machine::journal::{Journal, Queued};
use crate::output::Report;
use crate::ports::PortError;

pub fn run(device: &mut Device, args: &ReportArgs) -> Outcome<Report> {
    if args.deliver {
        if device.config.report_url.is_none() {
            return Err(Failure {
                code: Code::Usage,
                error: "there is no server for reports".into(),
                advice: Some("name one as report.url in the configuration, or take them away with --export FILE"),
            });
        }
        let delivered = deliver(device, true)?;
        let json = object([
            ("delivered", (delivered.taken as u64).into()),
            ("unwanted", (delivered.refused as u64).into()),
            ("waiting", (delivered.left as u64).into()),
            ("failure", delivered.failure.as_ref().map(|(why, _)| why.clone()).into()),
        ]);
        let code = match (&delivered.failure, delivered.taken + delivered.refused) {
            (Some(_), _) => Code::Environment,
            (None, 0) => Code::Nothing,
            (None, _) if delivered.refused > 0 => Code::Refused,
            (None, _) => Code::Done,
        };
        let mut text = format!(
            "{} statement(s) delivered, {} refused by the server, {} waiting",
            delivered.taken, delivered.refused, delivered.left
        );
        if let Some((why, _)) = delivered.failure {
            text.push_str(&format!("\n{why}"));
        }
        return Ok(Report { text, json, code });
    }
    let journal = device.reporter().peek().map_err(failed)?;
    let waiting = journal.as_ref().map(Journal::waiting).unwrap_or_default();
    if let Some(path) = &args.export {
        export(path, waiting)?;
    }
    Ok(listed(journal.as_ref(), waiting))
}

/// One statement a line, as they are sent.
fn export(path: &Path, waiting: &[Queued]) -> Outcome<()> {
    let lines: String = waiting.iter().map(|queued| format!("{}\n", queued.bytes)).collect();
    fwdurable::write_file(path, lines.as_bytes())
        .map_err(|error| PortError::environment(format!("writing {}", path.display()), Some(error.into())).into())
}

fn listed(journal: Option<&Journal>, waiting: &[Queued]) -> Report {
    let statements: Vec<Value> = waiting
        .iter()
        .map(|queued| {
            object([
                ("sequence", queued.sequence.into()),
                ("result", (&queued.result).into()),
                ("digest", hex::encode(&queued.digest).into()),
                ("unwanted", queued.unwanted.map(u64::from).into()),
            ])
        })
        .collect();
    let mut text = match waiting.len() {
        0 => "no statement waits for delivery\n".to_owned(),
        count => format!("{count} statement(s) wait for delivery\n"),
    };
    for queued in waiting {
        let aside = queued
            .unwanted
            .map(|status| format!("; the server refused it with status {status}"))
            .unwrap_or_default();
        text.push_str(&format!("  {} {}{aside}\n", queued.sequence, queued.result));
    }
    let count = |of: fn(&Journal) -> u64| journal.map_or(0, of);
    let (dropped, boots) = (count(|journal| journal.dropped), count(|journal| journal.boots));
    if dropped > 0 {
        text.push_str(&format!("{dropped} were given up because too many waited\n"));
    }
    Report::done(
        text,
        object([
            ("statements", statements.into()),
            ("dropped", dropped.into()),
            ("boots", boots.into()),
        ]),
    )
}

/// What a round of delivery did.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Statements that the server has.
    pub taken: usize,
    /// Statements that it refused.
    pub refused: usize,
    /// Statements that still wait.
    pub left: usize,
    /// Why the round ended early, and how long the server asks to wait.
    pub failure: Option<(String, Option<Duration>)>,
}

/// Sends what waits; with `everything` also what the server refused before. Nothing is done without a server.
///
/// # Errors
/// [`Failure`] when the record cannot be read or written.
pub fn deliver(device: &mut Device, everything: bool) -> Outcome<Delivered> {
    let Some(url) = device.config.report_url.clone() else {
        return Ok(Delivered::default());
    };
    let journal = device.reporter().peek().map_err(failed)?;
    let due = |queued: &&Queued| everything || queued.unwanted.is_none();
    let waiting: Vec<_> = journal.iter().flat_map(Journal::waiting).filter(due).cloned().collect();
    let mut done = Delivered::default();
    if waiting.is_empty() {
        return Ok(done);
    }
    let http = device.http()?;
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for queued in waiting {
        if device.stop.load(Ordering::Relaxed) {
            break;
        }
        match http.post(&url, &hex::encode(&queued.digest), queued.bytes) {
            Ok(Posted::Taken) => taken.push(queued.digest),
            Ok(Posted::Refused { status }) => refused.push((queued.digest, status)),
            Ok(Posted::Later { status, retry_after }) => {
                done.failure = Some((format!("POST {url}: server answered {status}"), retry_after));
                break;
            }
            Err(error) => {
                done.failure = Some((crate::drive::chain(&error), None));
                break;
            }
        }
    }
    let _lock = device.lock()?;
    let mut reporter = device.reporter();
    if !taken.is_empty() || !refused.is_empty() {
        (done.taken, done.refused) = (taken.len(), refused.len());
        reporter.settle(&taken, &refused).map_err(failed)?;
    }
    let journal = reporter.peek().map_err(failed)?;
    done.left = journal.map_or(0, |journal| journal.waiting().len());
    Ok(done)
}

fn failed(error: ReportError) -> Failure {
    Failure::new(Code::Environment, error)
}

/// When `fwagent run` may ask the server again.
#[derive(Debug, Default)]
pub struct Pace {
    failures: u32,
    not_before: Option<Instant>,
}

impl Pace {
    /// A round of delivery, if it is time for one; what is to be said of it.
    pub fn round(&mut self, device: &mut Device) -> Option<String> {
        if self.not_before.is_some_and(|time| Instant::now() < time) {
            return None;
        }
        let (said, retry_after) = match deliver(device, false) {
            Ok(done) => {
                let (failure, asked) = match done.failure {
                    Some((why, asked)) => (Some(why), asked),
                    None => (None, None),
                };
                let refused = (done.refused > 0).then(|| format!("the server refused {} report(s)", done.refused));
                let taken = (done.taken > 0).then(|| format!("{} report(s) delivered", done.taken));
                let failed = failure.map(|why| format!("reports wait: {why}"));
                self.failures = if failed.is_some() { self.failures + 1 } else { 0 };
                let said: Vec<_> = [taken, refused, failed].into_iter().flatten().collect();
                ((!said.is_empty()).then(|| said.join("; ")), asked)
            }
            Err(failure) => {
                self.failures += 1;
                let why = crate::drive::chain(failure.error.as_ref());
                (Some(format!("reports wait: {why}")), None)
            }
        };
        self.not_before = (self.failures > 0)
            .then(|| device.config.interval.next(self.failures, retry_after, random()))
            .and_then(|pause| Instant::now().checked_add(pause));
        said
    }
}
