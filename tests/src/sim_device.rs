//! A device in memory: the trusted metadata that it stores, and one client per update cycle, as the agent has it.

use fwmeta::client::{Client, ClientError, MemoryCache, Refreshed};
use fwmeta::role::{Metadata, RoleName, Root, Snapshot, Targets, Timestamp};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::repo_sim::{NOW, RepoSim};

/// The device.
#[derive(Debug, Clone)]
pub struct SimDevice {
    /// What it trusts.
    pub store: MemoryCache,
    /// Its clock.
    pub now: UtcSeconds,
}

impl SimDevice {
    /// A new device that trusts version 1 of the repository's root.
    pub fn new(sim: &mut RepoSim) -> Self {
        let root = sim.served("root", 1).clone();
        Self {
            store: MemoryCache([(RoleName::root(), root)].into()),
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
    ) -> Result<Client<&'a mut RepoSim, &'a mut MemoryCache>, ClientError> {
        let root = self.store.0.get(&RoleName::root()).cloned().expect("a stored root");
        Client::new(sim, &mut self.store, &root, self.now)
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
        let bytes = self.store.0.get(&RoleName::parse(role).expect("a role name"))?;
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
