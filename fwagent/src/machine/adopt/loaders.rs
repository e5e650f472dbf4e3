//! What shows that a boot loader keeps slots, one function each: it does, it is there and lacks something, or neither.

use std::collections::BTreeSet;

use super::{Facts, Found, Missing, Slots, quoted};
use crate::machine::gpt_priority::Attributes;
use crate::machine::uboot_env::{ByteOrder, Environment};

enum Evidence {
    None,
    Lacks(Missing),
    Sure(Found),
}

/// The loaders that keep slots, and what others lack that are there.
pub(super) fn all(facts: &Facts) -> (Vec<Found>, Vec<(String, Missing)>) {
    let (mut sure, mut lacking) = (Vec::new(), Vec::new());
    for (control, look) in LOADERS {
        match look(facts) {
            Evidence::None => {}
            Evidence::Lacks(missing) => lacking.push((control.to_owned(), missing)),
            Evidence::Sure(found) => sure.push(found),
        }
    }
    (sure, lacking)
}

type Look = fn(&Facts) -> Evidence;

const LOADERS: [(&str, Look); 6] = [
    ("uboot", uboot),
    ("grub", grub),
    ("gpt", gpt),
    ("efi", efi),
    ("systemd-boot", systemd_boot),
    ("tryboot", tryboot),
];

/// Names between a prefix and a suffix.
fn between<'a>(names: impl Iterator<Item = &'a str>, prefix: &str, suffix: &str) -> BTreeSet<String> {
    let cut = names.filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(suffix));
    cut.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn words(value: &[u8]) -> BTreeSet<String> {
    String::from_utf8_lossy(value)
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect()
}

fn uboot(facts: &Facts) -> Evidence {
    let (environment, byte_order) = match &facts.uboot {
        None => return Evidence::None,
        Some(Err(problem)) => {
            let act = "correct /etc/fw_env.config until fw_printenv lists the variables of U-Boot";
            return Evidence::Lacks(Missing::new("the environment of U-Boot", problem.clone(), act));
        }
        Some(Ok((environment, byte_order))) => (environment.clone(), *byte_order),
    };
    let mut common = Vec::new();
    if byte_order == ByteOrder::Big {
        common.push("byte_order = \"big\"".to_owned());
    }
    if let Some(order) = environment.get("BOOT_ORDER") {
        let mut names = words(order);
        names.extend(between(environment.names(), "BOOT_", "_LEFT"));
        return Evidence::Sure(Found {
            control: "uboot",
            because: format!("variable BOOT_ORDER is {:?}", String::from_utf8_lossy(order)),
            names: Some(names),
            lines: Box::new(move |_, _| Ok(common.clone())),
        });
    }
    let named = ["fwagent_slot", "mender_boot_part"]
        .into_iter()
        .find(|name| environment.get(name).is_some());
    let Some(variable) = named else {
        let act = "give U-Boot a boot script with BOOT_ORDER, or with a boot counter, as in the README";
        let found = "neither BOOT_ORDER nor a variable that names the slot to boot is set";
        return Evidence::Lacks(Missing::new("slots in the environment of U-Boot", found, act));
    };
    common.push("scheme = \"bootcount\"".to_owned());
    Evidence::Sure(Found {
        control: "uboot",
        because: format!("variable {variable} names the slot to boot"),
        names: None,
        lines: Box::new(move |_, slots| {
            let mut lines = common.clone();
            if variable == "mender_boot_part" {
                lines.extend(mender(&environment, slots)?);
            } else {
                agrees(&environment, variable, &slots.pair[0].0)?;
            }
            Ok(lines)
        }),
    })
}

fn agrees(environment: &Environment, variable: &str, running: &str) -> Result<(), Missing> {
    let value = String::from_utf8_lossy(environment.get(variable).unwrap_or_default()).into_owned();
    // During a trial that the loader has ended, it may name the other one; a device is not adopted then.
    if value == running {
        return Ok(());
    }
    let found = format!("variable {variable} is {value:?}, and the running slot would be {running:?}");
    Err(Missing::new(
        "that U-Boot names the running slot",
        found,
        "finish or undo the update in progress, and adopt again",
    ))
}

