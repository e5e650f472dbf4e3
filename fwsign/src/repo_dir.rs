//! A repository directory: read whole, written so that no reader ever sees a half state.
//!
//! ```text
//! DIR/metadata/<N>.root.json  <N>.snapshot.json  <N>.targets.json  <N>.<role>.json  timestamp.json
//! DIR/targets/<dir>/<SHA-256>.<file>      and, for `tough`, DIR/targets/<SHA-256>.<dir>/<file>
//! DIR/.lock        one writer at a time          DIR/.staging/   a candidate, before it is moved into place
//! ```
//!
//! A candidate is staged and verified first. Then targets and versioned metadata are linked into place, which never
//! replaces anything, and `timestamp.json`, the only file that changes, is renamed last: a reader sees the repository
//! before or after, and a crash leaves one or the other.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fwmeta::client::{Cache, Client, ClientError, Fetch};
use fwmeta::layout;
use fwmeta::role::{RoleName, Root, Snapshot, Targets, Timestamp};
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;

const METADATA: &str = "metadata";
const TARGETS: &str = "targets";
const STAGING: &str = ".staging";

/// A repository directory.
#[derive(Debug, Clone)]
pub struct RepoDir {
    dir: PathBuf,
}

/// What a repository says at present, all of it verified.
#[derive(Debug)]
pub struct Current {
    /// The newest root.
    pub root: Root,
    /// The timestamp.
    pub timestamp: Timestamp,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// All targets roles that delegations reach.
    pub targets: BTreeMap<RoleName, Targets>,
}

/// Metadata of a directory for [`Client`].
#[derive(Debug, Clone)]
pub struct DirSource {
    metadata: PathBuf,
}

/// Keeps nothing between runs: whoever judges a repository starts from its root.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCache;

impl Fetch for DirSource {
    type Error = io::Error;

    fn fetch(&mut self, name: &str, max_length: u64) -> io::Result<Option<Vec<u8>>> {
        use std::io::Read;
        let file = match fs::File::open(self.metadata.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        if file.take(max_length.saturating_add(1)).read_to_end(&mut bytes)? as u64 > max_length {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{name} is longer than {max_length} bytes"),
            ));
        }
        Ok(Some(bytes))
    }
}

impl Cache for NoCache {
    type Error = Infallible;

    fn load(&mut self, _: &RoleName) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(None)
    }

    fn store(&mut self, _: &RoleName, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn remove(&mut self, _: &RoleName) -> Result<(), Infallible> {
        Ok(())
    }
}

impl RepoDir {
    /// The repository at `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Its metadata directory.
    pub fn metadata(&self) -> PathBuf {
        self.dir.join(METADATA)
    }

    /// Its targets directory.
    pub fn targets(&self) -> PathBuf {
        self.dir.join(TARGETS)
    }

    /// Where its metadata can be fetched by a client.
    pub fn source(&self) -> DirSource {
        DirSource {
            metadata: self.metadata(),
        }
    }

    /// Where a target lies.
    pub fn target_path(&self, path: &TargetPath, file: &TargetFile) -> PathBuf {
        self.targets().join(layout::target_file(path, digest(file)))
    }

