//! `fwagent adopt` over whole example systems, laid out in directories: complete ones, which give a configuration that the
//! program itself accepts, and incomplete ones, which give the list of what is missing.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use fwagent::config::{BootConfig, Config, UbootScheme};
use fwagent::machine::grub_env::Block;
use fwmeta::json::Doc;

#[path = "../../tests/src/tools.rs"]
mod tools;

const AUTOBOOT: &str = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=5\n";

/// A system that runs from `rootA` on `mmcblk0p2`, with data on `mmcblk0p4`; its boot loader is added by each test.
struct System(tempfile::TempDir);

impl System {
    fn new() -> Self {
        let system = Self(tempfile::tempdir().unwrap());
        system.file("proc/cmdline", "console=ttyS0 root=PARTLABEL=rootA ro fwagent.slot=A\n");
        system.file(
            "proc/self/mountinfo",
            "21 1 179:2 / / ro - ext4 /dev/root ro\n\
             22 21 0:5 / /proc rw - proc proc rw\n\
             23 21 179:4 / /data rw,noatime - ext4 /dev/mmcblk0p4 rw\n",
        );
        system.file("usr/lib/os-release", "ID=poky\nIMAGE_ID=\"router\"\nVERSION_ID=1.2\n");
        fs::create_dir_all(system.path("etc")).unwrap();
        symlink("/usr/lib/os-release", system.path("etc/os-release")).unwrap();
        system.file("proc/device-tree/compatible", "example,router-rev-b\0example,soc\0");
        for (label, device) in [
            ("boot", "mmcblk0p1"),
            ("rootA", "mmcblk0p2"),
            ("rootB", "mmcblk0p3"),
            ("data", "mmcblk0p4"),
        ] {
            system.link(&format!("dev/disk/by-partlabel/{label}"), &format!("../../{device}"));
        }
        system
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn change(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(from), "{text}");
        self.file(path, text.replace(from, to));
    }

    /// An environment of U-Boot in a file, as `mkenvimage` makes it.
    fn uboot(&self, variables: &[&str], big_endian: bool) {
        let mut data = variables.join("\0").into_bytes();
        data.resize(0x1000 - 4, 0);
        let checksum = crc32fast::hash(&data);
        let checksum = if big_endian {
            checksum.to_be_bytes()
        } else {
            checksum.to_le_bytes()
        };
        self.file("boot/uboot.env", [&checksum[..], &data].concat());
        self.file("etc/fw_env.config", "/boot/uboot.env 0 0x1000\n");
    }

    fn grub(&self, path: &str, variables: &[(&str, &str)]) {
        let mut block = Block::default();
        for (name, value) in variables {
            block.set(name, value).unwrap();
        }
        self.file(path, block.encode().unwrap());
    }

