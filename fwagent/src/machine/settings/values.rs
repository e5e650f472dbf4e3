//! Values of settings: a flat map from keys to leaves, which is the same as a tree.
//!
//! A leaf is anything but an object: text, integer, truth value, or a list, which may hold objects. No key is above
//! another one, and an empty object is nothing. So two trees that mean the same are equal, and the difference of two is a
//! list of [`Edits`].

use std::collections::BTreeMap;

use fwmeta::json::Value;

use super::key::{Class, Classes, Key, KeyError};

/// Settings of a device.
pub const MAX_KEYS: usize = 4096;
/// Bytes of all settings as JSON.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Levels within a list.
const LEAF_DEPTH: usize = 8;

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values(BTreeMap<Key, Value>);

/// A transaction: what each key becomes; `None` removes it and all below it. Removals come first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edits(BTreeMap<Key, Option<Value>>);

/// Settings that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValuesError {
    /// A key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The outermost value is no object.
    #[error("settings are an object of keys, this is none")]
    NotAnObject,
    /// `null` has no place but in lists and in edits.
    #[error("{key} is null: a setting has a value or is not there")]
    Null {
        /// The key.
        key: Key,
    },
    /// Nested too deep.
    #[error("{key} is nested deeper than {LEAF_DEPTH} levels")]
    TooDeep {
        /// The key.
        key: Key,
    },
    /// A value stands where others are below.
    #[error("{key} is below {above}, which has a value of its own")]
    BelowValue {
        /// The key.
        key: Key,
        /// The key above it.
        above: Key,
    },
    /// Too many.
    #[error("{count} settings are more than the {MAX_KEYS} allowed")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Too long.
    #[error("settings of {bytes} bytes are longer than the {MAX_BYTES} allowed")]
    TooLarge {
        /// How many bytes as JSON.
        bytes: usize,
    },
}

impl Values {
    /// Reads a tree.
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn from_tree(tree: &Value) -> Result<Self, ValuesError> {
        let mut values = BTreeMap::new();
        let entries = tree.as_object().ok_or(ValuesError::NotAnObject)?;
        for (part, value) in entries {
            flatten(Key::parse(part)?, value, &mut |key, leaf| {
                if *leaf == Value::Null {
                    return Err(ValuesError::Null { key });
                }
                values.insert(key, leaf.clone());
                Ok(())
            })?;
        }
        Self(values).checked()
    }

    /// The tree.
    pub fn to_tree(&self) -> Value {
        let mut tree = BTreeMap::new();
        for (key, leaf) in &self.0 {
            insert(&mut tree, key.as_str(), leaf);
        }
        Value::Object(tree)
    }

    /// A leaf, or the tree at a key.
    pub fn get(&self, key: &Key) -> Option<Value> {
        if let Some(leaf) = self.0.get(key) {
            return Some(leaf.clone());
        }
        let mut tree = BTreeMap::new();
        for (below, leaf) in self.0.iter().filter(|(below, _)| below.is_within(key)) {
            insert(&mut tree, &below.as_str()[key.as_str().len() + 1..], leaf);
        }
        (!tree.is_empty()).then_some(Value::Object(tree))
    }

    /// All leaves, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those whose keys are wanted.
    pub fn filtered(&self, wanted: impl Fn(&Key) -> bool) -> Self {
        let kept = self.0.iter().filter(|(key, _)| wanted(key));
        Self(kept.map(|(key, leaf)| (key.clone(), leaf.clone())).collect())
    }

    /// Those that migrations see.
    pub fn ordinary(&self, classes: &Classes) -> Self {
        self.filtered(|key| classes.of(key) == Class::Ordinary)
    }

    /// Those that migrations do not see, and that always follow the newest edit.
    pub fn protected(&self, classes: &Classes) -> Self {
        self.filtered(|key| classes.of(key).is_protected())
    }

    /// These and `others`, which must have other keys.
    ///
    /// # Errors
    /// [`ValuesError`] when a key is above one of the others.
    pub fn joined(&self, others: &Values) -> Result<Self, ValuesError> {
        let mut all = self.0.clone();
        all.extend(others.0.clone());
        Self(all).checked()
    }

