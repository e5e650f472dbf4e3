#![allow(clippy::unwrap_used)]

use super::*;
use crate::machine::uboot_env::{ByteOrder, Format, Layout};

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn slots() -> [SlotId; 2] {
    [slot("A"), slot("B")]
}

fn words(first: &str, second: &str) -> BTreeMap<String, String> {
    [("A".to_owned(), first.to_owned()), ("B".to_owned(), second.to_owned())].into()
}

/// Mender's variables.
fn mender() -> SlotNames {
    let variables = vec![
        ("mender_boot_part".to_owned(), words("2", "11")),
        ("mender_boot_part_hex".to_owned(), words("2", "b")),
    ];
    SlotNames::new(&slots(), variables, None).unwrap()
}

fn plain(fallback: bool) -> SlotNames {
    let variables = vec![("fwagent_slot".to_owned(), words("A", "B"))];
    SlotNames::new(&slots(), variables, fallback.then(|| "fwagent_fallback".to_owned())).unwrap()
}

fn counted(names: SlotNames, file: Option<CounterFile>) -> Counted {
    let mut data = b"bootdelay=2\0".to_vec();
    data.resize(300, 0);
    let image = [&crc32fast::hash(&data).to_le_bytes()[..], &data].concat();
    let format = Format {
        layout: Layout::Single,
        byte_order: ByteOrder::Little,
    };
    Counted {
        environment: Environment::decode(&image, format).unwrap().0,
        file,
        names: Arc::new(names),
    }
}

fn value<'a>(vars: &'a Counted, name: &str) -> &'a str {
    std::str::from_utf8(vars.environment.get(name).unwrap_or_default()).unwrap()
}

#[test]
fn menders_variables_change_together() {
    let mut vars = counted(mender(), None);
    assert_eq!(vars.primary(&slots()), Ok(None));
    vars.create(&slots(), &slot("A"), 3).unwrap();
    assert_eq!(vars.primary(&slots()), Ok(Some(slot("A"))));
    vars.arm(&slot("B"), 1).unwrap();
    let read = [
        "mender_boot_part",
        "mender_boot_part_hex",
        "upgrade_available",
        "bootcount",
        "bootlimit",
    ];
    assert_eq!(read.map(|name| value(&vars, name)), ["11", "b", "1", "0", "1"]);
    assert_eq!(vars.view(&slots(), &slot("A")).unwrap().armed, [(slot("B"), 1)].into());
    // On trial, nothing else is armed.
    assert!(vars.view(&slots(), &slot("B")).unwrap().armed.is_empty());
    // Mender's altbootcmd names the other slot and ends the trial.
    let mut ended = vars.clone();
    for (name, text) in [
        ("mender_boot_part", "2"),
        ("mender_boot_part_hex", "2"),
        ("upgrade_available", "0"),
    ] {
        ended.environment.set(name, text).unwrap();
    }
    assert!(ended.view(&slots(), &slot("A")).unwrap().armed.is_empty());
    vars.confirm(&slot("B"), 1).unwrap();
    assert_eq!(read.map(|name| value(&vars, name)), ["11", "b", "0", "0", "1"]);
}

#[test]
fn attempts_are_decimal_and_end_beyond_the_limit() {
    let mut vars = counted(plain(false), None);
    vars.create(&slots(), &slot("A"), 3).unwrap();
    vars.arm(&slot("B"), 12).unwrap();
    for (count, left, next) in [
        ("0", 12, "B"),
        ("10", 2, "B"),
        ("11", 1, "B"),
        ("12", 0, "A"),
        ("13", 0, "A"),
    ] {
        vars.environment.set("bootcount", count).unwrap();
        let armed = vars.view(&slots(), &slot("A")).unwrap().armed;
        assert_eq!(armed, [(slot("B"), left)].into());
        assert_eq!(vars.primary(&slots()), Ok(Some(slot(next))), "{count}");
    }
    // What U-Boot takes for no limit.
    vars.environment.set("bootlimit", "0").unwrap();
    assert_eq!(vars.primary(&slots()), Ok(Some(slot("B"))));
}

#[test]
fn disabling_names_the_other_slot_and_ends_the_count() {
    for named in ["A", "B"] {
        let mut vars = counted(plain(true), None);
        vars.create(&slots(), &slot("A"), 3).unwrap();
        vars.arm(&slot(named), 3).unwrap();
        vars.disable(&slot("B")).unwrap();
        let read = ["fwagent_slot", "fwagent_fallback", "upgrade_available", "bootcount"];
        assert_eq!(read.map(|name| value(&vars, name)), ["A", "A", "0", "0"]);
    }
}

