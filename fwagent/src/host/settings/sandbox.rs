//! Runs a migration program within limits, and nothing of it outlives that.
//!
//! ```text
//! agent  --exec-->  fwagent migration-child  --limits, Landlock, seccomp, user--  exec -->  program
//!   |  stdin: JSON                                                                             |
//!   +<-- stdout: JSON, bounded; stderr: the last lines <---------------------------------------+
//! ```
//!
//! What it decides: whether the program answered within its limits. What the child may do is in
//! [`confine`](super::confine). A sandbox that cannot be set up is a failure of the environment, never a program that runs
//! without one.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeReader, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf, absolute};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};

use crate::host::process::Group;
use crate::ports::{PortError, PortErrorKind};

/// Printed to standard error by the child when only the program is left to be started.
pub const READY: &str = "fwagent-migration-child: ready\n";
/// Bytes of standard error that are kept, the last ones.
const ERROR_BYTES: usize = 2048;
/// Time between two looks at the program.
const POLL: Duration = Duration::from_millis(20);
/// Bytes read in one turn.
const TURN_BYTES: usize = 256 * 1024;
/// Files of a program in its own directory that are counted.
const MAX_FILES: usize = 256;

/// What a program may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Not confined at all, besides limits: for kernels that cannot.
    pub unconfined: bool,
    /// From start to end.
    pub timeout: Duration,
    /// Seconds of processor time of each process.
    pub cpu_s: u64,
    /// Bytes of address space of each process.
    pub memory: u64,
    /// Bytes of its answer, and of all files in its directory.
    pub output: u64,
    /// Processes at once, with threads.
    pub processes: u64,
    /// User and group that it runs as when the agent is root.
    pub user: u32,
    /// What it may read besides the system's programs and libraries.
    pub read: Vec<PathBuf>,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            unconfined: false,
            timeout: Duration::from_secs(60),
            cpu_s: 30,
            memory: 256 * 1024 * 1024,
            output: 2 * 1024 * 1024,
            processes: 16,
            user: 65534,
            read: Vec::new(),
        }
    }
}

