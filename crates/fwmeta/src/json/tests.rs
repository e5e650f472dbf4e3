#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn value(text: &str) -> Value {
    Doc::parse(text.as_bytes()).unwrap().root().to_value().unwrap()
}

fn refused(text: &[u8]) -> JsonError {
    Doc::parse(text).map(|_| ()).unwrap_err()
}

#[test]
fn reads_every_kind_of_value() {
    let doc = Doc::parse(
        br#" {"a":[1,-2,true,false,null,"x\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"],"b":{"c":18446744073709551615}} "#,
    )
    .unwrap();
    let items: Vec<_> = doc.root().get("a").unwrap().items().collect();
    assert_eq!(items.len(), 6);
    assert_eq!(items[0].as_u64(), Some(1));
    assert_eq!((items[1].as_i64(), items[1].as_u64()), (Some(-2), None));
    assert_eq!((items[2].as_bool(), items[3].as_bool()), (Some(true), Some(false)));
    assert!(items[4].is_null());
    assert_eq!(items[5].as_str().unwrap(), "xé😀\"\\/\u{8}\u{c}\n\r\t");
    assert_eq!(doc.root().get("b").unwrap().get("c").unwrap().as_u64(), Some(u64::MAX));
    assert!(doc.root().get("c").is_none());
    assert!(items[0].get("x").is_none());
    assert_eq!(items[0].items().count() + items[0].entries().count(), 0);
    assert_eq!(doc.root().items().count(), 0, "an object has no items");
}

#[test]
fn refuses_what_readers_disagree_on() {
    assert!(matches!(refused(br#"{"a":1,"a":1}"#), JsonError::DuplicateKey { key } if key == "a"));
    assert!(matches!(refused(br#"{"b":1,"a":{"x":0,"\u0078":1}}"#), JsonError::DuplicateKey { key } if key == "x"));
    assert!(matches!(refused(b"\"\xff\""), JsonError::NotUtf8 { offset: 1 }));
    for text in [
        "",
        " ",
        "{",
        "[",
        "[1,]",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\" 1}",
        "[1 2]",
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "-",
        "tru",
        "nul",
        "NaN",
        "Infinity",
        "\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"a\nb\"",
        "1 1",
        "[]]",
        "\u{feff}1",
        "'a'",
        "// c\n1",
    ] {
        assert!(matches!(refused(text.as_bytes()), JsonError::Syntax { .. }), "{text:?}");
    }
}

#[test]
fn bounds_depth_and_count() {
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert!(Doc::parse(nested(limits::JSON_DEPTH).as_bytes()).is_ok());
    assert!(matches!(
        refused(nested(limits::JSON_DEPTH + 1).as_bytes()),
        JsonError::TooDeep { .. }
    ));
    assert!(matches!(
        refused("[".repeat(1_000_000).as_bytes()),
        JsonError::TooDeep { .. }
    ));
    let many = format!("[{}0]", "0,".repeat(limits::JSON_VALUES));
    assert!(matches!(refused(many.as_bytes()), JsonError::TooManyValues));
}

#[test]
fn numbers_of_any_size_are_syntax_but_only_integers_are_values() {
    let huge = "9".repeat(10_000);
    let doc = Doc::parse(huge.as_bytes()).unwrap();
    assert_eq!(doc.root().as_u64(), None);
    assert!(matches!(doc.root().to_value(), Err(JsonError::NotAnInteger { text }) if text.len() == 64));
    assert!(Doc::parse(b"1.5e300").unwrap().root().as_i64().is_none());
    assert_eq!(value("-0"), Value::Int(0));
}

#[test]
fn pretty_and_compact_forms() {
    let sample = object([
        ("b", Value::Array(vec![1_u64.into(), Value::Null])),
        ("a", object([])),
        ("c", "x\u{7f}\u{1}".into()),
    ]);
    assert_eq!(sample.to_json(), r#"{"a":{},"b":[1,null],"c":"x\u007f\u0001"}"#);
    assert_eq!(
        sample.to_json_pretty(),
        "{\n  \"a\": {},\n  \"b\": [\n    1,\n    null\n  ],\n  \"c\": \"x\\u007f\\u0001\"\n}\n"
    );
    assert_eq!(value(&sample.to_json_pretty()), sample);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<String>().prop_map(Value::Str),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..8).prop_map(Value::Object),
        ]
    })
}

proptest! {
    #[test]
    fn written_values_read_back(value in any_value()) {
        for text in [value.to_json(), value.to_json_pretty()] {
            prop_assert_eq!(&Doc::parse(text.as_bytes()).unwrap().root().to_value().unwrap(), &value);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(doc) = Doc::parse(&bytes) {
            let _ = doc.root().to_value();
        }
    }

    #[test]
    fn json_like_text_never_panics(text in "[\\[\\]{}:,\"\\\\u0-9a-fdDtrueflsn .eE+-]{0,60}") {
        if let Ok(doc) = Doc::parse(text.as_bytes()) {
            let _ = crate::canonical::encode_node(doc.root());
        }
    }
}
