//! `TrustedSet`: the client workflow of TUF 1.0.34 §5 as pure steps over received bytes.
//!
//! ```text
//! new(root)  update_root*  finish_root  update_timestamp*  update_snapshot*  update_targets  update_delegated*
//! ```
//!
//! Each step accepts bytes or leaves the set as it was. All expiry is judged against the one reference time given at the
//! start (§5.1). What earlier cycles trusted enters as [`Origin::Local`]: it need not be current, because its part is to
//! stop rollback, but it must be signed by the keys that are trusted now.

use std::collections::{BTreeMap, BTreeSet};

use crate::delegation::DelegatedRole;
use crate::key::PublicKey;
use crate::limits;
use crate::role::{MetaFile, Metadata, RoleError, RoleKeys, RoleName, Root, Snapshot, Targets, Timestamp};
use crate::signed::{Envelope, EnvelopeError};
use crate::target::{Hasher, MismatchError, check_hashes};
use crate::threshold::{self, ThresholdNotMet};
use crate::time::UtcSeconds;

/// Where metadata bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This device's store: trusted in an earlier cycle.
    Local,
    /// The repository.
    Remote,
}

/// What became of accepted bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Now trusted and current.
    Current,
    /// Trusted, but only to stop rollback: expired, or another version is announced. Something newer must be fetched.
    Outdated,
    /// The same version as the trusted one; the new bytes are discarded (§5.4.3.1).
    SameVersion,
}

/// Metadata was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{role} metadata refused")]
pub struct TrustError {
    /// The role whose metadata was refused.
    pub role: RoleName,
    /// Why.
    #[source]
    pub reason: Refusal,
}

/// Why metadata was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Malformed.
    #[error("malformed")]
    Malformed(#[from] RoleError),
    /// Too few of the right keys signed.
    #[error("keys of {delegator}")]
    Threshold {
        /// The role that lists the keys.
        delegator: RoleName,
        /// The count.
        source: ThresholdNotMet,
    },
    /// A version below the trusted one (§5.4.3, §5.5.5).
    #[error("version {new} is older than trusted version {trusted}")]
    Rollback {
        /// The version offered.
        new: u64,
        /// The version trusted.
        trusted: u64,
    },
    /// A file that this metadata announces is older than the trusted metadata announced, or gone.
    #[error(
        "announces {file} as {}, trusted metadata announced version {trusted}",
        announced(new)
    )]
    MetaRollback {
        /// The file announced.
        file: String,
        /// The version offered; `None` when the file is no longer listed.
        new: Option<u64>,
        /// The version announced before.
        trusted: u64,
    },
    /// Not the version that was asked for or announced.
    #[error("version is {actual}, expected {expected}")]
    WrongVersion {
        /// The version asked for or announced.
        expected: u64,
        /// The version found.
        actual: u64,
    },
    /// Expired at the reference time.
    #[error("expired at {expires}, reference time is {now}")]
    Expired {
        /// The moment from which it is no longer valid.
        expires: UtcSeconds,
        /// The reference time of this cycle.
        now: UtcSeconds,
    },
    /// Length or digest differs from what was announced.
    #[error("not the file that {announced_by} announces")]
    Mismatch {
        /// The role whose metadata announced it.
        announced_by: RoleName,
        /// The difference.
        source: MismatchError,
    },
    /// The snapshot does not list this role.
    #[error("not listed in snapshot metadata")]
    NotInSnapshot,
    /// The parent role does not delegate to this role.
    #[error("{parent} does not delegate to it")]
    NotDelegated {
        /// The parent role.
        parent: RoleName,
    },
    /// Steps were taken out of order.
    #[error("{missing} metadata must be trusted first")]
    OutOfOrder {
        /// What is missing.
        missing: RoleName,
    },
}

fn announced(version: &Option<u64>) -> String {
    version.map_or_else(|| "absent".to_owned(), |version| format!("version {version}"))
}

/// The metadata that are trusted at one reference time.
#[derive(Debug)]
pub struct TrustedSet {
    now: UtcSeconds,
    root: Root,
    root_final: bool,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    targets: BTreeMap<RoleName, VerifiedTargets>,
}

#[derive(Debug)]
struct VerifiedTargets {
    metadata: Targets,
    /// The roles against whose delegation the signatures were checked.
    parents: BTreeSet<RoleName>,
}

/// Whether the keys of timestamp or snapshot were rotated by a root update: [`TrustedSet::update_root`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRotation {
    /// Both roles keep all their keys.
    None,
    /// A key of timestamp or snapshot is no longer trusted: stored timestamp and snapshot metadata must be deleted, or a
    /// version number that a thief of that key drove up would block updates for ever (§5.3.11).
    OnlineKeyRemoved,
}

