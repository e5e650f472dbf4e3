//! The watchdog device of the kernel, during a trial: whoever hangs is reset, and the boot loader goes back.
//!
//! What it decides: that the device is opened by the first health check of a trial and by nothing else, and how long it
//! is fed: up to a deadline that the main thread sets and moves, never because this thread is still alive. What it does
//! not decide: how long the device waits for food, which is the kernel's, and what follows from the reset.
//!
//! A trial that ends, well or not, and an agent that is asked to stop are no hang: the device gets its magic `V` and is
//! closed. An agent that ends in any other way leaves it armed: nobody is there to end the trial.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::host::health::HealthChecks;
use crate::machine::slot::SlotId;
use crate::ports::{Health, HealthCheck, PortError};

/// What feeds the device; any byte but the magic one.
const FOOD: &[u8] = b"1";
/// What a watchdog device takes as the promise that closing it is meant.
const MAGIC_CLOSE: &[u8] = b"V";
/// Longest time that health checks are given before the device is let go hungry.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The watchdog device of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Such as `/dev/watchdog`.
    pub device: PathBuf,
    /// Time between two feeds.
    pub interval: Duration,
    /// Time for what is not a health check: the record, the boot loader, the restart.
    pub grace: Duration,
    /// Whether a trial without it has failed.
    pub required: bool,
}

/// The watchdog of one agent. Clones are the same one; a device that is open when the last one goes stays armed.
#[derive(Debug, Clone)]
pub struct Watchdog {
    config: Arc<WatchdogConfig>,
    feeder: Arc<Mutex<Option<Feeder>>>,
}

impl Watchdog {
    /// A watchdog whose device is not open yet.
    pub fn new(config: WatchdogConfig) -> Self {
        Self {
            config: Arc::new(config),
            feeder: Arc::default(),
        }
    }

    /// Opens the device, unless it is open, and lets it be fed for this time and the grace.
    ///
    /// # Errors
    /// When it cannot be opened: [`io::ErrorKind::ResourceBusy`] when another process has it.
    pub fn feed_for(&self, time: Duration) -> io::Result<()> {
        let mut feeder = locked(&self.feeder);
        let until = Instant::now() + time.min(LONGEST) + self.config.grace;
        match &*feeder {
            Some(open) => open.set_deadline(until),
            None => *feeder = Some(Feeder::start(&self.config, until)?),
        }
        Ok(())
    }

    /// The main thread is well: the device, if it is open, is fed for the grace from now on.
    pub fn go_on(&self) {
        if let Some(open) = &*locked(&self.feeder) {
            open.set_deadline(Instant::now() + self.config.grace);
        }
    }

    /// Lets the device, if it is open, watch no longer.
    pub fn close(&self) {
        if let Some(open) = locked(&self.feeder).take() {
            open.end(End::Orderly);
        }
    }
}

/// What the main thread and the one that feeds share.
#[derive(Debug)]
struct Orders {
    until: Instant,
    end: Option<End>,
}

/// How feeding ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The trial is over.
    Orderly,
    /// Nobody has ended the trial.
    Armed,
}

#[derive(Debug)]
struct Feeder {
    orders: Arc<(Mutex<Orders>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    fn start(config: &WatchdogConfig, until: Instant) -> io::Result<Self> {
        // Not to be held up by a pipe that nobody reads; not a terminal either.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let device = OpenOptions::new()
            .append(true)
            .custom_flags(flags.bits().cast_signed())
            .open(&config.device)?;
        let orders = Arc::new((Mutex::new(Orders { until, end: None }), Condvar::new()));
        let (config, shared) = (config.clone(), Arc::clone(&orders));
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || feed(&config, device, &shared))?;
        Ok(Self {
            orders,
            thread: Some(thread),
        })
    }

    fn set_deadline(&self, until: Instant) {
        locked(&self.orders.0).until = until;
    }

