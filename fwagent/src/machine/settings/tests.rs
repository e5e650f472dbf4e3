#![allow(clippy::unwrap_used)]
use fwmeta::json::{Doc, Value, object};
use fwmeta::manifest::{Migration, Settings};
use fwmeta::target::TargetPath;
use fwmeta::time::UtcSeconds;

use super::document::{self, Form};
use super::generation::{Generation, GenerationId};
use super::key::{Class, Classes, Key};
use super::migrate::{AnswerError, Direction, MigrationStep, Returned, back, carry_back, way};
use super::render::{Format, RenderError, render};
use super::values::{Edits, Values, ValuesError};

fn json(text: &str) -> Value {
    Doc::parse(text.as_bytes()).unwrap().root().to_value().unwrap()
}

fn values(text: &str) -> Values {
    Values::from_tree(&json(text)).unwrap()
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

#[test]
fn keys_are_places_in_a_tree() {
    for good in ["a", "network.hostname", "a-b_C.9", &["x"; 8].join("."), &"k".repeat(64)] {
        assert_eq!(key(good).as_str(), good);
    }
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "ä",
        "a/b",
        &["x"; 9].join("."),
        &"k".repeat(65),
    ] {
        assert!(Key::parse(bad).is_err(), "{bad}");
    }
    assert!(key("a.b").is_within(&key("a")) && key("a").is_within(&key("a")));
    assert!(!key("ab").is_within(&key("a")) && !key("a").is_within(&key("a.b")));
    let above: Vec<_> = key("a.b.c").above().map(|key| key.to_string()).collect();
    assert_eq!(above, ["a.b", "a"]);
}

