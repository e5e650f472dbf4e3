//! `fwsign refresh`.

use fwmeta::json::object;
use fwmeta::role::RoleName;

use crate::cli::Refresh;
use crate::failure::{Outcome, nothing_to_do, usage};
use crate::output::Report;
use crate::release;
use crate::repo_dir::{Current, RepoDir};
use crate::signer::Keyring;
use crate::transaction::Transaction;
use crate::writer::Writer;

pub fn run(args: &Refresh) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    let ring = Keyring::open(&args.keys)?;
    let anchor = repo.oldest_root()?;
    let writer = Writer::lock(&repo)?;
    let current = repo.load_for_signing()?;
    let mut transaction = Transaction::new(writer, &ring, args.lifetimes.lifetimes())?;
    let due = release::expiry(transaction.now, args.within_days);
    let mut renewed = Vec::new();
    for role in &args.roles {
        if renew(&mut transaction, &repo, &current, role, due, args.within_days)? {
            renewed.push(role.as_str());
        }
    }
    let renew_snapshot = !renewed.is_empty() || current.snapshot.expires <= due;
    if !renew_snapshot && current.timestamp.expires > due {
        return Err(nothing_to_do(format!(
            "nothing expires within {} days: timestamp is valid until {}, snapshot until {}",
            args.within_days, current.timestamp.expires, current.snapshot.expires
        )));
    }
    let version = repo.next_version(&RoleName::snapshot(), current.snapshot.version);
    transaction.put_snapshot_and_timestamp(&current.root, Some(&current), version, renew_snapshot)?;
    let expires = release::expiry(transaction.now, transaction.lifetimes.timestamp).to_string();
    transaction.finish(&anchor, args.dry_run)?;

    let timestamp = current.timestamp.version.saturating_add(1);
    let roles: Vec<_> = renewed.iter().map(|role| (*role).into()).collect();
    let json = object([
        ("timestamp_version", timestamp.into()),
        ("timestamp_expires", expires.as_str().into()),
        ("snapshot_renewed", renew_snapshot.into()),
        ("roles_renewed", roles.into()),
        ("written", (!args.dry_run).into()),
    ]);
    let done = if args.dry_run { "would sign" } else { "signed" };
    let mut with = if renew_snapshot { " and a new snapshot" } else { "" }.to_owned();
    for role in renewed {
        with.push_str(&format!(" and {role}"));
    }
    Ok(Report::new(
        format!("{done} timestamp version {timestamp}{with}, valid until {expires}"),
        json,
    ))
}

/// Signs a targets role again, unchanged but for version and expiry, if it is due.
fn renew(
    transaction: &mut Transaction<'_>,
    repo: &RepoDir,
    current: &Current,
    name: &str,
    due: fwmeta::time::UtcSeconds,
    within_days: u32,
) -> Outcome<bool> {
    let role = RoleName::parse(name).map_err(|error| usage(format!("--role {name:?}: {error}")))?;
    let (Some((role_keys, public)), Some(targets)) = (current.delegation(&role), current.targets.get(&role)) else {
        return Err(usage(format!(
            "--role {name:?} is neither `targets` nor a product of the repository; snapshot and timestamp are renewed \
             without being named"
        )));
    };
    if targets.expires > due {
        crate::output::warn(&format!(
            "{role} is valid until {}, more than {within_days} days, and is left as it is",
            targets.expires
        ));
        return Ok(false);
    }
    let days = if role == RoleName::targets() {
        transaction.lifetimes.targets
    } else {
        transaction.lifetimes.product
    };
    let mut targets = targets.clone();
    targets.version = repo.next_version(&role, targets.version);
    targets.expires = release::expiry(transaction.now, days);
    transaction.put_targets(&role, &targets, role_keys, public)?;
    Ok(true)
}
