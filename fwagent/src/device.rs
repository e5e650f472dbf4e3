//! A device put together from its configuration: the real ports, and the lock that keeps two agents apart.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fwbundle::Bundle;
use fwdurable::Lock;

use crate::config::{BootConfig, Config, Confirm, UbootScheme};
use crate::drive::{Driver, Held, Observer, Ports, Setup};
use crate::failure::{Code, Failure, Outcome};
use crate::host::boot_file::BootFile;
use crate::host::bundle::BundleRepository;
use crate::host::clock::SystemClock;
use crate::host::conditions::{ConditionsConfig, HostConditions};
use crate::host::generation::GenerationStore;
use crate::host::health::HealthChecks;
use crate::host::http::Http;
use crate::host::loader::boot_count::UbootCount;
use crate::host::loader::efi::Efi;
use crate::host::loader::file_lock::FileLock;
use crate::host::loader::gpt::Gpt;
use crate::host::loader::grub::Grub;
use crate::host::loader::systemd_boot::SystemdBoot;
use crate::host::loader::tryboot::Tryboot;
use crate::host::loader::uboot::Uboot;
use crate::host::loader::{HostBoot, Loader};
use crate::host::reporter::{Reported, Reporter};
use crate::host::repository::HttpRepository;
use crate::host::settings::HostSettings;
use crate::host::slots::HostSlots;
use crate::host::state_file::StateFile;
use crate::host::status_socket::Hub;
use crate::host::tpm_state::TpmState;
use crate::host::transport::HostTransport;
use crate::host::watchdog::{Watchdog, WatchedChecks};
use crate::machine::conditions::{Ask, Facts, judge};
use crate::machine::state::State;
use crate::machine::time::Reference;
use crate::ports::{Clock, HealthCheck, PortError, StateStore};

/// Time to wait for another command of the agent.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The driver of a real device.
pub type HostDriver = Driver<GenerationStore, HostTransport>;

/// A device.
#[derive(Debug)]
pub struct Device {
    /// Its configuration.
    pub config: Config,
    /// Set by SIGTERM and SIGINT.
    pub stop: Arc<AtomicBool>,
    /// Stands in place of the server.
    pub bundle: Option<Bundle>,
    /// Who watches what is done.
    pub events: Option<Hub>,
    /// Watches a trial.
    pub watchdog: Option<Watchdog>,
    http: Option<Http>,
}

impl Device {
    /// A device with this configuration.
    pub fn new(config: Config, stop: Arc<AtomicBool>) -> Self {
        Self {
            watchdog: config.watchdog.clone().map(Watchdog::new),
            config,
            stop,
            bundle: None,
            events: None,
            http: None,
        }
    }

    /// Where trusted metadata lie.
    pub fn metadata_dir(&self) -> PathBuf {
        self.config.state_dir.join("metadata")
    }

    /// The boot loader.
    pub fn boot(&self) -> Box<dyn HostBoot> {
        let (slots, attempts) = (self.config.slot_sets(), self.config.boot_attempts);
        let dir = &self.config.state_dir;
        match self.config.boot.clone() {
            BootConfig::File => Box::new(BootFile::new(dir)),
            BootConfig::Uboot {
                fw_env_config,
                byte_order,
                lock_file,
                scheme,
                running,
            } => {
                let medium = Uboot::new(fw_env_config, byte_order, FileLock::of_fw_setenv(lock_file));
                match scheme {
                    UbootScheme::Order => Box::new(Loader::new(medium, slots, attempts, running)),
                    UbootScheme::Bootcount { names, counter_file } => {
                        let medium = UbootCount::new(medium, names, counter_file);
                        Box::new(Loader::new(medium, slots, attempts, running))
                    }
                }
            }
            BootConfig::Gpt {
                disk,
                partitions,
                running,
            } => Box::new(Loader::new(Gpt::new(disk, partitions), slots, attempts, running)),
            BootConfig::Grub { grubenv, running } => {
                Box::new(Loader::new(Grub::new(grubenv, dir), slots, attempts, running))
            }
            BootConfig::SystemdBoot { paths, names, running } => Box::new(SystemdBoot::new(paths, names, running)),
            BootConfig::Tryboot {
                paths,
                partitions,
                running,
            } => Box::new(Tryboot::new(paths, partitions, dir, running)),
            BootConfig::Efi { vars, entries, running } => Box::new(Efi::new(vars, entries, running)),
        }
    }

