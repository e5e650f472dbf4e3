//! `fwagent simulate`: the power is cut before and after every storage operation of an update, and again at every
//! operation of the recovery (RULES §4.4, tier T1).
//!
//! ```text
//! scenario --runs once--> wrecks: the disk before each operation
//! wreck --variants--> disks: all arrived, nothing unsynced arrived, a part did, a write is torn
//! disk --judge--> the device recovers by itself, and every invariant holds; or a violation
//!      --again--> wrecks of the recovery, and so on once more
//! ```
//!
//! What runs is the code of the agent: driver, state machine, stores, file slots, boot control `file` with its boot
//! loader's half, and the verification of signed metadata. Simulated are the disk ([`disk`]), the network, the clock and the
//! verdict of the health checks. What it cannot show is what real flash and real boot loaders do.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use sha2::{Digest, Sha256};

pub mod broken;
pub mod crash;
pub mod device;
pub mod disk;
pub mod judge;
pub mod repository;
pub mod scenario;
pub mod settings;
pub mod witness;

#[cfg(test)]
mod tests;

use broken::Breakage;
use crash::{Random, Variant, digest, variants};
use device::{Scene, SimDevice, Violation, violated};
use disk::{Tree, Wreck};
use judge::{Recovered, Wanted, recovered, undisturbed};
use scenario::Scenario;
use witness::Witness;

/// Violations that are kept in full; all are counted.
const KEPT: usize = 10;
/// Second cuts that are drawn for one recovery when not all are tried.
const SECOND_PER_FIRST: u64 = 8;

/// Where a cut is and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Number of the operation, from 1.
    pub operation: usize,
    /// How.
    pub variant: Variant,
}

/// One case: a cut, and perhaps one in the recovery from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The first cut.
    pub cut: Cut,
    /// The second.
    pub second: Option<Cut>,
}

/// How many second cuts are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Double {
    /// All, of each recovery.
    All,
    /// So many, drawn by the seed.
    Drawn(u64),
}

/// A violation and the case that shows it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The case; `None` when no cut was needed.
    pub case: Option<Case>,
    /// What was violated.
    pub violation: Violation,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Storage operations of the scenario, each of which is a cut point.
    pub operations: u64,
    /// Disks after one cut, by the kind of variant.
    pub states: BTreeMap<&'static str, u64>,
    /// Disks after a second cut.
    pub doubles: u64,
    /// What was booted first after a cut: the earlier release.
    pub old: u64,
    /// What was booted first after a cut: the newer release.
    pub new: u64,
    /// Violations.
    pub violations: u64,
    /// The first of them.
    pub shown: Vec<Shown>,
    /// Most boots that a recovery took.
    pub most_boots: u32,
    /// Most storage operations that a recovery took.
    pub most_operations: u64,
    /// SHA-256 of all cases and their ends, in order.
    pub trace: [u8; 32],
}

impl Tally {
    /// Disks after one cut.
    pub fn singles(&self) -> u64 {
        self.states.values().sum()
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// From which numbers are drawn.
    pub seed: u64,
    /// Second cuts.
    pub double: Double,
    /// Stop at the first violation.
    pub stop: bool,
}

/// Told of progress: cases done, and about how many there are.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A scenario that can be cut anywhere.
#[derive(Debug)]
pub struct Simulation {
    scene: Rc<Scene>,
    start: (Tree, Witness),
    breakage: Breakage,
}

/// How a judged disk ended: what was booted first, or the violation.
type Verdict = Result<(u64, u32, u64), Violation>;

struct Run<'a> {
    simulation: &'a Simulation,
    plan: Plan,
    tally: Tally,
    trace: Sha256,
    /// Verdicts by disk and promise: many cuts leave the same.
    known: HashMap<([u8; 32], usize), Verdict>,
    /// Sequence of the newest release.
    newest: u64,
}

impl Simulation {
    /// Prepares a scenario with code that is broken in this way.
    ///
    /// # Errors
    /// [`Violation`] when the undisturbed device does not even get there.
    pub fn new(scenario: &'static Scenario, breakage: Breakage) -> Result<Self, Violation> {
        let scene = Rc::new(Scene::new(scenario)?);
        let (tree, _) = SimDevice::prepared(&scene)?;
        let witness = SimDevice::new(&scene, tree.clone(), Witness::default(), Breakage::None).observed()?;
        Ok(Self {
            start: (tree, witness),
            scene,
            breakage,
        })
    }

