//! A device in memory: the trusted metadata that it stores, and one client per update cycle, as the agent has it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use fwmeta::client::{Cache, Client, ClientError, Refreshed};
use fwmeta::role::{Metadata, RoleName, Root, Snapshot, Targets, Timestamp};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::repo_sim::{NOW, RepoSim};

/// Trusted metadata by role, bytes as they were stored.
pub type Store = BTreeMap<RoleName, Vec<u8>>;

/// The device.
#[derive(Debug, Clone)]
pub struct SimDevice {
    /// What it trusts.
    pub store: Store,
    /// Its clock.
    pub now: UtcSeconds,
}

/// [`Store`] as the client wants it.
#[derive(Debug)]
pub struct MemoryCache<'a>(pub &'a mut Store);

impl Cache for MemoryCache<'_> {
    type Error = Infallible;

    fn load(&mut self, role: &RoleName) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(role).cloned())
    }

    fn store(&mut self, role: &RoleName, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.insert(role.clone(), bytes.to_vec());
        Ok(())
    }

    fn remove(&mut self, role: &RoleName) -> Result<(), Infallible> {
        self.0.remove(role);
        Ok(())
    }
}

impl SimDevice {
    /// A new device that trusts version 1 of the repository's root.
    pub fn new(sim: &mut RepoSim) -> Self {
        let root = sim.served("root", 1).clone();
        Self {
            store: [(RoleName::root(), root)].into(),
            now: NOW,
        }
    }

    /// The client of one cycle.
    ///
    /// # Errors
    /// When the stored root does not verify itself.
    ///
    /// # Panics
    /// When no root is stored.
    pub fn client<'a>(
        &'a mut self,
        sim: &'a mut RepoSim,
    ) -> Result<Client<&'a mut RepoSim, MemoryCache<'a>>, ClientError> {
        let root = self.store.get(&RoleName::root()).cloned().expect("a stored root");
        Client::new(sim, MemoryCache(&mut self.store), &root, self.now)
    }

    /// One update cycle over the top-level roles.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn refresh(&mut self, sim: &mut RepoSim) -> Result<Refreshed, ClientError> {
        self.client(sim)?.refresh()
    }

    /// One update cycle and the search for a target.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Panics
    /// When `path` is no target path.
    pub fn find(&mut self, sim: &mut RepoSim, path: &str) -> Result<Option<TargetFile>, ClientError> {
        let mut client = self.client(sim)?;
        client.refresh()?;
        client.find_target(&TargetPath::parse(path).expect("a target path"))
    }

    /// The version that is stored of a role.
    ///
    /// # Panics
    /// When what is stored is not that role's metadata: then something unverified was stored.
    pub fn version(&self, role: &str) -> Option<u64> {
        let bytes = self.store.get(&RoleName::parse(role).expect("a role name"))?;
        Some(match role {
            "root" => parse::<Root>(bytes),
            "timestamp" => parse::<Timestamp>(bytes),
            "snapshot" => parse::<Snapshot>(bytes),
            _ => parse::<Targets>(bytes),
        })
    }
}

fn parse<M: Metadata>(bytes: &[u8]) -> u64 {
    <M as Metadata>::parse(bytes)
        .expect("stored metadata are well formed")
        .version()
}
