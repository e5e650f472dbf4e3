//! What the variables of a UEFI boot manager say about slots (UEFI 2.10 §3.1.3 and §3.3). No I/O.
//!
//! ```text
//! BootOrder    u16 little-endian, one after the other    tried in this order
//! BootNext     u16                                       tried first, once: the firmware deletes it before it boots
//! BootCurrent  u16                                       what was booted
//! Boot####     u32 attributes, bit 0 active | u16 length of the device paths | description, UCS-2, ends with 0
//!              | device paths | optional data
//!
//! arm          not in BootOrder; BootNext
//! confirm      first in BootOrder
//! disable      neither in BootNext nor in BootOrder
//! ```
//!
//! The firmware stores that the attempt is spent by deleting BootNext before it starts the slot. It goes back at the next
//! reset, so a slot that hangs needs a watchdog. Entries of others keep their place in BootOrder.

use std::collections::BTreeMap;

use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;

/// Longest variable that is read, in bytes: firmware allows some KiB.
pub const VARIABLE_BYTES: usize = 64 * 1024;
/// Bit of a load option that is booted.
const ACTIVE: u32 = 1;

/// The variables are not what they must be, or cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EfiError {
    /// A variable has a length that it cannot have.
    #[error("variable {variable} has {length} bytes, which is no list of 16-bit numbers")]
    Length {
        /// The variable.
        variable: &'static str,
        /// Its length, in bytes.
        length: usize,
    },
    /// A load option is cut off.
    #[error("the load option ends within its {part}")]
    Cut {
        /// In which part.
        part: &'static str,
    },
    /// The configuration does not say which load option is the slot's.
    #[error("slot {slot} has no load option in the configuration")]
    NotConfigured {
        /// The slot.
        slot: SlotId,
    },
    /// No load option is the slot's.
    #[error("slot {slot}: there is no load option {entry}; the firmware may have deleted it")]
    Gone {
        /// The slot.
        slot: SlotId,
        /// Its entry as configured.
        entry: Entry,
    },
    /// Several load options could be the slot's.
    #[error("slot {slot}: {first} and {second} are both {entry}")]
    Ambiguous {
        /// The slot.
        slot: SlotId,
        /// Its entry as configured.
        entry: Entry,
        /// One of them.
        first: BootNumber,
        /// Another one.
        second: BootNumber,
    },
    /// Two slots have the same load option.
    #[error("slots {first} and {second} are both {number}")]
    Shared {
        /// A slot.
        first: SlotId,
        /// Another slot.
        second: SlotId,
        /// The load option.
        number: BootNumber,
    },
    /// The firmware would not boot it.
    #[error("slot {slot}: {number} is not active")]
    Inactive {
        /// The slot.
        slot: SlotId,
        /// Its load option.
        number: BootNumber,
    },
    /// There would be nothing left to boot.
    #[error("without slot {slot} there would be no slot in BootOrder")]
    LastSlot {
        /// The slot.
        slot: SlotId,
    },
    /// The firmware can count one attempt.
    #[error("{attempts} boot attempts were asked for, and BootNext is one")]
    Attempts {
        /// Asked for.
        attempts: u32,
    },
    /// The firmware says that another slot was booted.
    #[error("the kernel command line names slot {running}, and BootCurrent is {current} of slot {other}")]
    Contradiction {
        /// The slot of the command line.
        running: SlotId,
        /// What the firmware booted.
        current: BootNumber,
        /// The slot that this is.
        other: SlotId,
    },
}

/// Number of a load option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootNumber(pub u16);

impl std::fmt::Display for BootNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Boot{:04X}", self.0)
    }
}

impl BootNumber {
    /// Reads the name of a variable: `Boot` and four upper-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("Boot").filter(|digits| digits.len() == 4)?;
        let allowed = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
        let number = digits.bytes().all(allowed).then(|| u16::from_str_radix(digits, 16));
        number?.ok().map(Self)
    }
}

/// How the configuration names a load option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// By its number.
    Number(BootNumber),
    /// By its description.
    Description(String),
}

impl Entry {
    /// `Boot0001` is a number, anything else a description.
    pub fn parse(text: &str) -> Self {
        BootNumber::parse(text).map_or_else(|| Self::Description(text.to_owned()), Self::Number)
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Description(description) => write!(f, "with the description {description:?}"),
        }
    }
}

/// A load option, as far as the agent must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    /// Whether the firmware boots it.
    pub active: bool,
    /// For people.
    pub description: String,
}

