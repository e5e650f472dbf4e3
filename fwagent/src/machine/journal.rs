//! The statements that wait for delivery, and what is needed to make the next one (DESIGN §5.7). Pure.
//!
//! One record holds all of it, so that one durable write makes a statement, uses its number up, and marks what it reports
//! as reported: after a loss of power either all of that has happened or nothing. What is reported of an update is derived
//! from the agent's record, whose counter of outcomes says whether the last one has been.

use std::collections::BTreeMap;

use fwmeta::hex;
use fwmeta::json::{Doc, Value, object};
use fwmeta::statement::Position;

use crate::machine::state::{REASON_BYTES, State, shortened};

/// Statements that wait at most.
pub const QUEUE: usize = 64;
/// Bytes of all that wait, at most.
pub const QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// Longest record, in bytes: a full queue, escaped, and the rest.
pub const JOURNAL_BYTES: usize = 8 * 1024 * 1024;
/// Kinds of notes of which the last is remembered.
const NOTES: usize = 16;
/// Version of the record's form.
const SCHEMA: u64 = 1;

/// The record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Random name of the chain of statements.
    chain: String,
    /// Number of the next statement.
    next: u64,
    /// Digest of the last one.
    previous: Option<[u8; 32]>,
    /// Which outcome was reported last, by the agent's count; `None` before the first.
    reported: Option<u64>,
    /// The boot in which the agent ran last, and how many there were.
    boot_id: String,
    /// Boots since the record began.
    pub boots: u64,
    /// Different refusals in a row, and the last of them.
    pub refusals: u64,
    /// The last refusal.
    pub last_refusal: String,
    /// The last reason of each other kind of note.
    notes: BTreeMap<String, String>,
    /// Statements given up because too many waited.
    pub dropped: u64,
    /// Statements that the server would not have.
    pub unwanted: u64,
    /// What waits, in the order of their numbers.
    queue: Vec<Queued>,
}

/// A statement that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its number.
    pub sequence: u64,
    /// What it says, in one word.
    pub result: String,
    /// SHA-256 of its canonical form, which names it.
    pub digest: [u8; 32],
    /// The signed bytes.
    pub bytes: String,
    /// The HTTP status with which the server refused it; it is not sent again by itself.
    pub unwanted: Option<u16>,
}

impl Journal {
    /// An empty record.
    pub fn new(chain: [u8; 16]) -> Self {
        Self {
            chain: hex::encode(&chain),
            next: 1,
            previous: None,
            reported: None,
            boot_id: String::new(),
            boots: 0,
            refusals: 0,
            last_refusal: String::new(),
            notes: BTreeMap::new(),
            dropped: 0,
            unwanted: 0,
            queue: Vec::new(),
        }
    }

    /// Counts a boot, when this is another one than the last; whether it is.
    pub fn count_boot(&mut self, boot_id: &str) -> bool {
        let new = self.boot_id != boot_id && !boot_id.is_empty();
        if new {
            self.boot_id = shortened(boot_id, 64);
            self.boots = self.boots.saturating_add(1);
        }
        new
    }

    /// Whether the state's last outcome is yet to be reported.
    pub fn is_due(&self, state: &State) -> bool {
        state.last.is_some() && self.reported != Some(state.outcomes)
    }

    /// Whether a note says anything new: a server that lies at every poll, or a copy that stays damaged, is reported once
    /// until something else happens.
    pub fn is_news(&self, result: &str, reason: &str) -> bool {
        let reason = shortened(reason, REASON_BYTES);
        match result {
            "refused" => self.last_refusal != reason,
            other => self.notes.get(other) != Some(&reason),
        }
    }

    /// Remembers a note, before the statement about it is made.
    pub fn note(&mut self, result: &str, reason: &str) {
        let reason = shortened(reason, REASON_BYTES);
        if result == "refused" {
            self.refusals = self.refusals.saturating_add(1);
            self.last_refusal = reason;
        } else if self.notes.len() < NOTES || self.notes.contains_key(result) {
            self.notes.insert(result.to_owned(), reason);
        }
    }

    /// The place of the next statement.
    pub fn position(&self) -> Position {
        Position {
            chain: self.chain.clone(),
            sequence: self.next,
            previous: self.previous,
        }
    }

