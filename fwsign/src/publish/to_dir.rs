//! To a directory that a server or any static host serves.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;

use super::{Done, Options, Publication, Published, Target, conflict, sha256, timestamp_name};
use crate::failure::{Outcome, nothing_to_do, usage};
use crate::progress::Progress;
use crate::repo_dir::{RepoDir, TARGETS};
use crate::writer::Writer;

/// What the directory does not have.
#[derive(Debug, Default)]
struct Missing {
    metadata: Vec<String>,
    /// Targets with only the names that are missing.
    targets: Vec<Target>,
}

/// Brings a publication to `dir`, under the same lock that every writer takes.
///
/// # Errors
/// A refusal when devices that follow the directory would refuse it, or published files would have to change; the
/// directory is then unchanged. Code 4 when it is there already.
pub fn to_dir(publication: &Publication, dir: &Path, options: Options) -> Outcome<Done> {
    let repo = RepoDir::new(dir);
    if let (Ok(from), Ok(to)) = (fs::canonicalize(publication.source.path()), fs::canonicalize(dir))
        && from == to
    {
        return Err(usage(format!(
            "{} is the repository itself: name another directory",
            dir.display()
        )));
    }
    // A dry run takes no lock, because that would make the directory.
    let writer = if options.dry_run {
        None
    } else {
        Some(Writer::lock(&repo)?)
    };
    let published = Published::read(&repo)?;
    let missing = missing(publication, &repo)?;
    if missing.metadata.is_empty() && missing.targets.is_empty() {
        return Err(nothing_to_do(format!(
            "{} holds timestamp version {} and all that it leads to already",
            dir.display(),
            publication.timestamp.version
        )));
    }
    publication.judge(published.as_ref(), &missing.targets)?;
    if let Some(published) = &published {
        let (version, snapshot) = published.snapshot()?;
        publication.check_continues(options.history, version, snapshot, &dir.display().to_string())?;
    }
    let done = done(publication, &missing);
    if let Some(writer) = writer {
        switch(publication, &missing, writer, Progress::new(done.bytes))?;
    }
    Ok(done)
}

fn missing(publication: &Publication, repo: &RepoDir) -> Outcome<Missing> {
    let mut missing = Missing::default();
    for (name, offered) in &publication.metadata {
        let path = repo.metadata().join(name);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.metadata.push(name.clone()),
            Err(error) => return Err(anyhow::Error::new(error).context(path.display().to_string()).into()),
            Ok(published) if published == *offered => {}
            Ok(_) if *name == timestamp_name() => missing.metadata.push(name.clone()),
            Ok(published) => {
                let word = |bytes: &[u8]| format!("sha256 {}", sha256(bytes));
                return Err(conflict(path.display().to_string(), word(&published), word(offered)));
            }
        }
    }
    for target in &publication.targets {
        let mut names = target.names.clone();
        let mut taken = None;
        names.retain(|name| {
            let path = repo.targets().join(name);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.len() != target.file.length => {
                    taken = Some((path, metadata.len()));
                    true
                }
                found => found.is_err(),
            }
        });
        if let Some((path, length)) = taken {
            let word = |length: u64| format!("{length} bytes");
            return Err(conflict(
                path.display().to_string(),
                word(length),
                word(target.file.length),
            ));
        }
        if !names.is_empty() {
            missing.targets.push(Target {
                names,
                ..target.clone()
            });
        }
    }
    Ok(missing)
}

fn done(publication: &Publication, missing: &Missing) -> Done {
    let metadata = missing
        .metadata
        .iter()
        .filter_map(|name| publication.metadata.get(name));
    let bytes: u64 = metadata.map(|bytes| bytes.len() as u64).sum();
    Done {
        files: (missing.metadata.len() + missing.targets.len()) as u64,
        bytes: bytes + missing.targets.iter().map(|target| target.file.length).sum::<u64>(),
        version: publication.timestamp.version,
    }
}

fn switch(publication: &Publication, missing: &Missing, mut writer: Writer, mut progress: Progress) -> Outcome<()> {
    for target in &missing.targets {
        let source = publication.target_source(target);
        writer
            .copy_target(&target.names, &target.file, &source, &mut |bytes| {
                progress.advance(bytes)
            })
            .with_context(|| format!("copying target {} from {}", target.path, source.display()))?;
    }
    for name in &missing.metadata {
        let bytes = publication.metadata.get(name).map(Vec::as_slice).unwrap_or_default();
        writer.add_metadata(name, bytes)?;
        progress.advance(bytes.len() as u64);
    }
    // Also when only targets were missing: it is what the switch renames.
    writer.add_metadata(&timestamp_name(), publication.timestamp_bytes())?;
    writer
        .commit()
        .with_context(|| format!("publishing {TARGETS} and metadata"))?;
    Ok(())
}
