//! The disk of the device: partitions, boot loader, first software.
//!
//! ```text
//! 1 loader   GRUB's core image                2 boot   file system of the boot loader: script or menu, GRUB's block
//! 3 env1     U-Boot's environment             4 env2   its second copy
//! 5 rootA    slot A                           6 rootB  slot B
//! 7 data     file system with the state of the agent and the settings
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::vm::disk::SECTOR;
use crate::vm::parts::Parts;
use crate::vm::run;

const MIB: u64 = 1024 * 1024;
/// GRUB modules that the menu needs.
const GRUB_MODULES: [&str; 11] = [
    "biosdisk",
    "part_gpt",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "loadenv",
    "test",
    "echo",
    "serial",
    "reboot",
];

/// Where a partition lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its label.
    pub name: &'static str,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The partitions.
#[derive(Debug)]
pub struct Layout {
    partitions: Vec<Partition>,
}

impl Layout {
    /// For slots and data of these sizes in bytes.
    pub fn new(slot: u64, data: u64) -> Self {
        let mut offset = MIB;
        let sizes = [
            ("loader", MIB),
            ("boot", 4 * MIB),
            ("env1", MIB),
            ("env2", MIB),
            ("rootA", slot),
            ("rootB", slot),
            ("data", data),
        ];
        let partitions = sizes.map(|(name, size)| {
            let size = size.next_multiple_of(MIB);
            let partition = Partition { name, offset, size };
            offset += size;
            partition
        });
        Self {
            partitions: partitions.to_vec(),
        }
    }

    /// The partition with this label.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, name: &str) -> anyhow::Result<Partition> {
        let found = self.partitions.iter().find(|partition| partition.name == name);
        found.copied().with_context(|| format!("no partition {name}"))
    }

    /// The content of a disk with these partitions, of which some are filled from files; `scratch` is a file to work in.
    ///
    /// # Errors
    /// When a file is missing or does not fit.
    pub fn build(&self, scratch: &Path, content: &[(&str, &Path)]) -> anyhow::Result<Vec<u8>> {
        let end = self.partitions.last().map_or(0, |last| last.offset + last.size);
        fs::File::create(scratch)?.set_len(end + MIB)?;
        let mut sgdisk = Command::new("sgdisk");
        sgdisk.arg("--clear");
        for (index, partition) in self.partitions.iter().enumerate() {
            let (number, sector) = (index + 1, SECTOR as u64);
            let (first, last) = (
                partition.offset / sector,
                (partition.offset + partition.size) / sector - 1,
            );
            let kind = if partition.name == "loader" { "ef02" } else { "8300" };
            sgdisk
                .arg(format!("--new={number}:{first}:{last}"))
                .arg(format!("--typecode={number}:{kind}"))
                .arg(format!("--change-name={number}:{}", partition.name));
        }
        // U-Boot looks for its script on the partition with the flag "legacy BIOS bootable".
        run(sgdisk.arg("--attributes=2:set:2").arg(scratch))?;
        let mut disk = fs::read(scratch)?;
        for (name, path) in content {
            let partition = self.find(name)?;
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            ensure!(
                bytes.len() as u64 <= partition.size,
                "{} does not fit into {name}",
                path.display()
            );
            disk[partition.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        Ok(disk)
    }

    /// Puts GRUB onto the disk, as `grub-bios-setup` does: its boot sector, which finds the core image by its number, and
    /// the core image, whose first sector finds the rest of it.
    ///
    /// Source: GRUB, `include/grub/i386/pc/boot.h` and `include/grub/offsets.h`.
    ///
    /// # Errors
    /// When GRUB's files are missing.
    pub fn install_grub(&self, disk: &mut [u8], parts: &Parts, scratch: &Path) -> anyhow::Result<()> {
        const CODE: usize = 0x1b8;
        const KERNEL_SECTOR: usize = 0x5c;
        const DRIVE_CHECK: usize = 0x66;
        const FIRST_BLOCK_LIST: usize = SECTOR - 12;
        const SECOND_SECTOR_SEGMENT: u16 = 0x820;

        let mut mkimage = Command::new("grub-mkimage");
        mkimage
            .arg("--directory")
            .arg(parts.grub())
            .arg("--output")
            .arg(scratch);
        run(mkimage
            .args(["--format=i386-pc", "--prefix=(hd0,gpt2)/grub"])
            .args(GRUB_MODULES))?;
        let mut core = fs::read(scratch)?;
        let mut boot = fs::read(parts.grub().join("boot.img"))?;
        let place = self.find("loader")?;
        ensure!(
            boot.len() == SECTOR && core.len() > SECTOR && core.len() as u64 <= place.size,
            "GRUB's images are not what they should be"
        );
        let sector = place.offset / SECTOR as u64;
        let rest = u16::try_from(core.len().div_ceil(SECTOR) - 1)?;
        boot[KERNEL_SECTOR..][..8].copy_from_slice(&sector.to_le_bytes());
        // The drive that the BIOS names is the right one.
        boot[DRIVE_CHECK..][..2].copy_from_slice(&[0x90, 0x90]);
        let list = [
            &(sector + 1).to_le_bytes()[..],
            &rest.to_le_bytes(),
            &SECOND_SECTOR_SEGMENT.to_le_bytes(),
        ];
        core[FIRST_BLOCK_LIST..SECTOR].copy_from_slice(&list.concat());
        disk[..CODE].copy_from_slice(&boot[..CODE]);
        disk[place.offset as usize..][..core.len()].copy_from_slice(&core);
        Ok(())
    }
}
