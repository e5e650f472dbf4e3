use std::fs;
use std::path::Path;
use std::process::Command;

use fwagent::host::loader::boot_count::UbootCount;
use fwagent::host::loader::file_lock::FileLock;
use fwagent::host::loader::uboot::Uboot;
use fwagent::host::loader::{self, HostBoot};
use fwagent::machine::boot_count::{CounterFile, SlotNames};
use fwagent::machine::slot::SlotId;
use fwagent::machine::uboot_env::{Active, ByteOrder, Environment, Format, Layout};

use crate::{Loader, pick, running, slot, slots, start, tools, torn};

/// Bytes of one copy.
const SIZE: usize = 128;

/// A device of which the directory holds `fw_env.config`, `cmdline` and the copies.
pub struct Board {
    pub dir: tempfile::TempDir,
    byte_order: ByteOrder,
    script: Script,
}

/// What boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Scheme `order`.
    Order,
    /// Scheme `bootcount`.
    Count {
        /// Whether altbootcmd names the other slot and ends the trial, as Mender's does.
        ending: bool,
        /// Whether the counter is a file.
        in_file: bool,
    },
}

/// All kinds of scheme `bootcount`.
pub const COUNTS: [Script; 3] = [
    Script::Count {
        ending: false,
        in_file: false,
    },
    Script::Count {
        ending: true,
        in_file: false,
    },
    Script::Count {
        ending: false,
        in_file: true,
    },
];

/// Where the copies lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A file of its own.
    Alone,
    /// One copy within a larger file.
    Within,
    /// Two copies within one file, the second counted from its end.
    Both,
    /// A file for each.
    Two,
}

pub const PLACES: [Place; 4] = [Place::Alone, Place::Within, Place::Both, Place::Two];

impl Place {
    fn layout(self) -> Layout {
        match self {
            Self::Alone | Self::Within => Layout::Single,
            Self::Both | Self::Two => Layout::Redundant,
        }
    }
}

impl Board {
    /// A device that runs from slot `A`.
    pub fn new(place: Place, byte_order: ByteOrder) -> Self {
        Self::with(place, byte_order, Script::Order)
    }

    /// The same with another script.
    pub fn with(place: Place, byte_order: ByteOrder, script: Script) -> Self {
        let board = Self {
            script,
            ..Self::empty(place, byte_order)
        };
        let format = Format {
            layout: place.layout(),
            byte_order,
        };
        let image = first_image(format);
        match place {
            Place::Alone => fs::write(board.dir.path().join("one"), image).unwrap(),
            Place::Within => fs::write(board.dir.path().join("one"), [&[7; 50], &image[..], &[7; 9]].concat()).unwrap(),
            Place::Both => fs::write(
                board.dir.path().join("one"),
                [&[7; 50], &image[..], &image, &[7; 9]].concat(),
            )
            .unwrap(),
            Place::Two => {
                fs::write(board.dir.path().join("one"), &image).unwrap();
                fs::write(board.dir.path().join("two"), &image).unwrap();
            }
        }
        start(board.dir.path(), "A");
        board.control().create(&slot("A")).unwrap();
        board
    }