impl TrustedSet {
    /// Starts from a trusted root: the factory one, or one stored by an earlier cycle. It must carry its own signatures;
    /// it may be expired (§5.3.10 judges only the last root).
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(root: &[u8], now: UtcSeconds) -> Result<Self, TrustError> {
        let trusted = Self::read_root(root).map_err(refused(&RoleName::root()))?;
        Ok(Self {
            now,
            root: trusted,
            root_final: false,
            timestamp: None,
            snapshot: None,
            targets: BTreeMap::new(),
        })
    }

    fn read_root(bytes: &[u8]) -> Result<Root, Refusal> {
        let envelope = parse_envelope(bytes, limits::ROOT_BYTES)?;
        let root = Root::from_envelope(&envelope)?;
        check_signatures(&envelope, &root.roles.root, &root.keys, &RoleName::root())?;
        Ok(root)
    }

    /// Accepts the next root version: signed by a threshold of the trusted root's keys **and** of its own (§5.3.4–5.3.5).
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<KeyRotation, TrustError> {
        self.next_root(bytes).map_err(refused(&RoleName::root()))
    }

    fn next_root(&mut self, bytes: &[u8]) -> Result<KeyRotation, Refusal> {
        if self.root_final {
            return Err(Refusal::OutOfOrder {
                missing: RoleName::root(),
            });
        }
        let envelope = parse_envelope(bytes, limits::ROOT_BYTES)?;
        let root = Root::from_envelope(&envelope)?;
        check_signatures(&envelope, &self.root.roles.root, &self.root.keys, &RoleName::root())?;
        match self.root.version.checked_add(1) {
            Some(next) => expect_version(next, root.version)?,
            // The last number there is: nothing can come after it, least of all itself.
            None => {
                return Err(Refusal::Rollback {
                    new: root.version,
                    trusted: self.root.version,
                });
            }
        }
        check_signatures(&envelope, &root.roles.root, &root.keys, &RoleName::root())?;
        let removed = removes_key(&self.root, &root, |root| &root.roles.timestamp)
            || removes_key(&self.root, &root, |root| &root.roles.snapshot);
        self.root = root;
        Ok(if removed {
            KeyRotation::OnlineKeyRemoved
        } else {
            KeyRotation::None
        })
    }

    /// Declares the trusted root the newest there is; it must not be expired (§5.3.10).
    ///
    /// # Errors
    /// [`Refusal::Expired`].
    pub fn finish_root(&mut self) -> Result<(), TrustError> {
        self.check_expiry(self.root.expires)
            .map_err(refused(&RoleName::root()))?;
        self.root_final = true;
        Ok(())
    }

    /// Accepts timestamp metadata (§5.4).
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn update_timestamp(&mut self, bytes: &[u8], origin: Origin) -> Result<Accepted, TrustError> {
        self.next_timestamp(bytes, origin)
            .map_err(refused(&RoleName::timestamp()))
    }

    fn next_timestamp(&mut self, bytes: &[u8], origin: Origin) -> Result<Accepted, Refusal> {
        self.need_final_root()?;
        let envelope = parse_envelope(bytes, limits::TIMESTAMP_BYTES)?;
        let new = Timestamp::from_envelope(&envelope)?;
        check_signatures(
            &envelope,
            &self.root.roles.timestamp,
            &self.root.keys,
            &RoleName::root(),
        )?;
        if let Some(trusted) = &self.timestamp {
            if new.version < trusted.version {
                return Err(Refusal::Rollback {
                    new: new.version,
                    trusted: trusted.version,
                });
            }
            if new.version == trusted.version {
                return Ok(Accepted::SameVersion);
            }
            if new.snapshot.version < trusted.snapshot.version {
                return Err(Refusal::MetaRollback {
                    file: RoleName::snapshot().meta_name(),
                    new: Some(new.snapshot.version),
                    trusted: trusted.snapshot.version,
                });
            }
        }
        let expiry = self.check_expiry(new.expires);
        if origin == Origin::Remote {
            expiry.clone()?;
        }
        self.timestamp = Some(new);
        Ok(if expiry.is_ok() {
            Accepted::Current
        } else {
            Accepted::Outdated
        })
    }

    /// Accepts snapshot metadata (§5.5).
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn update_snapshot(&mut self, bytes: &[u8], origin: Origin) -> Result<Accepted, TrustError> {
        self.next_snapshot(bytes, origin)
            .map_err(refused(&RoleName::snapshot()))
    }

