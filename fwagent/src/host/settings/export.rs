//! Files that the device's own software reads, written from the settings in effect.
//!
//! Each is replaced atomically, with its owner and mode, and only when it differs: flash wears, and a reload is not for
//! free. It is derived anew at each start, so that a loss of power leaves nothing to be repaired. A note that is durable
//! before the first file says that commands are due, so that none is forgotten.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::SettingsConfig;
use super::objects::read_bounded;
use crate::host::process::{End, Run, run};
use crate::machine::settings::document::DOCUMENT_BYTES;
use crate::machine::settings::key::{Classes, Key};
use crate::machine::settings::render::{self, Format};
use crate::machine::settings::values::Values;

/// Time that a command after an export may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Names the files whose commands are due.
const DUE: &str = "exports-due";

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportConfig {
    /// Where.
    pub path: PathBuf,
    /// Settings at and below these keys; all ordinary ones when empty. Protected ones only when their class is named.
    pub keys: Vec<Key>,
    /// How.
    pub format: Format,
    /// User: a number or a name.
    pub owner: Option<String>,
    /// Group: a number or a name.
    pub group: Option<String>,
    /// Permission bits.
    pub mode: u32,
    /// To be run after the file changed.
    pub command: Option<Vec<String>>,
}

impl ExportConfig {
    /// The settings that go into the file.
    pub fn select(&self, values: &Values, classes: &Classes) -> Values {
        values.filtered(|key| match &self.keys[..] {
            [] => !classes.of(key).is_protected(),
            wanted => wanted
                .iter()
                // The wanted key itself is of the class: nobody publishes passwords by asking for everything.
                .any(|prefix| key.is_within(prefix) && classes.of(prefix) == classes.of(key)),
        })
    }
}

/// Writes all files that differ, and runs their commands. What could not be done.
pub fn publish(config: &SettingsConfig, values: &Values, dir: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let note = dir.join(DUE);
    let before = read_bounded(&note, DOCUMENT_BYTES).unwrap_or_default();
    let due_before: Vec<String> = String::from_utf8_lossy(&before).lines().map(str::to_owned).collect();
    let mut due = Vec::new();
    let mut writes = Vec::new();
    for export in &config.exports {
        let name = export.path.display().to_string();
        match prepare(export, values, &config.classes) {
            Ok(Some(write)) => {
                writes.push((export, write));
                due.push(name);
            }
            Ok(None) if due_before.contains(&name) => due.push(name),
            Ok(None) => {}
            Err(problem) => problems.push(format!("exporting to {name}: {problem}")),
        }
    }
    if due.is_empty() {
        return problems;
    }
    let noted = fwdurable::create_dir_all(dir)
        .and_then(|()| fwdurable::write_file_mode(&note, due.join("\n").as_bytes(), 0o600));
    if let Err(error) = noted {
        problems.push(format!("noting what is exported: {error}"));
        return problems;
    }
    for (export, write) in writes {
        let written = fwdurable::write_file_owned(&export.path, &write.bytes, export.mode, write.uid, write.gid);
        if let Err(error) = written {
            problems.push(format!("exporting to {}: {error}", export.path.display()));
            due.retain(|name| *name != export.path.display().to_string());
        }
    }
    let mut run_already: Vec<&Vec<String>> = Vec::new();
    for export in &config.exports {
        let Some(command) = &export.command else { continue };
        // One command for several files runs once.
        if due.contains(&export.path.display().to_string()) && !run_already.contains(&command) {
            run_already.push(command);
            if let Err(problem) = reload(command) {
                problems.push(format!("command after {}: {problem}", export.path.display()));
            }
        }
    }
    if let Err(error) = fwdurable::remove_file(&note) {
        problems.push(format!("noting what was exported: {error}"));
    }
    problems
}

struct Write {
    bytes: Vec<u8>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// The file as it should be; `None` when it is.
fn prepare(export: &ExportConfig, values: &Values, classes: &Classes) -> Result<Option<Write>, String> {
    let selected = export.select(values, classes);
    let bytes = render::render(&selected, export.format).map_err(|error| error.to_string())?;
    let id = |name: &Option<String>, file: &str| {
        let found = name.as_deref().map(|name| account(name, file));
        found.transpose()
    };
    let uid = id(&export.owner, "/etc/passwd")?;
    let gid = id(&export.group, "/etc/group")?;
    let bytes = bytes.into_bytes();
    let same = |about: fs::Metadata| {
        about.is_file()
            && about.mode() & 0o7777 == export.mode
            && uid.is_none_or(|uid| uid == about.uid())
            && gid.is_none_or(|gid| gid == about.gid())
    };
    let there = fs::symlink_metadata(&export.path).is_ok_and(same)
        && read_bounded(&export.path, DOCUMENT_BYTES).is_ok_and(|there| there == bytes);
    Ok((!there).then_some(Write { bytes, uid, gid }))
}

/// The number of a user or group, out of the file that lists them.
fn account(name: &str, file: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let failed = |error: io::Error| format!("reading {file}: {error}");
    let list = read_bounded(file.as_ref(), DOCUMENT_BYTES).map_err(failed)?;
    let list = String::from_utf8_lossy(&list);
    let mut lines = list.lines().map(|line| line.split(':'));
    let found = lines.find_map(|mut fields| {
        let same = fields.next() == Some(name);
        same.then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| format!("{file} has no {name}"))
}

fn reload(command: &[String]) -> Result<(), String> {
    let argv: Vec<OsString> = command.iter().map(OsString::from).collect();
    let finished = run(&Run {
        argv: &argv,
        env: &[],
        timeout: COMMAND_TIMEOUT,
        stop: &AtomicBool::new(false),
    });
    match finished.map_err(|error| format!("cannot be started: {error}"))?.end {
        End::Exited(status) if status.success() => Ok(()),
        End::Exited(status) => Err(format!("ended with {status}")),
        End::TimedOut | End::Stopped => Err(format!("did not end within {COMMAND_TIMEOUT:?}")),
    }
}
