//! A model check of the device: every state that an agent, its boot loader and its slots can reach together, with power
//! lost between any two operations, effects that fail, checks that pass and fail, and an operator who asks for anything
//! at any time. In each the rules of DESIGN §5 must hold, and from each a device that is left alone ends on the newest
//! release.
//!
//! ```text
//! off --power--> loader spends an attempt, chooses --> on: [power-on, ...]
//! on:  the first thing to do happens, fails, or the power goes; with nothing to do: a poll, the operator, a restart
//! ```
//!
//! What is atomic here is one durable operation: storing the record, or one change of the boot loader's memory. That these
//! are atomic is not shown here but by `fwagent simulate`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use fwagent::machine::boot::{BootRecord, BootView};
use fwagent::machine::record;
use fwagent::machine::release::{ComponentRef, ReleaseRef};
use fwagent::machine::slot::SlotId;
use fwagent::machine::slot_vars::{self, SlotVars, SlotVarsError};
use fwagent::machine::state::{Phase, State};
use fwagent::machine::step::{Effect, Event, step};
use fwmeta::manifest::SemVer;
use fwmeta::time::UtcSeconds;

const AT: UtcSeconds = UtcSeconds(1_800_000_000);
/// The newest release that appears in a usual run; `FWTESTS_RELEASES=3` takes minutes and explores some 600,000 states.
const RELEASES: u64 = 2;
/// Operations after which a device that is left alone must have come to rest.
const PATIENCE: u32 = 200;

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn slots() -> Vec<SlotId> {
    vec![slot("a"), slot("b")]
}

/// The release of `sequence`; that of `dangerous` declares everything older dangerous.
fn release_of(sequence: u64, dangerous: u64) -> ReleaseRef {
    ReleaseRef {
        manifest_sha256: [sequence as u8; 32],
        version: SemVer::new(1, sequence, 0),
        sequence,
        security_floor: if sequence == dangerous { sequence } else { 0 },
        channel: "stable".to_owned(),
        security: false,
        components: vec![ComponentRef {
            name: "main".to_owned(),
            slot_class: "system".to_owned(),
            image_sha256: [sequence as u8; 32],
        }],
    }
}

/// The memory of a boot loader, and what it does at power-on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Loader {
    /// Boot control `file`.
    Record(BootRecord),
    /// An order of slots, in which each has so many attempts left, also a confirmed one: U-Boot, and GRUB with one.
    Order { vars: Vars, running: SlotId },
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Vars {
    order: String,
    left: BTreeMap<SlotId, u32>,
}

impl SlotVars for Vars {
    const ORDER: &'static str = "ORDER";

    fn order(&self) -> Option<Vec<u8>> {
        Some(self.order.clone().into_bytes())
    }

    fn set_order(&mut self, order: &str) -> Result<(), SlotVarsError> {
        self.order = order.to_owned();
        Ok(())
    }

    fn left(&self, slot: &SlotId) -> Result<u32, SlotVarsError> {
        Ok(self.left.get(slot).copied().unwrap_or(0))
    }

    fn set_left(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        self.left.insert(slot.clone(), attempts);
        Ok(())
    }
}

impl Loader {
    fn power_on(&mut self) -> SlotId {
        match self {
            Self::Record(record) => {
                let (chosen, next) = record.power_on().unwrap();
                *record = next;
                // Only for people; it would tell states apart that are the same.
                record.boots = 0;
                chosen
            }
            Self::Order { vars, running } => {
                let names: Vec<SlotId> = vars.order.split(' ').map(slot).collect();
                let left = |slot: &&SlotId| vars.left.get(*slot).is_some_and(|left| *left > 0);
                let chosen = names.iter().find(left).or(names.last()).unwrap().clone();
                if let Some(left) = vars.left.get_mut(&chosen) {
                    *left = left.saturating_sub(1);
                }
                running.clone_from(&chosen);
                chosen
            }
        }
    }

    fn view(&self) -> BootView {
        match self {
            Self::Record(record) => record.view(),
            Self::Order { vars, running } => slot_vars::view(vars, &slots(), running).unwrap(),
        }
    }

    fn disable(&mut self, slot: &SlotId) {
        match self {
            Self::Record(record) => *record = record.disabled(slot),
            Self::Order { vars, .. } => slot_vars::disable(vars, slot).unwrap(),
        }
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) {
        match self {
            Self::Record(record) => *record = record.armed(slot, attempts),
            Self::Order { vars, .. } => slot_vars::first(vars, slot, attempts).unwrap(),
        }
    }