#[test]
fn a_class_is_a_matter_of_the_key() {
    let classes = Classes::default();
    assert_eq!(classes.of(&key("access.users.admin")), Class::Access);
    assert_eq!(classes.of(&key("secret")), Class::Secret);
    assert_eq!(classes.of(&key("accessory.x")), Class::Ordinary);
    let all = values(r#"{"access":{"admin":"hash"},"secret":{"psk":"x"},"net":{"mtu":1}}"#);
    assert_eq!(all.ordinary(&classes), values(r#"{"net":{"mtu":1}}"#));
    assert_eq!(all.ordinary(&classes).joined(&all.protected(&classes)), Ok(all));
}

#[test]
fn trees_are_flat_maps_and_back() {
    let tree = r#"{"a":{"b":[1,{"c":null}],"d":"x"},"a-b":true,"e":{}}"#;
    let read = values(tree);
    assert_eq!(read.len(), 3, "an empty object is nothing");
    assert_eq!(read.to_tree(), json(r#"{"a":{"b":[1,{"c":null}],"d":"x"},"a-b":true}"#));
    assert_eq!(read.get(&key("a")), Some(json(r#"{"b":[1,{"c":null}],"d":"x"}"#)));
    assert_eq!(read.get(&key("a.d")), Some("x".into()));
    assert_eq!(read.get(&key("a.x")), None);
    for (bad, expected) in [
        ("[]", "NotAnObject"),
        (r#"{"a":null}"#, "Null"),
        (r#"{"a b":1}"#, "Key"),
        (r#"{"a":[[[[[[[[[1]]]]]]]]]}"#, "TooDeep"),
    ] {
        let error = Values::from_tree(&json(bad)).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{bad}: {error:?}");
    }
}

#[test]
fn settings_are_bounded() {
    let many = |count: usize| {
        let entries = (0..count).map(|n| (format!("k{n}"), Value::from(1_u64)));
        Values::from_tree(&Value::Object(entries.collect()))
    };
    assert!(many(4096).is_ok());
    assert_eq!(many(4097), Err(ValuesError::TooMany { count: 4097 }));
    let long = |bytes: usize| Values::from_tree(&object([("k", "x".repeat(bytes).into())]));
    assert!(long(1024 * 1024 - 8).is_ok());
    assert!(matches!(long(1024 * 1024), Err(ValuesError::TooLarge { .. })));
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let before = values(r#"{"net":{"host":"a","mtu":1500},"x":1}"#);
    let edit = |patch: &str| before.edited(&Edits::from_patch(&json(patch)).unwrap());
    assert_eq!(
        edit(r#"{"net":{"host":"b","mtu":null,"dns":["::1"]}}"#),
        Ok(values(r#"{"net":{"host":"b","dns":["::1"]},"x":1}"#))
    );
    assert_eq!(edit(r#"{"net":null}"#), Ok(values(r#"{"x":1}"#)));
    assert_eq!(
        edit(r#"{"net":7}"#),
        Ok(values(r#"{"net":7,"x":1}"#)),
        "a value takes the place of a tree"
    );
    let refused = edit(r#"{"net":{"host":"b"},"x":{"y":1}}"#);
    assert!(matches!(refused, Err(ValuesError::BelowValue { .. })));
    let mut replace = Edits::default();
    replace.set(key("net"), &json(r#"{"host":"c"}"#)).unwrap();
    assert_eq!(before.edited(&replace), Ok(values(r#"{"net":{"host":"c"},"x":1}"#)));
}

#[test]
fn the_difference_of_two_is_an_edit_that_makes_one_of_the_other() {
    let states = [
        "{}",
        r#"{"a":1}"#,
        r#"{"a":{"b":1,"c":"x"},"d":[1]}"#,
        r#"{"a":{"b":2},"d":{"e":false}}"#,
        r#"{"a-b":1,"a":{"b":{"c":{"d":1}}}}"#,
    ];
    for from in states.map(values) {
        for to in states.map(values) {
            assert_eq!(from.edited(&from.edits_to(&to)), Ok(to.clone()));
        }
        assert!(from.edits_to(&from).is_empty());
    }
    let patch = values(r#"{"a":1,"b":2}"#).edits_to(&values(r#"{"b":3}"#)).to_patch();
    assert_eq!(patch, json(r#"{"a":null,"b":3}"#));
}

#[test]
fn a_generation_is_believed_by_its_digest_only() {
    let made = Generation {
        number: 7,
        schema: 2,
        at: UtcSeconds(1_800_000_000),
        cause: "set net.host".to_owned(),
        values: values(r#"{"net":{"host":"\u0000\n"}}"#),
    };
    let (id, bytes) = made.encode();
    assert_eq!(Generation::decode(&id, &bytes), Some(made));
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(Generation::decode(&id, &damaged), None);
    }
    assert_eq!(Generation::decode(&GenerationId { number: 8, ..id }, &bytes), None);
}

fn migrations(schema: u64, steps: &[(u64, u64, bool)]) -> Settings {
    let migrations = steps.iter().map(|(from, to, reversible)| Migration {
        from: *from,
        to: *to,
        target: TargetPath::parse(&format!("p/{from}-{to}")).unwrap(),
        reversible: *reversible,
    });
    Settings {
        schema,
        migrations: migrations.collect(),
    }
}

#[test]
fn the_shortest_way_between_schemas() {
    let found = |from, settings: &Settings| {
        way(from, settings).map(|steps| {
            let steps = steps.iter().map(|step| step.with_program([0; 32]));
            steps
                .map(|step| (step.from, step.to, step.direction.word()))
                .collect::<Vec<_>>()
        })
    };
    let chain = migrations(4, &[(1, 2, true), (2, 3, true), (3, 4, false), (1, 3, true)]);
    assert_eq!(found(4, &chain).unwrap(), []);
    assert_eq!(found(1, &chain).unwrap(), [(1, 3, "up"), (3, 4, "up")]);
    assert_eq!(found(2, &chain).unwrap(), [(2, 3, "up"), (3, 4, "up")]);
    // An older release may be newer by its sequence: down.
    let down = migrations(1, &[(1, 2, true), (2, 3, true)]);
    assert_eq!(found(3, &down).unwrap(), [(3, 2, "down"), (2, 1, "down")]);
    let no_way = found(4, &down).unwrap_err().to_string();
    assert!(no_way.contains("schema 4") && no_way.contains("needs 1") && no_way.contains("1 to 2 and back"));
    assert!(found(2, &migrations(1, &[(1, 2, false)])).is_err(), "one way only");
    assert!(
        found(0, &migrations(1, &[]))
            .unwrap_err()
            .to_string()
            .contains("(none)")
    );
}

fn step(from: u64, to: u64, reversible: bool) -> MigrationStep {
    MigrationStep {
        from,
        to,
        direction: Direction::Up,
        reversible,
        program: [from as u8; 32],
    }
}

#[test]
fn what_a_program_reads_and_what_it_may_answer() {
    let taken = step(1, 2, true);
    assert_eq!(
        json(std::str::from_utf8(&taken.input(&values(r#"{"a":1}"#))).unwrap()),
        json(r#"{"from":1,"to":2,"direction":"up","settings":{"a":1}}"#)
    );
    let back = back(&[taken, step(2, 3, true)]).unwrap();
    assert_eq!((back[0].from, back[0].to, back[0].direction), (3, 2, Direction::Down));
    let classes = Classes::default();
    let output = |text: &str| MigrationStep::output(text.as_bytes(), &classes);
    assert_eq!(output(r#" {"a":1}"#), Ok(values(r#"{"a":1}"#)));
    assert!(matches!(
        output(r#"{"access":{"users":{"mallory":"x"}}}"#),
        Err(AnswerError::Protected { .. })
    ));
    assert!(matches!(output(r#"{"secret":1}"#), Err(AnswerError::Protected { .. })));
    assert!(matches!(output("{} {}"), Err(AnswerError::NotJson(_))));
    assert!(matches!(output(r#"{"a":1.5}"#), Err(AnswerError::NotJson(_))));
    assert!(matches!(output("7"), Err(AnswerError::Values(_))));
}

/// Schema 2 calls `host` of schema 1 `name.host` and knows `tag`, which schema 1 has no place for.
fn rename(step: &MigrationStep, input: &Values) -> Result<Values, String> {
    let (from, to) = match step.direction {
        Direction::Up => ("host", "name.host"),
        Direction::Down => ("name.host", "host"),
    };
    let mut edits = Edits::default();
    if let Some(host) = input.get(&key(from)) {
        edits.remove(key(from));
        edits.set(key(to), &host).unwrap();
    }
    if step.direction == Direction::Down {
        edits.remove(key("tag"));
    }
    input.edited(&edits).map_err(|error| error.to_string())
}

#[test]
fn edits_go_back_when_nothing_is_lost() {
    let run = |steps: Option<&[MigrationStep]>, edited: &str| {
        let fork = values(r#"{"name":{"host":"a"},"mtu":1500}"#);
        carry_back::<()>(&fork, &values(edited), steps, |step, values| Ok(rename(step, values))).unwrap()
    };
    let steps = [step(1, 2, true)];
    let Returned::Edits(edits) = run(Some(&steps), r#"{"name":{"host":"b"},"mtu":1500}"#) else {
        panic!("a rename loses nothing")
    };
    assert_eq!(edits.to_patch(), json(r#"{"host":"b"}"#));
    let orphaned = |returned, expected: &str| match returned {
        Returned::Orphaned { reason } => assert!(reason.contains(expected), "{reason}"),
        Returned::Edits(edits) => panic!("{edits:?}"),
    };
    orphaned(
        run(Some(&steps), r#"{"name":{"host":"a"},"mtu":1500,"tag":1}"#),
        "lose a part",
    );
    orphaned(run(Some(&[step(1, 2, false)]), r#"{"mtu":1}"#), "cannot be taken back");
    orphaned(run(None, r#"{"mtu":1}"#), "no migration");
    // Nothing was edited: whatever the way, there is nothing to lose.
    let same = r#"{"name":{"host":"a"},"mtu":1500}"#;
    assert_eq!(run(None, same), Returned::Edits(Edits::default()));
    // The same schema: as they are.
    assert_eq!(
        run(Some(&[]), r#"{"name":{"host":"a"}}"#),
        Returned::Edits(Edits::from_patch(&json(r#"{"mtu":null}"#)).unwrap())
    );
}

#[test]
fn documents_are_json_or_toml() {
    let toml = b"schema = 2\n[values.net]\nhost = \"a\"\nports = [1, 2]\n";
    let (schema, read) = document::whole(toml, Form::of_name("x.toml")).unwrap();
    assert_eq!((schema, &read), (2, &values(r#"{"net":{"host":"a","ports":[1,2]}}"#)));
    let text = object([("schema", 2_u64.into()), ("values", read.to_tree())]).to_json_pretty();
    assert_eq!(document::whole(text.as_bytes(), Form::Json), Ok((2, read)));
    for (bad, form) in [
        ("{}", Form::Json),
        (r#"{"schema":1,"values":{},"more":1}"#, Form::Json),
        (r#"{"schema":"1","values":{}}"#, Form::Json),
        ("schema = 1\nvalues = 1.5", Form::Toml),
        ("schema = 1\nvalues = { at = 2020-01-01 }", Form::Toml),
    ] {
        assert!(document::whole(bad.as_bytes(), form).is_err(), "{bad}");
    }
}

#[test]
fn files_for_the_device_s_own_software() {
    let all = values(r#"{"net":{"host-name":"it's","mtu":1500},"list":[1,"a",{"b":true}],"9":false}"#);
    assert_eq!(
        render(&all, Format::Env).unwrap(),
        "_9='false'\nLIST='[1,\"a\",{\"b\":true}]'\nNET_HOST_NAME='it'\\''s'\nNET_MTU='1500'\n"
    );
    let toml = render(&all, Format::Toml).unwrap();
    assert_eq!(document::tree(toml.as_bytes(), Form::Toml).unwrap(), all.to_tree());
    let written = render(&all, Format::Json).unwrap();
    assert_eq!(document::tree(written.as_bytes(), Form::Json).unwrap(), all.to_tree());
    assert!(matches!(
        render(&values(r#"{"a-b":1,"a_b":2}"#), Format::Env),
        Err(RenderError::SameName { .. })
    ));
    assert!(matches!(
        render(&values(r#"{"a":"x\ny"}"#), Format::Env),
        Err(RenderError::LineBreak { .. })
    ));
    assert!(render(&values(r#"{"a":[null]}"#), Format::Toml).is_err());
}
