//! Archives made to do harm: each is refused with everything as before, and each has a harmless twin that is accepted.

use fwagent::host::slots::SlotError;
use fwagent::host::unpack::{DEPTH, PATH_BYTES, UnpackError};
use fwmeta::manifest::ImageKind;
use fwmeta::target::MismatchError;
use tar::EntryType;

use crate::device::{Device, Tar, archive_error, exists, good};

/// A device with an old image in its slot.
struct Victim(Device, Vec<u8>);

impl Victim {
    /// `harmless`, the twin of what is going to be refused, is accepted.
    fn accepting(harmless: &[u8]) -> Self {
        let mut device = Device::new(ImageKind::Tar, None);
        device.write(harmless).unwrap();
        assert!(device.holds(harmless));
        let old = good("old");
        device.write(&old).unwrap();
        Self(device, old)
    }

    #[track_caller]
    fn refused(&mut self, hostile: Vec<u8>) -> UnpackError {
        let error = archive_error(self.0.refuses(&hostile));
        assert!(self.0.holds(&self.1));
        error
    }
}

fn tar() -> Tar {
    Tar::default()
}

#[test]
fn paths_that_leave_the_tree() {
    let mut victim = Victim::accepting(&tar().file("a/b", "x").end());
    let long = "x".repeat(256);
    let deep = ["d"; DEPTH + 1].join("/");
    let paths = [
        "/a",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "./../a",
        "a/./b",
        "a//b",
        "././a",
        "//",
        "a/",
        "",
        ".",
    ];
    for path in paths.into_iter().chain([long.as_str(), &deep]) {
        // By pax, because a header has room for 100 bytes only.
        let hostile = tar().pax(&[("path", path)]).file("x", "x").end();
        assert!(matches!(victim.refused(hostile), UnpackError::Path { .. }), "{path:?}");
    }
    for path in ["/", "..", "../a/", "a//", "", "/abs/"] {
        let hostile = tar().dir(path).end();
        assert!(matches!(victim.refused(hostile), UnpackError::Path { .. }), "{path:?}");
    }
    let nul = tar()
        .entry(EntryType::GNULongName, "n", 0, "a\0b\0")
        .file("x", "x")
        .end();
    assert!(matches!(victim.refused(nul), UnpackError::Path { .. }));
    let longest = [&["d"; DEPTH - 1].join("/"), "/", &"x".repeat(255)].concat();
    assert!(longest.len() < PATH_BYTES);
    let mut device = Device::new(ImageKind::Tar, None);
    device
        .write(&tar().pax(&[("path", &longest)]).file("x", "x").end())
        .unwrap();
}

#[test]
fn links_that_leave_the_tree() {
    let mut victim = Victim::accepting(
        &tar()
            .link("a", "b")
            .link("d/e/f", "../../etc/./passwd")
            .link("d/g", "..")
            .link("h", "./x//y/")
            .end(),
    );
    let hostile = [
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../x"),
        ("a", "./../x"),
        ("a", ".//../x"),
        ("d/a", "../../x"),
        ("d/a", "x/.."),
        ("d/a", "../x/../../y"),
        ("a", ""),
    ];
    for (path, target) in hostile {
        let error = victim.refused(tar().link(path, target).end());
        assert!(matches!(error, UnpackError::Link { .. }), "{target}: {error}");
    }
    // Chained: `up` is harmless by itself; through it, `x/up/..` would be outside.
    let chained = tar().link("x/up", "..").link("out", "x/up/../canary").end();
    let twin = tar().link("x/up", "..").link("out", "x/up/canary").end();
    assert!(matches!(
        Victim::accepting(&twin).refused(chained),
        UnpackError::Link { .. }
    ));
    let long = "x".repeat(PATH_BYTES + 1);
    let hostile = tar().pax(&[("linkpath", &long)]).link("a", "b").end();
    assert!(matches!(victim.refused(hostile), UnpackError::Link { .. }));
    let nul = tar().entry(EntryType::GNULongLink, "n", 0, "a\0b").link("a", "b").end();
    assert!(matches!(victim.refused(nul), UnpackError::Link { .. }));
}