    fn empty(place: Place, byte_order: ByteOrder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let text = match place {
            Place::Alone => format!("# one\n{at}/one 0 0x80\n"),
            Place::Within => format!("{at}/one 50 80\n"),
            Place::Both => format!("{at}/one 0x32 0x80\n{at}/one -137 0x80 0x80 1\n"),
            Place::Two => format!("{at}/one 0 80\n{at}/two 0 80\n"),
        };
        fs::write(dir.path().join("fw_env.config"), text).unwrap();
        Self {
            dir,
            byte_order,
            script: Script::Order,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

/// An image with a variable that is none of the agent's business.
fn first_image(format: Format) -> Vec<u8> {
    let mut data = b"bootdelay=2\0".to_vec();
    data.resize(SIZE - format.header(), 0);
    let crc = crc32fast::hash(&data);
    let mut image = match format.byte_order {
        ByteOrder::Little => crc.to_le_bytes(),
        ByteOrder::Big => crc.to_be_bytes(),
    }
    .to_vec();
    image.extend(std::iter::repeat_n(1, format.header() - 4));
    [image, data].concat()
}

/// What lies in the environment, and how it is saved.
struct Stored {
    environment: Environment,
    format: Format,
    flags: u8,
    file: &'static str,
    at: usize,
}

impl Board {
    /// Reads as U-Boot does, and finds where the next save goes.
    fn stored(&self) -> Option<Stored> {
        let one = fs::read(self.path("one")).unwrap();
        let two = fs::read(self.path("two")).ok();
        let format = |layout| Format {
            layout,
            byte_order: self.byte_order,
        };
        let single = |image: &[u8], at| {
            let format = format(Layout::Single);
            Some(Stored {
                environment: Environment::decode(image, format).ok()?.0,
                format,
                flags: 0,
                file: "one",
                at,
            })
        };
        let redundant = |images: [&[u8]; 2], places: [(&'static str, usize); 2]| {
            let active = Active::choose(images, self.byte_order).ok()?;
            let (copy, flags) = active.next();
            let (file, at) = places[copy];
            Some(Stored {
                environment: active.environment,
                format: format(Layout::Redundant),
                flags,
                file,
                at,
            })
        };
        // Which place it is, is known from the lengths.
        match (&two, one.len()) {
            (Some(two), _) => redundant([&one, two], [("one", 0), ("two", 0)]),
            (None, SIZE) => single(&one, 0),
            (None, length) if length > 2 * SIZE => redundant(
                [&one[50..][..SIZE], &one[50 + SIZE..][..SIZE]],
                [("one", 50), ("one", 50 + SIZE)],
            ),
            _ => single(&one[50..][..SIZE], 50),
        }
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.stored()?.text(name)
    }

    fn save(&self, stored: &Stored) {
        let image = stored.environment.encode(stored.format, stored.flags).unwrap();
        let mut bytes = fs::read(self.path(stored.file)).unwrap();
        bytes[stored.at..][..SIZE].copy_from_slice(&image);
        fs::write(self.path(stored.file), bytes).unwrap();
    }

    /// The script of scheme `order`.
    fn by_order(&self) -> Option<String> {
        let mut stored = self.stored()?;
        let left = |name: &str| {
            let value = stored.text(&format!("BOOT_{name}_LEFT")).unwrap_or_default();
            u32::from_str_radix(&value, 16).unwrap_or(3)
        };
        let (chosen, counted) = pick(&stored.text("BOOT_ORDER")?, left)?;
        if counted {
            let less = left(&chosen) - 1;
            stored.set(&format!("BOOT_{chosen}_LEFT"), &format!("{less:x}"));
            self.save(&stored);
        }
        Some(chosen)
    }

    /// U-Boot with a boot counter, and bootcmd and altbootcmd of scheme `bootcount`.
    fn by_count(&self, ending: bool, in_file: bool) -> Option<String> {
        let mut stored = self.stored()?;
        let number = |stored: &Stored, name: &str| -> u32 {
            let text = stored.text(name).unwrap_or_default();
            text.parse().unwrap_or(0)
        };
        let file = CounterFile::decode(&fs::read(self.path("counter")).unwrap_or_default());
        let (counts, count) = if in_file {
            (file.upgrade_available, u32::from(file.count) + 1)
        } else {
            (
                number(&stored, "upgrade_available") != 0,
                number(&stored, "bootcount") + 1,
            )
        };
        if counts && in_file {
            let count = (count & 0xff) as u8;
            fs::write(self.path("counter"), CounterFile { count, ..file }.encode()).unwrap();
        } else if counts {
            stored.set("bootcount", &count.to_string());
            self.save(&stored);
            stored = self.stored()?;
        }
        let limit = number(&stored, "bootlimit");
        let named = stored.text("fwagent_slot")?;
        if !counts || limit == 0 || count <= limit {
            return Some(named);
        }
        let other = match stored.text("fwagent_fallback") {
            Some(slot) => slot,
            None => (if named == "A" { "B" } else { "A" }).to_owned(),
        };
        if ending {
            stored.set("fwagent_slot", &other);
            stored.set("upgrade_available", "0");
            self.save(&stored);
        }
        Some(other)
    }
}

impl Stored {
    fn text(&self, name: &str) -> Option<String> {
        let value = self.environment.get(name)?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.set(name, value).unwrap();
    }
}

impl Loader for Board {
    fn control(&self) -> Box<dyn HostBoot> {
        let lock = FileLock::of_fw_setenv(self.path("lock"));
        let medium = Uboot::new(self.path("fw_env.config"), self.byte_order, lock);
        let running = running(self.dir.path());
        match self.script {
            Script::Order => Box::new(loader::Loader::new(medium, slots(), 3, running)),
            Script::Count { in_file, .. } => {
                let words = ["A", "B"].map(|name| (name.to_owned(), name.to_owned()));
                let variables = vec![("fwagent_slot".to_owned(), words.into())];
                let fallback = in_file.then(|| "fwagent_fallback".to_owned());
                let names = SlotNames::new(&slots(), variables, fallback).unwrap();
                let medium = UbootCount::new(medium, names, in_file.then(|| self.path("counter")));
                Box::new(loader::Loader::new(medium, slots(), 3, running))
            }
        }
    }

    fn power_on(&self) -> Option<SlotId> {
        let chosen = match self.script {
            Script::Order => self.by_order(),
            Script::Count { ending, in_file } => self.by_count(ending, in_file),
        };
        Some(start(self.dir.path(), &chosen?))
    }

    fn attempts(&self) -> u32 {
        3
    }

    fn leaves_confirmed(&self) -> bool {
        self.script == Script::Order
    }
}

fn boards() -> impl Iterator<Item = Board> {
    PLACES
        .into_iter()
        .flat_map(|place| [ByteOrder::Little, ByteOrder::Big].map(|byte_order| Board::new(place, byte_order)))
}

#[test]
fn attempts_are_used_up_and_the_loader_goes_back() {
    for board in boards() {
        board.control().arm(&slot("B"), 3).unwrap();
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&3));
        for left in [2, 1, 0] {
            assert_eq!(board.power_on(), Some(slot("B")));
            let view = board.control().view().unwrap();
            assert_eq!((view.booted, view.armed.len()), (Some(slot("B")), 0), "{left}");
        }
        assert_eq!(board.power_on(), Some(slot("A")));
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&0));
        board.control().disable(&slot("B")).unwrap();
        assert!(board.control().view().unwrap().armed.is_empty());
        // Even without attempts left, since the agent has not given them back, the last slot is booted.
        for _ in 0..5 {
            assert_eq!(board.power_on(), Some(slot("A")));
        }
        let error = board.control().disable(&slot("A")).unwrap_err();
        assert!(
            fwagent::drive::chain(&error).contains("only one in the boot order"),
            "{error}"
        );
    }
}

