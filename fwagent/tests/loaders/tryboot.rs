use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use fwagent::host::loader::HostBoot;
use fwagent::host::loader::tryboot::{Tryboot, TrybootPaths};
use fwagent::machine::autoboot::{Autoboot, Partitions};
use fwagent::machine::slot::SlotId;

use crate::{Loader, cmdline, running, slot, start};

/// A Raspberry Pi of which the directory holds `autoboot.txt`, `cmdline`, `boot_id`, `firmware` and the agent's state.
pub struct Board {
    pub dir: tempfile::TempDir,
    /// Gone after the next boot, and without power.
    flag: Cell<bool>,
    boots: Cell<u32>,
}

impl Board {
    /// A device that runs from slot `A`.
    pub fn new() -> Self {
        let board = Self::empty();
        board.control().create(&slot("A")).unwrap();
        board
    }

    /// One of which the loader knows nothing of slots yet.
    pub fn empty() -> Self {
        let board = Self {
            dir: tempfile::tempdir().unwrap(),
            flag: Cell::new(false),
            boots: Cell::new(0),
        };
        for dir in ["firmware", "state"] {
            fs::create_dir(board.path(dir)).unwrap();
        }
        board.boots("A", false);
        board
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn autoboot(&self) -> Vec<u8> {
        fs::read(self.path("autoboot.txt")).unwrap()
    }

    /// What the kernel is told, in a boot of its own.
    fn boots(&self, name: &str, trial: bool) -> SlotId {
        self.boots.set(self.boots.get() + 1);
        fs::write(self.path("boot_id"), format!("boot-{}\n", self.boots.get())).unwrap();
        fs::write(self.path("firmware/tryboot"), u32::from(trial).to_be_bytes()).unwrap();
        self.say_booted(name);
        start(self.dir.path(), name)
    }

    /// The restart that the agent asks for, with the flag or without.
    fn restart(&self, trial: bool) -> Option<SlotId> {
        self.flag.set(trial);
        self.power_on()
    }
}

impl Loader for Board {
    fn control(&self) -> Box<dyn HostBoot> {
        let paths = TrybootPaths {
            autoboot: self.path("autoboot.txt"),
            firmware: self.path("firmware"),
            boot_id: self.path("boot_id"),
        };
        let partitions = Partitions(vec![(slot("A"), 2), (slot("B"), 3)]);
        Box::new(Tryboot::new(
            paths,
            partitions,
            &self.path("state"),
            running(self.dir.path()),
        ))
    }

    fn power_on(&self) -> Option<SlotId> {
        let file = Autoboot::parse(&self.autoboot()).ok()?;
        let trial = self.flag.replace(false) && file.a_b;
        let partition = if trial { file.trial } else { file.partition };
        let name = match partition {
            2 => "A",
            3 => "B",
            _ => return None,
        };
        Some(self.boots(name, trial))
    }

    fn attempts(&self) -> u32 {
        1
    }

    fn leaves_confirmed(&self) -> bool {
        false
    }

    fn say_booted(&self, slot: &str) {
        let partition: u32 = if slot == "A" { 2 } else { 3 };
        fs::write(self.path("firmware/partition"), partition.to_be_bytes()).unwrap();
    }

    fn names_the_slot(&self) -> bool {
        true
    }

