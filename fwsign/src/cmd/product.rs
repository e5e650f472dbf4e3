//! `fwsign product add`.

use fwmeta::json::object;
use fwmeta::role::RoleName;

use super::init::{add_products, check_products, open_products};
use crate::cli::ProductAdd;
use crate::failure::Outcome;
use crate::output::Report;
use crate::release;
use crate::repo_dir::RepoDir;
use crate::signer::Keyring;
use crate::transaction::Transaction;
use crate::writer::Writer;

pub fn run(args: &ProductAdd) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    let mut ring = Keyring::open(&args.keys)?;
    let products = open_products(&mut ring, &args.keys.open, &args.products)?;
    check_products(&products, args.threshold)?;
    let anchor = repo.oldest_root()?;
    let writer = Writer::lock(&repo)?;
    let current = repo.load_for_signing()?;
    let mut transaction = Transaction::new(writer, &ring, args.lifetimes.lifetimes())?;

    let mut targets = current
        .targets
        .get(&RoleName::targets())
        .cloned()
        .unwrap_or_else(|| release::empty_targets(transaction.now));
    targets.version = repo.next_version(&RoleName::targets(), targets.version);
    targets.expires = release::expiry(transaction.now, transaction.lifetimes.targets);
    add_products(&mut transaction, &mut targets, &products, args.threshold)?;
    transaction.put_targets(
        &RoleName::targets(),
        &targets,
        &current.root.roles.targets,
        &current.root.keys,
    )?;
    let version = repo.next_version(&RoleName::snapshot(), current.snapshot.version);
    transaction.put_snapshot_and_timestamp(&current.root, Some(&current), version, true)?;
    transaction.finish(&anchor, args.dry_run)?;

    let names: Vec<_> = products.keys().map(RoleName::as_str).collect();
    let done = if args.dry_run { "would add" } else { "added" };
    let json = object([
        (
            "products",
            names.iter().map(|name| (*name).into()).collect::<Vec<_>>().into(),
        ),
        ("targets_version", targets.version.into()),
        ("written", (!args.dry_run).into()),
    ]);
    Ok(Report::new(format!("{done} {}", names.join(", ")), json))
}
