//! The program with these boot controls.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use ed25519_dalek::{Signer as _, SigningKey};
use fwagent::config::Config;
use fwagent::machine::uboot_env::ByteOrder;
use fwmeta::key::{PublicKey, SignError, Signer};
use fwmeta::role::{RoleKeys, Root, RootRoles};
use fwmeta::signed;
use fwmeta::time::UtcSeconds;

use crate::{Loader, efi, entries, grub, slot, start, tryboot, uboot};

fn config(boot: &str) -> String {
    format!(
        r#"
        [device]
        product = "router"
        hardware = "rev-b"
        [server]
        url = "http://127.0.0.1:9/"
        [state]
        dir = "state"
        [boot]
        {boot}
        [[slot]]
        name = "A"
        kind = "dir"
        path = "a"
        [[slot]]
        name = "B"
        kind = "dir"
        path = "b"
        "#
    )
}

#[test]
fn boot_is_for_control_file_only() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("state")).unwrap();
    for (control, fields) in [
        ("uboot", ""),
        ("grub", ""),
        ("efi", "entries = { A = \"Boot0001\", B = \"Firmware B\" }"),
        ("tryboot", "boot_partitions = { A = 2, B = 3 }"),
        ("systemd-boot", ""),
    ] {
        let path = dir.path().join("fwagent.toml");
        fs::write(&path, config(&format!("control = {control:?}\n{fields}"))).unwrap();
        for more in [&["boot"][..], &["boot", "--supervise", "--", "true"]] {
            let output = Command::new(env!("CARGO_BIN_EXE_fwagent"))
                .arg("--config")
                .arg(&path)
                .args(more)
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(error.contains(&format!("boot.control is \"{control}\"")), "{error}");
        }
    }
}