#[test]
fn writing_through_what_is_not_a_directory() {
    let mut victim = Victim::accepting(&tar().dir("real").link("alias", "real").file("real/f", "x").end());
    let through = tar().dir("real").link("alias", "real").file("alias/f", "x").end();
    assert!(matches!(victim.refused(through), UnpackError::Parent { .. }));
    let deeper = tar().link("alias", "real").file("alias/x/y/f", "x").end();
    assert!(matches!(victim.refused(deeper), UnpackError::Parent { .. }));
    let file = tar().file("real", "").file("real/f", "x").end();
    assert!(matches!(victim.refused(file), UnpackError::Parent { .. }));
}

#[test]
fn the_same_path_twice() {
    let mut victim = Victim::accepting(&tar().file("d/f", "x").dir("d").dir("e").end());
    let twice = [
        tar().file("f", "x").file("f", "y"),
        tar().file("f", "x").file("./f", "y"),
        tar().dir("d").dir("d/"),
        tar().file("d/f", "x").dir("d").dir("d"),
        tar().dir(".").dir("./"),
        tar().dir("d").file("d", "x"),
        tar().file("d/f", "x").link("d", "e"),
        tar().link("l", "canary").file("l", "x"),
        tar().link("l", "canary").dir("l"),
    ];
    for hostile in twice {
        assert!(matches!(victim.refused(hostile.end()), UnpackError::Duplicate { .. }));
    }
}

#[test]
fn types_that_are_not_accepted() {
    let mut victim = Victim::accepting(&tar().file("f", "x").link("l", "f").end());
    let kinds = [
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::Continuous,
        EntryType::GNUSparse,
        EntryType::new(b'V'),
        EntryType::new(b'!'),
    ];
    for kind in kinds {
        let hostile = tar().file("f", "x").linked(kind, "l", "f").end();
        assert!(matches!(victim.refused(hostile), UnpackError::Type { .. }), "{kind:?}");
        let hostile = tar().entry(kind, "l", 0o644, "content").end();
        assert!(matches!(victim.refused(hostile), UnpackError::Type { .. }), "{kind:?}");
    }
    for kind in [EntryType::Directory, EntryType::Symlink] {
        let hostile = tar().entry(kind, "l", 0o755, "content").end();
        assert!(matches!(victim.refused(hostile), UnpackError::Size { .. }), "{kind:?}");
    }
}

#[test]
fn set_id_and_sticky_bits() {
    let mut victim = Victim::accepting(&tar().entry(EntryType::Regular, "f", 0o100_755, "x").end());
    for mode in [0o4755, 0o2755, 0o1755, 0o106_755] {
        for kind in [EntryType::Regular, EntryType::Directory] {
            let error = victim.refused(tar().entry(kind, "f", mode, "").end());
            assert!(matches!(error, UnpackError::SpecialMode { .. }), "{mode:o}");
        }
    }
}

