//! Interoperability over real sockets: clients of other people follow a repository made by fwsign and served by fwserve,
//! and our client follows repositories made by other people.
//!
//! The peers are python-tuf, tuf-js and tuftool, installed by `interop/setup.sh`. A test whose peer is not installed is
//! skipped, and says so; with `CI=true` or `FWTESTS_REQUIRE_TOOLS=1` it fails.
#![allow(clippy::unwrap_used)]

#[path = "interop/peers.rs"]
mod peers;
#[path = "interop/server.rs"]
mod server;
#[path = "interop/vendor.rs"]
mod vendor;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwtests::bins::binary;
use peers::{Client, Device, installed, run, script};
use server::Server;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vendor::{Targets, Vendor};

/// The device fetches these targets with these contents; returns the version of its timestamp.
fn fetches(device: &Device, url: &str, targets: &Targets) -> Option<u64> {
    let paths: Vec<&str> = targets.keys().map(String::as_str).collect();
    let fetched = device
        .fetch(url, &paths)
        .unwrap_or_else(|said| panic!("{paths:?}: {said}"));
    assert_eq!(fetched.files.len(), targets.len());
    for (path, bytes) in targets {
        assert!(fetched.files[path] == *bytes, "{path} has other contents");
    }
    fetched.timestamp
}

/// An image that does not compress to nothing.
fn image(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(200_000).collect()
}

/// The life of a device with this client that belongs to a vendor who publishes by fwsign to fwserve.
fn follows_our_repository(client: Client) {
    let Some(program) = client.program() else { return };
    let vendor = Vendor::new();
    let device = Device::new(client, &program, &vendor.root());
    let served = TempDir::new().unwrap();
    let (repo, token) = (served.path().join("repo"), served.path().join("token"));
    let server = Server::taking(served.path(), &vendor.root());
    let url = server.url.as_str();

    let mut targets = vendor.release("router", "1.0.0+build.5", &image(1));
    vendor.publish(url, &token);
    let first = fetches(&device, url, &targets);
    assert_eq!(first.is_none(), client == Client::Tuftool);

    targets.extend(vendor.release("router", "1.1.0", &image(2)));
    targets.extend(vendor.release("camera", "2.0.0-rc.1", &image(3)));
    vendor.publish(url, &token);
    let old_timestamp = fs::read(repo.join("metadata/timestamp.json")).unwrap();
    let second = fetches(&device, url, &targets);
    assert!(second > first || first.is_none(), "{first:?} {second:?}");

    vendor.refresh();
    vendor.publish(url, &token);
    let third = fetches(&device, url, &targets);
    assert!(third > second || first.is_none(), "{second:?} {third:?}");

    let absent = "router/9.9.9/manifest.json";
    refuses(&device, url, &[absent], &[absent, "no role has|was not found"]);
    let fresh = Device::new(client, &program, &vendor.root());
    refuses_other_contents(&fresh, url, &repo, &targets);
    if let Some(version) = second {
        let timestamp = repo.join("metadata/timestamp.json");
        let newest = fs::read(&timestamp).unwrap();
        fwdurable::write_file(&timestamp, &old_timestamp).unwrap();
        refuses(&device, url, &[], &[&format!("version {version} ")]);
        fwdurable::write_file(&timestamp, &newest).unwrap();
        fetches(&device, url, &targets);
    }
}

/// The device refuses, and for the right reason: it says all of this, where `|` separates what different clients say.
fn refuses(device: &Device, url: &str, targets: &[&str], reasons: &[&str]) {
    let said = device.fetch(url, targets).expect_err("the device must refuse");
    for reason in reasons {
        assert!(
            reason.split('|').any(|reason| said.contains(reason)),
            "no {reason:?} in: {said}"
        );
    }
}

/// A payload with a flipped bit, under both of its names; as a control, the same with the bit flipped back.
fn refuses_other_contents(device: &Device, url: &str, repo: &Path, targets: &Targets) {
    let sha256 = |bytes: &[u8]| fwmeta::hex::encode(&Sha256::digest(bytes));
    let (path, bytes) = targets
        .iter()
        .find(|(path, _)| !path.ends_with("manifest.json"))
        .unwrap();
    let (first, rest) = path.split_once('/').unwrap();
    let files = [
        vendor::target_file(repo, path, &sha256(bytes)),
        repo.join("targets")
            .join(format!("{}.{first}", sha256(bytes)))
            .join(rest),
    ];
    let mut other = bytes.clone();
    other[1000] ^= 1;
    for file in &files {
        fwdurable::write_file(file, &other).unwrap();
    }
    refuses(device, url, &[path], &[&sha256(bytes), &sha256(&other)]);
    for file in &files {
        fwdurable::write_file(file, bytes).unwrap();
    }
    fetches(device, url, targets);
}