    /// The boot loader's half of boot control `file`.
    ///
    /// # Errors
    /// [`Failure`] when another boot control is configured, whose loader chooses the slot itself.
    pub fn boot_file(&self) -> Outcome<BootFile> {
        if self.config.boot == BootConfig::File {
            return Ok(BootFile::new(&self.config.state_dir));
        }
        Err(Failure {
            code: Code::Usage,
            error: format!(
                "`fwagent boot` is the boot loader of control \"file\", and boot.control is \"{}\"",
                self.config.boot.word()
            )
            .into(),
            advice: Some("the boot loader of this device chooses the slot itself"),
        })
    }

    /// The settings.
    pub fn settings(&self) -> HostSettings {
        let dir = &self.config.state_dir;
        HostSettings::new(self.config.settings.clone(), dir, Arc::clone(&self.stop))
    }

    /// The slots.
    pub fn slots(&self) -> HostSlots {
        HostSlots::new(self.config.slots.clone())
    }

    /// Takes the lock of the state directory, waiting a little for another command.
    ///
    /// # Errors
    /// [`Failure`] when the directory is missing or another agent keeps it.
    pub fn lock(&self) -> Outcome<Lock> {
        self.lock_named(".lock", LOCK_TIMEOUT)
    }

    /// Like [`lock`](Self::lock), with another name and time.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_named(&self, name: &str, timeout: Duration) -> Outcome<Lock> {
        let path = self.config.state_dir.join(name);
        let start = Instant::now();
        loop {
            match Lock::try_exclusive(&path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) if start.elapsed() >= timeout || self.stop.load(Ordering::Relaxed) => {
                    return Err(Failure {
                        code: Code::Environment,
                        error: format!("{} is locked by another fwagent", path.display()).into(),
                        advice: Some("wait for it, or stop it"),
                    });
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(50)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Failure {
                        code: Code::Environment,
                        error: format!("state directory {} does not exist", self.config.state_dir.display()).into(),
                        advice: Some("give the device a root of trust with `fwagent provision --root ROOT`"),
                    });
                }
                Err(error) => {
                    return Err(
                        PortError::environment(format!("locking {}", path.display()), Some(error.into())).into(),
                    );
                }
            }
        }
    }

    /// Makes and keeps the device's statements. Whoever lets it write holds the lock.
    pub fn reporter(&self) -> Reporter {
        Reporter::new(&self.config.state_dir, self.config.identity.clone())
    }

    /// The network.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be set up.
    pub fn http(&mut self) -> Outcome<Http> {
        if self.http.is_none() {
            let http = Http::new(self.config.http.clone())
                .map_err(|error| PortError::environment("setting up the network", Some(error.into())))?;
            self.http = Some(http);
        }
        self.http
            .clone()
            .ok_or_else(|| Failure::new(Code::Environment, "no network"))
    }

    /// The agent's record, whose outcomes are reported.
    pub fn states(&self) -> Reported {
        let file = StateFile::new(&self.config.state_dir);
        match self.config.tpm.clone() {
            Some(tpm) => Reported::new(TpmState::new(file, tpm), self.reporter()),
            None => Reported::new(file, self.reporter()),
        }
    }

    /// The health checks as configured.
    pub fn health(&self) -> HealthChecks {
        let slots = self.slots();
        let manual = matches!(self.config.confirm, Confirm::Manual { .. });
        HealthChecks::new(
            self.config.checks.clone(),
            manual,
            Arc::clone(&self.stop),
            move |slot| slots.bootable_path(slot, None),
        )
        .within(self.config.health_deadline)
        .with_evidence(self.config.evidence.clone())
    }

    /// Nothing is on trial any more, or nobody is to watch it: the watchdog ends in order.
    pub fn end_watch(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.close();
        }
    }

    /// What decides whether an update may go on, with this command asked among the rest.
    pub fn conditions(&self, inhibit_command: Vec<String>) -> HostConditions {
        let config = ConditionsConfig {
            inhibit_command,
            ..self.config.conditions.clone()
        };
        HostConditions::new(config, &self.config.state_dir, Arc::clone(&self.stop))
    }

    /// What time it is, for a device in this state.
    pub fn time(&self, state: &State) -> Reference {
        let passed = state.floors.time.max(self.config.conditions.policy.not_before);
        Reference::new(SystemClock.now(), passed)
    }

    /// What withholds `ask` now, for a device in this state.
    pub fn held(&self, state: &State, facts: &Facts, ask: Ask) -> Option<Held> {
        let reasons = judge(&self.config.conditions.policy, facts, self.time(state), &ask);
        (!reasons.is_empty()).then_some(Held { ask, reasons })
    }

    /// A driver over the real ports. The caller holds the lock.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn driver(&mut self, observer: Observer) -> Outcome<HostDriver> {
        let health = Box::new(WatchedChecks {
            checks: self.health(),
            watchdog: self.watchdog.clone(),
        });
        let states = Box::new(self.states());
        self.driver_with(observer, states, health)
    }

    /// Like [`driver`](Self::driver), with another record or other health checks.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn driver_with(
        &mut self,
        observer: Observer,
        states: Box<dyn StateStore>,
        health: Box<dyn HealthCheck>,
    ) -> Outcome<HostDriver> {
        // What a loss of power left of writes. Whoever writes here holds the lock that the caller holds.
        let dir = &self.config.state_dir;
        fwdurable::sweep_temporaries(dir)
            .map_err(|error| PortError::environment(format!("cleaning {}", dir.display()), Some(error.into())))?;
        let metadata = GenerationStore::open(&self.metadata_dir())
            .map_err(|error| PortError::environment("opening the trusted metadata", Some(error.into())))?;
        if metadata.damaged() > 0 {
            eprintln!(
                "fwagent: {} generation(s) of trusted metadata were damaged and given up; floors still hold",
                metadata.damaged()
            );
            let reason = "generations of trusted metadata were damaged and given up";
            if let Err(error) = self.reporter().note("degraded", reason) {
                eprintln!("fwagent: reporting: {}", crate::drive::chain(&error));
            }
        }
        let transport = match self.bundle.clone() {
            Some(bundle) => HostTransport::Bundle(BundleRepository::new(bundle)),
            None => HostTransport::Http(HttpRepository::new(
                self.http()?,
                &self.config.metadata_url,
                &self.config.targets_url,
                &self.config.state_dir.join("downloads"),
            )),
        };
        let setup = Setup {
            identity: self.config.identity.clone(),
            slots: self.config.slot_sets(),
            rescue: self.config.rescue.clone(),
            classes: self.config.classes(),
            boot_attempts: self.config.boot_attempts,
            policy: self.config.conditions.policy.clone(),
            accept_one_way: self.config.settings.accept_one_way,
        };
        let ports = Ports {
            states,
            slots: Box::new(self.slots()),
            boot: self.boot(),
            health,
            settings: Box::new(self.settings()),
            clock: Box::new(SystemClock),
            conditions: Box::new(self.conditions(self.config.conditions.inhibit_command.clone())),
            reboot: Box::new(self.config.restart.clone()),
        };
        Ok(Driver::new(setup, metadata, transport, ports, observer)?)
    }
}
