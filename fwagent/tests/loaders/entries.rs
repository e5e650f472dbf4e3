use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fwagent::host::loader::HostBoot;
use fwagent::host::loader::efivarfs::EfiVars;
use fwagent::host::loader::systemd_boot::{EntryPaths, SystemdBoot};
use fwagent::machine::boot_entries::{Count, EntryName, SortKey};
use fwagent::machine::slot::SlotId;

use crate::{Loader, running, slot, slots, start, tools};

/// A device of which the directory is the ESP, with `cmdline` and `efivars`.
pub struct Board {
    pub dir: tempfile::TempDir,
}

fn entry(slot: &str, more: &str) -> String {
    format!("title Firmware {slot}\nlinux /{slot}/vmlinuz\noptions fwagent.slot={slot}\n{more}")
}

fn name(slot: &SlotId) -> EntryName {
    EntryName::new("fw-{slot}", slot).unwrap()
}

impl Board {
    /// A device that runs from slot `A`. By their names, the loader sorts `B` first.
    pub fn new() -> Self {
        Self::with("", "")
    }

    /// With lines of the entries that the loader sorts by.
    pub fn with(a: &str, b: &str) -> Self {
        let board = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(board.entries()).unwrap();
        board.put("fw-A.conf", &entry("A", a));
        board.put("fw-B.conf.off", &entry("B", b));
        board.put("rescue.conf.off", "");
        start(board.dir.path(), "A");
        board.control().create(&slot("A")).unwrap();
        board
    }

