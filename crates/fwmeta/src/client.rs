//! The whole client workflow of TUF 1.0.34 §5 in one straight line, over two small traits.
//!
//! ```text
//!            Fetch (repository)                    Cache (this device's trusted metadata)
//!                 |  bytes, bounded                     ^ |
//!                 v                                     | v
//! refresh:   root chain -> timestamp -> snapshot -> targets        each step judged by TrustedSet
//! find_target / releases:   delegated roles, lazily, in search order
//! ```
//!
//! What it decides: what to ask for next, how long it may be, and that only verified bytes reach the cache. What is
//! current in the cache is not fetched again. What it does not decide: how bytes travel or are stored, whether to retry,
//! and what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::error::Error;

use crate::delegation::DelegatedRole;
use crate::limits;
use crate::manifest::FwCustom;
use crate::role::{RoleName, Targets};
use crate::target::{TargetFile, TargetPath};
use crate::time::UtcSeconds;
use crate::trusted::{Accepted, KeyRotation, Origin, Refusal, TrustError, TrustedSet};
use crate::{layout, role::MetaFile};

/// Where metadata come from. `name` is an object name of [`crate::layout`], relative to the metadata base URL.
pub trait Fetch {
    /// Why a fetch failed.
    type Error: Error + Send + Sync + 'static;

    /// Fetches an object of at most `max_length` bytes. `None` says that the repository does not have it; anything that
    /// leaves this open (no connection, a server error, too many bytes) is an error, because an attacker who can cause
    /// it could otherwise hide a new root.
    ///
    /// # Errors
    /// As the transport defines.
    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, Self::Error>;
}

/// The metadata that earlier cycles verified, bytes as received.
pub trait Cache {
    /// Why the store failed.
    type Error: Error + Send + Sync + 'static;

    /// The stored metadata of a role; `None` when there are none.
    ///
    /// # Errors
    /// As the store defines.
    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, Self::Error>;

    /// Stores verified metadata of a role.
    ///
    /// # Errors
    /// As the store defines.
    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Forgets the metadata of a role; success when there were none.
    ///
    /// # Errors
    /// As the store defines.
    fn remove(&mut self, role: &RoleName) -> Result<(), Self::Error>;
}

impl<C: Cache + ?Sized> Cache for &mut C {
    type Error = C::Error;

    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, Self::Error> {
        (**self).load(role)
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), Self::Error> {
        (**self).store(role, bytes)
    }

    fn remove(&mut self, role: &RoleName) -> Result<(), Self::Error> {
        (**self).remove(role)
    }
}

/// Metadata in memory: for whoever judges a repository without being a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryCache(pub BTreeMap<RoleName, Vec<u8>>);

impl Cache for MemoryCache {
    type Error = Infallible;

    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(role).cloned())
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.insert(role.clone(), bytes.to_owned());
        Ok(())
    }

    fn remove(&mut self, role: &RoleName) -> Result<(), Infallible> {
        self.0.remove(role);
        Ok(())
    }
}

/// Why a step of the workflow failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The repository could not be asked.
    #[error("fetching {name} failed")]
    Fetch {
        /// The object name.
        name: String,
        /// The error of the transport.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The repository does not have an object that must exist.
    #[error("the repository has no {name}")]
    Missing {
        /// The object name.
        name: String,
    },
    /// The store of trusted metadata failed.
    #[error("the store of trusted metadata failed for {role}")]
    Cache {
        /// The role concerned.
        role: RoleName,
        /// The error of the store.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Metadata were refused.
    #[error(transparent)]
    Refused(#[from] TrustError),
    /// A search visited too many delegated roles.
    #[error("search for {subject} ended after {limit} delegated roles")]
    TooManyRoles {
        /// The target path or product.
        subject: String,
        /// Roles that may be visited.
        limit: usize,
    },
    /// A role that comes earlier in the search order could not be verified, so that nobody can say whether it has the
    /// target.
    #[error("{role}, which has priority for {path}, could not be verified")]
    Undecided {
        /// The role.
        role: RoleName,
        /// The target path.
        path: TargetPath,
    },
    /// `custom.fw` of a release is malformed.
    #[error("custom data of {path}")]
    Custom {
        /// The target path of the manifest.
        path: TargetPath,
        /// Why.
        source: crate::manifest::ManifestError,
    },
}

impl ClientError {
    /// Whether bytes were judged and refused, as opposed to not available.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Custom { .. } | Self::TooManyRoles { .. })
    }
}

/// What [`Client::refresh`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The timestamp is the one that was known.
    Unchanged,
    /// A newer timestamp was accepted.
    Changed,
}