    fn next_snapshot(&mut self, bytes: &[u8], origin: Origin) -> Result<Accepted, Refusal> {
        let announced = &self.current_timestamp()?.snapshot;
        let matching = check_announced(announced, bytes, &RoleName::timestamp());
        if origin == Origin::Remote {
            matching.clone()?;
        }
        let envelope = parse_envelope(bytes, limits::SNAPSHOT_BYTES)?;
        let new = Snapshot::from_envelope(&envelope)?;
        check_signatures(&envelope, &self.root.roles.snapshot, &self.root.keys, &RoleName::root())?;
        if let Some(trusted) = &self.snapshot {
            // Departs: §5.5 leaves the version of snapshot itself to the timestamp; a device whose stored timestamp was
            // damaged would then take an older snapshot that lists the same targets.
            if new.version < trusted.version {
                return Err(Refusal::Rollback {
                    new: new.version,
                    trusted: trusted.version,
                });
            }
            for (file, meta) in &trusted.meta {
                let version = new.meta.get(file).map(|meta| meta.version);
                if version.is_none_or(|version| version < meta.version) {
                    return Err(Refusal::MetaRollback {
                        file: file.clone(),
                        new: version,
                        trusted: meta.version,
                    });
                }
            }
        }
        let current = matching
            .and(expect_version(announced.version, new.version))
            .and(self.check_expiry(new.expires));
        if origin == Origin::Remote {
            current.clone()?;
        }
        self.snapshot = Some(new);
        Ok(if current.is_ok() {
            Accepted::Current
        } else {
            Accepted::Outdated
        })
    }

    /// Accepts top-level targets metadata (§5.6).
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn update_targets(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        self.update_delegated(bytes, &RoleName::targets(), &RoleName::root())
    }

    /// Accepts targets metadata of `role`, to which `parent` delegates (§5.6.7). The parent of the top-level targets role
    /// is root.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn update_delegated(&mut self, bytes: &[u8], role: &RoleName, parent: &RoleName) -> Result<(), TrustError> {
        self.next_targets(bytes, role, parent).map_err(refused(role))
    }

    fn next_targets(&mut self, bytes: &[u8], role: &RoleName, parent: &RoleName) -> Result<(), Refusal> {
        let announced = self.announced(role)?;
        check_announced(announced, bytes, &RoleName::snapshot())?;
        let envelope = parse_envelope(bytes, limits::TARGETS_BYTES)?;
        let (role_keys, keys) = self.delegation(role, parent)?;
        check_signatures(&envelope, role_keys, keys, parent)?;
        let new = Targets::from_envelope(&envelope)?;
        expect_version(announced.version, new.version)?;
        self.check_expiry(new.expires)?;
        let mut parents = self
            .targets
            .remove(role)
            .map(|verified| verified.parents)
            .unwrap_or_default();
        parents.insert(parent.clone());
        self.targets
            .insert(role.clone(), VerifiedTargets { metadata: new, parents });
        Ok(())
    }

    fn delegation(
        &self,
        role: &RoleName,
        parent: &RoleName,
    ) -> Result<(&RoleKeys, &BTreeMap<crate::key::KeyId, PublicKey>), Refusal> {
        if *parent == RoleName::root() && *role == RoleName::targets() {
            return Ok((&self.root.roles.targets, &self.root.keys));
        }
        let delegator = self.targets.get(parent).ok_or_else(|| Refusal::OutOfOrder {
            missing: parent.clone(),
        })?;
        let delegations = delegator.metadata.delegations.as_ref();
        let delegated: Option<&DelegatedRole> =
            delegations.and_then(|delegations| delegations.roles.iter().find(|delegated| delegated.name == *role));
        match (delegated, delegations) {
            (Some(delegated), Some(delegations)) => Ok((&delegated.keys, &delegations.keys)),
            _ => Err(Refusal::NotDelegated { parent: parent.clone() }),
        }
    }

    /// What the snapshot announces of a targets role.
    ///
    /// # Errors
    /// [`Refusal::OutOfOrder`] before a current snapshot, [`Refusal::NotInSnapshot`].
    pub fn announced(&self, role: &RoleName) -> Result<&MetaFile, Refusal> {
        let missing = || Refusal::OutOfOrder {
            missing: RoleName::snapshot(),
        };
        let snapshot = self.snapshot.as_ref().ok_or_else(missing)?;
        expect_version(self.current_timestamp()?.snapshot.version, snapshot.version)?;
        self.check_expiry(snapshot.expires)?;
        snapshot.meta.get(&role.meta_name()).ok_or(Refusal::NotInSnapshot)
    }

    /// The timestamp, which must not be expired.
    fn current_timestamp(&self) -> Result<&Timestamp, Refusal> {
        self.need_final_root()?;
        let timestamp = self.timestamp.as_ref();
        let timestamp = timestamp.ok_or_else(|| Refusal::OutOfOrder {
            missing: RoleName::timestamp(),
        })?;
        self.check_expiry(timestamp.expires)?;
        Ok(timestamp)
    }

    /// Declares the trusted timestamp current; it must not be expired (§5.4.4).
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn finish_timestamp(&self) -> Result<(), TrustError> {
        self.current_timestamp()
            .map(|_| ())
            .map_err(refused(&RoleName::timestamp()))
    }

    fn need_final_root(&self) -> Result<(), Refusal> {
        if self.root_final {
            Ok(())
        } else {
            Err(Refusal::OutOfOrder {
                missing: RoleName::root(),
            })
        }
    }

    fn check_expiry(&self, expires: UtcSeconds) -> Result<(), Refusal> {
        if self.now < expires {
            Ok(())
        } else {
            Err(Refusal::Expired { expires, now: self.now })
        }
    }

    /// The reference time.
    pub fn now(&self) -> UtcSeconds {
        self.now
    }

    /// The trusted root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The trusted timestamp, current or not.
    pub fn timestamp(&self) -> Option<&Timestamp> {
        self.timestamp.as_ref()
    }

    /// The trusted snapshot, current or not.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Trusted metadata of a targets role.
    pub fn targets(&self, role: &RoleName) -> Option<&Targets> {
        self.targets.get(role).map(|verified| &verified.metadata)
    }

    /// Whether the role's metadata were verified against this parent's delegation.
    ///
    /// Departs: §5.6.7 leaves open what to do when a role is reached through a second parent, whose keys may differ; we
    /// verify again.
    pub fn is_verified_through(&self, role: &RoleName, parent: &RoleName) -> bool {
        self.targets
            .get(role)
            .is_some_and(|verified| verified.parents.contains(parent))
    }
}

