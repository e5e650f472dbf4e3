use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use fwagent::host::loader::grub::Grub;
use fwagent::host::loader::{self, HostBoot};
use fwagent::machine::grub_env::Block;
use fwagent::machine::slot::SlotId;
use fwdurable::twin::Twin;

use crate::{Loader, pick, running, slot, slots, start, tools, torn};

/// A device of which the directory holds `grubenv`, `cmdline` and the agent's state.
pub struct Board {
    pub dir: tempfile::TempDir,
}

impl Board {
    /// A device that runs from slot `A`.
    pub fn new() -> Self {
        let board = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let mut block = Block::default();
        block.set("saved_entry", "0").unwrap();
        fs::write(board.path(), block.encode().unwrap()).unwrap();
        start(board.dir.path(), "A");
        board.control().create(&slot("A")).unwrap();
        board
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("grubenv")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn block(&self) -> Block {
        Block::decode(&fs::read(self.path()).unwrap()).unwrap()
    }

    /// The shadow as it is during a write (`U`, old, new) or after one (`W`, new).
    fn store_shadow(&self, parts: &[&[u8]]) {
        let twin = Twin::new(self.state().join("grubenv"), 4096);
        twin.store(&parts.concat()).unwrap();
    }
}

impl Loader for Board {
    fn control(&self) -> Box<dyn HostBoot> {
        fs::create_dir_all(self.state()).unwrap();
        let medium = Grub::new(self.path(), &self.state());
        Box::new(loader::Loader::new(medium, slots(), 1, running(self.dir.path())))
    }

    fn power_on(&self) -> Option<SlotId> {
        // GRUB takes what it can read; with nothing, this script boots nothing.
        let mut block = Block::decode(&fs::read(self.path()).unwrap()).ok()?;
        let text = |name: &str| String::from_utf8(block.get(name).unwrap_or_default()).unwrap();
        let is_set = |name: &str, flag: &str| text(&format!("{name}_{flag}")) == "1";
        let left = |name: &str| u32::from(is_set(name, "OK") && !is_set(name, "TRY"));
        let (chosen, counted) = pick(&text("ORDER"), left)?;
        if counted {
            block.set(&format!("{chosen}_TRY"), "1").unwrap();
            fs::write(self.path(), block.encode().unwrap()).unwrap();
        }
        Some(start(self.dir.path(), &chosen))
    }

    fn attempts(&self) -> u32 {
        1
    }
}

#[test]
fn one_attempt_and_the_loader_goes_back() {
    let board = Board::new();
    let inode = fs::metadata(board.path()).unwrap().ino();
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&1));
    assert_eq!(board.power_on(), Some(slot("B")));
    assert_eq!(board.power_on(), Some(slot("A")));
    assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&0));
    board.control().disable(&slot("B")).unwrap();
    for _ in 0..3 {
        assert_eq!(board.power_on(), Some(slot("A")));
    }
    board.control().replenish(&slot("A")).unwrap();
    assert_eq!(board.block().get("A_TRY"), Some(b"0".to_vec()));
    assert_eq!(board.block().get("saved_entry"), Some(b"0".to_vec()));
    assert_eq!(
        fs::metadata(board.path()).unwrap().ino(),
        inode,
        "GRUB's blocks stay where they are"
    );
    let error = board.control().arm(&slot("B"), 2).unwrap_err();
    assert!(fwagent::drive::chain(&error).contains("counts to 1"), "{error}");
}

#[test]
fn a_confirmed_slot_is_first_and_gets_its_attempt_back() {
    let board = Board::new();
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.power_on(), Some(slot("B")));
    board.control().confirm(&slot("B")).unwrap();
    for _ in 0..5 {
        assert_eq!(board.power_on(), Some(slot("B")));
        board.control().replenish(&slot("B")).unwrap();
    }
    // One that never comes up is left for the other confirmed one.
    let booted: Vec<_> = (0..3).map(|_| board.power_on().unwrap().to_string()).collect();
    assert_eq!(booted, ["B", "A", "A"]);
}

