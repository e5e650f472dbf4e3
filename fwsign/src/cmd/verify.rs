//! `fwsign verify`: our workflow and `tough` over one repository; both must agree.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};
use fwmeta::client::{Client, MemoryCache};
use fwmeta::json::object;
use fwmeta::limits;
use fwmeta::role::{RoleName, Targets};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::bounded;
use crate::cli::Verify;
use crate::clock;
use crate::failure::{Failure, Outcome, judged_code, refused, usage};
use crate::judge::check_file;
use crate::output::Report;
use crate::repo_dir::RepoDir;
use crate::second_opinion::{Expiry, SecondOpinion};

/// Of root, timestamp, snapshot and top-level targets.
type Versions = [u64; 4];

pub fn run(args: &Verify) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    let anchor = match &args.root {
        Some(path) => bounded::read(path, limits::ROOT_BYTES).with_context(|| path.display().to_string())?,
        None => repo.oldest_root()?,
    };
    let at = args
        .at
        .as_deref()
        .map(UtcSeconds::parse)
        .transpose()
        .map_err(|error| usage(format!("--at: {error}")))?;
    let now = at.map_or_else(clock::now, Ok)?;
    let expiry = if at.is_some() {
        Expiry::Ignored
    } else {
        Expiry::Enforced
    };

    let metadata = judge(&repo, &anchor, now);
    let targets = metadata
        .as_ref()
        .map(|(_, targets)| targets.as_slice())
        .unwrap_or_default();
    let theirs = judge_by_tough(args, &repo, &anchor, expiry, targets);
    // `tough` gets the list of targets before their contents are looked at, or it would have nothing to disagree about.
    let ours = metadata.and_then(|(versions, targets)| {
        if !args.metadata_only {
            for (path, file) in &targets {
                check_file(&repo, path, file)?;
            }
        }
        Ok((versions, targets.len()))
    });
    let (versions, count) = compare(ours, theirs)?;
    let [root, timestamp, snapshot, top] = versions;
    let json = object([
        ("root", root.into()),
        ("timestamp", timestamp.into()),
        ("snapshot", snapshot.into()),
        ("targets", top.into()),
        ("target_files", (count as u64).into()),
        ("contents_checked", (!args.metadata_only).into()),
        ("at", now.to_string().into()),
        ("verifiers", vec!["fwmeta".into(), "tough".into()].into()),
    ]);
    let contents = if args.metadata_only {
        "contents not read"
    } else {
        "contents read"
    };
    let text = format!(
        "fwmeta and tough agree: root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {top}; \
         {count} target files, {contents}"
    );
    Ok(Report::new(text, json))
}

type TargetList = Vec<(TargetPath, TargetFile)>;

/// Both verdicts made one: accepted by both with the same versions, or refused.
fn compare(ours: anyhow::Result<(Versions, usize)>, theirs: anyhow::Result<Versions>) -> Outcome<(Versions, usize)> {
    match (ours, theirs) {
        (Ok((versions, count)), Ok(other)) if versions == other => Ok((versions, count)),
        (Ok((versions, _)), Ok(other)) => Err(refused(anyhow!(
            "the verifiers see different versions of root, timestamp, snapshot, targets\n  fwmeta: {versions:?}\n  \
             tough:  {other:?}"
        ))),
        (Err(ours), theirs) => {
            // What cannot be read is judged by nobody.
            let code = judged_code(&ours);
            let (said, tough) = match theirs {
                Err(theirs) => ("both verifiers refuse the repository", format!("{theirs:#}")),
                Ok(_) => ("the verifiers disagree", "accepted".to_owned()),
            };
            let error = anyhow!("{said}\n  fwmeta: {ours:#}\n  tough:  {tough}");
            Err(Failure { code, error })
        }
        (Ok(_), Err(theirs)) => Err(Failure {
            code: judged_code(&theirs),
            error: anyhow!("the verifiers disagree\n  fwmeta: accepted\n  tough:  {theirs:#}"),
        }),
    }
}

fn judge(repo: &RepoDir, anchor: &[u8], now: UtcSeconds) -> anyhow::Result<(Versions, TargetList)> {
    let mut client = Client::new(repo.source(), MemoryCache::default(), anchor, now)?;
    client.refresh()?;
    let mut paths = BTreeSet::new();
    for targets in client.load_all()?.values() {
        for path in targets.targets.keys() {
            paths.insert(TargetPath::parse(path)?);
        }
    }
    let mut targets = Vec::with_capacity(paths.len());
    for path in paths {
        // What no search finds no device can ask for; a role lists it beyond its delegation.
        let file = client.find_target(&path)?;
        let file = file.with_context(|| format!("{path} is listed by a role that may not speak for it"))?;
        targets.push((path, file));
    }
    let trusted = client.trusted();
    let versions = [
        trusted.root().version,
        trusted.timestamp().map_or(0, |timestamp| timestamp.version),
        trusted.snapshot().map_or(0, |snapshot| snapshot.version),
        trusted
            .targets(&RoleName::targets())
            .map_or(0, |targets: &Targets| targets.version),
    ];
    Ok((versions, targets))
}

fn judge_by_tough(
    args: &Verify,
    repo: &RepoDir,
    anchor: &[u8],
    expiry: Expiry,
    targets: &[(TargetPath, TargetFile)],
) -> anyhow::Result<Versions> {
    let second = SecondOpinion::load(repo, anchor, expiry)?;
    for (path, file) in targets {
        second.check_listed(path, file)?;
        if !args.metadata_only {
            second.check_contents(path).with_context(|| path.to_string())?;
        }
    }
    Ok(second.versions())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::failure::Code;

    #[test]
    fn only_agreement_is_acceptance() {
        let refuse = || anyhow!("no");
        assert_eq!(compare(Ok(([1; 4], 3)), Ok([1; 4])).unwrap(), ([1; 4], 3));
        let said = |ours, theirs| {
            let failure = compare(ours, theirs).unwrap_err();
            assert_eq!(failure.code, Code::Refused);
            failure.to_string()
        };
        assert!(said(Ok(([1; 4], 3)), Ok([1, 2, 1, 1])).contains("different versions"));
        assert!(said(Ok(([1; 4], 3)), Err(refuse())).contains("disagree\n  fwmeta: accepted\n  tough:  no"));
        assert!(said(Err(refuse()), Ok([1; 4])).contains("disagree\n  fwmeta: no\n  tough:  accepted"));
        assert!(said(Err(refuse()), Err(refuse())).starts_with("both verifiers refuse"));
        let unreadable = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let failure = compare(Err(unreadable.into()), Ok([1; 4])).unwrap_err();
        assert_eq!(failure.code, Code::Environment);
    }
}