/// Runs programs.
#[derive(Debug)]
pub struct Sandbox {
    config: SandboxConfig,
    /// This program, which confines itself and then becomes the other one.
    agent: PathBuf,
    scratch: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Sandbox {
    /// A sandbox whose programs get directories of their own in `scratch`.
    pub fn new(config: SandboxConfig, scratch: PathBuf, stop: Arc<AtomicBool>) -> Self {
        Self {
            config,
            // Not the path: an update may have replaced what is there.
            agent: PathBuf::from("/proc/self/exe"),
            scratch,
            stop,
        }
    }

    /// With another agent than the one that runs: for tests, which run in none.
    pub fn with_agent(mut self, agent: PathBuf) -> Self {
        self.agent = agent;
        self
    }

    /// Runs a program with `input`. Its answer, or why there is none.
    ///
    /// # Errors
    /// [`PortError`] when the program was not started at all, or somebody asked to stop.
    pub fn run(&self, program: &Path, input: &[u8]) -> Result<Result<Vec<u8>, String>, PortError> {
        let failed = |error: io::Error| PortError::environment("setting up a migration", Some(error.into()));
        // Whoever runs migrations holds the lock, so that what is there was left by a loss of power.
        fwdurable::remove_tree(&self.scratch).map_err(failed)?;
        let own = self.scratch.join("own");
        let finished = self.own_dir(&own).and_then(|()| self.watch(program, input, &own));
        let removed = fwdurable::remove_tree(&self.scratch);
        let finished = finished.map_err(failed)?;
        removed.map_err(failed)?;
        self.judge(finished)
    }

    fn own_dir(&self, own: &Path) -> io::Result<()> {
        fs::create_dir_all(own)?;
        fs::set_permissions(own, Permissions::from_mode(0o700))?;
        if rustix::process::geteuid().is_root() {
            let user = Some(self.config.user);
            std::os::unix::fs::chown(own, user, user)?;
        }
        Ok(())
    }

    /// The child works in a directory of its own, so that paths must not depend on this one.
    fn command(&self, program: &Path, own: &Path) -> io::Result<Command> {
        let mut command = Command::new(&self.agent);
        command.arg("migration-child").arg("--program").arg(absolute(program)?);
        for (name, number) in [
            ("--cpu", self.config.cpu_s),
            ("--memory", self.config.memory),
            ("--file", self.config.output),
            ("--processes", self.config.processes),
            ("--user", self.config.user.into()),
        ] {
            command.arg(name).arg(number.to_string());
        }
        for path in &self.config.read {
            command.arg("--read").arg(absolute(path)?);
        }
        if self.config.unconfined {
            command.arg("--unconfined");
        }
        command.env_clear().current_dir(own).process_group(0);
        Ok(command)
    }

    fn watch(&self, program: &Path, input: &[u8], own: &Path) -> io::Result<Finished> {
        let mut stdin = File::from(memfd_create("migration-input", MemfdFlags::CLOEXEC)?);
        stdin.write_all(input)?;
        stdin.rewind()?;
        let (mut out, out_writer) = io::pipe()?;
        let (mut err, err_writer) = io::pipe()?;
        for pipe in [&out, &err] {
            fcntl_setfl(pipe, OFlags::NONBLOCK)?;
        }
        let begin = Instant::now();
        let mut command = self.command(program, own)?;
        let child = command.stdin(stdin).stdout(out_writer).stderr(err_writer).spawn()?;
        // It would keep the pipes open.
        drop(command);
        let mut group = Group::new(child);
        let (mut answer, mut errors) = (Vec::new(), Vec::new());
        let limit = usize::try_from(self.config.output).unwrap_or(usize::MAX);
        let killed = loop {
            let busy = drain(&mut out, &mut answer, limit)? | drain_tail(&mut err, &mut errors)?;
            if group.has_ended()? {
                break None;
            } else if self.stop.load(Ordering::Relaxed) {
                break Some(Killed::Stopped);
            } else if answer.len() > limit {
                break Some(Killed::Output);
            } else if begin.elapsed() >= self.config.timeout {
                break Some(Killed::Timeout);
            } else if used(own) > self.config.output {
                break Some(Killed::Files);
            } else if !busy {
                std::thread::sleep(POLL);
            }
        };
        let status = group.end()?;
        while answer.len() <= limit && drain(&mut out, &mut answer, limit)? {}
        drain_tail(&mut err, &mut errors)?;
        let killed = killed.or((answer.len() > limit).then_some(Killed::Output));
        Ok(Finished {
            killed,
            status,
            answer,
            errors,
        })
    }

    fn judge(&self, finished: Finished) -> Result<Result<Vec<u8>, String>, PortError> {
        let errors = String::from_utf8_lossy(&finished.errors).into_owned();
        if finished.killed == Some(Killed::Stopped) {
            return Err(PortError {
                attempt: "running a migration: asked to stop".to_owned(),
                kind: PortErrorKind::Stopped,
                source: None,
            });
        }
        let Some((_, said)) = errors.split_once(READY) else {
            let attempt = format!(
                "setting up the sandbox of a migration: {}",
                if errors.is_empty() {
                    "it ended without a word"
                } else {
                    errors.trim()
                }
            );
            return Err(PortError::environment(attempt, None));
        };
        let how = match finished.killed {
            None if finished.status.success() => return Ok(Ok(finished.answer)),
            None => match (finished.status.code(), finished.status.signal()) {
                (Some(code), _) => format!("its program ended with exit status {code}"),
                (None, Some(signal)) => format!("its program was ended by signal {signal}"),
                (None, None) => format!("its program ended with {}", finished.status),
            },
            Some(Killed::Timeout) => format!("its program did not end within {:?}", self.config.timeout),
            Some(Killed::Output) => format!("its program answered more than {} bytes", self.config.output),
            Some(Killed::Files | Killed::Stopped) => {
                format!(
                    "its program left more than {} bytes or {MAX_FILES} files",
                    self.config.output
                )
            }
        };
        let said: String = said.trim().chars().filter(|c| !c.is_control() || *c == '\n').collect();
        Ok(Err(if said.is_empty() { how } else { format!("{how}: {said}") }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Stopped,
    Timeout,
    Output,
    Files,
}

struct Finished {
    killed: Option<Killed>,
    status: ExitStatus,
    answer: Vec<u8>,
    errors: Vec<u8>,
}

/// Takes what is in the pipe, until `bytes` has one more than `limit`. Whether there was anything.
fn drain(pipe: &mut PipeReader, bytes: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let before = bytes.len();
    let mut chunk = [0; 4096];
    while bytes.len() <= limit && bytes.len() - before < TURN_BYTES {
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes.len() > before)
}

/// The same for errors, of which the beginning, with the word of the child, and the end are kept.
fn drain_tail(pipe: &mut PipeReader, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let busy = drain(pipe, bytes, bytes.len().saturating_add(TURN_BYTES))?;
    let excess = bytes.len().saturating_sub(READY.len() + ERROR_BYTES);
    bytes.drain(READY.len().min(bytes.len())..READY.len().min(bytes.len()) + excess);
    Ok(busy)
}

/// Bytes of the files in a directory; more than any limit when there are too many or directories among them.
fn used(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let mut bytes = 0_u64;
    for (count, entry) in entries.enumerate() {
        // Removed since it was found.
        let Ok(about) = entry.and_then(|entry| entry.metadata()) else {
            continue;
        };
        if count >= MAX_FILES || about.is_dir() {
            return u64::MAX;
        }
        bytes = bytes.saturating_add(about.len());
    }
    bytes
}
