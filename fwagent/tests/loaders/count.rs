//! U-Boot with a boot counter.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fwagent::host::loader;
use fwagent::host::loader::file_lock::{FileLock, LOCK_FILE};
use fwagent::host::loader::uboot::Uboot;
use fwagent::machine::uboot_env::ByteOrder;
use fwagent::ports::BootControl;

use crate::uboot::{Board, COUNTS, PLACES, Place, Script};
use crate::{Loader, running, slot, slots, tools, torn};

fn boards() -> impl Iterator<Item = Board> {
    COUNTS
        .into_iter()
        .flat_map(|script| PLACES.map(|place| Board::with(place, ByteOrder::Little, script)))
}

#[test]
fn attempts_are_spent_before_the_trial_and_the_loader_goes_back() {
    for board in boards() {
        board.control().arm(&slot("B"), 3).unwrap();
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&3));
        for _ in 0..3 {
            assert_eq!(board.power_on(), Some(slot("B")));
            let view = board.control().view().unwrap();
            assert_eq!((view.booted, view.armed.len()), (Some(slot("B")), 0));
        }
        // Whether or not the agent comes up there.
        for _ in 0..9 {
            assert_eq!(board.power_on(), Some(slot("A")));
            let left = board.control().view().unwrap().armed.get(&slot("B")).copied();
            assert!(matches!(left, None | Some(0)), "{left:?}");
            board.control().replenish(&slot("A")).unwrap();
        }
        board.control().disable(&slot("B")).unwrap();
        assert!(board.control().view().unwrap().armed.is_empty());
        for _ in 0..9 {
            assert_eq!(board.power_on(), Some(slot("A")));
        }
    }
}

#[test]
fn a_confirmed_slot_is_booted_without_counting() {
    for board in boards() {
        board.control().arm(&slot("B"), 3).unwrap();
        assert_eq!(board.power_on(), Some(slot("B")));
        board.control().confirm(&slot("B")).unwrap();
        assert_eq!(board.control().primary().unwrap(), Some(slot("B")));
        for _ in 0..9 {
            assert_eq!(board.power_on(), Some(slot("B")));
        }
    }
}

/// Whatever a loss of power leaves of a write: both places, in the order in which they are written.
#[test]
fn a_torn_write_leaves_the_old_memory_or_the_new_one() {
    for script in COUNTS {
        for place in [Place::Both, Place::Two] {
            for change in ["arm", "confirm", "disable"] {
                let board = Board::with(place, ByteOrder::Little, script);
                if change != "arm" {
                    board.control().arm(&slot("B"), 3).unwrap();
                    assert_eq!(board.power_on(), Some(slot("B")));
                }
                let act = || match change {
                    "arm" => board.control().arm(&slot("B"), 3).unwrap(),
                    "confirm" => board.control().confirm(&slot("B")).unwrap(),
                    _ => board.control().disable(&slot("B")).unwrap(),
                };
                // First what is written first.
                let mut names = vec!["counter", "one", "two"];
                if change != "arm" {
                    names.rotate_left(1);
                }
                names.retain(|name| board.dir.path().join(name).exists());
                let read = || -> Vec<Vec<u8>> {
                    let paths = names.iter().map(|name| board.dir.path().join(name));
                    paths.map(|path| fs::read(path).unwrap()).collect()
                };
                let put = |contents: &[Vec<u8>]| {
                    for (name, content) in names.iter().zip(contents) {
                        fs::write(board.dir.path().join(name), content).unwrap();
                    }
                };
                let before = read();
                act();
                let after = read();
                let (armed, changed) = (board.control().view().unwrap(), {
                    let pairs = before.iter().zip(&after);
                    pairs.filter(|(before, after)| before != after).count()
                });
                let in_file = matches!(script, Script::Count { in_file: true, .. });
                assert_eq!(changed, 1 + usize::from(in_file));
                let mut state = before.clone();
                for at in 0..names.len() {
                    for content in torn(&before[at], &after[at], 32) {
                        // Four bytes of one sector are not torn.
                        if names[at] == "counter" && ![&before[at], &after[at]].contains(&&content) {
                            continue;
                        }
                        state[at] = content;
                        put(&state);
                        // Boots as often as it likes without the agent: the trial ends, and nothing unwritten boots.
                        let booted: Vec<String> = (0..6).map(|_| board.power_on().unwrap().to_string()).collect();
                        match change {
                            "arm" => assert!(booted[3..].iter().all(|slot| slot == "A"), "{booted:?}"),
                            "confirm" if booted[0] == "A" => panic!("it ran from B: {booted:?}"),
                            "confirm" => {
                                // The old memory is still a trial; the new one boots B for ever.
                                let ends = booted[3..].iter().all(|slot| slot == "A");
                                assert!(ends || booted.iter().all(|slot| slot == "B"), "{booted:?}");
                            }
                            _ => assert!(booted[2..].iter().all(|slot| slot == "A"), "{booted:?}"),
                        }
                        // What it did not reach is done again.
                        put(&state);
                        crate::start(board.dir.path(), if change == "arm" { "A" } else { "B" });
                        board.control().view().unwrap();
                        act();
                        assert_eq!(board.control().view().unwrap(), armed);
                    }
                    state[at].clone_from(&after[at]);
                }
            }
        }
    }
}

