//! Floors bound to a counter in a TPM, against swtpm and the programs of tpm2-tools.

#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fwagent::drive::chain;
use fwagent::host::state_file::StateFile;
use fwagent::host::tpm::{Counter, CounterError, Tpm};
use fwagent::host::tpm_state::TpmState;
use fwagent::machine::counter::Reading;
use fwagent::machine::release::{ComponentRef, ReleaseRef};
use fwagent::machine::slot::SlotId;
use fwagent::machine::state::State;
use fwagent::ports::{PortError, PortErrorKind, StateStore};
use fwmeta::manifest::SemVer;
use tempfile::TempDir;

#[path = "../../tests/src/swtpm.rs"]
mod swtpm;
#[path = "../../tests/src/tools.rs"]
mod tools;

use swtpm::Swtpm;

const INDEX: u32 = 0x0150_0010;

fn release(sequence: u64) -> ReleaseRef {
    ReleaseRef {
        manifest_sha256: [1; 32],
        version: SemVer::parse("1.0.0").unwrap(),
        sequence,
        security_floor: 0,
        security: false,
        channel: "stable".to_owned(),
        components: vec![ComponentRef {
            name: "main".to_owned(),
            slot_class: "system".to_owned(),
            image_sha256: [9; 32],
        }],
    }
}

fn state(sequence: u64) -> State {
    State::new(SlotId::parse("a").unwrap(), Some(release(sequence)))
}

fn sequence(state: &State) -> u64 {
    state.floors.components().next().unwrap().2.sequence
}

/// A TPM and a state directory.
struct Bench {
    tpm: Swtpm,
    dir: TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let tpm = Swtpm::start(&dir.path().join("tpm"))?;
        fs::create_dir(dir.path().join("state")).unwrap();
        Some(Self { tpm, dir })
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn counter(&self) -> Tpm {
        Tpm::new(self.tpm.socket(), INDEX)
    }

    fn value(&self) -> u64 {
        match self.counter().read().unwrap() {
            Reading::At(value) => value,
            other => panic!("{other:?}"),
        }
    }

    fn states(&self) -> TpmState<StateFile, Tpm> {
        TpmState::new(StateFile::new(&self.dir()), self.counter())
    }

    fn copies(&self) -> Vec<Vec<u8>> {
        ["state.a", "state.b"]
            .map(|name| fs::read(self.dir().join(name)).unwrap())
            .into()
    }

    fn put_back(&self, copies: &[Vec<u8>]) {
        for (name, copy) in ["state.a", "state.b"].iter().zip(copies) {
            fs::write(self.dir().join(name), copy).unwrap();
        }
    }
}

#[test]
fn the_programs_of_others_see_the_same_counter() {
    let Some(bench) = Bench::new() else { return };
    let mut counter = bench.counter();
    assert_eq!(counter.read().unwrap(), Reading::Missing);
    counter.define().unwrap();
    assert_eq!(counter.read().unwrap(), Reading::Unwritten);
    let error = counter.define().unwrap_err();
    assert!(chain(&error).contains("0x14c (TPM_RC_NV_DEFINED)"), "{error:?}");
    counter.increment().unwrap();
    let first = bench.value();
    counter.increment().unwrap();
    assert_eq!(bench.value(), first + 1);

    let Some(public) = bench.tpm.tool("tpm2_nvreadpublic", &["0x01500010"]) else {
        return;
    };
    let public = String::from_utf8(public).unwrap();
    for part in [
        "ownerwrite|authwrite|nt=0x1|ownerread|authread|no_da|written",
        "size: 8",
    ] {
        assert!(public.contains(part), "{public}");
    }
    let read = bench.tpm.tool("tpm2_nvread", &["0x01500010", "-s", "8"]).unwrap();
    assert_eq!(read, (first + 1).to_be_bytes());
    bench.tpm.tool("tpm2_nvincrement", &["0x01500010"]).unwrap();
    assert_eq!(bench.value(), first + 2);

    // One that somebody else defined is taken, and one that does not count is not.
    let define = |index: &str, attributes: &str| {
        let arguments = [index, "-C", "o", "-s", "8", "-a", attributes];
        bench.tpm.tool("tpm2_nvdefine", &arguments).unwrap();
    };
    define("0x01500011", "nt=counter|authwrite|authread|no_da");
    let mut other = Tpm::new(bench.tpm.socket(), INDEX + 1);
    other.increment().unwrap();
    assert!(matches!(other.read().unwrap(), Reading::At(_)));
    define("0x01500012", "authwrite|authread");
    let error = Tpm::new(bench.tpm.socket(), INDEX + 2).read().unwrap_err();
    assert!(chain(&error).contains("something else"), "{error:?}");

    // With a password for the owner hierarchy nothing is defined, and the message says why.
    bench.tpm.tool("tpm2_changeauth", &["-c", "o", "secret"]).unwrap();
    let error = Tpm::new(bench.tpm.socket(), INDEX + 3).define().unwrap_err();
    assert!(chain(&error).contains("TPM_RC_BAD_AUTH"), "{}", chain(&error));
    assert_eq!(bench.value(), first + 2);
}

