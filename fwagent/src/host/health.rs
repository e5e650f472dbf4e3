//! Health checks: commands that say whether the running slot works.
//!
//! What it decides: when a check has passed (it exits with 0 within its time, at once or when it is tried again), and
//! what the device tells about one that has not. What it does not decide: what follows from the verdict.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::host::evidence::Evidence;
use crate::host::process::{End, Run, run};
use crate::machine::slot::SlotId;
use crate::ports::{Health, HealthCheck, PortError};

/// Stands for the path of the slot in the arguments of a check.
const PLACEHOLDER: &str = "{slot}";
/// Longest time between two looks at the stop flag.
const POLL: Duration = Duration::from_millis(50);

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckConfig {
    /// Its name, for reports.
    pub name: String,
    /// Program and arguments; `{slot}` in any of them stands for the path of the slot.
    pub command: Vec<String>,
    /// Time for one try.
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
    /// Time between two tries.
    pub retry_delay: Duration,
}

/// The checks of this device, run in their order; the first failure ends them.
pub struct HealthChecks {
    checks: Vec<CheckConfig>,
    manual: bool,
    deadline: Option<Duration>,
    evidence: Evidence,
    stop: Arc<AtomicBool>,
    slot_path: Box<SlotPath>,
}

type SlotPath = dyn Fn(&SlotId) -> Option<PathBuf> + Send;

impl HealthChecks {
    /// These checks. With `manual` the operator has the last word: all passed means [`Health::Awaited`]. When `stop` is
    /// set, checks end at once. `slot_path` tells where a slot's content is used from.
    pub fn new(
        checks: Vec<CheckConfig>,
        manual: bool,
        stop: Arc<AtomicBool>,
        slot_path: impl Fn(&SlotId) -> Option<PathBuf> + Send + 'static,
    ) -> Self {
        Self {
            checks,
            manual,
            deadline: None,
            evidence: Evidence::default(),
            stop,
            slot_path: Box::new(slot_path),
        }
    }

    /// With this much time for all of them together, tries and waits included.
    #[must_use]
    pub fn within(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    /// With this evidence of a slot that never came up.
    #[must_use]
    pub fn with_evidence(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self
    }

    /// The longest time that they take: the deadline, or what their own times add up to.
    pub fn longest(&self) -> Duration {
        self.deadline.unwrap_or_else(|| {
            let each = self.checks.iter().map(|check| {
                let tries = check.timeout.saturating_mul(check.retries.saturating_add(1));
                tries.saturating_add(check.retry_delay.saturating_mul(check.retries))
            });
            each.fold(Duration::ZERO, Duration::saturating_add)
        })
    }

    /// Tries one check until it passes or has no tries left; the verdict when it is not that it passed.
    fn try_check(&self, check: &CheckConfig, slot: &SlotId, until: Option<Instant>) -> Option<Health> {
        let left = || until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        let mut last = String::new();
        for again in (0..=check.retries).rev() {
            if left().is_zero() {
                break;
            }
            match self.run_once(check, slot, check.timeout.min(left())) {
                Health::Passed => return None,
                // What is too late is not tried again, and why is said below.
                Health::Failed { log, .. } if left().is_zero() => last = log,
                Health::Failed { log, .. } if again > 0 => {
                    last = log;
                    if !self.wait(check.retry_delay.min(left())) {
                        return Some(Health::Stopped);
                    }
                }
                other => return Some(other),
            }
        }
        let time = self.deadline.unwrap_or_default();
        Some(Health::Failed {
            reason: format!(
                "check {:?} had not passed when the {time:?} for all checks were over",
                check.name
            ),
            log: last,
        })
    }

    fn run_once(&self, check: &CheckConfig, slot: &SlotId, timeout: Duration) -> Health {
        let failed = |how: String, output: &[u8]| Health::Failed {
            reason: format!("check {:?} {how}", check.name),
            log: readable(output),
        };
        let path = (self.slot_path)(slot);
        let Some(argv) = arguments(&check.command, path.as_deref()) else {
            return failed(format!("cannot be started: slot {slot} has no path"), &[]);
        };
        let mut env = vec![("FWAGENT_SLOT", OsStr::new(slot.as_str()))];
        env.extend(path.as_ref().map(|path| ("FWAGENT_SLOT_PATH", path.as_os_str())));
        let finished = run(&Run {
            argv: &argv,
            env: &env,
            timeout,
            stop: &self.stop,
        });
        match finished {
            Err(error) => failed(format!("cannot be started: {error}"), &[]),
            Ok(finished) => match finished.end {
                End::Stopped => Health::Stopped,
                End::TimedOut => failed(format!("did not end within {timeout:?}"), &finished.output),
                End::Exited(status) if status.success() => Health::Passed,
                End::Exited(status) => {
                    let how = match (status.code(), status.signal()) {
                        (Some(code), _) => format!("ended with exit status {code}"),
                        (None, Some(signal)) => format!("was ended by signal {signal}"),
                        (None, None) => format!("ended with {status}"),
                    };
                    failed(how, &finished.output)
                }
            },
        }
    }

    /// Waits; `false` when it was asked to stop.
    fn wait(&self, delay: Duration) -> bool {
        let begin = Instant::now();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = delay.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(POLL));
        }
    }
}