#[test]
fn the_tools_of_u_boot_see_decimal_numbers_and_set_them() {
    let (Some(print), Some(set)) = (tools::program("fw_printenv"), tools::program("fw_setenv")) else {
        return;
    };
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program:?} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for place in [Place::Alone, Place::Two] {
        let board = Board::with(place, ByteOrder::Little, COUNTS[0]);
        let config = board.dir.path().join("fw_env.config").display().to_string();
        board.control().arm(&slot("B"), 12).unwrap();
        let printed = run(&print, &["-c", &config]);
        for line in ["fwagent_slot=B", "upgrade_available=1", "bootcount=0", "bootlimit=12"] {
            assert!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
        }
        run(&set, &["-c", &config, "bootcount", "10"]);
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&2));
        // Deleting is how Mender's scripts may end a trial.
        run(&set, &["-c", &config, "upgrade_available"]);
        assert!(board.control().view().unwrap().armed.is_empty());
        board.control().confirm(&slot("B")).unwrap();
        let printed = run(
            &print,
            &["-c", &config, "upgrade_available", "bootcount", "fwagent_slot"],
        );
        for line in ["fwagent_slot=B", "upgrade_available=0", "bootcount=0"] {
            assert!(printed.contains(line), "{printed}");
        }
    }
}

/// `fw_setenv` waits while the agent works, and the agent while somebody else does.
#[test]
fn the_lock_is_that_of_fw_setenv() {
    let Some(set) = tools::program("fw_setenv") else {
        return;
    };
    let board = Board::new(Place::Two, ByteOrder::Little);
    let config = board.dir.path().join("fw_env.config");
    let control = |patience| {
        let lock = FileLock::of_fw_setenv(LOCK_FILE.into()).waiting(patience);
        let medium = Uboot::new(config.clone(), ByteOrder::Little, lock);
        loader::Loader::new(medium, slots(), 3, running(board.dir.path()))
    };
    let Ok(Some(held)) = FileLock::of_fw_setenv(LOCK_FILE.into()).take() else {
        tools::skip("the lock of fw_setenv cannot be taken here");
        return;
    };
    // Held by this test, both must wait.
    let error = fwagent::drive::chain(&control(Duration::from_millis(100)).arm(&slot("B"), 3).unwrap_err());
    assert!(
        error.contains(LOCK_FILE) && error.contains("another program"),
        "{error}"
    );
    let mut child = Command::new(&set)
        .arg("-c")
        .arg(&config)
        .args(["bootdelay", "7"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // It has opened the file when it waits for the lock; nothing else tells that it got so far.
    let waits = || {
        let links = fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten();
        let mut targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
        targets.any(|target| target.ends_with("fw_printenv.lock"))
    };
    while !waits() {
        std::thread::yield_now();
    }
    let before = fs::read(board.dir.path().join("two")).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "fw_setenv does not heed the lock");
    assert_eq!(fs::read(board.dir.path().join("two")).unwrap(), before);
    drop(held);
    assert!(child.wait().unwrap().success());
    // Now that it is free, the agent takes it, and loses nothing of what the other one wrote.
    control(Duration::from_secs(10)).arm(&slot("B"), 3).unwrap();
    let stored = board.variable("bootdelay");
    assert_eq!(stored.as_deref(), Some("7"));
    assert_eq!(board.variable("BOOT_ORDER").as_deref(), Some("B A"));
}
