//! The software of the device: a kernel, BusyBox, the real agent and three scripts, as a raw image that fills a slot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::bins::binary;
use crate::vm::cpio::Archive;
use crate::vm::parts::Parts;
use crate::vm::{Loader, Planted, run};

/// What a release does when it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It works.
    Good,
    /// Its health check fails.
    Unhealthy,
    /// Its kernel panics.
    Panics,
    /// The boot loader finds no kernel in it.
    Unbootable,
    /// Nothing happens any more, until somebody switches the device off and on.
    Hangs,
}

impl Fate {
    /// The word in `/etc/fate`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unhealthy => "unhealthy",
            Self::Panics => "panics",
            Self::Unbootable => "unbootable",
            Self::Hangs => "hangs",
        }
    }
}

/// Drivers of the kernel that the guest needs.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "ext4"];
/// Programs of BusyBox that the scripts use.
const APPLETS: [&str; 12] = [
    "sh",
    "mount",
    "umount",
    "mkdir",
    "ln",
    "sed",
    "stty",
    "ifconfig",
    "sha256sum",
    "kill",
    "sleep",
    "cat",
];
const MIB: u64 = 1024 * 1024;

/// The tree that images are made of.
#[derive(Debug)]
pub struct Guest {
    tree: PathBuf,
    kernel: PathBuf,
}

impl Guest {
    /// Builds the tree in the directory `tree`. The agent asks the server at `url`.
    ///
    /// # Errors
    /// When something is missing.
    pub fn build(
        tree: &Path,
        parts: &Parts,
        loader: Loader,
        planted: Option<Planted>,
        url: &str,
    ) -> anyhow::Result<Self> {
        for dir in [
            "bin",
            "sbin",
            "lib",
            "lib64",
            "etc/fwagent",
            "run",
            "var",
            "proc",
            "sys",
            "dev",
            "data",
            "boot",
            "kernel",
        ] {
            fs::create_dir_all(tree.join(dir))?;
        }
        let put = |from: &Path, to: &str| {
            let copied = fs::copy(from, tree.join(to));
            copied.with_context(|| format!("copying {} to /{to}", from.display()))
        };
        fs::write(tree.join("kernel/initramfs"), initramfs(parts)?)?;
        put(&parts.busybox(), "bin/busybox")?;
        // Where the lock of U-Boot's tools is.
        symlink("../run", tree.join("var/lock"))?;
        for applet in APPLETS {
            symlink("busybox", tree.join("bin").join(applet))?;
        }
        for (name, script) in [
            ("sbin/init", include_str!("guest/init.sh")),
            ("sbin/restart", include_str!("guest/restart.sh")),
            ("bin/check", include_str!("guest/check.sh")),
        ] {
            fs::write(tree.join(name), script)?;
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let agent = binary("fwagent");
        run(Command::new("strip")
            .arg("-o")
            .arg(tree.join("bin/fwagent"))
            .arg(&agent))?;
        for library in libraries(&agent)? {
            // As the loader of the guest looks for them.
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let dir = if library.starts_with("/lib64") { "lib64" } else { "lib" };
            put(&library, &format!("{dir}/{name}"))?;
        }
        if planted == Some(Planted::NoFsync) {
            put(&parts.eatmydata(), "lib/libeatmydata.so")?;
            fs::write(tree.join("etc/no-fsync"), "")?;
        }
        if loader == Loader::Uboot {
            let config = "/dev/disk/by-partlabel/env1 0 0x4000\n/dev/disk/by-partlabel/env2 0 0x4000\n";
            fs::write(tree.join("etc/fw_env.config"), config)?;
        }
        fs::write(tree.join("etc/fwagent/fwagent.toml"), config(loader, url))?;
        Ok(Self {
            tree: tree.to_owned(),
            kernel: parts.kernel().to_owned(),
        })
    }

    /// Makes an image of this version, in the file `image`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn image(&self, version: &str, fate: Fate, image: &Path) -> anyhow::Result<()> {
        fs::write(self.tree.join("etc/version"), format!("{version}\n"))?;
        fs::write(self.tree.join("etc/fate"), format!("{}\n", fate.word()))?;
        let kernel = self.tree.join("kernel/vmlinuz");
        if fate == Fate::Unbootable {
            fs::write(kernel, "no kernel")?;
        } else {
            fs::copy(&self.kernel, kernel)?;
        }
        let size = tree_size(&self.tree)?;
        // A file system that U-Boot and GRUB read: ext2. Room for its inodes, the blocks that say where a file lies, what is
        // kept back, and two mebibytes over.
        let size = (size + size / 12 + 2 * MIB).next_multiple_of(MIB);
        file_system(&self.tree, size, &["-t", "ext2", "-b", "4096"], image)
    }
}

/// Makes a file system of so many bytes with the content of a directory.
///
/// # Errors
/// When `mke2fs` fails.
pub fn file_system(tree: &Path, size: u64, options: &[&str], image: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_file(image);
    let mut command = Command::new("mke2fs");
    command
        .args(["-q", "-F", "-m", "0", "-E", "root_owner=0:0"])
        .args(options);
    command.arg("-d").arg(tree).arg(image).arg(format!("{}k", size / 1024));
    run(&mut command)
}

/// Configuration of the agent, up to where its state is: the same in the factory and on the device.
pub fn config_head(url: &str) -> String {
    format!(
        "[device]\nproduct = \"{}\"\nhardware = \"rev-b\"\n\n[server]\nurl = \"{url}\"\n\n",
        crate::world::PRODUCT
    )
}

fn config(loader: Loader, url: &str) -> String {
    let mut text = config_head(url);
    text.push_str("[state]\ndir = \"/data/state\"\n\n[poll]\ninterval_s = 10\njitter_s = 0\nretry_s = 2\n\n");
    text.push_str(match loader {
        Loader::Grub => "[boot]\ncontrol = \"grub\"\ngrubenv = \"/boot/grub/grubenv\"\n\n",
        Loader::Uboot => "[boot]\ncontrol = \"uboot\"\nattempts = 2\n\n",
    });
    text.push_str("[restart]\ncommand = [\"/sbin/restart\"]\n\n");
    text.push_str("[[health.check]]\nname = \"radio\"\ncommand = [\"/bin/check\"]\n");
    for name in ["A", "B"] {
        text.push_str(&format!(
            "\n[[slot]]\nname = \"{name}\"\nkind = \"block\"\npath = \"/dev/disk/by-partlabel/root{name}\"\n"
        ));
    }
    text
}

fn initramfs(parts: &Parts) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "modules", "proc", "sys", "dev", "root"] {
        archive.dir(dir);
    }
    let busybox = fs::read(parts.busybox()).with_context(|| parts.busybox().display().to_string())?;
    archive.file("bin/busybox", &busybox);
    archive.file("init", include_bytes!("guest/initramfs.sh"));
    let mut order = String::new();
    for (name, bytes) in parts.modules(&MODULES)? {
        archive.file(&format!("modules/{name}.ko"), &bytes);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.file("modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// The shared libraries of a program, its loader among them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths: Vec<PathBuf> = text
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect();
    ensure!(
        output.status.success() && !paths.is_empty(),
        "ldd {}: {text}",
        program.display()
    );
    Ok(paths)
}

fn tree_size(dir: &Path) -> anyhow::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        size += if entry.file_type()?.is_dir() {
            tree_size(&entry.path())?
        } else {
            entry.path().symlink_metadata()?.len().next_multiple_of(4096)
        };
    }
    Ok(size)
}