fn refused(role: &RoleName) -> impl FnOnce(Refusal) -> TrustError {
    let role = role.clone();
    move |reason| TrustError { role, reason }
}

fn parse_envelope(bytes: &[u8], limit: u64) -> Result<Envelope<'_>, Refusal> {
    let length = bytes.len() as u64;
    if length > limit {
        return Err(RoleError::TooLong { length, limit }.into());
    }
    Envelope::parse(bytes).map_err(|error| RoleError::from(error).into())
}

fn check_signatures(
    envelope: &Envelope<'_>,
    role: &RoleKeys,
    keys: &BTreeMap<crate::key::KeyId, PublicKey>,
    delegator: &RoleName,
) -> Result<(), Refusal> {
    let message = envelope
        .message()
        .map_err(|error: EnvelopeError| Refusal::from(RoleError::from(error)))?;
    threshold::verify(role, keys, envelope.signatures(), &message).map_err(|source| Refusal::Threshold {
        delegator: delegator.clone(),
        source,
    })
}

fn check_announced(announced: &MetaFile, bytes: &[u8], announced_by: &RoleName) -> Result<(), Refusal> {
    let mismatch = |source| Refusal::Mismatch {
        announced_by: announced_by.clone(),
        source,
    };
    let actual = bytes.len() as u64;
    if let Some(expected) = announced.length.filter(|expected| *expected != actual) {
        return Err(mismatch(MismatchError::Length { expected, actual }));
    }
    if let Some(expected) = &announced.hashes {
        let mut hasher = Hasher::for_checking(expected);
        hasher.update(bytes);
        check_hashes(expected, &hasher.finish().1).map_err(mismatch)?;
    }
    Ok(())
}

fn expect_version(expected: u64, actual: u64) -> Result<(), Refusal> {
    if expected == actual {
        Ok(())
    } else {
        Err(Refusal::WrongVersion { expected, actual })
    }
}

/// Whether a usable key that the role had under `old` is no longer among its keys under `new`. Keys are compared, not
/// their ids, which a new root may choose anew.
fn removes_key(old: &Root, new: &Root, role: impl Fn(&Root) -> &RoleKeys) -> bool {
    let keys = |root: &Root| -> Vec<PublicKey> {
        role(root)
            .keyids
            .iter()
            .filter_map(|keyid| root.keys.get(keyid))
            .filter(|key| key.is_usable())
            .cloned()
            .collect()
    };
    let kept = keys(new);
    keys(old)
        .iter()
        .any(|key| !kept.iter().any(|other| other.same_key(key)))
}
