//! A disk with a volatile write cache: what was not flushed when the power fails is lost, kept or torn.
//!
//! ```text
//! write  -> pending: sector -> versions, oldest first     read gives the newest
//! flush  -> medium: the newest version of each sector, nothing pending
//! write with FUA -> medium at once; earlier versions of these sectors go with it, others stay pending
//! cut    -> medium: for each sector the old one or any pending version, as `Fate` says; nothing pending
//! ```
//!
//! That sectors are written whole is what disks promise; that writes are neither ordered nor whole is what they do not.
//! A [`Caching::Lying`] disk says of a flush that it was done and does nothing: the planted bug that must be found.

use std::collections::BTreeMap;

use crate::random::Random;

/// Bytes of a sector: the unit that is written whole or not at all.
pub const SECTOR: usize = 512;

/// What the disk does when it is told to flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// It flushes.
    Honest,
    /// It only says so.
    Lying,
}

/// What becomes of pending writes when the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All are lost.
    Lost,
    /// All are kept.
    Kept,
    /// The earlier ones are kept, the later ones lost.
    Prefix,
    /// Each write as a whole is kept or lost.
    EachWrite,
    /// Each sector holds what it held before, or any version that was written since.
    EachSector,
}

/// All fates, one of which a cut draws.
pub const FATES: [Fate; 5] = [Fate::Lost, Fate::Kept, Fate::Prefix, Fate::EachWrite, Fate::EachSector];

/// The request lies outside of the disk or not on the borders of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at {offset} are no sectors of a disk of {size} bytes")]
pub struct BadRequest {
    offset: u64,
    length: u64,
    size: u64,
}

/// One version of a sector, and the number of the write that brought it.
type Version = (u64, Box<[u8]>);

/// The disk.
#[derive(Debug)]
pub struct Disk {
    medium: Vec<u8>,
    pending: BTreeMap<usize, Vec<Version>>,
    caching: Caching,
    writes: u64,
}

/// What a cut did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// What was drawn.
    pub fate: Fate,
    /// Sectors that were pending.
    pub pending: usize,
    /// Of these, the ones that do not hold what was written last.
    pub lost: usize,
}

impl Disk {
    /// A disk with this content, rounded up to whole sectors.
    pub fn new(mut medium: Vec<u8>, caching: Caching) -> Self {
        medium.resize(medium.len().next_multiple_of(SECTOR), 0);
        Self {
            medium,
            pending: BTreeMap::new(),
            caching,
            writes: 0,
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.medium.len() as u64
    }

    /// Sectors that a flush would write.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What a reader sees.
    ///
    /// # Errors
    /// [`BadRequest`].
    pub fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, BadRequest> {
        let (start, length) = self.check(offset, length)?;
        let mut bytes = self.medium[start..start + length].to_vec();
        for (sector, versions) in self.pending.range(start / SECTOR..(start + length) / SECTOR) {
            if let Some((_, newest)) = versions.last() {
                bytes[sector * SECTOR - start..][..SECTOR].copy_from_slice(newest);
            }
        }
        Ok(bytes)
    }

    /// Writes into the cache; with `fua` to the medium.
    ///
    /// # Errors
    /// [`BadRequest`].
    pub fn write(&mut self, offset: u64, bytes: &[u8], fua: bool) -> Result<(), BadRequest> {
        let (start, _) = self.check(offset, bytes.len() as u64)?;
        self.writes += 1;
        let through = fua && self.caching == Caching::Honest;
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            let at = start / SECTOR + index;
            if through {
                self.pending.remove(&at);
                self.medium[at * SECTOR..][..SECTOR].copy_from_slice(sector);
            } else {
                self.pending.entry(at).or_default().push((self.writes, sector.into()));
            }
        }
        Ok(())
    }

    /// Brings the cache to the medium, if the disk is honest.
    pub fn flush(&mut self) {
        if self.caching == Caching::Honest {
            self.settle(|_, versions| versions.len());
        }
    }

    /// The power fails.
    pub fn cut(&mut self, random: &mut Random) -> Damage {
        let fate = FATES[random.below(FATES.len() as u64) as usize];
        self.cut_as(fate, random)
    }

    /// Like [`cut`](Self::cut), with this fate.
    pub fn cut_as(&mut self, fate: Fate, random: &mut Random) -> Damage {
        let versions = || self.pending.values().flatten().map(|(write, _)| *write);
        let (first, last) = (versions().min().unwrap_or(0), versions().max().unwrap_or(0));
        let border = first + random.below(last - first + 1);
        let salt = random.draw();
        let (pending, mut lost) = (self.pending.len(), 0);
        self.settle(|_, versions| {
            let kept = |keep: &dyn Fn(u64) -> bool| versions.iter().rposition(|(write, _)| keep(*write));
            let held = match fate {
                Fate::Lost => 0,
                Fate::Kept => versions.len(),
                Fate::Prefix => kept(&|write| write < border).map_or(0, |at| at + 1),
                Fate::EachWrite => kept(&|write| Random::new(salt ^ write).coin()).map_or(0, |at| at + 1),
                Fate::EachSector => random.below(versions.len() as u64 + 1) as usize,
            };
            lost += usize::from(held < versions.len());
            held
        });
        Damage { fate, pending, lost }
    }

