//! `fwagent check`: what would be installed and why; and the note of the last check that `explain` shows.

use fwmeta::client::ClientError;
use fwmeta::json::{Value, object};

use crate::cli::Check;
use crate::cmd::{observer, wish};
use crate::device::Device;
use crate::drive::{Checked, DriveError, Held, chain};
use crate::failure::{Code, Outcome};
use crate::machine::plan::{Considered, Verdict, Wish};
use crate::machine::time::Freshness;
use crate::output::{Report, size};
use crate::ports::Clock;

pub fn run(mut device: Device, args: &Check, json: bool) -> Outcome<Report> {
    let wish = wish(&mut device, args)?;
    let _lock = device.lock()?;
    let watch = observer(&device, json);
    let mut driver = device.driver(watch)?;
    let checked = driver
        .check(&wish)
        .inspect_err(|error| remember_failure(&device, error))?;
    remember(&device, &checked);
    Ok(report(&checked, &wish))
}

/// What a check found, for people and machines. Nothing to install is code 4; a version that was asked for and is
/// refused is code 1.
pub fn report(checked: &Checked, wish: &Wish) -> Report {
    let json = to_value(checked);
    let problems: Vec<_> = checked.problems.iter().map(|error| chain(error)).collect();
    if let Some(offer) = &checked.offer {
        let held = checked.held.as_ref().map(|held| format!("{held}\n"));
        let text = format!(
            "{} (sequence {}) can be installed: at most {} to download\n{}{}",
            offer.release.version,
            offer.release.sequence,
            size(offer.download_bytes()),
            held.unwrap_or_default(),
            lines(checked, &problems)
        );
        return Report::done(text, json);
    }
    let asked = wish.version.as_ref();
    let refused = checked
        .considered
        .iter()
        .find(|one| Some(&one.version) == asked && one.verdict != Verdict::Installed);
    let (code, first) = match (refused, asked) {
        (Some(one), _) => (
            Code::Refused,
            format!("{} (sequence {}) {}", one.version, one.sequence, one.verdict),
        ),
        (None, Some(asked)) if !checked.considered.iter().any(|one| one.version == *asked) => {
            (Code::Nothing, format!("the repository has no version {asked}"))
        }
        _ => match unseen(&checked.problems) {
            None => (Code::Nothing, "nothing to install".to_owned()),
            Some(code) => (
                code,
                "nothing to install is visible: a part of the repository was left out".to_owned(),
            ),
        },
    };
    let held = checked.held.as_ref().map(|held| format!("{held}\n"));
    Report {
        text: format!("{first}\n{}{}", held.unwrap_or_default(), lines(checked, &problems)),
        json,
        code,
    }
}

/// The code when a role was left out: an update may be in it, so that nobody can say that there is none. One release
/// whose data are not understood is only that release.
fn unseen(problems: &[ClientError]) -> Option<Code> {
    let mut roles = problems
        .iter()
        .filter(|problem| !matches!(problem, ClientError::Custom { .. }));
    let first = roles.next()?;
    let refused = first.is_refusal() || roles.any(ClientError::is_refusal);
    Some(if refused { Code::Refused } else { Code::Environment })
}

fn lines(checked: &Checked, problems: &[String]) -> String {
    let mut text = String::new();
    if checked.freshness != Freshness::Fresh {
        text.push_str("nobody knows whether this is the newest: the clock is wrong\n");
    }
    for one in &checked.considered {
        text.push_str(&format!(
            "  {} (sequence {}) {}\n",
            one.version, one.sequence, one.verdict
        ));
    }
    for problem in problems {
        text.push_str(&format!("  left out: {problem}\n"));
    }
    text
}

fn to_value(checked: &Checked) -> Value {
    let considered: Vec<_> = checked.considered.iter().map(Considered::to_value).collect();
    let problems: Vec<_> = checked.problems.iter().map(|error| chain(error).into()).collect();
    let offer = checked.offer.as_ref().map(|offer| {
        object([
            ("release", offer.release.to_value()),
            ("kind", format!("{:?}", offer.manifest.kind).to_lowercase().into()),
            ("notes", offer.manifest.notes.clone().into()),
            (
                "advisory",
                offer
                    .manifest
                    .advisory
                    .as_ref()
                    .map(|advisory| advisory.text.clone())
                    .into(),
            ),
            ("download_bytes", offer.download_bytes().into()),
        ])
    });
    object([
        ("offer", offer.into()),
        ("considered", considered.into()),
        ("problems", problems.into()),
        ("freshness", checked.freshness.word().into()),
        ("held", checked.held.as_ref().map(Held::to_value).into()),
    ])
}

/// Where the last check is noted.
pub const NOTE: &str = "last-check.json";

/// Notes what a check found. Only a help for people, so that a failure to note it fails nothing.
pub fn remember(device: &Device, checked: &Checked) {
    if let Some(refused) = checked.problems.iter().find(|problem| problem.is_refusal()) {
        report_refusal(device, refused);
    }
    note(device, to_value(checked));
}

/// Notes that a check failed. A stop that was asked for is no failure.
pub fn remember_failure(device: &Device, error: &DriveError) {
    if !error.is_stop() {
        let stale = matches!(error, DriveError::Stale { .. }).then(|| Freshness::Stale.word());
        note(
            device,
            object([("error", chain(error).into()), ("freshness", stale.into())]),
        );
    }
    if error.is_refusal() {
        report_refusal(device, error);
    }
}

/// An attack or a mistake of the server: its owner should know.
fn report_refusal(device: &Device, error: &(dyn std::error::Error + 'static)) {
    if let Err(error) = device.reporter().note("refused", &chain(error)) {
        eprintln!("fwagent: reporting: {}", chain(&error));
    }
}

fn note(device: &Device, found: Value) {
    let path = device.config.state_dir.join(NOTE);
    // A poll without news writes nothing: flash wears.
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    if before.contains(&found.to_json()) {
        return;
    }
    let at = crate::host::clock::SystemClock.now();
    let note = object([("at", at.to_string().into()), ("found", found)]);
    if let Err(error) = fwdurable::write_file(&path, note.to_json().as_bytes()) {
        eprintln!("fwagent: noting the check in {}: {error}", path.display());
    }
}
