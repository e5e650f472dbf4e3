//! Slots: places that hold one bootable set of images, of which one runs and another is written.

use std::fmt;

/// Name of a slot set, such as `a`: what the boot loader chooses. Each set has one slot for each slot class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(String);

/// Longest name of a slot, in bytes.
const NAME_BYTES: usize = 32;

/// The text is not the name of a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a slot name: use 1 to {NAME_BYTES} of a–z A–Z 0–9 _ -")]
pub struct SlotNameError {
    /// What was to be read, cut to 64 characters.
    pub text: String,
}

impl SlotId {
    /// Reads a slot name. It becomes part of paths, boot variables and log lines.
    ///
    /// # Errors
    /// [`SlotNameError`].
    pub fn parse(text: &str) -> Result<Self, SlotNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SlotNameError {
                text: text.chars().take(64).collect(),
            })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a slot set is to the agent (RAUC, MCUboot and GPT-priority practice).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotStatus {
    /// Nothing that may be booted: never written, half written, or given up.
    Empty,
    /// Written and read back; not armed.
    Staged,
    /// Armed: the boot loader tries it next.
    Pending,
    /// Running, not confirmed.
    Tentative,
    /// Passed its checks; may be booted at any time.
    Confirmed,
    /// Must not be booted: failed on this device, given up, or below the security floor.
    Bad,
}

impl SlotStatus {
    /// The word for people and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Staged => "staged",
            Self::Pending => "pending",
            Self::Tentative => "tentative",
            Self::Confirmed => "confirmed",
            Self::Bad => "bad",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "B", "slot-1", "rescue_x"] {
            assert_eq!(SlotId::parse(good).map(|slot| slot.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", ".", "a/b", "a b", "..", "é", &"x".repeat(33)] {
            assert!(SlotId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
