//! The section `boot`: which boot loader, and where its memory is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::loader::efivarfs::EfiVars;
use crate::host::loader::file_lock::LOCK_FILE;
use crate::host::loader::running::{Running, RunningBy};
use crate::host::loader::systemd_boot::EntryPaths;
use crate::host::loader::tryboot::{BOOT_ID, TrybootPaths};
use crate::host::slots::SlotConfig;
use crate::machine::autoboot::Partitions;
use crate::machine::boot_count::SlotNames;
use crate::machine::boot_entries::EntryName;
use crate::machine::efi_boot::Entry;
use crate::machine::gpt::Partition;
use crate::machine::gpt_priority::MOST;
use crate::machine::slot::SlotId;
use crate::machine::uboot_env::ByteOrder;

/// Variable of U-Boot that names the slot, with scheme `bootcount`.
const SLOT_VARIABLE: &str = "fwagent_slot";
const FW_ENV_CONFIG: &str = "/etc/fw_env.config";
const GRUBENV: &str = "/boot/grub/grubenv";
const EFIVARS: &str = "/sys/firmware/efi/efivars";
const ESP: &str = "/efi";
const ENTRY: &str = "fwagent-{slot}";
const AUTOBOOT: &str = "/boot/firmware/autoboot.txt";
const FIRMWARE_DIR: &str = "/proc/device-tree/chosen/bootloader";

/// The boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootConfig {
    /// `fwagent boot`, with a record in the state directory.
    File,
    /// U-Boot.
    Uboot {
        /// Where the environment lies.
        fw_env_config: PathBuf,
        /// Of its checksum.
        byte_order: ByteOrder,
        /// The lock of the tools of U-Boot.
        lock_file: PathBuf,
        /// What its variables mean.
        scheme: UbootScheme,
        /// Which slot runs.
        running: Running,
    },
    /// GRUB with `ORDER`, `<slot>_OK` and `<slot>_TRY`.
    Grub {
        /// The environment block.
        grubenv: PathBuf,
        /// Which slot runs.
        running: Running,
    },
    /// The boot manager of UEFI firmware, with `BootOrder` and `BootNext`.
    Efi {
        /// Its variables.
        vars: EfiVars,
        /// The load option of each slot.
        entries: Vec<(SlotId, Entry)>,
        /// Which slot runs.
        running: Running,
    },
    /// A loader that reads attributes of partitions.
    Gpt {
        /// The disk.
        disk: PathBuf,
        /// The partition of each slot.
        partitions: BTreeMap<SlotId, Partition>,
        /// Which slot runs.
        running: Running,
    },
    /// systemd-boot, with entries whose names count boots.
    SystemdBoot {
        /// Where things lie.
        paths: EntryPaths,
        /// The entry of each slot.
        names: [(SlotId, EntryName); 2],
        /// Which slot runs.
        running: Running,
    },
    /// The boot loader of the Raspberry Pi, with `autoboot.txt`.
    Tryboot {
        /// Where things lie.
        paths: TrybootPaths,
        /// The partition of each slot.
        partitions: Partitions,
        /// Which slot runs.
        running: Running,
    },
}