#[test]
fn a_confirmed_slot_is_first_and_gets_its_attempts_back() {
    for board in boards() {
        board.control().arm(&slot("B"), 3).unwrap();
        assert_eq!(board.power_on(), Some(slot("B")));
        board.control().confirm(&slot("B")).unwrap();
        for _ in 0..9 {
            assert_eq!(board.power_on(), Some(slot("B")));
            board.control().replenish(&slot("B")).unwrap();
        }
        assert_eq!(board.control().primary().unwrap(), Some(slot("B")));
        // One that never comes up is left for the other confirmed one.
        let booted: Vec<_> = (0..5).map(|_| board.power_on().unwrap().to_string()).collect();
        assert_eq!(booted, ["B", "B", "B", "A", "A"]);
    }
}

#[test]
fn a_torn_write_leaves_the_old_environment_or_the_new_one() {
    for place in [Place::Both, Place::Two] {
        let board = Board::new(place, ByteOrder::Little);
        // Twice, so that the inactive copy is no longer what it was at first.
        for (round, change) in ["arm", "disable", "arm"].into_iter().enumerate() {
            let files: Vec<_> = ["one", "two"]
                .into_iter()
                .filter(|name| board.path(name).exists())
                .collect();
            let read = || {
                files
                    .iter()
                    .map(|name| fs::read(board.path(name)).unwrap())
                    .collect::<Vec<_>>()
            };
            let before = (read(), board.control().view().unwrap());
            match change {
                "arm" => board.control().arm(&slot("B"), 3).unwrap(),
                _ => board.control().disable(&slot("B")).unwrap(),
            }
            let after = (read(), board.control().view().unwrap());
            let changed: Vec<_> = (0..files.len())
                .filter(|file| before.0[*file] != after.0[*file])
                .collect();
            let [file] = changed[..] else {
                panic!("{changed:?}: only one copy is written")
            };
            for state in torn(&before.0[file], &after.0[file], 32) {
                fs::write(board.path(files[file]), &state).unwrap();
                let view = board.control().view().unwrap();
                assert!(view == before.1 || view == after.1, "{round} {change}: {view:?}");
                // What it did not reach is done again.
                match change {
                    "arm" => board.control().arm(&slot("B"), 3).unwrap(),
                    _ => board.control().disable(&slot("B")).unwrap(),
                }
                assert_eq!(board.control().view().unwrap(), after.1);
                for (name, bytes) in files.iter().zip(&before.0) {
                    fs::write(board.path(name), bytes).unwrap();
                }
            }
            for (name, bytes) in files.iter().zip(&after.0) {
                fs::write(board.path(name), bytes).unwrap();
            }
        }
    }
}