#[test]
fn only_the_slot_that_is_named_is_given_its_boots_back() {
    let mut vars = counted(plain(false), None);
    vars.create(&slots(), &slot("A"), 3).unwrap();
    vars.arm(&slot("B"), 3).unwrap();
    vars.environment.set("bootcount", "4").unwrap();
    let trial = vars.clone();
    vars.replenish(&slot("A"), 3).unwrap();
    assert_eq!(vars, trial, "the trial of B goes on, and may be over");
    vars.replenish(&slot("B"), 3).unwrap();
    assert_eq!(
        (value(&vars, "upgrade_available"), value(&vars, "bootcount")),
        ("0", "0")
    );
}

#[test]
fn a_counter_in_a_file_is_used_instead_of_the_variables() {
    let mut vars = counted(plain(true), Some(CounterFile::decode(b"")));
    vars.create(&slots(), &slot("A"), 3).unwrap();
    assert_eq!(vars.file.map(CounterFile::encode), Some([0xbd, 1, 0, 0]));
    vars.arm(&slot("B"), 3).unwrap();
    assert_eq!(vars.file.map(CounterFile::encode), Some([0xbd, 1, 0, 1]));
    assert_eq!(
        (value(&vars, "bootlimit"), value(&vars, "upgrade_available")),
        ("3", "")
    );
    vars.file = Some(CounterFile::decode(&[0xbd, 1, 2, 1]));
    assert_eq!(vars.view(&slots(), &slot("A")).unwrap().armed, [(slot("B"), 1)].into());
    vars.file = Some(CounterFile::decode(&[0xbd, 1, 9, 1]));
    assert_eq!(vars.primary(&slots()), Ok(Some(slot("A"))));
    let most = MAX_ATTEMPTS;
    let error = SlotVarsError::Attempts { attempts: 255, most };
    assert_eq!(vars.arm(&slot("B"), 255), Err(error));
    for (bytes, expected) in [
        (&[0xbd, 1, 7, 1][..], (7, true)),
        (&[0xbd, 1, 7, 0], (0, false)),
        (&[0xbd, 1, 7, 1, 9], (7, true)),
        (&[0xbd, 2, 7, 0], (0, true)),
        (&[0xbc, 1, 7, 0], (0, true)),
        (&[0xbd, 1, 7], (0, true)),
    ] {
        let read = CounterFile::decode(bytes);
        assert_eq!((read.count, read.upgrade_available), expected, "{bytes:?}");
    }
}

#[test]
fn what_says_nothing_is_refused() {
    let mut vars = counted(mender(), None);
    vars.create(&slots(), &slot("A"), 3).unwrap();
    let good = vars.clone();
    for (name, text, expected) in [
        ("mender_boot_part", "3", "\"3\""),
        (
            "mender_boot_part_hex",
            "b",
            "variable mender_boot_part names slot A and variable mender_boot_part_hex names slot B",
        ),
        ("upgrade_available", "yes", "upgrade_available is \"yes\""),
        ("upgrade_available", "", "upgrade_available is \"\""),
    ] {
        let mut vars = good.clone();
        vars.environment.set(name, text).unwrap();
        let error = vars.view(&slots(), &slot("A")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut vars = good;
    vars.arm(&slot("B"), 3).unwrap();
    for (name, text) in [
        ("bootcount", "0x1"),
        ("bootcount", "-1"),
        ("bootlimit", "3 "),
        ("bootlimit", "99999999999"),
    ] {
        let mut vars = vars.clone();
        vars.environment.set(name, text).unwrap();
        assert!(vars.view(&slots(), &slot("A")).is_err(), "{name}={text}");
    }
    let unset = counted(plain(false), None);
    let error = unset.view(&slots(), &slot("A")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("fwagent_slot, which names the slot to boot, is not set"),
        "{error}"
    );
}

#[test]
fn names_that_do_not_tell_two_slots_apart_are_refused() {
    let one = |name: &str, values| vec![(name.to_owned(), values)];
    for (slots, variables, fallback, expected) in [
        (&slots()[..1], one("s", words("A", "B")), None, "tells two slots apart"),
        (&slots()[..], vec![], None, "no variable"),
        (&slots(), one("s", words("1", "1")), None, "two values"),
        (&slots(), one("s", words("1", "")), None, "for slot B"),
        (&slots(), one("s", words("1", "a b")), None, "for slot B"),
        (
            &slots(),
            one("s", BTreeMap::from([("A".to_owned(), "1".to_owned())])),
            None,
            "for slot B",
        ),
        (&slots(), one("bootcount", words("1", "2")), None, "another use"),
        (&slots(), one("s", words("1", "2")), Some("s"), "another use"),
        (&slots(), one("a=b", words("1", "2")), None, "no name of a variable"),
        (
            &slots(),
            vec![("s".to_owned(), words("1", "2")), ("t".to_owned(), words("1", "2"))],
            Some("f"),
            "one variable names the slot",
        ),
    ] {
        let error = SlotNames::new(slots, variables, fallback.map(str::to_owned)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
