//! What a boot loader does with two slots and a counter, for boot control `file`; and the view of any boot loader that
//! the agent decides by.
//!
//! ```text
//! power-on:  trial armed, attempts left   -> spend one, durably, then boot the trial slot
//!            trial armed, none left       -> boot the primary slot
//!            no trial                     -> boot the primary slot
//! ```
//!
//! The attempt is spent before the slot runs, so a slot that hangs at once still uses its attempts up.

use std::collections::{BTreeMap, BTreeSet};

use fwmeta::json::{Doc, Value, object};

use crate::machine::slot::SlotId;

/// Most slots that one device may have.
pub const MAX_SLOTS: usize = 16;

/// What a boot loader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootView {
    /// The slot that runs now; `None` when nothing was booted through this loader yet.
    pub booted: Option<SlotId>,
    /// Trial attempts left of armed slots. A slot that is missing here is not armed.
    pub armed: BTreeMap<SlotId, u32>,
}

/// The boot record of boot control `file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootRecord {
    /// Booted when there is no trial.
    pub primary: SlotId,
    /// Slots that may be booted: the primary, an armed trial, and earlier confirmed ones.
    pub bootable: BTreeSet<SlotId>,
    /// The slot to try first and how often.
    pub trial: Option<(SlotId, u32)>,
    /// The slot that was booted last.
    pub booted: Option<SlotId>,
    /// Boots so far.
    pub boots: u64,
}

/// Neither trial nor primary may be booted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no slot may be booted: primary slot {primary} is disabled")]
pub struct NothingBootable {
    /// The primary slot.
    pub primary: SlotId,
}

impl BootRecord {
    /// The record of a new device that runs from `primary`.
    pub fn new(primary: SlotId) -> Self {
        Self {
            bootable: BTreeSet::from([primary.clone()]),
            primary,
            trial: None,
            booted: None,
            boots: 0,
        }
    }

    /// Chooses the slot for this boot and spends an attempt. The record returned must be durable before the slot runs.
    ///
    /// # Errors
    /// [`NothingBootable`].
    pub fn power_on(&self) -> Result<(SlotId, Self), NothingBootable> {
        let mut next = self.clone();
        let chosen = match &self.trial {
            Some((slot, attempts)) if *attempts > 0 && self.bootable.contains(slot) => {
                next.trial = Some((slot.clone(), attempts - 1));
                slot.clone()
            }
            _ if self.bootable.contains(&self.primary) => self.primary.clone(),
            _ => {
                return Err(NothingBootable {
                    primary: self.primary.clone(),
                });
            }
        };
        next.booted = Some(chosen.clone());
        next.boots = self.boots.saturating_add(1);
        Ok((chosen, next))
    }

    /// The record in which `slot` is not chosen. Disabling the primary slot is a mistake of the caller that would leave
    /// nothing to boot, so it changes nothing but a trial.
    #[must_use]
    pub fn disabled(&self, slot: &SlotId) -> Self {
        let mut next = self.clone();
        if next.trial.as_ref().is_some_and(|(trial, _)| trial == slot) {
            next.trial = None;
        }
        if *slot != next.primary {
            next.bootable.remove(slot);
        }
        next
    }

    /// The record in which `slot` is tried first.
    #[must_use]
    pub fn armed(&self, slot: &SlotId, attempts: u32) -> Self {
        let mut next = self.clone();
        next.bootable.insert(slot.clone());
        next.trial = Some((slot.clone(), attempts));
        next
    }

    /// The record in which `slot` is booted from now on.
    #[must_use]
    pub fn confirmed(&self, slot: &SlotId) -> Self {
        let mut next = self.clone();
        next.bootable.insert(slot.clone());
        next.primary = slot.clone();
        next.trial = None;
        next
    }

