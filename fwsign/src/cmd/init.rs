//! `fwsign init`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use fwmeta::json::object;
use fwmeta::key::{PublicKey, Signer};
use fwmeta::role::{RoleName, Root, Targets};

use super::{check_threshold, product_name};
use crate::cli::{Init, ProductKey};
use crate::clock;
use crate::failure::{Outcome, usage};
use crate::output::Report;
use crate::release::{self, TopLevelKeys};
use crate::repo_dir::{RepoDir, root_name};
use crate::signer::{Keyring, OpenArgs};
use crate::transaction::Transaction;
use crate::writer::Writer;

type ProductKeys = BTreeMap<RoleName, Vec<PublicKey>>;

pub fn run(args: &Init) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    check_new(&repo)?;
    let mut ring = Keyring::default();
    let mut open = |paths: &[PathBuf]| open_all(&mut ring, &args.open, paths);
    let keys = TopLevelKeys {
        root: (open(&args.root_keys)?, args.root_threshold),
        targets: (open(&args.targets_keys)?, args.targets_threshold),
        snapshot: (open(&args.snapshot_keys)?, 1),
        timestamp: (open(&args.timestamp_keys)?, 1),
    };
    let products = open_products(&mut ring, &args.open, &args.products)?;
    for (role, (keys, threshold)) in [("root", &keys.root), ("targets", &keys.targets)] {
        check_threshold(role, *threshold, &release::role_keys(keys, *threshold))?;
    }
    check_products(&products, args.product_threshold)?;
    clock::signing_time()?;
    let root = if args.dry_run {
        // Not even a lock file is made where there is no repository.
        let scratch = tempfile::tempdir().context("making a temporary directory")?;
        make(
            args,
            Writer::lock(&RepoDir::new(scratch.path()))?,
            &ring,
            &keys,
            &products,
        )?
    } else {
        let writer = Writer::lock(&repo)?;
        // Somebody else may have made one while this command waited.
        check_new(&repo)?;
        make(args, writer, &ring, &keys, &products)?
    };
    Ok(report(args, &root, &products, &repo.metadata().join(root_name(1))))
}

fn check_new(repo: &RepoDir) -> Outcome<()> {
    if repo.metadata().exists() {
        let dir = repo.path().display();
        return Err(usage(format!(
            "{dir} holds a repository already: name another directory, or add to this one with `fwsign product add`"
        )));
    }
    Ok(())
}

fn make(args: &Init, writer: Writer, ring: &Keyring, keys: &TopLevelKeys, products: &ProductKeys) -> Outcome<Root> {
    let mut transaction = Transaction::new(writer, ring, args.lifetimes.lifetimes())?;
    let (now, lifetimes) = (transaction.now, transaction.lifetimes);
    let root = release::first_root(keys, now, &lifetimes);
    let anchor = transaction.put_root(&root)?;
    let mut targets = release::empty_targets(release::expiry(now, lifetimes.targets));
    add_products(&mut transaction, &mut targets, products, args.product_threshold)?;
    transaction.put_targets(&RoleName::targets(), &targets, &root.roles.targets, &root.keys)?;
    transaction.put_snapshot_and_timestamp(&root, None, 1, true)?;
    transaction.finish(&anchor, args.dry_run)?;
    Ok(root)
}

fn report(args: &Init, root: &Root, products: &ProductKeys, root_file: &Path) -> Report {
    let names: Vec<_> = products.keys().map(|product| product.as_str().into()).collect();
    let json = object([
        ("repository", args.repo.display().to_string().into()),
        ("root", root_file.display().to_string().into()),
        ("products", names.into()),
        ("written", (!args.dry_run).into()),
    ]);
    let done = if args.dry_run { "would make" } else { "made" };
    let text = format!(
        "{done} {}: root {} of {} keys, {} product(s)\ndevices trust {}",
        args.repo.display(),
        args.root_threshold,
        root.roles.root.keyids.len(),
        products.len(),
        root_file.display()
    );
    Report::new(text, json)
}

fn open_all(ring: &mut Keyring, open: &OpenArgs, paths: &[PathBuf]) -> anyhow::Result<Vec<PublicKey>> {
    paths.iter().map(|path| open_one(ring, open, path)).collect()
}

fn open_one(ring: &mut Keyring, open: &OpenArgs, path: &Path) -> anyhow::Result<PublicKey> {
    let signer = open.open(path)?;
    let public = signer.public().clone();
    ring.add(signer);
    Ok(public)
}

/// Opens the keys of products, grouped by product.
pub fn open_products(ring: &mut Keyring, open: &OpenArgs, products: &[ProductKey]) -> Outcome<ProductKeys> {
    let mut keys = ProductKeys::new();
    for product in products {
        let name = product_name(&product.product)?;
        keys.entry(name).or_default().push(open_one(ring, open, &product.key)?);
    }
    Ok(keys)
}

/// Whether the threshold of products can be met by the keys of each.
pub fn check_products(products: &ProductKeys, threshold: u64) -> Outcome<()> {
    for (product, keys) in products {
        check_threshold(product.as_str(), threshold, &release::role_keys(keys, threshold))?;
    }
    Ok(())
}

/// Delegates to products and signs their first, empty metadata.
pub fn add_products(
    transaction: &mut Transaction<'_>,
    targets: &mut Targets,
    products: &ProductKeys,
    threshold: u64,
) -> Outcome<()> {
    for (product, keys) in products {
        let role_keys = release::role_keys(keys, threshold);
        release::delegate_product(targets, product, keys, threshold).map_err(|error| usage(error.to_string()))?;
        let empty = release::empty_targets(release::expiry(transaction.now, transaction.lifetimes.product));
        let public = keys.iter().map(|key| (key.id(), key.clone())).collect();
        transaction.put_targets(product, &empty, &role_keys, &public)?;
    }
    Ok(())
}