impl BootConfig {
    /// The word of the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Uboot { .. } => "uboot",
            Self::Grub { .. } => "grub",
            Self::Efi { .. } => "efi",
            Self::Gpt { .. } => "gpt",
            Self::SystemdBoot { .. } => "systemd-boot",
            Self::Tryboot { .. } => "tryboot",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BootSection {
    control: Control,
    attempts: Option<u32>,
    fw_env_config: Option<PathBuf>,
    byte_order: Option<Order>,
    lock_file: Option<PathBuf>,
    scheme: Option<Scheme>,
    slot_variables: Option<BTreeMap<String, BTreeMap<String, String>>>,
    fallback_variable: Option<String>,
    counter_file: Option<PathBuf>,
    grubenv: Option<PathBuf>,
    efivars: Option<PathBuf>,
    entries: Option<BTreeMap<String, String>>,
    disk: Option<PathBuf>,
    partitions: Option<BTreeMap<String, String>>,
    esp: Option<PathBuf>,
    entries_dir: Option<PathBuf>,
    entry: Option<String>,
    autoboot: Option<PathBuf>,
    boot_partitions: Option<BTreeMap<String, u8>>,
    firmware_dir: Option<PathBuf>,
    slot_parameter: Option<String>,
    cmdline_file: Option<PathBuf>,
    running: Option<RunningBy>,
    root_mount: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Control {
    #[default]
    File,
    Uboot,
    Grub,
    Efi,
    Gpt,
    #[serde(rename = "systemd-boot")]
    SystemdBoot,
    Tryboot,
}

/// What the variables of U-Boot mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UbootScheme {
    /// `BOOT_ORDER` and `BOOT_<slot>_LEFT`.
    Order,
    /// `bootcount`, `upgrade_available` and a variable that names the slot.
    Bootcount {
        /// How slots are named.
        names: SlotNames,
        /// The counter, if it is a file of U-Boot's.
        counter_file: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    Order,
    Bootcount,
}

/// One partition for each slot.
fn partitions(texts: BTreeMap<String, String>, slots: &[SlotConfig]) -> Result<BTreeMap<SlotId, Partition>, Problem> {
    let mut partitions = BTreeMap::new();
    for set in slot_sets(slots) {
        let field = format!("boot.partitions.{set}");
        let Some(text) = texts.get(set.as_str()) else {
            return problem(field, "is missing");
        };
        let partition = Partition::parse(text).or_else(|error| problem(&field, error.to_string()))?;
        if partitions.values().any(|other| *other == partition) {
            return problem(field, "is the partition of another slot, too");
        }
        partitions.insert(set, partition);
    }
    if texts.len() != partitions.len() {
        return problem("boot.partitions", "names a slot that is not in the configuration");
    }
    Ok(partitions)
}

fn slot_sets(slots: &[SlotConfig]) -> Vec<SlotId> {
    let mut sets: Vec<SlotId> = Vec::new();
    for slot in slots {
        if !sets.contains(&slot.slot) {
            sets.push(slot.slot.clone());
        }
    }
    sets
}

/// Without variables in the configuration there is one, whose values are the names of the slots.
fn names(
    variables: Option<BTreeMap<String, BTreeMap<String, String>>>,
    fallback: Option<String>,
    slots: &[SlotConfig],
) -> Result<SlotNames, Problem> {
    let sets = slot_sets(slots);
    let variables = variables.unwrap_or_else(|| {
        let values = sets.iter().map(|slot| (slot.to_string(), slot.to_string()));
        BTreeMap::from([(SLOT_VARIABLE.to_owned(), values.collect())])
    });
    SlotNames::new(&sets, variables.into_iter().collect(), fallback)
        .or_else(|error| problem("boot.slot_variables", error.to_string()))
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Little,
    Big,
}

impl BootSection {
    /// Trial boots before the boot loader goes back.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts.unwrap_or(match self.control {
            Control::File | Control::Uboot | Control::Gpt | Control::SystemdBoot => 3,
            Control::Grub | Control::Efi | Control::Tryboot => 1,
        })
    }

    /// Whether the boot loader must be told of a trial by the restart itself.
    pub(super) fn is_flagged(&self) -> bool {
        self.control == Control::Tryboot
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        let attempts = self.attempts();
        if !(1..=100).contains(&attempts) {
            return problem("boot.attempts", format!("is {attempts}, not from 1 to 100"));
        }
        if matches!(self.control, Control::Grub | Control::Efi | Control::Tryboot) && attempts != 1 {
            return problem(
                "boot.attempts",
                format!("is {attempts}, and this boot loader can count one attempt only"),
            );
        }
        if self.control == Control::Gpt && attempts > MOST {
            return problem(
                "boot.attempts",
                format!("is {attempts}, and these attributes count to {MOST}"),
            );
        }
        if self.control == Control::Gpt && (self.disk.is_none() || self.partitions.is_none()) {
            return problem(
                "boot.disk",
                "or boot.partitions is missing, which boot.control = \"gpt\" needs",
            );
        }
        let loader = self.control != Control::File;
        let entries = self.control == Control::SystemdBoot;
        for (field, given, fits) in [
            (
                "boot.fw_env_config",
                self.fw_env_config.is_some(),
                self.control == Control::Uboot,
            ),
            (
                "boot.byte_order",
                self.byte_order.is_some(),
                self.control == Control::Uboot,
            ),
            (
                "boot.lock_file",
                self.lock_file.is_some(),
                self.control == Control::Uboot,
            ),
            ("boot.scheme", self.scheme.is_some(), self.control == Control::Uboot),
            ("boot.disk", self.disk.is_some(), self.control == Control::Gpt),
            (
                "boot.partitions",
                self.partitions.is_some(),
                self.control == Control::Gpt,
            ),
            ("boot.grubenv", self.grubenv.is_some(), self.control == Control::Grub),
            (
                "boot.efivars",
                self.efivars.is_some(),
                self.control == Control::Efi || entries,
            ),
            ("boot.esp", self.esp.is_some(), entries),
            ("boot.entries_dir", self.entries_dir.is_some(), entries),
            ("boot.entry", self.entry.is_some(), entries),
            ("boot.entries", self.entries.is_some(), self.control == Control::Efi),
            ("boot.autoboot", self.autoboot.is_some(), self.is_flagged()),
            (
                "boot.boot_partitions",
                self.boot_partitions.is_some(),
                self.is_flagged(),
            ),
            ("boot.firmware_dir", self.firmware_dir.is_some(), self.is_flagged()),
            ("boot.slot_parameter", self.slot_parameter.is_some(), loader),
            ("boot.cmdline_file", self.cmdline_file.is_some(), loader),
            ("boot.running", self.running.is_some(), loader),
            ("boot.root_mount", self.root_mount.is_some(), loader),
        ] {
            if given && !fits {
                return problem(field, "is given, and boot.control is one that has no use for it");
            }
        }
        let counted = self.scheme == Some(Scheme::Bootcount);
        for (field, given) in [
            ("boot.slot_variables", self.slot_variables.is_some()),
            ("boot.fallback_variable", self.fallback_variable.is_some()),
            ("boot.counter_file", self.counter_file.is_some()),
        ] {
            if given && !counted {
                return problem(field, "is given, and boot.scheme is not \"bootcount\"");
            }
        }
        if self.counter_file.is_some() && self.fallback_variable.is_none() {
            return problem(
                "boot.counter_file",
                "is given without boot.fallback_variable, and two places cannot change at once",
            );
        }
        if let Some(name) = &self.slot_parameter
            && (name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '=' | '"')))
        {
            return problem("boot.slot_parameter", "is no name of a kernel parameter");
        }
        Ok(())
    }

    pub(super) fn build(self, base: &Path, slots: &[SlotConfig]) -> Result<BootConfig, Problem> {
        let below = |given: Option<PathBuf>, default: &str| base.join(given.unwrap_or_else(|| default.into()));
        let mut running = Running {
            by: self.running.unwrap_or_default(),
            places: slots.to_vec(),
            ..Running::default()
        };
        if let Some(parameter) = self.slot_parameter {
            running.parameter = parameter;
        }
        if let Some(file) = self.cmdline_file {
            running.cmdline = base.join(file);
        }
        if let Some(mount) = self.root_mount {
            running.mount = base.join(mount);
        }
        // Scripts of U-Boot and GRUB cannot name a variable with a hyphen.
        let hyphen = slots.iter().find(|slot| slot.slot.as_str().contains('-'));
        let in_names = match self.control {
            Control::Uboot => self.scheme != Some(Scheme::Bootcount),
            Control::Grub => true,
            Control::File | Control::Efi | Control::Gpt | Control::SystemdBoot | Control::Tryboot => false,
        };
        if let Some(slot) = hyphen.filter(|_| in_names) {
            let text = format!("is {}, which cannot be part of a boot variable: no hyphens", slot.slot);
            return problem("slot.name", text);
        }
        Ok(match self.control {
            Control::File => BootConfig::File,
            Control::Uboot => BootConfig::Uboot {
                fw_env_config: below(self.fw_env_config, FW_ENV_CONFIG),
                byte_order: match self.byte_order {
                    Some(Order::Big) => ByteOrder::Big,
                    Some(Order::Little) | None => ByteOrder::Little,
                },
                lock_file: below(self.lock_file, LOCK_FILE),
                scheme: match self.scheme {
                    Some(Scheme::Bootcount) => UbootScheme::Bootcount {
                        names: names(self.slot_variables, self.fallback_variable, slots)?,
                        counter_file: self.counter_file.map(|file| base.join(file)),
                    },
                    Some(Scheme::Order) | None => UbootScheme::Order,
                },
                running,
            },
            Control::Gpt => BootConfig::Gpt {
                disk: below(self.disk, ""),
                partitions: partitions(self.partitions.unwrap_or_default(), slots)?,
                running,
            },
            Control::Grub => BootConfig::Grub {
                grubenv: below(self.grubenv, GRUBENV),
                running,
            },
            Control::Efi => BootConfig::Efi {
                vars: EfiVars::new(below(self.efivars, EFIVARS)),
                entries: of_each_slot("boot.entries", self.entries.unwrap_or_default(), slots)?
                    .into_iter()
                    .map(|(slot, entry)| (slot, Entry::parse(&entry)))
                    .collect(),
                running,
            },
            Control::SystemdBoot => {
                let esp = below(self.esp, ESP);
                BootConfig::SystemdBoot {
                    paths: EntryPaths {
                        entries: self
                            .entries_dir
                            .map_or_else(|| esp.join("loader/entries"), |dir| base.join(dir)),
                        conf: esp.join("loader/loader.conf"),
                        vars: EfiVars::new(below(self.efivars, EFIVARS)),
                    },
                    names: entry_names(self.entry.as_deref().unwrap_or(ENTRY), slots)?,
                    running,
                }
            }
            Control::Tryboot => BootConfig::Tryboot {
                paths: TrybootPaths {
                    autoboot: below(self.autoboot, AUTOBOOT),
                    firmware: below(self.firmware_dir, FIRMWARE_DIR),
                    boot_id: BOOT_ID.into(),
                },
                partitions: boot_partitions(self.boot_partitions.unwrap_or_default(), slots)?,
                running,
            },
        })
    }
}

