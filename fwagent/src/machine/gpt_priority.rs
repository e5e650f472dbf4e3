//! Attributes of partitions by which a boot loader chooses one: priority, tries, successful.
//!
//! Source: ChromiumOS `vboot_reference/firmware/lib/cgptlib`; the `gptprio` module of GRUB in CoreOS, Flatcar, EVE and
//! Bottlerocket; Bottlerocket `sources/updater/signpost/src/gptprio.rs`.
//!
//! ```text
//! bits      48–51 priority   52–55 tries   56 successful   57 has booted (Bottlerocket; left alone)
//! loader    of the partitions with a priority and with tries or successful, boots the one with the highest priority, the
//!           first of equals, after it has stored that there is one try less
//!
//!           priority               tries   successful
//! arm       above all others       N       no
//! confirm   above all others       0       yes
//! disable   0                      0       no
//! ```
//!
//! A confirmed slot is not counted, and is not left when it does not come up. ChromeOS firmware takes the priority of a
//! slot whose tries are used up; that reads the same as no tries.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::machine::boot::BootView;
use crate::machine::gpt::{GptError, Partition, Table};
use crate::machine::slot::SlotId;
use crate::machine::slot_vars::{BootVars, SlotVarsError};

/// Highest priority, and most tries.
pub const MOST: u32 = 15;

/// Attributes of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(pub u64);

impl Attributes {
    /// 0 to 15; 0 is never booted.
    pub fn priority(self) -> u32 {
        self.nibble(48)
    }

    /// 0 to 15.
    pub fn tries(self) -> u32 {
        self.nibble(52)
    }

    /// Whether it was confirmed.
    pub fn successful(self) -> bool {
        self.0 >> 56 & 1 == 1
    }

    /// Whether a loader boots it when there is nothing with a higher priority.
    pub fn bootable(self) -> bool {
        self.priority() > 0 && (self.tries() > 0 || self.successful())
    }

    /// The same with another priority; only its lower four bits count.
    #[must_use]
    pub fn with_priority(self, priority: u32) -> Self {
        self.with(48, priority)
    }

    /// The same with other tries; only their lower four bits count.
    #[must_use]
    pub fn with_tries(self, tries: u32) -> Self {
        self.with(52, tries)
    }

    /// The same, successful or not.
    #[must_use]
    pub fn with_successful(self, successful: bool) -> Self {
        Self(self.0 & !(1 << 56) | u64::from(successful) << 56)
    }

    fn nibble(self, at: u32) -> u32 {
        (self.0 >> at & 0xf) as u32
    }

    fn with(self, at: u32, value: u32) -> Self {
        Self(self.0 & !(0xf << at) | u64::from(value & 0xf) << at)
    }
}

/// A table, and which of its partitions are slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prioritised {
    table: Table,
    slots: Arc<BTreeMap<SlotId, Partition>>,
    /// Where each of them is in the table.
    indexes: BTreeMap<SlotId, usize>,
}

