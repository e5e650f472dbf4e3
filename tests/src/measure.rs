//! Wall time, CPU time and peak memory of another process, read from `/proc`.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Clock ticks of `/proc/PID/stat` in a second: `USER_HZ`, which is 100 on every Linux port.
const TICKS: u64 = 100;
/// How often a process is looked at. Memory that is used for less may be missed.
const INTERVAL: Duration = Duration::from_micros(300);

/// What a process took.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// From its start to its end.
    pub wall: Duration,
    /// User and system time of all its threads, in steps of 10 ms.
    pub cpu: Duration,
    /// Peak of its resident memory in KiB.
    pub peak_kib: u64,
    /// How it ended.
    pub status: ExitStatus,
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or watched.
pub fn run(command: &mut Command) -> io::Result<Usage> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let (mut ticks, mut peak_kib) = (0, 0);
    // A process that has ended keeps its counters until it is waited for.
    while let Some(now) = look(&child, &mut peak_kib) {
        ticks = now.ticks;
        if now.ended {
            break;
        }
        std::thread::sleep(INTERVAL);
    }
    let wall = start.elapsed();
    Ok(Usage {
        wall,
        cpu: Duration::from_millis(ticks * 1000 / TICKS),
        peak_kib,
        status: child.wait()?,
    })
}

struct Seen {
    ended: bool,
    ticks: u64,
}

fn look(child: &Child, peak_kib: &mut u64) -> Option<Seen> {
    let proc = |file| std::fs::read_to_string(format!("/proc/{}/{file}", child.id())).ok();
    let peak = proc("status").and_then(|status| field(&status, "VmHWM:"));
    *peak_kib = peak.unwrap_or(0).max(*peak_kib);
    let stat = proc("stat")?;
    // The name in parentheses may hold anything; the numbered fields follow it, state first (proc(5) field 3).
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Seen {
        ended: *fields.first()? == "Z",
        ticks: number(11)? + number(12)?,
    })
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_measured_to_its_end() {
        let script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; sleep 0.2; exit 3";
        let usage = run(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(usage.status.code(), Some(3));
        assert!(
            usage.wall >= Duration::from_millis(200) && usage.cpu < usage.wall,
            "{usage:?}"
        );
        assert!(usage.peak_kib > 100, "{usage:?}");
    }
}