    /// The oldest root version in the directory.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn oldest_root(&self) -> anyhow::Result<Vec<u8>> {
        let dir = self.metadata();
        let version = |name: &str| name.strip_suffix(".root.json")?.parse::<u64>().ok();
        let mut versions = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("repository {}", self.dir.display()))? {
            versions.extend(version(&entry?.file_name().to_string_lossy()));
        }
        let Some(oldest) = versions.into_iter().min() else {
            bail!(
                "repository {} has no root metadata: make one with `fwsign init`",
                self.dir.display()
            );
        };
        let path = dir.join(layout::metadata_name(&RoleName::root(), Some(oldest)));
        fs::read(&path).with_context(|| path.display().to_string())
    }

    /// The next version number of a role whose current one is `current`. Numbers that a crashed writer used are passed
    /// over, because published names never get other contents.
    pub fn next_version(&self, role: &RoleName, current: u64) -> u64 {
        let taken = |version: &u64| {
            self.metadata()
                .join(layout::metadata_name(role, Some(*version)))
                .exists()
        };
        let mut version = current.saturating_add(1);
        while taken(&version) {
            version = version.saturating_add(1);
        }
        version
    }

    /// Loads everything from the root `anchor` on, as devices would at the time `now`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn load(&self, anchor: &[u8], now: UtcSeconds) -> Result<Current, ClientError> {
        let mut client = Client::new(self.source(), NoCache, anchor, now)?;
        client.refresh()?;
        let targets = client
            .load_all()?
            .into_iter()
            .map(|(role, targets)| (role, targets.clone()))
            .collect();
        let trusted = client.trusted();
        match (trusted.timestamp(), trusted.snapshot()) {
            (Some(timestamp), Some(snapshot)) => Ok(Current {
                root: trusted.root().clone(),
                timestamp: timestamp.clone(),
                snapshot: snapshot.clone(),
                targets,
            }),
            // `refresh` has made both.
            _ => Err(ClientError::Missing {
                name: "timestamp.json".to_owned(),
            }),
        }
    }

    /// Loads what is to be signed anew. Expiry does not matter here: renewing what has expired is what signers do.
    ///
    /// # Errors
    /// When the repository does not verify otherwise.
    pub fn load_for_signing(&self) -> anyhow::Result<Current> {
        let before_everything = UtcSeconds(i64::MIN);
        let current = self.load(&self.oldest_root()?, before_everything);
        current.with_context(|| format!("repository {} does not verify", self.dir.display()))
    }

    /// Waits for the right to write.
    ///
    /// # Errors
    /// When another process is writing, or the directory cannot be made.
    pub fn lock(&self) -> anyhow::Result<Writer> {
        fwdurable::create_dir_all(&self.dir).with_context(|| format!("repository {}", self.dir.display()))?;
        let lock = fwdurable::Lock::try_exclusive(&self.dir.join(".lock"));
        let lock = lock.with_context(|| format!("locking {}", self.dir.display()))?;
        let Some(lock) = lock else {
            bail!(
                "repository {} is being written by another process: try again when it is done",
                self.dir.display()
            );
        };
        let staging = self.dir.join(STAGING);
        // What a crashed writer left was never visible to anybody.
        fwdurable::remove_tree(&staging).with_context(|| format!("removing {}", staging.display()))?;
        fwdurable::sweep_temporaries(&self.metadata())?;
        Ok(Writer {
            repo: self.clone(),
            staging: RepoDir::new(&staging),
            files: Vec::new(),
            _lock: lock,
        })
    }
}

/// Digest by which a target is stored: SHA-256, which we always write.
pub fn digest(file: &TargetFile) -> Option<&[u8]> {
    file.hashes.sha256.as_ref().map(<[u8; 32]>::as_slice)
}

/// The right to write a repository, and a candidate in the making.
#[derive(Debug)]
pub struct Writer {
    repo: RepoDir,
    staging: RepoDir,
    /// Files of the candidate relative to the repository, in the order in which they become visible.
    files: Vec<PathBuf>,
    _lock: fwdurable::Lock,
}

impl Writer {
    /// The candidate as a repository: the present metadata with the staged files over them.
    pub fn candidate(&self) -> &RepoDir {
        &self.staging
    }

    /// A file to write a payload to before its digest is known.
    ///
    /// # Errors
    /// When the staging directory cannot be made.
    pub fn scratch(&self) -> anyhow::Result<PathBuf> {
        let dir = self.staging.path();
        fwdurable::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        Ok(dir.join("payload"))
    }

