//! `autoboot.txt` of the Raspberry Pi boot loader, and what it says about slots. No I/O.
//!
//! ```text
//! [all]                    lines apply always; what stands before the first filter, too
//! tryboot_a_b=1            the flag chooses a partition, not other names of files
//! boot_partition=2         booted from now on
//! [tryboot]                lines apply only in the one boot that was asked for by `reboot "0 tryboot"`
//! boot_partition=3         booted on trial
//!
//! arm          [tryboot] is the slot
//! confirm      [all] is the slot, [tryboot] what was in [all]
//! disable      [tryboot] is the same as [all]
//! ```
//!
//! At most 512 bytes, so that the file is one sector. Source: documentation of the Raspberry Pi, `autoboot.txt`. Lines
//! that the agent does not know are kept under their filter.
//!
//! The loader counts nothing, and its flag lives until the restart only. So the agent itself counts the attempt, before
//! it restarts: [`Attempt`].

use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;

/// Longest file, in bytes.
pub const AUTOBOOT_BYTES: usize = 512;
/// Longest identifier of a boot of the kernel, in bytes.
const BOOT_ID_BYTES: usize = 64;

/// The file does not say what it must, or cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AutobootError {
    /// Longer than one sector.
    #[error("{length} bytes are more than the {AUTOBOOT_BYTES} allowed")]
    Long {
        /// Its length, in bytes.
        length: usize,
    },
    /// The file must not change its length.
    #[error("{needed} bytes are needed, and the file has {length}; append empty lines to it")]
    Short {
        /// Needed, in bytes.
        needed: usize,
        /// Its length, in bytes.
        length: usize,
    },
    /// No text.
    #[error("it is no ASCII text")]
    NoText,
    /// A line that has no meaning here.
    #[error("line {line} is {text:?}, which is no filter all, none or tryboot, no setting, or one that is there twice")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// It does not name the partition that is booted.
    #[error("it does not set boot_partition for all boots")]
    NoPartition,
    /// The slot is the one that is booted without a trial.
    #[error("slot {slot} is the one that is booted, partition {partition}")]
    LastSlot {
        /// The slot.
        slot: SlotId,
        /// Its partition.
        partition: u8,
    },
    /// The configuration does not say which partition is the slot's.
    #[error("slot {slot} has no partition in the configuration")]
    NotConfigured {
        /// The slot.
        slot: SlotId,
    },
    /// The loader tries once.
    #[error("{attempts} boot attempts were asked for, and tryboot is one")]
    Attempts {
        /// Asked for.
        attempts: u32,
    },
}

/// Under which filter a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Filter {
    All,
    Tryboot,
    None,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoboot {
    /// Partition that is booted.
    pub partition: u8,
    /// Partition that is booted on trial.
    pub trial: u8,
    /// Whether the flag chooses a partition.
    pub a_b: bool,
    kept: Vec<(Filter, String)>,
}

