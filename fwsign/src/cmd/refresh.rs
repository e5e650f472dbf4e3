//! `fwsign refresh`.

use anyhow::anyhow;
use fwmeta::json::object;
use fwmeta::role::RoleName;

use crate::cli::Refresh;
use crate::failure::{Code, Failure, Outcome};
use crate::output::Report;
use crate::repo_dir::RepoDir;
use crate::signer::Keyring;
use crate::transaction::Transaction;
use crate::{clock, release};

pub fn run(args: &Refresh) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    let ring = Keyring::open(&args.keys)?;
    let anchor = repo.oldest_root()?;
    let writer = repo.lock()?;
    let current = repo.load_for_signing()?;
    let due = release::expiry(clock::signing_time()?, args.within_days);
    let renew_snapshot = current.snapshot.expires <= due;
    if !renew_snapshot && current.timestamp.expires > due {
        let error = anyhow!(
            "nothing expires within {} days: timestamp is valid until {}, snapshot until {}",
            args.within_days,
            current.timestamp.expires,
            current.snapshot.expires
        );
        return Err(Failure {
            code: Code::NothingToDo,
            error,
        });
    }
    let mut transaction = Transaction::new(writer, &ring, args.lifetimes.lifetimes())?;
    let version = repo.next_version(&RoleName::snapshot(), current.snapshot.version);
    transaction.put_snapshot_and_timestamp(&current.root, Some(&current), version, renew_snapshot)?;
    let (now, lifetimes) = (transaction.now, transaction.lifetimes);
    transaction.finish(&anchor, args.dry_run)?;

    let timestamp = current.timestamp.version.saturating_add(1);
    let expires = release::expiry(now, lifetimes.timestamp).to_string();
    let json = object([
        ("timestamp_version", timestamp.into()),
        ("timestamp_expires", expires.as_str().into()),
        ("snapshot_renewed", renew_snapshot.into()),
        ("written", (!args.dry_run).into()),
    ]);
    let done = if args.dry_run { "would sign" } else { "signed" };
    let with = if renew_snapshot { " and a new snapshot" } else { "" };
    Ok(Report::new(
        format!("{done} timestamp version {timestamp}{with}, valid until {expires}"),
        json,
    ))
}
