//! A GUID partition table: reads both copies of it, says which counts, changes attributes of partitions, gives the bytes of
//! both. What the attributes mean for booting is for [`gpt_priority`](crate::machine::gpt_priority).
//!
//! Source: UEFI specification 2.10 §5.3.
//!
//! ```text
//! LBA 0     protective MBR, not looked at
//! LBA 1     primary header     u32 CRC of itself, its LBA, LBA of the other, LBA of the entries, u32 CRC of the entries
//! LBA 2…    primary entries    type, id, first and last LBA, u64 attributes (offset 48), name (UTF-16)
//!           partitions
//! …−1       backup entries
//! last      backup header
//! ```
//!
//! A copy is intact when both checksums fit, its LBAs are where it is and it lies outside the partitions. Loaders use the
//! primary copy if it is intact, otherwise the backup, and so does this: of two intact copies that differ in attributes the
//! primary one is what will boot, and the backup is what a loss of power left behind. Two copies that differ in anything
//! else are refused, as are two broken ones: which one describes the disk is not for a boot control to guess.

use std::fmt;

pub use self::partition::{Partition, PartitionError};

mod partition;

/// Bytes of a header that have a meaning.
const HEADER_BYTES: usize = 92;
/// Smallest entry, in bytes; larger ones are powers of two.
const ENTRY_BYTES: usize = 128;
/// Most entries; tools make 128.
const MAX_ENTRIES: usize = 1024;
/// Longest array of entries, in bytes.
pub const MAX_ARRAY_BYTES: usize = 256 * 1024;
/// Sizes that sectors have.
pub const SECTOR_BYTES: std::ops::RangeInclusive<usize> = 512..=4096;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
/// Attributes that loaders and this agent change: priority, tries, successful, and what Bottlerocket notes beside them.
const BOOT_BITS: u64 = 0x03ff << 48;

// Offsets in a header.
const HEADER_SIZE: usize = 12;
const HEADER_CRC: usize = 16;
const MY_LBA: usize = 24;
const ALTERNATE_LBA: usize = 32;
const FIRST_USABLE: usize = 40;
const LAST_USABLE: usize = 48;
const ENTRIES_LBA: usize = 72;
const COUNT: usize = 80;
const ENTRY_SIZE: usize = 84;
const ENTRIES_CRC: usize = 88;
// Offsets in an entry; others are in `partition`.
const ATTRIBUTES: usize = 48;

/// A table cannot be used, or not be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GptError {
    /// Neither copy is intact.
    #[error("neither copy is intact (primary: {primary}; backup: {backup})")]
    BothBad {
        /// What is wrong with the first.
        primary: Flaw,
        /// What is wrong with the second.
        backup: Flaw,
    },
    /// Two intact copies of different tables.
    #[error("its two copies are intact and describe different partitions; repair it with gdisk")]
    Different,
    /// There is no room for the copy that is to be rebuilt.
    #[error("there is no room for the {0} copy, which is damaged")]
    NoRoom(Side),
    /// No partition, or more than one, fits.
    #[error("{found} partitions fit {partition}, not one")]
    Partition {
        /// How it is named.
        partition: Partition,
        /// How many fit.
        found: usize,
    },
}

/// What is wrong with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// No table.
    #[error("there is no signature")]
    Signature,
    /// Another version.
    #[error("the revision or a size is not supported")]
    Unsupported,
    /// Damaged.
    #[error("bad checksum of the header")]
    HeaderChecksum,
    /// It lies in another place than it says, or where it cannot.
    #[error("it says of itself that it lies elsewhere")]
    Place,
    /// Damaged.
    #[error("bad checksum of the entries")]
    EntriesChecksum,
}

/// Which copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// At the start of the disk.
    Primary,
    /// At its end.
    Backup,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// A header whose checksum fits and that lies where it says. Its entries are not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    sector: Vec<u8>,
    side: Side,
}

impl Header {
    /// Reads the header of one side, which lies at `lba` of a disk of `sectors`.
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn decode(sector: &[u8], side: Side, lba: u64, sectors: u64) -> Result<Self, Flaw> {
        if !SECTOR_BYTES.contains(&sector.len()) || !sector.starts_with(SIGNATURE) {
            return Err(Flaw::Signature);
        }
        let header = Self {
            sector: sector.to_vec(),
            side,
        };
        let size = header.u32(HEADER_SIZE) as usize;
        if header.u32(8) != REVISION || !(HEADER_BYTES..=sector.len()).contains(&size) {
            return Err(Flaw::Unsupported);
        }
        if header.u32(HEADER_CRC) != header.checksum() {
            return Err(Flaw::HeaderChecksum);
        }
        let entry = header.entry_bytes();
        let count = header.u32(COUNT) as usize;
        let is_array = (1..=MAX_ENTRIES).contains(&count)
            && (ENTRY_BYTES..=sector.len().max(ENTRY_BYTES)).contains(&entry)
            && entry.is_power_of_two()
            && header.array_bytes() <= MAX_ARRAY_BYTES;
        if !is_array {
            return Err(Flaw::Unsupported);
        }
        let (first, last) = (header.u64(FIRST_USABLE), header.u64(LAST_USABLE));
        let (entries, other) = (header.entries_lba(), header.alternate_lba());
        let end = entries.checked_add(header.array_sectors()).ok_or(Flaw::Place)?;
        let (primary, backup) = match side {
            Side::Primary => (lba, other),
            Side::Backup => (other, lba),
        };
        let fits = header.u64(MY_LBA) == lba
            && primary == 1
            && first <= last
            && last < backup
            && backup < sectors
            && match side {
                Side::Primary => entries >= 2 && end <= first,
                Side::Backup => entries > last && end <= backup,
            };
        if fits { Ok(header) } else { Err(Flaw::Place) }
    }