    fn first(&self, wanted: Wanted) -> Result<Recovered, Violation> {
        undisturbed(&self.scene, self.start.clone(), self.breakage, wanted)
    }

    /// Cuts everywhere.
    pub fn run(&self, plan: Plan, progress: Progress<'_>) -> Tally {
        let mut run = Run {
            simulation: self,
            plan,
            tally: Tally::default(),
            trace: Sha256::new(),
            known: HashMap::new(),
            newest: self.scene.releases.keys().next_back().copied().unwrap_or_default(),
        };
        run.everywhere(progress);
        run.tally.trace = run.trace.finalize().into();
        run.tally
    }

    /// Runs one case and tells what happens.
    ///
    /// # Errors
    /// [`Violation`]; of `I0` when there is no such case.
    pub fn single(&self, case: &Case) -> Result<Vec<String>, Violation> {
        let wanted = Wanted {
            wrecks: true,
            story: true,
        };
        let mut story = Vec::new();
        let mut run = self.first(wanted)?;
        for cut in std::iter::once(&case.cut).chain(&case.second) {
            let wreck = nth(&run.wrecks, cut.operation)?;
            let tree = cut.variant.tree(wreck).ok_or_else(|| {
                violated(
                    "I0",
                    format!("variant {} does not fit `{}`", cut.variant, wreck.op.name),
                )
            })?;
            let promised = promise(&run.history, wreck);
            story.extend(
                run.story
                    .iter()
                    .take_while(|line| line.number() < cut.operation as u64)
                    .cloned(),
            );
            story.push(format!("cut {} {}: {}", cut.operation, cut.variant, wreck.op.name));
            for (number, change) in wreck.uncertain().iter().enumerate() {
                story.push(format!("    uncertain {number}: {}", change.shown()));
            }
            run = recovered(&self.scene, tree, &promised, self.breakage, wanted).map_err(|mut violation| {
                violation.what = format!("{}\n{}", violation.what, story.join("\n"));
                violation
            })?;
        }
        story.append(&mut run.story);
        story.push(format!("sequence {} was booted first; {} boots", run.first, run.boots));
        Ok(story)
    }
}

/// A line of a story that says at which operation it was told.
trait Told {
    fn number(&self) -> u64;
}

impl Told for String {
    fn number(&self) -> u64 {
        let number = self.strip_prefix("op ").and_then(|rest| rest.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or_default()
    }
}

fn nth(wrecks: &[Wreck], operation: usize) -> Result<&Wreck, Violation> {
    let found = operation.checked_sub(1).and_then(|index| wrecks.get(index));
    found.ok_or_else(|| {
        let text = format!("there is no operation {operation}; there are {}", wrecks.len());
        violated("I0", text)
    })
}

fn promise(history: &[Witness], wreck: &Wreck) -> Witness {
    history.get(wreck.mark).cloned().unwrap_or_default()
}

impl Run<'_> {
    fn stopped(&self) -> bool {
        self.plan.stop && self.tally.violations > 0
    }

    fn show(&mut self, case: Option<Case>, violation: Violation) {
        self.tally.violations += 1;
        if self.tally.shown.len() < KEPT {
            self.tally.shown.push(Shown { case, violation });
        }
    }

    fn everywhere(&mut self, progress: Progress<'_>) {
        let wanted = Wanted {
            wrecks: true,
            story: false,
        };
        let run = match self.simulation.first(wanted) {
            Ok(run) => run,
            // Broken code may need no cut.
            Err(violation) => return self.show(None, violation),
        };
        self.tally.operations = run.wrecks.len() as u64;
        let mut random = Random::new(self.plan.seed);
        let mut singles = Vec::new();
        for (index, wreck) in run.wrecks.iter().enumerate() {
            self.trace.update(&wreck.op.name);
            let promised = promise(&run.history, wreck);
            for (variant, tree) in variants(wreck, &mut random) {
                *self.tally.states.entry(variant.kind()).or_default() += 1;
                let cut = Cut {
                    operation: index + 1,
                    variant,
                };
                let case = Case {
                    cut: cut.clone(),
                    second: None,
                };
                self.judge(case, tree, &promised, Some(wreck.mark));
                singles.push(cut);
                if self.stopped() {
                    return;
                }
            }
            progress(index as u64 + 1, run.wrecks.len() as u64);
        }
        self.twice(&run, &singles, &mut random, progress);
    }

