//! What the driver does with settings: finds the way before the first byte, makes the dry run before arming, settles at
//! the first start of a trial, carries edits back.

use std::io::Read;

use fwmeta::client::Client;
use fwmeta::manifest::{Manifest, Migration};
use fwmeta::target::{TargetFile, TargetPath};

use super::{DriveError, Driver, Next, Notice, Offer, chain};
use crate::host::settings::PROGRAM_BYTES;
use crate::machine::plan::{Considered, Verdict};
use crate::machine::settings::migrate::{Direction, PlannedStep, way};
use crate::machine::state::State;
use crate::machine::step::Event;
use crate::ports::{MetadataStore, PortError, PortErrorKind, Transport};

/// The way of settings to an offered release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedSettings {
    /// Schema before.
    pub from: u64,
    /// Schema of the release, if it names one.
    pub schema: Option<u64>,
    /// The steps, with the targets of their programs.
    pub steps: Vec<OfferedStep>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedStep {
    /// The migration.
    pub migration: Migration,
    /// Which way it is taken.
    pub direction: Direction,
    /// Its program.
    pub file: TargetFile,
}

impl OfferedSettings {
    /// Whether edits cannot be carried back over all of it.
    pub fn is_one_way(&self) -> bool {
        self.steps.iter().any(|step| !step.migration.reversible)
    }

    /// Withholds an offer that takes a way without return, unless somebody accepted that.
    pub(super) fn withhold(offer: Offer, accepted: bool, considered: &mut [Considered]) -> Option<Offer> {
        let settings = &offer.settings;
        if accepted || !settings.is_one_way() {
            return Some(offer);
        }
        let verdict = Verdict::OneWay {
            from: settings.from,
            to: settings.schema.unwrap_or(settings.from),
        };
        for one in considered.iter_mut().filter(|one| one.verdict == Verdict::Chosen) {
            one.verdict = verdict.clone();
        }
        None
    }
}

/// Finds the way from the device's settings to those of a release, and its programs.
pub(super) fn offered<M: MetadataStore, T: Transport>(
    client: &mut Client<T::Source, &mut M>,
    state: &State,
    manifest: &Manifest,
    path: &TargetPath,
) -> Result<OfferedSettings, DriveError> {
    let held = state.settings.slots.get(&state.active).map(|held| held.schema);
    let from = held.unwrap_or(0);
    let none = |schema| OfferedSettings {
        from,
        schema,
        steps: Vec::new(),
    };
    let Some(settings) = &manifest.settings else {
        return Ok(none(None));
    };
    if held.is_none() && state.confirmed.is_empty() {
        // The first software of a new device: there is nothing to migrate.
        return Ok(none(Some(settings.schema)));
    }
    let steps = way(from, settings).map_err(|error| DriveError::Manifest {
        path: path.clone(),
        source: error.into(),
    })?;
    let mut offered = Vec::with_capacity(steps.len());
    for PlannedStep { migration, direction } in steps {
        let file = client.find_target(&migration.target)?;
        let file = file.ok_or_else(|| DriveError::UnlistedPayload {
            manifest: path.clone(),
            payload: migration.target.clone(),
        })?;
        if file.length > PROGRAM_BYTES as u64 {
            let attempt = format!(
                "migration {} of {} bytes is longer than the {PROGRAM_BYTES} allowed",
                migration.target, file.length
            );
            return Err(PortError::refused(attempt, None).into());
        }
        offered.push(OfferedStep {
            migration: migration.clone(),
            direction,
            file,
        });
    }
    Ok(OfferedSettings {
        from,
        schema: Some(settings.schema),
        steps: offered,
    })
}

impl<M: MetadataStore, T: Transport> Driver<M, T> {
    /// Fetches the migrations of an offer and runs them on a copy of the current settings, which becomes the slot's.
    pub(super) fn prepare_settings(&mut self, offer: &Offer) -> Result<(), DriveError> {
        let Some((slot, _)) = self.state.phase.update() else {
            return Ok(());
        };
        let slot = slot.clone();
        let mut steps = Vec::with_capacity(offer.settings.steps.len());
        for step in &offer.settings.steps {
            let target = &step.migration.target;
            let input = self
                .transport
                .target(target, &step.file, offer.consistent_snapshot, &mut |_, _| true)?;
            let mut program = Vec::new();
            input
                .take(PROGRAM_BYTES as u64 + 1)
                .read_to_end(&mut program)
                .map_err(|error| PortError::environment(format!("reading {target}"), Some(error.into())))?;
            let planned = PlannedStep {
                migration: &step.migration,
                direction: step.direction,
            };
            steps.push(planned.with_program(self.ports.settings.keep_program(&program)?));
        }
        let at = self.ports.clock.now();
        let change = self
            .ports
            .settings
            .prepare(&self.state, &slot, offer.settings.schema, steps, at)?;
        self.dispatch(Event::Settings(change.into())).map(drop)
    }

    /// Migrates for good what is current at the first start of a trial.
    pub(super) fn settle_settings(&mut self) -> Result<Option<Event>, DriveError> {
        let Some((slot, _)) = self.state.phase.update() else {
            return Ok(None);
        };
        let slot = slot.clone();
        let at = self.ports.clock.now();
        match self.ports.settings.settle(&self.state, &slot, at) {
            Ok(change) => Ok(change.map(|change| Event::Settings(change.into()))),
            Err(error) if error.kind == PortErrorKind::Refused => Ok(Some(Event::HealthFailed {
                reason: chain(&error),
                log: String::new(),
            })),
            Err(error) => Err(error.into()),
        }
    }

    /// Carries edits over. What fails leaves them where they are, for the next start or poll: the device works without.
    pub(super) fn carry_settings_back(&mut self) -> Result<Option<Event>, DriveError> {
        let at = self.ports.clock.now();
        match self.ports.settings.carry_back(&self.state, at) {
            Ok(change) => Ok(change.map(|change| Event::Settings(change.into()))),
            Err(error) if error.kind == PortErrorKind::Stopped => Err(error.into()),
            Err(error) => {
                self.settings_problem(chain(&error));
                Ok(None)
            }
        }
    }

    /// Goes on with what an earlier attempt could not finish.
    pub(super) fn finish_settings(&mut self) -> Result<Next, DriveError> {
        match self.carry_settings_back()? {
            Some(event) => {
                let next = self.dispatch(event)?;
                self.publish_settings();
                Ok(next)
            }
            None => Ok(Next::Continue),
        }
    }

    /// Gives up a damaged generation for the last good one.
    pub(super) fn examine_settings(&mut self) -> Result<(), DriveError> {
        match self.ports.settings.examine(&self.state) {
            Ok(None) => Ok(()),
            Ok(Some(change)) => {
                self.settings_problem(
                    "the current generation is damaged; the last good one takes its place".to_owned(),
                );
                self.dispatch(Event::Settings(change.into())).map(drop)
            }
            // The software must run all the same, and updates may repair what is wrong.
            Err(error) => {
                self.settings_problem(chain(&error));
                Ok(())
            }
        }
    }

    pub(super) fn publish_settings(&mut self) {
        for problem in self.ports.settings.publish(&self.state) {
            self.settings_problem(problem);
        }
        if let Err(error) = self.ports.settings.tidy(&self.state) {
            self.settings_problem(chain(&error));
        }
    }

    fn settings_problem(&mut self, problem: String) {
        (self.observer)(&Notice::Settings { problem });
    }
}
