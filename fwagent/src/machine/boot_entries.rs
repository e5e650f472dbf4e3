//! Entries of systemd-boot whose names count boots, and what they say about two slots. No I/O.
//!
//! ```text
//! NAME.conf              good: booted without counting
//! NAME+LEFT-DONE.conf    LEFT boots left; the loader renames it before it boots. With 0 it is bad, and sorted last
//! NAME.conf.off          ours: not read by the loader at all
//! ```
//!
//! Which entry is booted (systemd `src/boot/boot.c`, `boot_entry_compare`): good and counted ones before bad ones; then
//! those with a `sort-key`, by it, by `machine-id` and the newest `version` first; then by name, the last first. That order
//! is fixed by what the entries say, so the agent makes a slot first by counters alone:
//!
//! ```text
//!             the slot is sorted first                       the other is sorted first
//! arm         1. other good   2. slot +N                     1. slot +N     2. other +0, so that the slot is first
//! tried out   slot +0 is bad, other good: other              both bad: other, as sorted
//! confirm     slot good                                      1. slot good   2. other +0
//! disable     slot off                                       slot off
//! ```
//!
//! A bad entry is still booted when no other is better, so a slot that is being written is taken out by its name. With
//! more than two slots counters cannot say all that is needed. A `default` that names one entry overrides all of it.

use std::cmp::Ordering;

use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;

/// Longest entry that is read, in bytes.
pub const ENTRY_BYTES: usize = 64 * 1024;
const SUFFIX: &str = ".conf";
const OFF: &str = ".off";
/// Largest counter: the loader ignores names with a larger one.
const COUNTER: u32 = i32::MAX as u32;

/// The entries do not say what they must, or cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The slot has no entry.
    #[error("slot {slot}: there is no entry {name}.conf")]
    Gone {
        /// The slot.
        slot: SlotId,
        /// Without counters.
        name: String,
    },
    /// Several files are the slot's, and say different things.
    #[error("slot {slot}: there are entries with different contents; remove one of {names}")]
    Different {
        /// The slot.
        slot: SlotId,
        /// Their names.
        names: String,
    },
    /// The loader would not show the entry, or not count it.
    #[error("slot {slot}: the entry has no line `linux` or `uki`, and the loader counts no others")]
    NotCounted {
        /// The slot.
        slot: SlotId,
    },
    /// No text.
    #[error("slot {slot}: the entry is no text")]
    NoText {
        /// The slot.
        slot: SlotId,
    },
    /// The loader could take either.
    #[error("the loader sorts the entries of slots {first} and {second} as equal")]
    Equal {
        /// A slot.
        first: SlotId,
        /// The other one.
        second: SlotId,
    },
    /// There would be nothing left to boot.
    #[error("slot {slot} is the only one with an entry that may be booted")]
    LastSlot {
        /// The slot.
        slot: SlotId,
    },
    /// Somebody chose an entry for good.
    #[error("{place} chooses {pattern:?} whatever the counters say; it must fit the entries of both slots, or go")]
    Pinned {
        /// Where.
        place: String,
        /// What.
        pattern: String,
    },
}

/// What the name of an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Booted without counting.
    Good,
    /// Counted.
    Left {
        /// Boots left.
        left: u32,
        /// Boots so far.
        done: u32,
    },
    /// Not read by the loader.
    Off,
}

impl Count {
    /// Sorted last.
    fn is_bad(self) -> bool {
        matches!(self, Self::Left { left: 0, .. })
    }

    fn bad(self) -> Self {
        let done = if let Self::Left { done, .. } = self { done } else { 0 };
        Self::Left { left: 0, done }
    }
}

/// The name of a slot's entry, without counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryName(String);

impl EntryName {
    /// The name that `pattern` gives a slot; `None` when it is none, or could be taken for a counted one.
    pub fn new(pattern: &str, slot: &SlotId) -> Option<Self> {
        let name = pattern.replace("{slot}", slot.as_str());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let fits = (1..=128).contains(&name.len()) && name.bytes().all(allowed);
        // The loader passes over hidden ones and takes those for its own.
        let reserved = name.starts_with('.') || name.to_ascii_lowercase().starts_with("auto-");
        (fits && !reserved && pattern.contains("{slot}")).then_some(Self(name))
    }

