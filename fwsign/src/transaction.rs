//! One change of a repository, from new metadata to a verified and visible candidate.
//!
//! The order is the same for every command: stage targets and metadata, sign the changed roles, then snapshot and
//! timestamp; judge the whole candidate as a device would and by `tough`; only then make it visible.

use std::collections::BTreeMap;

use fwmeta::client::MemoryCache;
use fwmeta::key::{KeyId, PublicKey};
use fwmeta::layout::metadata_name;
use fwmeta::role::{MetaFile, RoleKeys, RoleName, Root, Targets};
use fwmeta::signed;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::clock;
use crate::failure::Outcome;
use crate::judge::{self, Case};
use crate::release::{self, Lifetimes};
use crate::repo_dir::Current;
use crate::second_opinion::Expiry;
use crate::signer::Keyring;
use crate::writer::Writer;

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
        public: &BTreeMap<KeyId, PublicKey>,
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
    /// A refusal, with the verdict; the repository is then unchanged.
    pub fn finish(self, anchor: &[u8], dry_run: bool) -> Outcome<()> {
        self.writer.complete()?;
        let case = Case {
            candidate: self.writer.candidate(),
            anchor,
            known: MemoryCache::default(),
            now: self.now,
            // `tough` knows the clock only, by which metadata signed at SOURCE_DATE_EPOCH may have expired.
            expiry: match clock::fixed()? {
                Some(_) => Expiry::Ignored,
                None => Expiry::Enforced,
            },
            targets: &self.new_targets,
        };
        let expired = case.judge()?;
        judge::warn_expired(&expired);
        if !dry_run {
            self.writer.commit()?;
        }
        Ok(())
    }
}
