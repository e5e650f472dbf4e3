//! `fwsign verify`: our workflow and `tough` over one repository; both must agree.

use anyhow::{Context, anyhow};
use fwmeta::client::Client;
use fwmeta::json::object;
use fwmeta::role::{RoleName, Targets};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::cli::Verify;
use crate::clock;
use crate::failure::{Outcome, refused, usage};
use crate::output::Report;
use crate::repo_dir::{NoCache, RepoDir};
use crate::second_opinion::{Expiry, SecondOpinion};
use crate::transaction::check_file;

/// What one verifier found.
struct Verdict {
    versions: [u64; 4],
    targets: usize,
}

pub fn run(args: &Verify) -> Outcome<Report> {
    let repo = RepoDir::new(&args.repo);
    let anchor = match &args.root {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
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

    let ours = judge(args, &repo, &anchor, now);
    let targets = ours.as_ref().map(|(_, targets)| targets.clone()).unwrap_or_default();
    let theirs = judge_by_tough(args, &repo, &anchor, expiry, &targets);
    let (verdict, other) = match (ours, theirs) {
        (Ok((verdict, _)), Ok(other)) => (verdict, other),
        (Err(ours), Err(theirs)) => {
            return Err(refused(anyhow!(
                "both verifiers refuse the repository\n  fwmeta: {ours:#}\n  tough:  {theirs:#}"
            )));
        }
        (Err(ours), Ok(_)) => {
            return Err(refused(anyhow!(
                "the verifiers disagree\n  fwmeta: refused: {ours:#}\n  tough:  accepted"
            )));
        }
        (Ok(_), Err(theirs)) => {
            return Err(refused(anyhow!(
                "the verifiers disagree\n  fwmeta: accepted\n  tough:  refused: {theirs:#}"
            )));
        }
    };
    if verdict.versions != other.versions {
        let shown = format!("fwmeta: {:?}, tough: {:?}", verdict.versions, other.versions);
        return Err(refused(anyhow!(
            "the verifiers see different versions of root, timestamp, snapshot, targets: {shown}"
        )));
    }
    let [root, timestamp, snapshot, top] = verdict.versions;
    let json = object([
        ("root", root.into()),
        ("timestamp", timestamp.into()),
        ("snapshot", snapshot.into()),
        ("targets", top.into()),
        ("target_files", (verdict.targets as u64).into()),
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
         {} target files, {contents}",
        verdict.targets
    );
    Ok(Report::new(text, json))
}

type TargetList = Vec<(TargetPath, TargetFile)>;

fn judge(args: &Verify, repo: &RepoDir, anchor: &[u8], now: UtcSeconds) -> anyhow::Result<(Verdict, TargetList)> {
    let mut client = Client::new(repo.source(), NoCache, anchor, now)?;
    client.refresh()?;
    let mut paths = Vec::new();
    for targets in client.load_all()?.values() {
        for path in targets.targets.keys() {
            paths.push(TargetPath::parse(path)?);
        }
    }
    paths.sort();
    paths.dedup();
    let mut targets = Vec::with_capacity(paths.len());
    for path in paths {
        // What no search finds no device can ask for; a role lists it beyond its delegation.
        let file = client.find_target(&path)?;
        let file = file.with_context(|| format!("{path} is listed by a role that may not speak for it"))?;
        if !args.metadata_only {
            check_file(repo, &path, &file)?;
        }
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
    Ok((
        Verdict {
            versions,
            targets: targets.len(),
        },
        targets,
    ))
}

fn judge_by_tough(
    args: &Verify,
    repo: &RepoDir,
    anchor: &[u8],
    expiry: Expiry,
    targets: &TargetList,
) -> anyhow::Result<Verdict> {
    let second = SecondOpinion::load(repo, anchor, expiry)?;
    for (path, file) in targets {
        second.check_listed(path, file)?;
        if !args.metadata_only {
            second.check_contents(path).with_context(|| path.to_string())?;
        }
    }
    Ok(Verdict {
        versions: second.versions(),
        targets: targets.len(),
    })
}
