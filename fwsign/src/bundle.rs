//! Makes an offline bundle of one release: what a device would fetch for it, found by being that device.
//!
//! ```text
//! repository  --client of fwmeta, from root 1, recorded-->  metadata
//!             --manifest, what it names-->                  targets      -> FILE.tmp -> judged as a device does -> FILE
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fwbundle::{Bundle, METADATA, TARGETS, Writer};
use fwmeta::client::{Client, Fetch, MemoryCache, Release};
use fwmeta::layout;
use fwmeta::limits;
use fwmeta::manifest::{Manifest, SemVer};
use fwmeta::role::RoleName;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

use crate::bounded;
use crate::example_keys;
use crate::failure::{Outcome, judged, nothing_to_do};
use crate::repo_dir::{DirSource, RepoDir, digest, root_name};

/// Which release.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Product.
    pub product: String,
    /// Version; the newest when absent.
    pub version: Option<SemVer>,
    /// Channel.
    pub channel: String,
}

/// What goes into a bundle.
#[derive(Debug)]
pub struct Contents {
    /// The release.
    pub release: Release,
    /// When the first of its metadata expires: devices take the bundle until then.
    pub expires: UtcSeconds,
    /// Object names and contents: roots in ascending order, the others by their names.
    metadata: Vec<(String, Vec<u8>)>,
    /// The manifest, then what it names.
    targets: Vec<(TargetPath, TargetFile)>,
}

/// A source that keeps what it gave.
struct Recorder {
    source: DirSource,
    given: BTreeMap<String, Vec<u8>>,
}

impl Fetch for Recorder {
    type Error = io::Error;

    fn fetch(&mut self, name: &str, max_length: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.source.fetch(name, max_length)?;
        if let Some(bytes) = &bytes {
            self.given.insert(name.to_owned(), bytes.clone());
        }
        Ok(bytes)
    }
}

/// Finds what a device that knows nothing but the oldest root needs for a release.
///
/// # Errors
/// When the repository does not verify, or there is no such release.
pub fn collect(repo: &RepoDir, wish: &Wish, now: UtcSeconds, allow_example_keys: bool) -> Outcome<Contents> {
    let oldest = repo.oldest_root()?;
    let recorder = Recorder {
        source: repo.source(),
        given: BTreeMap::new(),
    };
    let verifies = || format!("devices would refuse repository {}", repo.path().display());
    let mut client = Client::new(recorder, MemoryCache::default(), &oldest, now)
        .with_context(verifies)
        .map_err(judged)?;
    client.refresh().with_context(verifies).map_err(judged)?;
    let mut listed = client.releases(&wish.product).with_context(verifies).map_err(judged)?;
    let suits = |release: &Release| {
        release.fw.channel == wish.channel
            && wish
                .version
                .as_ref()
                .is_none_or(|version| *version == release.fw.version)
    };
    listed.found.retain(suits);
    let Some(release) = listed.found.into_iter().max_by_key(|release| release.fw.sequence) else {
        if let Some(problem) = listed.problems.into_iter().next() {
            return Err(judged(anyhow::Error::new(problem).context(verifies())));
        }
        let version = wish
            .version
            .as_ref()
            .map(|version| format!(" {version}"))
            .unwrap_or_default();
        return Err(nothing_to_do(format!(
            "repository {} has no release {}{version} in channel {}",
            repo.path().display(),
            wish.product,
            wish.channel
        )));
    };
    let manifest = read_manifest(repo, &release).map_err(judged)?;
    let mut targets = vec![(release.path.clone(), release.file.clone())];
    for path in needed(&manifest) {
        if targets.iter().any(|(other, _)| *other == path) {
            continue;
        }
        let file = client.find_target(&path).with_context(verifies).map_err(judged)?;
        let file = file.with_context(|| format!("{} names {path}, which no role lists", release.path));
        targets.push((path, file.map_err(judged)?));
    }
    let trusted = client.trusted();
    let root = trusted.root().clone();
    let files = trusted.snapshot().into_iter().flat_map(|snapshot| snapshot.meta.keys());
    let role = |file: &String| RoleName::parse(file.strip_suffix(".json")?).ok();
    let roles: Vec<_> = files
        .filter_map(role)
        .filter_map(|role| trusted.targets(&role))
        .collect();
    let mut expiries: Vec<_> = roles.iter().map(|targets| targets.expires).collect();
    expiries.push(root.expires);
    expiries.extend(trusted.timestamp().map(|timestamp| timestamp.expires));
    expiries.extend(trusted.snapshot().map(|snapshot| snapshot.expires));
    if !allow_example_keys && let Some(keyid) = example_keys::trusted_by(&root, roles) {
        return Err(example_keys::refusal(&keyid, repo.path()));
    }
    let expires = expiries.into_iter().min().unwrap_or(now);
    let (recorder, _) = client.into_parts();
    let mut others = recorder.given;
    let versions = repo.root_versions().context("listing roots")?;
    let mut metadata = Vec::new();
    for version in versions.into_iter().filter(|version| *version <= root.version) {
        let name = root_name(version);
        let bytes = match others.remove(&name) {
            Some(bytes) => bytes,
            None => bounded::read(&repo.metadata().join(&name), limits::ROOT_BYTES).with_context(|| name.clone())?,
        };
        metadata.push((name, bytes));
    }
    metadata.extend(others);
    Ok(Contents {
        release,
        expires,
        metadata,
        targets,
    })
}

