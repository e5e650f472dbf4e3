//! What a U-Boot with a boot counter is told: variables that name the slot to boot, and a counter that runs only while an
//! update is on trial. Two slots; Mender's variables are one setting of it.
//!
//! Source: U-Boot `include/bootcount.h`, `common/autoboot.c`, `drivers/bootcount/bootcount_env.c`, `bootcount_fs.c`.
//!
//! ```text
//! U-Boot    while upgrade_available is not 0: stores bootcount + 1; if that is greater than bootlimit, runs altbootcmd
//!           otherwise bootcmd. All decimal. bootcmd boots the named slot, altbootcmd the other one.
//!
//!             named      fallback   upgrade_available   bootcount   bootlimit
//! arm B, 3    B          A          1                   0           3
//! confirm B   B          B          0                   0
//! disable B   A          A          0                   0           (B was named)
//!
//! The fall-back is a variable of its own, or simply the slot that is not named.
//! ```
//!
//! The attempt is stored before the slot runs. altbootcmd may leave the variables as they are, so that every boot ends
//! there until the agent disables the slot, or name the other slot and end the trial itself, as Mender's does; the agent
//! understands both. A confirmed slot is not counted: it has nothing to be given back, and is not left when it does not
//! come up.
//!
//! The counter can be a file of U-Boot's instead (`CONFIG_BOOTCOUNT_FS`), of four bytes: `BD 01 count upgrade_available`.
//! U-Boot takes a file that is missing or damaged for a count of 0 that runs. Two places cannot change at once, so
//! counting is switched on before the slot is named and off afterwards; in between the confirmed slot is counted, which
//! does no harm as long as its fall-back is itself. That is why the file needs the variable for the fall-back. One byte
//! counts to 255, then starts anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;
use crate::machine::slot_vars::{BootVars, SlotVarsError};
use crate::machine::uboot_env::Environment;

const UPGRADE_AVAILABLE: &str = "upgrade_available";
const BOOTCOUNT: &str = "bootcount";
const BOOTLIMIT: &str = "bootlimit";
/// Most attempts that are configured: one byte counts one boot more.
pub const MAX_ATTEMPTS: u32 = 254;
const MAGIC: u8 = 0xbd;
const VERSION: u8 = 1;

/// How the slots are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotNames {
    slots: [SlotId; 2],
    /// Variables, and the value of each for the two slots.
    variables: Vec<(String, [String; 2])>,
    /// Variable with the slot of altbootcmd, in the words of the only variable.
    fallback: Option<String>,
}

/// Slots cannot be named so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SlotNamesError(String);

impl SlotNames {
    /// The slots, and for each variable the value that names each of them.
    ///
    /// # Errors
    /// [`SlotNamesError`] when there are not two slots, a value is missing or does not tell the slots apart, or a variable
    /// cannot be one.
    pub fn new(
        slots: &[SlotId],
        variables: Vec<(String, BTreeMap<String, String>)>,
        fallback: Option<String>,
    ) -> Result<Self, SlotNamesError> {
        let [first, second] = slots else {
            let text = format!("the boot counter tells two slots apart, and there are {}", slots.len());
            return Err(SlotNamesError(text));
        };
        if variables.is_empty() {
            return Err(SlotNamesError("no variable names the slot".to_owned()));
        }
        if fallback.is_some() && variables.len() != 1 {
            let text = "with a variable for the fall-back, one variable names the slot, and there are more";
            return Err(SlotNamesError(text.to_owned()));
        }
        let mut names: Vec<&str> = vec![UPGRADE_AVAILABLE, BOOTCOUNT, BOOTLIMIT, "bootcmd", "altbootcmd"];
        for name in variables.iter().map(|(name, _)| name).chain(&fallback) {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(SlotNamesError(format!("{name:?} is no name of a variable")));
            }
            if names.contains(&name.as_str()) {
                return Err(SlotNamesError(format!("variable {name} has another use")));
            }
            names.push(name);
        }
        let mut checked = Vec::new();
        for (name, values) in &variables {
            let value = |slot: &SlotId| {
                let value = values.get(slot.as_str());
                // U-Boot deletes a variable that is set to nothing, and scripts do not quote.
                let value =
                    value.filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()));
                value.cloned().ok_or_else(|| {
                    SlotNamesError(format!(
                        "variable {name} has no value, or one with spaces, for slot {slot}"
                    ))
                })
            };
            let pair = [value(first)?, value(second)?];
            if pair[0] == pair[1] || values.len() != 2 {
                return Err(SlotNamesError(format!(
                    "variable {name} does not name two slots by two values"
                )));
            }
            checked.push((name.clone(), pair));
        }
        Ok(Self {
            slots: [first.clone(), second.clone()],
            variables: checked,
            fallback,
        })
    }

    fn other(&self, slot: &SlotId) -> &SlotId {
        let [first, second] = &self.slots;
        if slot == first { second } else { first }
    }

    fn value<'a>(&self, slot: &SlotId, values: &'a [String; 2]) -> &'a str {
        let [first, second] = values;
        if *slot == self.slots[0] { first } else { second }
    }
}

