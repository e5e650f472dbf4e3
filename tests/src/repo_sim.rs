//! A TUF repository in memory that tests edit and sign again in a line or two, and lie with.
//!
//! ```text
//! let mut sim = RepoSim::new();                      v1 of root, targets, snapshot, timestamp; one key a role
//! sim.add_target("targets", "dir/file", b"bytes");
//! sim.publish(&["targets", "snapshot", "timestamp"]);   each version one up, signed, announced
//! ```
//!
//! Metadata are plain public values: a test changes what it likes between two publications. What is served is
//! [`RepoSim::objects`], by object name; a test that plays the attacker changes that instead. Every request is logged.
//! [`crate::sim_server`] serves the same over a socket.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::client::Fetch;
use fwmeta::delegation::{DelegatedRole, Delegations, PathSet};
use fwmeta::json::Value;
use fwmeta::key::{PublicKey, SignError, Signer};
use fwmeta::layout;
use fwmeta::role::{MetaFile, RoleKeys, RoleName, Root, RootRoles, Snapshot, Targets, Timestamp};
use fwmeta::signed;
use fwmeta::target::{Hashes, TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

/// The reference time of tests that have no clock: 2030-01-01T00:00:00Z.
pub const NOW: UtcSeconds = UtcSeconds(1_893_456_000);
/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// An ed25519 key for tests, from a number.
#[derive(Debug, Clone)]
pub struct TestKey {
    key: SigningKey,
    public: PublicKey,
}

impl TestKey {
    /// The key of this number; always the same one.
    pub fn new(number: u64) -> Self {
        let mut seed = [0x5a; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        let key = SigningKey::from_bytes(&seed);
        let public = PublicKey::ed25519(key.verifying_key().to_bytes());
        Self { key, public }
    }
}

impl Signer for TestKey {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}

/// How the repository answers for an object when it does not serve what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lie {
    /// Fewer bytes than promised.
    Truncated,
    /// Bytes without end.
    Endless,
    /// This HTTP status and no body.
    Status(u16),
    /// A redirect to itself.
    RedirectLoop,
}

/// The repository could not be asked, or the answer was no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// More bytes than allowed.
    #[error("more than {limit} bytes")]
    TooLong {
        /// Bytes allowed.
        limit: u64,
    },
    /// An answer that says neither yes nor no.
    #[error("no usable answer")]
    Broken,
}

/// The repository.
#[derive(Debug)]
pub struct RepoSim {
    /// The next root.
    pub root: Root,
    /// The next timestamp.
    pub timestamp: Timestamp,
    /// The next snapshot.
    pub snapshot: Snapshot,
    /// The next targets metadata, top-level and delegated, by role name.
    pub targets: BTreeMap<String, Targets>,
    /// Who signs for a role, whatever root and delegations say.
    pub signers: BTreeMap<String, Vec<TestKey>>,
    /// What is served, by object name: `metadata/…` and `targets/…`, not percent-encoded beyond the layout's rules.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Objects that are answered with a lie.
    pub lies: BTreeMap<String, Lie>,
    /// Whether timestamp and snapshot announce lengths and digests.
    pub announce_hashes: bool,
    /// Object names asked for, in order.
    pub log: Vec<String>,
    published: BTreeMap<String, u64>,
    next_key: u64,
}

impl Default for RepoSim {
    fn default() -> Self {
        Self::new()
    }
}

impl RepoSim {
    /// A repository that expires 30 days after [`NOW`].
    pub fn new() -> Self {
        Self::expiring(NOW.plus_seconds(30 * DAY))
    }

    /// A repository whose metadata all expire at `expires`, version 1 published.
    pub fn expiring(expires: UtcSeconds) -> Self {
        let nobody = RoleKeys {
            keyids: Vec::new(),
            threshold: 1,
        };
        let mut sim = Self {
            root: Root {
                version: 1,
                expires,
                consistent_snapshot: true,
                keys: BTreeMap::new(),
                roles: RootRoles {
                    root: nobody.clone(),
                    timestamp: nobody.clone(),
                    snapshot: nobody.clone(),
                    targets: nobody,
                },
                extra: BTreeMap::new(),
            },
            timestamp: Timestamp {
                version: 1,
                expires,
                snapshot: MetaFile::of_version(1),
                extra: BTreeMap::new(),
            },
            snapshot: Snapshot {
                version: 1,
                expires,
                meta: BTreeMap::new(),
                extra: BTreeMap::new(),
            },
            targets: [("targets".to_owned(), empty_targets(expires))].into(),
            signers: BTreeMap::new(),
            objects: BTreeMap::new(),
            lies: BTreeMap::new(),
            announce_hashes: false,
            log: Vec::new(),
            published: BTreeMap::new(),
            next_key: 1,
        };
        for role in ["root", "timestamp", "snapshot", "targets"] {
            sim.add_key(role);
        }
        sim.publish(&["root", "targets", "snapshot", "timestamp"]);
        sim
    }

