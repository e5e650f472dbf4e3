//! JSON, read strictly and within bounds.
//!
//! Decides whether bytes are one JSON text (RFC 8259) that means the same to every reader: UTF-8, no duplicate keys, no
//! lone surrogates, nothing after the value, at most [`limits::JSON_DEPTH`] levels and [`limits::JSON_VALUES`] values.
//! A [`Doc`] refers to the received bytes and costs 16 bytes a value, so that metadata with 50,000 targets stay within a
//! small device's memory. [`Value`] is the owned form, for writing.
//!
//! Numbers are checked for their syntax and kept as text; only integers can be taken out, because canonical JSON, which
//! is what gets signed, has no others.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::limits;

mod parse;
mod value;

#[cfg(test)]
mod tests;

pub use value::{Value, object};

/// Why bytes were refused as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The bytes are not UTF-8 from `offset` on.
    #[error("not UTF-8 at byte {offset}")]
    NotUtf8 {
        /// Bytes before the fault.
        offset: usize,
    },
    /// The grammar of JSON is broken.
    #[error("at byte {offset}: expected {expected}")]
    Syntax {
        /// Bytes before the fault.
        offset: usize,
        /// What would have been right.
        expected: &'static str,
    },
    /// An object has the same key twice: readers disagree on what that means.
    #[error("duplicate key {key:?}")]
    DuplicateKey {
        /// The key, cut to 64 characters.
        key: String,
    },
    /// Nested deeper than [`limits::JSON_DEPTH`].
    #[error("at byte {offset}: nested deeper than {} levels", limits::JSON_DEPTH)]
    TooDeep {
        /// Bytes before the value that is too deep.
        offset: usize,
    },
    /// More than [`limits::JSON_VALUES`] values, or too long to address.
    #[error("more than {} values", limits::JSON_VALUES)]
    TooManyValues,
    /// A number that is not an integer of at most 128 bits, where canonical JSON is needed.
    #[error("number {text} is not an integer within range")]
    NotAnInteger {
        /// The number as written, cut to 64 characters.
        text: String,
    },
}

/// A parsed JSON text that refers to the bytes it came from.
#[derive(Debug, Clone)]
pub struct Doc<'a> {
    text: &'a str,
    tape: Vec<Token>,
    /// Whether all of it stands in its canonical form.
    canonical: bool,
}

/// One value (or object key) of the text, in order of appearance.
#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    /// Bytes `start..end` of the text: a string without its quotes, anything else whole.
    start: u32,
    end: u32,
    /// Index of the first token after this value and all it contains.
    next: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    True,
    False,
    Number,
    /// A string whose text needs no unescaping.
    Plain,
    Escaped,
    Array,
    Object,
}

impl<'a> Doc<'a> {
    /// Parses one JSON text.
    ///
    /// # Errors
    /// [`JsonError`], but never [`JsonError::NotAnInteger`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, JsonError> {
        parse::document(bytes)
    }

    /// The outermost value.
    pub fn root(&self) -> Node<'_> {
        Node { doc: self, index: 0 }
    }
}

/// A value within a [`Doc`].
#[derive(Clone, Copy)]
pub struct Node<'d> {
    doc: &'d Doc<'d>,
    index: u32,
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.raw().chars().take(80).collect::<String>())
    }
}

impl<'d> Node<'d> {
    fn token(self) -> Token {
        self.doc.tape[self.index as usize]
    }

    fn raw(self) -> &'d str {
        let token = self.token();
        &self.doc.text[token.start as usize..token.end as usize]
    }

    /// Whether this is an object.
    pub fn is_object(self) -> bool {
        self.token().kind == Kind::Object
    }

    /// Whether this is an array.
    pub fn is_array(self) -> bool {
        self.token().kind == Kind::Array
    }

    /// Whether this is `null`.
    pub fn is_null(self) -> bool {
        self.token().kind == Kind::Null
    }

    /// The text of a string.
    pub fn as_str(self) -> Option<Cow<'d, str>> {
        match self.token().kind {
            Kind::Plain => Some(Cow::Borrowed(self.raw())),
            Kind::Escaped => Some(Cow::Owned(parse::unescape(self.raw()))),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub fn as_bool(self) -> Option<bool> {
        match self.token().kind {
            Kind::True => Some(true),
            Kind::False => Some(false),
            _ => None,
        }
    }

    /// An integer from 0 to 2^64 − 1.
    pub fn as_u64(self) -> Option<u64> {
        self.integer_text()?.parse().ok()
    }

    /// An integer from −2^63 to 2^63 − 1.
    pub fn as_i64(self) -> Option<i64> {
        self.integer_text()?.parse().ok()
    }

    /// The digits of a number without fraction and exponent, `-0` as `0`.
    pub(crate) fn integer_text(self) -> Option<&'d str> {
        if self.token().kind != Kind::Number {
            return None;
        }
        match self.raw() {
            "-0" => Some("0"),
            raw if raw.contains(['.', 'e', 'E']) => None,
            raw => Some(raw),
        }
    }

    /// The value under `key` of an object; `None` when there is none or this is not an object. Takes time linear in
    /// the number of entries.
    pub fn get(self, key: &str) -> Option<Node<'d>> {
        self.entries().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The entries of an object in the order of the text; nothing when this is not an object.
    pub fn entries(self) -> impl Iterator<Item = (Cow<'d, str>, Node<'d>)> {
        let mut children = self.children(Kind::Object);
        std::iter::from_fn(move || {
            let key = children.next()?.as_str()?;
            Some((key, children.next()?))
        })
    }

    /// The items of an array; nothing when this is not an array.
    pub fn items(self) -> impl Iterator<Item = Node<'d>> {
        self.children(Kind::Array)
    }

    fn children(self, kind: Kind) -> impl Iterator<Item = Node<'d>> {
        let token = self.token();
        let end = if token.kind == kind { token.next } else { 0 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let child = (index < end).then_some(Node { doc: self.doc, index })?;
            index = child.token().next;
            Some(child)
        })
    }

    /// The owned form.
    ///
    /// # Errors
    /// [`JsonError::NotAnInteger`] when it contains another number.
    pub fn to_value(self) -> Result<Value, JsonError> {
        Ok(match self.token().kind {
            Kind::Null => Value::Null,
            Kind::True => Value::Bool(true),
            Kind::False => Value::Bool(false),
            Kind::Number => Value::Int(
                self.integer_text()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| self.not_integer())?,
            ),
            Kind::Plain | Kind::Escaped => Value::Str(self.as_str().unwrap_or_default().into_owned()),
            Kind::Array => Value::Array(self.items().map(Self::to_value).collect::<Result<_, _>>()?),
            Kind::Object => Value::Object(
                self.entries()
                    .map(|(key, value)| Ok((key.into_owned(), value.to_value()?)))
                    .collect::<Result<BTreeMap<_, _>, JsonError>>()?,
            ),
        })
    }

    pub(crate) fn not_integer(self) -> JsonError {
        JsonError::NotAnInteger {
            text: self.raw().chars().take(64).collect(),
        }
    }

    /// For the canonical encoder: the bytes of an object or array that is known to stand in its canonical form already.
    pub(crate) fn canonical_bytes(self) -> Option<&'d [u8]> {
        (self.doc.canonical && (self.is_object() || self.is_array())).then(|| self.raw().as_bytes())
    }

    /// For the canonical encoder: the raw text of a string that needs no escape of any kind.
    pub(crate) fn plain_text(self) -> Option<&'d str> {
        (self.token().kind == Kind::Plain).then(|| self.raw())
    }
}