impl HealthCheck for HealthChecks {
    fn check(&mut self, slot: &SlotId) -> Result<Health, PortError> {
        let until = self.deadline.and_then(|time| Instant::now().checked_add(time));
        for check in &self.checks {
            if let Some(verdict) = self.try_check(check, slot, until) {
                return Ok(verdict);
            }
        }
        // Not one more step is to be taken on the word of checks that ran while the agent was asked to end.
        Ok(if self.stop.load(Ordering::Relaxed) {
            Health::Stopped
        } else if self.manual {
            Health::Awaited
        } else {
            Health::Passed
        })
    }

    fn evidence(&mut self) -> String {
        self.evidence.read()
    }
}

impl fmt::Debug for HealthChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthChecks")
            .field("checks", &self.checks)
            .field("manual", &self.manual)
            .finish_non_exhaustive()
    }
}

/// The command with the path of the slot in its places; `None` when it has places and there is no path.
fn arguments(command: &[String], path: Option<&Path>) -> Option<Vec<OsString>> {
    let fill = |argument: &String| {
        let mut parts = argument.split(PLACEHOLDER);
        let mut filled = OsString::from(parts.next().unwrap_or_default());
        for part in parts {
            filled.push(path?);
            filled.push(part);
        }
        Some(filled)
    };
    command.iter().map(fill).collect()
}