    fn twice(&mut self, run: &Recovered, singles: &[Cut], random: &mut Random, progress: Progress<'_>) {
        let wanted = match self.plan.double {
            Double::All => u64::MAX,
            Double::Drawn(wanted) => wanted,
        };
        let mut next = 0;
        while self.tally.doubles < wanted && !singles.is_empty() && !self.stopped() {
            let all = wanted == u64::MAX;
            let index = if all {
                next
            } else {
                random.below(singles.len() as u64) as usize
            };
            let Some(cut) = singles.get(index) else { break };
            next += 1;
            self.again(run, cut, all, wanted, random);
            if all {
                progress(next as u64, singles.len() as u64);
            } else {
                progress(self.tally.doubles, wanted);
            }
        }
    }

    /// Cuts the recovery from a cut: everywhere, or at a few places.
    fn again(&mut self, run: &Recovered, cut: &Cut, all: bool, wanted: u64, random: &mut Random) {
        let Ok(wreck) = nth(&run.wrecks, cut.operation) else {
            return;
        };
        let Some(tree) = cut.variant.tree(wreck) else { return };
        let (scene, breakage) = (&self.simulation.scene, self.simulation.breakage);
        let watch = Wanted {
            wrecks: true,
            story: false,
        };
        // Violations of the first cut alone were shown when it was judged.
        let Ok(recovery) = recovered(scene, tree, &promise(&run.history, wreck), breakage, watch) else {
            self.tally.doubles += u64::from(!all);
            return;
        };
        let places = if all {
            recovery.wrecks.len() as u64
        } else {
            SECOND_PER_FIRST
        };
        for place in 0..places {
            let index = if all {
                place
            } else {
                random.below(recovery.wrecks.len() as u64)
            } as usize;
            let Some(wreck) = recovery.wrecks.get(index) else { break };
            let mut found = variants(wreck, random);
            if !all {
                let drawn = random.below(found.len() as u64) as usize;
                found = found.into_iter().skip(drawn).take(1).collect();
            }
            for (variant, tree) in found {
                self.tally.doubles += 1;
                let case = Case {
                    cut: cut.clone(),
                    second: Some(Cut {
                        operation: index + 1,
                        variant,
                    }),
                };
                self.judge(case, tree, &promise(&recovery.history, wreck), None);
                if self.stopped() || self.tally.doubles >= wanted {
                    return;
                }
            }
        }
    }

    /// Judges one disk. `mark` names the promise when it is one of the first run.
    fn judge(&mut self, case: Case, tree: Tree, promised: &Witness, mark: Option<usize>) {
        let key = mark.map(|mark| (digest(&tree), mark));
        let known = key.and_then(|key| self.known.get(&key).cloned());
        let verdict = known.unwrap_or_else(|| {
            let (scene, breakage) = (&self.simulation.scene, self.simulation.breakage);
            recovered(scene, tree, promised, breakage, Wanted::default())
                .map(|recovered| (recovered.first, recovered.boots, recovered.operations))
        });
        if let Some(key) = key {
            self.known.insert(key, verdict.clone());
        }
        self.trace.update(case.to_string());
        match verdict {
            Ok((first, boots, operations)) => {
                self.trace.update(first.to_le_bytes());
                if first == self.newest {
                    self.tally.new += 1;
                } else {
                    self.tally.old += 1;
                }
                self.tally.most_boots = self.tally.most_boots.max(boots);
                self.tally.most_operations = self.tally.most_operations.max(operations);
            }
            Err(violation) => {
                self.trace.update(&violation.what);
                self.show(Some(case), violation);
            }
        }
    }
}

impl std::fmt::Display for Case {
    /// The arguments that run it again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--cut {} --variant {}", self.cut.operation, self.cut.variant)?;
        match &self.second {
            None => Ok(()),
            Some(second) => write!(
                f,
                " --recovery-cut {} --recovery-variant {}",
                second.operation, second.variant
            ),
        }
    }
}
