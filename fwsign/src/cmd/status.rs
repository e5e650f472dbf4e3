//! `fwsign status`.

use std::fmt::Write;

use fwmeta::json::{Value, object};
use fwmeta::role::{RoleKeys, RoleName};
use fwmeta::time::UtcSeconds;

use crate::cli::Status;
use crate::clock;
use crate::failure::{Code, Outcome};
use crate::output::Report;
use crate::release;
use crate::repo_dir::{Current, RepoDir};

struct Line<'a> {
    role: RoleName,
    version: u64,
    expires: UtcSeconds,
    keys: &'a RoleKeys,
}

pub fn run(args: &Status) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    let current = repo.load_for_signing()?;
    let now = clock::now()?;
    let mut text = String::new();
    let mut expired = Vec::new();
    let mut roles = Vec::new();
    for line in lines(&current) {
        let left = line.expires.0.saturating_sub(now.0);
        let when = match left {
            i64::MIN..=0 => "EXPIRED".to_owned(),
            1..86_400 => format!("{} hours left", left / 3_600),
            _ => format!("{} days left", left / 86_400),
        };
        if left <= 0 {
            expired.push(line.role.to_string());
        }
        let keys: Vec<&str> = line.keys.keyids.iter().map(|keyid| keyid.as_str()).collect();
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "{:<12} version {:<5} expires {} ({when}); {} of {} keys: {}",
            line.role.as_str(),
            line.version,
            line.expires,
            line.keys.threshold,
            keys.len(),
            keys.iter()
                .map(|keyid| keyid.get(..12).unwrap_or(keyid))
                .collect::<Vec<_>>()
                .join(" ")
        );
        roles.push(object([
            ("role", line.role.as_str().into()),
            ("version", line.version.into()),
            ("expires", line.expires.to_string().into()),
            ("expired", (left <= 0).into()),
            ("threshold", line.keys.threshold.into()),
            ("keyids", keys.into_iter().map(Value::from).collect::<Vec<_>>().into()),
        ]));
    }
    let releases = release_lines(&current, &mut text);
    if !expired.is_empty() {
        let _ = writeln!(
            text,
            "expired: {}; `fwsign refresh` renews timestamp and snapshot, with --role targets and products too",
            expired.join(", ")
        );
    }
    let names: Vec<Value> = expired.iter().map(|role| role.as_str().into()).collect();
    let json = object([
        ("roles", roles.into()),
        ("releases", releases.into()),
        ("expired", names.into()),
    ]);
    Ok(Report {
        code: (!expired.is_empty()).then_some(Code::Refused),
        ..Report::new(text.trim_end(), json)
    })
}

fn lines(current: &Current) -> Vec<Line<'_>> {
    let root = &current.root;
    let mut lines = vec![
        Line {
            role: RoleName::root(),
            version: root.version,
            expires: root.expires,
            keys: &root.roles.root,
        },
        Line {
            role: RoleName::timestamp(),
            version: current.timestamp.version,
            expires: current.timestamp.expires,
            keys: &root.roles.timestamp,
        },
        Line {
            role: RoleName::snapshot(),
            version: current.snapshot.version,
            expires: current.snapshot.expires,
            keys: &root.roles.snapshot,
        },
    ];
    for (role, targets) in &current.targets {
        // Every role that was loaded was reached by a delegation.
        let Some((keys, _)) = current.delegation(role) else {
            continue;
        };
        lines.push(Line {
            role: role.clone(),
            version: targets.version,
            expires: targets.expires,
            keys,
        });
    }
    lines
}

fn release_lines(current: &Current, text: &mut String) -> Vec<Value> {
    let releases = current.targets.values().flat_map(release::releases);
    let mut releases: Vec<_> = releases.map(|(_, _, release)| release).collect();
    releases.sort_by(|a, b| (&a.product, &a.channel, a.sequence).cmp(&(&b.product, &b.channel, b.sequence)));
    let mut values = Vec::new();
    for release in releases {
        let _ = writeln!(
            text,
            "release      {} {} sequence {} channel {} for {}",
            release.product,
            release.version,
            release.sequence,
            release.channel,
            release.hardware.join(", ")
        );
        values.push(release.to_value());
    }
    values
}
