//! Judges a candidate as a device would, and by `tough`; both must accept it.
//!
//! An expired product role blocks the releases of that product only, on devices and here: it must not keep anybody from
//! renewing the timestamp or from releasing for another product. It is reported.

use std::fs::File;
use std::io::Read;

use anyhow::Context;
use fwmeta::client::{Client, Fetch, MemoryCache, Refreshed};
use fwmeta::role::RoleName;
use fwmeta::target::{Hasher, TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use fwmeta::{layout, limits};

use crate::failure::{Outcome, judged};
use crate::repo_dir::{BEFORE_EVERYTHING, RepoDir};
use crate::second_opinion::{Expiry, SecondOpinion};

/// What is to be judged, and from where.
#[derive(Debug)]
pub struct Case<'a> {
    /// The candidate.
    pub candidate: &'a RepoDir,
    /// The root that devices trust.
    pub anchor: &'a [u8],
    /// What devices know that have followed the repository so far.
    pub known: MemoryCache,
    /// Reference time.
    pub now: UtcSeconds,
    /// Whether `tough`, which reads the clock itself, is to enforce expiry.
    pub expiry: Expiry,
    /// Targets whose listing and contents are to be checked.
    pub targets: &'a [(TargetPath, TargetFile)],
}

/// A targets role that has expired, and when.
pub type ExpiredRole = (RoleName, UtcSeconds);

impl Case<'_> {
    /// Judges.
    ///
    /// # Errors
    /// A refusal, in the words of the verifier that refuses; code 3 when the candidate cannot be read.
    pub fn judge(&self) -> Outcome<Vec<ExpiredRole>> {
        let expired = self
            .by_fwmeta()
            .context("devices would refuse this repository")
            .map_err(judged)?;
        let expiry = if expired.is_empty() {
            self.expiry
        } else {
            Expiry::Ignored
        };
        self.by_tough(expiry)
            .context("`tough` would refuse this repository, which fwmeta accepts")
            .map_err(judged)?;
        Ok(expired)
    }

    fn by_fwmeta(&self) -> anyhow::Result<Vec<ExpiredRole>> {
        let source = self.candidate.source();
        let mut device = Client::new(source.clone(), self.known.clone(), self.anchor, self.now)?;
        let timestamp = RoleName::timestamp();
        if device.refresh()? == Refreshed::Unchanged
            && let Some(known) = self.known.0.get(&timestamp)
            && self
                .candidate
                .source()
                .fetch(&layout::metadata_name(&timestamp, None), limits::TIMESTAMP_BYTES)?
                .as_ref()
                != Some(known)
        {
            let version = device.trusted().timestamp().map_or(0, |timestamp| timestamp.version);
            anyhow::bail!(
                "timestamp version {version} is published with other contents: devices would ignore this one; sign a \
                 newer one with `fwsign refresh`"
            );
        }
        let mut all = Client::new(source, MemoryCache::default(), self.anchor, BEFORE_EVERYTHING)?;
        all.refresh()?;
        let expired = all
            .load_all()?
            .into_iter()
            .filter(|(_, targets)| targets.expires <= self.now);
        let expired = expired.map(|(role, targets)| (role, targets.expires)).collect();
        for (path, file) in self.targets {
            let found = all.find_target(path)?;
            let found = found.with_context(|| format!("{path} is listed by a role that may not speak for it"))?;
            anyhow::ensure!(
                found.length == file.length && found.hashes == file.hashes,
                "another role lists {path} differently"
            );
            check_file(self.candidate, path, file)?;
        }
        Ok(expired)
    }

    fn by_tough(&self, expiry: Expiry) -> anyhow::Result<()> {
        let second = SecondOpinion::load(self.candidate, self.anchor, expiry)?;
        for (path, file) in self.targets {
            second.check_listed(path, file)?;
            second.check_contents(path).with_context(|| path.to_string())?;
        }
        Ok(())
    }
}

/// Warns of roles that have expired.
pub fn warn_expired(expired: &[ExpiredRole]) {
    for (role, when) in expired {
        crate::output::warn(&format!(
            "{role} expired at {when}: devices refuse its releases until `fwsign refresh --role {role}` renews it"
        ));
    }
}

/// Reads a target file to its end and checks its length and digests.
///
/// # Errors
/// When it cannot be read or differs.
pub fn check_file(repo: &RepoDir, path: &TargetPath, file: &TargetFile) -> anyhow::Result<()> {
    let local = repo.target_path(path, file);
    let check = || -> anyhow::Result<()> {
        let mut input = File::open(&local)?;
        let mut hasher = Hasher::for_checking(&file.hashes);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let length = input.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
        let (length, hashes) = hasher.finish();
        Ok(file.check(length, &hashes)?)
    };
    check().with_context(|| format!("target {path}, {}", local.display()))
}
