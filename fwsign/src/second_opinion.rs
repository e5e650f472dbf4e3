//! The second, independent verifier: `tough`, over the same directory.
//!
//! Two implementations that agree are better evidence than one; where they differ, one of them would refuse the release
//! on somebody's device, so nothing is published.

use std::pin::pin;

use anyhow::Context;
use futures_util::TryStreamExt;
use fwmeta::target::{TargetFile, TargetPath};
use tokio::runtime::{Builder, Runtime};
use tough::{ExpirationEnforcement, FilesystemTransport, Repository, RepositoryLoader, TargetName};
use url::Url;

use crate::repo_dir::RepoDir;

/// A repository as `tough` has loaded it.
pub struct SecondOpinion {
    repository: Repository,
    runtime: Runtime,
}

impl std::fmt::Debug for SecondOpinion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecondOpinion")
    }
}

/// Whether expired metadata are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// As a device does, by the clock of this machine.
    Enforced,
    /// For a look at another time than now, which `tough` cannot take.
    Ignored,
}

impl SecondOpinion {
    /// Loads the repository from the root `anchor` on.
    ///
    /// # Errors
    /// What `tough` refuses, in its words.
    pub fn load(repo: &RepoDir, anchor: &[u8], expiry: Expiry) -> anyhow::Result<Self> {
        let directory = |path: std::path::PathBuf| {
            let path = std::path::absolute(path)?;
            Url::from_directory_path(&path).map_err(|()| anyhow::anyhow!("{} has no URL", path.display()))
        };
        let (metadata, targets) = (directory(repo.metadata())?, directory(repo.targets())?);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let enforcement = match expiry {
            Expiry::Enforced => ExpirationEnforcement::Safe,
            Expiry::Ignored => ExpirationEnforcement::Unsafe,
        };
        let loader = RepositoryLoader::new(&anchor, metadata, targets)
            .transport(FilesystemTransport)
            .limits(tough::Limits {
                max_root_size: fwmeta::limits::ROOT_BYTES,
                max_timestamp_size: fwmeta::limits::TIMESTAMP_BYTES,
                max_targets_size: fwmeta::limits::TARGETS_BYTES,
                max_root_updates: u64::from(fwmeta::limits::ROOT_ROTATIONS),
                ..tough::Limits::default()
            })
            .expiration_enforcement(enforcement);
        let repository = runtime.block_on(loader.load())?;
        Ok(Self { repository, runtime })
    }

    /// Versions of root, timestamp, snapshot and targets.
    pub fn versions(&self) -> [u64; 4] {
        let repository = &self.repository;
        [
            repository.root().signed.version.get(),
            repository.timestamp().signed.version.get(),
            repository.snapshot().signed.version.get(),
            repository.targets().signed.version.get(),
        ]
    }

    /// Checks that a target is listed with the same length and SHA-256.
    ///
    /// # Errors
    /// The difference.
    pub fn check_listed(&self, path: &TargetPath, file: &TargetFile) -> anyhow::Result<()> {
        let name = TargetName::new(path.as_str())?;
        let listed = self.repository.targets().signed.find_target(&name, false);
        let listed = listed.with_context(|| format!("{path} is not found"))?;
        anyhow::ensure!(
            listed.length == file.length && Some(&listed.hashes.sha256[..]) == crate::repo_dir::digest(file),
            "{path} is listed with another length or digest"
        );
        Ok(())
    }

    /// Reads a target to its end, as `tough` checks it.
    ///
    /// # Errors
    /// What `tough` refuses, in its words.
    pub fn check_contents(&self, path: &TargetPath) -> anyhow::Result<()> {
        let name = TargetName::new(path.as_str())?;
        self.runtime.block_on(async {
            let stream = self.repository.read_target(&name).await?;
            let mut stream = pin!(stream.with_context(|| format!("{path} is not found"))?);
            while stream.try_next().await?.is_some() {}
            Ok(())
        })
    }
}