/// The targets that a device needs besides the manifest, in the order in which it does.
fn needed(manifest: &Manifest) -> Vec<TargetPath> {
    let payloads = manifest
        .components
        .iter()
        .map(|component| component.payload.target.clone());
    let migrations = manifest.settings.iter().flat_map(|settings| &settings.migrations);
    payloads
        .chain(migrations.map(|migration| migration.target.clone()))
        .collect()
}

fn read_manifest(repo: &RepoDir, release: &Release) -> anyhow::Result<Manifest> {
    let local = repo.target_path(&release.path, &release.file);
    let bytes = bounded::read(&local, limits::MANIFEST_BYTES).with_context(|| local.display().to_string())?;
    release
        .file
        .check_bytes(&bytes)
        .with_context(|| local.display().to_string())?;
    Manifest::parse(&bytes).with_context(|| local.display().to_string())
}

impl Contents {
    /// Writes the bundle to `path`, replacing what is there once the new one was judged, and gives its length and digests.
    ///
    /// # Errors
    /// When the repository has other contents than it says, a name does not fit, or the file system fails.
    pub fn write(&self, repo: &RepoDir, path: &Path, now: UtcSeconds) -> Outcome<TargetFile> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let temporary = tempfile::Builder::new().prefix(".bundle-").tempfile_in(&dir);
        let temporary = temporary.with_context(|| format!("making a file in {}", dir.display()))?;
        self.fill(repo, temporary.as_file())
            .with_context(|| format!("writing the bundle {}", path.display()))?;
        let file = self
            .judge(temporary.path(), now)
            .context("devices would refuse the bundle")
            .map_err(judged)?;
        let keep = || -> io::Result<()> {
            use std::os::unix::fs::PermissionsExt;
            let file = temporary.as_file();
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.sync_all()?;
            fwdurable::rename(temporary.path(), path)
        };
        keep().with_context(|| format!("writing the bundle {}", path.display()))?;
        // Its name has gone to the bundle.
        let _ = temporary.into_temp_path().keep();
        Ok(file)
    }

    fn fill(&self, repo: &RepoDir, output: &File) -> anyhow::Result<()> {
        let mut writer = Writer::new(BufWriter::new(output))?;
        for (name, bytes) in &self.metadata {
            writer.add(&format!("{METADATA}{name}"), bytes.len() as u64, &mut bytes.as_slice())?;
        }
        for (path, file) in &self.targets {
            let local = repo.target_path(path, file);
            let mut input = File::open(&local).with_context(|| local.display().to_string())?;
            let name = format!("{TARGETS}{}", layout::target_file(path, digest(file)));
            writer.add(&name, file.length, &mut input)?;
        }
        writer.finish()?;
        Ok(())
    }

    /// Takes the bundle as the device farthest behind would.
    fn judge(&self, path: &Path, now: UtcSeconds) -> anyhow::Result<TargetFile> {
        let bundle = Bundle::open(path)?;
        let (_, oldest) = self.metadata.first().context("there is no root")?;
        let mut device = Client::new(bundle.metadata(), MemoryCache::default(), oldest, now)?;
        device.refresh()?;
        let releases = device.releases(&self.release.fw.product)?;
        ensure!(
            releases.found.iter().any(|release| release.path == self.release.path),
            "it does not show {}",
            self.release.path
        );
        for (path, _) in &self.targets {
            let found = device
                .find_target(path)?
                .with_context(|| format!("it does not list {path}"))?;
            let prefixed = device.trusted().root().consistent_snapshot;
            bundle.target(path, &found, prefixed, &mut |_, _| true)?;
        }
        let mut hasher = fwmeta::target::Hasher::new();
        let mut input = File::open(path)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match io::Read::read(&mut input, &mut buffer)? {
                0 => break,
                length => hasher.update(&buffer[..length]),
            }
        }
        let (length, hashes) = hasher.finish();
        Ok(TargetFile {
            length,
            hashes,
            custom: None,
            extra: Default::default(),
        })
    }
}