/// Mender's slots are numbers of partitions.
fn mender(environment: &Environment, slots: &Slots) -> Result<Vec<String>, Missing> {
    let mut numbers = Vec::new();
    for (name, partition) in &slots.pair {
        let number = partition
            .device
            .rsplit(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap_or_default();
        let number: u32 = number.parse().map_err(|_| {
            let found = format!("{} ends with no number", partition.device);
            Missing::new(
                format!("the number of the partition of slot {name}"),
                found,
                "write the configuration by hand",
            )
        })?;
        numbers.push((name.clone(), number));
    }
    agrees(environment, "mender_boot_part", &numbers[0].1.to_string())?;
    numbers.sort();
    let table = |variable: &str, hexadecimal: bool| {
        let value = |number: u32| {
            if hexadecimal {
                format!("{number:x}")
            } else {
                number.to_string()
            }
        };
        let pairs: Vec<String> = numbers
            .iter()
            .map(|(name, number)| format!("{} = {}", quoted(name), quoted(&value(*number))))
            .collect();
        format!("slot_variables.{variable} = {{ {} }}", pairs.join(", "))
    };
    let mut lines = vec![table("mender_boot_part", false)];
    if environment.get("mender_boot_part_hex").is_some() {
        lines.push(table("mender_boot_part_hex", true));
    }
    Ok(lines)
}

fn grub(facts: &Facts) -> Evidence {
    let grub = &facts.grub;
    let with_order = |(path, block): &(String, Result<_, String>)| {
        let block: &crate::machine::grub_env::Block = block.as_ref().ok()?;
        Some((path.clone(), block.clone(), block.get("ORDER")?))
    };
    let found: Vec<_> = grub.blocks.iter().filter_map(with_order).collect();
    match found.as_slice() {
        [(path, block, order)] => {
            let names: Vec<String> = block
                .variables()
                .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
                .collect();
            let mut slots = words(order);
            slots.extend(between(names.iter().map(String::as_str), "", "_OK"));
            let line = format!("grubenv = {}", quoted(path));
            Evidence::Sure(Found {
                control: "grub",
                because: format!("ORDER is {:?} in {path}", String::from_utf8_lossy(order)),
                names: Some(slots),
                lines: Box::new(move |_, _| Ok(vec![line.clone()])),
            })
        }
        [] => {
            let act = "give GRUB a grub.cfg with ORDER, as in the README, and `grub-editenv FILE create`";
            let what = "slots in the environment block of GRUB";
            if let Some((path, Err(problem))) = grub.blocks.iter().find(|(_, block)| block.is_err()) {
                return Evidence::Lacks(Missing::new(what, format!("{path}: {problem}"), act));
            }
            match grub.blocks.first().map(|(path, _)| path).or(grub.configs.first()) {
                Some(path) => Evidence::Lacks(Missing::new(
                    what,
                    format!("there is {path}, and ORDER is not set in any block"),
                    act,
                )),
                None => Evidence::None,
            }
        }
        several => {
            let paths: Vec<&str> = several.iter().map(|(path, ..)| path.as_str()).collect();
            let found = format!("ORDER is set in {}", paths.join(" and "));
            Evidence::Lacks(Missing::new(
                "which environment block GRUB reads",
                found,
                "remove the one that it does not read",
            ))
        }
    }
}

fn gpt(facts: &Facts) -> Evidence {
    let has_priority = |table: &crate::machine::gpt::Table| {
        let mut all = table.attributes().into_iter().map(Attributes);
        all.any(|attributes| attributes.priority() > 0)
    };
    let disks: Vec<&String> = facts
        .disks
        .iter()
        .filter(|(_, table)| has_priority(table))
        .map(|(disk, _)| disk)
        .collect();
    match disks.as_slice() {
        [] => Evidence::None,
        [disk] => {
            let disk = (*disk).clone();
            Evidence::Sure(Found {
                control: "gpt",
                because: format!("partitions of {disk} have priorities"),
                names: None,
                lines: Box::new(move |facts, slots| {
                    let labels = facts
                        .disks
                        .iter()
                        .filter(|(other, _)| *other == disk)
                        .flat_map(|(_, table)| table.labels());
                    let labels: Vec<String> = labels.collect();
                    let mut pairs = Vec::new();
                    for (name, partition) in slots.sorted() {
                        if labels.iter().filter(|label| **label == partition.label).count() != 1 {
                            let found = format!("{disk} has partitions {}", labels.join(", "));
                            let what = format!("partition {} on the disk with priorities", partition.label);
                            return Err(Missing::new(what, found, "give the slots labels that are there once"));
                        }
                        pairs.push(format!(
                            "{} = {}",
                            quoted(name),
                            quoted(&format!("PARTLABEL={}", partition.label))
                        ));
                    }
                    Ok(vec![
                        format!("disk = {}", quoted(&disk)),
                        format!("partitions = {{ {} }}", pairs.join(", ")),
                    ])
                }),
            })
        }
        several => {
            let names: Vec<&str> = several.iter().map(|disk| disk.as_str()).collect();
            let found = format!("partitions of {} have priorities", names.join(" and "));
            Evidence::Lacks(Missing::new(
                "which disk is booted",
                found,
                "take the priorities of the other one away",
            ))
        }
    }
}

/// Load options with names that differ in the last letter, of which one was booted.
fn efi(facts: &Facts) -> Evidence {
    let Some(efi) = &facts.efi else { return Evidence::None };
    let what = "load options of UEFI for two slots";
    let act = "make a load option for each slot with efibootmgr, with names that differ in the last letter, such as \"Firmware A\"";
    let current = efi.current.and_then(|current| efi.options.get(&current));
    let Some(current) = current else {
        return Evidence::Lacks(Missing::new(what, "BootCurrent is no load option", act));
    };
    let stem = |name: &str| {
        let mut stem = name.to_owned();
        stem.pop()
            .filter(char::is_ascii_alphanumeric)
            .map(|last| (stem, last.to_string()))
    };
    let Some((start, mark)) = stem(current) else {
        return Evidence::Lacks(Missing::new(what, format!("{current:?} was booted"), act));
    };
    let others: Vec<(&String, String)> = efi
        .options
        .values()
        .filter(|other| *other != current)
        .filter_map(|other| {
            stem(other)
                .filter(|(stem, _)| *stem == start)
                .map(|(_, mark)| (other, mark))
        })
        .collect();
    let [(other, other_mark)] = others.as_slice() else {
        let found = format!(
            "{current:?} was booted, and {} others differ from it in the last letter only",
            others.len()
        );
        return Evidence::Lacks(Missing::new(what, found, act));
    };
    let entries = [(mark, current.clone()), (other_mark.clone(), (*other).clone())];
    Evidence::Sure(Found {
        control: "efi",
        because: format!("load options {current:?} and {other:?}"),
        names: Some(entries.iter().map(|(mark, _)| mark.clone()).collect()),
        lines: Box::new(move |_, slots| {
            if slots.pair[0].0 != entries[0].0 {
                let found = format!("{:?} was booted, and slot {} runs", entries[0].1, slots.pair[0].0);
                return Err(Missing::new(
                    "that UEFI has booted the running slot",
                    found,
                    "let names and command lines agree",
                ));
            }
            let mut pairs: Vec<String> = entries
                .iter()
                .map(|(mark, name)| format!("{} = {}", quoted(mark), quoted(name)))
                .collect();
            pairs.sort();
            Ok(vec![format!("entries = {{ {} }}", pairs.join(", "))])
        }),
    })
}

fn systemd_boot(facts: &Facts) -> Evidence {
    if facts.entries.is_empty() {
        return Evidence::None;
    }
    let found = format!("boot entries {}", facts.entries.join(", "));
    let act = "write the section boot by hand, with one entry for each slot";
    Evidence::Lacks(Missing::new("which boot entry belongs to which slot", found, act))
}

fn tryboot(facts: &Facts) -> Evidence {
    let Some((path, autoboot)) = &facts.autoboot else {
        return Evidence::None;
    };
    let what = "two boot partitions in autoboot.txt, one of which runs";
    let act = "write it with tryboot_a_b=1 and a boot_partition under [all] and under [tryboot], and restart";
    let lacks = |found: String| Evidence::Lacks(Missing::new(what, found, act));
    let autoboot = match autoboot {
        Ok(autoboot) => autoboot,
        Err(problem) => return lacks(format!("{path}: {problem}")),
    };
    let (all, trial) = (autoboot.partition, autoboot.trial);
    let (first, second) = match facts.booted_partition {
        Some(booted) if booted == all && all != trial => (all, trial),
        Some(booted) if booted == trial && all != trial => (trial, all),
        Some(booted) => {
            return lacks(format!(
                "{path} has {all} and {trial}, and partition {booted} was booted"
            ));
        }
        None => {
            return lacks(format!(
                "there is {path}, and the device tree does not say which partition was booted"
            ));
        }
    };
    if !autoboot.a_b {
        return lacks(format!("tryboot_a_b is not 1 in {path}"));
    }
    let file = format!("autoboot = {}", quoted(path));
    Evidence::Sure(Found {
        control: "tryboot",
        because: format!("{path} has boot partitions {all} and {trial}"),
        names: None,
        lines: Box::new(move |_, slots| {
            let numbers = [first, second];
            let pairs = slots.pair.iter().zip(numbers);
            let mut pairs: Vec<String> = pairs
                .map(|((name, _), number)| format!("{} = {number}", quoted(name)))
                .collect();
            pairs.sort();
            Ok(vec![
                file.clone(),
                format!("boot_partitions = {{ {} }}", pairs.join(", ")),
            ])
        }),
    })
}
