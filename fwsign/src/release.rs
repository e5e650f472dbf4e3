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
    #[error(
        "sequence {sequence} is not above {highest}, the highest of channel {channel}: devices would take it for a rollback"
    )]
    Sequence {
        /// Sequence of the release.
        sequence: u64,
        /// Highest sequence before.
        highest: u64,
        /// Channel of both.
        channel: String,
    },
    /// The floor would fall.
    #[error(
        "security floor {floor} is below {highest}, which an earlier release of channel {channel} set: it never falls"
    )]
    Floor {
        /// Floor of the release.
        floor: u64,
        /// Highest floor before.
        highest: u64,
        /// Channel of both.
        channel: String,
    },
    /// There is no number left.
    #[error("the sequence numbers of channel {channel} are used up")]
    SequenceExhausted {
        /// The channel.
        channel: String,
    },
    /// A target path is taken.
    #[error("target {path} exists already: a version is released once; choose another version")]
    TargetExists {
        /// The path.
        path: TargetPath,
    },
}

/// Target path of a release's manifest.
pub fn manifest_path(product: &str, version: &str) -> String {
    format!("{product}/{version}/manifest.json")
}

/// The manifests that product metadata list, with what is needed to choose one. Sequences are counted, and floors set, for
/// each channel by itself.
pub fn releases(targets: &Targets) -> impl Iterator<Item = (&str, &TargetFile, FwCustom)> {
    let manifests = targets
        .targets
        .iter()
        .filter(|(path, _)| path.ends_with("/manifest.json"));
    manifests.filter_map(|(path, file)| Some((path.as_str(), file, FwCustom::of_target(file).ok().flatten()?)))
}

/// What earlier releases of a channel leave open for the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Precedent {
    /// Their highest sequence; 0 before the first.
    pub sequence: u64,
    /// Their highest security floor; 0 before the first.
    pub floor: u64,
}

impl Precedent {
    /// Sequence and floor of the next release: those asked for, or the next sequence and the same floor.
    ///
    /// # Errors
    /// [`ReleaseError`] when what is asked for is not above the sequence or below the floor.
    pub fn next(self, channel: &str, sequence: Option<u64>, floor: Option<u64>) -> Result<Self, ReleaseError> {
        let channel = || channel.to_owned();
        let next = self.sequence.checked_add(1);
        let sequence = sequence
            .or(next)
            .ok_or_else(|| ReleaseError::SequenceExhausted { channel: channel() })?;
        let floor = floor.unwrap_or(self.floor);
        if sequence <= self.sequence {
            return Err(ReleaseError::Sequence {
                sequence,
                highest: self.sequence,
                channel: channel(),
            });
        }
        if floor < self.floor {
            return Err(ReleaseError::Floor {
                floor,
                highest: self.floor,
                channel: channel(),
            });
        }
        Ok(Self { sequence, floor })
    }
}

/// Refuses a version that the product has released already, in whatever channel.
///
/// # Errors
/// [`ReleaseError::TargetExists`].
pub fn check_unused(targets: &Targets, manifest: &TargetPath) -> Result<(), ReleaseError> {
    if targets.targets.contains_key(manifest.as_str()) {
        return Err(ReleaseError::TargetExists { path: manifest.clone() });
    }
    Ok(())
}

/// Adds a release: its manifest and its other targets.
///
/// # Errors
/// [`ReleaseError::TargetExists`]; the metadata are then unchanged.
pub fn add_release(
    targets: &mut Targets,
    manifest: &Manifest,
    manifest_target: (TargetPath, TargetFile),
    others: Vec<(TargetPath, TargetFile)>,
) -> Result<(), ReleaseError> {
    let (path, file) = manifest_target;
    let entry = (path, file.with_fw(manifest.summary(None).to_value()));
    let new: Vec<_> = others.into_iter().chain([entry]).collect();
    for (path, _) in &new {
        check_unused(targets, path)?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sequences_rise_and_floors_never_fall() {
        let before = Precedent { sequence: 7, floor: 4 };
        let next = |sequence, floor| before.next("stable", sequence, floor);
        assert_eq!(next(None, None).unwrap(), Precedent { sequence: 8, floor: 4 });
        assert_eq!(next(Some(20), Some(9)).unwrap(), Precedent { sequence: 20, floor: 9 });
        assert_eq!(next(Some(8), Some(4)).unwrap(), Precedent { sequence: 8, floor: 4 });
        for sequence in [0, 6, 7] {
            let refused = next(Some(sequence), None);
            assert!(matches!(refused, Err(ReleaseError::Sequence { highest: 7, .. })));
        }
        for floor in [0, 3] {
            let refused = next(None, Some(floor));
            assert!(matches!(refused, Err(ReleaseError::Floor { highest: 4, .. })));
        }
        let last = Precedent {
            sequence: u64::MAX,
            floor: 0,
        };
        let exhausted = last.next("stable", None, None);
        assert!(matches!(exhausted, Err(ReleaseError::SequenceExhausted { .. })));
        assert_eq!(Precedent::default().next("x", None, None).unwrap().sequence, 1);
    }

    #[test]
    fn a_path_is_released_once() {
        let mut targets = empty_targets(UtcSeconds(0));
        let path = TargetPath::parse("p/1.0.0/manifest.json").unwrap();
        check_unused(&targets, &path).unwrap();
        targets
            .targets
            .insert(path.as_str().to_owned(), TargetFile::of_bytes(b""));
        assert!(matches!(
            check_unused(&targets, &path),
            Err(ReleaseError::TargetExists { .. })
        ));
    }

    #[test]
    fn a_product_is_delegated_once_and_to_its_own_paths() {
        let mut targets = empty_targets(UtcSeconds(0));
        let product = RoleName::parse("router").unwrap();
        let keys = [PublicKey::ed25519([1; 32]), PublicKey::ed25519([1; 32])];
        delegate_product(&mut targets, &product, &keys, 1).unwrap();
        assert!(delegate_product(&mut targets, &product, &keys, 1).is_err());
        let delegated = &targets.delegations.unwrap().roles[0];
        assert_eq!(delegated.keys.keyids.len(), 1);
        assert!(delegated.terminating);
        for (path, covered) in [
            ("router/1.0/manifest.json", true),
            ("router/notes", true),
            ("router/1.0/a/b", false),
            ("routers/1.0/manifest.json", false),
            ("camera/1.0/manifest.json", false),
        ] {
            let path = TargetPath::parse(path).unwrap();
            assert_eq!(delegated.paths.covers(&path), covered, "{path}");
        }
    }
}
