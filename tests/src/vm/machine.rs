//! QEMU, and what is heard of the device on its console.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::vm::Loader;
use crate::vm::parts::Parts;

/// Only a device that is dead is silent for so long.
const PATIENCE: Duration = Duration::from_secs(600);
/// Memory of the device in MiB: U-Boot loads the kernel and its first file system far apart.
const MEMORY: &str = "256";

/// Something happened.
#[derive(Debug)]
pub enum Happening {
    /// A line on the console.
    Line(String),
    /// The disk has stopped, as it was told.
    Frozen,
    /// QEMU has ended.
    Ended,
    /// Nothing for a long time.
    Silence,
}

/// A device that is switched on.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    console: ChildStdin,
    heard: Receiver<Happening>,
    tell: Sender<Happening>,
}

impl Machine {
    /// Switches a device on whose disk is served at `socket`.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(loader: Loader, parts: &Parts, socket: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        // Software emulation: what a machine has of the other kind differs, this does not.
        command.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", MEMORY]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
        // A guest's flush becomes one of the server; a guest that knows none writes through.
        let disk = format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={},cache.direct=off,cache.no-flush=off",
            socket.display()
        );
        command.args([
            "-blockdev",
            &disk,
            "-device",
            "virtio-blk-pci,drive=disk,config-wce=off",
        ]);
        command.args(["-nic", "user,model=virtio-net-pci"]);
        if loader == Loader::Uboot {
            command.arg("-bios").arg(parts.uboot());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let console = child.stdin.take().context("no standard input")?;
        let out = child.stdout.take().context("no standard output")?;
        let (tell, heard) = channel();
        let teller = tell.clone();
        thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                // Nobody listens any more when the machine was switched off.
                if teller.send(Happening::Line(text)).is_err() {
                    return;
                }
            }
            let _ = teller.send(Happening::Ended);
        });
        Ok(Self {
            child,
            console,
            heard,
            tell,
        })
    }

    /// What happens next.
    pub fn next(&self) -> Happening {
        match self.heard.recv_timeout(PATIENCE) {
            Ok(happening) => happening,
            Err(RecvTimeoutError::Timeout) => Happening::Silence,
            Err(RecvTimeoutError::Disconnected) => Happening::Ended,
        }
    }

    /// Something to call when the disk has stopped.
    pub fn on_freeze(&self) -> impl FnOnce() + Send + 'static {
        let tell = self.tell.clone();
        move || {
            let _ = tell.send(Happening::Frozen);
        }
    }

    /// Types a line on the console.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        match writeln!(self.console, "{line}").and_then(|()| self.console.flush()) {
            Ok(()) => Ok(()),
            Err(error) => bail!("the console is gone: {error}"),
        }
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> anyhow::Result<()> {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
