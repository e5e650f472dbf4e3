//! The environment of U-Boot, as it lies on a medium: reads it, changes variables, writes it. Where it lies is for
//! [`uboot_config`](crate::machine::uboot_config), what the variables mean for [`slot_vars`](crate::machine::slot_vars).
//!
//! Source: U-Boot `include/env_internal.h`, `env/common.c` (`env_check_redund`), `tools/env/fw_env.c`.
//!
//! ```text
//! single      u32 crc            data: name=value\0 name=value\0 … \0 padding
//! redundant   u32 crc  u8 flags  data                            two such copies
//!             CRC-32 of all data, padding included, flags excluded; in the byte order of the target
//! ```
//!
//! Of two intact copies the one with the higher flags is active, where 0 follows 255; the first if they are equal. A
//! write goes to the other copy with flags one higher, so the active one is never touched. That is the incremental scheme,
//! which U-Boot uses on block devices and in files; the boolean one of NOR flash is not supported.
//!
//! Nothing is guessed: an image whose checksum fits another layout or byte order than the configured one is refused, and
//! so is one that fits both. What is not changed is written as it was read, byte by byte.

use std::fmt;

/// Byte order of the checksum: that of the target's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// ARM, x86, RISC-V.
    Little,
    /// Most PowerPC and MIPS.
    Big,
}

/// With or without the byte of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One copy, no flags.
    Single,
    /// One of two copies.
    Redundant,
}

/// An environment cannot be used, or not be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvError {
    /// There is no room for anything.
    #[error("an environment of {length} bytes is too small")]
    Size {
        /// Bytes.
        length: usize,
    },
    /// The checksum fits no layout.
    #[error("bad checksum")]
    Checksum,
    /// The checksum fits another layout or byte order.
    #[error("it is a {found} environment, and configured is a {configured} one")]
    OtherFormat {
        /// What it fits.
        found: Format,
        /// What it should fit.
        configured: Format,
    },
    /// The checksum fits both layouts.
    #[error("it is valid both as a {configured} and as a {found} environment")]
    Ambiguous {
        /// What it fits besides.
        found: Format,
        /// What it should fit.
        configured: Format,
    },
    /// The data do not end with an empty string.
    #[error("the variables have no end")]
    Unterminated,
    /// Readers differ in which of them counts.
    #[error("variable {name} is there twice")]
    Duplicate {
        /// The variable.
        name: String,
    },
    /// Neither copy is intact.
    #[error("neither copy is intact")]
    BothBad,
    /// The variables do not fit.
    #[error("the variables need {needed} bytes of {available}")]
    TooLong {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// Such a variable cannot be stored.
    #[error("variable {name:?} cannot be stored")]
    Unstorable {
        /// The variable.
        name: String,
    },
}

/// Layout and byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// With or without flags.
    pub layout: Layout,
    /// Of the checksum.
    pub byte_order: ByteOrder,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.layout {
            Layout::Single => "single",
            Layout::Redundant => "redundant",
        })?;
        f.write_str(match self.byte_order {
            ByteOrder::Little => " little-endian",
            ByteOrder::Big => " big-endian",
        })
    }
}

impl Format {
    /// Bytes before the data.
    pub fn header(self) -> usize {
        match self.layout {
            Layout::Single => 4,
            Layout::Redundant => 5,
        }
    }

    fn fits(self, image: &[u8]) -> bool {
        let (Some(stored), Some(data)) = (image.first_chunk(), image.get(self.header()..)) else {
            return false;
        };
        let stored = match self.byte_order {
            ByteOrder::Little => u32::from_le_bytes(*stored),
            ByteOrder::Big => u32::from_be_bytes(*stored),
        };
        stored == crc32fast::hash(data)
    }

    /// Whether the image is intact in this format and, whichever byte order, in no other layout.
    fn check(self, image: &[u8]) -> Result<(), EnvError> {
        let mut others = [Layout::Single, Layout::Redundant]
            .into_iter()
            .flat_map(|layout| [ByteOrder::Little, ByteOrder::Big].map(|byte_order| Format { layout, byte_order }));
        let fits = self.fits(image);
        // A checksum that reads the same both ways is no reason to doubt the byte order.
        let other = others.find(|other| *other != self && (!fits || other.layout != self.layout) && other.fits(image));
        match (fits, other) {
            (true, None) => Ok(()),
            (true, Some(found)) => Err(EnvError::Ambiguous {
                found,
                configured: self,
            }),
            (false, Some(found)) => Err(EnvError::OtherFormat {
                found,
                configured: self,
            }),
            (false, None) => Err(EnvError::Checksum),
        }
    }
}

/// Variables in their order, and what pads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `name=value`, or whatever else stood there.
    entries: Vec<Vec<u8>>,
    /// Length of the data.
    length: usize,
    /// What followed the end of the variables when they were read.
    padding: Vec<u8>,
}

