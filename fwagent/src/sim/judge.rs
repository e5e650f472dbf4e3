//! The invariants of RULES §4.4, looked at after a cut.
//!
//! ```text
//! the disk after the cut ->  what was reported is there (I5), no floor fell (I4), what is confirmed is whole (I1), the
//!                            settings are those that the record names (I2, I3)
//! copies of it           ->  every older offer is refused (I7)
//! the disk itself        ->  boots (I1, I8), and comes to the scenario's end by itself (I6); the same again there
//! ```

use std::cell::RefCell;
use std::rc::Rc;

use crate::drive::chain;
use crate::machine::plan::Wish;
use crate::machine::state::{Phase, State};
use crate::ports::PortError;
use crate::sim::broken::Breakage;
use crate::sim::device::{Scene, SimDevice, Violation, slot, slot_path, violated};
use crate::sim::disk::{Tree, Wreck};
use crate::sim::repository::Objects;
use crate::sim::scenario::{Goal, Operator};
use crate::sim::witness::{Versions, Witness};

/// Sequence of the release in slot `a` when the device leaves the factory: nothing older is ever accepted.
const OLDEST: u64 = 1;

/// A device that went through a cut, or through none.
#[derive(Debug)]
pub struct Recovered {
    /// Sequence of what was booted first.
    pub first: u64,
    /// Boots until it came to rest.
    pub boots: u32,
    /// Storage operations until then.
    pub operations: u64,
    /// What a cut at each of them leaves, when that was asked for.
    pub wrecks: Vec<Wreck>,
    /// What was promised by then.
    pub history: Vec<Witness>,
    /// Lines for people, when they were asked for.
    pub story: Vec<String>,
}

/// What is wanted of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Keep the wrecks.
    pub wrecks: bool,
    /// Tell the story.
    pub story: bool,
}

/// The scenario without a cut.
///
/// # Errors
/// [`Violation`].
pub fn undisturbed(
    scene: &Rc<Scene>,
    (tree, witness): (Tree, Witness),
    breakage: Breakage,
    wanted: Wanted,
) -> Result<Recovered, Violation> {
    let device = SimDevice::new(scene, tree, witness, breakage);
    run(device, scene, scene.scenario.operator, None, wanted)
}

/// Looks at what a cut left, lets the device recover, and looks again. `promised` is what was reported before the cut,
/// and decides how the scenario may end.
///
/// # Errors
/// [`Violation`].
pub fn recovered(
    scene: &Rc<Scene>,
    tree: Tree,
    promised: &Witness,
    breakage: Breakage,
    wanted: Wanted,
) -> Result<Recovered, Violation> {
    let device = || {
        let device = SimDevice::new(scene, tree.clone(), promised.clone(), breakage);
        device.forget_time();
        device
    };
    kept(&device(), scene, promised)?;
    for (name, server) in older(scene) {
        refused(&device(), promised, name, &server)?;
    }
    let recovering = device();
    recovering.disk.start_process();
    run(recovering, scene, Operator::Away, Some(promised), wanted)
}

fn run(
    mut device: SimDevice,
    scene: &Rc<Scene>,
    operator: Operator,
    promised: Option<&Witness>,
    wanted: Wanted,
) -> Result<Recovered, Violation> {
    if wanted.wrecks {
        device.disk.record();
    }
    let story = wanted.story.then(|| Rc::new(RefCell::new(Vec::new())));
    device.story = story.clone();
    let ended = device.settle(operator).and_then(|()| {
        // Not recorded: it is looked at, not lived.
        let wrecks = device.disk.take_wrecks();
        reached(&device, scene, promised)?;
        Ok(wrecks)
    });
    let story = story.map(|story| story.borrow().clone()).unwrap_or_default();
    match ended {
        Ok(wrecks) => Ok(Recovered {
            first: device.first.unwrap_or_default(),
            boots: device.boots,
            operations: device.disk.operations(),
            wrecks,
            history: device.history(),
            story,
        }),
        Err(mut violation) => {
            for line in story {
                violation.what.push_str("\n    ");
                violation.what.push_str(&line);
            }
            Err(violation)
        }
    }
}

/// I5, I4 and I1 on the medium, before anything runs.
fn kept(device: &SimDevice, scene: &Scene, promised: &Witness) -> Result<(), Violation> {
    let lost = |error: PortError| violated("I5", chain(&error));
    let state = device.record().peek().map_err(lost)?;
    if state != promised.state && (promised.storing.is_none() || state != promised.storing) {
        let phase = |state: &Option<State>| state.as_ref().map_or("nothing", |state| state.phase.word());
        return Err(violated(
            "I5",
            format!(
                "the agent's record is neither the one that was stored ({}) nor the one on its way ({}): {}",
                phase(&promised.state),
                phase(&promised.storing),
                phase(&state)
            ),
        ));
    }
    let boot = device.boot_record();
    let memory = (boot.primary().map_err(lost)?, boot.peek().map_err(lost)?);
    if !promised.boot_changes && promised.boot.as_ref().is_some_and(|stored| *stored != memory) {
        return Err(violated("I5", "the boot loader's memory is not what was stored"));
    }
    let versions = Versions::read(&mut device.metadata()?);
    if !versions.never_below(&promised.metadata) {
        let text = format!(
            "the trusted metadata (root, timestamp, snapshot, targets) went back from {:?} to {:?}",
            promised.metadata.of, versions.of
        );
        return Err(violated("I4", text));
    }
    if let Some(state) = state {
        whole(device, scene, &state)?;
        device.has_settings_of(&state)?;
    }
    Ok(())
}

