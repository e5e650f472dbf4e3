//! Measures an update cycle of a new device on large repositories: refresh, verify, find and download one target, by
//! `fwagent tuf` and by python-tuf's client, against the same loopback server in the same run.
//!
//! ```text
//! cargo run --release -p fwtests --bin bench-verify -- --targets 10000 --targets 50000
//! ```
//!
//! python-tuf is looked for in the interpreter that `--python` names (`pip install tuf`); without it only our own figures
//! are printed, and where CI or FWTESTS_REQUIRE_TOOLS demands every tool that is a failure.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use fwtests::bins::binary;
use fwtests::measure::{self, Usage};
use fwtests::repo_sim::{DAY, RepoSim};
use fwtests::sim_server::SimServer;

/// Share of python-tuf's wall time that is allowed.
const WALL_BUDGET: f64 = 0.1;
/// Peak memory that is allowed, in KiB.
const MEMORY_BUDGET: u64 = 40 * 1024;
const CONTENT: &[u8] = b"firmware";

/// Measures refresh and verification against python-tuf.
#[derive(Debug, Parser)]
struct Args {
    /// Targets in the repository; may be given several times
    #[arg(long, default_values_t = [10_000, 50_000])]
    targets: Vec<usize>,
    /// Runs of each client; the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Interpreter that has python-tuf
    #[arg(long, default_value = "python3")]
    python: String,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let python = Command::new(&args.python).args(["-c", "import tuf.ngclient"]).output();
    let python = python.is_ok_and(|output| output.status.success());
    if !python {
        println!(
            "SKIPPED: {} has no python-tuf; only our own figures follow",
            args.python
        );
        let set = |name, value| std::env::var(name).is_ok_and(|found| found == value);
        if set("CI", "true") || set("FWTESTS_REQUIRE_TOOLS", "1") {
            bail!("python-tuf is required here");
        }
    }
    let mut within = true;
    println!(
        "{:>8}  {:<10} {:>9} {:>9} {:>9}",
        "targets", "client", "wall", "cpu", "peak"
    );
    for targets in args.targets {
        let bench = Bench::new(targets)?;
        let ours = bench.median(args.runs, |dir| bench.fwagent(dir))?;
        show(targets, "fwagent", &ours);
        let memory = ours.peak_kib <= MEMORY_BUDGET;
        within &= memory;
        if python {
            let theirs = bench.median(args.runs, |dir| bench.python(&args.python, dir))?;
            show(targets, "python-tuf", &theirs);
            let ratio = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9);
            let wall = ratio(ours.wall, theirs.wall);
            within &= wall <= WALL_BUDGET;
            println!(
                "{targets:>8}  ratio      {wall:>9.3} {:>9.3} {:>9.3}   budget: wall {WALL_BUDGET}, peak {} MiB: {}",
                ratio(ours.cpu, theirs.cpu),
                ours.peak_kib as f64 / theirs.peak_kib as f64,
                MEMORY_BUDGET / 1024,
                if wall <= WALL_BUDGET && memory {
                    "kept"
                } else {
                    "MISSED"
                }
            );
        }
    }
    Ok(ExitCode::from(u8::from(!within)))
}

fn show(targets: usize, client: &str, usage: &Usage) {
    println!(
        "{targets:>8}  {client:<10} {:>6.0} ms {:>6.0} ms {:>5.1} MiB",
        usage.wall.as_secs_f64() * 1e3,
        usage.cpu.as_secs_f64() * 1e3,
        usage.peak_kib as f64 / 1024.0
    );
}

struct Bench {
    server: SimServer,
    root: Vec<u8>,
    target: String,
}

impl Bench {
    fn new(targets: usize) -> anyhow::Result<Self> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let expires = fwmeta::time::UtcSeconds(i64::try_from(now)?).plus_seconds(30 * DAY);
        let mut sim = RepoSim::expiring(expires);
        sim.announce_hashes = true;
        let name = |number: usize| format!("product-{}/1.{number}.0/rootfs.img", number % 100);
        for number in 0..targets {
            let path = name(number);
            let mut file = fwmeta::target::TargetFile::of_bytes(path.as_bytes());
            file.hashes.sha512 = None;
            sim.role("targets").targets.insert(path, file);
        }
        let target = name(targets / 2);
        sim.add_target("targets", &target, CONTENT);
        sim.publish(&["targets", "snapshot", "timestamp"]);
        let root = sim.served("root", 1).clone();
        let server = SimServer::start(sim);
        Ok(Self { server, root, target })
    }

    /// The run of median wall time, each in a new directory.
    fn median(&self, runs: usize, client: impl Fn(&Path) -> anyhow::Result<Usage>) -> anyhow::Result<Usage> {
        let mut usages = Vec::new();
        for _ in 0..runs.max(1) {
            let dir = tempfile::tempdir()?;
            for name in ["metadata", "targets"] {
                std::fs::create_dir(dir.path().join(name))?;
            }
            std::fs::write(dir.path().join("root.json"), &self.root)?;
            let usage = client(dir.path())?;
            if !usage.status.success() || !downloaded(&dir.path().join("targets"))? {
                bail!("a client failed: {}", usage.status);
            }
            usages.push(usage);
        }
        usages.sort_by_key(|usage| usage.wall);
        Ok(usages[usages.len() / 2])
    }

    fn fwagent(&self, dir: &Path) -> anyhow::Result<Usage> {
        let tuf = || {
            let mut command = Command::new(binary("fwagent"));
            command
                .arg("tuf")
                .arg("--metadata-dir")
                .arg(dir.join("metadata"))
                .env("NO_PROXY", "127.0.0.1");
            command
        };
        let status = tuf().arg("init").arg(dir.join("root.json")).status()?;
        if !status.success() {
            bail!("fwagent tuf init failed");
        }
        let mut command = tuf();
        command.args(["--metadata-url", &self.server.metadata_url()]);
        command.args([
            "--target-base-url",
            &self.server.targets_url(),
            "--target-name",
            &self.target,
        ]);
        command.arg("--target-dir").arg(dir.join("targets")).arg("download");
        measure::run(&mut command).context("running fwagent")
    }

    fn python(&self, python: &str, dir: &Path) -> anyhow::Result<Usage> {
        let mut command = Command::new(python);
        command.args(["-c", include_str!("client.py")]).arg(dir);
        command.args([&self.server.metadata_url(), &self.server.targets_url(), &self.target]);
        measure::run(&mut command).context("running python-tuf")
    }
}

fn downloaded(dir: &Path) -> anyhow::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        if std::fs::read(entry?.path())? == CONTENT {
            return Ok(true);
        }
    }
    Ok(false)
}
