//! Pure: previous metadata and a request in, next metadata out, unsigned.

use std::collections::BTreeMap;

use fwmeta::delegation::{DelegatedRole, Delegations, PathSet};
use fwmeta::key::{KeyId, PublicKey};
use fwmeta::manifest::{FwCustom, Manifest};
use fwmeta::role::{MetaFile, RoleKeys, RoleName, Root, RootRoles, Snapshot, Targets, Timestamp};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

/// How long each role's metadata are valid, in days from the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Root: renewed in a ceremony.
    pub root: u32,
    /// Top-level targets.
    pub targets: u32,
    /// Product roles.
    pub product: u32,
    /// Snapshot.
    pub snapshot: u32,
    /// Timestamp: bounds how long a freeze attack can last.
    pub timestamp: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            root: 365,
            targets: 365,
            product: 365,
            snapshot: 30,
            timestamp: 7,
        }
    }
}

/// `days` after `now`.
pub fn expiry(now: UtcSeconds, days: u32) -> UtcSeconds {
    now.plus_seconds(i64::from(days) * 86_400)
}

/// A role's keys, each once.
pub fn role_keys(keys: &[PublicKey], threshold: u64) -> RoleKeys {
    let mut keyids: Vec<KeyId> = keys.iter().map(PublicKey::id).collect();
    keyids.sort();
    keyids.dedup();
    RoleKeys { keyids, threshold }
}

/// The public keys of the top-level roles.
#[derive(Debug, Clone)]
pub struct TopLevelKeys {
    /// Keys and threshold of root.
    pub root: (Vec<PublicKey>, u64),
    /// Keys and threshold of targets.
    pub targets: (Vec<PublicKey>, u64),
    /// Keys and threshold of snapshot.
    pub snapshot: (Vec<PublicKey>, u64),
    /// Keys and threshold of timestamp.
    pub timestamp: (Vec<PublicKey>, u64),
}

/// The first root.
pub fn first_root(keys: &TopLevelKeys, now: UtcSeconds, lifetimes: &Lifetimes) -> Root {
    let all = [&keys.root, &keys.targets, &keys.snapshot, &keys.timestamp];
    let by_id = all
        .iter()
        .flat_map(|(keys, _)| keys)
        .map(|key| (key.id(), key.clone()))
        .collect();
    let role = |(keys, threshold): &(Vec<PublicKey>, u64)| role_keys(keys, *threshold);
    Root {
        version: 1,
        expires: expiry(now, lifetimes.root),
        consistent_snapshot: true,
        keys: by_id,
        roles: RootRoles {
            root: role(&keys.root),
            timestamp: role(&keys.timestamp),
            snapshot: role(&keys.snapshot),
            targets: role(&keys.targets),
        },
        extra: BTreeMap::new(),
    }
}

/// Targets metadata without targets.
pub fn empty_targets(expires: UtcSeconds) -> Targets {
    Targets {
        version: 1,
        expires,
        targets: BTreeMap::new(),
        delegations: None,
        extra: BTreeMap::new(),
    }
}

/// The product is delegated already.
#[derive(Debug, thiserror::Error)]
#[error("product {product} exists already")]
pub struct ProductExists {
    /// The product.
    pub product: RoleName,
}

/// Adds a delegation for a product: its role may speak for `<product>/<file>` and `<product>/<version>/<file>`, and
/// nobody after it may.
///
/// # Errors
/// [`ProductExists`].
pub fn delegate_product(
    targets: &mut Targets,
    product: &RoleName,
    keys: &[PublicKey],
    threshold: u64,
) -> Result<(), ProductExists> {
    let delegations = targets.delegations.get_or_insert_with(Delegations::default);
    if delegations.roles.iter().any(|role| role.name == *product) {
        return Err(ProductExists {
            product: product.clone(),
        });
    }
    delegations.keys.extend(keys.iter().map(|key| (key.id(), key.clone())));
    delegations.roles.push(DelegatedRole {
        name: product.clone(),
        keys: role_keys(keys, threshold),
        terminating: true,
        paths: PathSet::Patterns(vec![format!("{product}/*"), format!("{product}/*/*")]),
        extra: BTreeMap::new(),
    });
    Ok(())
}