impl Prioritised {
    /// The table with these slots.
    ///
    /// # Errors
    /// [`GptError::Partition`] when a partition is missing, there twice, or that of two slots.
    pub fn new(table: Table, slots: &Arc<BTreeMap<SlotId, Partition>>) -> Result<Self, GptError> {
        let mut indexes = BTreeMap::new();
        for (slot, partition) in slots.iter() {
            let index = table.find(partition)?;
            if indexes.values().any(|other| *other == index) {
                let partition = partition.clone();
                return Err(GptError::Partition { partition, found: 0 });
            }
            indexes.insert(slot.clone(), index);
        }
        Ok(Self {
            table,
            slots: Arc::clone(slots),
            indexes,
        })
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    fn index(&self, slot: &SlotId) -> Result<usize, SlotVarsError> {
        // The configuration names a partition for every slot.
        let index = self.indexes.get(slot).copied();
        index.ok_or_else(|| SlotVarsError::meaningless(format!("boot.partitions.{slot}"), None))
    }

    fn all(&self) -> Vec<Attributes> {
        self.table.attributes().into_iter().map(Attributes).collect()
    }

    fn get(&self, slot: &SlotId) -> Result<Attributes, SlotVarsError> {
        let index = self.index(slot)?;
        Ok(self.all().get(index).copied().unwrap_or(Attributes(0)))
    }

    fn set(&mut self, slot: &SlotId, attributes: Attributes) -> Result<(), SlotVarsError> {
        let index = self.index(slot)?;
        self.table.set_attributes(index, attributes.0);
        Ok(())
    }

    /// What the loader looks at first is greater.
    fn rank(&self, slot: &SlotId) -> Result<(u32, Reverse<usize>), SlotVarsError> {
        Ok((self.get(slot)?.priority(), Reverse(self.index(slot)?)))
    }

    /// Makes room above all others, those of the agent first: each keeps its place among them.
    fn top(&mut self, slot: &SlotId) -> Result<u32, SlotVarsError> {
        let own = self.index(slot)?;
        let attributes = self.all();
        let highest = |indexes: &mut dyn Iterator<Item = usize>| {
            let priorities = indexes.filter_map(|index| attributes.get(index).map(|found| found.priority()));
            priorities.max().unwrap_or(0)
        };
        let above = highest(&mut (0..attributes.len()).filter(|index| *index != own)) + 1;
        if above <= MOST {
            return Ok(above);
        }
        let slots: Vec<usize> = self.indexes.values().copied().collect();
        let mut next = highest(&mut (0..attributes.len()).filter(|index| !slots.contains(index)));
        let mut others: Vec<SlotId> = self.indexes.keys().filter(|other| *other != slot).cloned().collect();
        others.retain(|other| self.get(other).is_ok_and(|found| found.priority() > 0));
        others.sort_by_key(|other| self.rank(other).ok());
        for other in others {
            next += 1;
            let lowered = self.get(&other)?.with_priority(next.min(MOST));
            self.set(&other, lowered)?;
        }
        if next >= MOST {
            return Err(SlotVarsError::NoPriority { slot: slot.clone() });
        }
        Ok(next + 1)
    }
}

impl BootVars for Prioritised {
    fn view(&self, _slots: &[SlotId], running: &SlotId) -> Result<BootView, SlotVarsError> {
        let rank = self.rank(running)?;
        let mut armed = BTreeMap::new();
        for slot in self.slots.keys().filter(|slot| *slot != running) {
            let attributes = self.get(slot)?;
            if attributes.priority() > 0 && !attributes.successful() && self.rank(slot)? > rank {
                armed.insert(slot.clone(), attributes.tries());
            }
        }
        Ok(BootView {
            booted: Some(running.clone()),
            armed,
        })
    }

