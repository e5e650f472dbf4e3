//! The section `boot`: which boot loader, and where its memory is.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Problem, problem};
use crate::host::loader::Running;
use crate::host::slots::SlotConfig;
use crate::machine::uboot_env::ByteOrder;

/// Parameter of the kernel command line that names the slot.
const SLOT_PARAMETER: &str = "fwagent.slot";
const CMDLINE: &str = "/proc/cmdline";
const FW_ENV_CONFIG: &str = "/etc/fw_env.config";
const GRUBENV: &str = "/boot/grub/grubenv";

/// The boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootConfig {
    /// `fwagent boot`, with a record in the state directory.
    File,
    /// U-Boot with `BOOT_ORDER` and `BOOT_<slot>_LEFT`.
    Uboot {
        /// Where the environment lies.
        fw_env_config: PathBuf,
        /// Of its checksum.
        byte_order: ByteOrder,
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
}

impl BootConfig {
    /// The word of the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Uboot { .. } => "uboot",
            Self::Grub { .. } => "grub",
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
    grubenv: Option<PathBuf>,
    slot_parameter: Option<String>,
    cmdline_file: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Control {
    #[default]
    File,
    Uboot,
    Grub,
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
            Control::File | Control::Uboot => 3,
            Control::Grub => 1,
        })
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        let attempts = self.attempts();
        if !(1..=100).contains(&attempts) {
            return problem("boot.attempts", format!("is {attempts}, not from 1 to 100"));
        }
        if self.control == Control::Grub && attempts != 1 {
            return problem(
                "boot.attempts",
                format!("is {attempts}, and GRUB can count one attempt only"),
            );
        }
        let loader = self.control != Control::File;
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
            ("boot.grubenv", self.grubenv.is_some(), self.control == Control::Grub),
            ("boot.slot_parameter", self.slot_parameter.is_some(), loader),
            ("boot.cmdline_file", self.cmdline_file.is_some(), loader),
        ] {
            if given && !fits {
                return problem(field, "is given, and boot.control is one that has no use for it");
            }
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
        let running = Running {
            parameter: self.slot_parameter.unwrap_or_else(|| SLOT_PARAMETER.to_owned()),
            cmdline: below(self.cmdline_file, CMDLINE),
        };
        // Scripts of U-Boot and GRUB cannot name a variable with a hyphen.
        let hyphen = slots.iter().find(|slot| slot.slot.as_str().contains('-'));
        if let Some(slot) = hyphen.filter(|_| self.control != Control::File) {
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
                running,
            },
            Control::Grub => BootConfig::Grub {
                grubenv: below(self.grubenv, GRUBENV),
                running,
            },
        })
    }
}
