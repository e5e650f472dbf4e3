#![allow(clippy::unwrap_used)]
use super::*;

fn slot(name: &str) -> SlotId {
    SlotId::parse(name).unwrap()
}

fn name(slot: &str) -> EntryName {
    EntryName::new("fw-{slot}", &self::slot(slot)).unwrap()
}

#[test]
fn names_count_as_the_loader_reads_them() {
    let name = name("A");
    for (file, count) in [
        ("fw-A.conf", Some(Count::Good)),
        ("FW-a.CONF", Some(Count::Good)),
        ("fw-A.conf.off", Some(Count::Off)),
        ("fw-A+3.conf", Some(Count::Left { left: 3, done: 0 })),
        ("fw-A+2-1.conf", Some(Count::Left { left: 2, done: 1 })),
        ("fw-A+0-3.conf", Some(Count::Left { left: 0, done: 3 })),
        ("fw-A+2147483647.conf", Some(Count::Left { left: COUNTER, done: 0 })),
        ("fw-A+2147483648.conf", None),
        ("fw-A+.conf", None),
        ("fw-A+3-.conf", None),
        ("fw-A+-3.conf", None),
        ("fw-A+3.conf.off", None),
        ("fw-AB.conf", None),
        ("fw-A", None),
    ] {
        assert_eq!(name.parse(file), count, "{file}");
    }
    for count in [
        Count::Good,
        Count::Off,
        Count::Left { left: 3, done: 0 },
        Count::Left { left: 1, done: 2 },
    ] {
        assert_eq!(name.parse(&name.file(count)), Some(count));
    }
    assert_eq!(name.id(), "fw-a.conf");
    for pattern in ["fw", "{slot}+1", "a/{slot}", ".{slot}", "auto-{slot}", "Auto-{slot}"] {
        assert_eq!(EntryName::new(pattern, &slot("A")), None, "{pattern}");
    }
}

/// The table in the comment of `strverscmp_improved`, oldest first.
#[test]
fn versions_are_compared_as_systemd_does() {
    let sorted = [
        "122.1",
        "123~rc1-1",
        "123",
        "123-a",
        "123-a.1",
        "123-1",
        "123-1.1",
        "123^post1",
        "123.a-1",
        "123.1-1",
        "123a-1",
        "124-1",
    ];
    for (i, one) in sorted.iter().enumerate() {
        for (j, two) in sorted.iter().enumerate() {
            assert_eq!(compare_versions(Some(one), Some(two)), i.cmp(&j), "{one} {two}");
        }
    }
    for (one, two, expected) in [
        (Some("123_a"), Some("123a"), Ordering::Equal),
        (Some("00123"), Some("123"), Ordering::Equal),
        (None, Some("1"), Ordering::Less),
        (Some(""), Some("1"), Ordering::Less),
        (Some("fw-a.conf"), Some("fw-b.conf"), Ordering::Less),
        (Some("fw-9.conf"), Some("fw-10.conf"), Ordering::Less),
        (Some("1~"), Some("1"), Ordering::Less),
        (Some("_"), Some("_"), Ordering::Equal),
    ] {
        assert_eq!(compare_versions(one, two), expected, "{one:?} {two:?}");
        assert_eq!(compare_versions(two, one), expected.reverse());
    }
}

