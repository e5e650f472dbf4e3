use std::fs;
use std::path::PathBuf;

use fwagent::host::loader::HostBoot;
use fwagent::host::loader::efi::Efi;
use fwagent::host::loader::efivarfs::{EfiVars, GLOBAL};
use fwagent::machine::efi_boot::{self, BootNumber, Entry, LoadOption};
use fwagent::machine::slot::SlotId;

use crate::{Loader, running, slot, start, tools};

/// A device of which the directory holds `efivars` and `cmdline`.
pub struct Board {
    pub dir: tempfile::TempDir,
}

impl Board {
    /// A device that runs from slot `A`, with an entry of the firmware's own.
    pub fn new() -> Self {
        let board = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(board.dir.path().join("efivars")).unwrap();
        board.add(0, "UEFI OS");
        board.add(1, "Firmware A");
        board.add(3, "Firmware B");
        board.set("BootOrder", &[1, 0]);
        board.set("BootCurrent", &[1]);
        start(board.dir.path(), "A");
        board.control().create(&slot("A")).unwrap();
        board
    }

    fn vars(&self) -> EfiVars {
        EfiVars::new(self.dir.path().join("efivars"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("efivars").join(format!("{name}-{GLOBAL}"))
    }

    /// A load option: active, a device path that is the end only.
    fn add(&self, number: u16, description: &str) {
        let units: Vec<u8> = description.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let option = [&b"\x07\0\0\0\x01\0\0\0\x04\0"[..], &units, b"\0\0\x7f\xff\x04\0"].concat();
        fs::write(self.path(&BootNumber(number).to_string()), option).unwrap();
    }

    fn set(&self, name: &str, numbers: &[u16]) {
        let numbers: Vec<BootNumber> = numbers.iter().copied().map(BootNumber).collect();
        let bytes = [b"\x07\0\0\0", efi_boot::bytes(&numbers).as_slice()].concat();
        fs::write(self.path(name), bytes).unwrap();
    }

    fn numbers(&self, name: &'static str) -> Vec<u16> {
        let data = self.vars().read(name, GLOBAL).unwrap().unwrap_or_default();
        let numbers = efi_boot::numbers(name, &data).unwrap();
        numbers.into_iter().map(|number| number.0).collect()
    }

    /// Everything that the firmware remembers.
    fn memory(&self) -> [Vec<u16>; 2] {
        ["BootOrder", "BootNext"].map(|name| self.numbers(name))
    }

    fn remember(&self, [order, next]: &[Vec<u16>; 2]) {
        self.set("BootOrder", order);
        match next.as_slice() {
            [] => self.vars().delete("BootNext", GLOBAL).unwrap(),
            next => self.set("BootNext", next),
        }
    }
}

impl Loader for Board {
    fn control(&self) -> Box<dyn HostBoot> {
        // One by its number, one by its description.
        let entries = vec![
            (slot("A"), Entry::parse("Boot0001")),
            (slot("B"), Entry::parse("Firmware B")),
        ];
        Box::new(Efi::new(self.vars(), entries, running(self.dir.path())))
    }

    fn power_on(&self) -> Option<SlotId> {
        let mut candidates = self.numbers("BootNext");
        self.vars().delete("BootNext", GLOBAL).unwrap();
        candidates.extend(self.numbers("BootOrder"));
        let bootable = |number: &u16| {
            let data = self.vars().read(&BootNumber(*number).to_string(), GLOBAL).unwrap()?;
            LoadOption::decode(&data).ok().filter(|option| option.active)
        };
        let (number, option) = candidates
            .into_iter()
            .find_map(|number| Some((number, bootable(&number)?)))?;
        self.set("BootCurrent", &[number]);
        // The entry of the firmware's own leads to the first slot.
        let name = option.description.strip_prefix("Firmware ").unwrap_or("A");
        Some(start(self.dir.path(), name))
    }

    fn attempts(&self) -> u32 {
        1
    }

    fn leaves_confirmed(&self) -> bool {
        false
    }

    fn say_booted(&self, slot: &str) {
        self.set("BootCurrent", &[if slot == "A" { 1 } else { 3 }]);
    }
}

#[test]
fn one_attempt_and_the_firmware_goes_back() {
    let board = Board::new();
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.control().view().unwrap().armed, [(slot("B"), 1)].into());
    assert_eq!(board.power_on(), Some(slot("B")));
    assert_eq!(board.control().view().unwrap().booted, Some(slot("B")));
    assert_eq!(board.power_on(), Some(slot("A")));
    assert!(board.control().view().unwrap().armed.is_empty());
    board.control().arm(&slot("B"), 1).unwrap();
    board.control().disable(&slot("B")).unwrap();
    for _ in 0..3 {
        assert_eq!(board.power_on(), Some(slot("A")));
    }
    assert_eq!(board.memory(), [vec![1, 0], vec![]]);
}

#[test]
fn confirmed_is_first_and_what_firmware_sorted_is_put_back() {
    let board = Board::new();
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.power_on(), Some(slot("B")));
    board.control().confirm(&slot("B")).unwrap();
    assert_eq!(board.memory(), [vec![3, 1, 0], vec![]]);
    for order in [&[1, 3, 0][..], &[0, 1, 3], &[0], &[1]] {
        board.set("BootOrder", order);
        board.control().replenish(&slot("B")).unwrap();
        assert_eq!(board.control().primary().unwrap(), Some(slot("B")));
    }
    // Deleted altogether, as by a reset of the firmware's settings.
    board.vars().delete("BootOrder", GLOBAL).unwrap();
    assert_eq!(board.control().primary().unwrap(), None);
    board.control().replenish(&slot("B")).unwrap();
    assert_eq!(board.power_on(), Some(slot("B")));
}