    /// Takes the statement of the place that [`position`](Self::position) gave; `outcome` is the one that it reports.
    pub fn push(&mut self, result: &str, digest: [u8; 32], bytes: String, outcome: Option<u64>) {
        self.queue.push(Queued {
            sequence: self.next,
            result: result.to_owned(),
            digest,
            bytes,
            unwanted: None,
        });
        self.next = self.next.saturating_add(1);
        self.previous = Some(digest);
        self.reported = outcome.or(self.reported);
        while self.queue.len() > QUEUE
            || self.queue.iter().map(|queued| queued.bytes.len()).sum::<usize>() > QUEUE_BYTES
        {
            // The oldest of the least important; the new one may be it.
            let least = (0..self.queue.len()).min_by_key(|at| self.queue[*at].importance());
            let Some(least) = least else { break };
            self.queue.remove(least);
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// What waits, in order.
    pub fn waiting(&self) -> &[Queued] {
        &self.queue
    }

    /// The server has taken these.
    pub fn delivered(&mut self, digests: &[[u8; 32]]) {
        self.queue.retain(|queued| !digests.contains(&queued.digest));
    }

    /// The server will not have this one.
    pub fn set_aside(&mut self, digest: &[u8; 32], status: u16) {
        if let Some(queued) = self.queue.iter_mut().find(|queued| queued.digest == *digest) {
            let new = queued.unwanted.replace(status).is_none();
            self.unwanted = self.unwanted.saturating_add(u64::from(new));
        }
    }

    /// The bytes of the record.
    pub fn encode(&self) -> Vec<u8> {
        let queue = self.queue.iter().map(|queued| {
            object([
                ("sequence", queued.sequence.into()),
                ("result", (&queued.result).into()),
                ("digest", hex::encode(&queued.digest).into()),
                ("bytes", (&queued.bytes).into()),
                ("unwanted", queued.unwanted.map(u64::from).into()),
            ])
        });
        let notes = self.notes.iter().map(|(kind, reason)| (kind.clone(), reason.into()));
        object([
            ("schema", SCHEMA.into()),
            ("chain", (&self.chain).into()),
            ("next", self.next.into()),
            ("previous", self.previous.map(|digest| hex::encode(&digest)).into()),
            ("reported", self.reported.into()),
            ("boot_id", (&self.boot_id).into()),
            ("boots", self.boots.into()),
            ("refusals", self.refusals.into()),
            ("last_refusal", (&self.last_refusal).into()),
            ("notes", Value::Object(notes.collect())),
            ("dropped", self.dropped.into()),
            ("unwanted", self.unwanted.into()),
            ("queue", queue.collect::<Vec<_>>().into()),
        ])
        .to_json()
        .into_bytes()
    }

    /// Reads [`encode`](Self::encode) back; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let value = Doc::parse(bytes).ok()?.root().to_value().ok()?;
        if value.get("schema")?.as_u64()? != SCHEMA {
            return None;
        }
        let text = |value: &Value, field: &str| Some(value.get(field)?.as_str()?.to_owned());
        let number = |field: &str| value.get(field)?.as_u64();
        let listed = value.get("queue")?.as_array()?;
        let notes = value.get("notes")?.as_object()?;
        if listed.len() > QUEUE || notes.len() > NOTES {
            return None;
        }
        let next = number("next")?;
        let mut queue: Vec<Queued> = Vec::with_capacity(listed.len());
        for entry in listed {
            let queued = Queued {
                sequence: entry.get("sequence")?.as_u64()?,
                result: text(entry, "result")?,
                digest: hex::decode_array(entry.get("digest")?.as_str()?)?,
                bytes: text(entry, "bytes")?,
                unwanted: optional(entry.get("unwanted")?, |status| u16::try_from(status.as_u64()?).ok())?,
            };
            let after = queue.last().is_none_or(|last| last.sequence < queued.sequence);
            if !after || queued.sequence >= next {
                return None;
            }
            queue.push(queued);
        }
        let previous = optional(value.get("previous")?, |digest| hex::decode_array(digest.as_str()?))?;
        if next == 0 || previous.is_some() != (next > 1) {
            return None;
        }
        Some(Self {
            chain: text(&value, "chain")?,
            next,
            previous,
            reported: optional(value.get("reported")?, Value::as_u64)?,
            boot_id: text(&value, "boot_id")?,
            boots: number("boots")?,
            refusals: number("refusals")?,
            last_refusal: text(&value, "last_refusal")?,
            notes: notes
                .iter()
                .map(|(kind, reason)| Some((kind.clone(), reason.as_str()?.to_owned())))
                .collect::<Option<_>>()?,
            dropped: number("dropped")?,
            unwanted: number("unwanted")?,
            queue,
        })
    }
}

impl Queued {
    /// What is dropped last.
    fn importance(&self) -> u8 {
        match (&self.unwanted, self.result.as_str()) {
            (Some(_), _) => 0,
            (None, "refused" | "nothing-to-do" | "failed") => 1,
            (None, "installed") => 2,
            (None, "confirmed" | "fell-back" | "rolled-back" | "install-failed") => 4,
            (None, _) => 3,
        }
    }
}

fn optional<T>(value: &Value, read: impl FnOnce(&Value) -> Option<T>) -> Option<Option<T>> {
    match value {
        Value::Null => Some(None),
        value => read(value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn push(journal: &mut Journal, result: &str, outcome: Option<u64>) -> u64 {
        let sequence = journal.position().sequence;
        let digest = [sequence as u8; 32];
        journal.push(result, digest, format!("statement \"{sequence}\""), outcome);
        sequence
    }

    fn sequences(journal: &Journal) -> Vec<u64> {
        journal.waiting().iter().map(|queued| queued.sequence).collect()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut journal = Journal::new([7; 16]);
        assert_eq!(Journal::decode(&journal.encode()), Some(journal.clone()));
        assert!(journal.count_boot("one") && !journal.count_boot("one") && !journal.count_boot(""));
        assert!(journal.count_boot("two"));
        journal.note("refused", "version 7 is older");
        journal.note("degraded", "a copy");
        push(&mut journal, "confirmed", Some(1));
        push(&mut journal, "refused", None);
        journal.set_aside(&[2; 32], 422);
        journal.set_aside(&[2; 32], 422);
        assert_eq!((journal.boots, journal.refusals, journal.unwanted), (2, 1, 1));
        assert_eq!(Journal::decode(&journal.encode()), Some(journal.clone()));
        for (from, to) in [
            ("\"schema\":1", "\"schema\":2"),
            ("\"next\":3", "\"next\":2"),
            ("\"next\":3", "\"next\":1"),
            ("\"sequence\":2", "\"sequence\":1"),
            ("\"reported\":1", "\"reported\":\"1\""),
        ] {
            let text = String::from_utf8(journal.encode()).unwrap();
            let changed = text.replacen(from, to, 1);
            assert!(
                changed != text && Journal::decode(changed.as_bytes()).is_none(),
                "{from}"
            );
        }
    }

    #[test]
    fn what_repeats_is_no_news() {
        let mut journal = Journal::new([0; 16]);
        for kind in ["refused", "degraded"] {
            assert!(journal.is_news(kind, "a"));
            journal.note(kind, "a");
            assert!(!journal.is_news(kind, "a") && journal.is_news(kind, "b"));
        }
        assert!(journal.is_news("settings-orphaned", "a"));
    }

    #[test]
    fn a_full_queue_gives_up_the_oldest_of_the_least_important() {
        let mut journal = Journal::new([0; 16]);
        push(&mut journal, "confirmed", Some(1));
        push(&mut journal, "refused", None);
        push(&mut journal, "degraded", None);
        push(&mut journal, "refused", None);
        while journal.waiting().len() < QUEUE {
            push(&mut journal, "fell-back", None);
        }
        assert_eq!(journal.dropped, 0);
        let mut gone = Vec::new();
        for _ in 0..4 {
            let before = sequences(&journal);
            push(&mut journal, "confirmed", Some(1));
            let after = sequences(&journal);
            gone.extend(before.into_iter().filter(|sequence| !after.contains(sequence)));
        }
        // The refusals, the damage, and then the oldest outcome.
        assert_eq!(gone, [2, 4, 3, 1]);
        assert_eq!((journal.dropped, journal.waiting().len()), (4, QUEUE));
        // Whoever is flooded by refusals keeps what counts.
        let kept = sequences(&journal);
        push(&mut journal, "refused", None);
        assert_eq!(sequences(&journal), kept);
        assert_eq!(journal.dropped, 5);
        let next = journal.position();
        assert_eq!(next.sequence, kept.last().unwrap() + 2);
    }

    #[test]
    fn bytes_are_bounded_too_and_numbers_go_on() {
        let mut journal = Journal::new([0; 16]);
        for number in 1..=5_u8 {
            journal.push("confirmed", [number; 32], "x".repeat(QUEUE_BYTES / 2), None);
        }
        assert_eq!(sequences(&journal), [4, 5]);
        assert!(journal.encode().len() < JOURNAL_BYTES);
        journal.delivered(&[[4; 32], [9; 32]]);
        assert_eq!(sequences(&journal), [5]);
        assert_eq!(journal.position().sequence, 6);
        assert_eq!(journal.position().previous, Some([5; 32]));
    }
}
