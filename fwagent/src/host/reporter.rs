//! Makes the device's statements and keeps them until a server has taken them.
//!
//! `STATE/report.a`, `.b` hold the [`Journal`]; its writer holds the lock of the state directory. [`Reported`] stands
//! around the agent's record: whatever loads or stores that first reports what it says was decided. So a loss of power
//! between the two records neither loses nor invents a statement, and nothing that decides must think of reports.

use std::path::{Path, PathBuf};

use fwdurable::twin::{Loaded, Twin, TwinError};
use fwmeta::key::{SignError, Signer};
use fwmeta::statement::{Event, Floor, Placed, Release, Statement};
use fwmeta::time::UtcSeconds;

use crate::host::clock::SystemClock;
use crate::host::identity::{Identity, IdentityError};
use crate::host::state_file::StateFile;
use crate::machine::journal::{JOURNAL_BYTES, Journal};
use crate::machine::plan::Identity as About;
use crate::machine::release::ReleaseRef;
use crate::machine::slot::SlotId;
use crate::machine::state::{LOG_BYTES, REASON_BYTES, State, shortened};
use crate::ports::{Clock, PortError, StateStore};

/// Changes with every boot of the kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A statement could not be made or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The device has no usable key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key cannot sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The record cannot be read or written.
    #[error("the record of statements")]
    Record(#[from] TwinError),
    /// What was damaged cannot be put aside.
    #[error("putting the damaged record of statements aside")]
    Aside(#[source] std::io::Error),
    /// The agent's own record cannot be read.
    #[error(transparent)]
    State(#[from] PortError),
}

/// Makes statements.
#[derive(Debug)]
pub struct Reporter {
    dir: PathBuf,
    twin: Twin,
    about: About,
    boot_id: String,
    identity: Option<Identity>,
}

impl Reporter {
    /// The one of the device that is `about` and keeps its state in `dir`.
    pub fn new(dir: &Path, about: About) -> Self {
        Self {
            dir: dir.to_owned(),
            twin: Twin::new(dir.join("report"), JOURNAL_BYTES),
            about,
            // Where there is no such file boots are not counted.
            boot_id: std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned(),
            identity: None,
        }
    }

    /// The record as it is, for readers without the lock; an empty one when there is none.
    ///
    /// # Errors
    /// [`ReportError::Record`].
    pub fn peek(&self) -> Result<Option<Journal>, ReportError> {
        Ok(match self.twin.load()? {
            Loaded::Empty => None,
            Loaded::Record { payload, .. } => Journal::decode(&payload),
        })
    }

    fn identity(&mut self) -> Result<&Identity, ReportError> {
        let identity = match self.identity.take() {
            Some(identity) => identity,
            None => Identity::load_or_make(&self.dir)?,
        };
        Ok(self.identity.insert(identity))
    }

    /// The record, and whether it is to be stored: a boot was counted, or a chain begins.
    fn load(&mut self) -> Result<(Journal, bool), ReportError> {
        let damaged = match self.twin.load() {
            Ok(Loaded::Empty) => None,
            Ok(Loaded::Record { payload, .. }) => match Journal::decode(&payload) {
                Some(mut journal) => {
                    let new = journal.count_boot(&self.boot_id);
                    return Ok((journal, new));
                }
                None => Some("the record of statements cannot be understood".to_owned()),
            },
            Err(error @ TwinError::BothDamaged { .. }) => Some(crate::drive::chain(&error)),
            Err(error) => return Err(error.into()),
        };
        let mut chain = [0; 16];
        getrandom::fill(&mut chain).map_err(|error| IdentityError::Random {
            reason: error.to_string(),
        })?;
        let mut journal = Journal::new(chain);
        journal.count_boot(&self.boot_id);
        if let Some(reason) = damaged {
            // Reports must not end for ever. What was in it is kept for people, and the new chain says that it is one.
            for copy in ["a", "b"] {
                let path = self.dir.join(format!("report.{copy}"));
                let aside = self.dir.join(format!("report.{copy}.damaged"));
                match fwdurable::rename(&path, &aside) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(ReportError::Aside(error));
                    }
                    _ => {}
                }
            }
            let state = StateFile::new(&self.dir).peek().ok().flatten();
            self.append(&mut journal, state.as_ref(), event("degraded", &reason), None)?;
        }
        Ok((journal, true))
    }

    fn store(&self, journal: &Journal) -> Result<(), ReportError> {
        Ok(self.twin.store(&journal.encode())?)
    }

    /// Reports the state's last outcome, if that was not done, and counts a boot.
    ///
    /// # Errors
    /// [`ReportError`]; the next call does it.
    pub fn catch_up(&mut self, state: &State) -> Result<(), ReportError> {
        let (mut journal, mut changed) = self.load()?;
        if let Some(last) = state.last.as_ref().filter(|_| journal.is_due(state)) {
            let event = Event {
                result: last.result.word().to_owned(),
                outcome: state.outcomes,
                at: last.at,
                subject: Some(placed(&last.slot, Some(&last.release))),
                reason: last.reason.clone(),
                log: last.log.clone(),
            };
            self.append(&mut journal, Some(state), event, Some(state.outcomes))?;
            changed = true;
        }
        for (result, reason) in about_settings(state) {
            if journal.is_news(result, &reason) {
                journal.note(result, &reason);
                self.append(&mut journal, Some(state), event(result, &reason), None)?;
                changed = true;
            }
        }
        if changed {
            self.store(&journal)?;
        }
        Ok(())
    }

    /// Reports something that is no end of an update, unless it was the last of its kind already.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn note(&mut self, result: &str, reason: &str) -> Result<(), ReportError> {
        let (journal, _) = self.load()?;
        if !journal.is_news(result, reason) {
            return Ok(());
        }
        self.tell(result, reason, None).map(drop)
    }

    /// Reports something, whether it is news or not, and gives the statement.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn tell(
        &mut self,
        result: &str,
        reason: &str,
        subject: Option<(&SlotId, &ReleaseRef)>,
    ) -> Result<Vec<u8>, ReportError> {
        // Damaged beyond its copies it is no reason to say nothing.
        let state = StateFile::new(&self.dir).peek().ok().flatten();
        let (mut journal, _) = self.load()?;
        journal.note(result, reason);
        let event = Event {
            subject: subject.map(|(slot, release)| placed(slot, Some(release))),
            ..event(result, reason)
        };
        let bytes = self.append(&mut journal, state.as_ref(), event, None)?;
        self.store(&journal)?;
        Ok(bytes.into_bytes())
    }

    /// Takes what a server made of statements into the record: those it has, and those it will not have, with its status.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn settle(&mut self, taken: &[[u8; 32]], refused: &[([u8; 32], u16)]) -> Result<(), ReportError> {
        let (mut journal, _) = self.load()?;
        journal.delivered(taken);
        for (digest, status) in refused {
            journal.set_aside(digest, *status);
        }
        self.store(&journal)
    }

    fn append(
        &mut self,
        journal: &mut Journal,
        state: Option<&State>,
        event: Event,
        outcome: Option<u64>,
    ) -> Result<String, ReportError> {
        let clock = SystemClock.now();
        let about = self.about.clone();
        let identity = self.identity()?;
        let floors = state.map(|state| &state.floors);
        let result = event.result.clone();
        let statement = Statement {
            device: identity.public().id(),
            position: journal.position(),
            clock,
            clock_believed: floors.is_some_and(|floors| clock >= floors.time),
            product: about.product,
            hardware: about.hardware,
            channel: about.channel,
            boots: journal.boots,
            event,
            active: state.map(|state| placed(&state.active, state.installed())),
            settings_generation: state
                .and_then(|state| state.settings.slots.get(state.runs()))
                .map(|held| held.generation.number),
            floors: floors
                .into_iter()
                .flat_map(|floors| floors.components())
                .map(|(component, channel, floor)| Floor {
                    component: component.to_owned(),
                    channel: channel.to_owned(),
                    sequence: floor.sequence,
                    security: floor.security,
                })
                .collect(),
            time_floor: floors.map_or(UtcSeconds(0), |floors| floors.time),
            metadata: floors.map_or([0; 3], |floors| {
                [floors.root, floors.timestamp.version, floors.snapshot.version]
            }),
            refusals: journal.refusals,
            last_refusal: journal.last_refusal.clone(),
            dropped: journal.dropped,
            unwanted: journal.unwanted,
        };
        let (bytes, digest) = statement.sign(identity)?;
        // JSON is text.
        let bytes = String::from_utf8_lossy(&bytes).into_owned();
        journal.push(&result, digest, bytes.clone(), outcome);
        Ok(bytes)
    }
}