/// Power lost anywhere between the record that a write is under way and the record of its end.
#[test]
fn a_torn_write_is_undone_or_done() {
    let board = Board::new();
    for change in ["arm", "confirm", "disable"] {
        let act = |board: &Board| match change {
            "arm" => board.control().arm(&slot("B"), 1).unwrap(),
            "confirm" => board.control().confirm(&slot("B")).unwrap(),
            _ => board.control().disable(&slot("B")).unwrap(),
        };
        // As in life: nothing is confirmed that does not run.
        let runs = if change == "confirm" { "B" } else { "A" };
        if runs == "B" {
            assert_eq!(board.power_on(), Some(slot("B")));
        } else {
            start(board.dir.path(), "A");
        }
        let old = (fs::read(board.path()).unwrap(), board.control().view().unwrap());
        act(&board);
        let new = (fs::read(board.path()).unwrap(), board.control().view().unwrap());
        for block in torn(&old.0, &new.0, 512) {
            board.store_shadow(&[b"U", &old.0, &new.0]);
            fs::write(board.path(), &block).unwrap();
            // Readers see the same before it is mended, and change nothing.
            let seen = board.control().peek().unwrap();
            assert_eq!(fs::read(board.path()).unwrap(), block);
            let view = board.control().view().unwrap();
            assert_eq!(seen, view);
            assert!(view == old.1 || view == new.1, "{change}: {view:?}");
            // What it did not reach is done again.
            act(&board);
            assert_eq!(board.control().view().unwrap(), new.1);
        }
        // The next change starts from here.
        fs::write(board.path(), &new.0).unwrap();
        board.store_shadow(&[b"W", &new.0]);
    }
}

/// Torn, then started by GRUB, which may see anything, then torn again while it is mended.
#[test]
fn mending_that_is_torn_is_mended() {
    let board = Board::new();
    let old = fs::read(board.path()).unwrap();
    board.control().arm(&slot("B"), 1).unwrap();
    let new = fs::read(board.path()).unwrap();
    for first in torn(&old, &new, 512).into_iter().step_by(7) {
        board.store_shadow(&[b"U", &old, &new]);
        fs::write(board.path(), &first).unwrap();
        let booted = board.power_on().unwrap_or_else(|| start(board.dir.path(), "A"));
        let broken = fs::read(board.path()).unwrap();
        let view = board.control().view().unwrap();
        assert_eq!(view.booted.as_ref(), Some(&booted));
        let mended = fs::read(board.path()).unwrap();
        for second in torn(&broken, &mended, 512).into_iter().step_by(101) {
            board.store_shadow(&[b"U", &mended, &mended]);
            fs::write(board.path(), &second).unwrap();
            assert_eq!(board.control().view().unwrap(), view);
        }
    }
}

#[test]
fn a_block_that_grub_tore_is_taken_from_the_shadow() {
    let board = Board::new();
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.power_on(), Some(slot("B")));
    fs::write(board.path(), [b'x'; 1024]).unwrap();
    let view = board.control().view().unwrap();
    assert_eq!((view.booted, view.armed.len()), (Some(slot("B")), 0));
    assert_eq!(board.block().get("B_TRY"), Some(b"1".to_vec()), "its attempt was spent");
    assert_eq!(board.power_on(), Some(slot("A")));
    // A file of another length, or none, is not mended, because GRUB would not find it in the same blocks.
    fs::write(board.path(), [b'#'; 1023]).unwrap();
    assert!(board.control().view().is_err());
    fs::remove_file(board.path()).unwrap();
    assert!(board.control().view().is_err() && !board.path().exists());
}

#[test]
fn without_a_shadow_a_broken_block_is_refused() {
    let board = Board::new();
    fs::remove_dir_all(board.state()).unwrap();
    assert!(board.control().view().is_ok());
    fs::write(board.path(), [b'#'; 1024]).unwrap();
    assert!(board.control().view().is_err() && board.control().arm(&slot("B"), 1).is_err());
}

#[test]
fn grub_editenv_and_the_agent_read_each_other() {
    let Some(edit) = tools::program("grub-editenv") else {
        return;
    };
    let board = Board {
        dir: tempfile::tempdir().unwrap(),
    };
    let run = |arguments: &[&str]| {
        let output = Command::new(&edit).arg(board.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["create"]);
    start(board.dir.path(), "A");
    board.control().create(&slot("A")).unwrap();
    run(&["set", "odd=back\\slash and\nline"]);
    assert_eq!(board.block().get("odd"), Some(b"back\\slash and\nline".to_vec()));
    board.control().arm(&slot("B"), 1).unwrap();
    let listed = run(&["list"]);
    for line in ["ORDER=B A", "B_OK=1", "B_TRY=0", "A_OK=1", "odd=back\\slash and"] {
        assert!(listed.lines().any(|listed| listed == line), "{line}: {listed}");
    }
    run(&["set", "B_TRY=1"]);
    assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&0));
    run(&["unset", "odd"]);
    board.control().disable(&slot("B")).unwrap();
    assert_eq!(run(&["list"]), "ORDER=A\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n");
}