#[test]
fn entries_are_sorted_as_the_loader_does() {
    let key = |text: &str, id: &str| SortKey::parse(&format!("linux /k\n{text}"), id.to_owned()).unwrap();
    for (first, second) in [
        (("", "fw-b.conf"), ("", "fw-a.conf")),
        (("sort-key x", "fw-a.conf"), ("", "fw-b.conf")),
        (("sort-key a", "fw-a.conf"), ("sort-key b", "fw-b.conf")),
        (
            ("sort-key a\nmachine-id 1", "fw-a.conf"),
            ("sort-key a\nmachine-id 2", "fw-b.conf"),
        ),
        (
            ("sort-key a\nversion 10", "fw-a.conf"),
            ("sort-key a\nversion 9", "fw-b.conf"),
        ),
        (("version 10", "fw-b.conf"), ("version 11", "fw-a.conf")),
        (
            ("sort-key\tz\nsort-key a", "fw-a.conf"),
            ("# sort-key 0\nsort-key b", "fw-b.conf"),
        ),
    ] {
        let (one, two) = (key(first.0, first.1), key(second.0, second.1));
        assert_eq!(
            (one.compare(&two), two.compare(&one)),
            (Ordering::Less, Ordering::Greater),
            "{first:?} {second:?}"
        );
    }
    for text in ["", "efi /k", "linux", "# linux /k", "title linux"] {
        assert_eq!(SortKey::parse(text, String::new()), None, "{text}");
    }
}

#[test]
fn of_several_files_the_whole_one_counts_as_the_loader_takes_it() {
    let text = b"linux /k\n".to_vec();
    let found = |count: Count, bytes: &[u8]| Found {
        count,
        bytes: bytes.to_vec(),
    };
    let of = |files: &[Found]| SlotEntry::of(&slot("A"), &name("A"), files);
    let (three, two, none) = (
        Count::Left { left: 3, done: 0 },
        Count::Left { left: 2, done: 1 },
        Count::Left { left: 0, done: 3 },
    );
    for (files, expected) in [
        (vec![found(Count::Off, &text), found(three, &text[..4])], Count::Off),
        (vec![found(Count::Off, b""), found(three, &text)], three),
        (vec![found(Count::Off, &text), found(none, &text)], none),
        (vec![found(Count::Good, &text), found(none, &text)], Count::Good),
        (vec![found(two, &text), found(three, &text)], three),
    ] {
        assert_eq!(of(&files).unwrap().count, expected);
    }
    assert!(matches!(of(&[]), Err(EntryError::Gone { .. })));
    assert!(matches!(
        of(&[found(two, b"efi /k\n")]),
        Err(EntryError::NotCounted { .. })
    ));
    assert!(matches!(
        of(&[found(two, b"linux \xff\n")]),
        Err(EntryError::NoText { .. })
    ));
    let different = of(&[found(two, &text), found(three, b"linux /l\n")]).unwrap_err();
    assert!(different.to_string().contains("fw-A+"), "{different}");
}

#[test]
fn entries_that_are_sorted_as_equal_are_refused() {
    let entry = |slot: &str, count: Count| {
        let name = EntryName::new("{slot}", &self::slot(slot)).unwrap();
        let bytes = b"linux /k\n".to_vec();
        (
            self::slot(slot),
            SlotEntry::of(&self::slot(slot), &name, &[Found { count, bytes }]),
        )
    };
    // A character that the comparison passes over.
    let entries = Entries([entry("a1", Count::Good), entry("a_1", Count::Good)]);
    assert!(matches!(entries.arm(&slot("a1"), 3), Err(EntryError::Equal { .. })));
    let entries = Entries([entry("A", Count::Good), entry("B", Count::Off)]);
    assert_eq!(entries.primary().unwrap(), Some(slot("A")));
    assert!(matches!(entries.arm(&slot("A"), 3), Err(EntryError::LastSlot { .. })));
}

#[test]
fn patterns_fit_all_slots_or_are_refused() {
    let names = [name("A"), name("B")];
    for (pattern, good) in [
        ("*", true),
        ("fw-?.conf", true),
        ("FW-*.conf", true),
        ("f*-*f", true),
        ("fw-*x", false),
        ("fw-a.conf", false),
        ("fw-?", false),
        ("", false),
        ("fw-[ab].conf", false),
    ] {
        assert_eq!(check_pattern("x", pattern, &names).is_ok(), good, "{pattern}");
    }
    assert_eq!(
        default_pattern("timeout 3\ndefault  a\n#default b\ndefault\tc \n"),
        Some("c")
    );
    assert_eq!(default_pattern("defaults a\ndefault"), None);
}