/// What became of settings without anybody's wish.
fn about_settings(state: &State) -> Vec<(&'static str, String)> {
    let mut notes = Vec::new();
    if let Some(orphan) = state.settings.orphans.last() {
        let (keys, schema, at) = (orphan.keys, orphan.schema, orphan.at);
        let reason = format!("{keys} edit(s) made in schema {schema} until {at}: {}", orphan.reason);
        notes.push(("settings-orphaned", reason));
    }
    if let Some(damaged) = state.settings.damaged.last() {
        let reason = format!("generation {damaged} was damaged, and the last good one took its place");
        notes.push(("settings-damaged", reason));
    }
    notes
}

fn event(result: &str, reason: &str) -> Event {
    Event {
        result: result.to_owned(),
        outcome: 0,
        at: SystemClock.now(),
        subject: None,
        reason: shortened(reason, REASON_BYTES),
        log: String::new(),
    }
}

fn placed(slot: &SlotId, release: Option<&ReleaseRef>) -> Placed {
    Placed {
        slot: slot.to_string(),
        release: release.map(|release| Release {
            manifest_sha256: release.manifest_sha256,
            version: release.version.to_string(),
            sequence: release.sequence,
            components: release
                .components
                .iter()
                .map(|component| (component.name.clone(), component.image_sha256))
                .collect(),
        }),
    }
}