    /// LBA of the other header.
    pub fn alternate_lba(&self) -> u64 {
        self.u64(ALTERNATE_LBA)
    }

    /// LBA of the entries.
    pub fn entries_lba(&self) -> u64 {
        self.u64(ENTRIES_LBA)
    }

    /// Bytes of the entries.
    pub fn array_bytes(&self) -> usize {
        (self.u32(COUNT) as usize).saturating_mul(self.entry_bytes())
    }

    fn array_sectors(&self) -> u64 {
        self.array_bytes().div_ceil(self.sector.len()) as u64
    }

    fn entry_bytes(&self) -> usize {
        self.u32(ENTRY_SIZE) as usize
    }

    fn u32(&self, at: usize) -> u32 {
        let bytes = self.sector.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.sector.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.sector.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Of the header, with 0 in its place.
    fn checksum(&self) -> u32 {
        let size = (self.u32(HEADER_SIZE) as usize).min(self.sector.len());
        let mut header = self.sector[..size].to_vec();
        if let Some(place) = header.get_mut(HEADER_CRC..HEADER_CRC + 4) {
            place.fill(0);
        }
        crc32fast::hash(&header)
    }

    /// The header without what differs with every change.
    fn without_checksums(mut self) -> Self {
        for at in [HEADER_CRC, ENTRIES_CRC] {
            self.put(at, &[0; 4]);
        }
        self
    }

    /// What follows the header in its sector, which is to be 0.
    fn rest(&self) -> &[u8] {
        self.sector.get(self.u32(HEADER_SIZE) as usize..).unwrap_or_default()
    }

    fn clear_rest(&mut self) {
        let size = self.u32(HEADER_SIZE) as usize;
        if let Some(rest) = self.sector.get_mut(size..) {
            rest.fill(0);
        }
    }

    /// The same, and without what differs between the two copies.
    fn common(&self) -> Vec<u8> {
        let mut common = self.clone().without_checksums();
        common.clear_rest();
        for at in [MY_LBA, ALTERNATE_LBA, ENTRIES_LBA] {
            common.put(at, &[0; 8]);
        }
        common.sector
    }

    /// The header of the other copy, for when there is none.
    fn other(&self) -> Result<Self, GptError> {
        let (side, lba) = match self.side {
            Side::Primary => (Side::Backup, self.alternate_lba()),
            Side::Backup => (Side::Primary, 1),
        };
        let entries = match side {
            Side::Primary => Some(2).filter(|entries| entries + self.array_sectors() <= self.u64(FIRST_USABLE)),
            Side::Backup => lba
                .checked_sub(self.array_sectors())
                .filter(|entries| *entries > self.u64(LAST_USABLE)),
        };
        let entries = entries.ok_or(GptError::NoRoom(side))?;
        let mut other = self.clone();
        other.side = side;
        other.put(ALTERNATE_LBA, &self.u64(MY_LBA).to_le_bytes());
        other.put(MY_LBA, &lba.to_le_bytes());
        other.put(ENTRIES_LBA, &entries.to_le_bytes());
        Ok(other)
    }
}

/// The table, and where its copies lie; checksums are computed when it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    primary: Header,
    backup: Header,
    entries: Vec<u8>,
}

/// Bytes, and the LBA where they belong.
pub type Piece = (u64, Vec<u8>);

/// One side as it was read: a header, and its entries with what fills their last sector.
pub type Read = Result<(Header, Vec<u8>), Flaw>;

