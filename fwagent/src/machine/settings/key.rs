//! Names of settings, and the class that a name puts a setting into.

use std::fmt;

/// Longest key, in bytes.
pub const KEY_BYTES: usize = 256;
/// Longest part of a key, in bytes.
pub const PART_BYTES: usize = 64;
/// Parts of a key.
pub const KEY_PARTS: usize = 8;

/// A dotted key, such as `network.hostname`. Parts hold no dot, so that a key and its place in a tree are the same thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// The text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a key: use up to {KEY_PARTS} parts joined by dots, each 1 to {PART_BYTES} of a–z A–Z 0–9 _ -, \
     {KEY_BYTES} bytes in all"
)]
pub struct KeyError {
    /// What was to be read, cut to 64 characters.
    pub text: String,
}

impl Key {
    /// Reads a key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let part = |part: &str| (1..=PART_BYTES).contains(&part.len()) && part.bytes().all(byte);
        if text.len() <= KEY_BYTES && text.split('.').count() <= KEY_PARTS && text.split('.').all(part) {
            return Ok(Self(text.to_owned()));
        }
        Err(KeyError {
            text: text.chars().take(64).collect(),
        })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of an entry of the tree at this key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn below(&self, part: &str) -> Result<Self, KeyError> {
        Self::parse(&format!("{}.{part}", self.0))
    }

    /// Whether this key is `other` or below it.
    pub fn is_within(&self, other: &Key) -> bool {
        match self.0.strip_prefix(other.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        }
    }

    /// The keys above this one, the nearest first.
    pub fn above(&self) -> impl Iterator<Item = Key> + '_ {
        let dots = self.0.rmatch_indices('.');
        dots.map(|(at, _)| Key(self.0[..at].to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a setting is, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Anything else: migrations see it, it goes back with the software.
    Ordinary,
    /// Accounts, password hashes, rules: never lost, never reset silently.
    Access,
    /// Keys and passwords that the device uses itself.
    Secret,
}

impl Class {
    /// The word for people and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Access => "access",
            Self::Secret => "secret",
        }
    }

    /// Whether it passes migrations untouched, follows the newest edit, and is not printed unless asked for.
    pub fn is_protected(self) -> bool {
        self != Self::Ordinary
    }
}

/// Which keys are of which class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Keys at and below which all is of class access.
    pub access: Vec<Key>,
    /// Keys at and below which all is of class secret.
    pub secret: Vec<Key>,
}

impl Default for Classes {
    fn default() -> Self {
        Self {
            access: vec![Key("access".to_owned())],
            secret: vec![Key("secret".to_owned())],
        }
    }
}

impl Classes {
    /// The class of a key.
    pub fn of(&self, key: &Key) -> Class {
        let within = |prefixes: &[Key]| prefixes.iter().any(|prefix| key.is_within(prefix));
        if within(&self.access) {
            Class::Access
        } else if within(&self.secret) {
            Class::Secret
        } else {
            Class::Ordinary
        }
    }
}