/// Longest texts of a record fit into a statement.
const _: () = assert!(LOG_BYTES <= fwmeta::limits::STATEMENT_TEXT_BYTES);

/// The agent's record, whose outcomes are reported before they are forgotten. A report that cannot be made is said on
/// standard error and stops nothing: updates matter more.
pub struct Reported {
    inner: Box<dyn StateStore>,
    reporter: Reporter,
    /// What could not be reported yet.
    behind: Option<Box<State>>,
}

impl std::fmt::Debug for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reported")
            .field("reporter", &self.reporter)
            .finish_non_exhaustive()
    }
}

impl Reported {
    /// A record around `inner`.
    pub fn new(inner: impl StateStore + 'static, reporter: Reporter) -> Self {
        Self {
            inner: Box::new(inner),
            reporter,
            behind: None,
        }
    }

    fn report(&mut self, state: &State) {
        self.behind = match self.reporter.catch_up(state) {
            Ok(()) => None,
            Err(error) => {
                eprintln!("fwagent: reporting: {}", crate::drive::chain(&error));
                Some(Box::new(state.clone()))
            }
        };
    }
}

impl StateStore for Reported {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        let loaded = self.inner.load();
        match &loaded {
            Ok(Some(state)) => self.report(state),
            Ok(None) => {}
            Err(error) => {
                let reason = crate::drive::chain(error);
                if let Err(error) = self.reporter.note("degraded", &reason) {
                    eprintln!("fwagent: reporting: {}", crate::drive::chain(&error));
                }
            }
        }
        loaded
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        if let Some(behind) = self.behind.take() {
            self.report(&behind);
        }
        self.inner.store(state)?;
        self.report(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
