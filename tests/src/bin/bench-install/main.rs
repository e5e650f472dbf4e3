//! Measures updates of block devices of several sizes by the real agent, from a loopback server: time, processor, and the
//! peak of its memory, which must not grow with the image.
//!
//! ```text
//! cargo build --profile device -p fwagent
//! cargo run -p fwtests --bin bench-install -- --agent target/device/fwagent --mib 16 --mib 512
//! ```
//!
//! Loop devices need root. The images do not compress, so that every byte is downloaded, kept, written and read back.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{Context, ensure};
use clap::Parser;
use fwmeta::manifest::ImageKind;
use fwmeta::time::UtcSeconds;
use fwtests::bins::binary;
use fwtests::loop_device::LoopDevice;
use fwtests::measure;
use fwtests::release;
use fwtests::repo_sim::{DAY, RepoSim, paths};
use fwtests::sim_server::SimServer;
use sha2::{Digest, Sha256};

/// Peak memory that is allowed, in KiB, whatever the size of the image.
const MEMORY_BUDGET: u64 = 16 * 1024;

/// Measures the installation of images of several sizes on block devices.
#[derive(Debug, Parser)]
struct Args {
    /// The agent; one of the caller's profile when absent
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Size of an image in MiB; may be given several times
    #[arg(long, default_values_t = [16, 512])]
    mib: Vec<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let agent = args.agent.unwrap_or_else(|| binary("fwagent")).canonicalize()?;
    let mut within = true;
    println!("{:>6}  {:>9} {:>9} {:>10}", "MiB", "wall", "cpu", "VmHWM");
    for mib in args.mib {
        let Some(usage) = install(&agent, mib)? else {
            return Ok(ExitCode::SUCCESS);
        };
        within &= usage.peak_kib <= MEMORY_BUDGET;
        println!(
            "{mib:>6}  {:>7.2} s {:>7.2} s {:>6.1} MiB   budget: {} MiB: {}",
            usage.wall.as_secs_f64(),
            usage.cpu.as_secs_f64(),
            usage.peak_kib as f64 / 1024.0,
            MEMORY_BUDGET / 1024,
            if usage.peak_kib <= MEMORY_BUDGET {
                "kept"
            } else {
                "MISSED"
            }
        );
    }
    Ok(ExitCode::from(u8::from(!within)))
}

/// `None` where there are no loop devices, which was said.
fn install(agent: &std::path::Path, mib: usize) -> anyhow::Result<Option<measure::Usage>> {
    let image = noise(mib * 1024 * 1024);
    let dir = tempfile::tempdir()?;
    let size = image.len() as u64;
    let device = |name: &str, size| LoopDevice::new(&dir.path().join(name), size);
    let (Some(a), Some(b)) = (device("a", 1024 * 1024), device("b", size)) else {
        return Ok(None);
    };
    let digest: [u8; 32] = Sha256::digest(&image).into();
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let mut sim = RepoSim::expiring(UtcSeconds(i64::try_from(now)?).plus_seconds(30 * DAY));
    sim.delegate("targets", "router", paths(&["router/*", "router/*/*"]));
    release(&mut sim, &image)?;
    drop(image);
    sim.publish(&["router", "targets", "snapshot", "timestamp"]);
    fs::write(dir.path().join("root.json"), sim.served("root", 1))?;
    let server = SimServer::start(sim);
    let mut config = format!(
        "[device]\nproduct = \"router\"\nhardware = \"rev-b\"\n[server]\nurl = \"{}\"\n[state]\ndir = \"state\"\n\
         [restart]\nmode = \"exit\"\n",
        server
            .metadata_url()
            .trim_end_matches('/')
            .trim_end_matches("/metadata")
    );
    for (name, device) in [("a", &a), ("b", &b)] {
        let path = device.path.display();
        config.push_str(&format!(
            "[[slot]]\nname = \"{name}\"\nkind = \"block\"\npath = \"{path}\"\n"
        ));
    }
    fs::write(dir.path().join("device.toml"), config)?;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(agent);
        command.args(["--config", "device.toml"]).args(arguments);
        command.current_dir(dir.path()).env("NO_PROXY", "127.0.0.1");
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    let status = command(&["provision", "--root", "root.json"]).status()?;
    ensure!(status.success(), "fwagent provision failed");
    let usage = measure::run(&mut command(&["install"])).context("running fwagent install")?;
    ensure!(usage.status.success(), "fwagent install failed: {}", usage.status);
    let held: [u8; 32] = Sha256::digest(fs::read(dir.path().join("b"))?).into();
    ensure!(held == digest, "the device does not hold the image");
    Ok(Some(usage))
}

fn release(sim: &mut RepoSim, image: &[u8]) -> anyhow::Result<()> {
    let target = "router/1.0.0/main.img";
    let main = release::component("main", "system", ImageKind::Raw, release::image_of(image), target)?;
    let manifest = release::manifest("1.0.0", 1, vec![main])?;
    release::list(sim, "router", &manifest, &[image]);
    Ok(())
}

/// Bytes that do not compress (xorshift64).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