    /// A key that no role has yet.
    pub fn new_key(&mut self) -> TestKey {
        self.next_key += 1;
        TestKey::new(self.next_key)
    }

    /// Keys and threshold that root lists for a top-level role.
    ///
    /// # Panics
    /// For any other name.
    pub fn role_keys(&mut self, role: &str) -> &mut RoleKeys {
        match role {
            "root" => &mut self.root.roles.root,
            "timestamp" => &mut self.root.roles.timestamp,
            "snapshot" => &mut self.root.roles.snapshot,
            "targets" => &mut self.root.roles.targets,
            _ => panic!("{role} is not a top-level role"),
        }
    }

    /// Gives a top-level role one more key, which signs from now on. Takes effect with the next root.
    pub fn add_key(&mut self, role: &str) -> TestKey {
        let key = self.new_key();
        self.list_key(role, &key);
        self.signers.entry(role.to_owned()).or_default().push(key.clone());
        key
    }

    /// Lists a key for a top-level role without letting it sign.
    pub fn list_key(&mut self, role: &str, key: &TestKey) {
        self.root.keys.insert(key.public.id(), key.public.clone());
        self.role_keys(role).keyids.push(key.public.id());
    }

    /// Replaces all keys of a top-level role by as many new ones as its threshold asks for.
    pub fn rotate(&mut self, role: &str) {
        self.role_keys(role).keyids.clear();
        self.signers.remove(role);
        for _ in 0..self.role_keys(role).threshold {
            self.add_key(role);
        }
    }

    /// The next metadata of a targets role.
    ///
    /// # Panics
    /// When there is no such role.
    pub fn role(&mut self, role: &str) -> &mut Targets {
        self.targets
            .get_mut(role)
            .unwrap_or_else(|| panic!("no role {role} in the simulator"))
    }

    /// Lists a target in a role, with SHA-256, and serves it.
    pub fn add_target(&mut self, role: &str, path: &str, bytes: &[u8]) {
        let mut file = TargetFile::of_bytes(bytes);
        file.hashes.sha512 = None;
        self.add_target_file(role, path, file, bytes);
    }

    /// Lists a target as `file` describes it, and serves it under the name of each of its digests.
    pub fn add_target_file(&mut self, role: &str, path: &str, file: TargetFile, bytes: &[u8]) {
        for name in self.target_objects(path, &file.hashes) {
            self.objects.insert(name, bytes.to_vec());
        }
        self.role(role).targets.insert(path.to_owned(), file);
    }

    /// Object names of a target.
    ///
    /// # Panics
    /// When the path is none.
    pub fn target_objects(&self, path: &str, hashes: &Hashes) -> Vec<String> {
        let path = TargetPath::parse(path).expect("a target path");
        if !self.root.consistent_snapshot {
            return vec![format!("targets/{}", layout::target_name(&path, None))];
        }
        let digests = hashes.names().into_iter().map(|digest| {
            let digest = fwmeta::hex::decode(&digest).expect("the name of a digest is hexadecimal");
            format!("targets/{}", layout::target_name(&path, Some(&digest)))
        });
        digests.collect()
    }

    /// Delegates from one targets role to another, last in order, with a new key unless the delegate signs already.
    /// Makes the delegate if it is new.
    pub fn delegate(&mut self, from: &str, to: &str, paths: PathSet) -> &mut DelegatedRole {
        let expires = self.root.expires;
        if !self.targets.contains_key(to) {
            self.targets.insert(to.to_owned(), empty_targets(expires));
            let key = self.new_key();
            self.signers.insert(to.to_owned(), vec![key]);
        }
        let keys: Vec<_> = self.signers[to].iter().map(|key| key.public.clone()).collect();
        let delegations = self.role(from).delegations.get_or_insert_with(Delegations::default);
        delegations.keys.extend(keys.iter().map(|key| (key.id(), key.clone())));
        delegations.roles.push(DelegatedRole {
            name: RoleName::parse(to).expect("a role name"),
            keys: RoleKeys {
                keyids: keys.iter().map(PublicKey::id).collect(),
                threshold: 1,
            },
            terminating: false,
            paths,
            extra: BTreeMap::new(),
        });
        delegations.roles.last_mut().expect("just pushed")
    }

