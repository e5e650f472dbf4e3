//! One change of a repository, from new metadata to a verified and visible candidate.
//!
//! The order is the same for every command: stage targets and metadata, sign the changed roles, then snapshot and
//! timestamp; judge the whole candidate as a device would and by `tough`; only then make it visible.

use anyhow::Context;
use fwmeta::client::Client;
use fwmeta::layout::metadata_name;
use fwmeta::role::{MetaFile, RoleKeys, RoleName, Root, Targets};
use fwmeta::signed;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::failure::{Failure, Outcome, refused};
use crate::release::{self, Lifetimes};
use crate::repo_dir::{Current, NoCache, Writer};
use crate::second_opinion::{Expiry, SecondOpinion};
use crate::signer::Keyring;
use crate::{clock, repo_dir};

/// A change in the making.
#[derive(Debug)]
pub struct Transaction<'a> {
    /// The candidate.
    pub writer: Writer,
    /// Keys that the command was given.
    pub keys: &'a Keyring,
    /// Validity of what is signed.
    pub lifetimes: Lifetimes,
    /// Moment of the signatures.
    pub now: UtcSeconds,
    changed: Vec<(RoleName, MetaFile)>,
    new_targets: Vec<(TargetPath, TargetFile)>,
}

impl<'a> Transaction<'a> {
    /// Begins a change.
    ///
    /// # Errors
    /// When the time is unusable.
    pub fn new(writer: Writer, keys: &'a Keyring, lifetimes: Lifetimes) -> anyhow::Result<Self> {
        let now = clock::signing_time()?;
        Ok(Self {
            writer,
            keys,
            lifetimes,
            now,
            changed: Vec::new(),
            new_targets: Vec::new(),
        })
    }

    /// Signs and stages a root.
    ///
    /// # Errors
    /// When keys are missing or it cannot be written.
    pub fn put_root(&mut self, root: &Root) -> anyhow::Result<Vec<u8>> {
        let signers = self.keys.for_role(&RoleName::root(), &root.roles.root, &root.keys)?;
        let bytes = signed::sign(&root.to_value(), &signers)?;
        self.writer
            .add_metadata(&metadata_name(&RoleName::root(), Some(root.version)), &bytes)?;
        Ok(bytes)
    }

    /// Signs and stages targets metadata of a role whose keys the delegator lists.
    ///
    /// # Errors
    /// When keys are missing or it cannot be written.
    pub fn put_targets(
        &mut self,
        role: &RoleName,
        targets: &Targets,
        role_keys: &RoleKeys,
        public: &std::collections::BTreeMap<fwmeta::key::KeyId, fwmeta::key::PublicKey>,
    ) -> anyhow::Result<()> {
        let signers = self.keys.for_role(role, role_keys, public)?;
        let bytes = signed::sign(&targets.to_value(), &signers)?;
        self.writer
            .add_metadata(&metadata_name(role, Some(targets.version)), &bytes)?;
        self.changed
            .push((role.clone(), MetaFile::of_bytes(targets.version, &bytes)));
        Ok(())
    }

    /// Remembers a staged target, to be read back by both verifiers.
    pub fn expect_target(&mut self, path: TargetPath, file: TargetFile) {
        self.new_targets.push((path, file));
    }

    /// Signs and stages a new snapshot (when targets changed, or `renew_snapshot`) and a new timestamp.
    ///
    /// # Errors
    /// When keys are missing or they cannot be written.
    pub fn put_snapshot_and_timestamp(
        &mut self,
        root: &Root,
        previous: Option<&Current>,
        snapshot_version: u64,
        renew_snapshot: bool,
    ) -> anyhow::Result<()> {
        let announced = match previous {
            Some(current) if self.changed.is_empty() && !renew_snapshot => current.timestamp.snapshot.clone(),
            _ => {
                let expires = release::expiry(self.now, self.lifetimes.snapshot);
                let before = previous.map(|current| &current.snapshot);
                let snapshot = release::next_snapshot(before, &self.changed, snapshot_version, expires);
                let signers = self
                    .keys
                    .for_role(&RoleName::snapshot(), &root.roles.snapshot, &root.keys)?;
                let bytes = signed::sign(&snapshot.to_value(), &signers)?;
                self.writer
                    .add_metadata(&metadata_name(&RoleName::snapshot(), Some(snapshot.version)), &bytes)?;
                MetaFile::of_bytes(snapshot.version, &bytes)
            }
        };
        let expires = release::expiry(self.now, self.lifetimes.timestamp);
        let timestamp = release::next_timestamp(previous.map(|current| &current.timestamp), announced, expires);
        let signers = self
            .keys
            .for_role(&RoleName::timestamp(), &root.roles.timestamp, &root.keys)?;
        let bytes = signed::sign(&timestamp.to_value(), &signers)?;
        self.writer
            .add_metadata(&metadata_name(&RoleName::timestamp(), None), &bytes)
    }

    /// Judges the candidate from the root `anchor` on, by our workflow and by `tough`, and makes it visible.
    ///
    /// # Errors
    /// A refusal, with both verdicts; the repository is then unchanged.
    pub fn finish(self, anchor: &[u8], dry_run: bool) -> Outcome<()> {
        self.writer.complete()?;
        let ours = self.judge(anchor).context("this release would be refused by devices");
        // With SOURCE_DATE_EPOCH in the past the candidate may have expired by the clock that `tough` reads.
        let expiry = if self.now == clock::now()? {
            Expiry::Enforced
        } else {
            Expiry::Ignored
        };
        let theirs = self
            .judge_by_tough(anchor, expiry)
            .context("this release would be refused by `tough`");
        match (ours, theirs) {
            (Ok(()), Ok(())) => {}
            (Err(error), _) | (Ok(()), Err(error)) => return Err(refused(error)),
        }
        if !dry_run {
            self.writer.commit().map_err(Failure::from)?;
        }
        Ok(())
    }

    fn judge(&self, anchor: &[u8]) -> anyhow::Result<()> {
        let candidate = self.writer.candidate();
        let mut client = Client::new(candidate.source(), NoCache, anchor, self.now)?;
        client.refresh()?;
        client.load_all()?;
        for (path, file) in &self.new_targets {
            let found = client
                .find_target(path)?
                .with_context(|| format!("{path} is not found"))?;
            check_file(candidate, path, &found)?;
            anyhow::ensure!(
                found.length == file.length && found.hashes == file.hashes,
                "{path} is listed differently"
            );
        }
        Ok(())
    }

    fn judge_by_tough(&self, anchor: &[u8], expiry: Expiry) -> anyhow::Result<()> {
        let second = SecondOpinion::load(self.writer.candidate(), anchor, expiry)?;
        for (path, file) in &self.new_targets {
            second.check_listed(path, file)?;
            second.check_contents(path).with_context(|| path.to_string())?;
        }
        Ok(())
    }
}

/// Reads a target file to its end and checks its length and digests.
///
/// # Errors
/// When it cannot be read or differs.
pub fn check_file(repo: &repo_dir::RepoDir, path: &TargetPath, file: &TargetFile) -> anyhow::Result<()> {
    use std::io::Read;
    let local = repo.target_path(path, file);
    let mut input = std::fs::File::open(&local).with_context(|| local.display().to_string())?;
    let mut hasher = fwmeta::target::Hasher::for_checking(&file.hashes);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = input.read(&mut buffer).with_context(|| local.display().to_string())?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
    }
    let (length, hashes) = hasher.finish();
    file.check(length, &hashes).with_context(|| local.display().to_string())
}