#[test]
fn a_torn_single_copy_is_refused_or_whole_and_what_lies_around_is_not_touched() {
    let board = Board::new(Place::Within, ByteOrder::Big);
    let before = fs::read(board.path("one")).unwrap();
    let view = board.control().view().unwrap();
    board.control().arm(&slot("B"), 3).unwrap();
    let after = fs::read(board.path("one")).unwrap();
    assert!(after[..50] == [7; 50] && after[50 + SIZE..] == [7; 9] && after.len() == before.len());
    let armed = board.control().view().unwrap();
    let mut refused = 0;
    for state in torn(&before, &after, 32) {
        fs::write(board.path("one"), &state).unwrap();
        match board.control().view() {
            Ok(found) => assert!(found == view || found == armed),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
}

#[test]
fn the_wrong_layout_byte_order_or_place_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let refused = |board: &Board, expected: &str| {
        for error in [
            board.control().view().unwrap_err(),
            board.control().arm(&slot("B"), 3).unwrap_err(),
        ] {
            let text = fwagent::drive::chain(&error);
            assert!(text.contains(expected), "{text}");
        }
    };
    let board = Board::new(Place::Two, ByteOrder::Little);
    let config = fs::read_to_string(board.path("fw_env.config")).unwrap();
    fs::write(board.path("fw_env.config"), config.lines().next().unwrap()).unwrap();
    refused(
        &board,
        "it is a redundant little-endian environment, and configured is a single",
    );
    fs::write(board.path("fw_env.config"), config.replace("two", "none")).unwrap();
    refused(&board, "none");
    fs::write(board.path("fw_env.config"), config.replace("80", "81")).unwrap();
    refused(&board, "outside of the device or file");
    std::os::unix::fs::symlink("one", board.path("link")).unwrap();
    fs::write(board.path("fw_env.config"), config.replace("two", "link")).unwrap();
    refused(&board, "overlap");
    fs::write(
        board.path("fw_env.config"),
        config.replace(&board.dir.path().join("two").display().to_string(), "/dev/null"),
    )
    .unwrap();
    refused(&board, "neither a file nor a block device");
    fs::write(board.path("fw_env.config"), config).unwrap();
    let big = Board {
        byte_order: ByteOrder::Big,
        ..board
    };
    refused(
        &big,
        "little-endian environment, and configured is a redundant big-endian one",
    );
    for name in ["one", "two"] {
        fs::write(big.path(name), [0xff; SIZE]).unwrap();
    }
    refused(&big, "neither copy is intact");
    // A replaced file keeps its mode.
    let board = Board::new(Place::Alone, ByteOrder::Little);
    fs::set_permissions(board.path("one"), fs::Permissions::from_mode(0o640)).unwrap();
    board.control().arm(&slot("B"), 3).unwrap();
    assert_eq!(
        fs::metadata(board.path("one")).unwrap().permissions().mode() & 0o777,
        0o640
    );
}

/// Where the test may make one: as root, with loop devices.
#[test]
fn a_block_device_with_copies_at_its_end() {
    let Some(losetup) = tools::program("losetup") else {
        return;
    };
    let board = Board::empty(Place::Both, ByteOrder::Little);
    let format = Format {
        layout: Layout::Redundant,
        byte_order: ByteOrder::Little,
    };
    let image = first_image(format);
    let before = [&vec![7; 65536 - 2 * SIZE][..], &image, &image].concat();
    fs::write(board.path("disk"), &before).unwrap();
    let output = Command::new(&losetup)
        .args(["-f", "--show"])
        .arg(board.path("disk"))
        .output()
        .unwrap();
    if !output.status.success() {
        tools::skip("no loop device can be made here");
        return;
    }
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    fs::write(
        board.path("fw_env.config"),
        format!("{device} -0x100 0x80\n{device} -0x80 0x80\n"),
    )
    .unwrap();
    start(board.dir.path(), "A");
    let changed = board
        .control()
        .create(&slot("A"))
        .and_then(|()| board.control().arm(&slot("B"), 3))
        .and_then(|()| board.control().view());
    let detached = Command::new(&losetup).args(["-d", &device]).status().unwrap();
    assert!(detached.success());
    assert_eq!(changed.unwrap().armed.get(&slot("B")), Some(&3));
    let after = fs::read(board.path("disk")).unwrap();
    assert!(after.len() == before.len() && after[..65536 - 2 * SIZE] == before[..65536 - 2 * SIZE]);
    let active = Active::choose(
        [&after[65536 - 2 * SIZE..][..SIZE], &after[65536 - SIZE..]],
        ByteOrder::Little,
    )
    .unwrap();
    assert_eq!(active.environment.get("BOOT_ORDER"), Some(&b"B A"[..]));
}

#[test]
fn the_tools_of_u_boot_and_the_agent_read_each_other() {
    let (Some(make), Some(print), Some(set)) = (
        tools::program("mkenvimage"),
        tools::program("fw_printenv"),
        tools::program("fw_setenv"),
    ) else {
        return;
    };
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program:?} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (place, byte_order) in [
        (Place::Alone, ByteOrder::Little),
        (Place::Two, ByteOrder::Little),
        (Place::Alone, ByteOrder::Big),
        (Place::Two, ByteOrder::Big),
    ] {
        let board = Board::empty(place, byte_order);
        start(board.dir.path(), "A");
        let text = board.path("text");
        fs::write(&text, "bootdelay=2\nBOOT_ORDER=A B\n").unwrap();
        let (text, one) = (text.display().to_string(), board.path("one").display().to_string());
        let mut arguments = vec!["-s", "128", "-o", &one];
        arguments.extend((place == Place::Two).then_some("-r"));
        arguments.extend((byte_order == ByteOrder::Big).then_some("-b"));
        arguments.push(&text);
        run(&make, &arguments);
        fs::copy(board.path("one"), board.path("two")).unwrap();
        assert_eq!(board.control().primary().unwrap(), Some(slot("A")));
        board.control().create(&slot("A")).unwrap();
        board.control().arm(&slot("B"), 16).unwrap();
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&16));
        if byte_order == ByteOrder::Big {
            // The tools take the byte order of the machine that they run on.
            continue;
        }
        let config = board.path("fw_env.config").display().to_string();
        let printed = run(&print, &["-c", &config]);
        for line in ["bootdelay=2", "BOOT_ORDER=B A", "BOOT_B_LEFT=10", "BOOT_A_LEFT=3"] {
            assert!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
        }
        run(&set, &["-c", &config, "BOOT_B_LEFT", "f"]);
        run(&set, &["-c", &config, "serial#", "0815"]);
        assert_eq!(board.control().view().unwrap().armed.get(&slot("B")), Some(&15));
        board.control().confirm(&slot("B")).unwrap();
        let printed = run(&print, &["-c", &config]);
        assert!(
            printed.contains("serial#=0815") && printed.contains("BOOT_B_LEFT=3"),
            "{printed}"
        );
    }
}
