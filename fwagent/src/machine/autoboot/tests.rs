#![allow(clippy::unwrap_used)]
use super::*;

/// The example of the documentation.
const EXAMPLE: &str = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn partitions() -> Partitions {
    Partitions(vec![(slot("A"), 2), (slot("B"), 3)])
}

fn parse(text: &str) -> Result<Autoboot, AutobootError> {
    Autoboot::parse(text.as_bytes())
}

#[test]
fn the_documented_example_is_read_and_written() {
    let file = parse(EXAMPLE).unwrap();
    assert_eq!((file.partition, file.trial, file.a_b), (2, 3, true));
    assert_eq!(file.render(None).unwrap(), EXAMPLE.as_bytes());
    let swapped = file.confirmed(&partitions(), &slot("B")).unwrap();
    let expected = EXAMPLE.replace('2', "x").replace('3', "2").replace('x', "3");
    assert_eq!(swapped.render(Some(EXAMPLE.len())).unwrap(), expected.as_bytes());
    assert_eq!(swapped.confirmed(&partitions(), &slot("B")).unwrap(), swapped);
}

#[test]
fn what_the_agent_does_not_know_is_kept_under_its_filter() {
    let text =
        "# ours\nboot_partition=2\r\nother=1\n\n[tryboot]\nboot_partition=3\nwatch=9\n[none]\nboot_partition=7\n";
    let file = parse(text).unwrap();
    assert_eq!((file.partition, file.trial, file.a_b), (2, 3, false));
    let written = file.render(Some(200)).unwrap();
    assert_eq!(written.len(), 200);
    assert_eq!(Autoboot::parse(&written).unwrap(), file);
    let written = String::from_utf8(written).unwrap();
    for part in [
        "# ours\nother=1\n",
        "[tryboot]\nwatch=9\n",
        "[none]\nboot_partition=7\n",
    ] {
        assert!(written.contains(part), "{part}: {written}");
    }
    // Only in the one boot with the flag does it say something else.
    assert_eq!(parse("boot_partition=2\n").unwrap().trial, 2);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for (text, line) in [
        ("boot_partition=2\n[pi4]\nboot_partition=3", 2),
        ("boot_partition=2\n[all]\nboot_partition=3", 3),
        ("[tryboot]\nboot_partition=2\n[all]\nboot_partition=3", 4),
        ("boot_partition=2\nboot_partition", 2),
        ("boot_partition= 2", 1),
        ("boot_partition=+2", 1),
        ("boot_partition=256", 1),
        ("boot_partition=", 1),
        ("boot_partition=2\ntryboot_a_b=yes", 2),
        ("boot_partition=2\n[all", 2),
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            matches!(error, AutobootError::Line { line: found, .. } if found == line),
            "{text}: {error}"
        );
    }
    for text in [
        "",
        "[tryboot]\nboot_partition=3",
        "[none]\nboot_partition=3",
        "tryboot_a_b=1",
    ] {
        assert_eq!(parse(text), Err(AutobootError::NoPartition));
    }
    assert_eq!(Autoboot::parse(b"boot_partition=2\0"), Err(AutobootError::NoText));
    assert_eq!(
        Autoboot::parse("boot_partition=2\n# é".as_bytes()),
        Err(AutobootError::NoText)
    );
    let long = format!("{EXAMPLE}#{}", "x".repeat(AUTOBOOT_BYTES - EXAMPLE.len()));
    assert!(matches!(parse(&long), Err(AutobootError::Long { length: 513 })));
    assert!(parse(&long[..512]).is_ok());
}

#[test]
fn a_file_never_grows_where_it_lies() {
    let mut file = parse(EXAMPLE).unwrap();
    file.trial = 12;
    let length = EXAMPLE.len();
    assert_eq!(
        file.render(Some(length)),
        Err(AutobootError::Short {
            needed: length + 1,
            length
        })
    );
    assert_eq!(file.render(Some(length + 1)).unwrap().len(), length + 1);
}

#[test]
fn slots_are_armed_confirmed_and_disabled() {
    let (slots, file) = (partitions(), Autoboot::new(2));
    let armed = file.armed(&slots, &slot("B"), 1).unwrap();
    assert_eq!((armed.partition, armed.trial), (2, 3));
    assert_eq!(armed.disabled(&slots, &slot("B")).unwrap(), file);
    assert_eq!(
        file.armed(&slots, &slot("B"), 2),
        Err(AutobootError::Attempts { attempts: 2 })
    );
    for refused in [file.armed(&slots, &slot("A"), 1), file.disabled(&slots, &slot("A"))] {
        let (slot, partition) = (slot("A"), 2);
        assert_eq!(refused, Err(AutobootError::LastSlot { slot, partition }));
    }
    for refused in [
        file.armed(&slots, &slot("C"), 1),
        file.confirmed(&slots, &slot("C")),
        file.disabled(&slots, &slot("C")),
    ] {
        assert_eq!(refused, Err(AutobootError::NotConfigured { slot: slot("C") }));
    }
    // A partition that is no slot's, such as a rescue system, may be the other one.
    let rescue = parse("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=9\n").unwrap();
    assert_eq!(rescue.disabled(&slots, &slot("B")).unwrap(), rescue);
}

#[test]
fn the_attempt_is_used_up_in_another_boot_than_the_one_that_asked() {
    let (slots, file) = (partitions(), parse(EXAMPLE).unwrap());
    let left = |file: &Autoboot, running: &str, attempt: Option<&Attempt>, boot: &str| {
        let view = file.view(&slots, &slot(running), attempt, boot);
        assert_eq!(view.booted, Some(slot(running)));
        view.armed.get(&slot("B")).copied()
    };
    let mut attempt = Attempt {
        slot: slot("B"),
        spent: None,
    };
    assert_eq!(left(&file, "A", None, "x"), None, "armed by somebody else");
    assert_eq!(left(&file, "A", Some(&attempt), "x"), Some(1));
    attempt.spent = Some("x".to_owned());
    assert_eq!(left(&file, "A", Some(&attempt), "x"), Some(1));
    assert_eq!(left(&file, "A", Some(&attempt), "y"), Some(0));
    assert_eq!(left(&file, "B", Some(&attempt), "y"), None);
    let disabled = file.disabled(&slots, &slot("B")).unwrap();
    assert_eq!(left(&disabled, "A", Some(&attempt), "x"), None);
    for attempt in [
        attempt,
        Attempt {
            slot: slot("B"),
            spent: None,
        },
    ] {
        assert_eq!(Attempt::decode(&attempt.encode()), Some(attempt));
    }
    for bytes in [
        &b""[..],
        b"armed",
        b"armed a b",
        b"spent a",
        b"spent a ",
        b"spent a x y",
        b"other a",
        b"\xff",
    ] {
        assert_eq!(Attempt::decode(bytes), None);
    }
    assert_eq!(boot_id("0f-1\n"), Some("0f-1".to_owned()));
    assert_eq!(boot_id(&"x".repeat(65)), None);
}