fn entry_names(pattern: &str, slots: &[SlotConfig]) -> Result<[(SlotId, EntryName); 2], Problem> {
    let mut names = Vec::new();
    for slot in slot_sets(slots) {
        let name = EntryName::new(pattern, &slot);
        let name = name.map_or_else(|| problem("boot.entry", "is no name of an entry with {slot} in it"), Ok)?;
        names.push((slot, name));
    }
    match <[_; 2]>::try_from(names) {
        Ok([(_, one), (_, two)]) if one.id() == two.id() => {
            problem("slot.name", "differs in case only, which FAT does not see")
        }
        Ok(names) => Ok(names),
        Err(names) => problem(
            "slot",
            format!(
                "names {} slot sets, and boot.control \"systemd-boot\" is for 2",
                names.len()
            ),
        ),
    }
}

fn boot_partitions(given: BTreeMap<String, u8>, slots: &[SlotConfig]) -> Result<Partitions, Problem> {
    let partitions = of_each_slot("boot.boot_partitions", given, slots)?;
    let numbers: BTreeSet<u8> = partitions.iter().map(|(_, number)| *number).collect();
    if numbers.len() < partitions.len() || numbers.contains(&0) {
        return problem("boot.boot_partitions", "has a partition 0, or one of two slots");
    }
    Ok(Partitions(partitions))
}

/// A table that has one value for each slot set, and no others.
fn of_each_slot<T>(
    field: &str,
    mut given: BTreeMap<String, T>,
    slots: &[SlotConfig],
) -> Result<Vec<(SlotId, T)>, Problem> {
    let mut values: Vec<(SlotId, T)> = Vec::new();
    for slot in slot_sets(slots) {
        let value = given.remove(slot.as_str());
        let value = value.map_or_else(|| problem(field, format!("says nothing about slot {slot}")), Ok)?;
        values.push((slot, value));
    }
    match given.into_keys().next() {
        Some(name) => problem(field, format!("names slot {name}, which is not there")),
        None => Ok(values),
    }
}
