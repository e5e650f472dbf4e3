//! Migrations of settings that a release brings: programs that devices run in a sandbox.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use fwmeta::limits;
use fwmeta::manifest::{Migration, Settings};
use fwmeta::target::{TargetFile, TargetPath};

use crate::bounded;
use crate::failure::{Outcome, usage};

/// `FROM:TO:FILE`, or `FROM:TO:FILE:one-way`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationFile {
    /// Schema it starts from.
    pub from: u64,
    /// Schema it leads to.
    pub to: u64,
    /// The program.
    pub file: PathBuf,
    /// Devices can run it backwards, too.
    pub reversible: bool,
}

impl FromStr for MigrationFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is not FROM:TO:FILE or FROM:TO:FILE:one-way with two different numbers");
        let (rest, reversible) = match text.strip_suffix(":one-way") {
            Some(rest) => (rest, false),
            None => (text, true),
        };
        let mut parts = rest.splitn(3, ':');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (from, to) = (number().ok_or_else(expected)?, number().ok_or_else(expected)?);
        match parts.next() {
            Some(file) if !file.is_empty() && from != to => Ok(Self {
                from,
                to,
                file: file.into(),
                reversible,
            }),
            _ => Err(expected()),
        }
    }
}

/// A migration as a target.
#[derive(Debug)]
pub struct MigrationTarget {
    /// Its path.
    pub path: TargetPath,
    /// Its length and digests.
    pub file: TargetFile,
    /// The program.
    pub bytes: Vec<u8>,
}

/// The settings of a manifest and the targets that they name, each of which lies beside the manifest.
///
/// # Errors
/// When a program cannot be read or is too long, or two lead from one schema to the same other.
pub fn settings(
    release: &str,
    schema: Option<u64>,
    migrations: &[MigrationFile],
) -> Outcome<(Option<Settings>, Vec<MigrationTarget>)> {
    let Some(schema) = schema else {
        return Ok((None, Vec::new()));
    };
    let mut listed: Vec<Migration> = Vec::with_capacity(migrations.len());
    let mut targets = Vec::with_capacity(migrations.len());
    for MigrationFile {
        from,
        to,
        file,
        reversible,
    } in migrations
    {
        if listed.iter().any(|other| (other.from, other.to) == (*from, *to)) {
            return Err(usage(format!("two migrations lead from schema {from} to {to}")));
        }
        let path = TargetPath::parse(&format!("{release}/migration-{from}-{to}"))
            .map_err(|error| usage(format!("--migration: {error}")))?;
        let bytes = bounded::read(file, limits::MIGRATION_BYTES).with_context(|| file.display().to_string())?;
        listed.push(Migration {
            from: *from,
            to: *to,
            target: path.clone(),
            reversible: *reversible,
        });
        targets.push(MigrationTarget {
            file: TargetFile::of_bytes(&bytes),
            path,
            bytes,
        });
    }
    let settings = Settings {
        schema,
        migrations: listed,
    };
    Ok((Some(settings), targets))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_migration_is_two_numbers_and_a_file() {
        let read = |text: &str| text.parse::<MigrationFile>();
        let two_way = read("1:2:dir/up:x").unwrap();
        assert_eq!((two_way.from, two_way.to, two_way.reversible), (1, 2, true));
        assert_eq!(two_way.file, PathBuf::from("dir/up:x"));
        assert!(!read("2:3:up:one-way").unwrap().reversible);
        for bad in ["", "1:2", "1:2:", "1:1:up", "x:2:up", "1:-2:up", "1:2::one-way"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn programs_are_bounded_and_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("up");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let migration = |from, to| MigrationFile {
            from,
            to,
            file: file.clone(),
            reversible: true,
        };
        let (made, targets) = settings("p/1.0.0", Some(2), &[migration(1, 2)]).unwrap();
        assert_eq!(made.unwrap().migrations[0].target, targets[0].path);
        assert_eq!(targets[0].path.as_str(), "p/1.0.0/migration-1-2");
        assert!(settings("p/1.0.0", Some(2), &[migration(1, 2), migration(1, 2)]).is_err());
        std::fs::File::create(&file)
            .unwrap()
            .set_len(limits::MIGRATION_BYTES + 1)
            .unwrap();
        assert!(settings("p/1.0.0", Some(2), &[migration(1, 2)]).is_err());
        assert!(settings("p/1.0.0", None, &[]).unwrap().0.is_none());
    }
}