    fn confirm(&mut self, slot: &SlotId, attempts: u32) {
        match self {
            Self::Record(record) => *record = record.confirmed(slot),
            Self::Order { vars, .. } => slot_vars::first(vars, slot, attempts).unwrap(),
        }
    }

    fn replenish(&mut self, slot: &SlotId, attempts: u32) {
        if let Self::Order { vars, .. } = self {
            slot_vars::replenish(vars, slot, attempts).unwrap();
        }
    }

    /// Whether it could choose the slot at some power-on to come.
    fn may_choose(&self, slot: &SlotId) -> bool {
        match self {
            Self::Record(record) => {
                record.primary == *slot || record.trial.as_ref().is_some_and(|(trial, _)| trial == slot)
            }
            Self::Order { vars, .. } => vars.order.split(' ').any(|name| name == slot.as_str()),
        }
    }
}

/// What the agent has yet to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Todo {
    /// What the loader forgets of a confirmed slot that runs is given back.
    Replenish(SlotId),
    /// Take the step and store the record.
    Tell(Event),
    Do(Effect),
}

impl Todo {
    fn brief(&self) -> String {
        match self {
            Self::Tell(Event::Planned { slot, release }) => format!("plan {} for {slot}", release.sequence),
            Self::Tell(event) => format!("{event:?}"),
            Self::Do(effect) => format!("{effect:?}"),
            Self::Replenish(slot) => format!("replenish {slot}"),
        }
    }
}

/// A device.
#[derive(Debug, Clone)]
struct System {
    state: State,
    loader: Loader,
    attempts: u32,
    /// Sequence of the whole image in a slot; nothing when its content is undefined.
    content: BTreeMap<SlotId, u64>,
    /// The slot that runs and what its agent has to do; nothing when the power is off.
    on: Option<(SlotId, VecDeque<Todo>)>,
    /// Boots of the slot on trial since it was armed.
    trials: u32,
    /// Newest release published, and the newest that ever will be.
    newest: u64,
    last: u64,
    /// The release that declares everything older dangerous.
    dangerous: u64,
}

/// Something that can happen, and the device after it.
struct Happening {
    what: String,
    after: System,
}

impl System {
    fn new(loader: Loader, attempts: u32, last: u64, dangerous: u64) -> Self {
        Self {
            state: State::new(slot("a"), Some(release_of(1, dangerous))),
            loader,
            attempts,
            content: BTreeMap::from([(slot("a"), 1)]),
            on: None,
            trials: 0,
            newest: 1,
            last,
            dangerous,
        }
    }

    /// What tells two devices apart, as far as anything depends on it.
    fn key(&self) -> Vec<u8> {
        let mut state = self.state.clone();
        state.last = None;
        state.outcomes = 0;
        for rejected in &mut state.rejected {
            rejected.reason.clear();
        }
        if let Phase::FallingBack { reason, log, .. } = &mut state.phase {
            reason.clear();
            log.clear();
        }
        let mut key = record::encode(&state);
        let rest = (&self.loader, &self.content, self.trials, self.newest);
        key.extend_from_slice(format!("{rest:?}").as_bytes());
        if let Some((running, todo)) = &self.on {
            key.extend_from_slice(running.as_str().as_bytes());
            for one in todo {
                key.extend_from_slice(one.brief().as_bytes());
            }
        }
        key
    }

    fn happens(&self, what: impl Into<String>, change: impl FnOnce(&mut Self)) -> Happening {
        let mut after = self.clone();
        change(&mut after);
        Happening {
            what: what.into(),
            after,
        }
    }

