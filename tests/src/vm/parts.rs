//! What the guest is made of: Debian packages that `setup.sh` has unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// The unpacked packages.
#[derive(Debug)]
pub struct Parts {
    root: PathBuf,
    kernel: PathBuf,
    modules: PathBuf,
}

impl Parts {
    /// Finds them: in `FWTESTS_TOOLS`, or in `target/interop-tools`.
    ///
    /// # Errors
    /// When something is missing.
    pub fn find() -> anyhow::Result<Self> {
        let tools = std::env::var_os("FWTESTS_TOOLS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop-tools"),
            PathBuf::from,
        );
        let root = tools.join("vm");
        let advice = "run tests/src/vm/setup.sh, with the same FWTESTS_TOOLS";
        let root = root
            .canonicalize()
            .with_context(|| format!("{}: {advice}", root.display()))?;
        Ok(Self {
            kernel: only(&root.join("boot"), "vmlinuz-")?,
            modules: only(&root.join("lib/modules"), "")?,
            root,
        })
    }

    /// The kernel.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// BusyBox.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// Modules of GRUB, its boot sector among them.
    pub fn grub(&self) -> PathBuf {
        self.root.join("usr/lib/grub/i386-pc")
    }

    /// 32-bit U-Boot as firmware.
    pub fn uboot(&self) -> PathBuf {
        self.root.join("usr/lib/u-boot/qemu-x86/u-boot.rom")
    }

    /// The library that turns fsync into nothing.
    pub fn eatmydata(&self) -> PathBuf {
        self.root.join("usr/lib/x86_64-linux-gnu/libeatmydata.so")
    }

    /// These modules of the kernel and what they need, as files, in the order in which they must be loaded; built-in ones
    /// are left out.
    ///
    /// # Errors
    /// When there is no such module.
    pub fn modules(&self, wanted: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let list = self.modules.join("modules.builtin");
        let built_in = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let built_in: Vec<String> = built_in.lines().map(|line| module_name(Path::new(line))).collect();
        let mut files = Vec::new();
        list_files(&self.modules, &mut files)?;
        let mut order = Vec::new();
        for name in wanted {
            load_order(name, &built_in, &files, &mut order)?;
        }
        Ok(order)
    }
}

fn load_order(
    name: &str,
    built_in: &[String],
    files: &[PathBuf],
    order: &mut Vec<(String, Vec<u8>)>,
) -> anyhow::Result<()> {
    let name = name.replace('-', "_");
    if built_in.contains(&name) || order.iter().any(|(loaded, _)| *loaded == name) {
        return Ok(());
    }
    let file = files.iter().find(|file| module_name(file) == name);
    let file = file.with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = if file.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz")
            .arg("-dc")
            .arg(file)
            .output()
            .context("starting xz")?;
        ensure!(output.status.success(), "xz -dc {}", file.display());
        output.stdout
    } else {
        fs::read(file)?
    };
    for needed in needs(&bytes) {
        load_order(&needed, built_in, files, order)?;
    }
    order.push((name, bytes));
    Ok(())
}

/// `a/b/virtio-blk.ko.xz` is `virtio_blk`.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The field `depends` of a module.
fn needs(module: &[u8]) -> Vec<String> {
    let field = module
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="));
    let field = String::from_utf8_lossy(field.unwrap_or_default()).into_owned();
    field
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn list_files(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list_files(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.push(path);
        }
    }
    Ok(())
}

fn only(dir: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut found: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        _ => bail!("there is not exactly one {prefix}* in {}", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(
            needs(b"\x7fELF\0license=GPL\0depends=virtio,virtio_ring\0x=y"),
            ["virtio", "virtio_ring"]
        );
        assert!(needs(b"depends=\0").is_empty() && needs(b"mydepends=x\0").is_empty());
        assert_eq!(module_name(Path::new("kernel/net/virtio-net.ko.xz")), "virtio_net");
    }
}
