#![allow(clippy::unwrap_used)]
use super::*;

const SINGLE: Format = Format {
    layout: Layout::Single,
    byte_order: ByteOrder::Little,
};
const REDUNDANT: Format = Format {
    layout: Layout::Redundant,
    byte_order: ByteOrder::Little,
};
const BIG: Format = Format {
    layout: Layout::Single,
    byte_order: ByteOrder::Big,
};

/// An image with a checksum that fits.
fn image(format: Format, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut image = match format.byte_order {
        ByteOrder::Little => crc32fast::hash(data).to_le_bytes(),
        ByteOrder::Big => crc32fast::hash(data).to_be_bytes(),
    }
    .to_vec();
    if format.layout == Layout::Redundant {
        image.push(flags);
    }
    image.extend_from_slice(data);
    image
}

/// Made with `mkenvimage -s 32 [-r] [-b]` from `a=1` and `BOOT_ORDER=A B`, padding 0xff.
#[test]
fn images_of_mkenvimage_are_read_and_written_as_they_are() {
    let data = b"a=1\0BOOT_ORDER=A B\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
    let single = [&[0x01, 0x91, 0xb6, 0xc4][..], data].concat();
    let big = [&[0xc4, 0xb6, 0x91, 0x01][..], data].concat();
    let redundant = [&[0x20, 0xc9, 0xb1, 0xd8, 1][..], &data[..data.len() - 1]].concat();
    for (bytes, format, flags) in [(single, SINGLE, 0), (big, BIG, 0), (redundant, REDUNDANT, 1)] {
        let (environment, found) = Environment::decode(&bytes, format).unwrap();
        assert_eq!((environment.get("a"), found), (Some(&b"1"[..]), flags));
        assert_eq!(environment.get("BOOT_ORDER"), Some(&b"A B"[..]));
        assert_eq!(environment.get("BOOT"), None);
        assert_eq!(environment.encode(format, flags).unwrap(), bytes);
        for other in [SINGLE, REDUNDANT, BIG].into_iter().filter(|other| *other != format) {
            let error = Environment::decode(&bytes, other).unwrap_err();
            assert!(
                matches!(error, EnvError::OtherFormat { found, .. } if found == format),
                "{error}"
            );
        }
    }
}

#[test]
fn padding_keeps_its_place_and_entries_their_order() {
    let before = b"a=1\0not a variable\0b=22\0\0\xff\xff\xff\xffend";
    let (mut environment, _) = Environment::decode(&image(SINGLE, 0, before), SINGLE).unwrap();
    environment.set("a", "333").unwrap();
    environment.set("c", "").unwrap();
    let written = environment.encode(SINGLE, 0).unwrap();
    assert_eq!(&written[4..], b"a=333\0not a variable\0b=22\0c=\0\0nd");
    environment.set("c", "1").unwrap();
    environment.set("a", "").unwrap();
    environment.set("b", "").unwrap();
    let written = environment.encode(SINGLE, 0).unwrap();
    assert_eq!(&written[4..], b"a=\0not a variable\0b=\0c=1\0\0\xff\xff\xffend");
    environment.set("a", "too long now").unwrap();
    let error = environment.encode(SINGLE, 0).unwrap_err();
    assert_eq!(
        error,
        EnvError::TooLong {
            needed: 38,
            available: 32
        }
    );
    for (name, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "x\0")] {
        assert!(environment.set(name, value).is_err());
    }
}

#[test]
fn the_copy_that_u_boot_takes() {
    for (first, second, taken) in [
        (1, 2, 1),
        (2, 1, 0),
        (255, 0, 1),
        (0, 255, 0),
        (254, 255, 1),
        (255, 1, 0),
        (1, 1, 0),
        (0, 1, 1),
    ] {
        let images = [
            image(REDUNDANT, first, b"n=0\0\0"),
            image(REDUNDANT, second, b"n=1\0\0"),
        ];
        let active = Active::choose([&images[0], &images[1]], ByteOrder::Little).unwrap();
        assert_eq!(active.copy, taken, "{first} {second}");
        let flags = [first, second][taken].wrapping_add(1);
        assert_eq!(active.next(), (1 - taken, flags));
        // Once written, the other one is active.
        let mut next = images.clone();
        next[1 - taken] = active.environment.encode(REDUNDANT, flags).unwrap();
        let after = Active::choose([&next[0], &next[1]], ByteOrder::Little).unwrap();
        assert_eq!((after.copy, after.flags), (1 - taken, flags));
        // One damaged copy never matters, two do.
        let broken = vec![0xff; images[0].len()];
        assert_eq!(
            Active::choose([&broken, &images[1]], ByteOrder::Little).unwrap().copy,
            1
        );
        assert_eq!(
            Active::choose([&images[0], &broken], ByteOrder::Little).unwrap().copy,
            0
        );
        assert_eq!(
            Active::choose([&broken, &broken], ByteOrder::Little),
            Err(EnvError::BothBad)
        );
    }
}

#[test]
fn what_could_mean_two_things_is_refused() {
    // Rare, but there are images that are valid as a single one and, in the other byte order, as a redundant one.
    let both = b"\xd6\x23\xdb\xcb\xd4a=1\0\0\0\0\0\x41\x7a\0\0";
    let redundant = Format {
        layout: Layout::Redundant,
        byte_order: ByteOrder::Big,
    };
    assert!(SINGLE.fits(both) && redundant.fits(both));
    for format in [SINGLE, redundant] {
        let error = Environment::decode(both, format).unwrap_err();
        assert!(matches!(error, EnvError::Ambiguous { .. }), "{error}");
    }
    let intact = image(REDUNDANT, 1, b"a=1\0\0_______");
    let error = Active::choose([&intact, both], ByteOrder::Little).unwrap_err();
    assert!(matches!(error, EnvError::OtherFormat { .. }), "{error}");
    let single = image(SINGLE, 0, b"a=1\0\0");
    assert!(matches!(
        Active::choose([&intact, &single], ByteOrder::Little),
        Err(EnvError::OtherFormat { .. })
    ));
    for (data, expected) in [
        (&b"a=1\0"[..], EnvError::Unterminated),
        (b"a=1", EnvError::Unterminated),
        (b"a=1\0a=2\0\0", EnvError::Duplicate { name: "a".to_owned() }),
    ] {
        assert_eq!(Environment::decode(&image(SINGLE, 0, data), SINGLE), Err(expected));
    }
    for length in 0..6 {
        assert!(Environment::decode(&vec![0; length], SINGLE).is_err());
    }
}
