//! Releases that are signed and evil: archives that want out of their slot, images that are not what their manifest
//! says. A vendor's tools would not make them, so a simulated repository does.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use fwmeta::manifest::{Image, ImageKind};
use fwmeta::time::UtcSeconds;
use fwtests::device::{Files, same};
use fwtests::release::{component, image_of, list, manifest};
use fwtests::repo_sim::{RepoSim, paths};
use fwtests::sim_server::SimServer;
use fwtests::world::{Slots, World};

/// An entry of an archive: path, type, mode, link target, content.
type Entry<'a> = (&'a str, u8, u32, &'a str, &'a [u8]);

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (path, kind, mode, link, content) in entries {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[*kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn good(version: &str) -> Vec<u8> {
    archive(&[("version", b'0', 0o644, "", version.as_bytes())])
}

/// Signs a release whose payload is `payload` and whose manifest promises `image`.
fn release(sim: &mut RepoSim, version: &str, sequence: u64, payload: &[u8], image: Image) -> anyhow::Result<()> {
    let target = format!("router/{version}/main.tar");
    let main = component("main", "system", ImageKind::Tar, image, &target)?;
    list(sim, "router", &manifest(version, sequence, vec![main])?, &[payload]);
    sim.publish(&["router", "snapshot", "timestamp"]);
    Ok(())
}

/// A device on 1.0.0 and the repository that it asks.
fn device() -> anyhow::Result<(tempfile::TempDir, World, SimServer)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut sim = RepoSim::expiring(UtcSeconds(i64::try_from(now)? + 30 * 86_400));
    sim.delegate("targets", "router", paths(&["router/*", "router/*/*"]));
    sim.publish(&["router", "targets", "snapshot", "timestamp"]);
    let first = good("1.0.0");
    release(&mut sim, "1.0.0", 1, &first, image_of(&first))?;
    let dir = tempfile::tempdir()?;
    let world = World::new(dir.path())?;
    fs::write(world.path("root.json"), sim.served("root", 1))?;
    let server = SimServer::start(sim);
    world.configure(Slots::Dirs, "")?;
    world.point_at(server.metadata_url().trim_end_matches("/metadata/"))?;
    let ran = world.fwagent(&["provision", "--root", "root.json", "--from-server"])?;
    ensure!(ran.code == 0, "{}{}", ran.out, ran.err);
    Ok((dir, world, server))
}

#[test]
fn archives_that_want_out_are_refused_once_and_for_all() -> anyhow::Result<()> {
    let (dir, world, server) = device()?;
    let file = |path| (path, b'0', 0o644, "", &b"evil"[..]);
    let cut = good("x").len() - 1024 - 300;
    let absolute = dir.path().join("absolute").display().to_string();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a path with ..", archive(&[file("../escaped")])),
        ("a path with .. inside", archive(&[file("d/../../escaped")])),
        ("an absolute path", archive(&[file(&absolute)])),
        ("an absolute link", archive(&[("l", b'2', 0o777, "/tmp", b"")])),
        (
            "a link out",
            archive(&[("l", b'2', 0o777, "..", b""), file("l/escaped")]),
        ),
        (
            "a file through a link",
            archive(&[("d", b'5', 0o755, "", b""), ("l", b'2', 0o777, "d", b""), file("l/x")]),
        ),
        ("a hard link", archive(&[file("x"), ("h", b'1', 0o644, "x", b"")])),
        ("a device", archive(&[("null", b'3', 0o666, "", b"")])),
        ("set-user-id", archive(&[("su", b'0', 0o4755, "", b"evil")])),
        ("a path twice", archive(&[file("x"), file("x")])),
        ("cut", good("1.1.0")[..cut].to_vec()),
        ("no archive", b"evil".repeat(999)),
    ];
    let before = files(&world)?;
    for (number, (what, tar)) in cases.iter().enumerate() {
        let version = format!("1.1.{number}");
        release(&mut server.repo(), &version, 2 + number as u64, tar, image_of(tar))?;
        refused_for_good(&world, &server, &version).map_err(|error| error.context(*what))?;
        same(&before, &files(&world)?).map_err(|error| error.context(*what))?;
        for name in [
            "escaped",
            "absolute",
            "device/escaped",
            "device/slot-b/escaped",
            "device/state/escaped",
        ] {
            ensure!(!world.path(name).exists(), "{what} made {name}");
        }
    }
    accepts(&world, &server, "1.2.0", 100)
}