    /// Stages a target from bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_target(&mut self, path: &TargetPath, file: &TargetFile, bytes: &[u8]) -> anyhow::Result<()> {
        let scratch = self.scratch()?;
        fs::write(&scratch, bytes).with_context(|| scratch.display().to_string())?;
        self.add_target_file(path, file, &scratch)
    }

    /// Stages a target that [`scratch`](Self::scratch) holds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_target_file(&mut self, path: &TargetPath, file: &TargetFile, scratch: &Path) -> anyhow::Result<()> {
        let digest = digest(file).context("a target without SHA-256")?;
        let name = Path::new(TARGETS).join(layout::target_file(path, Some(digest)));
        // `tough` puts the digest before the whole path instead of its last part.
        let tough = Path::new(TARGETS).join(format!("{}.{path}", fwmeta::hex::encode(digest)));
        let (first, second) = (self.stage(&name)?, self.stage(&tough)?);
        fs::rename(scratch, &first).with_context(|| first.display().to_string())?;
        if first != second && !second.exists() {
            fs::hard_link(&first, &second).with_context(|| second.display().to_string())?;
        }
        Ok(())
    }

    /// Stages a metadata file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_metadata(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.stage(&Path::new(METADATA).join(name))?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    fn stage(&mut self, name: &Path) -> anyhow::Result<PathBuf> {
        let path = self.staging.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        if !self.files.iter().any(|file| file == name) {
            self.files.push(name.to_owned());
        }
        Ok(path)
    }

    /// Completes the candidate with the present metadata, so that it can be judged as a whole.
    ///
    /// # Errors
    /// When a file cannot be linked.
    pub fn complete(&self) -> anyhow::Result<()> {
        let (from, to) = (self.repo.metadata(), self.staging.metadata());
        if !from.exists() {
            return Ok(());
        }
        fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
        for entry in fs::read_dir(&from).with_context(|| from.display().to_string())? {
            let name = entry?.file_name();
            if !to.join(&name).exists() {
                fs::hard_link(from.join(&name), to.join(&name)).with_context(|| to.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Makes the candidate the repository: durable, and visible at one instant.
    ///
    /// # Errors
    /// When a file cannot be written, or a versioned file with other contents is already there; the repository is then
    /// as it was for every reader.
    pub fn commit(mut self) -> anyhow::Result<()> {
        let timestamp = Path::new(METADATA).join(layout::metadata_name(&RoleName::timestamp(), None));
        self.files.retain(|file| *file != timestamp);
        fwdurable::sync_tree(self.staging.path()).context("syncing the candidate")?;
        for file in &self.files {
            self.link(file)
                .with_context(|| format!("writing {}", self.repo.path().join(file).display()))?;
        }
        let (staged, visible) = (self.staging.path().join(&timestamp), self.repo.path().join(&timestamp));
        fwdurable::rename(&staged, &visible).with_context(|| format!("writing {}", visible.display()))?;
        fwdurable::remove_tree(self.staging.path()).context("removing the staging directory")
    }

    fn link(&self, file: &Path) -> anyhow::Result<()> {
        let (staged, visible) = (self.staging.path().join(file), self.repo.path().join(file));
        let parent = visible.parent().unwrap_or(self.repo.path());
        fwdurable::create_dir_all(parent)?;
        match fs::hard_link(&staged, &visible) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !same_contents(&staged, &visible)? {
                    bail!("it exists with other contents, and published files never change");
                }
                Ok(())
            }
            other => {
                other?;
                Ok(fwdurable::sync_dir(parent)?)
            }
        }
    }
}

fn same_contents(a: &Path, b: &Path) -> io::Result<bool> {
    use std::io::Read;
    if fs::metadata(a)?.len() != fs::metadata(b)?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (
        io::BufReader::new(fs::File::open(a)?),
        io::BufReader::new(fs::File::open(b)?),
    );
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let length = a.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        match b.read_exact(&mut right[..length]) {
            Ok(()) if left[..length] == right[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