    fn restart_for_trial(&self) {
        self.flag.set(true);
    }
}

#[test]
fn one_attempt_by_the_flag_and_the_loader_goes_back() {
    let board = Board::new();
    let left = || board.control().view().unwrap().armed.get(&slot("B")).copied();
    board.control().arm(&slot("B"), 1).unwrap();
    // Not yet asked for, also when the power goes now.
    assert_eq!((left(), board.power_on(), left()), (Some(1), Some(slot("A")), Some(1)));
    board.control().spend(&slot("B")).unwrap();
    assert_eq!(left(), Some(1), "the restart is due in this boot");
    assert_eq!(board.restart(true), Some(slot("B")));
    assert_eq!(board.control().view().unwrap().booted, Some(slot("B")));
    assert_eq!((board.power_on(), left()), (Some(slot("A")), Some(0)));
    // The power went after the restart was asked for: used up, though nothing was tried.
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(left(), Some(1));
    board.control().spend(&slot("B")).unwrap();
    assert_eq!((board.restart(false), left()), (Some(slot("A")), Some(0)));
    board.control().disable(&slot("B")).unwrap();
    assert_eq!(
        (board.restart(true), left()),
        (Some(slot("A")), None),
        "even with the flag"
    );
}

#[test]
fn confirmation_swaps_the_numbers_where_they_lie() {
    let board = Board::empty();
    let text = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";
    fs::write(board.path("autoboot.txt"), text).unwrap();
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.autoboot(), text.as_bytes(), "it is so already");
    assert_eq!(board.restart(true), Some(slot("B")));
    board.control().confirm(&slot("B")).unwrap();
    let expected = "[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=2\n";
    assert_eq!(board.autoboot(), expected.as_bytes());
    for trial in [false, true, false] {
        assert_eq!(board.restart(trial), Some(slot(if trial { "A" } else { "B" })));
    }
    // Started by hand and confirmed before: it is the one that runs from now on.
    assert_eq!(board.restart(true), Some(slot("A")));
    board.control().replenish(&slot("A")).unwrap();
    assert_eq!(board.power_on(), Some(slot("A")));
}

#[test]
fn the_file_keeps_its_length_and_its_other_lines() {
    let board = Board::empty();
    assert!(board.control().view().is_err(), "there is no file");
    assert!(board.control().arm(&slot("B"), 1).is_err() && !board.path("autoboot.txt").exists());
    assert_eq!(board.control().primary().unwrap(), None);
    fs::write(board.path("autoboot.txt"), "boot_partition=2\n# ours\n").unwrap();
    let error = board.control().arm(&slot("B"), 1).unwrap_err();
    let text = fwagent::drive::chain(&error);
    assert!(text.contains("the file has 24; append empty lines"), "{text}");
    assert_eq!(board.autoboot(), b"boot_partition=2\n# ours\n");
    board.control().create(&slot("A")).unwrap();
    let length = board.autoboot().len();
    for change in ["arm", "confirm", "disable"] {
        match change {
            "arm" => board.control().arm(&slot("B"), 1).unwrap(),
            "confirm" => board.control().confirm(&slot("B")).unwrap(),
            _ => board.control().disable(&slot("A")).unwrap(),
        }
        let text = String::from_utf8(board.autoboot()).unwrap();
        assert!(text.len() == length && text.contains("# ours\n"), "{change}: {text}");
    }
    for broken in [&b"[pi5]\nboot_partition=2\n"[..], b"", &[b'#'; 513]] {
        fs::write(board.path("autoboot.txt"), broken).unwrap();
        assert!(board.control().view().is_err() && board.control().confirm(&slot("A")).is_err());
        assert_eq!(board.autoboot(), broken);
    }
}

#[test]
fn which_slot_runs_is_said_by_the_loader_and_not_contradicted() {
    let board = Board::new();
    let seen = || {
        let view = board.control().view();
        view.map(|view| view.booted.unwrap().to_string())
            .map_err(|error| fwagent::drive::chain(&error))
    };
    assert_eq!(seen().as_deref(), Ok("A"));
    fs::write(cmdline(board.dir.path()), "quiet").unwrap();
    assert_eq!(seen().as_deref(), Ok("A"), "the command line need not name it");
    fs::write(cmdline(board.dir.path()), "fwagent.slot=B").unwrap();
    assert!(
        seen()
            .unwrap_err()
            .contains("it is B by what the kernel says, and the boot loader booted the partition of slot A")
    );
    board.say_booted("B");
    assert_eq!(seen().as_deref(), Ok("B"));
    for (bytes, expected) in [
        (&[0, 0, 0, 1][..], "partition 1 is no slot"),
        (&[0, 0, 1, 2], "partition 258 is no slot"),
        (&[2], "it has 1 bytes"),
    ] {
        fs::write(board.path("firmware/partition"), bytes).unwrap();
        assert!(seen().unwrap_err().contains(expected));
    }
    // An older loader, which says nothing.
    fs::remove_file(board.path("firmware/partition")).unwrap();
    assert_eq!(seen().as_deref(), Ok("B"));
    fs::write(cmdline(board.dir.path()), "quiet").unwrap();
    assert!(seen().unwrap_err().contains("there is no fwagent.slot="));
}