    /// Ends the thread, unless somebody has told it how to end before.
    fn end(&self, end: End) {
        locked(&self.orders.0).end.get_or_insert(end);
        self.orders.1.notify_all();
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.end(End::Armed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Feeds the device until it is told to end; not after the deadline, unless that is moved.
fn feed(config: &WatchdogConfig, mut device: File, (orders, changed): &(Mutex<Orders>, Condvar)) {
    let path = config.device.display();
    let (mut well, mut hungry) = (true, false);
    let mut now = locked(orders);
    while now.end.is_none() {
        let late = Instant::now() >= now.until;
        if late != hungry {
            hungry = late;
            eprintln!(
                "fwagent: {} {path}",
                if late {
                    "the deadline has passed and nothing is decided; no more food for"
                } else {
                    "goes on with feeding"
                }
            );
        }
        if !late {
            let fed = device.write_all(FOOD);
            if let Err(error) = &fed
                && well
            {
                eprintln!("fwagent: feeding {path}: {error}");
            }
            well = fed.is_ok();
        }
        let waited = changed.wait_timeout(now, config.interval);
        now = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    if now.end == Some(End::Orderly)
        && let Err(error) = device.write_all(MAGIC_CLOSE)
    {
        eprintln!("fwagent: closing {path}, which may reset the device: {error}");
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Health checks under the eye of the watchdog.
#[derive(Debug)]
pub struct WatchedChecks {
    /// The checks.
    pub checks: HealthChecks,
    /// The watchdog, if there is one.
    pub watchdog: Option<Watchdog>,
}

impl HealthCheck for WatchedChecks {
    fn check(&mut self, slot: &SlotId) -> Result<Health, PortError> {
        if let Some(watchdog) = &self.watchdog
            && let Err(error) = watchdog.feed_for(self.checks.longest())
        {
            let reason = format!(
                "watchdog {} cannot be opened: {error}",
                watchdog.config.device.display()
            );
            if watchdog.config.required {
                let log = String::new();
                return Ok(Health::Failed { reason, log });
            }
            eprintln!("fwagent: {reason}; the trial goes on without it");
        }
        self.checks.check(slot)
    }

    fn evidence(&mut self) -> String {
        self.checks.evidence()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    fn watchdog(device: &Path, required: bool) -> Watchdog {
        Watchdog::new(WatchdogConfig {
            device: device.to_owned(),
            interval: TICK,
            grace: Duration::from_secs(60),
            required,
        })
    }

    fn wait_for(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(TICK);
        }
    }

    #[test]
    fn it_is_fed_until_it_is_closed_and_not_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        fs::write(&device, "").unwrap();
        let eaten = || fs::read(&device).unwrap();
        let watchdog = watchdog(&device, false);
        watchdog.go_on();
        watchdog.close();
        assert_eq!(eaten(), b"");
        watchdog.feed_for(Duration::MAX).unwrap();
        wait_for(|| eaten().len() >= 3);
        assert!(eaten().iter().all(|byte| *byte == b'1'));
        watchdog.close();
        let all = eaten();
        assert_eq!(all.iter().position(|byte| *byte == b'V'), Some(all.len() - 1));
        watchdog.go_on();
        assert_eq!(eaten(), all);
    }

    #[test]
    fn nothing_is_fed_after_the_deadline_unless_that_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        fs::write(&device, "").unwrap();
        let eaten = || fs::read(&device).unwrap().len();
        let watchdog = watchdog(&device, false);
        watchdog.feed_for(Duration::ZERO).unwrap();
        wait_for(|| eaten() > 0);
        locked(&watchdog.feeder).as_ref().unwrap().set_deadline(Instant::now());
        // One feed may be under way.
        std::thread::sleep(TICK * 5);
        let then = eaten();
        std::thread::sleep(TICK * 20);
        assert_eq!(eaten(), then);
        watchdog.go_on();
        wait_for(|| eaten() > then);
    }

    #[test]
    fn an_agent_that_ends_without_closing_it_leaves_it_armed() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        fs::write(&device, "").unwrap();
        let watchdog = watchdog(&device, false);
        watchdog.feed_for(Duration::ZERO).unwrap();
        wait_for(|| !fs::read(&device).unwrap().is_empty());
        let other = watchdog.clone();
        drop(watchdog);
        let then = fs::read(&device).unwrap().len();
        wait_for(|| fs::read(&device).unwrap().len() > then);
        drop(other);
        let all = fs::read(&device).unwrap();
        assert!(all.iter().all(|byte| *byte == b'1'));
        std::thread::sleep(TICK * 5);
        assert_eq!(fs::read(&device).unwrap(), all);
    }

    #[test]
    fn a_device_that_is_not_there_fails_the_trial_only_where_it_is_required() {
        let dir = tempfile::tempdir().unwrap();
        let slot = SlotId::parse("b").unwrap();
        let verdict = |required| {
            let checks = HealthChecks::new(Vec::new(), false, Arc::default(), |_| None);
            let watchdog = Some(watchdog(&dir.path().join("absent"), required));
            WatchedChecks { checks, watchdog }.check(&slot).unwrap()
        };
        assert_eq!(verdict(false), Health::Passed);
        let Health::Failed { reason, .. } = verdict(true) else {
            panic!("passed");
        };
        assert!(reason.contains("absent cannot be opened: No such file"), "{reason}");
        assert!(!dir.path().join("absent").exists());
    }
}
