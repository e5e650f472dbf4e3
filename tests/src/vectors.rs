//! The frozen repositories below `tests/vectors`, made by other implementations.

use std::path::{Path, PathBuf};

use crate::repo_sim::RepoSim;

/// A frozen repository.
#[derive(Debug)]
pub struct Vector {
    /// Maker and name.
    pub name: String,
    dir: PathBuf,
}

impl Vector {
    /// All of one maker.
    ///
    /// # Panics
    /// When there are none: they are part of the source.
    pub fn all(maker: &str) -> Vec<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(maker);
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut all: Vec<_> = entries
            .flatten()
            .map(|entry| Self {
                name: format!("{maker}/{}", entry.file_name().to_string_lossy()),
                dir: entry.path(),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!all.is_empty(), "no vectors in {}", dir.display());
        all
    }

    /// A simulator that serves exactly these files, under the names that clients ask for.
    pub fn serve(&self) -> RepoSim {
        let mut sim = RepoSim::new();
        sim.objects.clear();
        self.load(&mut sim, &self.dir);
        sim
    }

    fn load(&self, sim: &mut RepoSim, dir: &Path) {
        let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                self.load(sim, &path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let name = path.strip_prefix(&self.dir).unwrap_or(&path).to_string_lossy();
            sim.objects.insert(name.into_owned(), bytes);
        }
    }
}