#[test]
fn fields_that_do_not_belong_together_are_refused() {
    let parse = |boot: &str| {
        Config::parse(&config(boot), "/etc/fwagent/fwagent.toml".as_ref())
            .map_err(|error| fwagent::drive::chain(&error))
    };
    for boot in [
        "control = \"uboot\"\nfw_env_config = \"/e\"\nbyte_order = \"big\"\nslot_parameter = \"rauc.slot\"",
        "control = \"grub\"\ngrubenv = \"/boot/efi/grubenv\"\ncmdline_file = \"c\"\nattempts = 1",
        "control = \"grub\"",
        "control = \"uboot\"\nscheme = \"order\"\nlock_file = \"lock\"",
        "control = \"uboot\"\nscheme = \"bootcount\"",
        "control = \"gpt\"\ndisk = \"/dev/sda\"\npartitions = { A = \"PARTLABEL=a\", B = \"PARTLABEL=b\" }",
        "control = \"uboot\"\nscheme = \"bootcount\"\nfallback_variable = \"f\"\ncounter_file = \"c\"",
        "control = \"uboot\"\nscheme = \"bootcount\"\n\
         slot_variables.mender_boot_part = { A = \"2\", B = \"3\" }\n\
         slot_variables.mender_boot_part_hex = { A = \"2\", B = \"3\" }",
        "control = \"efi\"\nentries = { A = \"Boot0001\", B = \"b\" }\nefivars = \"vars\"\nslot_parameter = \"x\"",
    ] {
        parse(boot).unwrap();
    }
    assert_eq!(parse("control = \"grub\"").unwrap().boot_attempts, 1);
    for (boot, expected) in [
        ("control = \"grub\"\nattempts = 3", "boot.attempts"),
        ("control = \"grub\"\nfw_env_config = \"/e\"", "boot.fw_env_config"),
        ("control = \"uboot\"\ngrubenv = \"/g\"", "boot.grubenv"),
        ("fw_env_config = \"/e\"", "boot.fw_env_config"),
        ("byte_order = \"big\"", "boot.byte_order"),
        ("slot_parameter = \"x\"", "boot.slot_parameter"),
        ("cmdline_file = \"x\"", "boot.cmdline_file"),
        ("control = \"uboot\"\nbyte_order = \"middle\"", "middle"),
        ("control = \"uboot\"\nslot_parameter = \"a b\"", "boot.slot_parameter"),
        ("control = \"uboot\"\nslot_parameter = \"\"", "boot.slot_parameter"),
        ("control = \"uboot\"\nredundant = true", "redundant"),
        ("control = \"uboot\"\nscheme = \"mender\"", "mender"),
        ("scheme = \"bootcount\"", "boot.scheme"),
        ("control = \"gpt\"", "boot.disk"),
        ("disk = \"/dev/sda\"", "boot.disk"),
        (
            "control = \"gpt\"\ndisk = \"d\"\npartitions = { A = \"PARTLABEL=a\" }",
            "boot.partitions.B",
        ),
        (
            "control = \"gpt\"\ndisk = \"d\"\npartitions = { A = \"PARTLABEL=a\", B = \"/dev/sda2\" }",
            "PARTUUID=",
        ),
        (
            "control = \"gpt\"\ndisk = \"d\"\npartitions = { A = \"PARTLABEL=a\", B = \"PARTLABEL=a\" }",
            "another slot",
        ),
        (
            "control = \"gpt\"\ndisk = \"d\"\nattempts = 16\npartitions = { A = \"PARTLABEL=a\", B = \"PARTLABEL=b\" }",
            "boot.attempts",
        ),
        ("control = \"grub\"\nlock_file = \"l\"", "boot.lock_file"),
        ("control = \"uboot\"\ncounter_file = \"c\"", "boot.counter_file"),
        (
            "control = \"uboot\"\nfallback_variable = \"f\"",
            "boot.fallback_variable",
        ),
        (
            "control = \"uboot\"\nslot_variables.s = { A = \"1\", B = \"2\" }",
            "boot.slot_variables",
        ),
        (
            "control = \"uboot\"\nscheme = \"bootcount\"\ncounter_file = \"c\"",
            "without boot.fallback_variable",
        ),
        (
            "control = \"uboot\"\nscheme = \"bootcount\"\nslot_variables.s = { A = \"1\", b = \"2\" }",
            "for slot B",
        ),
        (
            "control = \"tryboot\"",
            "boot.boot_partitions says nothing about slot A",
        ),
        (
            "control = \"tryboot\"\nboot_partitions = { A = 2, B = 2 }",
            "or one of two slots",
        ),
        (
            "control = \"tryboot\"\nboot_partitions = { A = 0, B = 2 }",
            "a partition 0",
        ),
        (
            "control = \"tryboot\"\nboot_partitions = { A = 2, B = 3 }\nattempts = 2",
            "boot.attempts",
        ),
        (
            "control = \"tryboot\"\nboot_partitions = { A = 2, B = 3 }\n[restart]\nmode = \"exit\"",
            "restart.mode",
        ),
        ("[restart]\ntrial_command = [\"reboot\"]", "restart.trial_command"),
        ("boot_partitions = { A = 2, B = 3 }", "boot.boot_partitions"),
        ("control = \"efi\"\nautoboot = \"/a\"", "boot.autoboot"),
        ("control = \"systemd-boot\"\nentry = \"fw\"", "boot.entry"),
        ("control = \"systemd-boot\"\nentry = \"fw+3-{slot}\"", "boot.entry"),
        ("control = \"efi\"\nesp = \"/boot\"", "boot.esp"),
        ("control = \"efi\"\nentries_dir = \"/boot\"", "boot.entries_dir"),
        ("control = \"efi\"\nfirmware_dir = \"/a\"", "boot.firmware_dir"),
        ("control = \"efi\"", "boot.entries says nothing about slot A"),
        (
            "control = \"efi\"\nentries = { A = \"a\", B = \"b\", C = \"c\" }",
            "boot.entries names slot C",
        ),
        (
            "control = \"efi\"\nentries = { A = \"a\", B = \"b\" }\nattempts = 2",
            "boot.attempts",
        ),
        ("entries = { A = \"a\", B = \"b\" }", "boot.entries"),
        ("control = \"grub\"\nefivars = \"/e\"", "boot.efivars"),
    ] {
        let error = parse(boot).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let third = "[[slot]]\nname = \"C\"\nkind = \"dir\"\npath = \"c\"";
    let config_of = |text: String| Config::parse(&text, "/f".as_ref()).map_err(|error| error.to_string());
    let two = config("control = \"systemd-boot\"");
    assert!(config_of(two.clone()).is_ok());
    assert!(
        config_of(two.replace("\"B\"", "\"a\""))
            .unwrap_err()
            .contains("differs in case only")
    );
    assert!(config_of(format!("{two}\n{third}")).unwrap_err().contains("is for 2"));
    let hyphen = config("control = \"uboot\"").replace("\"B\"", "\"slot-b\"");
    assert!(Config::parse(&hyphen, "/f".as_ref()).is_err());
    // There the name is a value, not part of a variable.
    let value = hyphen.replace("control = \"uboot\"", "control = \"uboot\"\nscheme = \"bootcount\"");
    Config::parse(&value, "/f".as_ref()).unwrap();
}

struct Key(SigningKey, PublicKey);

impl Signer for Key {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

/// A trial that nobody confirms, seen by the program.
#[test]
fn a_boot_counter_is_a_boot_control_of_the_program() {
    let board = uboot::Board::with(uboot::Place::Both, ByteOrder::Little, uboot::COUNTS[0]);
    let dir = board.dir.path();
    fs::write(dir.join("root.json"), root()).unwrap();
    let boot = "control = \"uboot\"\nscheme = \"bootcount\"\nfw_env_config = \"fw_env.config\"\nlock_file = \"lock\"\n\
                cmdline_file = \"cmdline\"";
    fs::write(dir.join("fwagent.toml"), config(boot)).unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fwagent"));
        command.arg("--config").arg(dir.join("fwagent.toml")).args(more);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let root = dir.join("root.json").display().to_string();
    let (code, text) = run(&["provision", "--root", &root]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(board.variable("fwagent_slot").as_deref(), Some("A"));
    assert_eq!(board.variable("upgrade_available").as_deref(), Some("0"));
    let (code, text) = run(&["status"]);
    assert!(code == Some(0) && text.contains("from slot A"), "{text}");
    // Somebody else armed the other slot; the agent does not run what it has not confirmed.
    board.control().arm(&slot("B"), 3).unwrap();
    assert_eq!(board.power_on(), Some(slot("B")));
    let (code, text) = run(&["install"]);
    assert!(code == Some(1) && text.contains("runs slot B"), "{text}");
}

/// A root of trust that one key signs for everything.
fn root() -> Vec<u8> {
    let key = SigningKey::from_bytes(&[1; 32]);
    let public = PublicKey::ed25519(key.verifying_key().to_bytes());
    let key = Key(key, public);
    let role = RoleKeys {
        keyids: vec![key.public().id()],
        threshold: 1,
    };
    let root = Root {
        version: 1,
        expires: UtcSeconds::parse("2100-01-01T00:00:00Z").unwrap(),
        consistent_snapshot: true,
        keys: [(key.public().id(), key.public().clone())].into(),
        roles: RootRoles {
            root: role.clone(),
            timestamp: role.clone(),
            snapshot: role.clone(),
            targets: role,
        },
        extra: BTreeMap::new(),
    };
    signed::sign(&root.to_value(), &[&key as &dyn Signer]).unwrap()
}

#[test]
fn a_device_is_provisioned_and_says_which_slot_runs() {
    let uboot = uboot::Board::new(uboot::Place::Two, ByteOrder::Little);
    let grub = grub::Board::new();
    let efi = efi::Board::new();
    let tryboot = tryboot::Board::new();
    let entries = entries::Board::new();
    for (dir, control, loader) in [
        (
            uboot.dir.path(),
            "control = \"uboot\"\nfw_env_config = \"fw_env.config\"\nlock_file = \"lock\"",
            &uboot as &dyn Loader,
        ),
        (grub.dir.path(), "control = \"grub\"\ngrubenv = \"grubenv\"", &grub),
        (
            efi.dir.path(),
            "control = \"efi\"\nefivars = \"efivars\"\nentries = { A = \"Boot0001\", B = \"Firmware B\" }",
            &efi,
        ),
        (
            tryboot.dir.path(),
            "control = \"tryboot\"\nautoboot = \"autoboot.txt\"\nfirmware_dir = \"firmware\"\n\
             boot_partitions = { A = 2, B = 3 }",
            &tryboot,
        ),
        (
            entries.dir.path(),
            "control = \"systemd-boot\"\nesp = \".\"\nentry = \"fw-{slot}\"\nefivars = \"efivars\"",
            &entries,
        ),
    ] {
        fs::write(dir.join("root.json"), root()).unwrap();
        let boot = format!("{control}\ncmdline_file = \"cmdline\"");
        fs::write(dir.join("fwagent.toml"), config(&boot)).unwrap();
        let run = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_fwagent"));
            command.arg("--config").arg(dir.join("fwagent.toml")).args(more);
            let output = command.output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout) + &text(&output.stderr))
        };
        let root = dir.join("root.json").display().to_string();
        let (code, text) = run(&["provision", "--root", &root, "--slot", "B"]);
        assert!(code == Some(3) && text.contains("boots slot A, not slot B"), "{text}");
        let (code, text) = run(&["provision", "--root", &root]);
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(loader.power_on(), Some(slot("A")));
        let (code, text) = run(&["status"]);
        assert!(
            code == Some(0) && text.contains("from slot A; the agent is idle"),
            "{text}"
        );
        // Boots without the agent use the attempts up; as soon as it runs, whatever it does then, there are all again.
        for _ in 1..loader.attempts() {
            assert_eq!(loader.power_on(), Some(slot("A")));
        }
        if loader.leaves_confirmed() {
            assert_eq!(loader.control().primary().unwrap(), None);
        }
        let (code, text) = run(&["install"]);
        assert_eq!(code, Some(3), "there is no server: {text}");
        assert_eq!(loader.control().primary().unwrap(), Some(slot("A")));
        // The boot loader started what nobody has confirmed.
        start(dir, "B");
        loader.say_booted("B");
        let (code, text) = run(&["install"]);
        assert!(code != Some(0) && text.contains("runs slot B"), "{text}");
        // It does not say what it has started: nothing is done that could hit the running slot.
        fs::write(dir.join("cmdline"), "quiet").unwrap();
        for command in ["status", "install"].into_iter().filter(|_| !loader.names_the_slot()) {
            let (code, text) = run(&[command]);
            assert!(code == Some(3) && text.contains("there is no fwagent.slot="), "{text}");
        }
    }
}