    /// How the loader calls it.
    pub fn id(&self) -> String {
        format!("{}{SUFFIX}", self.0.to_ascii_lowercase())
    }

    /// The file of that count.
    pub fn file(&self, count: Count) -> String {
        let name = &self.0;
        match count {
            Count::Good => format!("{name}{SUFFIX}"),
            Count::Left { left, done: 0 } => format!("{name}+{left}{SUFFIX}"),
            Count::Left { left, done } => format!("{name}+{left}-{done}{SUFFIX}"),
            Count::Off => format!("{name}{SUFFIX}{OFF}"),
        }
    }

    /// What a file of this slot counts; `None` when it is not this slot's. FAT knows no case.
    pub fn parse(&self, file: &str) -> Option<Count> {
        let file = file.to_ascii_lowercase();
        let rest = file.strip_prefix(&self.0.to_ascii_lowercase())?;
        if rest == SUFFIX {
            return Some(Count::Good);
        }
        if rest.strip_prefix(SUFFIX) == Some(OFF) {
            return Some(Count::Off);
        }
        let counters = rest.strip_prefix('+')?.strip_suffix(SUFFIX)?;
        let (left, done) = counters.split_once('-').unwrap_or((counters, "0"));
        let (left, done) = (counter(left)?, counter(done)?);
        Some(Count::Left { left, done })
    }
}

fn counter(digits: &str) -> Option<u32> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| digits.parse().ok()).flatten();
    number.filter(|number| *number <= COUNTER)
}

/// What the loader sorts entries by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKey {
    sort_key: Option<String>,
    machine_id: Option<String>,
    version: Option<String>,
    id: String,
}

impl SortKey {
    /// Reads an entry; `None` when the loader would not boot or not count it.
    pub fn parse(text: &str, id: String) -> Option<Self> {
        let mut key = Self {
            sort_key: None,
            machine_id: None,
            version: None,
            id,
        };
        let mut counted = false;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once([' ', '\t']) else {
                continue;
            };
            let value = Some(value.trim().to_owned());
            match name {
                "sort-key" => key.sort_key = value,
                "machine-id" => key.machine_id = value,
                "version" => key.version = value,
                "linux" | "uki" => counted = true,
                _ => {}
            }
        }
        counted.then_some(key)
    }

    /// As the loader sorts entries of which none is bad, or all.
    pub fn compare(&self, other: &Self) -> Ordering {
        let keys = match (&self.sort_key, &other.sort_key) {
            (Some(one), Some(two)) => one
                .cmp(two)
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| compare_versions(other.version.as_deref(), self.version.as_deref())),
            (one, two) => one.is_none().cmp(&two.is_none()),
        };
        keys.then_with(|| compare_versions(Some(&other.id), Some(&self.id)))
    }
}

