//! The owned form of JSON, for building and writing.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A JSON value without fractions: what canonical JSON can express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer; wide enough for every `u64` and `i64`.
    Int(i128),
    /// A string.
    Str(String),
    /// An array.
    Array(Vec<Value>),
    /// An object, its keys sorted.
    Object(BTreeMap<String, Value>),
}

/// An object with these entries; the last of two equal keys wins.
pub fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Object(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

impl Value {
    /// The value under `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_object()?.get(key)
    }

    /// The entries of an object.
    pub fn as_object(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Value::Object(entries) => Some(entries),
            _ => None,
        }
    }

    /// The items of an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An integer from 0 to 2^64 − 1.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Compact JSON, keys sorted: the same value gives the same bytes.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, None);
        out
    }

    /// JSON with two spaces of indentation a level, keys sorted, and a final newline.
    pub fn to_json_pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(0));
        out.push('\n');
        out
    }

    fn write(&self, out: &mut String, indent: Option<usize>) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(number) => {
                // Writing to a `String` cannot fail.
                let _ = write!(out, "{number}");
            }
            Value::Str(text) => write_string(out, text),
            Value::Array(items) => write_list(out, indent, ['[', ']'], items, |out, item, indent| {
                item.write(out, indent)
            }),
            Value::Object(entries) => write_list(out, indent, ['{', '}'], entries, |out, (key, value), indent| {
                write_string(out, key);
                out.push_str(if indent.is_some() { ": " } else { ":" });
                value.write(out, indent);
            }),
        }
    }
}

fn write_list<I: IntoIterator>(
    out: &mut String,
    indent: Option<usize>,
    [open, close]: [char; 2],
    items: I,
    write_item: impl Fn(&mut String, I::Item, Option<usize>),
) {
    out.push(open);
    let inner = indent.map(|level| level + 1);
    let mut empty = true;
    for item in items {
        if !empty {
            out.push(',');
        }
        empty = false;
        new_line(out, inner);
        write_item(out, item, inner);
    }
    if !empty {
        new_line(out, indent);
    }
    out.push(close);
}

fn new_line(out: &mut String, indent: Option<usize>) {
    if let Some(level) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", level));
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // DEL and the C1 controls would reach terminals raw; the escape means the same to every reader.
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

macro_rules! from {
    ($($type:ty => |$value:ident| $convert:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self { $convert }
        }
    )*};
}

from! {
    bool => |value| Value::Bool(value);
    i64 => |value| Value::Int(value.into());
    u64 => |value| Value::Int(value.into());
    u32 => |value| Value::Int(value.into());
    &str => |value| Value::Str(value.to_owned());
    String => |value| Value::Str(value);
    &String => |value| Value::Str(value.clone());
    Vec<Value> => |value| Value::Array(value);
    BTreeMap<String, Value> => |value| Value::Object(value);
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}
