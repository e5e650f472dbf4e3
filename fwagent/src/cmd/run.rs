//! `fwagent run`: polls, installs, confirms and falls back until it is told to stop.
//!
//! Every cycle takes the lock, loads the state anew and gives both back, so that `fwagent confirm` and its siblings work
//! beside it. An unreachable or lying server is a failed cycle, never the end of the loop.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fwmeta::client::ClientError;
use fwmeta::json::object;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use crate::cmd::report::Pace;
use crate::cmd::{check, observer, status};
use crate::config::Confirm;
use crate::device::Device;
use crate::drive::{DriveError, Held, Next, Observer, chain};
use crate::failure::{Failure, Outcome};
use crate::host::clock::{SystemClock, random};
use crate::host::notify::Notifier;
use crate::host::restart::Restart;
use crate::host::state_file::StateFile;
use crate::host::status_socket::{Hub, StatusSocket};
use crate::machine::plan::Wish;
use crate::machine::schedule;
use crate::machine::state::Phase;
use crate::machine::step::Event;
use crate::output::{self, Report};
use crate::ports::{Clock, Conditions, PortError};

/// Longest time in one system call.
const LONGEST_NAP: Duration = Duration::from_secs(24 * 3600);
/// How often a trial that an operator decides is looked at.
const TRIAL_POLL: Duration = Duration::from_secs(1);

pub fn run(mut device: Device, json: bool) -> Outcome<Report> {
    let _running = device.lock_named(".run.lock", Duration::ZERO)?;
    let mut waiter = Waiter::new(&device)?;
    let _status = listen(&mut device);
    waiter.events = device.events.clone();
    let started = Instant::now();
    // Before the health checks of a trial, which may take longer than a service manager waits for a start.
    waiter.notifier.ready();
    let mut reports = Pace::default();
    let (mut next, mut held) = power_on(&mut device, json)?;
    let mut failures = 0;
    let mut pause = device.config.interval.first(random());
    while next == Next::Continue {
        if let Some(until) = manual_deadline(&device, started)? {
            (next, held) = await_operator(&mut device, &mut waiter, until, json)?;
            if waiter.stopping() {
                break;
            }
            continue;
        }
        device.end_watch();
        if let Some(said) = reports.round(&mut device) {
            tell(&mut waiter, json, &said);
        }
        tell(&mut waiter, json, &format!("next poll in {} s", pause.as_secs()));
        if !wait(&device, &mut waiter, pause, held.as_ref()) {
            break;
        }
        let cycle = cycle(&mut device, json);
        match cycle {
            Ok(then) => {
                failures = 0;
                (next, held) = then;
                pause = device.config.interval.next(0, None, random());
            }
            Err(error) if error.is_stop() => break,
            Err(error) => {
                failures += 1;
                held = None;
                pause = device.config.interval.next(failures, error.retry_after(), random());
                tell(&mut waiter, json, &format!("poll failed: {}", chain(&error)));
            }
        }
    }
    waiter.notifier.stopping();
    let restart = next == Next::Restart;
    if restart && device.config.restart != Restart::Exit {
        // Ending now would make a service manager start the agent again before the device goes down.
        tell(&mut waiter, json, "waiting for the restart");
        waiter.pause(Duration::MAX);
    }
    device.end_watch();
    let text = if restart { "ended for a restart" } else { "stopped" };
    Ok(Report::done(
        text,
        object([("stopped", true.into()), ("restart", restart.into())]),
    ))
}

/// Opens the status socket, if one is configured. A device must be updated also when that cannot be.
fn listen(device: &mut Device) -> Option<StatusSocket> {
    let config = device.config.status.clone()?;
    let events = Hub::default();
    device.events = Some(events.clone());
    // The records are read as the commands read them, beside the agent.
    let reader = Device::new(device.config.clone(), Arc::clone(&device.stop));
    let reader = Mutex::new(reader);
    let answer = move |what: &str| {
        let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let report = match what {
            "status" => status::status(&reader),
            "explain" => status::explain(&reader),
            _ => return None,
        };
        Some(report.map_or_else(|failure| failure.to_value(), |report| report.json))
    };
    let opened = StatusSocket::open(&config, events, Arc::new(answer));
    opened
        .inspect_err(|error| eprintln!("fwagent: no status socket at {}: {error}", config.path.display()))
        .ok()
}

fn tell(waiter: &mut Waiter, json: bool, text: &str) {
    waiter.notifier.status(text);
    let said = object([("event", "status".into()), ("status", text.into())]);
    if let Some(events) = &waiter.events {
        events.publish(&said);
    }
    if json {
        output::line(&said.to_json());
    } else {
        eprintln!("fwagent: {text}");
    }
}

/// Shows what the driver does, and gives signs of life while it does it.
fn watched(device: &Device, json: bool) -> Observer {
    let mut show = observer(device, json);
    let notifier = Notifier::from_env();
    Box::new(move |notice| {
        notifier.watchdog();
        show(notice)
    })
}

/// What follows, and what an update has to wait for.
type Then = (Next, Option<Held>);

fn power_on(device: &mut Device, json: bool) -> Outcome<Then> {
    let _lock = device.lock()?;
    let watch = watched(device, json);
    let mut driver = device.driver(watch)?;
    let next = driver.power_on()?;
    Ok((next, driver.held().cloned()))
}

