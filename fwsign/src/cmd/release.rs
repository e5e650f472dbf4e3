//! `fwsign release add`.

use std::collections::BTreeMap;

use anyhow::Context;
use fwmeta::json::object;
use fwmeta::key::{KeyId, PublicKey};
use fwmeta::limits;
use fwmeta::manifest::{Advisory, Component, Encoding, ImageKind, Kind, Manifest, Payload, SemVer, Settings};
use fwmeta::role::{RoleKeys, RoleName, Targets};
use fwmeta::target::{TargetFile, TargetPath};

use super::product_name;
use crate::bounded;
use crate::cli::ReleaseAdd;
use crate::failure::{Outcome, judged, refused, usage};
use crate::migration;
use crate::output::Report;
use crate::payload::{self, Packed};
use crate::release::{self, Precedent};
use crate::repo_dir::{Current, RepoDir};
use crate::signer::{Keyring, MissingKeys};
use crate::transaction::Transaction;
use crate::writer::Writer;

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
    let mut writer = Writer::lock(&repo)?;
    let current = repo.load_for_signing()?;
    let (mut targets, role_keys, public) = product_role(&current, &product)?;
    // Whatever can be refused is, before minutes of compression.
    check_keys(&ring, &current, &product, &role_keys, &public)?;
    let manifest_target = TargetPath::parse(&release::manifest_path(product.as_str(), &version.to_string()))
        .map_err(|error| usage(format!("--version: {error}")))?;
    release::check_unused(&targets, &manifest_target).map_err(refused)?;
    let precedent = precedent(&repo, &targets, &args.channel)?;
    let numbers = precedent
        .next(&args.channel, args.sequence, args.security_floor)
        .map_err(refused)?;
    let (settings, migrations) =
        migration::settings(&format!("{product}/{version}"), args.settings_schema, &args.migrations)?;
    // All but the image is known, so that a bad option is found now too.
    let unknown = Payloads::unknown(args, &product, &version)?;
    check(&manifest(
        args,
        &product,
        &version,
        numbers,
        &unknown,
        settings.clone(),
    )?)?;

    let payloads = pack(args, &product, &version, &mut writer)?;
    let manifest = manifest(args, &product, &version, numbers, &payloads, settings)?;
    check(&manifest)?;
    let bytes = manifest.to_value().to_json_pretty().into_bytes();
    let manifest_file = TargetFile::of_bytes(&bytes);
    writer.add_target(&manifest_target, &manifest_file, &bytes)?;
    let Payloads { target, packed, .. } = payloads;
    let mut others = vec![(target.clone(), packed.file.clone())];
    for migration in migrations {
        writer.add_target(&migration.path, &migration.file, &migration.bytes)?;
        others.push((migration.path, migration.file));
    }

    let mut transaction = Transaction::new(writer, &ring, args.lifetimes.lifetimes())?;
    release::add_release(
        &mut targets,
        &manifest,
        (manifest_target.clone(), manifest_file.clone()),
        others.clone(),
    )
    .map_err(refused)?;
    targets.version = repo.next_version(&product, targets.version);
    targets.expires = release::expiry(transaction.now, transaction.lifetimes.product);
    transaction.put_targets(&product, &targets, &role_keys, &public)?;
    transaction.expect_target(manifest_target.clone(), manifest_file);
    for (path, file) in others {
        transaction.expect_target(path, file);
    }
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

type Keys = BTreeMap<KeyId, PublicKey>;

fn product_role(current: &Current, product: &RoleName) -> Outcome<(Targets, RoleKeys, Keys)> {
    match (current.delegation(product), current.targets.get(product)) {
        (Some((role_keys, keys)), Some(targets)) => Ok((targets.clone(), role_keys.clone(), keys.clone())),
        _ => Err(usage(format!(
            "the repository has no product {product}: add it with `fwsign product add`"
        ))),
    }
}

fn check_keys(
    ring: &Keyring,
    current: &Current,
    product: &RoleName,
    role_keys: &RoleKeys,
    public: &Keys,
) -> Result<(), MissingKeys> {
    let (roles, keys) = (&current.root.roles, &current.root.keys);
    ring.for_role(product, role_keys, public)?;
    ring.for_role(&RoleName::snapshot(), &roles.snapshot, keys)?;
    ring.for_role(&RoleName::timestamp(), &roles.timestamp, keys)?;
    Ok(())
}

