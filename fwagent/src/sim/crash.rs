//! What a disk may hold after a cut: the variants of RULES §4.4.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::sim::disk::{Change, SECTOR, Tree, Wreck, write_changes};

/// With so few uncertain changes all their subsets are tried.
const ALL_SUBSETS: usize = 5;
/// Subsets that are drawn otherwise, besides those with one change and those without one.
const DRAWN: usize = 12;
/// Changes of which each is tried alone and left out alone.
const EACH: usize = 24;

/// A way in which the power goes at an operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// Before it; all that was done before arrived.
    Before,
    /// After it; all arrived.
    After,
    /// Before it; nothing that was not synced arrived.
    Lost,
    /// After it; nothing that was not synced arrived.
    AfterLost,
    /// In the middle of a write, of which so many bytes arrived, and all before it.
    Torn(usize),
    /// Before or in it; of what was not synced these changes arrived, one bit each, the first one lowest.
    Some(Vec<bool>),
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before => f.write_str("before"),
            Self::After => f.write_str("after"),
            Self::Lost => f.write_str("lost"),
            Self::AfterLost => f.write_str("after-lost"),
            Self::Torn(bytes) => write!(f, "torn:{bytes}"),
            Self::Some(kept) => {
                f.write_str("some:")?;
                kept.iter()
                    .try_for_each(|kept| f.write_str(if *kept { "1" } else { "0" }))
            }
        }
    }
}

impl std::str::FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "before" => Ok(Self::Before),
            "after" => Ok(Self::After),
            "lost" => Ok(Self::Lost),
            "after-lost" => Ok(Self::AfterLost),
            _ => {
                let torn = text.strip_prefix("torn:").and_then(|bytes| bytes.parse().ok());
                let some = text
                    .strip_prefix("some:")
                    .filter(|bits| bits.bytes().all(|bit| matches!(bit, b'0' | b'1')));
                torn.map(Self::Torn)
                    .or_else(|| some.map(|bits| Self::Some(bits.bytes().map(|bit| bit == b'1').collect())))
                    .ok_or_else(|| {
                        format!("{text:?} is no variant: before, after, lost, after-lost, torn:BYTES or some:BITS")
                    })
            }
        }
    }
}

impl Variant {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Lost | Self::AfterLost => "unsynced lost",
            Self::Torn(_) => "torn write",
            Self::Some(_) => "unsynced reordered",
        }
    }

    /// What the disk holds then; `None` when the variant does not fit the operation.
    pub fn tree(&self, wreck: &Wreck) -> Option<Tree> {
        let synced = |tree: &mut Tree| {
            let node = wreck.op.syncs;
            let done = wreck.pending.iter().filter(|change| Some(change.node) == node);
            done.for_each(|change| tree.apply(change));
        };
        match self {
            Self::Before => Some(wreck.with(&wreck.pending)),
            Self::After => Some(wreck.with(wreck.uncertain())),
            Self::Lost => Some(wreck.durable.clone()),
            Self::AfterLost => {
                let mut tree = wreck.durable.clone();
                synced(&mut tree);
                Some(tree)
            }
            Self::Torn(arrived) => {
                let (offset, bytes) = wreck.op.write.as_ref()?;
                let (part, node) = (bytes.get(..*arrived)?, wreck.op.changes.first()?.node);
                let mut tree = wreck.with(&wreck.pending);
                let length = tree.length(node)?;
                write_changes(node, length, *offset, part)
                    .iter()
                    .for_each(|change| tree.apply(change));
                Some(tree)
            }
            Self::Some(kept) => {
                let uncertain = wreck.uncertain();
                if uncertain.len() != kept.len() {
                    return None;
                }
                let kept = uncertain.iter().zip(kept).filter(|(_, kept)| **kept);
                Some(wreck.with(kept.map(|(change, _): (&&Change, _)| *change)))
            }
        }
    }
}

/// All variants of a cut that leave different disks, with these.
pub fn variants(wreck: &Wreck, random: &mut Random) -> Vec<(Variant, Tree)> {
    let mut wanted = vec![Variant::Before, Variant::After, Variant::Lost];
    if wreck.op.syncs.is_some() {
        wanted.push(Variant::AfterLost);
    }
    if let Some((offset, bytes)) = &wreck.op.write {
        // Each border of a sector, and one place within the first, the last and the whole.
        let borders = (1..bytes.len()).filter(|at| (offset + at) % SECTOR == 0);
        let within = [1, bytes.len() / 2, bytes.len().saturating_sub(1)];
        wanted.extend(borders.chain(within).map(Variant::Torn));
    }
    wanted.extend(subsets(wreck.uncertain().len(), random).into_iter().map(Variant::Some));
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for variant in wanted {
        let Some(tree) = variant.tree(wreck) else { continue };
        // The four plain ones are counted whether or not they differ.
        let plain = !matches!(variant, Variant::Torn(_) | Variant::Some(_));
        if seen.insert(digest(&tree)) || plain {
            found.push((variant, tree));
        }
    }
    found
}

fn subsets(changes: usize, random: &mut Random) -> Vec<Vec<bool>> {
    if changes <= ALL_SUBSETS {
        return (0..1_usize << changes)
            .map(|set| (0..changes).map(|bit| set >> bit & 1 == 1).collect())
            .collect();
    }
    let mut sets = Vec::new();
    for one in 0..changes.min(EACH) {
        sets.push((0..changes).map(|bit| bit == one).collect());
        sets.push((0..changes).map(|bit| bit != one).collect());
    }
    for _ in 0..DRAWN {
        sets.push((0..changes).map(|_| random.below(2) == 1).collect());
    }
    sets
}

/// What tells two disks apart for a process.
pub fn digest(tree: &Tree) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for (path, content) in tree.contents() {
        hasher.update((path.len() as u64).to_le_bytes());
        hasher.update(path);
        match content {
            None => hasher.update([0]),
            Some(bytes) => {
                hasher.update([1]);
                hasher.update((bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            }
        }
    }
    hasher.finalize().into()
}

/// SplitMix64: the same numbers from the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0. The bias is far below what anybody could count here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }
}