    fn primary(&self, _slots: &[SlotId]) -> Result<Option<SlotId>, SlotVarsError> {
        let mut best: Option<((u32, Reverse<usize>), &SlotId)> = None;
        for slot in self.slots.keys() {
            let rank = self.rank(slot)?;
            if self.get(slot)?.bootable() && best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, slot));
            }
        }
        Ok(best.map(|(_, slot)| slot.clone()))
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        if attempts > MOST {
            let most = MOST;
            return Err(SlotVarsError::Attempts { attempts, most });
        }
        let priority = self.top(slot)?;
        let armed = self.get(slot)?.with_priority(priority);
        self.set(slot, armed.with_tries(attempts).with_successful(false))
    }

    fn confirm(&mut self, slot: &SlotId, _attempts: u32) -> Result<(), SlotVarsError> {
        let priority = self.top(slot)?;
        let confirmed = self.get(slot)?.with_priority(priority);
        self.set(slot, confirmed.with_tries(0).with_successful(true))
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), SlotVarsError> {
        let mut others = self.slots.keys().filter(|other| *other != slot);
        if !others.any(|other| self.get(other).is_ok_and(Attributes::bootable)) {
            return Err(SlotVarsError::LastSlot { slot: slot.clone() });
        }
        let disabled = self.get(slot)?.with_priority(0);
        self.set(slot, disabled.with_tries(0).with_successful(false))
    }

    fn replenish(&mut self, slot: &SlotId, _attempts: u32) -> Result<(), SlotVarsError> {
        let attributes = self.get(slot)?;
        if attributes.successful() && attributes.priority() > 0 {
            return Ok(());
        }
        // Not above the others, of which one may be armed.
        let again = attributes.with_priority(attributes.priority().max(1));
        self.set(slot, again.with_tries(0).with_successful(true))
    }

    fn create(&mut self, slots: &[SlotId], slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        self.confirm(slot, attempts)?;
        for other in slots.iter().filter(|other| *other != slot) {
            self.disable(other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::gpt::tests::{SECTORS, disk, read};

    fn slot(name: &str) -> SlotId {
        SlotId::parse(name).unwrap()
    }

    fn slots() -> [SlotId; 2] {
        [slot("A"), slot("B")]
    }

    /// Partitions 0 and 1 are slots, 2 is not.
    fn table(attributes: [u64; 3]) -> Prioritised {
        let disk = disk(&attributes);
        let (table, _) = read(&disk, SECTORS).unwrap();
        let partitions = ["A", "B"].map(|name| (slot(name), Partition::Label(format!("root{name}"))));
        Prioritised::new(table, &Arc::new(partitions.into())).unwrap()
    }

    fn bits(table: &Prioritised) -> Vec<(u32, u32, bool)> {
        let all = table.all().into_iter().take(3);
        all.map(|one| (one.priority(), one.tries(), one.successful())).collect()
    }

    #[test]
    fn the_vectors_of_bottlerocket() {
        let all = Attributes(0x5555_5555_5555_5555);
        assert_eq!((all.priority(), all.tries(), all.successful()), (5, 5, true));
        assert_eq!(all.with_priority(0).0, 0x5550_5555_5555_5555);
        assert_eq!(all.with_tries(0).0, 0x5505_5555_5555_5555);
        assert_eq!(all.with_successful(false).0, 0x5455_5555_5555_5555);
        assert_eq!(
            Attributes(0).with_priority(16 + 3).with_tries(15).0,
            0x00f3_0000_0000_0000
        );
        for (value, bootable) in [
            (0, false),
            (1 << 48, false),
            (1 << 52, false),
            (0x0011 << 48, true),
            (0x0101 << 48, true),
        ] {
            assert_eq!(Attributes(value).bootable(), bootable, "{value:x}");
        }
    }

    #[test]
    fn a_life() {
        let mut table = table([1 << 60, 0, 0]);
        assert_eq!(table.primary(&slots()), Ok(None));
        table.create(&slots(), &slot("A"), 3).unwrap();
        assert_eq!(bits(&table), [(1, 0, true), (0, 0, false), (0, 0, false)]);
        assert_eq!(table.all()[0].0 >> 60, 1, "what it does not know stays");
        table.arm(&slot("B"), 3).unwrap();
        let armed = table.clone();
        table.arm(&slot("B"), 3).unwrap();
        assert_eq!(table, armed);
        assert_eq!(bits(&table), [(1, 0, true), (2, 3, false), (0, 0, false)]);
        assert_eq!(table.view(&slots(), &slot("A")).unwrap().armed, [(slot("B"), 3)].into());
        assert!(table.view(&slots(), &slot("B")).unwrap().armed.is_empty());
        assert_eq!(table.primary(&slots()), Ok(Some(slot("B"))));
        table.replenish(&slot("A"), 3).unwrap();
        assert_eq!(table, armed);
        let mut spent = armed.clone();
        spent.set(&slot("B"), Attributes(2 << 48)).unwrap();
        assert_eq!(spent.view(&slots(), &slot("A")).unwrap().armed, [(slot("B"), 0)].into());
        assert_eq!(spent.primary(&slots()), Ok(Some(slot("A"))));
        spent.disable(&slot("B")).unwrap();
        assert!(spent.view(&slots(), &slot("A")).unwrap().armed.is_empty());
        let error = SlotVarsError::LastSlot { slot: slot("A") };
        assert_eq!(spent.disable(&slot("A")), Err(error));
        table.confirm(&slot("B"), 3).unwrap();
        assert_eq!(bits(&table), [(1, 0, true), (2, 0, true), (0, 0, false)]);
        assert!(table.view(&slots(), &slot("A")).unwrap().armed.is_empty());
        let error = SlotVarsError::Attempts { attempts: 16, most: 15 };
        assert_eq!(table.arm(&slot("A"), 16), Err(error));
    }

    #[test]
    fn priorities_are_lowered_when_there_is_none_above() {
        let confirmed = |priority: u64| (priority | 0x100) << 48;
        let mut all = table([confirmed(15), 0, confirmed(4)]);
        all.arm(&slot("B"), 1).unwrap();
        // What is no slot keeps its priority.
        assert_eq!(bits(&all), [(5, 0, true), (6, 1, false), (4, 0, true)]);
        let mut full = table([confirmed(3), 0, confirmed(14)]);
        full.arm(&slot("B"), 1).unwrap();
        assert_eq!(bits(&full)[1], (15, 1, false));
        let mut full = table([confirmed(15), 0, confirmed(14)]);
        let error = SlotVarsError::NoPriority { slot: slot("B") };
        assert_eq!(full.arm(&slot("B"), 1), Err(error));
    }

    #[test]
    fn what_runs_and_is_confirmed_is_marked_so_below_what_is_armed() {
        let mut table = table([0, 0x0031 << 48, 0]);
        assert_eq!(table.view(&slots(), &slot("A")).unwrap().armed, [(slot("B"), 3)].into());
        table.replenish(&slot("A"), 3).unwrap();
        assert_eq!(bits(&table)[0], (1, 0, true));
    }

    #[test]
    fn of_equals_the_first_is_booted() {
        let table = table([0x0011 << 48, 0x0011 << 48, 0]);
        assert_eq!(table.primary(&slots()), Ok(Some(slot("A"))));
        assert!(table.view(&slots(), &slot("A")).unwrap().armed.is_empty());
        assert_eq!(table.view(&slots(), &slot("B")).unwrap().armed, [(slot("A"), 1)].into());
    }
}