impl Environment {
    /// Reads one image; also gives its flags, which are 0 in the single layout.
    ///
    /// # Errors
    /// [`EnvError`].
    pub fn decode(image: &[u8], format: Format) -> Result<(Self, u8), EnvError> {
        let length = image.len();
        let data = image.get(format.header()..).filter(|data| data.len() >= 2);
        let data = data.ok_or(EnvError::Size { length })?;
        format.check(image)?;
        let flags = match format.layout {
            Layout::Single => 0,
            Layout::Redundant => image[4],
        };
        Ok((Self::of_data(data)?, flags))
    }

    fn of_data(data: &[u8]) -> Result<Self, EnvError> {
        let mut entries = Vec::new();
        let mut rest = data;
        loop {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(EnvError::Unterminated)?;
            let (entry, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if entry.is_empty() {
                break;
            }
            entries.push(entry.to_vec());
        }
        let mut names: Vec<&[u8]> = entries.iter().filter_map(|entry| Some(split(entry)?.0)).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let name = String::from_utf8_lossy(twice[0]).into_owned();
            return Err(EnvError::Duplicate { name });
        }
        Ok(Self {
            entries,
            length: data.len(),
            padding: rest.to_vec(),
        })
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries
            .iter()
            .filter_map(|entry| split(entry))
            .find(|(found, _)| *found == name.as_bytes())
            .map(|(_, value)| value)
    }

    /// Names of all variables that are text.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.entries.iter().filter_map(|entry| split(entry));
        names.filter_map(|(name, _)| std::str::from_utf8(name).ok())
    }

    /// Sets a variable, in its place or after all others.
    ///
    /// # Errors
    /// [`EnvError::Unstorable`] for a name or value that would read as something else.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), EnvError> {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(EnvError::Unstorable { name: name.to_owned() });
        }
        let entry = format!("{name}={value}").into_bytes();
        let is_it = |entry: &Vec<u8>| split(entry).is_some_and(|(found, _)| found == name.as_bytes());
        match self.entries.iter().position(is_it) {
            Some(at) => self.entries[at] = entry,
            None => self.entries.push(entry),
        }
        Ok(())
    }

    /// The image, as long as the one that was read. `flags` are left out in the single layout.
    ///
    /// # Errors
    /// [`EnvError::TooLong`].
    pub fn encode(&self, format: Format, flags: u8) -> Result<Vec<u8>, EnvError> {
        let mut data = Vec::with_capacity(self.length);
        for entry in &self.entries {
            data.extend_from_slice(entry);
            data.push(0);
        }
        data.push(0);
        let Some(free) = self.length.checked_sub(data.len()) else {
            return Err(EnvError::TooLong {
                needed: data.len(),
                available: self.length,
            });
        };
        // The padding keeps its place, counted from the end; what became free is filled as its end is.
        let fill = self.padding.last().copied().unwrap_or(0);
        data.extend(std::iter::repeat_n(fill, free.saturating_sub(self.padding.len())));
        data.extend_from_slice(&self.padding[self.padding.len().saturating_sub(free)..]);
        let checksum = crc32fast::hash(&data);
        let mut image = match format.byte_order {
            ByteOrder::Little => checksum.to_le_bytes(),
            ByteOrder::Big => checksum.to_be_bytes(),
        }
        .to_vec();
        if format.layout == Layout::Redundant {
            image.push(flags);
        }
        image.extend_from_slice(&data);
        Ok(image)
    }
}

/// Name and value; `None` for an entry that is no variable.
fn split(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    Some((&entry[..at], &entry[at + 1..]))
}

/// Which of two copies counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// 0 or 1.
    pub copy: usize,
    /// Its flags.
    pub flags: u8,
    /// What it holds.
    pub environment: Environment,
}

impl Active {
    /// Chooses as U-Boot does.
    ///
    /// # Errors
    /// [`EnvError::BothBad`]; and what is wrong with a copy that is not merely damaged, because the boot loader might
    /// use it all the same.
    pub fn choose(images: [&[u8]; 2], byte_order: ByteOrder) -> Result<Self, EnvError> {
        let format = Format {
            layout: Layout::Redundant,
            byte_order,
        };
        let read = |copy: usize| match Environment::decode(images[copy], format) {
            Ok((environment, flags)) => Ok(Some(Self {
                copy,
                flags,
                environment,
            })),
            Err(EnvError::Checksum) => Ok(None),
            Err(error) => Err(error),
        };
        match (read(0)?, read(1)?) {
            (None, None) => Err(EnvError::BothBad),
            (Some(only), None) | (None, Some(only)) => Ok(only),
            (Some(first), Some(second)) => Ok(if second_is_newer(first.flags, second.flags) {
                second
            } else {
                first
            }),
        }
    }

    /// The copy that the next write goes to, and the flags that it gets.
    pub fn next(&self) -> (usize, u8) {
        (1 - self.copy, self.flags.wrapping_add(1))
    }
}

fn second_is_newer(first: u8, second: u8) -> bool {
    match (first, second) {
        (255, 0) => true,
        (0, 255) => false,
        _ => second > first,
    }
}

#[cfg(test)]
mod tests;