impl LoadOption {
    /// Reads the data of a variable `Boot####`.
    ///
    /// # Errors
    /// [`EfiError::Cut`].
    pub fn decode(data: &[u8]) -> Result<Self, EfiError> {
        let cut = |part| EfiError::Cut { part };
        let (attributes, rest) = data.split_first_chunk().ok_or_else(|| cut("attributes"))?;
        let (paths, rest) = rest.split_first_chunk().ok_or_else(|| cut("length of device paths"))?;
        let (units, after) = terminated(rest).ok_or_else(|| cut("description"))?;
        if after.len() < usize::from(u16::from_le_bytes(*paths)) {
            return Err(cut("device paths"));
        }
        Ok(Self {
            active: u32::from_le_bytes(*attributes) & ACTIVE != 0,
            description: String::from_utf16_lossy(&units),
        })
    }
}

/// Text of 16-bit units up to its 0, and what follows it.
fn terminated(bytes: &[u8]) -> Option<(Vec<u16>, &[u8])> {
    let (units, _) = bytes.as_chunks();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let text: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    let after = bytes.get(2 * text.len() + 2..)?;
    Some((text, after))
}

/// Reads a text variable, which ends with a 0 or at its end.
pub fn text(data: &[u8]) -> String {
    let (units, _) = data.as_chunks();
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    String::from_utf16_lossy(units.split(|unit| *unit == 0).next().unwrap_or_default())
}

/// Reads a list of load options.
///
/// # Errors
/// [`EfiError::Length`].
pub fn numbers(variable: &'static str, data: &[u8]) -> Result<Vec<BootNumber>, EfiError> {
    let (units, rest) = data.as_chunks();
    if !rest.is_empty() {
        let length = data.len();
        return Err(EfiError::Length { variable, length });
    }
    Ok(units.iter().map(|unit| BootNumber(u16::from_le_bytes(*unit))).collect())
}

/// Reads one load option's number.
///
/// # Errors
/// [`EfiError::Length`].
pub fn number(variable: &'static str, data: &[u8]) -> Result<BootNumber, EfiError> {
    match numbers(variable, data)?.as_slice() {
        [number] => Ok(*number),
        _ => Err(EfiError::Length {
            variable,
            length: data.len(),
        }),
    }
}

/// Writes a list of load options.
pub fn bytes(numbers: &[BootNumber]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.0.to_le_bytes()).collect()
}

/// Which load option is which slot's. Where that cannot be said of a slot, only what concerns that slot is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots(Vec<(SlotId, Result<Found, EfiError>)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    number: BootNumber,
    active: bool,
}

impl Slots {
    /// Finds the load option of each slot.
    pub fn find(configured: &[(SlotId, Entry)], options: &BTreeMap<BootNumber, LoadOption>) -> Self {
        let mut slots: Vec<(SlotId, Result<Found, EfiError>)> = Vec::new();
        for (slot, entry) in configured {
            let mut found = find(slot, entry, options);
            if let Ok(Found { number, .. }) = found
                && let Some((first, _)) = slots
                    .iter()
                    .find(|(_, other)| other.as_ref().is_ok_and(|other| other.number == number))
            {
                found = Err(EfiError::Shared {
                    first: first.clone(),
                    second: slot.clone(),
                    number,
                });
            }
            slots.push((slot.clone(), found));
        }
        Self(slots)
    }

    fn slot(&self, number: BootNumber) -> Option<&SlotId> {
        let is_it = |found: &Result<Found, EfiError>| found.as_ref().is_ok_and(|found| found.number == number);
        self.0.iter().find(|(_, found)| is_it(found)).map(|(slot, _)| slot)
    }

    fn number(&self, slot: &SlotId) -> Result<BootNumber, EfiError> {
        Ok(self.found(slot)?.number)
    }

    fn bootable(&self, slot: &SlotId) -> Result<BootNumber, EfiError> {
        match self.found(slot)? {
            Found { number, active: true } => Ok(number),
            Found { number, active: false } => Err(EfiError::Inactive {
                slot: slot.clone(),
                number,
            }),
        }
    }

    fn found(&self, slot: &SlotId) -> Result<Found, EfiError> {
        let found = self.0.iter().find(|(named, _)| named == slot);
        let missing = || EfiError::NotConfigured { slot: slot.clone() };
        found.map_or_else(|| Err(missing()), |(_, found)| found.clone())
    }
}