/// `strverscmp_improved` of systemd (UAPI.10, comparison of versions).
fn compare_versions(one: Option<&str>, two: Option<&str>) -> Ordering {
    let (Some(one), Some(two)) = (one.filter(|text| !text.is_empty()), two.filter(|text| !text.is_empty())) else {
        return one.cmp(&two);
    };
    let (mut a, mut b) = (one.as_bytes(), two.as_bytes());
    loop {
        a = skip(a, |byte| !is_version_byte(byte)).1;
        b = skip(b, |byte| !is_version_byte(byte)).1;
        for separator in [b'~', b'-', b'^', b'.'] {
            let (has_a, has_b) = (a.first() == Some(&separator), b.first() == Some(&separator));
            if has_a != has_b {
                return has_b.cmp(&has_a);
            }
            if has_a {
                (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
            }
            // Longer is newer, but for what is before a release.
            if separator == b'~' && (a.is_empty() || b.is_empty()) {
                return a.first().cmp(&b.first());
            }
        }
        let digit = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
        let (order, rest_a, rest_b) = if digit(a) || digit(b) {
            let [a, b] = [a, b].map(|text| skip(text, |byte| byte == b'0').1);
            let [(one, a), (two, b)] = [a, b].map(|text| skip(text, |byte| byte.is_ascii_digit()));
            (one.len().cmp(&two.len()).then_with(|| one.cmp(two)), a, b)
        } else {
            let [(one, a), (two, b)] = [a, b].map(|text| skip(text, |byte| byte.is_ascii_alphabetic()));
            (one.cmp(two), a, b)
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn is_version_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'~' | b'-' | b'^' | b'.')
}

fn skip(text: &[u8], of: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let length = text.iter().take_while(|byte| of(**byte)).count();
    text.split_at(length)
}

/// One file of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What its name says.
    pub count: Count,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The entry of a slot. A loss of power leaves several files, of which one may be cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotEntry {
    /// What the loader goes by.
    pub count: Count,
    /// The content.
    pub bytes: Vec<u8>,
    key: SortKey,
}

impl SlotEntry {
    /// The entry that these files are.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn of(slot: &SlotId, name: &EntryName, files: &[Found]) -> Result<Self, EntryError> {
        let longest = files.iter().max_by_key(|file| file.bytes.len());
        let longest = longest.ok_or_else(|| EntryError::Gone {
            slot: slot.clone(),
            name: name.0.clone(),
        })?;
        // What is written anew is written from its start.
        if let Some(other) = files.iter().find(|file| !longest.bytes.starts_with(&file.bytes)) {
            return Err(EntryError::Different {
                slot: slot.clone(),
                names: [longest, other].map(|file| name.file(file.count)).join(" and "),
            });
        }
        let whole = files.iter().filter(|file| file.bytes.len() == longest.bytes.len());
        // As the loader would take them.
        let rank = |count: &Count| match count {
            Count::Left { left, .. } if *left > 0 => (0, COUNTER - left),
            Count::Good => (1, 0),
            Count::Left { .. } => (2, 0),
            Count::Off => (3, 0),
        };
        let count = whole.map(|file| file.count).min_by_key(rank).unwrap_or(longest.count);
        let text = std::str::from_utf8(&longest.bytes).map_err(|_| EntryError::NoText { slot: slot.clone() })?;
        let key = SortKey::parse(text, name.id()).ok_or_else(|| EntryError::NotCounted { slot: slot.clone() })?;
        Ok(Self {
            count,
            bytes: longest.bytes.clone(),
            key,
        })
    }
}

/// A name to be given to a slot's entry.
pub type Rename = (SlotId, Count);

/// The two slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries(pub [(SlotId, Result<SlotEntry, EntryError>); 2]);

impl Entries {
    fn get(&self, slot: &SlotId) -> Result<&SlotEntry, EntryError> {
        let found = self.0.iter().find(|(named, _)| named == slot);
        match found {
            Some((_, entry)) => entry.as_ref().map_err(Clone::clone),
            None => Err(EntryError::Gone {
                slot: slot.clone(),
                name: String::new(),
            }),
        }
    }

    fn other(&self, slot: &SlotId) -> &SlotId {
        let [(first, _), (second, _)] = &self.0;
        if first == slot { second } else { first }
    }

    /// Whether the loader sorts `slot` first when none is bad, or both.
    fn is_first(&self, slot: &SlotId) -> Result<bool, EntryError> {
        let other = self.other(slot);
        match self.get(slot)?.key.compare(&self.get(other)?.key) {
            Ordering::Less => Ok(true),
            Ordering::Greater => Ok(false),
            Ordering::Equal => Err(EntryError::Equal {
                first: slot.clone(),
                second: other.clone(),
            }),
        }
    }

    /// What the loader boots next, and how it is counted.
    fn next(&self) -> Result<Option<(&SlotId, Count)>, EntryError> {
        let visible = |slot: &SlotId| {
            self.get(slot)
                .map(|entry| entry.count)
                .ok()
                .filter(|count| *count != Count::Off)
        };
        let [(first, _), (second, _)] = &self.0;
        Ok(match (visible(first), visible(second)) {
            (None, None) => None,
            (Some(count), None) => Some((first, count)),
            (None, Some(count)) => Some((second, count)),
            (Some(one), Some(two)) => {
                let first_wins = if one.is_bad() == two.is_bad() {
                    self.is_first(first)?
                } else {
                    two.is_bad()
                };
                Some(if first_wins { (first, one) } else { (second, two) })
            }
        })
    }

    /// What the agent is to know, when `running` runs.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn view(&self, running: &SlotId) -> Result<BootView, EntryError> {
        let armed = match self.next()? {
            Some((slot, Count::Left { left, .. })) if slot != running => Some((slot.clone(), left)),
            _ => None,
        };
        Ok(BootView {
            booted: Some(running.clone()),
            armed: armed.into_iter().collect(),
        })
    }

    /// The slot that is booted without a trial.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn primary(&self) -> Result<Option<SlotId>, EntryError> {
        Ok(self.next()?.map(|(slot, _)| slot.clone()))
    }

    /// `slot` first, with so many attempts, and the other after it.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn arm(&self, slot: &SlotId, attempts: u32) -> Result<Vec<Rename>, EntryError> {
        let (other, count) = self.stays(slot)?;
        let armed = (
            slot.clone(),
            Count::Left {
                left: attempts,
                done: 0,
            },
        );
        Ok(if self.is_first(slot)? {
            vec![(other.clone(), Count::Good), armed]
        } else {
            vec![armed, (other.clone(), count.bad())]
        })
    }

    /// `slot` first, without counting.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn confirm(&self, slot: &SlotId) -> Result<Vec<Rename>, EntryError> {
        let other = self.other(slot);
        let mut renames = vec![(slot.clone(), Count::Good)];
        // One that is gone or out is behind anyway.
        if let Ok(entry) = self.get(other)
            && entry.count != Count::Off
            && !self.is_first(slot)?
        {
            renames.push((other.clone(), entry.count.bad()));
        }
        Ok(renames)
    }

    /// `slot` not at all.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn disable(&self, slot: &SlotId) -> Result<Vec<Rename>, EntryError> {
        self.stays(slot)?;
        self.get(slot)?;
        Ok(vec![(slot.clone(), Count::Off)])
    }

    /// The confirmed `slot` runs: good again, unless the other one is to be booted next.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn replenish(&self, slot: &SlotId) -> Result<Vec<Rename>, EntryError> {
        let waits = match self.next()? {
            Some((next, count)) => next != slot && !count.is_bad(),
            None => false,
        };
        let good = waits || self.get(slot)?.count == Count::Good;
        Ok(if good {
            vec![]
        } else {
            vec![(slot.clone(), Count::Good)]
        })
    }

    /// A new device: only `slot` may be booted.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn create(&self, slot: &SlotId) -> Result<Vec<Rename>, EntryError> {
        let other = self.other(slot);
        self.get(slot)?;
        self.get(other)?;
        Ok(vec![(slot.clone(), Count::Good), (other.clone(), Count::Off)])
    }

    /// The other slot, which must be there when `slot` is not.
    fn stays(&self, slot: &SlotId) -> Result<(&SlotId, Count), EntryError> {
        let other = self.other(slot);
        match self.get(other)?.count {
            Count::Off => Err(EntryError::LastSlot { slot: slot.clone() }),
            count => Ok((other, count)),
        }
    }
}

/// Checks that a pattern for the entry to boot, which overrides the order, does not choose between the slots.
///
/// # Errors
/// [`EntryError::Pinned`].
pub fn check_pattern(place: &str, pattern: &str, names: &[EntryName]) -> Result<(), EntryError> {
    let folded = pattern.to_ascii_lowercase();
    if names.iter().all(|name| fits(folded.as_bytes(), name.id().as_bytes())) {
        return Ok(());
    }
    Err(EntryError::Pinned {
        place: place.to_owned(),
        pattern: pattern.chars().take(128).collect(),
    })
}

/// The last line `default` of a `loader.conf`.
pub fn default_pattern(text: &str) -> Option<&str> {
    let lines = text.lines().map(str::trim);
    let settings = lines.filter_map(|line| line.split_once([' ', '\t']));
    let defaults = settings.filter(|(name, _)| *name == "default");
    defaults.map(|(_, value)| value.trim()).next_back()
}

/// A glob of `*` and `?`; anything else in it stands for itself, so that a set in brackets fits nothing.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => {
                // Let the last star take one more.
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests;
