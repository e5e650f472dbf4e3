//! From what a running system shows to a configuration for it, or to a list of what is missing. No I/O: the facts are
//! collected by [`survey`](crate::host::survey).
//!
//! ```text
//! facts -> which loader keeps slots here    none: what each one lacks    several: the user says which
//!       -> which partition runs, and which other one belongs to it by its label
//!       -> names of the slots, and which one runs by the kernel command line
//!       -> where state may lie: a mounted file system that is no slot
//! ```
//!
//! Nothing is guessed. Where two things are as likely, that is a question; where something is not there, it is an item of
//! the list, with what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use fwmeta::json::Value;

use crate::machine::autoboot::Autoboot;
use crate::machine::cmdline;
use crate::machine::gpt::Table;
use crate::machine::grub_env::Block;
use crate::machine::uboot_env::{ByteOrder, Environment};

use self::slots::{PARAMETERS, Slots};

mod loaders;
mod slots;

/// A partition as udev shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFact {
    /// Name of the device, such as `mmcblk0p2`.
    pub device: String,
    /// Label in the partition table.
    pub label: String,
}

/// A mounted file system of a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFact {
    /// Where.
    pub point: String,
    /// Name of the device.
    pub device: String,
    /// Whether it can be written.
    pub writable: bool,
}

/// GRUB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrubFact {
    /// Configuration files that are there.
    pub configs: Vec<String>,
    /// Environment blocks that are there, and what is in them or why it cannot be read.
    pub blocks: Vec<(String, Result<Block, String>)>,
}

/// The boot manager of UEFI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EfiFact {
    /// What was booted.
    pub current: Option<u16>,
    /// All load options: number and description.
    pub options: BTreeMap<u16, String>,
}

/// What a system shows.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The kernel command line.
    pub cmdline: String,
    /// Name of the device with the root file system.
    pub root: Option<String>,
    /// All labelled partitions.
    pub partitions: Vec<PartitionFact>,
    /// Mounted file systems.
    pub mounts: Vec<MountFact>,
    /// `os-release`.
    pub os_release: BTreeMap<String, String>,
    /// What the device tree or the firmware calls the hardware.
    pub model: Option<String>,
    /// The environment of U-Boot, when there is an `/etc/fw_env.config`, or why it cannot be read.
    pub uboot: Option<Result<(Environment, ByteOrder), String>>,
    /// GRUB, when there is something of it.
    pub grub: GrubFact,
    /// Disks with a partition table.
    pub disks: Vec<(String, Table)>,
    /// Variables of UEFI, when there are some.
    pub efi: Option<EfiFact>,
    /// Boot entries of systemd-boot, as file names.
    pub entries: Vec<String>,
    /// `autoboot.txt` of the Raspberry Pi, where it was found, and what it says or why it cannot be read.
    pub autoboot: Option<(String, Result<Autoboot, String>)>,
    /// Number of the partition that the loader of a Raspberry Pi has booted.
    pub booted_partition: Option<u8>,
}

/// What the user says.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The boot control.
    pub control: Option<String>,
    /// `device.product`.
    pub product: Option<String>,
    /// `device.hardware`.
    pub hardware: Option<String>,
    /// `server.url`.
    pub server: Option<String>,
    /// `state.dir`.
    pub state: Option<PathBuf>,
}

/// Something that no configuration can be written without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: String,
    /// What was found instead.
    pub found: String,
    /// What to do.
    pub act: String,
}