#[test]
fn headers_that_are_not_understood() {
    let mut victim = Victim::accepting(
        &tar()
            .pax_as(EntryType::XGlobalHeader, &[("comment", "0123")])
            .pax(&[("path", "long/name"), ("mtime", "1.5"), ("size", "1")])
            .file("short", "x")
            .entry(EntryType::GNULongName, "n", 0, "another/name\0")
            .file("short", "x")
            .entry(EntryType::GNULongLink, "n", 0, "target\0")
            .link("l", "x")
            .end(),
    );
    let records: [&[(&str, &str)]; 8] = [
        &[("SCHILY.xattr.security.capability", "x")],
        &[("GNU.sparse.major", "1")],
        &[("path", "a"), ("path", "b")],
        &[("size", "1"), ("size", "1")],
        &[("size", "-1")],
        &[("linkpath", "a"), ("linkpath", "b")],
        &[("unknown", "x")],
        &[("comment", "a\n\n9 path=b")],
    ];
    for records in records {
        let error = victim.refused(tar().pax(records).file("f", "x").end());
        let expected = matches!(error, UnpackError::Extension { .. } | UnpackError::Archive(_));
        assert!(expected, "{records:?}: {error:?}");
    }
    let sized = tar().pax(&[("size", "2")]).file("f", "x").end();
    assert!(matches!(victim.refused(sized), UnpackError::Size { .. }));
    let name = |name: &str| tar().entry(EntryType::GNULongName, "n", 0, name);
    let huge = "x".repeat(100_000);
    let hostile = [
        name("a").pax(&[("path", "b")]).file("f", "x"),
        name("a").entry(EntryType::GNULongName, "n", 0, "b").file("f", "x"),
        name(&huge).file("f", "x"),
        tar().pax(&[("comment", &huge)]).file("f", "x"),
        tar().pax(&[("mtime", "1")]).pax(&[("mtime", "1")]).file("f", "x"),
        tar().pax_as(EntryType::XGlobalHeader, &[("path", "b")]).file("f", "x"),
        tar().file("f", "x").pax(&[("mtime", "1")]),
        name("a"),
    ];
    for (at, hostile) in hostile.into_iter().enumerate() {
        let error = victim.refused(hostile.end());
        assert!(matches!(error, UnpackError::Extension { .. }), "{at}: {error:?}");
    }
}

#[test]
fn archives_that_end_early_or_late() {
    let whole = tar().file("f", "content").file("g", &"x".repeat(2000)).open();
    let ended = [&whole[..], &[0; 1024]].concat();
    let padded = [&whole[..], &[0; 10 * 512 + 7]].concat();
    Victim::accepting(&padded);
    let mut victim = Victim::accepting(&ended);
    for length in [0, 1, 511, 512, 600, 1024, 1536, 2000, whole.len() - 1, whole.len()] {
        let error = victim.refused(whole[..length].to_vec());
        assert!(
            matches!(error, UnpackError::Truncated | UnpackError::Archive(_)),
            "{length}: {error:?}"
        );
    }
    let claims = tar().claims(EntryType::Regular, "f", 1 << 40).end();
    assert!(matches!(victim.refused(claims), UnpackError::Truncated));
    let claims = tar().claims(EntryType::Regular, "f", u64::MAX).end();
    assert!(matches!(victim.refused(claims), UnpackError::Archive(_)));
    for trailing in [&b"x"[..], &whole] {
        let hostile = [&ended[..], trailing].concat();
        assert!(matches!(victim.refused(hostile), UnpackError::Trailing));
    }
    assert!(matches!(victim.refused(vec![0x55; 4096]), UnpackError::Archive(_)));
}

#[test]
fn images_that_are_not_the_one_announced() {
    let mut device = Device::new(ImageKind::Tar, None);
    let (old, image) = (good("old"), good("new"));
    device.write(&old).unwrap();
    let before = device.everything();
    let announced = device.component(&image);
    let mut flipped = image.clone();
    // In the content of a file, so that the archive stays one.
    let at = image.windows(3).position(|bytes| bytes == b"new").unwrap();
    flipped[at] ^= 1;
    let mut other = announced.clone();
    other.image.sha512[63] ^= 1;
    let refusals = [
        device.write_as(&announced, &[&image[..], &[0]].concat()).unwrap_err(),
        device.write_as(&announced, &image[..image.len() - 1]).unwrap_err(),
        device.write_as(&announced, &flipped).unwrap_err(),
        device.write_as(&announced, &old).unwrap_err(),
        device.write_as(&other, &image).unwrap_err(),
    ];
    for (at, error) in refusals.iter().enumerate() {
        let expected = match at {
            0 => matches!(error, SlotError::TooLong { .. }),
            1 => matches!(error, SlotError::Mismatch(MismatchError::Length { .. })),
            _ => matches!(error, SlotError::Mismatch(MismatchError::Hash { .. })),
        };
        assert!(expected, "{at}: {error:?}");
    }
    assert_eq!(before.first_difference(&device.everything()), None);
    assert!(device.holds(&old) && !exists(&device.path().join(".new")));
    device.write_as(&announced, &image).unwrap();
    assert!(device.holds(&image));
}