    /// Empties the cache; of each sector the first so many versions reach the medium.
    fn settle(&mut self, mut held: impl FnMut(usize, &[Version]) -> usize) {
        for (sector, versions) in std::mem::take(&mut self.pending) {
            let held = held(sector, &versions);
            if let Some((_, bytes)) = held.checked_sub(1).and_then(|at| versions.get(at)) {
                self.medium[sector * SECTOR..][..SECTOR].copy_from_slice(bytes);
            }
        }
    }

    fn check(&self, offset: u64, length: u64) -> Result<(usize, usize), BadRequest> {
        let bad = BadRequest {
            offset,
            length,
            size: self.size(),
        };
        let aligned = offset.is_multiple_of(SECTOR as u64) && length.is_multiple_of(SECTOR as u64);
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size());
        if aligned && inside {
            Ok((offset as usize, length as usize))
        } else {
            Err(bad)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn disk(caching: Caching) -> Disk {
        Disk::new(vec![b'o'; 8 * SECTOR], caching)
    }

    /// The first byte of each sector.
    fn seen(disk: &Disk) -> String {
        let bytes = disk.read(0, disk.size()).unwrap();
        bytes.chunks(SECTOR).map(|sector| char::from(sector[0])).collect()
    }

    fn put(disk: &mut Disk, sector: u64, letters: &str, fua: bool) {
        let bytes: Vec<u8> = letters.bytes().flat_map(|letter| [letter; SECTOR]).collect();
        disk.write(sector * SECTOR as u64, &bytes, fua).unwrap();
    }

    #[test]
    fn what_was_flushed_stays_and_what_was_not_has_its_fate() {
        for (fate, possible) in [
            (Fate::Lost, vec!["fooooofo"]),
            (Fate::Kept, vec!["fxyzooyo"]),
            (Fate::Prefix, vec!["fooooofo", "fxxooofo", "fxyzoofo"]),
            (
                Fate::EachWrite,
                vec![
                    "fooooofo", "fxxooofo", "foyzoofo", "fooooofo", "fxyzoofo", "fxxoooyo", "foyzooyo", "foooooyo",
                    "fxyzooyo",
                ],
            ),
        ] {
            let mut found = std::collections::BTreeSet::new();
            for seed in 0..100 {
                let mut disk = disk(Caching::Honest);
                put(&mut disk, 0, "f", false);
                put(&mut disk, 6, "f", false);
                disk.flush();
                assert_eq!(disk.pending(), 0);
                put(&mut disk, 1, "xx", false);
                put(&mut disk, 2, "yz", false);
                put(&mut disk, 6, "y", false);
                assert_eq!(seen(&disk), "fxyzooyo", "a reader sees the newest");
                let damage = disk.cut_as(fate, &mut Random::new(seed));
                assert_eq!((damage.pending, disk.pending()), (4, 0));
                found.insert(seen(&disk));
            }
            let possible = possible.into_iter().map(str::to_owned).collect();
            assert_eq!(found, possible, "{fate:?}");
        }
    }

    #[test]
    fn a_write_is_torn_between_sectors_and_never_within_one() {
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = disk(Caching::Honest);
            put(&mut disk, 0, "xx", false);
            put(&mut disk, 1, "y", false);
            let damage = disk.cut_as(Fate::EachSector, &mut Random::new(seed));
            let now = seen(&disk);
            assert_eq!(
                damage.lost,
                now.chars().zip("xyoooooo".chars()).filter(|(a, b)| a != b).count()
            );
            let bytes = disk.read(0, disk.size()).unwrap();
            assert!(
                bytes
                    .chunks(SECTOR)
                    .all(|sector| sector.iter().all(|byte| *byte == sector[0]))
            );
            found.insert(now[..2].to_owned());
        }
        let all = ["oo", "ox", "oy", "xo", "xx", "xy"].map(str::to_owned);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn forced_access_reaches_the_medium_with_its_sectors_only() {
        let mut disk = disk(Caching::Honest);
        put(&mut disk, 0, "xx", false);
        put(&mut disk, 1, "y", true);
        disk.cut_as(Fate::Lost, &mut Random::new(1));
        assert_eq!(seen(&disk), "oyoooooo");
    }

    #[test]
    fn a_lying_disk_loses_what_it_flushed_and_an_honest_one_does_not() {
        for (caching, left) in [(Caching::Honest, "xyoooooo"), (Caching::Lying, "oooooooo")] {
            let mut disk = disk(caching);
            put(&mut disk, 0, "x", false);
            put(&mut disk, 1, "y", true);
            disk.flush();
            assert_eq!(seen(&disk), "xyoooooo");
            disk.cut_as(Fate::Lost, &mut Random::new(1));
            assert_eq!(seen(&disk), left, "{caching:?}");
        }
    }

    #[test]
    fn the_same_seed_does_the_same_damage() {
        let cut = |seed| {
            let mut disk = disk(Caching::Honest);
            put(&mut disk, 0, "abcdefgh", false);
            put(&mut disk, 2, "ABC", false);
            let damage = disk.cut(&mut Random::new(seed));
            (damage, seen(&disk))
        };
        for seed in 0..50 {
            assert_eq!(cut(seed), cut(seed));
        }
    }

    #[test]
    fn what_is_no_sector_of_the_disk_is_refused() {
        let mut disk = disk(Caching::Honest);
        for (offset, length) in [(0, 100), (100, 512), (4096, 512), (3584, 1024), (u64::MAX - 511, 512)] {
            assert!(disk.read(offset, length).is_err());
            assert!(disk.write(offset, &vec![1; length as usize], false).is_err());
        }
        assert_eq!(seen(&disk), "oooooooo");
        assert!(disk.read(3584, 512).is_ok());
    }
}