#[test]
fn python_tuf_follows_our_repository() {
    follows_our_repository(Client::PythonTuf);
}

#[test]
fn tuf_js_follows_our_repository() {
    follows_our_repository(Client::TufJs);
}

#[test]
fn tuftool_follows_our_repository() {
    follows_our_repository(Client::Tuftool);
}

/// The control: what is asked of others, our client does.
#[test]
fn our_client_follows_our_repository() {
    follows_our_repository(Client::Fwagent);
}

/// A repository that another implementation makes, step by step.
struct Foreign {
    _dir: TempDir,
    /// The command to which a step is added.
    command: Vec<PathBuf>,
    repo: PathBuf,
}

impl Foreign {
    fn python_tuf() -> Option<Self> {
        let python = installed("python-tuf", "python/bin/python")?;
        let dir = TempDir::new().unwrap();
        let repo = dir.path().join("repo");
        Some(Self {
            command: vec![python, script("python_repository.py"), repo.clone()],
            repo,
            _dir: dir,
        })
    }

    fn tuftool() -> Option<Self> {
        let tuftool = installed("tuftool", "bin/tuftool")?;
        let dir = TempDir::new().unwrap();
        Some(Self {
            command: vec![
                "sh".into(),
                script("tuftool_repository.sh"),
                tuftool,
                dir.path().to_owned(),
            ],
            repo: dir.path().join("served"),
            _dir: dir,
        })
    }

    fn step(&self, name: &str) {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(name);
        run(&mut command).unwrap_or_else(|said| panic!("{name}: {said}"));
    }

    fn root(&self) -> PathBuf {
        self.repo.join("metadata/1.root.json")
    }
}

/// Our device follows a foreign repository through its steps, over a server of this kind.
fn we_follow(foreign: &Foreign, serve: fn(&Path) -> Server, steps: &[(&str, Targets)]) {
    let (create, first) = &steps[0];
    foreign.step(create);
    let server = serve(&foreign.repo);
    let device = Device::new(Client::Fwagent, &binary("fwagent"), &foreign.root());
    let mut targets = first.clone();
    let mut known = fetches(&device, &server.url, &targets);
    for (step, more) in &steps[1..] {
        foreign.step(step);
        targets.extend(more.clone());
        let newer = fetches(&device, &server.url, &targets);
        assert!(newer > known, "{step}: {known:?} {newer:?}");
        known = newer;
    }
    refuses(
        &device,
        &server.url,
        &["router/9/absent"],
        &["router/9/absent", "no role has"],
    );
}

fn python_steps() -> Vec<(&'static str, Targets)> {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let targets = |list: &[(&str, Vec<u8>)]| -> Targets {
        list.iter()
            .map(|(path, bytes)| ((*path).to_owned(), bytes.clone()))
            .collect()
    };
    vec![
        (
            "create",
            targets(&[
                ("plain.txt", b"of the top-level role\n".to_vec()),
                ("router/1.0.0+first/image (a).bin", all_bytes.repeat(400)),
            ]),
        ),
        (
            "release",
            targets(&[("router/1.1.0/image.bin", b"the second release".repeat(1000))]),
        ),
        ("refresh", BTreeMap::new()),
        ("rotate", BTreeMap::new()),
    ]
}

#[test]
fn we_follow_a_repository_of_python_tuf_on_fwserve() {
    if let Some(foreign) = Foreign::python_tuf() {
        we_follow(&foreign, Server::fwserve, &python_steps());
    }
}

#[test]
fn we_follow_a_repository_of_python_tuf_on_a_plain_file_server() {
    if let Some(foreign) = Foreign::python_tuf() {
        we_follow(&foreign, Server::python, &python_steps());
    }
}

#[test]
fn we_follow_a_repository_of_tuftool() {
    let Some(foreign) = Foreign::tuftool() else { return };
    let steps = [
        (
            "create",
            Targets::from([
                ("plain.txt".to_owned(), b"of the top-level role\n".to_vec()),
                ("router-1.0.0.bin".to_owned(), vec![b'r'; 200_000]),
            ]),
        ),
        (
            "release",
            Targets::from([("router-1.1.0.bin".to_owned(), vec![b's'; 300_000])]),
        ),
        ("refresh", Targets::new()),
    ];
    we_follow(&foreign, Server::fwserve, &steps);
}