    fn entries(&self) -> PathBuf {
        self.dir.path().join("loader/entries")
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.entries().join(name), text).unwrap();
    }

    /// Names of all files, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.entries()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name.starts_with("fw-"));
        names.sort();
        names
    }

    fn files(&self) -> Vec<(String, String)> {
        let read = |name: String| (name.clone(), fs::read_to_string(self.entries().join(name)).unwrap());
        self.names().into_iter().map(read).collect()
    }

    fn restore(&self, files: &[(String, String)]) {
        for name in self.names() {
            fs::remove_file(self.entries().join(name)).unwrap();
        }
        for (name, text) in files {
            self.put(name, text);
        }
    }

    fn set(&self, variable: &str, text: &str) {
        let units: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let path = self
            .dir
            .path()
            .join(format!("efivars/{variable}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [&b"\x06\0\0\0"[..], &units].concat()).unwrap();
    }
}

impl Loader for Board {
    fn control(&self) -> Box<dyn HostBoot> {
        let paths = EntryPaths {
            entries: self.entries(),
            conf: self.dir.path().join("loader/loader.conf"),
            vars: EfiVars::new(self.dir.path().join("efivars")),
        };
        let names = [slot("A"), slot("B")].map(|slot| (slot.clone(), name(&slot)));
        Box::new(SystemdBoot::new(paths, names, running(self.dir.path())))
    }

    fn power_on(&self) -> Option<SlotId> {
        let mut seen = Vec::new();
        for (file, text) in self.files() {
            for slot in slots() {
                let count = name(&slot).parse(&file).filter(|count| *count != Count::Off);
                if let (Some(count), Some(key)) = (count, SortKey::parse(&text, name(&slot).id())) {
                    let left = if let Count::Left { left, .. } = count {
                        i64::from(left)
                    } else {
                        -1
                    };
                    seen.push((slot, file.clone(), text.clone(), left, count, key));
                }
            }
        }
        // As the loader does: bad ones last, then as sorted, then the one with more boots left.
        seen.sort_by(|one, two| {
            let bad = (one.3 == 0).cmp(&(two.3 == 0));
            bad.then_with(|| one.5.compare(&two.5)).then_with(|| two.3.cmp(&one.3))
        });
        let (chosen, file, text, _, count, _) = seen.into_iter().next()?;
        if let Count::Left { left, done } = count {
            let (left, done) = (left.saturating_sub(1), done + 1);
            fs::remove_file(self.entries().join(file)).unwrap();
            self.put(&name(&chosen).file(Count::Left { left, done }), &text);
        }
        Some(start(self.dir.path(), chosen.as_str()))
    }

    fn attempts(&self) -> u32 {
        3
    }

    fn leaves_confirmed(&self) -> bool {
        false
    }
}

/// Sorted by their names, by versions, and by a key that puts the slot of the factory first.
pub fn boards() -> [Board; 3] {
    [
        Board::new(),
        Board::with("sort-key fw\nversion 10.0\n", "sort-key fw\nversion 9.1\n"),
        Board::with("sort-key a\n", "sort-key b\n"),
    ]
}

#[test]
fn attempts_are_used_up_and_the_loader_goes_back_however_it_sorts() {
    for board in boards() {
        board.control().arm(&slot("B"), 3).unwrap();
        assert_eq!(board.control().view().unwrap().armed, [(slot("B"), 3)].into());
        for _ in 0..3 {
            assert_eq!(board.power_on(), Some(slot("B")));
        }
        for _ in 0..3 {
            assert_eq!(board.power_on(), Some(slot("A")), "{:?}", board.names());
            board.control().replenish(&slot("A")).unwrap();
            assert!(board.control().view().unwrap().armed.is_empty());
        }
        assert_eq!(board.names(), ["fw-A.conf", "fw-B+0-3.conf"]);
        board.control().disable(&slot("B")).unwrap();
        assert_eq!(board.names(), ["fw-A.conf", "fw-B.conf.off"]);
        let error = board.control().disable(&slot("A")).unwrap_err();
        assert!(fwagent::drive::chain(&error).contains("the only one"), "{error}");
    }
}

#[test]
fn a_confirmed_slot_is_first_however_it_is_sorted() {
    for board in boards() {
        for (next, other) in [("B", "A"), ("A", "B"), ("B", "A")] {
            board.control().arm(&slot(next), 2).unwrap();
            // The agent starts again before the restart: what is armed stays first.
            board.control().replenish(&slot(other)).unwrap();
            assert_eq!(board.power_on(), Some(slot(next)));
            board.control().confirm(&slot(next)).unwrap();
            for _ in 0..5 {
                assert_eq!(board.power_on(), Some(slot(next)));
                board.control().replenish(&slot(next)).unwrap();
            }
            assert_eq!(board.control().primary().unwrap(), Some(slot(next)));
        }
    }
}

/// Power lost anywhere in a change: a new file cut off at any byte, or whole beside the old one.
#[test]
fn what_a_loss_of_power_leaves_is_resolved() {
    let mut states = 0;
    for board in boards() {
        for change in ["arm", "disable", "arm", "confirm"] {
            let act = || match change {
                "arm" => board.control().arm(&slot("B"), 3).unwrap(),
                "confirm" => board.control().confirm(&slot("B")).unwrap(),
                _ => board.control().disable(&slot("B")).unwrap(),
            };
            let before = board.files();
            act();
            let after = board.files();
            let new: Vec<_> = after.iter().filter(|file| !before.contains(file)).collect();
            for (new, old) in new.iter().flat_map(|new| before.iter().map(move |old| (new, old))) {
                let (new_text, old_text) = (&new.1, &old.1);
                if new_text != old_text {
                    continue;
                }
                for length in 0..=new_text.len() {
                    let mut left = before.clone();
                    left.push((new.0.clone(), new_text[..length].to_owned()));
                    board.restore(&left);
                    board.control().peek().unwrap();
                    assert!(board.power_on().is_some(), "{change} {left:?}");
                    start(board.dir.path(), "A");
                    board.restore(&left);
                    act();
                    assert_eq!(board.files(), after, "{change} {left:?}");
                    states += 1;
                }
            }
        }
    }
    assert!(states > 500, "{states}");
}

#[test]
fn what_chooses_for_good_is_missing_or_contradicts_is_named() {
    let board = Board::new();
    let before = board.files();
    let refused = |expected: &str| {
        for error in [
            board.control().view().map(drop).unwrap_err(),
            board.control().arm(&slot("B"), 3).unwrap_err(),
        ] {
            let text = fwagent::drive::chain(&error);
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert_eq!(board.files(), before);
    };
    let conf = board.dir.path().join("loader/loader.conf");
    for pattern in ["fw-a.conf", "@saved", "fw-[ab].conf", "other*"] {
        fs::write(&conf, format!("timeout 0\ndefault {pattern}\n")).unwrap();
        refused(&format!("chooses {pattern:?}"));
    }
    for pattern in ["fw-*", "*", "FW-?.conf"] {
        fs::write(&conf, format!("timeout 0\ndefault {pattern}\n")).unwrap();
        board.control().view().unwrap();
    }
    board.set("LoaderEntryDefault", "fw-a.conf");
    refused("LoaderEntryDefault");
    fs::remove_dir_all(board.dir.path().join("efivars")).unwrap();
    for (variable, good, bad) in [
        ("LoaderEntrySelected", "fw-a.conf", "fw-b.conf"),
        (
            "LoaderBootCountPath",
            "\\loader\\entries\\fw-A+2-1.conf",
            "\\loader\\entries\\fw-B+2-1.conf",
        ),
    ] {
        board.set(variable, good);
        assert_eq!(board.control().view().unwrap().booted, Some(slot("A")));
        board.set(variable, bad);
        let text = fwagent::drive::chain(&board.control().view().unwrap_err());
        assert!(text.contains("it is A by what the kernel says"), "{text}");
        fs::remove_dir_all(board.dir.path().join("efivars")).unwrap();
    }
    fs::remove_file(board.entries().join("fw-B.conf.off")).unwrap();
    assert!(board.control().view().is_ok(), "what runs goes on");
    let text = fwagent::drive::chain(&board.control().arm(&slot("B"), 3).unwrap_err());
    assert!(text.contains("slot B: there is no entry fw-B.conf"), "{text}");
    board.put("fw-B.conf", &entry("B", ""));
    board.put("fw-B+3.conf", &entry("X", ""));
    let text = fwagent::drive::chain(&board.control().disable(&slot("B")).unwrap_err());
    assert!(text.contains("different contents"), "{text}");
}

/// As root, since `bootctl` wants a mount.
#[test]
fn bootctl_sees_the_same_order() {
    let Some(bootctl) = tools::program("bootctl") else {
        return;
    };
    for (index, board) in boards().into_iter().enumerate() {
        let mount = tempfile::tempdir().unwrap();
        let at = mount.path().display().to_string();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none", &at]).status();
        if !mounted.is_ok_and(|status| status.success()) {
            tools::skip("nothing can be mounted here");
            return;
        }
        let seen = |board: &Board| {
            for slot in ["A", "B"] {
                fs::create_dir_all(mount.path().join(slot)).unwrap();
                fs::write(mount.path().join(slot).join("vmlinuz"), "").unwrap();
            }
            let entries = mount.path().join("loader/entries");
            let _ = fs::remove_dir_all(&entries);
            fs::create_dir_all(&entries).unwrap();
            for (name, text) in board.files() {
                fs::write(entries.join(name), text).unwrap();
            }
            let output = Command::new(&bootctl)
                .env("SYSTEMD_RELAX_ESP_CHECKS", "1")
                .args(["--esp-path", &at, "list", "--json=short"])
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let first = text.find("\"id\":\"fw-").map(|at| text[at + 9..at + 10].to_uppercase());
            (first, text)
        };
        board.control().arm(&slot("B"), 3).unwrap();
        let armed = seen(&board);
        for _ in 0..3 {
            board.power_on();
        }
        let spent = seen(&board);
        assert!(Command::new("umount").arg(&at).status().unwrap().success());
        assert_eq!(armed.0.as_deref(), Some("B"), "board {index}: {}", armed.1);
        assert!(armed.1.contains("\"triesLeft\":3"), "{}", armed.1);
        assert_eq!(spent.0.as_deref(), Some("A"), "board {index}: {}", spent.1);
        assert!(spent.1.contains("\"triesDone\":3"), "{}", spent.1);
    }
}
