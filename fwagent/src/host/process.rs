//! Runs a command within a time, and nothing of it outlives that.
//!
//! What it decides: how a command ends (by itself, at its deadline, because somebody asked to stop) and how much of its
//! output is kept. What it does not decide: what the end means.
//!
//! The command has a process group of its own, which is killed as a whole when the command has ended in any way; what it
//! left in the background ends too, unless it made itself a group of its own. Output is read without blocking, so such a
//! process, which may keep the pipe open for ever, cannot hold up the caller.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Bytes of output that are kept, the last ones.
pub const OUTPUT_BYTES: usize = 4096;
/// Bytes read in one turn, so that endless output cannot hide the deadline.
const TURN_BYTES: usize = 64 * 1024;
/// Time between two looks at the command.
const POLL: Duration = Duration::from_millis(20);

/// A command to run.
#[derive(Debug)]
pub struct Run<'a> {
    /// Program and arguments; no shell reads them.
    pub argv: &'a [OsString],
    /// Variables added to the environment.
    pub env: &'a [(&'a str, &'a OsStr)],
    /// Time that it may take.
    pub timeout: Duration,
    /// Set when the caller wants to stop.
    pub stop: &'a AtomicBool,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself or by somebody else's signal.
    Exited(ExitStatus),
    /// Killed at its deadline.
    TimedOut,
    /// Killed because the caller wants to stop.
    Stopped,
}

/// A command that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// The last [`OUTPUT_BYTES`] of what it printed, to either stream.
    pub output: Vec<u8>,
}

/// Runs a command with empty standard input, and waits for its end.
///
/// # Errors
/// When it cannot be started or watched; [`io::ErrorKind::InvalidInput`] when `argv` is empty.
pub fn run(run: &Run<'_>) -> io::Result<Finished> {
    let [program, arguments @ ..] = run.argv else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let (mut pipe, writer) = io::pipe()?;
    fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
    let deadline = Instant::now().checked_add(run.timeout);
    let child = Command::new(program)
        .args(arguments)
        .envs(run.env.iter().copied())
        // It must not speak for the agent to the service manager.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    let mut group = Group::new(child);
    let mut tail = Tail::default();
    let killed = loop {
        let busy = tail.take(&mut pipe)?;
        if group.has_ended()? {
            break None;
        } else if run.stop.load(Ordering::Relaxed) {
            break Some(End::Stopped);
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break Some(End::TimedOut);
        } else if !busy {
            std::thread::sleep(POLL);
        }
    };
    let status = group.end()?;
    // What was printed between the last look and the end. Once: somebody outside the group may go on printing.
    tail.take(&mut pipe)?;
    Ok(Finished {
        end: killed.unwrap_or(End::Exited(status)),
        output: tail.bytes,
    })
}

/// A child that leads a process group. Dropping it kills the group.
pub(super) struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    pub(super) fn new(child: Child) -> Self {
        Self { child, ended: false }
    }

    /// Whether the leader has ended. It stays a zombie, so that its number, which is the group's too, is not given away.
    pub(super) fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::Pid(self.id()), options) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?.is_some()),
            }
        }
    }

    /// Kills what is left of the group; how its leader ended.
    pub(super) fn end(&mut self) -> io::Result<ExitStatus> {
        // The only error possible is that nobody is left.
        let _ = kill_process_group(self.id(), Signal::KILL);
        self.ended = true;
        self.child.wait()
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After `end` the number may be somebody else's.
        if !self.ended {
            let _ = self.end();
        }
    }
}

#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Takes what is in the pipe, up to [`TURN_BYTES`]. Whether there was anything.
    fn take(&mut self, pipe: &mut PipeReader) -> io::Result<bool> {
        let mut chunk = [0; OUTPUT_BYTES];
        let mut taken = 0;
        while taken < TURN_BYTES {
            match pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => {
                    taken += length;
                    self.bytes.extend_from_slice(&chunk[..length]);
                    let excess = self.bytes.len().saturating_sub(OUTPUT_BYTES);
                    self.bytes.drain(..excess);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::process::ExitStatusExt;
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, timeout: Duration, stop: &AtomicBool) -> Finished {
        run(&Run {
            argv: &["sh", "-c", script].map(OsString::from),
            env: &[("FWAGENT_TEST", OsStr::new("seen"))],
            timeout,
            stop,
        })
        .unwrap()
    }

    fn go() -> AtomicBool {
        AtomicBool::new(false)
    }

    #[test]
    fn output_of_both_streams_status_and_environment() {
        let done = sh("echo out $FWAGENT_TEST; echo err >&2; cat; exit 7", LONG, &go());
        assert_eq!(done.output, b"out seen\nerr\n");
        assert_eq!(done.end, End::Exited(ExitStatus::from_raw(7 << 8)));
        let killed = sh("kill -TERM $$", LONG, &go());
        assert_eq!(killed.end, End::Exited(ExitStatus::from_raw(15)));
    }

    #[test]
    fn only_the_end_of_long_output_is_kept() {
        let done = sh("head -c 300000 /dev/zero; printf end", LONG, &go());
        assert_eq!(done.output.len(), OUTPUT_BYTES);
        assert!(done.output.ends_with(b"\0end"));
        assert_eq!(done.end, End::Exited(ExitStatus::from_raw(0)));
    }

    #[test]
    fn the_whole_group_dies_at_the_deadline() {
        // The child outlives its parent and keeps the pipe; its parent prints for ever.
        let begin = Instant::now();
        let done = sh("sleep 50 & echo $!; sleep 50", Duration::from_millis(300), &go());
        assert_eq!(done.end, End::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert!(gone(&done.output));
        assert_eq!(sh("yes", Duration::from_millis(300), &go()).end, End::TimedOut);
    }

    #[test]
    fn what_is_left_in_the_background_ends_with_the_command() {
        let begin = Instant::now();
        let done = sh("sleep 50 & echo $!", LONG, &go());
        assert_eq!(done.end, End::Exited(ExitStatus::from_raw(0)));
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert!(gone(&done.output));
    }

    #[test]
    fn a_stop_ends_it_early() {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            flag.store(true, Ordering::Relaxed);
        });
        let begin = Instant::now();
        assert_eq!(sh("sleep 50", LONG, &stop).end, End::Stopped);
        assert!(begin.elapsed() < Duration::from_secs(20));
        asking.join().unwrap();
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let stop = go();
        let start = |argv: &[OsString]| {
            let (env, timeout, stop) = (&[][..], LONG, &stop);
            run(&Run {
                argv,
                env,
                timeout,
                stop,
            })
            .unwrap_err()
            .kind()
        };
        assert_eq!(start(&[]), io::ErrorKind::InvalidInput);
        assert_eq!(start(&["/nonexistent/program".into()]), io::ErrorKind::NotFound);
        assert_eq!(start(&["a\0b".into()]), io::ErrorKind::InvalidInput);
    }

    /// Whether the process whose number was printed is gone, or dead and not yet collected by its new parent.
    fn gone(output: &[u8]) -> bool {
        let id = String::from_utf8(output.to_vec()).unwrap();
        // The signal was sent before `run` returned; its effect takes a moment.
        (0..500).any(|_| {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
            let dead = state.map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "));
            if !dead {
                std::thread::sleep(Duration::from_millis(10));
            }
            dead
        })
    }
}
