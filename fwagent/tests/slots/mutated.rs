//! Random damage to archives, with right checksums and digests: never a panic, never a byte outside the tree.

use std::fs;
use std::path::{Path, PathBuf};

use fwagent::host::tree::{Node, Tree};
use fwagent::host::unpack::unpack;
use tar::{EntryType, Header};

use crate::device::Tar;

const BLOCK: usize = 512;

/// Marsaglia's xorshift: the same numbers at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const PATHS: [&str; 12] = [
    "a", "a/b", "a/b/c", "d", "d/e", "./h", "l", "m", "n", "d/l", "d/m", "a/b/l",
];
const HOSTILE_PATHS: [&str; 6] = ["l/x", "d/l/x", "a/../../canary/file", "../canary/x", "/x", ".."];
const TARGETS: [&str; 12] = [
    "a", "d", ".", "l", "d/l", ".", "..", "../a", "../l", "../d/m", "../../l", "m",
];
const HOSTILE_TARGETS: [&str; 6] = ["../../canary", "l/..", "m/..", "l/../canary", "a/l/../..", "/"];
const KINDS: [u8; 11] = *b"0120257LKxg";

/// An archive of entries that are each plausible and together are not.
fn archive(random: &mut Random) -> Vec<u8> {
    let mut tar = Tar::default();
    for _ in 0..1 + random.below(7) {
        let hostile = random.below(10);
        let path = random.pick(if hostile == 0 { &HOSTILE_PATHS[..] } else { &PATHS });
        let target = random.pick(if hostile == 1 { &HOSTILE_TARGETS[..] } else { &TARGETS });
        tar = match random.below(16) {
            0..6 => tar.link(path, target),
            6..10 => tar.dir(path),
            10 => tar.pax(&[(random.pick(&["path", "linkpath", "size"]), target)]),
            11 => tar.entry(EntryType::new(random.pick(&KINDS)), path, 0o644, target),
            _ => tar.file(path, "content"),
        };
    }
    tar.end()
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let length = bytes.len();
        let at = random.below(length);
        let block = at - at % BLOCK;
        match random.below(5) {
            0 => bytes[at] = random.pick(b"\0\x7f\xff/.0157"),
            // The type, if the block is a header.
            1 => bytes[(block + 156).min(length - 1)] = random.pick(&KINDS),
            2 => bytes[at] ^= 1 << random.below(8),
            3 => bytes.truncate(at.max(1)),
            _ => {
                let copy = bytes[block..(block + BLOCK).min(length)].to_vec();
                bytes.splice(block..block, copy);
            }
        }
    }
    // Without a right checksum nothing further would be looked at.
    for block in bytes.chunks_exact_mut(BLOCK) {
        if random.below(8) > 0 && block.iter().any(|byte| *byte != 0) && block[257..262] == *b"ustar" {
            let mut header = Header::new_gnu();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
}

#[test]
fn nothing_is_ever_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (canary, root) = (dir.path().join("canary"), dir.path().join("root"));
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    let before = Tree::read(&canary).unwrap();
    let mut random = Random(0x0123_4567_89ab_cdef);
    let (mut accepted, mut followed) = (0, 0);
    for round in 0..2000 {
        let mut bytes = archive(&mut random);
        if round % 3 == 0 {
            mutate(&mut bytes, &mut random);
        }
        fs::create_dir(&root).unwrap();
        if let Ok(tree) = unpack(&mut &bytes[..], &root) {
            accepted += 1;
            let actual = Tree::read(&root).unwrap();
            assert_eq!(tree.first_difference(&actual), None, "round {round}");
            for end in ends_of_links(&tree, &root) {
                followed += 1;
                assert!(
                    end.starts_with(root.canonicalize().unwrap()),
                    "round {round}: {}",
                    end.display()
                );
            }
        }
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            before.first_difference(&Tree::read(&canary).unwrap()),
            None,
            "round {round}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "round {round}");
    }
    // Otherwise half of the test would have looked at nothing.
    assert!(accepted > 200 && followed > 50, "{accepted} {followed}");
}

#[test]
fn chains_of_links_stay_inside() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let targets = [
        ".", "..", "../..", "l", "a/m", "../l", "../a/b/n", "../../l", "l/..", "m/..", "a/m/..", "n/../..",
    ];
    // Every link alone is judged by its own depth; every chain of three is then followed.
    let (mut accepted, mut followed) = (0, 0);
    for (first, second, third) in targets
        .iter()
        .flat_map(|first| targets.iter().map(move |second| (first, second)))
        .flat_map(|(first, second)| targets.iter().map(move |third| (first, second, third)))
    {
        let archive = Tar::default().dir("a").dir("a/b");
        let archive = archive.link("l", first).link("a/m", second).link("a/b/n", third).end();
        fs::create_dir(&root).unwrap();
        if let Ok(tree) = unpack(&mut &archive[..], &root) {
            accepted += 1;
            for end in ends_of_links(&tree, &root) {
                followed += 1;
                assert!(
                    end.starts_with(root.canonicalize().unwrap()),
                    "{first} {second} {third}"
                );
            }
        }
        fs::remove_dir_all(&root).unwrap();
    }
    // 3, 6 and 8 of the targets are right for a link at depth 0, 1 and 2.
    assert_eq!(accepted, 3 * 6 * 8);
    assert!(followed > accepted, "{followed}");
}

/// Where the links of a tree lead. What leads nowhere or in a circle leads nowhere outside.
fn ends_of_links(tree: &Tree, root: &Path) -> Vec<PathBuf> {
    let links = tree.iter().filter(|(_, node)| matches!(node, Node::Link { .. }));
    links
        .filter_map(|(path, _)| root.join(str::from_utf8(path).unwrap()).canonicalize().ok())
        .collect()
}