impl Autoboot {
    /// A file that names one partition.
    pub fn new(partition: u8) -> Self {
        Self {
            partition,
            trial: partition,
            a_b: true,
            kept: Vec::new(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`AutobootError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, AutobootError> {
        if bytes.len() > AUTOBOOT_BYTES {
            return Err(AutobootError::Long { length: bytes.len() });
        }
        let is_text = |byte: &u8| matches!(byte, b'\n' | b'\r' | b'\t' | b' '..=b'~');
        let text = std::str::from_utf8(bytes).map_err(|_| AutobootError::NoText)?;
        if !bytes.iter().all(is_text) {
            return Err(AutobootError::NoText);
        }
        let (mut filter, mut partition, mut trial, mut a_b) = (Filter::All, None, None, None);
        let mut kept = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            let refused = || AutobootError::Line {
                line: index + 1,
                text: line.to_owned(),
            };
            if let Some(name) = line.strip_prefix('[') {
                filter = match name {
                    "all]" => Filter::All,
                    "none]" => Filter::None,
                    "tryboot]" => Filter::Tryboot,
                    _ => return Err(refused()),
                };
                continue;
            }
            if line.is_empty() {
                continue;
            }
            let setting = line.split_once('=').filter(|_| !line.starts_with('#'));
            // Which of two settings counts is not documented.
            let twice = |taken: bool| if taken { Err(refused()) } else { Ok(()) };
            match (filter, setting) {
                (Filter::All, Some(("boot_partition", value))) => {
                    // A trial that stands before it would be overridden.
                    twice(partition.is_some() || trial.is_some())?;
                    partition = Some(number(value).ok_or_else(refused)?);
                }
                (Filter::Tryboot, Some(("boot_partition", value))) => {
                    twice(trial.is_some())?;
                    trial = Some(number(value).ok_or_else(refused)?);
                }
                (Filter::All | Filter::Tryboot, Some(("tryboot_a_b", value))) => {
                    twice(a_b.is_some())?;
                    a_b = Some(number(value).ok_or_else(refused)? == 1);
                }
                (_, None) if !line.starts_with('#') => return Err(refused()),
                _ => kept.push((filter, line.to_owned())),
            }
        }
        let partition = partition.ok_or(AutobootError::NoPartition)?;
        // As they will be written.
        kept.sort_by_key(|(filter, _)| *filter);
        Ok(Self {
            partition,
            trial: trial.unwrap_or(partition),
            a_b: a_b.unwrap_or(false),
            kept,
        })
    }

    /// The bytes of the file: `length` of them, if given, filled with empty lines, so that it can be overwritten without
    /// changing its length.
    ///
    /// # Errors
    /// [`AutobootError::Long`], [`AutobootError::Short`].
    pub fn render(&self, length: Option<usize>) -> Result<Vec<u8>, AutobootError> {
        let mut text = String::from("[all]\n");
        let keep = |text: &mut String, filter: Filter| {
            for (_, line) in self.kept.iter().filter(|(under, _)| *under == filter) {
                text.push_str(line);
                text.push('\n');
            }
        };
        keep(&mut text, Filter::All);
        let a_b = u8::from(self.a_b);
        text.push_str(&format!(
            "tryboot_a_b={a_b}\nboot_partition={}\n[tryboot]\n",
            self.partition
        ));
        keep(&mut text, Filter::Tryboot);
        text.push_str(&format!("boot_partition={}\n", self.trial));
        if self.kept.iter().any(|(under, _)| *under == Filter::None) {
            text.push_str("[none]\n");
            keep(&mut text, Filter::None);
        }
        if text.len() > AUTOBOOT_BYTES {
            return Err(AutobootError::Long { length: text.len() });
        }
        if let Some(length) = length
            && text.len() > length
        {
            let needed = text.len();
            return Err(AutobootError::Short { needed, length });
        }
        let mut bytes = text.into_bytes();
        bytes.resize(length.unwrap_or(bytes.len()), b'\n');
        Ok(bytes)
    }

    /// `slot` on trial.
    ///
    /// # Errors
    /// [`AutobootError`].
    pub fn armed(&self, slots: &Partitions, slot: &SlotId, attempts: u32) -> Result<Self, AutobootError> {
        if attempts != 1 {
            return Err(AutobootError::Attempts { attempts });
        }
        let mut next = self.disabled(slots, slot)?;
        next.trial = slots.partition(slot)?;
        next.a_b = true;
        Ok(next)
    }

    /// `slot` from now on, and what was booted until now as the other one.
    ///
    /// # Errors
    /// [`AutobootError::NotConfigured`].
    pub fn confirmed(&self, slots: &Partitions, slot: &SlotId) -> Result<Self, AutobootError> {
        let partition = slots.partition(slot)?;
        let mut next = self.clone();
        if partition != self.partition {
            next.trial = self.partition;
        }
        next.partition = partition;
        next.a_b = true;
        Ok(next)
    }

    /// `slot` not at all.
    ///
    /// # Errors
    /// [`AutobootError`].
    pub fn disabled(&self, slots: &Partitions, slot: &SlotId) -> Result<Self, AutobootError> {
        let partition = slots.partition(slot)?;
        if partition == self.partition {
            let slot = slot.clone();
            return Err(AutobootError::LastSlot { slot, partition });
        }
        let mut next = self.clone();
        if next.trial == partition {
            next.trial = next.partition;
        }
        Ok(next)
    }

    /// What the agent is to know, when `running` runs and the kernel was booted under the name `boot_id`.
    pub fn view(&self, slots: &Partitions, running: &SlotId, attempt: Option<&Attempt>, boot_id: &str) -> BootView {
        let trial = slots
            .slot(self.trial)
            .filter(|_| self.trial != self.partition && self.a_b);
        let armed = attempt.filter(|attempt| Some(&attempt.slot) == trial && attempt.slot != *running);
        let left = |attempt: &Attempt| match &attempt.spent {
            // In the same boot the restart has not happened yet.
            Some(spent) if spent != boot_id => 0,
            _ => 1,
        };
        BootView {
            booted: Some(running.clone()),
            armed: armed
                .map(|attempt| (attempt.slot.clone(), left(attempt)))
                .into_iter()
                .collect(),
        }
    }
}

fn number(value: &str) -> Option<u8> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten()
}

/// Which partition is which slot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions(pub Vec<(SlotId, u8)>);

impl Partitions {
    /// The slot on a partition.
    pub fn slot(&self, partition: u8) -> Option<&SlotId> {
        let found = self.0.iter().find(|(_, found)| *found == partition);
        found.map(|(slot, _)| slot)
    }

    fn partition(&self, slot: &SlotId) -> Result<u8, AutobootError> {
        let found = self.0.iter().find(|(found, _)| found == slot);
        let missing = || AutobootError::NotConfigured { slot: slot.clone() };
        found.map_or_else(|| Err(missing()), |(_, partition)| Ok(*partition))
    }
}

/// The one attempt of an armed slot, as the agent records it.
///
/// ```text
/// armed SLOT               the device has not been asked to restart
/// spent SLOT BOOT-ID       it was asked, in the boot of this name: in any other one the attempt is used up, whether the
///                          trial failed or the power went before the restart took the flag along
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The slot.
    pub slot: SlotId,
    /// The boot in which the restart was asked for.
    pub spent: Option<String>,
}

impl Attempt {
    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        match &self.spent {
            None => format!("armed {}", self.slot),
            Some(boot) => format!("spent {} {boot}", self.slot),
        }
        .into_bytes()
    }

    /// Reads [`encode`](Self::encode) back; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let words: Vec<&str> = text.split(' ').collect();
        let (slot, spent) = match words.as_slice() {
            ["armed", slot] => (slot, None),
            ["spent", slot, boot] => (slot, Some(boot_id(boot).filter(|id| id == boot)?)),
            _ => return None,
        };
        let slot = SlotId::parse(slot).ok()?;
        Some(Self { slot, spent })
    }
}

/// The name of a boot of the kernel, such as `/proc/sys/kernel/random/boot_id` has it.
pub fn boot_id(text: &str) -> Option<String> {
    let text = text.trim_end_matches('\n');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let fits = (1..=BOOT_ID_BYTES).contains(&text.len()) && text.bytes().all(allowed);
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
