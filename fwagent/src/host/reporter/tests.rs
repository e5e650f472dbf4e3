#![allow(clippy::unwrap_used)]
use std::fs;

use fwmeta::manifest::SemVer;
use fwmeta::statement::{Link, Verified, verify};
use tempfile::TempDir;

use super::*;
use crate::machine::release::ComponentRef;
use crate::machine::settings::generation::GenerationId;
use crate::machine::settings::slots::{Orphan, SlotSettings};
use crate::machine::state::{Outcome, UpdateResult};

fn about() -> About {
    About {
        vendor: None,
        product: "router".to_owned(),
        hardware: "rev-b".to_owned(),
        channel: "stable".to_owned(),
    }
}

fn release(sequence: u64) -> ReleaseRef {
    ReleaseRef {
        manifest_sha256: [sequence as u8; 32],
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

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn ended(state: &State, sequence: u64) -> State {
    let mut next = state.clone();
    next.outcomes += 1;
    next.last = Some(Outcome {
        result: UpdateResult::FellBack,
        release: release(sequence),
        slot: slot("b"),
        reason: "a check failed".to_owned(),
        log: "last line\n".to_owned(),
        // A clock that stands still.
        at: UtcSeconds(0),
    });
    next
}

fn reporter(dir: &TempDir) -> Reporter {
    let mut reporter = Reporter::new(dir.path(), about());
    reporter.boot_id = "one boot".to_owned();
    reporter
}

/// What waits, verified, and each following from the one before.
fn said(reporter: &mut Reporter) -> Vec<Verified> {
    let key = reporter.identity().unwrap().public().clone();
    let journal = reporter.peek().unwrap().unwrap();
    let said: Vec<Verified> = journal
        .waiting()
        .iter()
        .map(|queued| {
            let verified = verify(queued.bytes.as_bytes(), &key).unwrap();
            assert_eq!(verified.digest, queued.digest);
            verified
        })
        .collect();
    for pair in said.windows(2) {
        assert_eq!(pair[1].follows(&pair[0]), Link::Next);
    }
    said
}

#[test]
fn each_outcome_is_reported_once_however_often_it_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut reporter = reporter(&dir);
    let state = State::new(slot("a"), Some(release(1)));
    reporter.catch_up(&state).unwrap();
    assert!(said(&mut reporter).is_empty());
    let mut state = state;
    for sequence in [2, 2, 3] {
        // The same release fails in the same way at what the clock says is the same time: another outcome all the same.
        state = ended(&state, sequence);
        reporter.catch_up(&state).unwrap();
        reporter.catch_up(&state).unwrap();
    }
    let said = said(&mut reporter);
    assert_eq!(said.len(), 3);
    let last = &said[2].statement;
    assert_eq!((last.event.outcome, last.event.result.as_str()), (3, "fell-back"));
    assert_eq!(
        last.event.subject.as_ref().unwrap().release.as_ref().unwrap().sequence,
        3
    );
    assert_eq!(last.active.as_ref().unwrap().release.as_ref().unwrap().sequence, 1);
    assert_eq!((last.floors[0].sequence, last.boots), (1, 1));
    assert!(last.clock_believed && last.event.log == "last line\n");
}

#[test]
fn the_record_of_the_agent_is_never_ahead_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let first = State::new(slot("a"), Some(release(1)));
    let mut store = Reported::new(StateFile::new(dir.path()), reporter(&dir));
    store.store(&first).unwrap();
    let second = ended(&first, 2);
    // The power goes after the state was stored and before anything was reported.
    StateFile::new(dir.path()).store(&second).unwrap();
    let mut store = Reported::new(StateFile::new(dir.path()), reporter(&dir));
    assert_eq!(store.load().unwrap(), Some(second.clone()));
    assert_eq!(said(&mut reporter(&dir)).len(), 1);
    store.load().unwrap();
    store.store(&ended(&second, 3)).unwrap();
    assert_eq!(said(&mut reporter(&dir)).len(), 2);
}

#[test]
fn a_report_that_cannot_be_made_stops_nothing_and_is_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let first = State::new(slot("a"), Some(release(1)));
    let mut store = Reported::new(StateFile::new(dir.path()), reporter(&dir));
    store.store(&first).unwrap();
    // No key can be had: something that is none has its place.
    let identity = dir.path().join("identity.pem");
    fs::remove_file(&identity).ok();
    fs::write(&identity, "no key").unwrap();
    let mut store = Reported::new(StateFile::new(dir.path()), reporter(&dir));
    let second = ended(&first, 2);
    store.store(&second).unwrap();
    assert_eq!(StateFile::new(dir.path()).peek().unwrap(), Some(second.clone()));
    fs::remove_file(&identity).unwrap();
    // Before the outcome is forgotten it is reported.
    store.store(&ended(&second, 3)).unwrap();
    let outcomes: Vec<u64> = said(&mut reporter(&dir))
        .iter()
        .map(|one| one.statement.event.outcome)
        .collect();
    assert_eq!(outcomes, [1, 2]);
}

