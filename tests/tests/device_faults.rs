//! Every file operation of the real agent on a real file system, by strace: killed before it, or it fails with EIO or
//! ENOSPC. Afterwards the device boots a whole image, no floor has fallen, what was reported as done is there, and left
//! alone it ends on the newest release.
//!
//! A run without faults lists the operations; each is then struck in a run of its own, from a copy of the same device. By
//! default a sample is struck, chosen by a seed; `FWTESTS_FAULTS=all` strikes all, `FWTESTS_FAULTS=N` so many per stage,
//! `FWTESTS_SEED` chooses others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use fwtests::device::{Health, Scene, check_of, files_of};
use fwtests::tools;
use fwtests::world::Slots;
use serde_json::Value;

/// Operations struck in each stage when nobody says otherwise.
const SAMPLE: usize = 14;
/// Restarts after which a device that is left alone must have come to rest.
const RESTARTS: u32 = 8;

/// The system calls by which files are looked at and changed.
const CALLS: &str = "openat,read,pread64,write,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat,\
                     unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,symlinkat,fchmod,chmod,fchmodat,statx,getdents64,flock";
/// Those of them that need space.
const WRITES: [&str; 11] = [
    "openat",
    "write",
    "pwrite64",
    "fsync",
    "ftruncate",
    "rename",
    "renameat2",
    "linkat",
    "mkdir",
    "symlink",
    "link",
];

/// One command in the life of a device.
struct Stage {
    name: &'static str,
    command: &'static [&'static str],
    /// What must hold after the next boot when the command has reported success.
    done: fn(&Value) -> bool,
    /// Whether the next stage begins where this one ends, or where it began.
    goes_on: bool,
}

const STAGES: [Stage; 8] = [
    Stage {
        name: "install",
        command: &["install", "--version", "1.1.0"],
        done: |status| status["running_release"]["version"] == "1.1.0",
        goes_on: true,
    },
    Stage {
        name: "boot-trial",
        command: &["boot"],
        done: |_| true,
        goes_on: true,
    },
    Stage {
        name: "confirm",
        command: &["install", "--version", "1.1.0"],
        done: |status| status["active"] == "b" && status["last"]["result"] == "confirmed",
        goes_on: true,
    },
    Stage {
        name: "settings",
        command: &["settings", "set", "access.password", "changed"],
        done: |status| status["settings"]["generation"] == 2,
        goes_on: true,
    },
    Stage {
        name: "roll-back",
        command: &["rollback"],
        done: |status| status["running_release"]["version"] == "1.0.0",
        goes_on: false,
    },
    Stage {
        name: "install-bad",
        command: &["install", "--version", "1.2.0"],
        done: |status| status["running_release"]["version"] == "1.2.0",
        goes_on: true,
    },
    Stage {
        name: "fall-back",
        command: &["install", "--version", "1.2.0"],
        done: |status| status["active"] == "b" && status["running"] == "b",
        goes_on: true,
    },
    Stage {
        name: "record-fall-back",
        command: &["install", "--version", "1.2.0"],
        done: |status| status["phase"] == "idle" && status["last"]["result"] == "fell-back",
        goes_on: true,
    },
];

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Io,
    NoSpace,
}

/// A fault at the `nth` call of that name, counted from 1.
#[derive(Debug, Clone)]
struct Strike {
    call: String,
    nth: u32,
    fault: Fault,
}

#[test]
fn directory_slots_survive_faults_at_every_file_operation() -> anyhow::Result<()> {
    campaign(Slots::Dirs)
}

#[test]
fn file_slots_survive_faults_at_every_file_operation() -> anyhow::Result<()> {
    campaign(Slots::Files)
}

