//! A loader that reads attributes of partitions, against sgdisk and against a model of such a loader that knows neither
//! checksums nor fields by the agent's code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwagent::host::loader::file_lock::FileLock;
use fwagent::host::loader::gpt::Gpt;
use fwagent::host::loader::{self, HostBoot, Medium};
use fwagent::machine::gpt::Partition;
use fwagent::machine::slot::SlotId;

use crate::{Loader, running, slot, slots, start, tools};

const SECTOR: usize = 512;
/// Sectors of the disk: room for the smallest table with two partitions.
const SECTORS: usize = 96;

/// A device of which the directory holds `disk`, a file or a link to a device, and `cmdline`.
pub struct Board {
    pub dir: tempfile::TempDir,
}

/// Little-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A disk with the partitions `rootA`, `rootB` and `data`.
fn blank() -> Vec<u8> {
    let mut entries = vec![0; 32 * SECTOR];
    for (index, name) in ["rootA", "rootB", "data"].into_iter().enumerate() {
        let entry = &mut entries[index * 128..][..128];
        entry[..16].copy_from_slice(&[7; 16]);
        entry[16..32].fill(index as u8 + 1);
        entry[32..40].copy_from_slice(&(40 + 5 * index as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&(44 + 5 * index as u64).to_le_bytes());
        for (at, byte) in name.bytes().enumerate() {
            entry[56 + 2 * at] = byte;
        }
    }
    let mut disk = vec![0; SECTORS * SECTOR];
    let last = SECTORS as u64 - 1;
    for (my, other, first_entry) in [(1, last, 2), (last, 1, last - 32)] {
        let mut header = vec![0; SECTOR];
        header[..8].copy_from_slice(b"EFI PART");
        for (at, value) in [(8, 0x1_0000_u32), (12, 92), (80, 128), (84, 128)] {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(24, my), (32, other), (40, 34), (48, last - 33), (72, first_entry)] {
            header[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        header[56..72].fill(9);
        put(&mut disk, my as usize, &header);
        put(&mut disk, first_entry as usize, &entries);
        seal(&mut disk, my as usize);
    }
    disk
}

fn put(disk: &mut [u8], lba: usize, bytes: &[u8]) {
    disk[lba * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}

/// Sets both checksums of the copy with this header.
fn seal(disk: &mut [u8], lba: usize) {
    let header = lba * SECTOR;
    let first = number(&disk[header + 72..header + 80]) as usize * SECTOR;
    let entries = crc32fast::hash(&disk[first..first + 32 * SECTOR]);
    disk[header + 88..header + 92].copy_from_slice(&entries.to_le_bytes());
    disk[header + 16..header + 20].fill(0);
    let checksum = crc32fast::hash(&disk[header..header + 92]);
    disk[header + 16..header + 20].copy_from_slice(&checksum.to_le_bytes());
}

fn is_intact(disk: &[u8], lba: usize) -> bool {
    let mut again = disk.to_vec();
    let first = number(&disk[lba * SECTOR + 72..][..8]);
    if &disk[lba * SECTOR..][..8] != b"EFI PART" || first as usize > SECTORS - 32 {
        return false;
    }
    seal(&mut again, lba);
    again == disk
}

/// What a loader does: takes the first intact copy, chooses, takes one of its tries, writes both copies.
fn loader_boots(disk: &mut [u8]) -> Option<usize> {
    let last = SECTORS - 1;
    let used = [1, last].into_iter().find(|lba| is_intact(disk, *lba))?;
    let first = number(&disk[used * SECTOR + 72..][..8]) as usize * SECTOR;
    let attributes = |index: usize| number(&disk[first + index * 128 + 48..][..8]);
    let mut best: Option<(usize, u64)> = None;
    for index in 0..128 {
        let bits = attributes(index);
        let (priority, tries, successful) = (bits >> 48 & 15, bits >> 52 & 15, bits >> 56 & 1);
        let wins = best.is_none_or(|(_, other)| priority > other);
        if priority > 0 && (tries > 0 || successful == 1) && wins {
            best = Some((index, priority));
        }
    }
    let (index, _) = best?;
    let bits = attributes(index);
    if bits >> 52 & 15 > 0 {
        let less = bits - (1 << 52);
        disk[first + index * 128 + 48..][..8].copy_from_slice(&less.to_le_bytes());
    }
    let entries = disk[first..first + 32 * SECTOR].to_vec();
    // Of the other copy, too; here both are where `blank` has put them.
    put(disk, 2, &entries);
    put(disk, last - 32, &entries);
    for lba in [1, last] {
        if &disk[lba * SECTOR..][..8] == b"EFI PART" {
            seal(disk, lba);
        }
    }
    Some(index)
}

impl Board {
    /// A device that runs from slot `A`.
    pub fn new() -> Self {
        let board = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::write(board.path(), blank()).unwrap();
        start(board.dir.path(), "A");
        board.control().create(&slot("A")).unwrap();
        board
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn medium(&self) -> Gpt {
        let parse = |text: &str| Partition::parse(text).unwrap();
        let partitions: BTreeMap<SlotId, Partition> = [
            (slot("A"), parse("PARTLABEL=rootA")),
            (slot("B"), parse("PARTLABEL=rootB")),
        ]
        .into();
        Gpt::new(self.path(), partitions)
    }
}

impl Loader for Board {
    fn control(&self) -> Box<dyn HostBoot> {
        let running = running(self.dir.path());
        Box::new(loader::Loader::new(self.medium(), slots(), 3, running))
    }

    fn power_on(&self) -> Option<SlotId> {
        let mut disk = fs::read(self.path()).unwrap();
        let index = loader_boots(&mut disk)?;
        fs::write(self.path(), disk).unwrap();
        Some(start(self.dir.path(), ["A", "B"].get(index)?))
    }

    fn attempts(&self) -> u32 {
        3
    }

    fn leaves_confirmed(&self) -> bool {
        false
    }
}

#[test]
fn tries_are_used_up_and_the_loader_goes_back() {
    let board = Board::new();
    board.control().arm(&slot("B"), 3).unwrap();
    assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&3));
    for _ in 0..3 {
        assert_eq!(board.power_on(), Some(slot("B")));
        assert!(board.control().view().unwrap().armed.is_empty());
    }
    for _ in 0..3 {
        assert_eq!(board.power_on(), Some(slot("A")));
        board.control().replenish(&slot("A")).unwrap();
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&0));
    }
    board.control().disable(&slot("B")).unwrap();
    assert!(board.control().view().unwrap().armed.is_empty());
    board.control().arm(&slot("B"), 15).unwrap();
    assert_eq!(board.power_on(), Some(slot("B")));
    board.control().confirm(&slot("B")).unwrap();
    for _ in 0..20 {
        assert_eq!(board.power_on(), Some(slot("B")));
    }
    assert_eq!(board.control().primary().unwrap(), Some(slot("B")));
}

/// The states between `old` and `new` when sectors are written in order from `range`, any byte of the one under way: from
/// its start, from its end, or nonsense.
fn cuts(old: &[u8], new: &[u8], sectors: &[usize]) -> Vec<Vec<u8>> {
    let mut states = Vec::new();
    // In any order, since nothing is flushed in between.
    for written in 0..1_usize << sectors.len() {
        let mut state = old.to_vec();
        for (index, sector) in sectors.iter().enumerate() {
            if written >> index & 1 == 1 {
                state[sector * SECTOR..][..SECTOR].copy_from_slice(&new[sector * SECTOR..][..SECTOR]);
            }
        }
        for (index, sector) in sectors.iter().enumerate() {
            if written >> index & 1 == 1 {
                continue;
            }
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            for at in range.clone().filter(|at| old[*at] != new[*at]) {
                let mut torn = state.clone();
                torn[range.start..=at].copy_from_slice(&new[range.start..=at]);
                states.push(torn);
                let mut torn = state.clone();
                torn[at..range.end].copy_from_slice(&new[at..range.end]);
                states.push(torn);
            }
            let mut torn = state.clone();
            torn[range].fill(0xff);
            states.push(torn);
        }
        states.push(state);
    }
    states
}

#[test]
fn a_loss_of_power_at_any_byte_leaves_the_old_table_or_the_new_one() {
    let mut seen = 0;
    for change in ["arm", "confirm", "disable"] {
        let board = Board::new();
        if change != "arm" {
            board.control().arm(&slot("B"), 3).unwrap();
            assert_eq!(board.power_on(), Some(slot("B")));
        }
        let act = || match change {
            "arm" => board.control().arm(&slot("B"), 3).unwrap(),
            "confirm" => board.control().confirm(&slot("B")).unwrap(),
            _ => board.control().disable(&slot("B")).unwrap(),
        };
        let old = fs::read(board.path()).unwrap();
        act();
        let new = fs::read(board.path()).unwrap();
        let changed: Vec<usize> = (0..SECTORS)
            .filter(|sector| old[sector * SECTOR..][..SECTOR] != new[sector * SECTOR..][..SECTOR])
            .collect();
        let last = SECTORS - 1;
        assert_eq!(changed, [1, 2, last - 32, last], "nothing else is touched");
        let mut between = old.clone();
        for sector in [1, 2] {
            put(&mut between, sector, &new[sector * SECTOR..][..SECTOR]);
        }
        // First the primary copy, and only then the backup.
        let states = [cuts(&old, &between, &[2, 1]), cuts(&between, &new, &[last - 32, last])].concat();
        let (mut before, mut after) = (old.clone(), new.clone());
        let (before, after) = (loader_boots(&mut before), loader_boots(&mut after));
        for state in states {
            seen += 1;
            assert!(is_intact(&state, 1) || is_intact(&state, last));
            let booted = loader_boots(&mut state.clone());
            assert!(booted == before || booted == after, "{change}: {booted:?}");
            fs::write(board.path(), &state).unwrap();
            let peeked = board.control().peek().unwrap();
            assert_eq!(fs::read(board.path()).unwrap(), state, "a reader changes nothing");
            let view = board.control().view().unwrap();
            assert_eq!(peeked, view);
            let mended = fs::read(board.path()).unwrap();
            assert!(mended == old || mended == new, "{change}");
            // What it did not reach is done again.
            act();
            let done = fs::read(board.path()).unwrap();
            assert!(is_intact(&done, 1) && is_intact(&done, last));
            assert_eq!(done, new, "{change}");
        }
    }
    assert!(seen > 200, "{seen}");
}

/// Torn while it is mended.
#[test]
fn mending_leaves_the_intact_copy_alone() {
    let board = Board::new();
    let good = fs::read(board.path()).unwrap();
    let last = SECTORS - 1;
    for (broken, sectors) in [([1, 2], [2, 1]), ([last - 32, last], [last - 32, last])] {
        let mut bad = good.clone();
        for sector in broken {
            bad[sector * SECTOR..][..SECTOR].fill(0xff);
        }
        for state in cuts(&bad, &good, &sectors) {
            fs::write(board.path(), &state).unwrap();
            board.control().view().unwrap();
            assert!(fs::read(board.path()).unwrap() == good);
        }
    }
}

#[test]
fn two_broken_copies_and_two_tables_are_refused_and_left_alone() {
    let board = Board::new();
    let good = fs::read(board.path()).unwrap();
    let last = SECTORS - 1;
    let mut both = good.clone();
    both[SECTOR + 20] ^= 1;
    both[last * SECTOR + 20] ^= 1;
    let mut other = good.clone();
    // Another last sector of a partition, in a copy that is intact.
    other[(last - 32) * SECTOR + 40] += 1;
    seal(&mut other, last);
    let mut label = good.clone();
    for (first, header) in [(2, 1), (last - 32, last)] {
        label[first * SECTOR + 128 + 56] = b'x';
        seal(&mut label, header);
    }
    for (disk, expected) in [
        (
            both,
            "neither copy is intact (primary: bad checksum of the header; backup: bad checksum of the header)",
        ),
        (other, "describe different partitions"),
        (label, "0 partitions fit PARTLABEL=rootB, not one"),
        (good[..SECTOR].to_vec(), "neither copy is intact"),
        (good[..SECTOR * 50].to_vec(), "neither copy is intact"),
        (vec![], ""),
    ] {
        fs::write(board.path(), &disk).unwrap();
        for error in [
            board.control().view().unwrap_err(),
            board.control().arm(&slot("B"), 3).unwrap_err(),
        ] {
            let text = fwagent::drive::chain(&error);
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(fs::read(board.path()).unwrap(), disk);
    }
    // The control: the same calls succeed on the good one.
    fs::write(board.path(), &good).unwrap();
    board.control().arm(&slot("B"), 3).unwrap();
    assert_ne!(fs::read(board.path()).unwrap(), good);
}

#[test]
fn the_disk_is_locked_while_it_changes() {
    let board = Board::new();
    let lock = board.medium().lock().unwrap();
    let second = FileLock::new(board.path(), "x", "y").waiting(std::time::Duration::ZERO);
    assert!(second.take().is_err());
    drop(lock);
    assert!(second.take().is_ok());
}

fn sgdisk(program: &Path, disk: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).arg(disk).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Partitions made by sgdisk, on an image and on a loop device; each reads what the other wrote.
fn with_sgdisk(program: &Path, board: &Board) {
    let disk = board.path().canonicalize().unwrap();
    let run = |arguments: &[&str]| sgdisk(program, &disk, arguments);
    run(&[
        "-n", "1:0:+1M", "-c", "1:boot", "-n", "2:0:+1M", "-c", "2:rootA", "-n", "3:0:+1M", "-c", "3:rootB",
    ]);
    start(board.dir.path(), "A");
    assert_eq!(board.control().primary().unwrap(), None);
    board.control().create(&slot("A")).unwrap();
    board.control().arm(&slot("B"), 3).unwrap();
    let sound = || {
        let verdict = run(&["-v"]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    };
    sound();
    assert!(run(&["-i", "2"]).contains("Attribute flags: 0101000000000000"));
    assert!(run(&["-i", "3"]).contains("Attribute flags: 0032000000000000"));
    assert!(run(&["-A", "3:get:49"]).contains("3:49:1"));
    // Seven tries, of a loader that has taken one of eight.
    run(&["-A", "3:set:54"]);
    sound();
    assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&7));
    // The backup is older, as a loader leaves it that writes the primary copy only.
    run(&["-A", "2:set:60"]);
    board.control().confirm(&slot("B")).unwrap();
    sound();
    assert!(run(&["-i", "3"]).contains("Attribute flags: 0102000000000000"));
    assert!(run(&["-i", "2"]).contains("Attribute flags: 1101000000000000"));
}

#[test]
fn sgdisk_and_the_agent_read_each_other_in_an_image() {
    let Some(program) = tools::program("sgdisk") else {
        return;
    };
    let board = Board {
        dir: tempfile::tempdir().unwrap(),
    };
    fs::write(board.path(), vec![0; 8 << 20]).unwrap();
    with_sgdisk(&program, &board);
    // Each of the two copies is rebuilt as sgdisk makes it.
    let good = fs::read(board.path()).unwrap();
    for sector in [1, 2, (good.len() / SECTOR) - 33, (good.len() / SECTOR) - 1] {
        let mut bad = good.clone();
        bad[sector * SECTOR..][..SECTOR].fill(0);
        fs::write(board.path(), &bad).unwrap();
        board.control().view().unwrap();
        assert!(fs::read(board.path()).unwrap() == good, "sector {sector}");
    }
}

/// Where the test may make one: as root, with loop devices; once with sectors of 4096 bytes.
#[test]
fn sgdisk_and_the_agent_read_each_other_on_a_device() {
    let (Some(program), Some(losetup)) = (tools::program("sgdisk"), tools::program("losetup")) else {
        return;
    };
    for sector in ["512", "4096"] {
        let board = Board {
            dir: tempfile::tempdir().unwrap(),
        };
        let image = board.dir.path().join("image");
        fs::write(&image, vec![0; 8 << 20]).unwrap();
        let output = Command::new(&losetup)
            .args(["-b", sector, "-f", "--show"])
            .arg(&image)
            .output()
            .unwrap();
        if !output.status.success() {
            tools::skip("no loop device can be made here");
            return;
        }
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        std::os::unix::fs::symlink(&device, board.path()).unwrap();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| with_sgdisk(&program, &board)));
        let detached = Command::new(&losetup).args(["-d", &device]).status().unwrap();
        assert!(detached.success() && done.is_ok(), "sectors of {sector} bytes");
    }
}