impl Table {
    /// Chooses between the two copies; also says whether one of them is to be written anew.
    ///
    /// # Errors
    /// [`GptError`].
    pub fn choose(primary: Read, backup: Read) -> Result<(Self, bool), GptError> {
        let (primary, backup, entries, damaged) = match (intact(primary.clone()), intact(backup.clone())) {
            (Ok((primary, entries)), Ok((backup, others))) => {
                let same = primary.common() == backup.common()
                    && without_boot_bits(&entries, primary.entry_bytes())
                        == without_boot_bits(&others, backup.entry_bytes());
                if !same || primary.alternate_lba() != backup.u64(MY_LBA) {
                    return Err(GptError::Different);
                }
                let mut behind = entries != others;
                let (mut primary, mut backup) = (primary, backup);
                if primary.rest() != backup.rest() {
                    // No checksum covers it: one of them is torn.
                    behind = true;
                    for header in [&mut primary, &mut backup] {
                        header.clear_rest();
                    }
                }
                (primary, backup, entries, behind)
            }
            (Ok((primary, entries)), Err(_)) => {
                let backup = placed(backup, &primary)?;
                (primary, backup, entries, true)
            }
            (Err(_), Ok((backup, entries))) => {
                let primary = placed(primary, &backup)?;
                (primary, backup, entries, true)
            }
            (Err(primary), Err(backup)) => return Err(GptError::BothBad { primary, backup }),
        };
        let table = Self {
            primary: primary.without_checksums(),
            backup: backup.without_checksums(),
            entries,
        };
        Ok((table, damaged))
    }

    /// The header and the entries of one side, as they are to lie on the disk.
    pub fn encode(&self, side: Side) -> [Piece; 2] {
        let mut header = match side {
            Side::Primary => self.primary.clone(),
            Side::Backup => self.backup.clone(),
        };
        let array = self.entries.get(..header.array_bytes()).unwrap_or(&self.entries);
        header.put(ENTRIES_CRC, &crc32fast::hash(array).to_le_bytes());
        let checksum = header.checksum();
        header.put(HEADER_CRC, &checksum.to_le_bytes());
        [
            (header.entries_lba(), self.entries.clone()),
            (header.u64(MY_LBA), header.sector),
        ]
    }

    /// The index of the only partition that is named so.
    ///
    /// # Errors
    /// [`GptError::Partition`].
    pub fn find(&self, partition: &Partition) -> Result<usize, GptError> {
        let used = |entry: &&[u8]| entry.iter().take(16).any(|byte| *byte != 0);
        let mut found = self
            .each()
            .enumerate()
            .filter(|(_, entry)| used(entry) && partition.is(entry))
            .map(|(index, _)| index);
        match (found.next(), found.count()) {
            (Some(index), 0) => Ok(index),
            (first, more) => Err(GptError::Partition {
                partition: partition.clone(),
                found: usize::from(first.is_some()) + more,
            }),
        }
    }

    /// Attributes of all entries, those of unused ones as 0.
    pub fn attributes(&self) -> Vec<u64> {
        let attributes = |entry: &[u8]| {
            let used = entry.iter().take(16).any(|byte| *byte != 0);
            let bytes = entry.get(ATTRIBUTES..).and_then(|rest| rest.first_chunk());
            bytes.filter(|_| used).map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        self.each().map(attributes).collect()
    }

    /// Sets the attributes of an entry.
    pub fn set_attributes(&mut self, index: usize, attributes: u64) {
        let at = index
            .saturating_mul(self.primary.entry_bytes())
            .saturating_add(ATTRIBUTES);
        if let Some(place) = self.entries.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *place = attributes.to_le_bytes();
        }
    }

    /// Names of all partitions, for people who look for one.
    pub fn labels(&self) -> Vec<String> {
        let used = self.each().filter(|entry| entry.iter().take(16).any(|byte| *byte != 0));
        used.map(partition::label).collect()
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        let array = self.entries.get(..self.primary.array_bytes()).unwrap_or_default();
        array.chunks_exact(self.primary.entry_bytes().max(ENTRY_BYTES))
    }
}

fn intact(read: Read) -> Result<(Header, Vec<u8>), Flaw> {
    let (header, entries) = read?;
    let array = entries.get(..header.array_bytes());
    match array.filter(|array| crc32fast::hash(array) == header.u32(ENTRIES_CRC)) {
        Some(_) => Ok((header, entries)),
        None => Err(Flaw::EntriesChecksum),
    }
}

/// Where the damaged copy is to lie: where its header says, if that belongs to the same table, or where it is usual.
fn placed(damaged: Read, intact: &Header) -> Result<Header, GptError> {
    match damaged {
        Ok((mut header, _)) if header.common() == intact.common() && header.alternate_lba() == intact.u64(MY_LBA) => {
            header.put(intact.u32(HEADER_SIZE) as usize, intact.rest());
            Ok(header)
        }
        _ => intact.other(),
    }
}

fn without_boot_bits(entries: &[u8], entry_bytes: usize) -> Vec<u8> {
    let mut plain = entries.to_vec();
    for entry in plain.chunks_mut(entry_bytes.max(ENTRY_BYTES)) {
        if let Some(place) = entry.get_mut(ATTRIBUTES..).and_then(|rest| rest.first_chunk_mut()) {
            *place = (u64::from_le_bytes(*place) & !BOOT_BITS).to_le_bytes();
        }
    }
    plain
}

#[cfg(test)]
pub(crate) mod tests;
