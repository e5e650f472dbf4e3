//! Writes a repository directory so that no reader ever sees a half state.
//!
//! ```text
//! stage in DIR/.staging  ->  judge  ->  sync  ->  link targets, versioned metadata, roots  ->  rename timestamp.json
//!                                                 ^ never replaces anything                    ^ the switch
//! ```
//!
//! `timestamp.json` is the only file that changes: a reader sees the repository before or after, and a crash leaves one
//! or the other, with at most some files that nothing leads to. A new repository appears whole, by one rename of its
//! metadata directory.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fwmeta::layout;
use fwmeta::role::RoleName;
use fwmeta::target::{Hasher, TargetFile, TargetPath};

use crate::repo_dir::{METADATA, RepoDir, TARGETS, digest};

const STAGING: &str = ".staging";
/// Time to wait for another writer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The right to write a repository, and a candidate in the making. The candidate is removed when it is dropped.
#[derive(Debug)]
pub struct Writer {
    repo: RepoDir,
    staging: RepoDir,
    /// Files of the candidate relative to the repository.
    files: BTreeSet<PathBuf>,
    _lock: fwdurable::Lock,
}

/// Names under which a target is stored, relative to the targets directory: the usual one first, and the one that
/// `tough` asks for, with the digest before the whole path instead of its last part.
pub fn target_names(path: &TargetPath, digest: &[u8]) -> Vec<String> {
    let usual = layout::target_file(path, Some(digest));
    let tough = format!("{}.{path}", fwmeta::hex::encode(digest));
    if usual == tough {
        vec![usual]
    } else {
        vec![usual, tough]
    }
}