/// Every slot that counts as confirmed holds what it is said to hold: it may be booted at any time.
fn whole(device: &SimDevice, scene: &Scene, state: &State) -> Result<(), Violation> {
    let tree = device.disk.seen();
    for (slot, release) in &state.confirmed {
        let held = tree.read(&slot_path(slot)).and_then(|bytes| scene.image(bytes));
        if held != Some(release.sequence) {
            let text = format!(
                "slot {slot} counts as confirmed and does not hold sequence {}",
                release.sequence
            );
            return Err(violated("I1", text));
        }
    }
    Ok(())
}

/// Servers of an attacker, each of which has nothing that is new.
fn older(scene: &Scene) -> Vec<(&'static str, Objects)> {
    let mut servers = vec![("an old release in new metadata", Rc::clone(&scene.forged))];
    if let Some(oldest) = scene.earlier.first() {
        servers.push(("the oldest metadata", Rc::clone(oldest)));
    }
    servers
}

/// I7, on a copy of the device: an older release is not taken, and what is known does not go back.
fn refused(device: &SimDevice, promised: &Witness, name: &'static str, server: &Objects) -> Result<(), Violation> {
    let running = slot("a")?;
    let (mut driver, _) = device.agent(&running, OLDEST, server)?;
    let before = driver.state().floors.clone();
    match driver.check(&Wish::default()) {
        Err(error) if error.is_refusal() => {}
        Err(error) => {
            return Err(violated(
                "I7",
                format!("{name}: not refused but failed: {}", chain(&error)),
            ));
        }
        Ok(checked) => {
            if let Some(offer) = checked.offer {
                return Err(violated(
                    "I7",
                    format!("{name}: sequence {} would be installed", offer.release.sequence),
                ));
            }
        }
    }
    let versions = Versions::read(&mut device.metadata()?);
    if !driver.state().floors.never_below(&before) || !versions.never_below(&promised.metadata) {
        return Err(violated(
            "I4",
            format!("{name}: a floor or the trusted metadata went back"),
        ));
    }
    Ok(())
}

/// I6: the scenario came to its end.
fn reached(device: &SimDevice, scene: &Scene, promised: Option<&Witness>) -> Result<(), Violation> {
    let unread = |error: PortError| violated("I6", chain(&error));
    let Some(state) = device.record().peek().map_err(unread)? else {
        return Err(violated("I6", "the agent's record is gone"));
    };
    let runs = state.installed().map(|release| release.sequence);
    let rejects = |sequence: u64| {
        state
            .rejected
            .iter()
            .any(|rejected| rejected.release.sequence == sequence)
    };
    let phase = state.phase.word();
    let ended = match scene.scenario.goal {
        _ if state.phase != Phase::Idle => false,
        Goal::Runs(sequence) => runs == Some(sequence) && !rejects(sequence),
        Goal::Rejects(running, rejected) => runs == Some(running) && rejects(rejected),
        Goal::RolledBack(to, from) => {
            // What was recorded is done; what was on its way may be.
            let heard = |state: &Option<State>| {
                state.as_ref().is_some_and(|state| {
                    state.phase != Phase::Idle || state.installed().map(|release| release.sequence) == Some(to)
                })
            };
            let certain = promised.is_none_or(|witness| heard(&witness.state));
            let possible = certain || promised.is_some_and(|witness| heard(&witness.storing));
            (runs == Some(to) && rejects(from) && possible) || (runs == Some(from) && !rejects(from) && !certain)
        }
    };
    if !ended {
        return Err(violated(
            "I6",
            format!(
                "the device came to rest {phase}, with sequence {runs:?}, and not where {:?} ends",
                scene.scenario.goal
            ),
        ));
    }
    whole(device, scene, &state)?;
    device.has_settings_of(&state)?;
    let primary = device.boot_record().primary().map_err(unread)?;
    if primary.as_ref() != Some(&state.active) {
        let text = format!(
            "the boot loader starts slot {primary:?}, the agent's record says {}",
            state.active
        );
        return Err(violated("I6", text));
    }
    // What is no longer needed is gone: what cuts leave must not fill the disk.
    let tree = device.disk.seen();
    let left: Vec<&str> = STORES.iter().copied().filter(|dir| leftovers(&tree, dir)).collect();
    if !left.is_empty() {
        return Err(violated("I6", format!("unfinished files stay in {}", left.join(", "))));
    }
    Ok(())
}

/// Directories in which interrupted writes leave files.
const STORES: [&str; 5] = [
    "/state/",
    "/state/metadata/",
    "/state/metadata/objects/",
    "/state/settings/",
    "/state/settings/objects/",
];

fn leftovers(tree: &Tree, dir: &str) -> bool {
    tree.contents()
        .keys()
        .filter_map(|path| path.strip_prefix(dir))
        .any(|name| name.starts_with('.') && !name.contains('/'))
}
