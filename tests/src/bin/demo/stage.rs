//! What both demos do with the device: start it, watch it, break its power, and say what a person wants to see.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fwtests::world::{Ran, World};
use serde_json::Value;

/// Long enough for the slowest machine; only a broken demo waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Prints the title of a step.
pub fn step(number: u32, title: &str) {
    println!("\n\x1b[1m{number}. {title}\x1b[0m");
}

/// Prints what a program said, indented.
pub fn show(text: &str) {
    for line in text.trim_end().lines() {
        println!("   {line}");
    }
}

/// A device that is switched on: a supervisor that boots slots, and the agent in them.
pub struct Device {
    child: Child,
}

impl Device {
    /// Switches the device on; `command` runs in each slot that is booted.
    pub fn switch_on(world: &World, command: &[&str]) -> anyhow::Result<Self> {
        let mut arguments = vec!["boot", "--supervise", "--"];
        arguments.extend(command);
        let mut started = world.agent_command(&arguments);
        let mut child = started.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let err = child.stderr.take().context("no standard error")?;
        std::thread::spawn(move || {
            let mut last = String::new();
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                // Waiting is not worth a line.
                if !line.contains("next poll") && line != last {
                    show(&line);
                }
                last = line;
            }
        });
        Ok(Self { child })
    }

    /// Waits until the device's state is as `wanted` says.
    pub fn wait(&mut self, world: &World, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let start = Instant::now();
        loop {
            let status = world.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the device ended with {status} while it should {what}");
            }
            ensure!(start.elapsed() < PATIENCE, "the device did not {what}: {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Switches the device off in an orderly way.
    pub fn switch_off(mut self) -> anyhow::Result<()> {
        let asked = std::process::Command::new("kill")
            .arg(self.child.id().to_string())
            .status()?;
        ensure!(asked.success(), "the device could not be told to stop");
        let status = self.child.wait()?;
        ensure!(status.success(), "the device ended with {status}");
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the device rests on this version, and how its last update ended.
pub fn rests_on<'a>(version: &'a str, last: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |status| {
        status["phase"] == "idle" && status["running_release"]["version"] == version && status["last"]["result"] == last
    }
}

/// Installs and kills the agent (SIGKILL) as soon as it reports `event`; says how far it was.
pub fn install_and_kill(world: &World, event: &str) -> anyhow::Result<Value> {
    let mut started = world.agent_command(&["--json", "install"]);
    let mut child = started.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let out = child.stdout.take().context("no standard output")?;
    let mut reached = None;
    for line in BufReader::new(out).lines() {
        let value: Value = serde_json::from_str(&line?)?;
        if value["event"] == event {
            child.kill()?;
            reached = Some(value);
            break;
        }
    }
    let status = child.wait()?;
    let reached = reached.with_context(|| format!("the installation never came to {event}: {status}"))?;
    ensure!(!status.success(), "the installation ended before it could be killed");
    Ok(reached)
}

/// Checks that a command was refused (exit code 1) and changed nothing, and shows what it said.
pub fn refused(world: &World, arguments: &[&str]) -> anyhow::Result<Ran> {
    let before = world.status()?;
    let ran = world.fwagent(arguments)?;
    show(&format!("$ fwagent {}", arguments.join(" ")));
    show(&ran.out);
    show(&ran.err);
    ensure!(ran.code == 1, "exit code {} instead of 1", ran.code);
    let after = world.status()?;
    ensure!(before == after, "a refusal changed the device: {before} became {after}");
    show(&format!(
        "exit code 1; the device is as it was: {}",
        after["running_release"]["version"]
    ));
    Ok(ran)
}
