//! What was seen of a story.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::vm::nbd::Counts;

/// What was seen.
#[derive(Debug, Default)]
pub struct Summary {
    /// How often the boot loader chose a slot.
    pub boots: u32,
    /// How often the software of a slot came up.
    pub ups: u32,
    /// Releases, by what they do.
    pub releases: BTreeMap<&'static str, u32>,
    /// How updates ended, as the device says.
    pub results: BTreeMap<String, u32>,
    /// Cuts, by what they waited for.
    pub cuts: BTreeMap<&'static str, u32>,
    /// Cuts, by what became of pending writes.
    pub fates: BTreeMap<String, u32>,
    /// Cuts, by the last phase that the agent had entered.
    pub phases: BTreeMap<String, u32>,
    /// Sectors that were pending at cuts, and lost.
    pub sectors: (usize, usize),
    /// Requests that the disk has done, up to the last cut.
    pub requests: Counts,
}

impl Summary {
    /// As data.
    pub fn to_value(&self) -> Value {
        json!({
            "boots": self.boots,
            "ups": self.ups,
            "releases": self.releases,
            "results": self.results,
            "cuts": self.cuts,
            "fates": self.fates,
            "phases": self.phases,
            "requests": {"reads": self.requests.reads, "writes": self.requests.writes, "flushes": self.requests.flushes},
            "sectors": {"pending": self.sectors.0, "lost": self.sectors.1},
        })
    }
}