fn campaign(slots: Slots) -> anyhow::Result<()> {
    let Some(strace) = tools::program("strace") else {
        return Ok(());
    };
    let seed = match std::env::var("FWTESTS_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => 1,
    };
    let scene = Scene::provisioned(slots, &format!("{}\n[boot]\nattempts = 5\n", check_of(slots)))?;
    scene.publish_either(slots, "1.1.0", Health::Good)?;
    scene.publish_either(slots, "1.2.0", Health::Bad)?;
    scene.publish_either(slots, "1.3.0", Health::Good)?;
    let rig = Rig { scene, slots, strace };
    rig.scene.boot()?;
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    for stage in &STAGES {
        if matches!(stage.name, "fall-back" | "record-fall-back") {
            rig.scene.boot()?;
        }
        rig.keep(stage.name)?;
        let operations = rig.operations(stage)?;
        let mut strikes = strikes(&operations);
        let all = strikes.len();
        sample(&mut strikes, seed)?;
        for strike in &strikes {
            rig.restore(stage.name)?;
            let end = rig
                .strike(stage, strike)
                .with_context(|| format!("{slots:?}, {}: {strike:?}; seed {seed}", stage.name))?;
            *count.entry(format!("{:?} {end}", strike.fault)).or_default() += 1;
        }
        println!(
            "{slots:?} {}: {} operations, {} of {all} faults",
            stage.name,
            operations.len(),
            strikes.len()
        );
        ensure!(!strikes.is_empty(), "{}: nothing was struck", stage.name);
        rig.restore(stage.name)?;
        if stage.goes_on {
            rig.scene.world.fwagent(stage.command)?;
        }
    }
    println!("{slots:?}: {count:?}");
    let ends = |fault: &str, end: &str| {
        count
            .iter()
            .any(|(key, _)| key.starts_with(fault) && key.ends_with(end))
    };
    ensure!(
        ends("Kill", "killed") && ends("Io", "failed"),
        "no fault had an effect: {count:?}"
    );
    Ok(())
}

fn strikes(operations: &[(String, u32)]) -> Vec<Strike> {
    let mut strikes = Vec::new();
    for (call, nth) in operations {
        let mut faults = vec![Fault::Kill, Fault::Io];
        if WRITES.contains(&call.as_str()) {
            faults.push(Fault::NoSpace);
        }
        strikes.extend(faults.into_iter().map(|fault| Strike {
            call: call.clone(),
            nth: *nth,
            fault,
        }));
    }
    strikes
}

/// Leaves as many as were asked for, spread over all by the seed.
fn sample(strikes: &mut Vec<Strike>, seed: u64) -> anyhow::Result<()> {
    let wanted = match std::env::var("FWTESTS_FAULTS").as_deref() {
        Ok("all") => return Ok(()),
        Ok(number) => number.parse().context("FWTESTS_FAULTS is neither `all` nor a number")?,
        Err(_) => SAMPLE,
    };
    let length = strikes.len();
    if length > wanted {
        let offset = seed as usize % length;
        *strikes = (0..wanted)
            .map(|index| strikes[(offset + index * length / wanted) % length].clone())
            .collect();
    }
    Ok(())
}

struct Rig {
    scene: Scene,
    slots: Slots,
    strace: PathBuf,
}

impl Rig {
    fn keep(&self, name: &str) -> anyhow::Result<()> {
        copy(
            &self.scene.world.path("device"),
            &self.scene.world.path(&format!("kept-{name}")),
        )
    }

    fn restore(&self, name: &str) -> anyhow::Result<()> {
        fs::remove_dir_all(self.scene.world.path("device"))?;
        copy(
            &self.scene.world.path(&format!("kept-{name}")),
            &self.scene.world.path("device"),
        )
    }

    fn traced(&self, stage: &Stage, options: &[String]) -> Command {
        let agent = self.scene.world.agent_command(&["--json"]);
        let mut command = Command::new(&self.strace);
        // Only the main thread, which does all the file operations; the calls of others would be counted apart.
        command.args(["-qq", "-y", "-s", "256", "-o", "trace"]).args(options);
        command
            .arg(agent.get_program())
            .args(agent.get_args())
            .args(stage.command);
        command
            .current_dir(self.scene.world.path(""))
            .env("NO_PROXY", "127.0.0.1")
            .env_remove("NOTIFY_SOCKET");
        command
    }