    /// Everything that can happen next.
    fn next(&self) -> Vec<Happening> {
        let Some((running, todo)) = &self.on else {
            return vec![self.happens("power", Self::power_on)];
        };
        let mut next = vec![self.happens("cut", |after| after.on = None)];
        if self.newest < self.last {
            next.push(self.happens("a release appears", |after| after.newest += 1));
        }
        let Some(first) = todo.front() else {
            for event in self.events() {
                let todo = Todo::Tell(event);
                next.push(self.happens(todo.brief(), |after| after.push([todo])));
            }
            let again = self.start(running);
            next.push(self.happens("the agent restarts", |after| after.push(again)));
            return next;
        };
        let Todo::Do(effect) = first else {
            next.push(self.happens(first.brief(), Self::go_on));
            return next;
        };
        // It fails, and the agent waits for the next poll or start.
        next.push(self.happens(format!("{effect:?} fails"), |after| {
            if *effect == Effect::Install {
                after.write(None);
            }
            after.on = after.on.take().map(|(running, _)| (running, VecDeque::new()));
        }));
        next.push(self.happens(format!("{effect:?}"), Self::go_on));
        let verdicts = match effect {
            Effect::Install => vec![Some(Event::InstallFailed {
                reason: String::new(),
                refused: true,
            })],
            Effect::CheckHealth(_) => vec![Some(unhealthy()), None],
            Effect::Arm(_) => vec![Some(Event::Withheld)],
            Effect::Reboot if matches!(self.state.phase, Phase::Pending { .. }) => vec![Some(Event::Withheld)],
            _ => vec![],
        };
        for verdict in verdicts {
            next.push(self.happens(format!("{effect:?}: {verdict:?}"), |after| {
                if *effect == Effect::Install {
                    after.write(None);
                }
                after.done(verdict);
            }));
        }
        next
    }

    /// What a poll or an operator may ask for.
    fn events(&self) -> Vec<Event> {
        let mut events = vec![Event::ConfirmAsked, Event::RollbackAsked];
        let slot = self.free_slot();
        if self.on.as_ref().is_some_and(|(running, _)| *running == slot) {
            // The driver refuses.
            return events;
        }
        // Also what failed before, since the operator may ask for it, and also what is older.
        events.extend((1..=self.newest).map(|sequence| Event::Planned {
            slot: slot.clone(),
            release: release_of(sequence, self.dangerous),
        }));
        events
    }

    fn free_slot(&self) -> SlotId {
        let updated = self.state.phase.update().map(|(slot, _)| slot.clone());
        updated.unwrap_or_else(|| slots().into_iter().find(|slot| *slot != self.state.active).unwrap())
    }

    /// What an agent does at its start, as `Driver::power_on` does.
    fn start(&self, running: &SlotId) -> Vec<Todo> {
        let known = *running == self.state.active || self.state.confirmed.contains_key(running);
        let replenish = known.then(|| Todo::Replenish(running.clone()));
        replenish
            .into_iter()
            .chain([Todo::Tell(Event::PowerOn(self.loader.view()))])
            .collect()
    }

    fn power_on(&mut self) {
        let chosen = self.loader.power_on();
        let held = self.content.get(&chosen);
        let held = *held.unwrap_or_else(|| panic!("slot {chosen}, whose content is undefined, is booted"));
        assert!(
            self.state.floors.permit_boot("stable", held).is_ok(),
            "slot {chosen} is booted, which holds {held} and is below the security floor"
        );
        let passed = matches!(self.state.phase, Phase::Confirming { .. });
        let on_trial = chosen != self.state.active && !self.state.confirmed.contains_key(&chosen) && !passed;
        if on_trial {
            self.trials += 1;
            assert!(self.trials <= self.attempts, "more boots on trial than attempts");
        }
        let todo = self.start(&chosen);
        self.on = Some((chosen, todo.into()));
    }

    fn push(&mut self, todo: impl IntoIterator<Item = Todo>) {
        let (_, ahead) = self.on.as_mut().unwrap();
        for (at, one) in todo.into_iter().enumerate() {
            ahead.insert(at, one);
        }
    }

    /// The first thing to do is done; what follows from it comes before the rest.
    fn done(&mut self, follows: Option<Event>) {
        self.on.as_mut().unwrap().1.pop_front();
        self.push(follows.map(Todo::Tell));
    }

    fn write(&mut self, image: Option<u64>) {
        let (updated, _) = self.state.phase.update().unwrap();
        let updated = updated.clone();
        let (running, _) = self.on.as_ref().unwrap();
        assert_ne!(updated, *running, "the running slot is written");
        assert_ne!(updated, self.state.active, "the active slot is written");
        assert!(
            !self.loader.may_choose(&updated),
            "a slot is written that the boot loader may choose"
        );
        match image {
            Some(image) => self.content.insert(updated, image),
            None => self.content.remove(&updated),
        };
    }