    /// Signs the next version of each role, in this order, serves it, and announces it in the next snapshot or timestamp.
    /// The first publication of a role is the version it has, each later one is one up.
    pub fn publish(&mut self, roles: &[&str]) {
        for role in roles {
            if self.published.contains_key(*role) {
                *self.version_mut(role) += 1;
            }
            self.publish_as_is(role);
        }
    }

    /// Like [`publish`](Self::publish) for one role, with whatever version it has now.
    pub fn publish_as_is(&mut self, role: &str) {
        let version = *self.version_mut(role);
        let bytes = self.sign(role);
        self.published.insert(role.to_owned(), version);
        let meta = if self.announce_hashes {
            MetaFile::of_bytes(version, &bytes)
        } else {
            MetaFile::of_version(version)
        };
        match role {
            "root" | "timestamp" => {}
            "snapshot" => self.timestamp.snapshot = meta,
            _ => {
                self.snapshot.meta.insert(format!("{role}.json"), meta);
            }
        }
        self.objects.insert(self.object(role, version), bytes);
    }

    /// The signed bytes of a role as it stands.
    ///
    /// # Panics
    /// When a key cannot sign, which these can.
    pub fn sign(&self, role: &str) -> Vec<u8> {
        let signers: Vec<&dyn Signer> = self
            .signers
            .get(role)
            .into_iter()
            .flatten()
            .map(|key| key as _)
            .collect();
        signed::sign(&self.value(role), &signers).expect("test keys sign")
    }

    fn value(&self, role: &str) -> Value {
        match role {
            "root" => self.root.to_value(),
            "timestamp" => self.timestamp.to_value(),
            "snapshot" => self.snapshot.to_value(),
            _ => self.targets[role].to_value(),
        }
    }

    /// The version that a role's next publication is counted from.
    pub fn version_mut(&mut self, role: &str) -> &mut u64 {
        match role {
            "root" => &mut self.root.version,
            "timestamp" => &mut self.timestamp.version,
            "snapshot" => &mut self.snapshot.version,
            _ => &mut self.role(role).version,
        }
    }

    /// Name of the object that holds a version of a role.
    ///
    /// # Panics
    /// When the role has no possible name.
    pub fn object(&self, role: &str, version: u64) -> String {
        let versioned = role == "root" || (self.root.consistent_snapshot && role != "timestamp");
        let name = RoleName::parse(role).expect("a role name");
        format!(
            "metadata/{}",
            layout::metadata_name(&name, versioned.then_some(version))
        )
    }

    /// What is served of a version of a role.
    ///
    /// # Panics
    /// When it was never published.
    pub fn served(&mut self, role: &str, version: u64) -> &mut Vec<u8> {
        let name = self.object(role, version);
        self.objects
            .get_mut(&name)
            .unwrap_or_else(|| panic!("{name} was never published"))
    }

    /// Takes the names of what was asked for since the last call.
    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// The answer to a request, logged.
    pub fn answer(&mut self, name: &str) -> (Option<Vec<u8>>, Option<Lie>) {
        self.log.push(name.to_owned());
        (self.objects.get(name).cloned(), self.lies.get(name).cloned())
    }
}

/// Metadata for a client in the same process, `metadata/` left out of names.
impl Fetch for &mut RepoSim {
    type Error = SimError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, SimError> {
        let (object, lie) = self.answer(&format!("metadata/{name}"));
        let bytes = match lie {
            None => object,
            Some(Lie::Truncated) => object.map(|bytes| bytes[..bytes.len() / 2].to_vec()),
            Some(Lie::Endless) => return Err(SimError::TooLong { limit: max_length }),
            Some(Lie::Status(404)) => None,
            Some(Lie::Status(_) | Lie::RedirectLoop) => return Err(SimError::Broken),
        };
        match bytes {
            Some(bytes) if bytes.len() as u64 > max_length => Err(SimError::TooLong { limit: max_length }),
            bytes => Ok(bytes),
        }
    }
}

fn empty_targets(expires: UtcSeconds) -> Targets {
    Targets {
        version: 1,
        expires,
        targets: BTreeMap::new(),
        delegations: None,
        extra: BTreeMap::new(),
    }
}

/// Glob patterns as a [`PathSet`].
pub fn paths(patterns: &[&str]) -> PathSet {
    PathSet::Patterns(patterns.iter().map(|pattern| (*pattern).to_owned()).collect())
}