/// Waits for the next poll, or until what an update waits for may have changed; `false` when it is time to stop.
fn wait(device: &Device, waiter: &mut Waiter, pause: Duration, held: Option<&Held>) -> bool {
    let Some(held) = held else {
        return waiter.pause(pause);
    };
    let start = Instant::now();
    let command = &device.config.conditions.inhibit_command;
    let mut conditions = device.conditions(command.clone());
    let mut reasons = held.reasons.clone();
    loop {
        let left = pause.saturating_sub(start.elapsed());
        let nap = schedule::next_look(&reasons, SystemClock.now(), device.config.conditions.recheck).min(left);
        if !waiter.pause(nap) {
            return false;
        }
        // A state that cannot be read is for the cycle to report.
        let Ok(Some(state)) = StateFile::new(&device.config.state_dir).peek() else {
            return true;
        };
        let now = device.held(&state, &conditions.facts(), held.ask.clone());
        match now.filter(|_| start.elapsed() < pause && !waiter.woken) {
            Some(still) => reasons = still.reasons,
            None => return true,
        }
    }
}

fn cycle(device: &mut Device, json: bool) -> Result<Then, DriveError> {
    let failed = |failure: Failure| DriveError::from(PortError::environment("starting a cycle", Some(failure.error)));
    let _lock = device.lock().map_err(failed)?;
    let watch = watched(device, json);
    let mut driver = device.driver(watch).map_err(failed)?;
    // What waits for its restart needs no server; and it may be replaced only once it is certain that it still waits.
    if driver.waits() && driver.power_on()? == Next::Restart {
        return Ok((Next::Restart, None));
    }
    let (mut checked, next) = driver
        .update(&Wish::default())
        .inspect_err(|error| check::remember_failure(device, error))?;
    check::remember(device, &checked);
    // A role that could not be had may hold the update: then this poll is repeated soon, or when the server says.
    let unavailable = |problem: &ClientError| matches!(problem, ClientError::Fetch { .. });
    match checked.problems.iter().position(unavailable) {
        Some(at) if checked.offer.is_none() => Err(checked.problems.swap_remove(at).into()),
        _ => Ok((next, driver.held().cloned())),
    }
}

/// When the trial must have been confirmed by an operator; `None` when nothing waits for one.
fn manual_deadline(device: &Device, started: Instant) -> Outcome<Option<Instant>> {
    let Confirm::Manual { within } = device.config.confirm else {
        return Ok(None);
    };
    let state = StateFile::new(&device.config.state_dir).peek()?;
    let waiting = state.is_some_and(|state| matches!(state.phase, Phase::Trial { .. }));
    // Counted from the start of the agent: a clock may jump, and a restart spends a boot attempt anyway.
    Ok(waiting.then(|| started.checked_add(within).unwrap_or(started)))
}

/// Waits until the operator has decided, or ends the trial at the deadline.
fn await_operator(device: &mut Device, waiter: &mut Waiter, until: Instant, json: bool) -> Outcome<Then> {
    tell(waiter, json, "waiting for `fwagent confirm` or `fwagent rollback`");
    while Instant::now() < until {
        if let Some(watchdog) = &device.watchdog {
            watchdog.go_on();
        }
        if !waiter.pause(TRIAL_POLL) {
            return Ok((Next::Continue, None));
        }
        if manual_deadline(device, until)?.is_none() {
            // Another command has decided. When it asked for a restart, this process must make way for it.
            return power_on(device, json);
        }
    }
    let _lock = device.lock()?;
    let watch = watched(device, json);
    let mut driver = device.driver(watch)?;
    if !matches!(driver.state().phase, Phase::Trial { .. }) {
        return Ok((Next::Continue, None));
    }
    let event = Event::HealthFailed {
        reason: "nobody confirmed the trial in time".to_owned(),
        log: String::new(),
    };
    Ok((driver.tell(event)?, None))
}

/// Waits, and hears signals while it does. A waiting agent does not wake up for anything else.
struct Waiter {
    stop: Arc<AtomicBool>,
    poll_now: Arc<AtomicBool>,
    /// Whether a signal ended the last wait.
    woken: bool,
    /// Gets a byte with every signal.
    wake: UnixStream,
    notifier: Notifier,
    events: Option<Hub>,
}

impl Waiter {
    fn new(device: &Device) -> Outcome<Self> {
        let poll_now = Arc::new(AtomicBool::new(false));
        let set_up = || {
            signal_hook::flag::register(SIGUSR1, Arc::clone(&poll_now))?;
            let (wake, sender) = UnixStream::pair()?;
            // After the flags, which are thus set when the byte arrives: handlers run in the order of registration.
            for signal in [SIGTERM, SIGINT, SIGUSR1] {
                signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
            }
            Ok(wake)
        };
        let wake = set_up()
            .map_err(|error: std::io::Error| PortError::environment("setting up signals", Some(error.into())))?;
        Ok(Self {
            stop: Arc::clone(&device.stop),
            poll_now,
            woken: false,
            wake,
            notifier: Notifier::from_env(),
            events: None,
        })
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits; `false` when it is time to stop. SIGUSR1 ends the wait early.
    fn pause(&mut self, pause: Duration) -> bool {
        let start = Instant::now();
        while !self.stopping() {
            let left = pause.saturating_sub(start.elapsed());
            self.woken = self.poll_now.swap(false, Ordering::Relaxed);
            if self.woken || left.is_zero() {
                return true;
            }
            let nap = left.min(self.notifier.watchdog_interval().unwrap_or(LONGEST_NAP));
            // Not zero, which would be an error; a failure of either call is a nap cut short.
            let _ = self.wake.set_read_timeout(Some(nap));
            let _ = self.wake.read(&mut [0; 64]);
            self.notifier.watchdog();
        }
        false
    }
}
