//! The section `settings`: classes of keys, how migrations run, files that are written or carried.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::settings::SettingsConfig;
use crate::host::settings::export::ExportConfig;
use crate::host::settings::sandbox::SandboxConfig;
use crate::machine::settings::key::{Classes, Key};
use crate::machine::settings::render::Format;
use crate::machine::settings::slots::MAX_HISTORY;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SettingsSection {
    access: Option<Vec<String>>,
    secret: Option<Vec<String>>,
    history: Option<usize>,
    factory: Option<String>,
    accept_one_way: bool,
    migration: MigrationSection,
    export: Vec<Export>,
    carry: Vec<CarryEntry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MigrationSection {
    sandbox: SandboxKind,
    timeout_s: Option<u64>,
    cpu_s: Option<u64>,
    memory_mib: Option<u64>,
    output_kib: Option<u64>,
    processes: Option<u64>,
    user: Option<u32>,
    read: Vec<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SandboxKind {
    #[default]
    Confined,
    Unconfined,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    path: PathBuf,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    format: ExportFormat,
    owner: Option<String>,
    group: Option<String>,
    mode: Option<String>,
    command: Option<Vec<String>>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExportFormat {
    #[default]
    Json,
    Env,
    Toml,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CarryEntry {
    path: PathBuf,
}

impl SettingsSection {
    pub(super) fn build(self, base: &Path) -> Result<SettingsConfig, Problem> {
        let usual = Classes::default();
        let classes = Classes {
            access: self
                .access
                .map_or(Ok(usual.access), |keys| read_keys("settings.access", &keys))?,
            secret: self
                .secret
                .map_or(Ok(usual.secret), |keys| read_keys("settings.secret", &keys))?,
        };
        let history = self.history.unwrap_or(8);
        if !(1..=MAX_HISTORY).contains(&history) {
            return problem("settings.history", format!("is {history}, not from 1 to {MAX_HISTORY}"));
        }
        let factory = self.factory.map(|factory| match factory.starts_with("{slot}") {
            true => factory,
            false => base.join(factory).display().to_string(),
        });
        let mut paths = BTreeSet::new();
        let mut exports = Vec::with_capacity(self.export.len());
        for export in self.export {
            let path = base.join(&export.path);
            if !paths.insert(path.clone()) {
                return problem("settings.export", format!("names {} twice", path.display()));
            }
            exports.push(export.build(path, &classes)?);
        }
        Ok(SettingsConfig {
            classes,
            history,
            factory,
            accept_one_way: self.accept_one_way,
            sandbox: self.migration.build(base)?,
            exports,
            carry: self.carry.into_iter().map(|entry| base.join(entry.path)).collect(),
        })
    }
}

fn read_keys(field: &str, keys: &[String]) -> Result<Vec<Key>, Problem> {
    let keys = keys.iter().map(|key| Key::parse(key));
    keys.collect::<Result<_, _>>()
        .or_else(|error| problem(field, format!("has a wrong key: {error}")))
}

impl MigrationSection {
    fn build(self, base: &Path) -> Result<SandboxConfig, Problem> {
        let usual = SandboxConfig::default();
        let bounded = |field: &str, given: Option<u64>, usual: u64, most: u64| match given.unwrap_or(usual) {
            number if (1..=most).contains(&number) => Ok(number),
            number => problem(
                format!("settings.migration.{field}"),
                format!("is {number}, not from 1 to {most}"),
            ),
        };
        Ok(SandboxConfig {
            unconfined: self.sandbox == SandboxKind::Unconfined,
            timeout: Duration::from_secs(bounded("timeout_s", self.timeout_s, usual.timeout.as_secs(), 3600)?),
            cpu_s: bounded("cpu_s", self.cpu_s, usual.cpu_s, 3600)?,
            memory: bounded("memory_mib", self.memory_mib, usual.memory >> 20, 1 << 20)? << 20,
            output: bounded("output_kib", self.output_kib, usual.output >> 10, 64 << 10)? << 10,
            processes: bounded("processes", self.processes, usual.processes, 1024)?,
            user: self.user.unwrap_or(usual.user),
            read: self.read.into_iter().map(|path| base.join(path)).collect(),
        })
    }
}

impl Export {
    fn build(self, path: PathBuf, classes: &Classes) -> Result<ExportConfig, Problem> {
        let field = || format!("settings.export {:?}", self.path.display().to_string());
        let keys = read_keys("settings.export", &self.keys)?;
        let secret = keys.iter().any(|key| classes.of(key).is_protected());
        let mode = match &self.mode {
            None if secret => 0o600,
            None => 0o644,
            Some(text) => match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o777 => mode,
                _ => {
                    return problem(
                        field(),
                        format!("has mode {text:?}, which is not octal from 000 to 777"),
                    );
                }
            },
        };
        if self.command.as_ref().is_some_and(Vec::is_empty) {
            return problem(field(), "has an empty command");
        }
        Ok(ExportConfig {
            path,
            keys,
            format: match self.format {
                ExportFormat::Json => Format::Json,
                ExportFormat::Env => Format::Env,
                ExportFormat::Toml => Format::Toml,
            },
            owner: self.owner,
            group: self.group,
            mode,
            command: self.command,
        })
    }
}
