//! How partitions are named: by their label or their unique id.

use std::fmt;

/// Offset of the unique id in an entry.
pub(super) const ID: usize = 16;
/// Offset of the label in an entry: 36 units of UTF-16.
const NAME: usize = 56;

/// How a partition is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partition {
    /// By its name in the table.
    Label(String),
    /// By its unique id, as it lies in the table.
    Uuid([u8; 16]),
}

/// The text names no partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no partition: write PARTLABEL=name or PARTUUID=id")]
pub struct PartitionError {
    /// What was to be read, cut to 64 characters.
    pub text: String,
}

impl Partition {
    /// Reads `PARTLABEL=…` or `PARTUUID=…`.
    ///
    /// # Errors
    /// [`PartitionError`].
    pub fn parse(text: &str) -> Result<Self, PartitionError> {
        let label = text.strip_prefix("PARTLABEL=");
        let label = label.filter(|label| (1..=36).contains(&label.encode_utf16().count()) && !label.contains('\0'));
        let uuid = text.strip_prefix("PARTUUID=").and_then(uuid);
        match (label, uuid) {
            (Some(label), _) => Ok(Self::Label(label.to_owned())),
            (None, Some(uuid)) => Ok(Self::Uuid(uuid)),
            (None, None) => Err(PartitionError {
                text: text.chars().take(64).collect(),
            }),
        }
    }

    /// Whether an entry of the table is it.
    pub(super) fn is(&self, entry: &[u8]) -> bool {
        match self {
            Self::Uuid(id) => entry.get(ID..ID + 16) == Some(id),
            Self::Label(label) => units(entry).eq(label.encode_utf16()),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "PARTLABEL={label}"),
            Self::Uuid(id) => {
                f.write_str("PARTUUID=")?;
                for (at, index) in ORDER.into_iter().enumerate() {
                    if matches!(at, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{:02x}", id[index])?;
                }
                Ok(())
            }
        }
    }
}

/// Where the bytes of the text form lie in the table: the first three groups are little-endian.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    if groups != [8, 4, 4, 4, 12] || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut id = [0; 16];
    for (at, index) in ORDER.into_iter().enumerate() {
        id[index] = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(id)
}

/// The label of an entry.
pub(super) fn label(entry: &[u8]) -> String {
    String::from_utf16_lossy(&units(entry).collect::<Vec<u16>>())
}

fn units(entry: &[u8]) -> impl Iterator<Item = u16> {
    let name = entry.get(NAME..NAME + 72).unwrap_or_default();
    let units = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    units.take_while(|unit| *unit != 0)
}