#[test]
fn only_floors_of_components_raise_the_counter() {
    let Some(bench) = Bench::new() else { return };
    let mut states = bench.states();
    assert!(states.load().unwrap().is_none());
    // A record that nobody bound is not stored by the way.
    states.store(&state(1)).unwrap_err();
    assert!(states.load().unwrap().is_none());
    let bound = states.bind(&state(1)).unwrap();
    assert_eq!(bench.value(), bound);

    let mut next = states.load().unwrap().unwrap();
    next.outcomes += 1;
    next.floors.root = 7;
    next.floors.raise_time(fwmeta::time::UtcSeconds(1_900_000_000));
    states.store(&next).unwrap();
    assert_eq!(bench.value(), bound);
    next.floors.confirm(&release(2));
    states.store(&next).unwrap();
    assert_eq!(bench.value(), bound + 1);
    // The driver's state does not know the new value, which is stored all the same.
    next.outcomes += 1;
    states.store(&next).unwrap();
    assert_eq!(bench.value(), bound + 1);
    let stored = bench.states().load().unwrap().unwrap();
    assert_eq!((stored.counter, sequence(&stored)), (Some(bound + 1), 2));
    // A security floor alone, too.
    let mut secured = release(2);
    secured.security_floor = 2;
    next.floors.confirm(&secured);
    states.store(&next).unwrap();
    assert_eq!(bench.value(), bound + 2);
}

#[test]
fn an_older_record_is_refused_and_nothing_changes_until_it_is_accepted() {
    let Some(bench) = Bench::new() else { return };
    let mut states = bench.states();
    let bound = states.bind(&state(1)).unwrap();
    let old = bench.copies();
    let mut next = states.load().unwrap().unwrap();
    next.floors.confirm(&release(2));
    states.store(&next).unwrap();
    let new = bench.copies();

    bench.put_back(&old);
    // An agent without the counter would believe it.
    assert_eq!(sequence(&StateFile::new(&bench.dir()).load().unwrap().unwrap()), 1);
    let error = bench.states().load().unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Refused);
    let text = chain(&error);
    for part in [
        format!("value {bound}, "),
        format!("at {}:", bound + 1),
        "--accept-tpm".to_owned(),
    ] {
        assert!(text.contains(&part), "{text}");
    }
    bench.states().store(&state(3)).unwrap_err();
    assert_eq!((bench.copies(), bench.value()), (old.clone(), bound + 1));

    // The one that belongs there is sound.
    bench.put_back(&new);
    assert_eq!(sequence(&bench.states().load().unwrap().unwrap()), 2);

    // Accepted, it is the only one.
    bench.put_back(&old);
    let accepted = StateFile::new(&bench.dir()).load().unwrap().unwrap();
    bench.states().bind(&accepted).unwrap();
    assert_eq!(sequence(&bench.states().load().unwrap().unwrap()), 1);
    bench.put_back(&new);
    bench.states().load().unwrap_err();

    // A record from before there was a counter, and another TPM.
    StateFile::new(&bench.dir()).store(&state(1)).unwrap();
    let text = chain(&bench.states().load().unwrap_err());
    assert!(text.contains("belongs to no value"), "{text}");
    bench.put_back(&new);
    let other = Tpm::new(bench.tpm.socket(), INDEX + 1);
    let text = chain(&TpmState::new(StateFile::new(&bench.dir()), other).load().unwrap_err());
    assert!(text.contains("there is no counter"), "{text}");
}

/// Power that fails at an operation: before it is done, or after.
#[derive(Clone)]
struct Power {
    left: Rc<Cell<u32>>,
    after: bool,
}

impl Power {
    fn run<T, E>(&self, failed: impl Fn() -> E, operation: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        match self.left.get() {
            0 => return Err(failed()),
            left => self.left.set(left - 1),
        }
        let cut = self.left.get() == 0;
        if cut && !self.after {
            return Err(failed());
        }
        let done = operation()?;
        if cut { Err(failed()) } else { Ok(done) }
    }
}

