//! `fwsign release add`.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use fwmeta::json::object;
use fwmeta::manifest::{Advisory, Component, Encoding, ImageKind, Kind, Manifest, Payload, SemVer};
use fwmeta::role::{RoleKeys, RoleName, Targets};
use fwmeta::target::{TargetFile, TargetPath};

use super::product_name;
use crate::cli::ReleaseAdd;
use crate::failure::{Outcome, refused, usage};
use crate::output::Report;
use crate::payload::{self, Packed};
use crate::release::{self, ReleaseError};
use crate::repo_dir::{Current, RepoDir, Writer};
use crate::signer::Keyring;
use crate::transaction::Transaction;

pub fn run(args: &ReleaseAdd) -> Outcome<Report> {
    let product = product_name(&args.product)?;
    let version = SemVer::parse(&args.version).map_err(|error| {
        usage(format!(
            "--version {:?} is not a semantic version: {error}",
            args.version
        ))
    })?;
    let repo = RepoDir::new(&args.repo);
    let ring = Keyring::open(&args.keys)?;
    let anchor = repo.oldest_root()?;
    let mut writer = repo.lock()?;
    let current = repo.load_for_signing()?;
    let (mut targets, role_keys, public) = product_role(&current, &product)?;

    let (kind, target, packed) = pack(args, &product, &version, &mut writer)?;
    let manifest = manifest(args, &product, version, &targets, kind, &target, &packed)?;
    manifest
        .validate()
        .context("this release")
        .map_err(|error| usage(format!("{error:#}")))?;
    let bytes = manifest.to_value().to_json_pretty().into_bytes();
    let manifest_target = TargetPath::parse(&release::manifest_path(product.as_str(), &manifest.version.to_string()))?;
    let manifest_file = TargetFile::of_bytes(&bytes);

    writer.add_target(&manifest_target, &manifest_file, &bytes)?;
    let mut transaction = Transaction::new(writer, &ring, args.lifetimes.lifetimes())?;
    release::add_release(
        &mut targets,
        &manifest,
        manifest_file.clone(),
        vec![(target.clone(), packed.file.clone())],
        manifest_target.clone(),
    )
    .map_err(|error: ReleaseError| refused(error))?;
    targets.version = repo.next_version(&product, targets.version);
    targets.expires = release::expiry(transaction.now, transaction.lifetimes.product);
    transaction.put_targets(&product, &targets, &role_keys, &public)?;
    transaction.expect_target(manifest_target.clone(), manifest_file);
    transaction.expect_target(target.clone(), packed.file.clone());
    let snapshot = repo.next_version(&RoleName::snapshot(), current.snapshot.version);
    transaction.put_snapshot_and_timestamp(&current.root, Some(&current), snapshot, true)?;
    transaction.finish(&anchor, args.dry_run)?;

    let json = object([
        ("product", product.as_str().into()),
        ("version", manifest.version.to_string().into()),
        ("sequence", manifest.sequence.into()),
        ("security_floor", manifest.security_floor.into()),
        ("channel", (&manifest.channel).into()),
        ("manifest", manifest_target.as_str().into()),
        ("payload", target.as_str().into()),
        ("image_bytes", packed.image.size.into()),
        ("payload_bytes", packed.file.length.into()),
        ("written", (!args.dry_run).into()),
    ]);
    let text = format!(
        "{} {product} {} (sequence {}, channel {}): image {} bytes, payload {} bytes",
        if args.dry_run { "would release" } else { "released" },
        manifest.version,
        manifest.sequence,
        manifest.channel,
        packed.image.size,
        packed.file.length
    );
    Ok(Report::new(text, json))
}

type ProductRole = (Targets, RoleKeys, BTreeMap<fwmeta::key::KeyId, fwmeta::key::PublicKey>);

fn product_role(current: &Current, product: &RoleName) -> Outcome<ProductRole> {
    let delegations = current
        .targets
        .get(&RoleName::targets())
        .and_then(|targets| targets.delegations.as_ref());
    let delegated = delegations.and_then(|delegations| delegations.roles.iter().find(|role| role.name == *product));
    match (delegations, delegated, current.targets.get(product)) {
        (Some(delegations), Some(delegated), Some(targets)) => {
            Ok((targets.clone(), delegated.keys.clone(), delegations.keys.clone()))
        }
        _ => Err(usage(format!(
            "the repository has no product {product}: add it with `fwsign product add`"
        ))),
    }
}

fn pack(
    args: &ReleaseAdd,
    product: &RoleName,
    version: &SemVer,
    writer: &mut Writer,
) -> Outcome<(ImageKind, TargetPath, Packed)> {
    let scratch = writer.scratch()?;
    let archive = scratch.with_extension("tar");
    let (kind, suffix, input) = match (&args.image, &args.tar) {
        (Some(image), _) => (ImageKind::Raw, "img", image.clone()),
        (None, Some(dir)) if dir.is_dir() => {
            payload::tar_of_directory(dir, &archive)?;
            (ImageKind::Tar, "tar", archive.clone())
        }
        (None, Some(tar)) => (ImageKind::Tar, "tar", tar.clone()),
        (None, None) => return Err(usage("--image or --tar is needed")),
    };
    let packed = payload::pack(&input, &scratch, args.level)?;
    if archive.exists() {
        std::fs::remove_file(&archive).context("removing the temporary archive")?;
    }
    let target = TargetPath::parse(&format!("{product}/{version}/{}.{suffix}.zst", args.component))
        .map_err(|error| usage(format!("--component: {error}")))?;
    writer.add_target_file(&target, &packed.file, &scratch)?;
    Ok((kind, target, packed))
}

fn manifest(
    args: &ReleaseAdd,
    product: &RoleName,
    version: SemVer,
    targets: &Targets,
    kind: ImageKind,
    target: &TargetPath,
    packed: &Packed,
) -> Outcome<Manifest> {
    let requires = args.requires.as_deref().map(SemVer::parse).transpose();
    let requires = requires.map_err(|error| usage(format!("--requires is not a semantic version: {error}")))?;
    let highest = release::highest_sequence(targets, &args.channel);
    let sequence = match args.sequence {
        Some(sequence) => sequence,
        None => highest
            .checked_add(1)
            .ok_or_else(|| refused(anyhow!("the channel's sequence numbers are used up")))?,
    };
    Ok(Manifest {
        vendor: args.vendor.clone(),
        product: product.as_str().to_owned(),
        version,
        sequence,
        security_floor: args.security_floor.unwrap_or(0),
        hardware: args.hardware.clone(),
        channel: args.channel.clone(),
        kind: if args.kind == "security" {
            Kind::Security
        } else {
            Kind::Feature
        },
        requires,
        components: vec![Component {
            name: args.component.clone(),
            slot_class: args.slot_class.clone(),
            kind,
            communication_function: !args.no_communication_function,
            image: packed.image.clone(),
            payload: Payload {
                target: target.clone(),
                encoding: Encoding::Zstd,
            },
            patches: Vec::new(),
            verity_root: None,
        }],
        settings: None,
        advisory: args.advisory.as_ref().map(|text| Advisory {
            text: text.clone(),
            cves: args.cves.clone(),
            severity: args.severity.clone(),
        }),
        notes: args.notes.clone(),
        support_end: args.support_end.clone(),
        sbom: None,
        provenance: None,
        design_conformity: None,
        extensions: BTreeMap::new(),
    })
}
