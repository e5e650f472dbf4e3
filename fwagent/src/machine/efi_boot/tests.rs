#![allow(clippy::unwrap_used)]
use super::*;

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn option(description: &str, active: bool) -> LoadOption {
    LoadOption {
        active,
        description: description.to_owned(),
    }
}

/// What firmware holds: entries 1 and 3 are slots, 0 and 2 are not.
fn slots() -> Slots {
    let options = [(0, "UEFI OS"), (1, "Firmware A"), (2, "PXE"), (3, "Firmware B")];
    let options = options.map(|(number, text)| (BootNumber(number), option(text, true)));
    let configured = [
        (slot("A"), Entry::parse("Boot0001")),
        (slot("B"), Entry::parse("Firmware B")),
    ];
    Slots::find(&configured, &options.into())
}

fn boot(order: &[u16], next: Option<u16>) -> Boot {
    Boot {
        order: order.iter().copied().map(BootNumber).collect(),
        next: next.map(BootNumber),
    }
}

#[test]
fn names_of_variables_are_four_upper_case_digits() {
    assert_eq!(BootNumber::parse("Boot00FA"), Some(BootNumber(0xfa)));
    assert_eq!(BootNumber(0xfa).to_string(), "Boot00FA");
    for text in ["Boot00fa", "Boot1", "BootNext", "Boot00001", "boot0001", "Boot+001", ""] {
        assert_eq!(BootNumber::parse(text), None, "{text}");
    }
    assert_eq!(Entry::parse("Boot next"), Entry::Description("Boot next".to_owned()));
}

/// As efibootmgr made it: attributes, length of the paths, `Hi`, a path that is the end only, optional data.
#[test]
fn a_load_option_is_read_and_a_cut_one_is_refused() {
    let whole = b"\x01\0\0\0\x04\0H\0i\0\0\0\x7f\xff\x04\0xyz";
    assert_eq!(LoadOption::decode(whole), Ok(option("Hi", true)));
    assert_eq!(
        LoadOption::decode(b"\x08\0\0\0\0\0H\0\0\0"),
        Ok(option("H", false)),
        "hidden, without paths"
    );
    for length in 0..whole.len() - 3 {
        let part = match length {
            0..4 => "attributes",
            4..6 => "length of device paths",
            6..12 => "description",
            _ => "device paths",
        };
        assert_eq!(
            LoadOption::decode(&whole[..length]),
            Err(EfiError::Cut { part }),
            "{length}"
        );
    }
}

#[test]
fn lists_are_pairs_of_bytes() {
    let list = [BootNumber(3), BootNumber(0x1234)];
    assert_eq!(bytes(&list), b"\x03\0\x34\x12");
    assert_eq!(numbers("BootOrder", b"\x03\0\x34\x12").unwrap(), list);
    assert!(numbers("BootOrder", b"\x03\0\x34").is_err());
    assert!(number("BootNext", b"\x03\0\x34\x12").is_err() && number("BootNext", b"").is_err());
    assert_eq!(number("BootNext", b"\x03\0").unwrap(), BootNumber(3));
    assert_eq!(
        (text(b"a\0b\0\0\0c\0"), text(b"a\0b")),
        ("ab".to_owned(), "a".to_owned())
    );
}