struct Powered<T>(T, Power);

fn gone() -> CounterError {
    CounterError::Io {
        attempt: "the power is gone",
        source: std::io::ErrorKind::BrokenPipe.into(),
    }
}

impl Counter for Powered<Tpm> {
    fn place(&self) -> String {
        self.0.place()
    }

    fn read(&mut self) -> Result<Reading, CounterError> {
        self.1.run(gone, || self.0.read())
    }

    fn define(&mut self) -> Result<(), CounterError> {
        self.1.run(gone, || self.0.define())
    }

    fn increment(&mut self) -> Result<(), CounterError> {
        self.1.run(gone, || self.0.increment())
    }
}

impl StateStore for Powered<StateFile> {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        self.0.load()
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        let failed = || PortError::environment("the power is gone", None);
        self.1.run(failed, || self.0.store(state))
    }
}

fn powered(bench: &Bench, operations: u32, after: bool) -> TpmState<Powered<StateFile>, Powered<Tpm>> {
    let left = Rc::new(Cell::new(operations));
    let power = Power { left, after };
    TpmState::new(
        Powered(StateFile::new(&bench.dir()), power.clone()),
        Powered(bench.counter(), power),
    )
}

#[test]
fn the_power_may_fail_at_any_point_between_record_and_counter() {
    let Some(bench) = Bench::new() else { return };
    let mut states = bench.states();
    states.bind(&state(1)).unwrap();
    let (mut last, mut finished, mut unfinished) = (1, 0, 0);
    for after in [false, true] {
        for operations in 1.. {
            let before = bench.value();
            let mut states = powered(&bench, operations, after);
            let next = states.load().and_then(|state| {
                let mut next = state.unwrap();
                next.floors.confirm(&release(last + 1));
                states.store(&next)
            });
            let seen = StateFile::new(&bench.dir()).load().unwrap().unwrap();
            unfinished += u32::from(seen.counter == Some(bench.value() + 1));
            // The next start: the old record or the new one, and the counter where it says.
            let loaded = bench.states().load().unwrap().unwrap();
            assert_eq!(loaded.counter, Some(bench.value()));
            let risen = sequence(&loaded) - last;
            assert!(risen <= 1 && bench.value() == before + risen, "{operations} {after}");
            assert!(next.is_err() || risen == 1);
            // The next update goes through.
            let mut states = bench.states();
            let mut next_state = states.load().unwrap().unwrap();
            next_state.floors.confirm(&release(last + 2));
            states.store(&next_state).unwrap();
            assert_eq!(bench.value(), before + risen + 1);
            last += 2;
            if next.is_ok() {
                finished += 1;
                break;
            }
        }
    }
    assert!(finished == 2 && unfinished >= 3, "{finished} {unfinished}");
}

#[test]
fn binding_can_be_done_again_after_the_power_failed() {
    for after in [false, true] {
        for operations in 1.. {
            let Some(bench) = Bench::new() else { return };
            let cut = powered(&bench, operations, after).bind(&state(1));
            if let Some(state) = StateFile::new(&bench.dir()).load().unwrap() {
                // What is stored is whole.
                assert_eq!(bench.states().load().unwrap().unwrap().counter, state.counter);
            }
            bench.states().bind(&state(1)).unwrap();
            let loaded = bench.states().load().unwrap().unwrap();
            assert_eq!(loaded.counter, Some(bench.value()));
            if cut.is_ok() {
                break;
            }
        }
    }
}

/// A counter that says that it was raised and was not must not be believed.
#[test]
fn a_counter_that_lies_is_found() {
    struct Stuck(Reading);
    impl Counter for Stuck {
        fn place(&self) -> String {
            "a stuck counter".to_owned()
        }
        fn read(&mut self) -> Result<Reading, CounterError> {
            Ok(self.0)
        }
        fn define(&mut self) -> Result<(), CounterError> {
            Ok(())
        }
        fn increment(&mut self) -> Result<(), CounterError> {
            Ok(())
        }
    }
    let bind = |dir: &Path, reading| TpmState::new(StateFile::new(dir), Stuck(reading)).bind(&state(1));
    let dir = tempfile::tempdir().unwrap();
    let error = bind(dir.path(), Reading::At(5)).unwrap_err();
    assert!(chain(&error).contains("is where it was"), "{error:?}");
    for reading in [Reading::Missing, Reading::Unwritten] {
        bind(dir.path(), reading).unwrap_err();
    }
}