/// Output as text that is harmless on a terminal and in a report.
pub(crate) fn readable(output: &[u8]) -> String {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    String::from_utf8_lossy(output)
        .trim_end()
        .chars()
        .map(harmless)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(name: &str, script: &str) -> CheckConfig {
        CheckConfig {
            name: name.to_owned(),
            command: ["sh", "-c", script, "{slot}", "at:{slot}:{slot}"]
                .map(str::to_owned)
                .to_vec(),
            timeout: Duration::from_secs(60),
            retries: 0,
            retry_delay: Duration::ZERO,
        }
    }

    fn verdict(checks: Vec<CheckConfig>, manual: bool, stop: bool) -> Health {
        let stop = Arc::new(AtomicBool::new(stop));
        let slot = SlotId::parse("b").unwrap();
        let path = |slot: &SlotId| Some(Path::new("/slots").join(slot.as_str()));
        HealthChecks::new(checks, manual, stop, path).check(&slot).unwrap()
    }

    fn failure(check: CheckConfig) -> (String, String) {
        match verdict(vec![check], false, false) {
            Health::Failed { reason, log } => (reason, log),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_must_pass() {
        let pass = || check("good", "true");
        assert_eq!(verdict(vec![], false, false), Health::Passed);
        assert_eq!(verdict(vec![pass(), pass()], false, false), Health::Passed);
        assert_eq!(verdict(vec![pass()], true, false), Health::Awaited);
        assert_eq!(verdict(vec![], true, true), Health::Stopped);
        let sleeping = check("sleeping", "sleep 50");
        assert_eq!(verdict(vec![sleeping], false, true), Health::Stopped);
        let bad = check("net", "echo first; printf '\\033[2Jlast\\n' >&2; exit 3");
        let Health::Failed { reason, log } = verdict(vec![pass(), bad.clone()], true, false) else {
            panic!("passed");
        };
        assert_eq!(reason, "check \"net\" ended with exit status 3");
        assert_eq!(log, "first\n\u{fffd}[2Jlast");
        // The first failure ends them: the second would never end.
        let endless = CheckConfig {
            timeout: Duration::MAX,
            ..check("endless", "sleep 1000")
        };
        assert!(matches!(
            verdict(vec![bad, endless], false, false),
            Health::Failed { .. }
        ));
    }

    #[test]
    fn reasons_say_how() {
        assert_eq!(failure(check("x", "kill -9 $$")).0, "check \"x\" was ended by signal 9");
        let slow = CheckConfig {
            timeout: Duration::from_millis(200),
            ..check("slow", "echo begun; sleep 50")
        };
        let (reason, log) = failure(slow);
        assert_eq!(reason, "check \"slow\" did not end within 200ms");
        assert_eq!(log, "begun");
        let absent = CheckConfig {
            command: vec!["/nonexistent/check".to_owned()],
            ..check("absent", "")
        };
        assert!(
            failure(absent)
                .0
                .starts_with("check \"absent\" cannot be started: No such file")
        );
        let empty = CheckConfig {
            command: vec![],
            ..check("empty", "")
        };
        assert_eq!(
            failure(empty).0,
            "check \"empty\" cannot be started: the command is empty"
        );
    }

    #[test]
    fn checks_know_the_slot() {
        let shows = check("env", r#"echo "$FWAGENT_SLOT $FWAGENT_SLOT_PATH $0 $1"; false"#);
        assert_eq!(failure(shows).1, "b /slots/b /slots/b at:/slots/b:/slots/b");
        let slot = SlotId::parse("c").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut checks = HealthChecks::new(vec![check("lost", "true")], false, stop, |_| None);
        let Health::Failed { reason, .. } = checks.check(&slot).unwrap() else {
            panic!("passed");
        };
        assert_eq!(reason, "check \"lost\" cannot be started: slot c has no path");
    }

    #[test]
    fn a_check_is_tried_again_as_often_as_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("tries");
        let tries = |retries, passes_at: u32| {
            let _ = std::fs::remove_file(&log);
            let script = format!(
                "echo >> {0}; test $(wc -l < {0}) -ge {passes_at}",
                log.to_str().unwrap()
            );
            let check = CheckConfig {
                retries,
                ..check("late", &script)
            };
            let verdict = verdict(vec![check], false, false);
            (verdict == Health::Passed, std::fs::read(&log).unwrap().len())
        };
        assert_eq!(tries(0, 1), (true, 1));
        assert_eq!(tries(5, 3), (true, 3));
        assert_eq!(tries(2, 9), (false, 3));
    }

    #[test]
    fn all_checks_together_end_at_their_deadline() {
        let slot = SlotId::parse("b").unwrap();
        let check_within = |checks: &[CheckConfig], deadline| {
            let checks = HealthChecks::new(checks.to_vec(), false, Arc::default(), |_| Some(PathBuf::from("/slot")));
            checks.within(Some(deadline)).check(&slot).unwrap()
        };
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(60));
        let for_ever = CheckConfig {
            retries: u32::MAX,
            ..check("late", "echo no link; false")
        };
        let hanging = CheckConfig {
            timeout: Duration::MAX,
            ..check("late", "echo no link; sleep 1000")
        };
        let waiting = CheckConfig {
            retry_delay: Duration::MAX,
            retries: 1,
            ..for_ever.clone()
        };
        let begin = Instant::now();
        for endless in [for_ever, hanging, waiting] {
            let Health::Failed { reason, log } = check_within(&[check("good", "true"), endless], short) else {
                panic!("passed");
            };
            assert_eq!(
                reason,
                "check \"late\" had not passed when the 300ms for all checks were over"
            );
            assert_eq!(log, "no link");
        }
        assert!(begin.elapsed() < long);
        // What ends in time has its own verdict.
        assert_eq!(check_within(&[check("good", "true")], long), Health::Passed);
        let Health::Failed { reason, .. } = check_within(&[check("bad", "exit 3")], long) else {
            panic!("passed");
        };
        assert_eq!(reason, "check \"bad\" ended with exit status 3");
    }

    #[test]
    fn the_longest_time_is_the_deadline_or_the_sum() {
        let seconds = Duration::from_secs;
        let slow = CheckConfig {
            retries: 2,
            retry_delay: seconds(5),
            ..check("slow", "true")
        };
        let endless = CheckConfig {
            retries: u32::MAX,
            timeout: Duration::MAX,
            ..slow.clone()
        };
        let longest = |checks: &[&CheckConfig], deadline| {
            let checks = checks.iter().map(|check| (*check).clone()).collect();
            let checks = HealthChecks::new(checks, false, Arc::default(), |_| None);
            checks.within(deadline).longest()
        };
        assert_eq!(longest(&[], None), Duration::ZERO);
        assert_eq!(longest(&[&slow, &slow], None), seconds(2 * (3 * 60 + 2 * 5)));
        assert_eq!(longest(&[&slow, &endless], None), Duration::MAX);
        assert_eq!(longest(&[&endless], Some(seconds(7))), seconds(7));
    }
}