fn find(slot: &SlotId, entry: &Entry, options: &BTreeMap<BootNumber, LoadOption>) -> Result<Found, EfiError> {
    let is_it = |number: &BootNumber, option: &LoadOption| match entry {
        Entry::Number(wanted) => wanted == number,
        Entry::Description(wanted) => *wanted == option.description,
    };
    let mut fitting = options.iter().filter(|(number, option)| is_it(number, option));
    let (number, option) = fitting.next().ok_or_else(|| EfiError::Gone {
        slot: slot.clone(),
        entry: entry.clone(),
    })?;
    match fitting.next() {
        Some((second, _)) => Err(EfiError::Ambiguous {
            slot: slot.clone(),
            entry: entry.clone(),
            first: *number,
            second: *second,
        }),
        None => Ok(Found {
            number: *number,
            active: option.active,
        }),
    }
}

/// What the boot manager does next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// `BootOrder`; empty when there is none, and the firmware then takes what it finds.
    pub order: Vec<BootNumber>,
    /// `BootNext`.
    pub next: Option<BootNumber>,
}

impl Boot {
    /// What the agent is to know, when the kernel command line names `running` and the firmware booted `current`.
    ///
    /// # Errors
    /// [`EfiError::Contradiction`].
    pub fn view(&self, slots: &Slots, running: &SlotId, current: Option<BootNumber>) -> Result<BootView, EfiError> {
        // An entry that is no slot's is the firmware's own way to the same loader.
        if let Some(current) = current
            && let Some(other) = slots.slot(current)
            && other != running
        {
            return Err(EfiError::Contradiction {
                running: running.clone(),
                current,
                other: other.clone(),
            });
        }
        let next = self.next.and_then(|next| slots.slot(next));
        Ok(BootView {
            booted: Some(running.clone()),
            armed: next
                .filter(|next| *next != running)
                .map(|next| (next.clone(), 1))
                .into_iter()
                .collect(),
        })
    }

    /// The slot that is booted without a trial.
    pub fn primary(&self, slots: &Slots) -> Option<SlotId> {
        self.order.iter().find_map(|number| slots.slot(*number)).cloned()
    }

    /// `slot` next, once.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn armed(&self, slots: &Slots, slot: &SlotId, attempts: u32) -> Result<Self, EfiError> {
        if attempts != 1 {
            return Err(EfiError::Attempts { attempts });
        }
        // Firmware adds entries to the order by itself; there it would be booted more often than once.
        let mut next = self.disabled(slots, slot)?;
        next.next = Some(slots.bootable(slot)?);
        Ok(next)
    }

    /// `slot` first, from now on.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn confirmed(&self, slots: &Slots, slot: &SlotId) -> Result<Self, EfiError> {
        let number = slots.bootable(slot)?;
        let mut next = self.clone();
        next.order.retain(|other| *other != number);
        next.order.insert(0, number);
        // Another slot that was to be tried is not wanted any more.
        next.next = self.next.filter(|next| slots.slot(*next).is_none());
        Ok(next)
    }

    /// `slot` not at all.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn disabled(&self, slots: &Slots, slot: &SlotId) -> Result<Self, EfiError> {
        let number = slots.number(slot)?;
        let mut next = self.clone();
        next.order.retain(|other| *other != number);
        next.next = self.next.filter(|next| *next != number);
        if !next.order.iter().any(|other| slots.slot(*other).is_some()) {
            return Err(EfiError::LastSlot { slot: slot.clone() });
        }
        Ok(next)
    }

    /// The confirmed `slot` runs: before the other slots in the order, where firmware that sorts it may have put another.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn replenished(&self, slots: &Slots, slot: &SlotId) -> Result<Self, EfiError> {
        if self.primary(slots).as_ref() == Some(slot) {
            return Ok(self.clone());
        }
        let number = slots.bootable(slot)?;
        let mut next = self.clone();
        next.order.retain(|other| *other != number);
        let first = next.order.iter().position(|other| slots.slot(*other).is_some());
        next.order.insert(first.unwrap_or(0), number);
        Ok(next)
    }

    /// A new device: of the slots only `slot` may be booted.
    ///
    /// # Errors
    /// [`EfiError`].
    pub fn created(&self, slots: &Slots, slot: &SlotId) -> Result<Self, EfiError> {
        let mut next = self.confirmed(slots, slot)?;
        for (other, ..) in slots.0.iter().filter(|(other, ..)| other != slot) {
            next = next.disabled(slots, other)?;
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests;
