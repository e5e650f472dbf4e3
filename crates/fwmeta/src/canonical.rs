//! Canonical JSON (OLPC), the encoding that is signed and from which key ids are computed (TUF 1.0.34 §4.1.1).
//!
//! Keys sorted by code point, no white space, integers only, strings as raw UTF-8 with only `"` and `\` escaped. The
//! result is not always JSON (control characters stay raw), so it is never stored: files are written as ordinary JSON and
//! brought to this form for each check.

use std::borrow::Cow;

use crate::json::{JsonError, Node, Value};

/// The canonical form of a value.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(&mut out, value);
    out
}

/// The canonical form of a value within a received document: the received bytes themselves if they have it already, as
/// large metadata files mostly do.
///
/// # Errors
/// [`JsonError::NotAnInteger`] when it contains a number with fraction or exponent.
pub fn encode_node(node: Node<'_>) -> Result<Cow<'_, [u8]>, JsonError> {
    if let Some(bytes) = node.canonical_bytes() {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut out = Vec::new();
    write_node(&mut out, node)?;
    Ok(Cow::Owned(out))
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Str(text) => write_string(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                separate(out, index);
                write_value(out, item);
            }
            out.push(b']');
        }
        Value::Object(entries) => {
            out.push(b'{');
            for (index, (key, value)) in entries.iter().enumerate() {
                separate(out, index);
                write_string(out, key);
                out.push(b':');
                write_value(out, value);
            }
            out.push(b'}');
        }
    }
}

fn write_node(out: &mut Vec<u8>, node: Node<'_>) -> Result<(), JsonError> {
    if let Some(text) = node.plain_text() {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else if let Some(text) = node.as_str() {
        write_string(out, &text);
    } else if node.is_object() {
        out.push(b'{');
        let mut entries: Vec<_> = node.entries().collect();
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        for (index, (key, value)) in entries.iter().enumerate() {
            separate(out, index);
            write_string(out, key);
            out.push(b':');
            write_node(out, *value)?;
        }
        out.push(b'}');
    } else if node.is_array() {
        out.push(b'[');
        for (index, item) in node.items().enumerate() {
            separate(out, index);
            write_node(out, item)?;
        }
        out.push(b']');
    } else if node.is_null() {
        out.extend_from_slice(b"null");
    } else if let Some(value) = node.as_bool() {
        out.extend_from_slice(if value { b"true" } else { b"false" });
    } else {
        out.extend_from_slice(node.integer_text().ok_or_else(|| node.not_integer())?.as_bytes());
    }
    Ok(())
}

fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::json::Doc;

    fn canonical(text: &str) -> Result<String, JsonError> {
        let doc = Doc::parse(text.as_bytes()).unwrap();
        let bytes = encode_node(doc.root())?;
        assert_eq!(*bytes, encode(&doc.root().to_value()?), "both encoders agree");
        Ok(String::from_utf8(bytes.into_owned()).unwrap())
    }

    #[test]
    fn sorted_compact_and_hardly_escaped() {
        assert_eq!(
            canonical(" { \"b\" : [1, -0, {}], \"a\\u0062\":\"\\n\\u00e9\\\"\\\\\\/\", \"aa\": null, \"\": true } ")
                .unwrap(),
            "{\"\":true,\"aa\":null,\"ab\":\"\né\\\"\\\\/\",\"b\":[1,0,{}]}"
        );
    }

    #[test]
    fn order_is_by_code_point_not_by_utf16_unit() {
        // U+FF61 sorts after U+10000 as UTF-16 and before it as code points.
        assert_eq!(canonical(r#"{"\ud800\udc00":1,"｡":2}"#).unwrap(), "{\"｡\":2,\"𐀀\":1}");
    }

    #[test]
    fn canonical_bytes_are_taken_as_they_are_and_no_others() {
        for (text, taken) in [
            (r#" {"a":[1,-2,{"b":"é\"\\"}],"c":null} "#, true),
            (r#"{"a": 1}"#, false),
            (r#"{"b":1,"a":2}"#, false),
            (r#"{"a":"\/"}"#, false),
            (r#"{"a":"\u0041"}"#, false),
            (r#"{"a":-0}"#, false),
            (r#"{"a\n":0}"#, false),
        ] {
            let doc = Doc::parse(text.as_bytes()).unwrap();
            let bytes = encode_node(doc.root()).unwrap();
            assert_eq!(matches!(bytes, Cow::Borrowed(_)), taken, "{text}");
            assert_eq!(*bytes, encode(&doc.root().to_value().unwrap()), "{text}");
        }
    }

    #[test]
    fn only_integers() {
        for text in ["1.0", "1e3", "[0.5]", "{\"a\":-1E2}"] {
            assert!(matches!(canonical(text), Err(JsonError::NotAnInteger { .. })), "{text}");
        }
        assert_eq!(canonical("-12").unwrap(), "-12");
    }
}
