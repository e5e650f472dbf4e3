//! Boot controls of boot loaders: the agent's half of them against what the boot scripts do, against the tools of other
//! people, and with writes that a loss of power tore.

#![allow(clippy::unwrap_used, missing_docs)]

mod command;
mod count;
mod efi;
mod entries;
mod gpt;
mod grub;
mod life;
#[path = "../../../tests/src/loop_device.rs"]
mod loop_device;
mod running;
#[path = "../../../tests/src/tools.rs"]
mod tools;
mod tryboot;
mod uboot;

use std::path::{Path, PathBuf};

use fwagent::host::loader::{HostBoot, Running};
use fwagent::machine::slot::SlotId;

/// The slots of all tests.
pub fn slots() -> Vec<SlotId> {
    vec![slot("A"), slot("B")]
}

pub fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

/// A device with a boot loader.
pub trait Loader {
    /// The agent's half.
    fn control(&self) -> Box<dyn HostBoot>;

    /// What the boot script does at power-on, command line included; `None` when it finds nothing to boot.
    fn power_on(&self) -> Option<SlotId>;

    /// Trial boots.
    fn attempts(&self) -> u32;

    /// Whether it counts boots of a confirmed slot, too, and leaves it in the end.
    fn leaves_confirmed(&self) -> bool {
        true
    }

    /// Says that `slot` was booted, wherever this loader does that besides the command line.
    fn say_booted(&self, _slot: &str) {}

    /// Whether that alone is enough.
    fn names_the_slot(&self) -> bool {
        false
    }

    /// The restart into a trial, for a loader that must be told.
    fn restart_for_trial(&self) {}
}

/// The file that stands for `/proc/cmdline`.
pub fn cmdline(dir: &Path) -> PathBuf {
    dir.join("cmdline")
}

pub fn running(dir: &Path) -> Running {
    Running {
        cmdline: cmdline(dir),
        ..Running::default()
    }
}

/// The last thing that a boot script does.
pub fn start(dir: &Path, slot: &str) -> SlotId {
    std::fs::write(cmdline(dir), format!("quiet fwagent.slot={slot}\n")).unwrap();
    self::slot(slot)
}

/// What a script does that picks by `left` and stores that one less is left.
pub fn pick(order: &str, left: impl Fn(&str) -> u32) -> Option<(String, bool)> {
    let known = || order.split(' ').filter(|name| ["A", "B"].contains(name));
    match known().find(|name| left(name) > 0) {
        Some(name) => Some((name.to_owned(), true)),
        None => known().next_back().map(|name| (name.to_owned(), false)),
    }
}

/// Every state of a medium while `new` is written over `old`: the write goes on from the start, from the end, or block by
/// block in any order.
pub fn torn(old: &[u8], new: &[u8], block: usize) -> Vec<Vec<u8>> {
    assert_eq!(old.len(), new.len());
    let mut states = Vec::new();
    for at in 0..=old.len() {
        states.push([&new[..at], &old[at..]].concat());
        states.push([&old[..at], &new[at..]].concat());
    }
    let blocks = old.len().div_ceil(block).min(12);
    for written in 0..1_usize << blocks {
        let mut state = old.to_vec();
        for index in (0..blocks).filter(|index| written >> index & 1 == 1) {
            let range = index * block..((index + 1) * block).min(old.len());
            state[range.clone()].copy_from_slice(&new[range]);
        }
        states.push(state);
    }
    // Most bytes are the same before and after.
    states.sort_unstable();
    states.dedup();
    states
}