/// A release contradicts what the product released before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Devices would refuse it as a rollback.
    #[error("sequence {sequence} is not above {highest}, the highest of channel {channel}")]
    Sequence {
        /// Sequence of the release.
        sequence: u64,
        /// Highest sequence before.
        highest: u64,
        /// Channel of both.
        channel: String,
    },
    /// The floor would fall.
    #[error("security floor {floor} is below {highest}, which an earlier release of the product set")]
    Floor {
        /// Floor of the release.
        floor: u64,
        /// Highest floor before.
        highest: u64,
    },
    /// A target path is taken.
    #[error("target {path} exists already: a version is released once")]
    TargetExists {
        /// The path.
        path: TargetPath,
    },
}

/// Target path of a release's manifest.
pub fn manifest_path(product: &str, version: &str) -> String {
    format!("{product}/{version}/manifest.json")
}

/// The releases that product metadata list.
pub fn releases(targets: &Targets) -> Vec<FwCustom> {
    let manifests = targets
        .targets
        .iter()
        .filter(|(path, _)| path.ends_with("/manifest.json"));
    manifests
        .filter_map(|(_, file)| FwCustom::of_target(file).ok().flatten())
        .collect()
}

/// The highest sequence of a channel so far; 0 before the first release.
pub fn highest_sequence(targets: &Targets, channel: &str) -> u64 {
    let releases = releases(targets);
    releases
        .iter()
        .filter(|release| release.channel == channel)
        .map(|release| release.sequence)
        .max()
        .unwrap_or(0)
}

/// Adds a release: its manifest and its other targets.
///
/// # Errors
/// [`ReleaseError`]; the metadata are then unchanged.
pub fn add_release(
    targets: &mut Targets,
    manifest: &Manifest,
    manifest_file: TargetFile,
    others: Vec<(TargetPath, TargetFile)>,
    manifest_target: TargetPath,
) -> Result<(), ReleaseError> {
    let highest = highest_sequence(targets, &manifest.channel);
    if manifest.sequence <= highest {
        let channel = manifest.channel.clone();
        return Err(ReleaseError::Sequence {
            sequence: manifest.sequence,
            highest,
            channel,
        });
    }
    let entry = (
        manifest_target,
        manifest_file.with_fw(manifest.summary(None).to_value()),
    );
    let new: Vec<_> = others.into_iter().chain([entry]).collect();
    if let Some((path, _)) = new.iter().find(|(path, _)| targets.targets.contains_key(path.as_str())) {
        return Err(ReleaseError::TargetExists { path: path.clone() });
    }
    targets
        .targets
        .extend(new.into_iter().map(|(path, file)| (path.as_str().to_owned(), file)));
    Ok(())
}

/// The snapshot after some targets roles changed.
pub fn next_snapshot(
    previous: Option<&Snapshot>,
    changed: &[(RoleName, MetaFile)],
    version: u64,
    expires: UtcSeconds,
) -> Snapshot {
    let mut snapshot = previous.cloned().unwrap_or_else(|| Snapshot {
        version,
        expires,
        meta: BTreeMap::new(),
        extra: BTreeMap::new(),
    });
    snapshot.version = version;
    snapshot.expires = expires;
    snapshot
        .meta
        .extend(changed.iter().map(|(role, meta)| (role.meta_name(), meta.clone())));
    snapshot
}

/// The timestamp after the snapshot changed, or after time passed.
pub fn next_timestamp(previous: Option<&Timestamp>, snapshot: MetaFile, expires: UtcSeconds) -> Timestamp {
    let extra = previous.map(|timestamp| timestamp.extra.clone()).unwrap_or_default();
    let version = previous.map_or(1, |timestamp| timestamp.version.saturating_add(1));
    Timestamp {
        version,
        expires,
        snapshot,
        extra,
    }
}
