//! To a running server, through its publish API.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use fwmeta::hex;
use fwmeta::json::{Value, object};

use super::api::{Api, Have, State};
use super::{Done, History, Options, Publication, Target, sha256, timestamp_name};
use crate::failure::{Outcome, nothing_to_do, refused};
use crate::output::warn;
use crate::progress::Progress;
use crate::repo_dir::{METADATA, TARGETS};

/// An object that the server does not have all of.
#[derive(Debug)]
struct Wanted<'a> {
    sha256: &'a str,
    contents: &'a Contents<'a>,
    offset: u64,
}

#[derive(Debug)]
enum Contents<'a> {
    Metadata(&'a [u8]),
    Target(&'a Target),
}

impl Contents<'_> {
    fn length(&self) -> u64 {
        match self {
            Self::Metadata(bytes) => bytes.len() as u64,
            Self::Target(target) => target.file.length,
        }
    }
}

/// Brings a publication to a server: uploads what it does not have, and asks it to switch.
///
/// # Errors
/// A refusal by the server, in its words, or by our own verifiers; what is published is then unchanged. Code 4 when it is
/// published already.
pub fn to_server(publication: &Publication, api: &Api, options: Options) -> Outcome<Done> {
    let timestamp = sha256(publication.timestamp_bytes());
    let state = api.state()?;
    check_state(publication, &state, &timestamp, api.url())?;
    if let (Some(version), History::Continued) = (state.snapshot_version, options.history) {
        let published = api.snapshot(version)?;
        publication.check_continues(options.history, version, &published, api.url())?;
    }
    let (objects, files) = listing(publication);
    let mut wanted = Vec::new();
    for (sha256, contents) in &objects {
        if let Have::Bytes(offset) = api.have(sha256)? {
            wanted.push(Wanted {
                sha256,
                contents,
                offset,
            });
        }
    }
    let targets: Vec<Target> = wanted
        .iter()
        .filter_map(|wanted| match wanted.contents {
            Contents::Target(target) => Some((*target).clone()),
            Contents::Metadata(_) => None,
        })
        .collect();
    publication.judge(None, &targets)?;
    let done = Done {
        files: wanted.len() as u64,
        bytes: wanted
            .iter()
            .map(|wanted| wanted.contents.length() - wanted.offset.min(wanted.contents.length()))
            .sum(),
        version: publication.timestamp.version,
    };
    if options.dry_run {
        return Ok(done);
    }
    let mut progress = Progress::new(done.bytes);
    for wanted in &wanted {
        upload(publication, api, wanted, &mut progress)?;
    }
    drop(progress);
    let base = state.timestamp.map(|(_, sha256)| sha256);
    let request = object([("base", base.into()), ("files", files)]);
    let ignored = api.publish(&request, &timestamp)?;
    if !ignored.is_empty() {
        warn(&format!("the server has no use for {}", ignored.join(", ")));
    }
    Ok(done)
}

/// What the server would refuse is refused before gigabytes are uploaded.
fn check_state(publication: &Publication, state: &State, timestamp: &str, server: &str) -> Outcome<()> {
    let Some((published, digest)) = &state.timestamp else {
        return Ok(());
    };
    let offered = publication.timestamp.version;
    if digest == timestamp {
        return Err(nothing_to_do(format!(
            "{server} has timestamp version {offered} already"
        )));
    }
    // After a rotation of its key the version of a timestamp may fall.
    if publication.root_version > state.root_version {
        return Ok(());
    }
    if offered < *published {
        return Err(refused(anyhow::anyhow!(
            "timestamp version {offered} is older than version {published}, which {server} has published: devices would \
             take it for a rollback"
        )));
    }
    if offered == *published {
        return Err(refused(anyhow::anyhow!(
            "{server} has published timestamp version {offered} with other contents: somebody else published; bring this \
             repository up to date, or sign a newer timestamp with `fwsign refresh`"
        )));
    }
    Ok(())
}

/// The objects by SHA-256, and which of them is which file.
fn listing(publication: &Publication) -> (BTreeMap<String, Contents<'_>>, Value) {
    let (mut objects, mut files) = (BTreeMap::new(), BTreeMap::new());
    for (name, bytes) in &publication.metadata {
        let digest = sha256(bytes);
        files.insert(format!("{METADATA}/{name}"), digest.as_str().into());
        objects.insert(digest, Contents::Metadata(bytes));
    }
    for target in &publication.targets {
        let digest = hex::encode(&target.sha256);
        for name in &target.names {
            files.insert(format!("{TARGETS}/{name}"), digest.as_str().into());
        }
        objects.insert(digest, Contents::Target(target));
    }
    debug_assert!(files.contains_key(&format!("{METADATA}/{}", timestamp_name())));
    (objects, Value::Object(files))
}

fn upload(publication: &Publication, api: &Api, wanted: &Wanted<'_>, progress: &mut Progress) -> Outcome<()> {
    let mut advance = |bytes| progress.advance(bytes);
    let length = wanted.contents.length();
    let uploaded = match wanted.contents {
        Contents::Metadata(bytes) => {
            let mut read = |offset: u64, buffer: &mut [u8]| {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let rest = rest.and_then(|rest| rest.get(..buffer.len()));
                buffer.copy_from_slice(rest.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            };
            api.upload(wanted.sha256, length, wanted.offset, &mut read, &mut advance)
        }
        Contents::Target(target) => {
            let path = publication.target_source(target);
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            let mut read = |offset: u64, buffer: &mut [u8]| file.read_exact_at(buffer, offset);
            api.upload(wanted.sha256, length, wanted.offset, &mut read, &mut advance)
                .with_context(|| format!("uploading target {}", target.path))
        }
    };
    Ok(uploaded?)
}
