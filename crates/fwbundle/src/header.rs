//! One header of a bundle: 512 bytes of POSIX ustar with everything fixed but name and size.
//!
//! ```text
//! 0    100  name, or its part after the last / that fits     257  8    "ustar\0" "00"
//! 100  24   mode 0000644, uid 0, gid 0, octal                 265  64   owner names: empty
//! 124  12   size, eleven octal digits                         329  16   device numbers 0
//! 136  12   time 0                                            345  155  prefix: what stands before the name
//! 148  8    checksum: six octal digits, NUL, space            156  1    type '0'
//! ```

use crate::BundleError;

/// Bytes of a header, and what contents are filled up to.
pub const BLOCK: usize = 512;
/// Longest entry: eleven octal digits, 8 GiB.
pub const SIZE_MAX: u64 = (1 << 33) - 1;
const NAME: usize = 100;
const PREFIX: usize = 155;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Bytes of the contents.
    pub size: u64,
}

/// The header of an entry. The only one: [`entry`] takes no other for it.
///
/// # Errors
/// [`BundleError::Unwritable`] for a name or size that does not fit.
pub fn header(name: &str, size: u64) -> Result<[u8; BLOCK], BundleError> {
    let unwritable = |reason| BundleError::Unwritable {
        name: name.chars().take(300).collect(),
        reason,
    };
    if name.is_empty() || name.contains('\0') {
        return Err(unwritable("its name is empty or contains NUL"));
    }
    if size > SIZE_MAX {
        return Err(unwritable("it is longer than 8 GiB"));
    }
    let (prefix, rest) = split(name).ok_or_else(|| unwritable("its name is too long for a tar archive"))?;
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, rest.as_bytes());
    put(100, b"0000644\x000000000\x000000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, b"0000000\x000000000\0");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// The parts of a name before and after the `/` at which ustar cuts it: as late as it can.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= NAME {
        return Some(("", name));
    }
    let fits = |at: &usize| *at <= PREFIX && !name[at + 1..].is_empty() && name.len() - at - 1 <= NAME;
    let cut = name.match_indices('/').map(|(at, _)| at).rfind(fits)?;
    Some((&name[..cut], &name[cut + 1..]))
}

/// Reads a header.
///
/// # Errors
/// The reason, for whatever [`header`] would not have written.
pub fn entry(block: &[u8; BLOCK]) -> Result<Entry, &'static str> {
    let text = |from: usize, length: usize| {
        let field = &block[from..from + length];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
        std::str::from_utf8(&field[..end]).map_err(|_| "a name is not UTF-8")
    };
    let (rest, prefix) = (text(0, NAME)?, text(345, PREFIX)?);
    let name = if prefix.is_empty() {
        rest.to_owned()
    } else {
        format!("{prefix}/{rest}")
    };
    let digits = &block[124..135];
    if !digits.iter().all(|byte| (b'0'..=b'7').contains(byte)) {
        return Err("a size is not octal");
    }
    let size = digits.iter().fold(0, |size, digit| size << 3 | u64::from(digit - b'0'));
    // Comparing with the only right form leaves nothing that two readers could understand differently.
    match header(&name, size) {
        Ok(written) if written == *block => Ok(Entry { name, size }),
        _ => Err("a header is not as bundles have it"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn headers_round_trip_at_every_length() {
        let long = format!("targets/{}/{}", "d".repeat(140), "f".repeat(100));
        for name in ["a", "metadata/1.root.json", &"n".repeat(100), &long] {
            for size in [0, 1, 511, SIZE_MAX] {
                let block = header(name, size).unwrap();
                let read = entry(&block).unwrap();
                assert_eq!((read.name.as_str(), read.size), (name, size));
            }
        }
        for (name, size) in [
            ("", 0),
            ("a\0", 0),
            ("a", SIZE_MAX + 1),
            (&"n".repeat(101), 0),
            (&format!("{}/{}", "d".repeat(156), "f"), 0),
            (&format!("{}/", "d".repeat(110)), 0),
        ] {
            assert!(
                matches!(header(name, size), Err(BundleError::Unwritable { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn every_other_byte_is_refused() {
        let good = header("metadata/timestamp.json", 1234).unwrap();
        entry(&good).unwrap();
        for at in 0..BLOCK {
            for change in [1, 0x20, 0x80] {
                let mut block = good;
                block[at] ^= change;
                assert!(entry(&block).is_err(), "byte {at}");
            }
        }
    }
}