#[test]
fn images_that_are_not_what_the_manifest_says_are_refused_once_and_for_all() -> anyhow::Result<()> {
    let (_dir, world, server) = device()?;
    let tar = good("1.1.0");
    let other = image_of(&good("9.9.9"));
    let shorter = Image {
        size: 512,
        ..image_of(&tar)
    };
    let longer = Image {
        size: tar.len() as u64 + 512,
        ..image_of(&tar)
    };
    let before = files(&world)?;
    for (number, (what, image)) in [("other", other), ("longer", shorter), ("shorter", longer)]
        .into_iter()
        .enumerate()
    {
        let version = format!("1.1.{number}");
        release(&mut server.repo(), &version, 2 + number as u64, &tar, image)?;
        refused_for_good(&world, &server, &version).map_err(|error| error.context(what))?;
        same(&before, &files(&world)?).map_err(|error| error.context(what))?;
    }
    accepts(&world, &server, "1.2.0", 100)
}

#[test]
fn a_manifest_that_says_other_than_its_metadata_is_refused() -> anyhow::Result<()> {
    let (_dir, world, server) = device()?;
    let before = files(&world)?;
    let tar = good("1.1.0");
    release(&mut server.repo(), "1.1.0", 2, &tar, image_of(&tar))?;
    {
        // `custom.fw` promises a sequence that the manifest does not have.
        let mut sim = server.repo();
        let role = sim.role("router");
        let entry = role.targets.get_mut("router/1.1.0/manifest.json");
        if let Some(mut fw) = entry
            .as_ref()
            .and_then(|file| fwmeta::manifest::FwCustom::of_target(file).ok()?)
        {
            fw.sequence = 3;
            if let Some(file) = entry {
                *file = file.clone().with_fw(fw.to_value());
            }
        }
        sim.publish(&["router", "snapshot", "timestamp"]);
    }
    let ran = world.fwagent(&["install"])?;
    ensure!(
        ran.code == 1 && ran.err.contains("sequence"),
        "{} {}{}",
        ran.code,
        ran.out,
        ran.err
    );
    same(&before, &files(&world)?)?;
    ensure!(world.status()?["phase"] == "idle");
    accepts(&world, &server, "1.2.0", 100)
}

/// The active slot; of the other one only that it has no current tree.
fn files(world: &World) -> anyhow::Result<Files> {
    let mut files = fwtests::device::files_of(&world.path("device"))?;
    files.retain(|path, _| path.starts_with("/slot-a") || path.ends_with("slot-b/current"));
    Ok(files)
}

fn refused_for_good(world: &World, server: &SimServer, version: &str) -> anyhow::Result<()> {
    let ran = world.fwagent(&["--json", "install"])?;
    ensure!(ran.code == 1, "{} {}{}", ran.code, ran.out, ran.err);
    let status = world.status()?;
    ensure!(status["last"]["result"] == "install-failed", "{status}");
    ensure!(
        status["last"]["release"]["version"] == version && status["phase"] == "idle",
        "{status}"
    );
    ensure!(
        status["running_release"]["version"] == "1.0.0" && status["slots"][1]["status"] == "empty",
        "{status}"
    );
    // The next poll does not even ask for it.
    server.repo().take_log();
    let ran = world.fwagent(&["install"])?;
    ensure!(
        ran.code == 4 && ran.out.contains("not installed again by itself"),
        "{} {}",
        ran.code,
        ran.out
    );
    let log = server.repo().take_log();
    ensure!(log.iter().all(|name| !name.contains("main.tar")), "{log:?}");
    let boot = world.fwagent(&["--json", "boot"])?.json()?;
    ensure!(boot["slot"] == "a");
    ensure!(fs::read_to_string(world.path("device/slot-a/current/version"))? == "1.0.0");
    Ok(())
}

fn accepts(world: &World, server: &SimServer, version: &str, sequence: u64) -> anyhow::Result<()> {
    let tar = good(version);
    release(&mut server.repo(), version, sequence, &tar, image_of(&tar))?;
    let ran = world.fwagent(&["install"])?;
    ensure!(ran.code == 0, "{} {}{}", ran.code, ran.out, ran.err);
    let boot = world.fwagent(&["--json", "boot"])?.json()?;
    ensure!(boot["slot"] == "b");
    ensure!(fs::read_to_string(world.path("device/slot-b/current/version"))? == version);
    Ok(())
}