/// The counter in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterFile {
    /// Boots.
    pub count: u8,
    /// Whether it counts.
    pub upgrade_available: bool,
}

impl CounterFile {
    /// Reads the file as U-Boot does, for which what is no counter counts from 0.
    pub fn decode(bytes: &[u8]) -> Self {
        match bytes {
            [MAGIC, VERSION, count, upgrade, ..] => Self {
                // It loads the count only while it counts.
                count: if *upgrade == 0 { 0 } else { *count },
                upgrade_available: *upgrade != 0,
            },
            _ => Self {
                count: 0,
                upgrade_available: true,
            },
        }
    }

    /// The content of the file.
    pub fn encode(self) -> [u8; 4] {
        [MAGIC, VERSION, self.count, u8::from(self.upgrade_available)]
    }
}

/// An environment, perhaps with a counter in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The environment.
    pub environment: Environment,
    /// The counter, unless it is in the environment.
    pub file: Option<CounterFile>,
    /// How the slots are named.
    pub names: Arc<SlotNames>,
}

impl Counted {
    /// The slot that bootcmd boots.
    fn named(&self) -> Result<SlotId, SlotVarsError> {
        let mut found: Option<(&String, SlotId)> = None;
        for (variable, values) in &self.names.variables {
            let value = self.environment.get(variable);
            let value = value.ok_or_else(|| SlotVarsError::NoSlot {
                variable: variable.clone(),
            })?;
            let at = values.iter().position(|one| one.as_bytes() == value);
            let at = at.ok_or_else(|| SlotVarsError::meaningless(variable.clone(), Some(value)))?;
            let slot = self.names.slots[at].clone();
            match &found {
                Some((first, first_slot)) if *first_slot != slot => {
                    return Err(SlotVarsError::Disagree {
                        first: (*first).clone(),
                        first_slot: first_slot.clone(),
                        second: variable.clone(),
                        second_slot: slot,
                    });
                }
                Some(_) => {}
                None => found = Some((variable, slot)),
            }
        }
        // There is at least one variable.
        found.map(|(_, slot)| slot).ok_or_else(|| SlotVarsError::NoSlot {
            variable: String::new(),
        })
    }

    /// The slot that altbootcmd boots.
    fn fallback(&self, named: SlotId) -> Result<SlotId, SlotVarsError> {
        let Some(variable) = &self.names.fallback else {
            return Ok(self.names.other(&named).clone());
        };
        let value = self.environment.get(variable);
        let found = self.names.slots.iter().find(|slot| {
            let mut values = self.names.variables.iter().map(|(_, values)| values);
            values.any(|values| value == Some(self.names.value(slot, values).as_bytes()))
        });
        let found = found.ok_or_else(|| SlotVarsError::meaningless(variable.clone(), value))?;
        Ok(found.clone())
    }

