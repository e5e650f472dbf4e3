//! A device in a virtual machine: real boot loaders, a real kernel, the real agent, and a disk that loses what was not
//! flushed.
//!
//! ```text
//! story    vendor, device, cuts; what must hold        parts    Debian packages that the guest is made of
//! machine  QEMU and its console                         guest    software of the device, as an image of a slot
//! nbd      the disk, for QEMU                           cpio     its first file system
//! disk     what a loss of power leaves of writes        layout   partitions and boot loaders
//! ```

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

pub mod cpio;
pub mod disk;
pub mod guest;
pub mod layout;
pub mod machine;
pub mod nbd;
pub mod parts;
pub mod story;

/// The boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Loader {
    /// GRUB 2 by BIOS, with its environment block.
    Grub,
    /// 32-bit U-Boot, with a redundant environment.
    Uboot,
}

/// A bug that must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// The disk says that it flushed, and did not.
    LyingDisk,
    /// The agent's calls of fsync do nothing.
    NoFsync,
}

/// Runs a program of the host, which must succeed.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