#[test]
fn a_slot_has_one_load_option_of_its_own_or_is_refused() {
    let options: BTreeMap<BootNumber, LoadOption> = [
        (BootNumber(1), option("same", true)),
        (BootNumber(2), option("same", true)),
        (BootNumber(3), option("off", false)),
    ]
    .into();
    let find = |a: &str, b: &str| Slots::find(&[(slot("A"), Entry::parse(a)), (slot("B"), Entry::parse(b))], &options);
    let before = boot(&[1, 3], None);
    for (a, b, refused, expected) in [
        ("Boot0001", "Boot0009", "B", "slot B: there is no load option Boot0009"),
        (
            "Boot0001",
            "gone",
            "B",
            "slot B: there is no load option with the description \"gone\"",
        ),
        (
            "same",
            "off",
            "A",
            "slot A: Boot0001 and Boot0002 are both with the description \"same\"",
        ),
        ("Boot0003", "off", "B", "slots A and B are both Boot0003"),
        (
            "Boot0001",
            "Boot0003",
            "C",
            "slot C has no load option in the configuration",
        ),
    ] {
        let slots = find(a, b);
        for error in [
            before.disabled(&slots, &slot(refused)),
            before.armed(&slots, &slot(refused), 1),
            before.confirmed(&slots, &slot(refused)),
            before.replenished(&slots, &slot(refused)),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        // The other one goes on.
        let running = slot(if refused == "A" { "B" } else { "A" });
        assert!(before.view(&slots, &running, None).is_ok() && before.replenished(&slots, &running).is_ok());
    }
    let slots = find("Boot0001", "off");
    for refused in [
        before.armed(&slots, &slot("B"), 1),
        before.confirmed(&slots, &slot("B")),
        before.created(&slots, &slot("B")),
    ] {
        assert_eq!(refused.unwrap_err().to_string(), "slot B: Boot0003 is not active");
    }
    assert_eq!(before.disabled(&slots, &slot("B")).unwrap(), boot(&[1], None));
}

#[test]
fn one_attempt_by_boot_next() {
    let slots = slots();
    let armed = boot(&[0, 3, 1, 2], None).armed(&slots, &slot("B"), 1).unwrap();
    assert_eq!(
        armed,
        boot(&[0, 1, 2], Some(3)),
        "once, and what is no slot keeps its place"
    );
    assert_eq!(armed.armed(&slots, &slot("B"), 1).unwrap(), armed);
    assert_eq!(
        armed.view(&slots, &slot("A"), Some(BootNumber(1))).unwrap().armed,
        [(slot("B"), 1)].into()
    );
    assert_eq!(armed.disabled(&slots, &slot("B")).unwrap(), boot(&[0, 1, 2], None));
    assert_eq!(
        armed.armed(&slots, &slot("B"), 2),
        Err(EfiError::Attempts { attempts: 2 })
    );
    // BootNext of somebody else is none of the agent's business.
    assert_eq!(
        boot(&[1], Some(2)).disabled(&slots, &slot("B")).unwrap(),
        boot(&[1], Some(2))
    );
    assert!(
        boot(&[1], Some(2))
            .view(&slots, &slot("A"), None)
            .unwrap()
            .armed
            .is_empty()
    );
}

#[test]
fn confirmed_is_first_and_the_last_slot_is_never_taken_out() {
    let slots = slots();
    let confirmed = boot(&[0, 1, 2], None).confirmed(&slots, &slot("B")).unwrap();
    assert_eq!(confirmed, boot(&[3, 0, 1, 2], None));
    assert_eq!(confirmed.primary(&slots), Some(slot("B")));
    assert_eq!(
        boot(&[1], Some(1)).confirmed(&slots, &slot("B")).unwrap(),
        boot(&[3, 1], None)
    );
    for order in [&[1][..], &[0, 1], &[]] {
        let refused = boot(order, None).disabled(&slots, &slot("A"));
        assert_eq!(refused, Err(EfiError::LastSlot { slot: slot("A") }));
    }
    assert_eq!(
        boot(&[0, 3, 1], Some(3)).created(&slots, &slot("A")).unwrap(),
        boot(&[1, 0], None)
    );
    assert_eq!(boot(&[0, 2], None).primary(&slots), None);
}

#[test]
fn what_firmware_sorted_is_put_back_among_slots_only() {
    let slots = slots();
    for (order, expected) in [
        (&[0, 3, 1, 2][..], &[0, 1, 3, 2][..]),
        (&[0, 3], &[0, 1, 3]),
        (&[0, 1, 3], &[0, 1, 3]),
        (&[0], &[1, 0]),
        (&[], &[1]),
    ] {
        let replenished = boot(order, Some(3)).replenished(&slots, &slot("A")).unwrap();
        assert_eq!(replenished, boot(expected, Some(3)));
    }
}

#[test]
fn the_firmware_must_not_say_that_another_slot_was_booted() {
    let (slots, boot) = (slots(), boot(&[1, 3], None));
    for current in [None, Some(BootNumber(1)), Some(BootNumber(0)), Some(BootNumber(99))] {
        let view = boot.view(&slots, &slot("A"), current).unwrap();
        assert_eq!(view.booted, Some(slot("A")));
    }
    let error = boot.view(&slots, &slot("A"), Some(BootNumber(3))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel command line names slot A, and BootCurrent is Boot0003 of slot B"
    );
}