    /// The operations of the stage on files of the device, each with its number among the calls of its name.
    fn operations(&self, stage: &Stage) -> anyhow::Result<Vec<(String, u32)>> {
        let output = self
            .traced(stage, &["-e".to_owned(), format!("trace={CALLS}")])
            .output()?;
        ensure!(
            output.status.code().is_some_and(|code| code != 2),
            "{}: {}",
            stage.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let mut counted: BTreeMap<String, u32> = BTreeMap::new();
        let mut found = Vec::new();
        for line in fs::read_to_string(self.scene.world.path("trace"))?.lines() {
            let Some((call, _)) = line.split_once('(') else {
                continue;
            };
            let nth = counted.entry(call.to_owned()).or_default();
            *nth += 1;
            if line.contains("device/") || line.contains("/device>") {
                found.push((call.to_owned(), *nth));
            }
        }
        ensure!(found.len() > 3, "{}: strace saw {} operations", stage.name, found.len());
        Ok(found)
    }

    /// One fault, and whether the device lives through it; how the command ended.
    fn strike(&self, stage: &Stage, strike: &Strike) -> anyhow::Result<&'static str> {
        let before = self.scene.world.status()?;
        let Strike { call, nth, fault } = strike;
        let what = match fault {
            Fault::Kill => "signal=KILL",
            Fault::Io => "error=EIO",
            Fault::NoSpace => "error=ENOSPC",
        };
        let options = [
            "-e".to_owned(),
            format!("trace={call}"),
            "-e".to_owned(),
            format!("inject={call}:{what}:when={nth}"),
        ];
        let output = self.traced(stage, &options).output()?;
        let err = String::from_utf8_lossy(&output.stderr);
        ensure!(!err.contains("panicked"), "{err}");
        let trace = fs::read_to_string(self.scene.world.path("trace"))?;
        let end = match (fault, output.status.code()) {
            (Fault::Kill, None | Some(137)) => "killed",
            // The run was a little shorter than the one that was counted.
            _ if *fault == Fault::Kill || !trace.contains("INJECTED") => "not reached",
            (_, Some(0 | 4)) => "done",
            (_, Some(1 | 3)) => "failed",
            (_, code) => bail!("ended with {code:?}: {err}"),
        };
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        self.lives(stage, end == "done" && stage.name != "boot-trial", &before)
            .with_context(|| format!("{end}; {out}{err}"))?;
        Ok(end)
    }

    fn lives(&self, stage: &Stage, reported: bool, before: &Value) -> anyhow::Result<()> {
        let scene = &self.scene;
        let mut floors = before["floors"].clone();
        let mut expected = reported.then_some(stage.done);
        for _ in 0..RESTARTS {
            let slot = scene.boot()?;
            let status = scene.sound(self.slots, &slot, &mut floors)?;
            if let Some(done) = expected.take() {
                ensure!(done(&status), "{} was reported as done: {status}", stage.name);
            }
            let ran = scene
                .world
                .fwagent(&["--json", "install", "--version", "1.3.0", "--retry"])?;
            ensure!(
                matches!(ran.code, 0 | 4),
                "left alone, it ended with {}: {}{}",
                ran.code,
                ran.out,
                ran.err
            );
            let status = scene.world.status()?;
            if status["phase"] == "idle" && status["running_release"]["version"] == "1.3.0" {
                scene.sound(self.slots, &slot, &mut floors)?;
                let left: Vec<_> = files_of(&scene.world.path("device"))?
                    .into_keys()
                    .filter(|path| path.contains(".tmp-") || path.ends_with("/.new") || path.contains(".partial"))
                    .collect();
                ensure!(left.is_empty(), "left over: {left:?}");
                return Ok(());
            }
        }
        bail!("it did not come to rest on 1.3.0: {}", scene.world.status()?)
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "copying {} to {}", from.display(), to.display());
    Ok(())
}