    /// What the agent sees of it.
    pub fn view(&self) -> BootView {
        BootView {
            booted: self.booted.clone(),
            armed: self.trial.iter().cloned().collect(),
        }
    }

    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        let bootable: Vec<Value> = self.bootable.iter().map(|slot| slot.as_str().into()).collect();
        let trial = self
            .trial
            .as_ref()
            .map(|(slot, attempts)| object([("slot", slot.as_str().into()), ("attempts", (*attempts).into())]));
        object([
            ("schema", 1_u64.into()),
            ("primary", self.primary.as_str().into()),
            ("bootable", bootable.into()),
            ("trial", trial.into()),
            ("booted", self.booted.as_ref().map(SlotId::as_str).into()),
            ("boots", self.boots.into()),
        ])
        .to_json()
        .into_bytes()
    }

    /// Reads [`encode`](Self::encode) back; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let value = Doc::parse(bytes).ok()?.root().to_value().ok()?;
        if value.get("schema")?.as_u64()? != 1 {
            return None;
        }
        let slot = |value: &Value| SlotId::parse(value.as_str()?).ok();
        let bootable = value.get("bootable")?.as_array()?;
        if bootable.len() > MAX_SLOTS {
            return None;
        }
        let trial = match value.get("trial")? {
            Value::Null => None,
            trial => Some((
                slot(trial.get("slot")?)?,
                u32::try_from(trial.get("attempts")?.as_u64()?).ok()?,
            )),
        };
        let booted = match value.get("booted")? {
            Value::Null => None,
            booted => Some(slot(booted)?),
        };
        Some(Self {
            primary: slot(value.get("primary")?)?,
            bootable: bootable.iter().map(slot).collect::<Option<_>>()?,
            trial,
            booted,
            boots: value.get("boots")?.as_u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn slot(name: &str) -> SlotId {
        SlotId::parse(name).unwrap()
    }

    #[test]
    fn attempts_are_spent_before_the_trial_and_then_the_primary_boots() {
        let mut record = BootRecord::new(slot("a")).armed(&slot("b"), 2);
        let mut booted = Vec::new();
        for _ in 0..4 {
            let (chosen, next) = record.power_on().unwrap();
            booted.push(chosen.to_string());
            record = next;
        }
        assert_eq!(booted, ["b", "b", "a", "a"]);
        assert_eq!((record.boots, record.booted.clone()), (4, Some(slot("a"))));
        assert_eq!(record.view().armed.get(&slot("b")), Some(&0));
    }

    #[test]
    fn confirmation_ends_the_trial_and_disabling_never_takes_the_last_slot() {
        let record = BootRecord::new(slot("a")).armed(&slot("b"), 1).confirmed(&slot("b"));
        assert_eq!(record.power_on().unwrap().0, slot("b"));
        assert_eq!(record.disabled(&slot("b")).power_on().unwrap().0, slot("b"));
        let record = record.armed(&slot("a"), 3).disabled(&slot("a"));
        assert_eq!(record.power_on().unwrap().0, slot("b"));
        assert!(record.view().armed.is_empty() && !record.bootable.contains(&slot("a")));
    }

    #[test]
    fn a_record_without_bootable_primary_is_an_error_not_a_guess() {
        let mut record = BootRecord::new(slot("a"));
        record.bootable.clear();
        assert!(record.power_on().is_err());
    }

    #[test]
    fn bytes_are_read_back_and_nonsense_is_not() {
        for record in [
            BootRecord::new(slot("a")),
            BootRecord::new(slot("a")).armed(&slot("b"), 3),
            BootRecord::new(slot("a")).armed(&slot("b"), 3).power_on().unwrap().1,
        ] {
            assert_eq!(BootRecord::decode(&record.encode()), Some(record));
        }
        for bytes in [
            &b""[..],
            b"{}",
            b"{\"schema\":2}",
            b"[]",
            b"{\"schema\":1,\"primary\":\"a/b\"}",
        ] {
            assert_eq!(BootRecord::decode(bytes), None);
        }
    }
}