/// Reads the manifests of the channel's releases: only they say which security floor was set.
fn precedent(repo: &RepoDir, targets: &Targets, channel: &str) -> Outcome<Precedent> {
    let mut precedent = Precedent::default();
    for (path, file, _) in release::releases(targets).filter(|(_, _, fw)| fw.channel == channel) {
        let read = || -> anyhow::Result<Manifest> {
            let local = repo.target_path(&TargetPath::parse(path)?, file);
            let bytes = bounded::read(&local, limits::MANIFEST_BYTES).with_context(|| local.display().to_string())?;
            file.check_bytes(&bytes)?;
            Ok(Manifest::parse(&bytes)?)
        };
        let manifest = read()
            .with_context(|| format!("reading {path}, an earlier release of channel {channel}"))
            .map_err(judged)?;
        precedent.sequence = precedent.sequence.max(manifest.sequence);
        precedent.floor = precedent.floor.max(manifest.security_floor);
    }
    Ok(precedent)
}

fn check(manifest: &Manifest) -> Outcome<()> {
    manifest
        .validate()
        .context("this release")
        .map_err(|error| usage(format!("{error:#}")))
}

/// The image of a release on its way.
struct Payloads {
    kind: ImageKind,
    target: TargetPath,
    packed: Packed,
}

impl Payloads {
    /// In place of an image that was not read yet.
    fn unknown(args: &ReleaseAdd, product: &RoleName, version: &SemVer) -> Outcome<Self> {
        let (kind, suffix) = match args.image {
            Some(_) => (ImageKind::Raw, "img"),
            None => (ImageKind::Tar, "tar"),
        };
        let target = TargetPath::parse(&format!("{product}/{version}/{}.{suffix}.zst", args.component))
            .map_err(|error| usage(format!("--component: {error}")))?;
        Ok(Self {
            kind,
            target,
            packed: Packed::empty(),
        })
    }
}

fn pack(args: &ReleaseAdd, product: &RoleName, version: &SemVer, writer: &mut Writer) -> Outcome<Payloads> {
    let scratch = writer.scratch()?;
    let archive = scratch.with_extension("tar");
    let input = match (&args.image, &args.tar) {
        (Some(image), _) => image,
        (None, Some(dir)) if dir.is_dir() => {
            payload::tar_of_directory(dir, &archive)?;
            &archive
        }
        (None, Some(tar)) => tar,
        (None, None) => return Err(usage("--image or --tar is needed")),
    };
    std::fs::File::open(input).with_context(|| input.display().to_string())?;
    if args.image.is_none() {
        payload::check_tar(input)
            .context("devices would refuse this archive")
            .map_err(refused)?;
    }
    let mut payloads = Payloads::unknown(args, product, version)?;
    payloads.packed = payload::pack(input, &scratch, args.level)?;
    if archive.exists() {
        std::fs::remove_file(&archive).context("removing the temporary archive")?;
    }
    writer.add_target_file(&payloads.target, &payloads.packed.file, &scratch)?;
    Ok(payloads)
}

fn manifest(
    args: &ReleaseAdd,
    product: &RoleName,
    version: &SemVer,
    numbers: Precedent,
    payloads: &Payloads,
    settings: Option<Settings>,
) -> Outcome<Manifest> {
    let requires = args.requires.as_deref().map(SemVer::parse).transpose();
    let requires = requires.map_err(|error| usage(format!("--requires is not a semantic version: {error}")))?;
    Ok(Manifest {
        vendor: args.vendor.clone(),
        product: product.as_str().to_owned(),
        version: version.clone(),
        sequence: numbers.sequence,
        security_floor: numbers.floor,
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
            kind: payloads.kind,
            communication_function: !args.no_communication_function,
            image: payloads.packed.image.clone(),
            payload: Payload {
                target: payloads.target.clone(),
                encoding: Encoding::Zstd,
            },
            patches: Vec::new(),
            verity_root: None,
        }],
        settings,
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
