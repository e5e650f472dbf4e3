//! The embedded default: fwagent updates itself, from directory slots.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use fwtests::bins::binary;
use fwtests::world::{Slots, World};

use crate::stage::{Device, install_and_kill, refused, rests_on, show, step};

/// The agent out of its slot, with its health check.
const COMMAND: [&str; 4] = ["{slot}/bin/fwagent", "--config", "device.toml", "run"];
const CHECK: &str = "\n[[health.check]]\nname = \"self-test\"\ncommand = [\"{slot}/bin/self-test\"]\ntimeout_s = 20\n";

pub fn run(dir: &Path) -> anyhow::Result<()> {
    let mut world = World::new(dir)?;

    step(1, "The vendor makes keys and a repository, and signs fwagent 1.0.0");
    world.found_vendor()?;
    show(&world.release("1.0.0", &tree(&world, "1.0.0", Health::Good)?, &[])?.out);
    show(&world.sign(&["verify", "repo"])?.out);

    step(
        2,
        "A server runs, and takes the publication only after judging it as devices do",
    );
    world.serve("published")?;
    show(&format!("fwserve listens on {}", world.url()));
    show(&world.publish()?.out);

    step(
        3,
        "A device gets its root of trust and its first software from the server",
    );
    world.configure(Slots::Dirs, CHECK)?;
    let ran = world.fwagent(&["provision", "--root", "repo/metadata/1.root.json", "--from-server"])?;
    ensure!(ran.code == 0, "provision: {}", ran.err);
    show(&ran.out);

    step(
        4,
        "1.1.0 is published; the device polls, installs, tries and confirms it",
    );
    world.copy("published", "kept-from-1.0.0")?;
    world.release("1.1.0", &tree(&world, "1.1.0", Health::Good)?, &[])?;
    show(&world.publish()?.out);
    let mut device = Device::switch_on(&world, &COMMAND)?;
    device.wait(&world, "confirm 1.1.0", rests_on("1.1.0", "confirmed"))?;
    let running = fs::canonicalize(world.path("device/slot-b/current/bin/fwagent"))?;
    show(&format!("running now: {}", running.display()));

    step(5, "1.2.0 is bad: its self-test fails, so the device falls back");
    world.release("1.2.0", &tree(&world, "1.2.0", Health::FailsSelfTest)?, &[])?;
    world.publish()?;
    let status = device.wait(&world, "fall back from 1.2.0", |status| {
        rests_on("1.1.0", "fell-back")(status) && status["last"]["release"]["version"] == "1.2.0"
    })?;
    show(&format!(
        "fell back because: {}",
        status["last"]["reason"].as_str().unwrap_or("?")
    ));
    show(&format!(
        "its last words:    {}",
        status["last"]["log"].as_str().unwrap_or("?").trim()
    ));

    step(
        6,
        "1.3.0 is worse: it does not even start, so its boot attempts are used up",
    );
    world.release("1.3.0", &tree(&world, "1.3.0", Health::DoesNotStart)?, &[])?;
    world.publish()?;
    let status = device.wait(&world, "fall back from 1.3.0", |status| {
        rests_on("1.1.0", "fell-back")(status) && status["last"]["release"]["version"] == "1.3.0"
    })?;
    show(&format!(
        "fell back because: {}",
        status["last"]["reason"].as_str().unwrap_or("?")
    ));
    device.switch_off()?;

    step(
        7,
        "An old release is refused, asked for by name or by a server that replays the past",
    );
    refused(&world, &["install", "--version", "1.0.0"])?;
    world.serve("kept-from-1.0.0")?;
    refused(&world, &["check"])?;
    world.serve("published")?;

    step(
        8,
        "1.4.0 is good, but the agent is killed while it downloads, and again while it writes the slot",
    );
    world.release("1.4.0", &tree(&world, "1.4.0", Health::Good)?, &[])?;
    world.publish()?;
    for event in ["downloading", "writing"] {
        let reached = install_and_kill(&world, event)?;
        show(&format!(
            "SIGKILL while {event}: {} of {} bytes",
            reached["done"], reached["total"]
        ));
        let status = world.status()?;
        ensure!(status["running_release"]["version"] == "1.1.0" && status["phase"] == "staging");
        show("1.1.0 runs on; the half-written slot cannot be booted");
    }
    let mut device = Device::switch_on(&world, &COMMAND)?;
    device.wait(&world, "confirm 1.4.0", rests_on("1.4.0", "confirmed"))?;
    device.switch_off()?;

    step(9, "What the device says of itself");
    show(&world.fwagent(&["explain"])?.out);
    println!("\nAll of it worked. The same with images of your own: cargo demo -- --image-a A --image-b B");
    Ok(())
}

/// How a release behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    FailsSelfTest,
    DoesNotStart,
}

/// The content of a release: the agent, and a self-test for it.
fn tree(world: &World, version: &str, health: Health) -> anyhow::Result<PathBuf> {
    let root = world.path(&format!("build/{version}"));
    fs::create_dir_all(root.join("bin"))?;
    fs::write(root.join("version"), version)?;
    let agent = root.join("bin/fwagent");
    match health {
        Health::DoesNotStart => {
            fs::write(&agent, b"\x7fELF, but not for long")?;
            fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
        }
        Health::Good | Health::FailsSelfTest => {
            fs::copy(binary("fwagent"), &agent)?;
        }
    }
    let test = match health {
        Health::FailsSelfTest => "#!/bin/sh\necho 'self-test: the radio does not answer'\nexit 1\n",
        _ => "#!/bin/sh\nexec \"$FWAGENT_SLOT_PATH/bin/fwagent\" --version\n",
    };
    fs::write(root.join("bin/self-test"), test)?;
    fs::set_permissions(root.join("bin/self-test"), fs::Permissions::from_mode(0o755))?;
    Ok(root)
}
