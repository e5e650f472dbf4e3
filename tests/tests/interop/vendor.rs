//! A vendor who uses the real fwsign.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwtests::bins::binary;
use tempfile::TempDir;

use crate::peers::run;

/// Target paths and their contents.
pub type Targets = BTreeMap<String, Vec<u8>>;

/// Keys and a repository with the products `router` and `camera`.
pub struct Vendor {
    dir: TempDir,
}

impl Vendor {
    pub fn new() -> Self {
        let vendor = Self {
            dir: TempDir::new().expect("a temporary directory"),
        };
        fs::create_dir(vendor.keys()).expect("a directory for keys");
        for name in ["root-1", "root-2", "targets", "online", "router", "camera"] {
            vendor.fwsign("keygen").arg("--unencrypted").arg(vendor.key(name)).ok();
        }
        let mut init = vendor.fwsign("init");
        init.arg(vendor.repo());
        for (option, name) in [
            ("--root-key", "root-1"),
            ("--root-key", "root-2"),
            ("--targets-key", "targets"),
            ("--snapshot-key", "online"),
            ("--timestamp-key", "online"),
        ] {
            init.arg(option).arg(vendor.key(name));
        }
        for product in ["router", "camera"] {
            init.arg("--product")
                .arg(format!("{product}={}", vendor.key(product).display()));
        }
        init.ok();
        vendor
    }

    /// The repository.
    pub fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// What its devices leave the factory with.
    pub fn root(&self) -> PathBuf {
        self.repo().join("metadata/1.root.json")
    }

    /// Releases an image, and returns the targets of that release.
    pub fn release(&self, product: &str, version: &str, image: &[u8]) -> Targets {
        let path = self.dir.path().join("image");
        fs::write(&path, image).expect("an image");
        let mut add = self.fwsign("release");
        add.arg("add").arg(self.repo()).arg("--image").arg(path);
        add.args([
            "--product",
            product,
            "--version",
            version,
            "--hardware",
            "rev-b",
            "--keys-dir",
        ]);
        add.arg(self.keys()).ok();
        let targets = self.targets(product, version);
        assert!(targets.len() >= 2, "a manifest and a payload: {:?}", targets.keys());
        targets
    }

    /// Renews snapshot and timestamp.
    pub fn refresh(&self) {
        self.fwsign("refresh")
            .arg(self.repo())
            .arg("--keys-dir")
            .arg(self.keys())
            .ok();
    }

    /// Publishes what is new to a server.
    pub fn publish(&self, url: &str, token_file: &Path) {
        let mut publish = self.fwsign("publish");
        publish.arg(self.repo()).args(["--server", url, "--token-file"]);
        publish.arg(token_file).ok();
    }

    /// The targets of a release, as the newest metadata of its product describe them.
    fn targets(&self, product: &str, version: &str) -> Targets {
        let signed = newest(&self.repo().join("metadata"), product);
        let listed = signed["targets"].as_object().expect("targets").iter();
        let prefix = format!("{product}/{version}/");
        listed
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(path, target)| {
                let sha256 = target["hashes"]["sha256"].as_str().expect("a digest");
                let bytes = fs::read(target_file(&self.repo(), path, sha256)).expect("the file of a target");
                (path.clone(), bytes)
            })
            .collect()
    }

    fn fwsign(&self, command: &str) -> Fwsign {
        let mut fwsign = Command::new(binary("fwsign"));
        fwsign.arg(command);
        Fwsign(fwsign)
    }

    fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    fn key(&self, name: &str) -> PathBuf {
        self.keys().join(format!("{name}.pem"))
    }
}

/// Where the file of a target lies.
pub fn target_file(repo: &Path, path: &str, sha256: &str) -> PathBuf {
    let (dir, name) = path.rsplit_once('/').expect("target paths have directories");
    repo.join("targets").join(dir).join(format!("{sha256}.{name}"))
}

/// The signed part of the newest metadata of a role.
fn newest(metadata: &Path, role: &str) -> serde_json::Value {
    let suffix = format!(".{role}.json");
    let names = fs::read_dir(metadata).expect("metadata").flatten();
    let versions = names.filter_map(|name| name.file_name().to_str()?.strip_suffix(&suffix)?.parse::<u64>().ok());
    let newest = versions.max().unwrap_or_else(|| panic!("no metadata of {role}"));
    let bytes = fs::read(metadata.join(format!("{newest}{suffix}"))).expect("metadata of the role");
    let mut value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    value["signed"].take()
}

/// A command of fwsign that must succeed.
struct Fwsign(Command);

impl Fwsign {
    fn arg(&mut self, argument: impl AsRef<std::ffi::OsStr>) -> &mut Self {
        self.0.arg(argument);
        self
    }

    fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> &mut Self {
        self.0.args(arguments);
        self
    }

    fn ok(&mut self) {
        run(&mut self.0).unwrap_or_else(|said| panic!("{:?}: {said}", self.0));
    }
}