impl Missing {
    fn new(what: impl Into<String>, found: impl Into<String>, act: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            found: found.into(),
            act: act.into(),
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The boot control, if it is clear which.
    pub control: Option<String>,
    /// What was found, for people.
    pub found: Vec<String>,
    /// What is missing; nothing, if there is a configuration.
    pub missing: Vec<Missing>,
    /// The configuration.
    pub config: Option<String>,
}

/// A loader that keeps slots, and what of its own it says in the configuration.
struct Found {
    control: &'static str,
    /// What shows that it does.
    because: String,
    /// Names of the slots, if it has names for them.
    names: Option<BTreeSet<String>>,
    /// Lines of the section `boot` after `control`.
    lines: Lines,
}

type Lines = Box<dyn Fn(&Facts, &Slots) -> Result<Vec<String>, Missing>>;

/// Answers.
pub fn adopt(facts: &Facts, wish: &Wish) -> Adoption {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    let loader = choose(facts, wish, &mut found)
        .map_err(|problems| missing.extend(problems))
        .ok();
    let names = loader.as_ref().and_then(|loader| loader.names.clone());
    let slots = slots::find(facts, names.as_ref())
        .map_err(|problems| missing.extend(problems))
        .ok();
    if let Some(slots) = &slots {
        for (name, partition) in &slots.pair {
            found.push(format!(
                "slot {name}: partition {} ({})",
                partition.label, partition.device
            ));
        }
    }
    found.extend(slots::other_pairs(facts, slots.as_ref()));
    let lines = match (&loader, &slots) {
        (Some(loader), Some(slots)) => {
            let lines = (loader.lines)(facts, slots);
            lines.map_err(|problem| missing.push(problem)).ok()
        }
        _ => None,
    };
    let given = |field: &str, wish: &Option<String>, option: &str, known: Option<String>, act: &str| {
        wish.clone()
            .or(known)
            .ok_or_else(|| Missing::new(field, "nothing on the system says it", format!("{act}: {option}")))
    };
    let image = facts.os_release.get("IMAGE_ID").filter(|id| !id.is_empty()).cloned();
    let product = given(
        "device.product",
        &wish.product,
        "--product NAME",
        image,
        "name the product as its releases do",
    );
    let hardware = given(
        "device.hardware",
        &wish.hardware,
        "--hardware NAME",
        facts.model.clone(),
        "name the hardware as releases do",
    );
    let server = given(
        "server.url",
        &wish.server,
        "--server URL",
        None,
        "say where its updates are",
    );
    let state = slots::state(facts, wish, slots.as_ref());
    for problem in [&product, &hardware, &server, &state] {
        missing.extend(problem.as_ref().err().cloned());
    }
    let config = match (loader.as_ref(), slots, lines, product, hardware, server, state) {
        (Some(loader), Some(slots), Some(lines), Ok(product), Ok(hardware), Ok(server), Ok(state))
            if missing.is_empty() =>
        {
            let identity = [("product", product), ("hardware", hardware)];
            Some(text(loader, &slots, &lines, &identity, &server, &state))
        }
        _ => None,
    };
    Adoption {
        control: loader.map(|loader| loader.control.to_owned()),
        found,
        missing,
        config,
    }
}

/// The loader that keeps slots here.
fn choose(facts: &Facts, wish: &Wish, notes: &mut Vec<String>) -> Result<Found, Vec<Missing>> {
    let (sure, lacking) = loaders::all(facts);
    notes.extend(
        sure.iter()
            .map(|loader| format!("{}: {}", loader.control, loader.because)),
    );
    if let Some(wanted) = &wish.control {
        return match sure.into_iter().find(|loader| loader.control == wanted) {
            Some(loader) => Ok(loader),
            None => {
                let mut why: Vec<Missing> = lacking
                    .into_iter()
                    .filter(|(control, _)| control == wanted)
                    .map(|(_, why)| why)
                    .collect();
                if why.is_empty() {
                    let act = "choose another one by --control, or set this loader up for slots first";
                    why.push(Missing::new(
                        format!("boot control {wanted}"),
                        "there is nothing of it on this system",
                        act,
                    ));
                }
                Err(why)
            }
        };
    }
    let words: Vec<&str> = sure.iter().map(|loader| loader.control).collect();
    match sure.len() {
        1 => Ok(sure.into_iter().next().ok_or_else(Vec::new)?),
        0 if lacking.is_empty() => {
            let known =
                "none of U-Boot, GRUB, systemd-boot, EFI variables, autoboot.txt, partition attributes was found";
            Err(vec![Missing::new(
                "a boot loader with slots",
                known,
                "set one up as the README's \"Boot loaders\" has it",
            )])
        }
        0 => Err(lacking.into_iter().map(|(_, why)| why).collect()),
        _ => {
            let act = "say which one chooses the slot: --control NAME";
            Err(vec![Missing::new(
                "which boot loader chooses the slot",
                words.join(" and "),
                act,
            )])
        }
    }
}

fn text(
    loader: &Found,
    slots: &Slots,
    lines: &[String],
    identity: &[(&str, String)],
    server: &str,
    state: &str,
) -> String {
    let mut text = format!(
        "# Written by `fwagent adopt`, which found:\n#   {}: {}\n[device]\n",
        loader.control,
        comment(&loader.because)
    );
    // Writing into a string does not fail.
    for (field, value) in identity {
        let _ = writeln!(text, "{field} = {}", quoted(value));
    }
    let _ = writeln!(
        text,
        "\n[server]\nurl = {}\n\n[state]\ndir = {}\n",
        quoted(server),
        quoted(state)
    );
    let _ = writeln!(text, "[boot]\ncontrol = {}", quoted(loader.control));
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    if let Some(parameter) = slots.parameter.as_ref().filter(|parameter| *parameter != PARAMETERS[0]) {
        let _ = writeln!(text, "slot_parameter = {}", quoted(parameter));
    }
    for (name, partition) in slots.sorted() {
        let path = format!("/dev/disk/by-partlabel/{}", cmdline::link_name(&partition.label));
        let _ = writeln!(
            text,
            "\n[[slot]]\nname = {}\nkind = \"block\"\npath = {}",
            quoted(name),
            quoted(&path)
        );
    }
    text
}

/// A string of TOML, which has the escapes of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_json()
}

fn comment(text: &str) -> String {
    text.replace(char::is_control, " ")
}