/// The releases of a product that are visible to a client.
#[derive(Debug, Default)]
pub struct Releases {
    /// In order of their target paths.
    pub found: Vec<Release>,
    /// Roles and targets that had to be left out, and why. They block only what they cover.
    pub problems: Vec<ClientError>,
}

/// A release as its target metadata describe it.
#[derive(Debug, Clone)]
pub struct Release {
    /// Target path of its manifest.
    pub path: TargetPath,
    /// Length and digests of its manifest.
    pub file: TargetFile,
    /// What a device needs to choose.
    pub fw: FwCustom,
}

/// A role and the role that delegates to it.
type Edge = (RoleName, RoleName);

/// One client at one reference time.
#[derive(Debug)]
pub struct Client<F, C> {
    fetch: F,
    cache: C,
    trusted: TrustedSet,
}

impl<F: Fetch, C: Cache> Client<F, C> {
    /// A client that starts from a trusted root: the newest one stored, or the factory one.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the root does not verify itself.
    pub fn new(fetch: F, cache: C, root: &[u8], now: UtcSeconds) -> Result<Self, ClientError> {
        Ok(Self {
            fetch,
            cache,
            trusted: TrustedSet::new(root, now)?,
        })
    }

    /// Walks on to a root version that an earlier cycle stored, without asking the repository. Does not touch the cache:
    /// whatever that rotation removed was removed then.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub fn replay_root(&mut self, root: &[u8]) -> Result<(), ClientError> {
        self.trusted.update_root(root)?;
        Ok(())
    }

    /// Brings root, timestamp, snapshot and top-level targets up to date (§5.3–§5.6). What was verified before a failure
    /// stays in the cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn refresh(&mut self) -> Result<Refreshed, ClientError> {
        self.refresh_root()?;
        let refreshed = self.refresh_timestamp()?;
        self.refresh_snapshot()?;
        self.load_targets(&RoleName::targets(), &RoleName::root())?;
        Ok(refreshed)
    }

    fn refresh_root(&mut self) -> Result<(), ClientError> {
        let role = RoleName::root();
        for _ in 0..limits::ROOT_ROTATIONS {
            let Some(next) = self.trusted.root().version.checked_add(1) else {
                break;
            };
            let name = layout::metadata_name(&role, Some(next));
            let Some(bytes) = self.fetch_object(&name, limits::ROOT_BYTES)? else {
                break;
            };
            if self.trusted.update_root(&bytes)? == KeyRotation::OnlineKeyRemoved {
                // Before the new root is stored: after a cut in between, this step is taken again.
                for role in [RoleName::timestamp(), RoleName::snapshot()] {
                    self.cache.remove(&role).map_err(cache_error(&role))?;
                }
            }
            self.cache.store(&role, &bytes).map_err(cache_error(&role))?;
        }
        Ok(self.trusted.finish_root()?)
    }

    fn refresh_timestamp(&mut self) -> Result<Refreshed, ClientError> {
        let role = RoleName::timestamp();
        if let Some(bytes) = self.cached(&role)? {
            // Refused when its keys were rotated away: then it is not trusted any more, and must not stop newer ones.
            let _ = self.trusted.update_timestamp(&bytes, Origin::Local);
        }
        let bytes = self.fetch_required(&layout::metadata_name(&role, None), limits::TIMESTAMP_BYTES)?;
        let accepted = self.trusted.update_timestamp(&bytes, Origin::Remote)?;
        self.trusted.finish_timestamp()?;
        if accepted == Accepted::SameVersion {
            return Ok(Refreshed::Unchanged);
        }
        self.cache.store(&role, &bytes).map_err(cache_error(&role))?;
        Ok(Refreshed::Changed)
    }

    fn refresh_snapshot(&mut self) -> Result<(), ClientError> {
        let role = RoleName::snapshot();
        if let Some(bytes) = self.cached(&role)?
            && self.trusted.update_snapshot(&bytes, Origin::Local) == Ok(Accepted::Current)
        {
            return Ok(());
        }
        let Some(announced) = self.trusted.timestamp().map(|timestamp| timestamp.snapshot.clone()) else {
            return Err(TrustError {
                role,
                reason: Refusal::OutOfOrder {
                    missing: RoleName::timestamp(),
                },
            }
            .into());
        };
        let bytes = self.fetch_announced(&role, &announced, limits::SNAPSHOT_BYTES)?;
        self.trusted.update_snapshot(&bytes, Origin::Remote)?;
        self.cache.store(&role, &bytes).map_err(cache_error(&role))
    }

    /// Makes sure that a targets role is trusted through `parent`: from the set, from the cache, or from the repository.
    fn load_targets(&mut self, role: &RoleName, parent: &RoleName) -> Result<(), ClientError> {
        if self.trusted.is_verified_through(role, parent) {
            return Ok(());
        }
        if let Some(bytes) = self.cached(role)?
            && self.trusted.update_delegated(&bytes, role, parent).is_ok()
        {
            return Ok(());
        }
        let announced = self.trusted.announced(role).cloned();
        let announced = announced.map_err(|reason| TrustError {
            role: role.clone(),
            reason,
        })?;
        let bytes = self.fetch_announced(role, &announced, limits::TARGETS_BYTES)?;
        self.trusted.update_delegated(&bytes, role, parent)?;
        self.cache.store(role, &bytes).map_err(cache_error(role))
    }

    /// Looks a target up, loading delegated roles as the search reaches them (§5.6.7): pre-order, the first role that has
    /// it wins, a terminating role that covers it ends the search. `None` says that no role has it. Call
    /// [`refresh`](Self::refresh) before.
    ///
    /// # Errors
    /// [`ClientError`]; a role on the way that cannot be verified ends the search, because it may have the target.
    pub fn find_target(&mut self, path: &TargetPath) -> Result<Option<TargetFile>, ClientError> {
        self.search(path, &BTreeSet::new())
    }

    fn search(&mut self, path: &TargetPath, unavailable: &BTreeSet<Edge>) -> Result<Option<TargetFile>, ClientError> {
        let mut visited = BTreeSet::new();
        let mut stack = vec![(RoleName::targets(), RoleName::root())];
        while let Some((role, parent)) = stack.pop() {
            if !visited.insert(role.clone()) {
                continue;
            }
            // The top-level role does not count as delegated.
            if visited.len() > limits::DELEGATIONS_VISITED + 1 {
                return Err(too_many_roles(path.as_str(), limits::DELEGATIONS_VISITED));
            }
            if unavailable.contains(&(role.clone(), parent.clone())) {
                return Err(ClientError::Undecided {
                    role,
                    path: path.clone(),
                });
            }
            self.load_targets(&role, &parent)?;
            let Some(targets) = self.trusted.targets(&role) else {
                continue;
            };
            if let Some(file) = targets.targets.get(path.as_str()) {
                return Ok(Some(file.clone()));
            }
            let Some(delegations) = &targets.delegations else {
                continue;
            };
            let covering = delegations.covering(path);
            if covering.last().is_some_and(|last| last.terminating) {
                // Nothing that was waiting comes after a terminating delegation, not even siblings of its ancestors.
                stack.clear();
            }
            stack.extend(
                covering
                    .into_iter()
                    .rev()
                    .map(|child| (child.name.clone(), role.clone())),
            );
        }
        Ok(None)
    }

    /// Lists the releases of a product: every target `<product>/<version>/manifest.json` with `custom.fw` that
    /// [`find_target`](Self::find_target) would give. A role that cannot be verified is a problem of its own paths only.
    /// Call [`refresh`](Self::refresh) before.
    ///
    /// # Errors
    /// [`ClientError`] only for the top-level targets role, the cache, and more than
    /// [`limits::RELEASE_ROLES_VISITED`] roles.
    pub fn releases(&mut self, product: &str) -> Result<Releases, ClientError> {
        const MANIFEST: &str = "manifest.json";
        let mut releases = Releases::default();
        let mut unavailable = BTreeSet::new();
        let mut candidates = BTreeSet::new();
        let mut visited: BTreeSet<Edge> = BTreeSet::new();
        let mut stack = vec![(RoleName::targets(), RoleName::root())];
        while let Some(edge) = stack.pop() {
            if !visited.insert(edge.clone()) {
                continue;
            }
            if visited.len() > limits::RELEASE_ROLES_VISITED {
                return Err(too_many_roles(product, limits::RELEASE_ROLES_VISITED));
            }
            let (role, parent) = &edge;
            match self.load_targets(role, parent) {
                Ok(()) => {}
                Err(error @ ClientError::Cache { .. }) => return Err(error),
                Err(error) if *role == RoleName::targets() => return Err(error),
                Err(error) => {
                    releases.problems.push(error);
                    unavailable.insert(edge);
                    continue;
                }
            }
            let Some(targets) = self.trusted.targets(role) else {
                continue;
            };
            candidates.extend(manifests(targets, product, MANIFEST));
            let children = targets.delegations.iter().flat_map(|delegations| &delegations.roles);
            let relevant = children.filter(|child: &&DelegatedRole| child.paths.may_cover(product, MANIFEST));
            stack.extend(relevant.map(|child| (child.name.clone(), role.clone())));
        }
        for path in candidates {
            match self.search(&path, &unavailable) {
                Ok(Some(file)) => match FwCustom::of_target(&file) {
                    Ok(Some(fw)) => releases.found.push(Release { path, file, fw }),
                    Ok(None) => {}
                    Err(source) => releases.problems.push(ClientError::Custom { path, source }),
                },
                // A role lists a path that its delegation does not cover: no client may see it.
                Ok(None) => {}
                Err(error @ ClientError::Cache { .. }) => return Err(error),
                Err(error) => releases.problems.push(error),
            }
        }
        Ok(releases)
    }

    /// Verifies every targets role that the snapshot lists and that some chain of delegations reaches. For whoever judges
    /// a whole repository; a device reads only what it needs.
    ///
    /// # Errors
    /// The first role that cannot be verified; more than [`limits::DELEGATIONS_VERIFIED`] delegations.
    pub fn load_all(&mut self) -> Result<BTreeMap<RoleName, &Targets>, ClientError> {
        let mut visited: BTreeSet<Edge> = BTreeSet::new();
        let mut stack = vec![(RoleName::targets(), RoleName::root())];
        while let Some((role, parent)) = stack.pop() {
            if !visited.insert((role.clone(), parent.clone())) {
                continue;
            }
            if visited.len() > limits::DELEGATIONS_VERIFIED {
                return Err(too_many_roles("the whole repository", limits::DELEGATIONS_VERIFIED));
            }
            self.load_targets(&role, &parent)?;
            let delegations = self
                .trusted
                .targets(&role)
                .and_then(|targets| targets.delegations.as_ref());
            let children = delegations.into_iter().flat_map(|delegations| &delegations.roles);
            stack.extend(children.map(|child| (child.name.clone(), role.clone())));
        }
        let names: BTreeSet<_> = visited.into_iter().map(|(role, _)| role).collect();
        Ok(names
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.trusted.targets(&name)?)))
            .collect())
    }

    /// The metadata trusted so far.
    pub fn trusted(&self) -> &TrustedSet {
        &self.trusted
    }

    /// The transport.
    pub fn fetcher(&mut self) -> &mut F {
        &mut self.fetch
    }

    /// The store.
    pub fn cache(&mut self) -> &mut C {
        &mut self.cache
    }

    /// Gives transport and store back.
    pub fn into_parts(self) -> (F, C) {
        (self.fetch, self.cache)
    }

    fn cached(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, ClientError> {
        self.cache.load(role).map_err(cache_error(role))
    }

    fn fetch_announced(&mut self, role: &RoleName, announced: &MetaFile, limit: u64) -> Result<Vec<u8>, ClientError> {
        let version = self.trusted.root().consistent_snapshot.then_some(announced.version);
        let max_length = announced.length.map_or(limit, |length| length.min(limit));
        self.fetch_required(&layout::metadata_name(role, version), max_length)
    }

    fn fetch_required(&mut self, name: &str, max_length: u64) -> Result<Vec<u8>, ClientError> {
        self.fetch_object(name, max_length)?
            .ok_or_else(|| ClientError::Missing { name: name.to_owned() })
    }

    fn fetch_object(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, ClientError> {
        let fetched = self.fetch.fetch(name, max_length);
        fetched.map_err(|error| ClientError::Fetch {
            name: name.to_owned(),
            source: Box::new(error),
        })
    }
}

fn cache_error<E: Error + Send + Sync + 'static>(role: &RoleName) -> impl FnOnce(E) -> ClientError {
    let role = role.clone();
    move |error| ClientError::Cache {
        role,
        source: Box::new(error),
    }
}

fn too_many_roles(subject: &str, limit: usize) -> ClientError {
    ClientError::TooManyRoles {
        subject: subject.to_owned(),
        limit,
    }
}

fn manifests(targets: &Targets, product: &str, file: &str) -> Vec<TargetPath> {
    let is_manifest = |path: &&String| {
        let parts: Vec<_> = path.split('/').collect();
        matches!(parts[..], [first, _, last] if first == product && last == file)
    };
    targets
        .targets
        .keys()
        .filter(is_manifest)
        .filter_map(|path| TargetPath::parse(path).ok())
        .collect()
}