    /// The first thing to do succeeds.
    fn go_on(&mut self) {
        let (running, todo) = self.on.clone().unwrap();
        match todo.front().unwrap() {
            Todo::Replenish(slot) => {
                self.loader.replenish(slot, self.attempts);
                self.done(None);
            }
            Todo::Tell(event) => {
                self.done(None);
                self.tell(event.clone());
            }
            Todo::Do(effect) => {
                let follows = match effect {
                    // Left out when they are pushed.
                    Effect::SettleSettings(_) | Effect::CarrySettingsBack | Effect::PublishSettings => None,
                    Effect::Clear(slot) => {
                        self.loader.disable(slot);
                        Some(Event::Cleared)
                    }
                    Effect::Disable(slot) => {
                        assert_ne!(*slot, self.state.active, "the active slot is disabled");
                        self.loader.disable(slot);
                        None
                    }
                    Effect::Install => {
                        self.write(self.state.phase.update().map(|(_, release)| release.sequence));
                        Some(Event::Installed)
                    }
                    Effect::Arm(slot) => {
                        let (_, release) = self.state.phase.update().unwrap();
                        let held = self.content.get(slot);
                        assert_eq!(held, Some(&release.sequence), "armed before it was read back");
                        self.loader.arm(slot, self.attempts);
                        self.trials = 0;
                        Some(Event::Armed {
                            attempts: self.attempts,
                        })
                    }
                    Effect::CheckHealth(slot) => {
                        assert_eq!(*slot, running, "another slot than the one that runs is checked");
                        Some(Event::HealthPassed)
                    }
                    Effect::Confirm(slot) => {
                        // Two operations, of which only the first may be done when the power goes.
                        if self.loader_confirms(slot) {
                            return;
                        }
                        for below in self.state.below_next_floor() {
                            self.loader.disable(&below);
                        }
                        Some(Event::Confirmed)
                    }
                    Effect::Reboot => {
                        self.on = None;
                        return;
                    }
                };
                self.done(follows);
            }
        }
    }

    /// Whether the loader learned something.
    fn loader_confirms(&mut self, slot: &SlotId) -> bool {
        let before = self.loader.clone();
        self.loader.confirm(slot, self.attempts);
        self.loader != before
    }

    /// A step, as `Driver::dispatch` takes it: the record first, then the effects. A refusal changes nothing.
    fn tell(&mut self, event: Event) {
        let before = self.state.clone();
        let confirmed = event == Event::Confirmed;
        let taken = match step(&self.state, event.clone(), AT) {
            Ok(taken) => taken,
            Err(refusal) => {
                let asked = matches!(
                    event,
                    Event::ConfirmAsked | Event::RollbackAsked | Event::Planned { .. }
                );
                assert!(asked, "{event:?} is refused in {:?}: {refusal}", before.phase);
                return;
            }
        };
        self.state = taken.state;
        // Settings decide nothing about slots; their life is in the tests of `machine::step`.
        let own = |effect: &Effect| {
            matches!(
                effect,
                Effect::SettleSettings(_) | Effect::CarrySettingsBack | Effect::PublishSettings
            )
        };
        let effects = taken.effects.into_iter().filter(|effect| !own(effect));
        self.push(effects.map(Todo::Do));
        let floor = |state: &State| state.floors.components().next().map(|(_, _, floor)| floor).unwrap();
        let (old, new) = (floor(&before), floor(&self.state));
        assert!(
            new.sequence >= old.sequence && new.security >= old.security,
            "a floor falls"
        );
        assert!(confirmed || new == old, "a floor rises with {event:?}");
    }

    /// What holds at every instant.
    fn check(&self) {
        let held = self.content.get(&self.state.active);
        let held = held.unwrap_or_else(|| panic!("the active slot's content is undefined"));
        if let Some(known) = self.state.installed() {
            assert_eq!(known.sequence, *held, "the record is wrong about the active slot");
        }
        assert!(
            self.state.floors.permit_boot("stable", *held).is_ok(),
            "the active slot is below the security floor"
        );
        // Between the loader and the record, the slot that is about to become the active one is booted.
        let next = match &self.state.phase {
            Phase::Confirming { slot, .. } | Phase::RollingBack { to: slot } => slot,
            _ => &self.state.active,
        };
        assert!(
            self.loader.may_choose(&self.state.active) || self.loader.may_choose(next),
            "the active slot cannot be booted any more"
        );
        for (confirmed, known) in &self.state.confirmed {
            assert_eq!(
                self.content.get(confirmed),
                Some(&known.sequence),
                "a confirmed slot was written"
            );
        }
    }

