//! Where the environment of U-Boot lies: `fw_env.config`, as the tools of U-Boot and libubootenv read it.
//!
//! Source: U-Boot `tools/env/fw_env.c` (`get_config`) and `fw_env.config`.
//!
//! ```text
//! # device       offset     size     [sector size]  [sectors]  [disable lock]
//! /dev/mmcblk0   0x400000   0x4000                                  one line: single
//! /dev/mmcblk0   -0x4000    0x4000                                  two lines: redundant
//! ```
//!
//! An offset is decimal, hexadecimal after `0x` and octal after `0`; a negative one counts from the end. All sizes are
//! hexadecimal, with or without `0x`.
//!
//! Departs: the tools pass over a line that they cannot read and stop after two. That would turn a redundant environment
//! with a misprint into a single one, so such a file is refused.

use std::path::PathBuf;

/// Largest environment, in bytes; real ones have up to 256 KiB.
pub const MAX_ENV_BYTES: usize = 1024 * 1024;
/// Smallest environment: a header, one variable and the end.
const MIN_ENV_BYTES: usize = 10;

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Device or file.
    pub path: PathBuf,
    /// In bytes; from the end if negative.
    pub offset: i64,
    /// In bytes, header included.
    pub size: usize,
}

/// One copy or two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// One.
    Single(Place),
    /// Two, in the order of U-Boot.
    Redundant([Place; 2]),
}

/// The file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PlacesError {
    /// Counted from 1; the last one when something is missing.
    pub line: usize,
    /// What is wrong.
    pub problem: &'static str,
}

impl Places {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// [`PlacesError`].
    pub fn parse(text: &str) -> Result<Self, PlacesError> {
        let mut places = Vec::new();
        let mut last = 0;
        for (index, line) in text.lines().enumerate() {
            last = index + 1;
            let at = |problem| PlacesError { line: last, problem };
            if let Some(place) = place(line).map_err(at)? {
                places.push(place);
            }
            if places.len() > 2 {
                return Err(at("there are more than two environments"));
            }
        }
        let at = |problem| PlacesError { line: last, problem };
        let mut places = places.into_iter();
        match (places.next(), places.next()) {
            (Some(first), Some(second)) if first.size != second.size => Err(at("the two copies differ in size")),
            (Some(first), Some(second)) if overlap(&first, &second) => Err(at("the two copies overlap")),
            (Some(first), Some(second)) => Ok(Self::Redundant([first, second])),
            (Some(only), None) => Ok(Self::Single(only)),
            (None, _) => Err(at("there is no environment")),
        }
    }
}

/// Only for offsets that count from the same side; others are compared when the size of the device is known.
fn overlap(first: &Place, second: &Place) -> bool {
    first.path == second.path
        && (first.offset < 0) == (second.offset < 0)
        && first.offset.abs_diff(second.offset) < first.size as u64
}

fn place(line: &str) -> Result<Option<Place>, &'static str> {
    let mut columns = line
        .split_ascii_whitespace()
        .take_while(|column| !column.starts_with('#'));
    let Some(device) = columns.next() else {
        return Ok(None);
    };
    let path = PathBuf::from(device);
    if !path.is_absolute() {
        return Err("the device is not an absolute path");
    }
    if device.starts_with("/dev/ubi") || device.starts_with("/dev/mtd") {
        return Err("raw flash (MTD, UBI) is not supported; put the environment on a block device or in a file");
    }
    let offset = columns
        .next()
        .and_then(integer)
        .ok_or("the offset is missing or no number")?;
    let size = columns.next().and_then(hexadecimal);
    let size = size.ok_or("the size is missing or no hexadecimal number")?;
    // Sector size, their number, whether to lock: read to find misprints; block devices and files have no sectors.
    for rest in columns.by_ref().take(3) {
        hexadecimal(rest).ok_or("a column after the size is no hexadecimal number")?;
    }
    if columns.next().is_some() {
        return Err("there are too many columns");
    }
    let size = usize::try_from(size)
        .ok()
        .filter(|size| (MIN_ENV_BYTES..=MAX_ENV_BYTES).contains(size));
    let size = size.ok_or("the size is out of bounds: 10 bytes to 1 MiB")?;
    if offset < 0 && offset.unsigned_abs() < size as u64 {
        return Err("the environment would reach beyond the end");
    }
    Ok(Some(Place { path, offset, size }))
}

/// As `%lli` of C reads it.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        unsigned(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        unsigned(digits, 8)
    } else {
        unsigned(digits, 10)
    };
    let value = i64::try_from(value?).ok()?;
    Some(if negative { -value } else { value })
}

/// As `%lx` of C reads it.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    unsigned(digits.unwrap_or(text), 16)
}

/// Without the sign that `from_str_radix` would take.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_number.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(path: &str, offset: i64, size: usize) -> Place {
        Place {
            path: path.into(),
            offset,
            size,
        }
    }

    #[test]
    fn columns_are_read_as_the_tools_do() {
        for (text, expected) in [
            (
                "/dev/sda 0x400000 0x4000",
                Places::Single(at("/dev/sda", 0x40_0000, 0x4000)),
            ),
            (
                "  /e\t-0x2000  2000 200 10 1 # x\n",
                Places::Single(at("/e", -0x2000, 0x2000)),
            ),
            ("# comment\n\n/e 4096 20", Places::Single(at("/e", 4096, 32))),
            ("/e 010 20", Places::Single(at("/e", 8, 32))),
            (
                "/e 0 4000\n/e 0x4000 0x4000\n#/e 0 0",
                Places::Redundant([at("/e", 0, 0x4000), at("/e", 0x4000, 0x4000)]),
            ),
            (
                "/e 0 20\n/f 0 20",
                Places::Redundant([at("/e", 0, 32), at("/f", 0, 32)]),
            ),
            (
                "/e 0 20\n/e -32 20",
                Places::Redundant([at("/e", 0, 32), at("/e", -32, 32)]),
            ),
        ] {
            assert_eq!(Places::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_the_tools_would_pass_over_is_refused() {
        for (text, line, problem) in [
            ("", 0, "no environment"),
            ("# only\n", 1, "no environment"),
            ("/e 0 4000\n/e 0x4000\n", 2, "size is missing"),
            ("/e 0 4000\n/e x 4000", 2, "offset is missing"),
            ("/e 0 4000\n/e 0x2000 4000", 2, "overlap"),
            ("/e 0 4000\n/e 0x4000 2000", 2, "differ in size"),
            ("/e 0 20\n/f 0 20\n/g 0 20", 3, "more than two"),
            ("e 0 20", 1, "absolute"),
            ("/dev/mtd0 0 4000 4000", 1, "raw flash"),
            ("/dev/ubi0:env 0 4000", 1, "raw flash"),
            ("/e 0 4", 1, "out of bounds"),
            ("/e 0 ffffffffffffffff", 1, "out of bounds"),
            ("/e -4 20", 1, "beyond the end"),
            ("/e +-4 20", 1, "offset"),
            ("/e 08 20", 1, "offset"),
            ("/e 0 20 x", 1, "after the size"),
            ("/e 0 20 1 1 1 1", 1, "too many"),
        ] {
            let error = Places::parse(text).unwrap_err();
            assert!(error.line == line && error.problem.contains(problem), "{text}: {error}");
        }
    }
}