    /// Boots of the named slot that are left; `None` when nothing is counted.
    fn left(&self) -> Result<Option<u32>, SlotVarsError> {
        let (counts, count) = match self.file {
            Some(file) => (file.upgrade_available, u32::from(file.count)),
            None => (self.number(UPGRADE_AVAILABLE)? != 0, self.number(BOOTCOUNT)?),
        };
        if !counts {
            return Ok(None);
        }
        Ok(Some(self.number(BOOTLIMIT)?.saturating_sub(count)))
    }

    /// A decimal variable; 0 when it is not set, as for U-Boot.
    fn number(&self, variable: &str) -> Result<u32, SlotVarsError> {
        let Some(value) = self.environment.get(variable) else {
            return Ok(0);
        };
        let text = std::str::from_utf8(value).ok();
        let text = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = text.and_then(|text| text.parse().ok());
        number.ok_or_else(|| SlotVarsError::meaningless(variable.to_owned(), Some(value)))
    }

    fn set(&mut self, slot: &SlotId, fallback: &SlotId, counts: bool) -> Result<(), SlotVarsError> {
        let names = Arc::clone(&self.names);
        for (variable, values) in &names.variables {
            self.environment.set(variable, names.value(slot, values))?;
        }
        if let (Some(variable), Some((_, values))) = (&names.fallback, names.variables.first()) {
            self.environment.set(variable, names.value(fallback, values))?;
        }
        match &mut self.file {
            Some(file) => {
                *file = CounterFile {
                    count: 0,
                    upgrade_available: counts,
                };
            }
            None => {
                self.environment
                    .set(UPGRADE_AVAILABLE, if counts { "1" } else { "0" })?;
                self.environment.set(BOOTCOUNT, "0")?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, slot: &SlotId) -> Result<(), SlotVarsError> {
        self.set(slot, slot, false)
    }
}

impl BootVars for Counted {
    fn view(&self, _slots: &[SlotId], running: &SlotId) -> Result<BootView, SlotVarsError> {
        let named = self.named()?;
        let left = self.left()?.filter(|_| named != *running);
        Ok(BootView {
            booted: Some(running.clone()),
            armed: left.map(|left| (named, left)).into_iter().collect(),
        })
    }

    fn primary(&self, _slots: &[SlotId]) -> Result<Option<SlotId>, SlotVarsError> {
        let variables = &self.names.variables;
        if variables
            .iter()
            .all(|(variable, _)| self.environment.get(variable).is_none())
        {
            return Ok(None);
        }
        let named = self.named()?;
        // A limit of 0 is none.
        let spent = self.left()? == Some(0) && self.number(BOOTLIMIT)? != 0;
        Ok(Some(if spent { self.fallback(named)? } else { named }))
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        if attempts > MAX_ATTEMPTS {
            let most = MAX_ATTEMPTS;
            return Err(SlotVarsError::Attempts { attempts, most });
        }
        self.environment.set(BOOTLIMIT, &attempts.to_string())?;
        let fallback = self.names.other(slot).clone();
        self.set(slot, &fallback, true)
    }

    fn confirm(&mut self, slot: &SlotId, _attempts: u32) -> Result<(), SlotVarsError> {
        self.settle(slot)
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), SlotVarsError> {
        let named = self.named()?;
        let stays = if named == *slot {
            self.names.other(slot).clone()
        } else {
            named
        };
        // Also when another slot is named: a counter that runs would end at this one.
        self.settle(&stays)
    }

    fn replenish(&mut self, slot: &SlotId, _attempts: u32) -> Result<(), SlotVarsError> {
        // When the other slot is named, it is on trial: its attempts are not the running slot's to give back.
        if self.named()? == *slot && self.left()?.is_some() {
            self.settle(slot)?;
        }
        Ok(())
    }

    fn create(&mut self, _slots: &[SlotId], slot: &SlotId, _attempts: u32) -> Result<(), SlotVarsError> {
        self.settle(slot)
    }
}

#[cfg(test)]
mod tests;
