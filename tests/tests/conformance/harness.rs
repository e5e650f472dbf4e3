//! Drives `fwagent tuf` as the public conformance suite drives a client: one process a command, a directory of trusted
//! metadata, a server whose requests are recorded.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fwmeta::json::Doc;
use fwmeta::time::UtcSeconds;
use fwtests::bins::binary;
use fwtests::repo_sim::{DAY, RepoSim};
use fwtests::sim_server::SimServer;

/// A client and its repository.
pub struct Case {
    pub server: SimServer,
    dir: tempfile::TempDir,
    clock: Option<String>,
}

/// The real time: the binary has no other.
pub fn now() -> UtcSeconds {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    UtcSeconds(since.as_secs().try_into().unwrap())
}

/// `days` from now.
pub fn in_days(days: i64) -> UtcSeconds {
    now().plus_seconds(days * DAY)
}

impl Case {
    /// A fresh repository and a client that trusts version 1 of its root.
    pub fn new() -> Self {
        Self::of(RepoSim::expiring(in_days(30)))
    }

    pub fn of(mut sim: RepoSim) -> Self {
        let root = sim.served("root", 1).clone();
        let case = Self::uninitialised(sim);
        assert_eq!(case.init(&root), 0);
        assert!(case.requests().is_empty(), "init asks for nothing");
        case
    }

    pub fn uninitialised(sim: RepoSim) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["metadata", "targets"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self {
            server: SimServer::start(sim),
            dir,
            clock: None,
        }
    }

    pub fn repo(&self) -> std::sync::MutexGuard<'_, RepoSim> {
        self.server.repo()
    }

    /// From now on commands see this time, in the notation of libfaketime. `false` when the library is missing.
    #[must_use]
    pub fn set_clock(&mut self, clock: &str) -> bool {
        self.clock = Some(clock.to_owned());
        faketime_library().is_some()
    }

    pub fn metadata_dir(&self) -> PathBuf {
        self.dir.path().join("metadata")
    }

    pub fn init(&self, root: &[u8]) -> i32 {
        let file = self.dir.path().join("initial_root.json");
        std::fs::write(&file, root).unwrap();
        self.tuf(&["init", file.to_str().unwrap()])
    }

    pub fn refresh(&self) -> i32 {
        self.tuf(&["--metadata-url", &self.server.metadata_url(), "refresh"])
    }

    pub fn download(&self, names: &[&str]) -> i32 {
        let (metadata, targets) = (self.server.metadata_url(), self.server.targets_url());
        let dir = self.dir.path().join("targets");
        let mut args = vec!["--metadata-url", &metadata];
        for name in names {
            args.extend(["--target-name", name]);
        }
        args.extend([
            "--target-dir",
            dir.to_str().unwrap(),
            "--target-base-url",
            &targets,
            "download",
        ]);
        self.tuf(&args)
    }

    fn tuf(&self, args: &[&str]) -> i32 {
        let metadata = self.metadata_dir();
        let args = [&["--metadata-dir", metadata.to_str().unwrap()], args].concat();
        let output = tuf(&args, self.clock.as_deref());
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1)), "{args:?}: {output:?}");
        if code == Some(1) {
            // Shown when the test fails.
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
        code.unwrap_or(-1)
    }

    /// Versions of what is trusted, by file name.
    pub fn trusted(&self) -> Vec<(String, u64)> {
        let mut trusted: Vec<_> = files(&self.metadata_dir())
            .into_iter()
            .map(|(path, bytes)| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let name = name
                    .strip_suffix(".json")
                    .unwrap_or_else(|| panic!("unexpected file {name}"));
                let doc = Doc::parse(&bytes).unwrap();
                let version = doc
                    .root()
                    .get("signed")
                    .unwrap()
                    .get("version")
                    .unwrap()
                    .as_u64()
                    .unwrap();
                (name.to_owned(), version)
            })
            .collect();
        trusted.sort();
        trusted
    }

    /// What is trusted are exactly these versions.
    pub fn assert_trusted(&self, expected: &[(&str, u64)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, version)| ((*name).to_owned(), *version))
            .collect();
        assert_eq!(self.trusted(), expected);
    }

    /// The trusted metadata of a role, byte for byte.
    pub fn stored(&self, role: &str) -> Vec<u8> {
        std::fs::read(self.metadata_dir().join(format!("{role}.json"))).unwrap()
    }

    /// Contents of the downloaded files, sorted.
    pub fn downloaded(&self) -> Vec<Vec<u8>> {
        let mut contents: Vec<_> = files(&self.dir.path().join("targets"))
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        contents.sort();
        contents
    }

    /// Names of metadata and targets asked for since the last call, in order.
    pub fn requests(&self) -> Vec<String> {
        let log = self.repo().take_log();
        log.iter()
            .map(|name| name.strip_prefix("metadata/").unwrap_or(name).to_owned())
            .collect()
    }
}

/// Files directly in `dir`, which has nothing else.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect()
}

/// Runs `fwagent tuf`, with the clock preloaded if one is given.
pub fn tuf(args: &[&str], clock: Option<&str>) -> Output {
    let mut command = Command::new(binary("fwagent"));
    command
        .arg("tuf")
        .args(args)
        .env("NO_PROXY", "127.0.0.1")
        .env("TZ", "UTC");
    if let (Some(clock), Some(library)) = (clock, faketime_library()) {
        command.env("LD_PRELOAD", library).env("FAKETIME", clock);
    }
    command.output().unwrap()
}

/// Where Debian and its relatives install libfaketime, or what `FAKETIME_LIBRARY` says; `None` when it is not there.
pub fn faketime_library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FAKETIME_LIBRARY") {
        return Some(PathBuf::from(path)).filter(|path| path.exists());
    }
    let dirs = std::fs::read_dir("/usr/lib").ok()?;
    dirs.flatten()
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists())
}