/// Power lost between any two variables: only what may be booted is, and the same call again reaches the same end.
#[test]
fn a_change_of_two_variables_may_stop_between_them() {
    let board = Board::new();
    let mut stops = 0;
    // Firmware may have put the slot into the order, and somebody may have chosen the other for the next boot.
    for before in [[vec![1, 0], vec![]], [vec![3, 1, 0], vec![]], [vec![1, 3], vec![3]]] {
        for change in ["arm", "disable", "confirm"] {
            let act = || match change {
                "arm" => board.control().arm(&slot("B"), 1).unwrap(),
                "disable" => board.control().disable(&slot("B")).unwrap(),
                _ => board.control().confirm(&slot("B")).unwrap(),
            };
            board.remember(&before);
            act();
            let [order, next] = board.memory();
            let between = if next.is_empty() {
                [before[0].clone(), next.clone()]
            } else {
                [order.clone(), before[1].clone()]
            };
            for at in [&before, &between, &[order.clone(), next.clone()]] {
                board.remember(at);
                act();
                assert_eq!(board.memory(), [order.clone(), next.clone()], "{change} from {at:?}");
                stops += 1;
            }
            // Not yet armed, or armed: never more often than once.
            if change == "arm" {
                board.remember(&between);
                let booted: Vec<_> = (0..3).map(|_| board.power_on().unwrap().to_string()).collect();
                assert_eq!(booted[1..], ["A", "A"]);
            }
        }
    }
    assert_eq!(stops, 27);
}

#[test]
fn what_the_firmware_deleted_broke_or_contradicts_is_named() {
    let error = |result: Result<(), fwagent::ports::PortError>| fwagent::drive::chain(&result.unwrap_err());
    let board = Board::new();
    let before = board.memory();
    board.vars().delete("Boot0003", GLOBAL).unwrap();
    let text = error(board.control().arm(&slot("B"), 1));
    assert!(
        text.contains("slot B: there is no load option with the description \"Firmware B\""),
        "{text}"
    );
    assert!(board.control().view().is_ok(), "what runs goes on");
    // Firmware that made the same entry twice.
    board.add(3, "Firmware B");
    board.add(7, "Firmware B");
    let text = error(board.control().disable(&slot("B")));
    assert!(text.contains("Boot0003 and Boot0007"), "{text}");
    board.vars().delete("Boot0007", GLOBAL).unwrap();
    board.set("BootCurrent", &[3]);
    let text = error(board.control().view().map(drop));
    assert!(text.contains("BootCurrent is Boot0003 of slot B"), "{text}");
    for current in [&[1][..], &[0]] {
        board.set("BootCurrent", current);
        assert_eq!(board.control().view().unwrap().booted, Some(slot("A")));
    }
    assert_eq!(board.memory(), before, "nothing refused has changed anything");
    for bytes in [&b"\x07\0\0\0\x01"[..], b"\x07\0"] {
        fs::write(board.path("BootOrder"), bytes).unwrap();
        assert!(board.control().view().is_err() && board.control().arm(&slot("B"), 1).is_err());
        assert_eq!(fs::read(board.path("BootOrder")).unwrap(), bytes);
    }
    board.remember(&before);
    board.control().arm(&slot("B"), 1).unwrap();
    assert_eq!(board.memory(), [vec![1, 0], vec![3]]);
}

/// As on `efivarfs`, whose files are immutable.
#[test]
fn immutable_variables_are_changed_and_stay_immutable() {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let board = Board::new();
    let file = fs::File::open(board.path("BootOrder")).unwrap();
    let set = |flags: IFlags| ioctl_setflags(&file, flags);
    let Ok(flags) = ioctl_getflags(&file) else {
        tools::skip("no inode flags here");
        return;
    };
    if set(flags | IFlags::IMMUTABLE).is_err() {
        tools::skip("no file can be made immutable here");
        return;
    }
    assert!(fs::remove_file(board.path("BootOrder")).is_err(), "it is in the way");
    board.vars().delete("BootOrder", GLOBAL).unwrap();
    assert_eq!(board.vars().read("BootOrder", GLOBAL).unwrap(), None);
}