    /// These after a transaction: all of it or nothing.
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn edited(&self, edits: &Edits) -> Result<Self, ValuesError> {
        let mut values = self.0.clone();
        for (key, _) in edits.0.iter().filter(|(_, becomes)| becomes.is_none()) {
            values.retain(|held, _| !held.is_within(key));
        }
        for (key, becomes) in &edits.0 {
            let Some(leaf) = becomes else { continue };
            // A value takes the place of all that was below its key.
            values.retain(|held, _| !held.is_within(key));
            values.insert(key.clone(), leaf.clone());
        }
        Self(values).checked()
    }

    /// The edits that make `later` of these.
    pub fn edits_to(&self, later: &Values) -> Edits {
        let gone = self.0.keys().filter(|key| !later.0.contains_key(*key));
        let changed = later.0.iter().filter(|(key, leaf)| self.0.get(*key) != Some(*leaf));
        Edits(
            gone.map(|key| (key.clone(), None))
                .chain(changed.map(|(key, leaf)| (key.clone(), Some(leaf.clone()))))
                .collect(),
        )
    }

    fn checked(self) -> Result<Self, ValuesError> {
        if self.0.len() > MAX_KEYS {
            return Err(ValuesError::TooMany { count: self.0.len() });
        }
        for key in self.0.keys() {
            if let Some(above) = key.above().find(|above| self.0.contains_key(above)) {
                return Err(ValuesError::BelowValue {
                    key: key.clone(),
                    above,
                });
            }
        }
        let bytes = self.to_tree().to_json().len();
        if bytes > MAX_BYTES {
            return Err(ValuesError::TooLarge { bytes });
        }
        Ok(self)
    }
}

impl Edits {
    /// Reads a merge patch (RFC 7396): `null` removes.
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn from_patch(patch: &Value) -> Result<Self, ValuesError> {
        let mut edits = Self::default();
        for (part, value) in patch.as_object().ok_or(ValuesError::NotAnObject)? {
            flatten(Key::parse(part)?, value, &mut |key, leaf| {
                edits.0.insert(key, (*leaf != Value::Null).then(|| leaf.clone()));
                Ok(())
            })?;
        }
        Ok(edits)
    }

    /// The merge patch.
    pub fn to_patch(&self) -> Value {
        let mut tree = BTreeMap::new();
        for (key, becomes) in &self.0 {
            insert(&mut tree, key.as_str(), becomes.as_ref().unwrap_or(&Value::Null));
        }
        Value::Object(tree)
    }

    /// Puts a value at a key, in place of what is there; an object becomes the tree at the key.
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn set(&mut self, key: Key, value: &Value) -> Result<(), ValuesError> {
        if value.as_object().is_some() {
            self.0.insert(key.clone(), None);
        }
        flatten(key, value, &mut |key, leaf| {
            if *leaf == Value::Null {
                return Err(ValuesError::Null { key });
            }
            self.0.insert(key, Some(leaf.clone()));
            Ok(())
        })
    }

    /// Removes a key and all below it.
    pub fn remove(&mut self, key: Key) {
        self.0.insert(key, None);
    }

    /// The keys concerned.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// How many keys are concerned.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Calls `found` with each leaf at and below `key`.
fn flatten(
    key: Key,
    value: &Value,
    found: &mut impl FnMut(Key, &Value) -> Result<(), ValuesError>,
) -> Result<(), ValuesError> {
    match value {
        Value::Object(entries) => {
            for (part, value) in entries {
                flatten(key.below(part)?, value, found)?;
            }
            Ok(())
        }
        leaf if depth(leaf) > LEAF_DEPTH => Err(ValuesError::TooDeep { key }),
        leaf => found(key, leaf),
    }
}

/// Bounded by the parser of whatever the value was read from.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Puts a leaf into a tree that has no value above it.
fn insert(tree: &mut BTreeMap<String, Value>, key: &str, leaf: &Value) {
    let Some((part, rest)) = key.split_once('.') else {
        tree.insert(key.to_owned(), leaf.clone());
        return;
    };
    let entry = tree.entry(part.to_owned());
    let inner = entry.or_insert_with(|| Value::Object(BTreeMap::new()));
    if !matches!(inner, Value::Object(_)) {
        // Only edits can have both: a removal above a value.
        *inner = Value::Object(BTreeMap::new());
    }
    if let Value::Object(inner) = inner {
        insert(inner, rest, leaf);
    }
}