    /// Left alone with power and a server, and everything works: ends with the newest release confirmed.
    fn left_alone(&self) -> Result<(), String> {
        let mut device = self.clone();
        device.newest = self.last + 1;
        for _ in 0..PATIENCE {
            match &device.on {
                None => device.power_on(),
                Some((_, todo)) if !todo.is_empty() => device.go_on(),
                Some((running, _)) => match &device.state.phase {
                    Phase::Idle if device.content[&device.state.active] == device.newest => return Ok(()),
                    Phase::Idle | Phase::Clearing { .. } | Phase::Staging { .. } if *running == device.state.active => {
                        let event = Event::Planned {
                            slot: device.free_slot(),
                            release: release_of(device.newest, device.dangerous),
                        };
                        device.push([Todo::Tell(event)]);
                    }
                    // Whatever could not be done is done at the next start.
                    _ => {
                        let again = device.start(running);
                        device.push(again);
                    }
                },
            }
            device.check();
        }
        Err(format!("does not come to rest: {device:#?}"))
    }
}

fn unhealthy() -> Event {
    Event::HealthFailed {
        reason: String::new(),
        log: String::new(),
    }
}

/// Every reachable state; how many there are, how many things happened, and which cells of the grid were met.
fn explore(start: System) -> (usize, usize, BTreeSet<(String, String)>) {
    let mut seen = HashSet::from([start.key()]);
    // With the way that led there, for whoever has to find out what is wrong.
    let mut ahead = VecDeque::from([(start, Vec::<String>::new())]);
    let mut happened = 0;
    let mut cells = BTreeSet::new();
    while let Some((device, way)) = ahead.pop_front() {
        let wrong = |what: &str, panic: Box<dyn std::any::Any + Send>| -> ! {
            let text: Option<String> = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panic!("{}\n{what}\n{}", way.join("\n"), text.unwrap_or_default());
        };
        let guarded = |what: &str, run: &mut dyn FnMut()| {
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                wrong(what, panic);
            }
        };
        if let Some(Todo::Tell(event)) = device.on.as_ref().and_then(|(_, todo)| todo.front()) {
            let event = format!("{event:?}");
            let event = event.split([' ', '(']).next().unwrap_or_default().to_owned();
            cells.insert((device.state.phase.word().to_owned(), event));
        }
        let mut next = Vec::new();
        guarded("then", &mut || next = device.next());
        for Happening { what, after } in next {
            happened += 1;
            if seen.insert(after.key()) {
                // Wherever there is something to do, what a device that is left alone does next is among what happens, and
                // is looked at in its turn.
                let quiet = after.on.as_ref().is_some_and(|(_, todo)| todo.is_empty());
                guarded(&what, &mut || {
                    after.check();
                    if quiet {
                        after.left_alone().unwrap();
                    }
                });
                let mut way = way.clone();
                way.push(what);
                ahead.push_back((after, way));
            }
        }
    }
    (seen.len(), happened, cells)
}

fn order(attempts: u32) -> Loader {
    Loader::Order {
        vars: Vars {
            order: "a".to_owned(),
            left: BTreeMap::from([(slot("a"), attempts), (slot("b"), 0)]),
        },
        running: slot("a"),
    }
}

#[test]
fn every_reachable_state_keeps_the_rules() {
    let last = std::env::var("FWTESTS_RELEASES").map_or(RELEASES, |text| text.parse().unwrap());
    for (name, loader, attempts) in [
        ("record, 2 attempts", Loader::Record(BootRecord::new(slot("a"))), 2),
        ("order, 2 attempts", order(2), 2),
        ("order, 1 attempt", order(1), 1),
    ] {
        // Once with a fall-back that stays, once with one that may not be booted any more.
        for dangerous in [0, last] {
            let (states, happened, cells) = explore(System::new(loader.clone(), attempts, last, dangerous));
            println!(
                "{name}, dangerous before {dangerous}: {states} states, {happened} transitions, {} cells of the grid",
                cells.len()
            );
            assert!(states > 1000, "{name}: only {states} states");
            let phases: BTreeSet<&String> = cells.iter().map(|(phase, _)| phase).collect();
            assert_eq!(phases.len(), 9, "{name}: reached are only {phases:?}");
        }
    }
}