#[test]
fn settings_that_were_not_carried_over_are_reported_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut reporter = reporter(&dir);
    let mut state = State::new(slot("a"), Some(release(1)));
    reporter.catch_up(&state).unwrap();
    assert!(said(&mut reporter).is_empty());
    let generation = GenerationId {
        number: 7,
        sha256: [7; 32],
    };
    state
        .settings
        .slots
        .insert(slot("a"), SlotSettings::first(generation, 1));
    state.settings.orphans.push(Orphan {
        sha256: [1; 32],
        schema: 2,
        keys: 3,
        reason: "there is no way back".to_owned(),
        at: UtcSeconds(0),
    });
    reporter.catch_up(&state).unwrap();
    reporter.catch_up(&state).unwrap();
    let said = said(&mut reporter);
    assert_eq!(said.len(), 1);
    let statement = &said[0].statement;
    assert_eq!(statement.event.result, "settings-orphaned");
    assert!(statement.event.reason.contains("3 edit(s)") && statement.event.reason.contains("no way back"));
    assert_eq!(statement.settings_generation, Some(7));
}

#[test]
fn refusals_are_reported_when_they_are_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut reporter = reporter(&dir);
    for reason in [
        "version 7 is older",
        "version 7 is older",
        "expired",
        "version 7 is older",
    ] {
        reporter.note("refused", reason).unwrap();
    }
    let said = said(&mut reporter);
    assert_eq!(said.len(), 3);
    let last = &said[2].statement;
    assert_eq!((last.refusals, last.last_refusal.as_str()), (3, "version 7 is older"));
    // No state was ever stored.
    assert!(last.active.is_none() && !last.clock_believed);
}

#[test]
fn boots_are_counted_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new(slot("a"), None);
    for (boot, boots) in [("one", 1), ("one", 1), ("two", 2), ("", 2), ("three", 3)] {
        let mut reporter = reporter(&dir);
        reporter.boot_id = boot.to_owned();
        reporter.catch_up(&state).unwrap();
        assert_eq!(reporter.peek().unwrap().unwrap().boots, boots, "{boot:?}");
    }
}

#[test]
fn a_lost_record_begins_another_chain_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut reporter = reporter(&dir);
    let state = ended(&State::new(slot("a"), Some(release(1))), 2);
    reporter.catch_up(&state).unwrap();
    let before = said(&mut reporter).remove(0);
    // One copy is made good by the other.
    fs::write(dir.path().join("report.a"), "torn").unwrap();
    reporter.catch_up(&state).unwrap();
    assert_eq!(said(&mut reporter), std::slice::from_ref(&before));
    for copy in ["a", "b"] {
        fs::write(dir.path().join(format!("report.{copy}")), "torn").unwrap();
    }
    reporter.catch_up(&state).unwrap();
    let said = said(&mut reporter);
    let results: Vec<&str> = said.iter().map(|one| one.statement.event.result.as_str()).collect();
    // What it cannot know to have reported it reports again.
    assert_eq!(results, ["degraded", "fell-back"]);
    assert_eq!(said[0].follows(&before), Link::NewChain);
    assert_eq!(fs::read_to_string(dir.path().join("report.a.damaged")).unwrap(), "torn");
}

#[test]
fn what_a_server_has_leaves_the_record_and_what_it_refuses_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut reporter = reporter(&dir);
    for reason in ["a", "b", "c"] {
        reporter.tell("refused", reason, None).unwrap();
    }
    let digests: Vec<[u8; 32]> = said(&mut reporter).iter().map(|one| one.digest).collect();
    reporter.settle(&digests[..1], &[(digests[1], 422)]).unwrap();
    reporter.settle(&[], &[(digests[1], 403)]).unwrap();
    let journal = reporter.peek().unwrap().unwrap();
    assert_eq!(journal.unwanted, 1);
    let left: Vec<_> = journal
        .waiting()
        .iter()
        .map(|one| (one.sequence, one.unwanted))
        .collect();
    assert_eq!(left, [(2, Some(403)), (3, None)]);
}