    fn run(&self, more: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_fwagent"))
            .arg("adopt")
            .arg("--sysroot")
            .arg(self.0.path())
            .args(more)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap(),
            text(&output.stdout) + &text(&output.stderr),
        )
    }

    /// The configuration, written to a file and read as the agent reads it.
    fn adopted(&self, more: &[&str]) -> (Config, String) {
        let path = self.path("fwagent.toml");
        let output = path.display().to_string();
        let (code, text) = self.run(&[&["--server", "https://u.example", "--output", &output], more].concat());
        assert_eq!(code, 0, "{text}");
        let config = Config::load(&path).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        (config, written)
    }

    /// What is missing, each with what to do.
    fn missing(&self, more: &[&str]) -> Vec<String> {
        let before = names(self.0.path());
        let output = self.path("fwagent.toml").display().to_string();
        let (code, text) =
            self.run(&[&["--json", "--server", "https://u.example", "--output", &output], more].concat());
        assert_eq!(code, 3, "{text}");
        assert_eq!(names(self.0.path()), before, "nothing is written");
        let json = Doc::parse(text.trim().as_bytes()).unwrap().root().to_value().unwrap();
        let missing = json.get("missing").unwrap().as_array().unwrap();
        let field = |value: &fwmeta::json::Value, name: &str| value.get(name).unwrap().as_str().unwrap().to_owned();
        let lines: Vec<String> = missing
            .iter()
            .map(|one| {
                assert!(!field(one, "act").is_empty());
                format!("{}: {}", field(one, "what"), field(one, "found"))
            })
            .collect();
        assert!(!lines.is_empty());
        lines
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn slots(config: &Config) -> Vec<(String, String)> {
    let slots = config.slots.iter();
    slots
        .map(|slot| (slot.slot.to_string(), slot.path.display().to_string()))
        .collect()
}

fn two(first: &str, second: &str) -> Vec<(String, String)> {
    [("A", first), ("B", second)]
        .map(|(name, label)| (name.to_owned(), format!("/dev/disk/by-partlabel/{label}")))
        .to_vec()
}

#[test]
fn u_boot_with_an_order() {
    let system = System::new();
    system.uboot(
        &["bootdelay=2", "BOOT_ORDER=A", "BOOT_A_LEFT=3", "BOOT_B_LEFT=0"],
        false,
    );
    let (config, written) = system.adopted(&[]);
    assert!(matches!(
        &config.boot,
        BootConfig::Uboot {
            scheme: UbootScheme::Order,
            ..
        }
    ));
    assert_eq!(slots(&config), two("rootA", "rootB"));
    assert_eq!(
        (config.identity.product.as_str(), config.identity.hardware.as_str()),
        ("router", "example,router-rev-b")
    );
    assert_eq!(config.state_dir, Path::new("/data/fwagent"));
    assert!(!written.contains("byte_order"), "{written}");
    // The names of RAUC's example, which the labels do not carry; the command line says which is which.
    let system = System::new();
    system.uboot(&["BOOT_ORDER=system0 system1", "BOOT_system0_LEFT=3"], true);
    system.change("proc/cmdline", "fwagent.slot=A", "rauc.slot=system1");
    let (config, written) = system.adopted(&["--product", "box", "--hardware", "rev-c", "--state", "/srv/agent"]);
    let paths = [
        ("system0", "/dev/disk/by-partlabel/rootB"),
        ("system1", "/dev/disk/by-partlabel/rootA"),
    ];
    assert_eq!(
        slots(&config),
        paths.map(|(name, path)| (name.to_owned(), path.to_owned()))
    );
    assert!(
        written.contains("byte_order = \"big\"") && written.contains("slot_parameter = \"rauc.slot\""),
        "{written}"
    );
    assert_eq!(
        (config.identity.product.as_str(), config.state_dir.to_str()),
        ("box", Some("/srv/agent"))
    );
}

#[test]
fn u_boot_with_a_counter_of_mender_or_ours() {
    let system = System::new();
    let variables = [
        "mender_boot_part=2",
        "mender_boot_part_hex=2",
        "upgrade_available=0",
        "bootcount=0",
    ];
    system.uboot(&variables, false);
    let (config, written) = system.adopted(&[]);
    assert!(matches!(
        &config.boot,
        BootConfig::Uboot {
            scheme: UbootScheme::Bootcount { .. },
            ..
        }
    ));
    assert!(
        written.contains("slot_variables.mender_boot_part = { \"A\" = \"2\", \"B\" = \"3\" }"),
        "{written}"
    );
    assert!(written.contains("slot_variables.mender_boot_part_hex ="), "{written}");
    system.uboot(&["mender_boot_part=3", "upgrade_available=1"], false);
    let missing = system.missing(&[]);
    assert!(
        missing[0].contains("mender_boot_part is \"3\", and the running slot would be \"2\""),
        "{missing:?}"
    );
    system.uboot(&["fwagent_slot=A"], false);
    let (_, written) = system.adopted(&[]);
    assert!(
        written.contains("scheme = \"bootcount\"") && !written.contains("slot_variables"),
        "{written}"
    );
}

#[test]
fn grub() {
    let system = System::new();
    system.file("boot/grub2/grub.cfg", "load_env\n");
    system.grub("boot/grub2/grubenv", &[("ORDER", "A B"), ("A_OK", "1"), ("B_OK", "0")]);
    let (config, _) = system.adopted(&[]);
    assert!(matches!(&config.boot, BootConfig::Grub { grubenv, .. } if grubenv == Path::new("/boot/grub2/grubenv")));
    assert_eq!(config.boot_attempts, 1);
    assert_eq!(slots(&config), two("rootA", "rootB"));
    // A distribution's GRUB without slots, and no block at all.
    system.grub("boot/grub2/grubenv", &[("saved_entry", "0")]);
    let missing = system.missing(&[]);
    assert!(
        missing.len() == 1 && missing[0].contains("ORDER is not set in any block"),
        "{missing:?}"
    );
    fs::remove_file(system.path("boot/grub2/grubenv")).unwrap();
    assert!(system.missing(&[])[0].contains("/boot/grub2/grub.cfg"));
    system.file("boot/grub2/grubenv", "x");
    assert!(system.missing(&[])[0].contains("/boot/grub2/grubenv: "));
}

#[test]
fn partition_attributes() {
    let Some(sgdisk) = tools::program("sgdisk") else { return };
    let system = System::new();
    fs::create_dir_all(system.path("sys/block/mmcblk0")).unwrap();
    fs::create_dir_all(system.path("sys/block/loop0")).unwrap();
    system.file("dev/mmcblk0", vec![0; 8 << 20]);
    let run = |arguments: &[&str]| {
        let output = Command::new(&sgdisk)
            .args(arguments)
            .arg(system.path("dev/mmcblk0"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&["-n", "2:0:+1M", "-c", "2:rootA", "-n", "3:0:+1M", "-c", "3:rootB"]);
    let missing = system.missing(&[]);
    assert!(
        missing.len() == 1 && missing[0].starts_with("a boot loader with slots"),
        "{missing:?}"
    );
    run(&["-A", "2:set:48", "-A", "2:set:56"]);
    // No parameter: the labels carry the names, and `root=` says which runs.
    system.change("proc/cmdline", "fwagent.slot=A", "");
    let (config, written) = system.adopted(&[]);
    assert!(matches!(&config.boot, BootConfig::Gpt { disk, .. } if disk == Path::new("/dev/mmcblk0")));
    assert!(
        written.contains("\"A\" = \"PARTLABEL=rootA\", \"B\" = \"PARTLABEL=rootB\""),
        "{written}"
    );
    assert_eq!(slots(&config), two("rootA", "rootB"));
}

#[test]
fn load_options_of_uefi() {
    let system = System::new();
    let guid = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let variable = |name: &str, data: &[u8]| {
        system.file(
            &format!("sys/firmware/efi/efivars/{name}-{guid}"),
            [&[7, 0, 0, 0], data].concat(),
        );
    };
    let option = |name: &str| {
        let text: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        [&[1, 0, 0, 0, 0, 0][..], &text].concat()
    };
    variable("BootCurrent", &[1, 0]);
    variable("Boot0001", &option("Firmware A"));
    variable("Boot0003", &option("UEFI Shell"));
    let missing = system.missing(&[]);
    assert!(
        missing.len() == 1 && missing[0].contains("0 others differ"),
        "{missing:?}"
    );
    variable("Boot0002", &option("Firmware B"));
    let (config, written) = system.adopted(&[]);
    assert_eq!(config.boot.word(), "efi");
    assert!(
        written.contains("entries = { \"A\" = \"Firmware A\", \"B\" = \"Firmware B\" }"),
        "{written}"
    );
    system.change("proc/cmdline", "fwagent.slot=A", "fwagent.slot=B");
    let missing = system.missing(&[]);
    assert!(
        missing
            .iter()
            .any(|one| one.starts_with("which partition is which slot")),
        "{missing:?}"
    );
}

#[test]
fn a_raspberry_pi() {
    let system = System::new();
    system.file("boot/firmware/autoboot.txt", AUTOBOOT);
    assert!(system.missing(&[])[0].contains("the device tree does not say which partition was booted"));
    system.file("proc/device-tree/chosen/bootloader/partition", [0, 0, 0, 2]);
    let (config, written) = system.adopted(&[]);
    assert_eq!(config.boot.word(), "tryboot");
    assert!(
        written.contains("boot_partitions = { \"A\" = 2, \"B\" = 5 }"),
        "{written}"
    );
    system.file("proc/device-tree/chosen/bootloader/partition", [0, 0, 0, 5]);
    let (_, written) = system.adopted(&[]);
    assert!(
        written.contains("boot_partitions = { \"A\" = 5, \"B\" = 2 }"),
        "{written}"
    );
    // What goes with the slots is left to the user.
    system.link("dev/disk/by-partlabel/bootA", "../../mmcblk0p8");
    system.link("dev/disk/by-partlabel/bootB", "../../mmcblk0p9");
    let (_, text) = system.run(&["--json", "--server", "https://u.example"]);
    assert!(text.contains("partitions bootA and bootB, too"), "{text}");
    for (from, to, expected) in [
        ("boot_partition=5", "boot_partition=2", "partition 5 was booted"),
        ("tryboot_a_b=1", "tryboot_a_b=0", "tryboot_a_b is not 1"),
        ("[tryboot]", "[cm4]", "/boot/firmware/autoboot.txt: "),
    ] {
        system.file("boot/firmware/autoboot.txt", AUTOBOOT.replace(from, to));
        let missing = system.missing(&[]);
        assert!(
            missing.len() == 1 && missing[0].contains(expected),
            "{expected}: {missing:?}"
        );
    }
}

#[test]
fn boot_entries_are_not_yet_told_apart() {
    let system = System::new();
    system.file("boot/efi/loader/entries/firmware-a+3.conf", "");
    system.file("boot/efi/EFI/Linux/firmware-b+0-3.efi", "");
    let missing = system.missing(&[]);
    assert_eq!(
        missing,
        ["which boot entry belongs to which slot: boot entries firmware-a+3.conf, firmware-b+0-3.efi"]
    );
}

#[test]
fn two_boot_loaders_are_a_question() {
    let system = System::new();
    system.grub("boot/grub/grubenv", &[("ORDER", "A B")]);
    system.uboot(&["BOOT_ORDER=A B"], false);
    assert_eq!(
        system.missing(&[]),
        ["which boot loader chooses the slot: uboot and grub"]
    );
    assert_eq!(system.adopted(&["--control", "grub"]).0.boot.word(), "grub");
    assert_eq!(system.adopted(&["--control", "uboot"]).0.boot.word(), "uboot");
    assert!(system.missing(&["--control", "gpt"])[0].starts_with("boot control gpt: there is nothing of it"));
}

#[test]
fn each_thing_that_is_missing_is_an_item() {
    let system = System(tempfile::tempdir().unwrap());
    let (code, text) = system.run(&[]);
    assert_eq!(code, 3, "{text}");
    for expected in [
        "a boot loader with slots",
        "the partition of the running slot",
        "device.product",
        "device.hardware",
        "--server URL",
        "--state DIR",
        "no configuration was written",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for (path, from, to, expected) in [
        (
            "proc/cmdline",
            "root=PARTLABEL=rootA",
            "root=/dev/mmcblk0p1",
            "no other label differs from it",
        ),
        (
            "proc/cmdline",
            "root=PARTLABEL=rootA",
            "root=/dev/sda7",
            "is on sda7, which has no label",
        ),
        (
            "proc/cmdline",
            "root=PARTLABEL=rootA",
            "root=PARTLABEL=rootB",
            "is on partition rootB",
        ),
        (
            "proc/cmdline",
            "fwagent.slot=A",
            "fwagent.slot=C",
            "the kernel command line has fwagent.slot=C",
        ),
        (
            "proc/cmdline",
            "fwagent.slot=A",
            "fwagent.slot=A rauc.slot=B",
            "fwagent.slot=A and rauc.slot=B",
        ),
        (
            "proc/self/mountinfo",
            "/data rw",
            "/elsewhere rw",
            "no file system beside the slots",
        ),
        (
            "proc/self/mountinfo",
            "mmcblk0p4 rw",
            "mmcblk0p4 ro",
            "no file system beside the slots",
        ),
        (
            "proc/self/mountinfo",
            "/dev/mmcblk0p4",
            "/dev/mmcblk0p3",
            "no file system beside the slots",
        ),
        ("usr/lib/os-release", "IMAGE_ID", "X", "device.product"),
        (
            "etc/fw_env.config",
            "0x1000",
            "0x800",
            "environment of U-Boot: /boot/uboot.env: bad checksum",
        ),
        (
            "etc/fw_env.config",
            "/boot",
            "/none",
            "environment of U-Boot: /none/uboot.env",
        ),
        ("etc/fw_env.config", "/boot/uboot.env", "/dev/mtd0", "raw flash"),
    ] {
        let system = System::new();
        system.uboot(&["BOOT_ORDER=A B"], false);
        system.adopted(&[]);
        system.change(path, from, to);
        let missing = system.missing(&[]);
        assert!(
            missing.len() == 1 && missing[0].contains(expected),
            "{expected}: {missing:?}"
        );
    }
    let system = System::new();
    system.uboot(&["BOOT_ORDER=A B"], false);
    system.link("dev/disk/by-partlabel/rootC", "../../mmcblk0p7");
    assert!(system.missing(&[])[0].contains("rootB, rootC are as likely"));
    let system = System::new();
    system.uboot(&["bootdelay=2"], false);
    assert!(system.missing(&[])[0].contains("neither BOOT_ORDER nor"));
}

#[test]
fn a_configuration_that_is_there_is_not_replaced() {
    let system = System::new();
    system.uboot(&["BOOT_ORDER=A B"], false);
    system.file("fwagent.toml", "mine");
    let output = system.path("fwagent.toml").display().to_string();
    let (code, text) = system.run(&["--server", "https://u.example", "--output", &output]);
    assert!(code == 3 && text.contains("choose another --output"), "{text}");
    assert_eq!(fs::read(system.path("fwagent.toml")).unwrap(), b"mine");
    // Without a file it is printed.
    let (code, text) = system.run(&["--server", "https://u.example"]);
    assert_eq!(code, 0);
    Config::parse(&text, Path::new("/etc/fwagent/fwagent.toml")).unwrap();
}

/// A link that the system would follow within itself is followed so, not on the system that inspects.
#[test]
fn links_do_not_lead_out_of_the_system() {
    let system = System::new();
    system.grub("boot/grub/grubenv", &[("ORDER", "A B")]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("os-release"), "IMAGE_ID=outside\n").unwrap();
    fs::remove_file(system.path("etc/os-release")).unwrap();
    system.link(
        "etc/os-release",
        &outside.path().join("os-release").display().to_string(),
    );
    let (config, _) = system.adopted(&[]);
    assert_eq!(config.identity.product, "router", "that of usr/lib");
}