impl Writer {
    /// Waits for the right to write `repo`, whose directory is made if need be.
    ///
    /// # Errors
    /// When another process is writing, or the directory cannot be made.
    pub fn lock(repo: &RepoDir) -> anyhow::Result<Self> {
        let dir = repo.path();
        fwdurable::create_dir_all(dir).with_context(|| format!("repository {}", dir.display()))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let lock = loop {
            let lock = fwdurable::Lock::try_exclusive(&dir.join(".lock"));
            match lock.with_context(|| format!("locking {}", dir.display()))? {
                Some(lock) => break lock,
                None if Instant::now() >= deadline => bail!(
                    "repository {} is being written by another process: try again when it is done",
                    dir.display()
                ),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let staging = dir.join(STAGING);
        // What a crashed writer left was never visible to anybody.
        fwdurable::remove_tree(&staging).with_context(|| format!("removing {}", staging.display()))?;
        let metadata = repo.metadata();
        fwdurable::sweep_temporaries(&metadata).with_context(|| format!("sweeping {}", metadata.display()))?;
        Ok(Self {
            repo: repo.clone(),
            staging: RepoDir::new(&staging),
            files: BTreeSet::new(),
            _lock: lock,
        })
    }

    /// The candidate as a repository: after [`complete`](Self::complete), the present metadata with the staged files over
    /// them.
    pub fn candidate(&self) -> &RepoDir {
        &self.staging
    }

    /// A file to write a payload to before its digest is known.
    ///
    /// # Errors
    /// When the staging directory cannot be made.
    pub fn scratch(&self) -> anyhow::Result<PathBuf> {
        let dir = self.staging.path();
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
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
        self.place(scratch, &target_names(path, digest))
    }

    /// Stages a copy of the target at `source` under `names`, and checks it on the way. `progress` is told the bytes of
    /// each piece.
    ///
    /// # Errors
    /// When it cannot be read or written, or is not `file`.
    pub fn copy_target(
        &mut self,
        names: &[String],
        file: &TargetFile,
        source: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let scratch = self.scratch()?;
        let mut input = fs::File::open(source)?;
        let mut output = fs::File::create(&scratch).with_context(|| scratch.display().to_string())?;
        let mut hasher = Hasher::for_checking(&file.hashes);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let length = input.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
            output
                .write_all(&buffer[..length])
                .with_context(|| scratch.display().to_string())?;
            progress(length as u64);
        }
        let (length, hashes) = hasher.finish();
        file.check(length, &hashes)?;
        self.place(&scratch, names)
    }

    /// Gives a finished file its names in the candidate.
    fn place(&mut self, scratch: &Path, names: &[String]) -> anyhow::Result<()> {
        let mut source = scratch.to_owned();
        for name in names {
            let staged = self.stage(&Path::new(TARGETS).join(name))?;
            let placed = if source == scratch {
                fs::rename(&source, &staged)
            } else {
                fs::hard_link(&source, &staged)
            };
            placed.with_context(|| staged.display().to_string())?;
            source = staged;
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
        self.files.insert(name.to_owned());
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
        // Symbolic, so that syncing the candidate passes over them.
        let from = std::path::absolute(&from).with_context(|| from.display().to_string())?;
        for entry in fs::read_dir(&from).with_context(|| from.display().to_string())? {
            let name = entry?.file_name();
            match std::os::unix::fs::symlink(from.join(&name), to.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.with_context(|| to.join(&name).display().to_string())?,
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
        let (staged, visible) = (self.staging.metadata(), self.repo.metadata());
        let timestamp = layout::metadata_name(&RoleName::timestamp(), None);
        fwdurable::sync_tree(self.staging.path()).context("syncing the candidate")?;
        let mut files: Vec<_> = std::mem::take(&mut self.files).into_iter().collect();
        files.sort_by_key(|file| rank(file));
        let (staged, visible) = if visible.exists() {
            files.retain(|file| *file != Path::new(METADATA).join(&timestamp));
            (staged.join(&timestamp), visible.join(&timestamp))
        } else {
            // Nobody reads it yet: all metadata appear at once, and a crash before leaves no half repository.
            files.retain(|file| !file.starts_with(METADATA));
            (staged, visible)
        };
        self.link_all(&files)?;
        fwdurable::rename(&staged, &visible).with_context(|| format!("writing {}", visible.display()))
    }

    fn link_all(&self, files: &[PathBuf]) -> anyhow::Result<()> {
        let mut dirs = BTreeSet::new();
        for file in files {
            let visible = self.repo.path().join(file);
            let dir = visible.parent().unwrap_or(self.repo.path());
            if !dirs.contains(dir) {
                fwdurable::create_dir_all(dir).with_context(|| dir.display().to_string())?;
                dirs.insert(dir.to_owned());
            }
            self.link(file, &visible)
                .with_context(|| format!("writing {}", visible.display()))?;
        }
        for dir in dirs {
            fwdurable::sync_dir(&dir).with_context(|| format!("syncing {}", dir.display()))?;
        }
        Ok(())
    }

    fn link(&self, file: &Path, visible: &Path) -> anyhow::Result<()> {
        let staged = self.staging.path().join(file);
        match fs::hard_link(&staged, visible) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !same_contents(&staged, visible)? {
                    bail!("it exists with other contents, and published files never change");
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

impl Drop for Writer {
    /// Also of a candidate that was refused. What stays is removed by the next writer.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.staging.path());
    }
}

/// The order in which files become visible: whoever sees one finds what it announces. Roots come late, because a new one
/// may end the keys of the timestamp that is still there.
fn rank(file: &Path) -> u8 {
    if file.starts_with(TARGETS) {
        0
    } else if file.to_string_lossy().ends_with(".root.json") {
        2
    } else {
        1
    }
}

/// Whether two files have the same contents.
///
/// # Errors
/// Any error of the file system.
pub fn same_contents(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (fs::File::open(a)?, fs::File::open(b)?);
    let length = a.metadata()?.len();
    if length != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut rest = length;
    while rest > 0 {
        let piece = usize::try_from(rest).unwrap_or(usize::MAX).min(left.len());
        a.read_exact(&mut left[..piece])?;
        b.read_exact(&mut right[..piece])?;
        if left[..piece] != right[..piece] {
            return Ok(false);
        }
        rest -= piece as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn roots_come_after_what_they_could_shut_out() {
        let mut files = [
            "metadata/2.root.json",
            "metadata/7.a.json",
            "targets/p/x",
            "metadata/7.snapshot.json",
        ]
        .map(PathBuf::from);
        files.sort_by_key(|file| rank(file));
        assert_eq!(
            files,
            [
                "targets/p/x",
                "metadata/7.a.json",
                "metadata/7.snapshot.json",
                "metadata/2.root.json"
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn contents_are_compared_to_the_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let long = vec![7; 200_000];
        let mut other = long.clone();
        other[199_999] = 8;
        let a = file("a", &long);
        assert!(same_contents(&a, &file("b", &long)).unwrap());
        assert!(!same_contents(&a, &file("c", &other)).unwrap());
        assert!(!same_contents(&a, &file("d", &long[1..])).unwrap());
        assert!(same_contents(&file("e", b""), &file("f", b"")).unwrap());
    }

    #[test]
    fn a_new_repository_appears_whole_and_an_old_one_changes_by_its_timestamp() {
        let dir = tempfile::tempdir().unwrap();
        let repo = RepoDir::new(&dir.path().join("repo"));
        let mut writer = Writer::lock(&repo).unwrap();
        writer.add_metadata("timestamp.json", b"1").unwrap();
        writer.add_metadata("1.root.json", b"root").unwrap();
        assert!(!repo.metadata().exists());
        writer.commit().unwrap();
        assert_eq!(fs::read(repo.metadata().join("timestamp.json")).unwrap(), b"1");

        // Dropped: nothing changes. Committed with a conflict: nothing that leads anywhere changes.
        let mut writer = Writer::lock(&repo).unwrap();
        writer.add_metadata("timestamp.json", b"2").unwrap();
        drop(writer);
        let mut writer = Writer::lock(&repo).unwrap();
        writer.add_metadata("timestamp.json", b"2").unwrap();
        writer.add_metadata("1.root.json", b"other").unwrap();
        assert!(format!("{:#}", writer.commit().unwrap_err()).contains("other contents"));
        assert_eq!(fs::read(repo.metadata().join("timestamp.json")).unwrap(), b"1");
        assert_eq!(fs::read(repo.metadata().join("1.root.json")).unwrap(), b"root");
        assert!(!repo.path().join(STAGING).exists());

        let mut writer = Writer::lock(&repo).unwrap();
        writer.add_metadata("timestamp.json", b"2").unwrap();
        writer.add_metadata("1.root.json", b"root").unwrap();
        writer.complete().unwrap();
        writer.commit().unwrap();
        assert_eq!(fs::read(repo.metadata().join("timestamp.json")).unwrap(), b"2");
    }
}
