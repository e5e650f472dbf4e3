//! The factory: the first software, the boot loader and its memory, the state of the agent, all on one disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use super::{DATA_BYTES, SETTINGS};
use crate::vm::guest::{config_head, file_system};
use crate::vm::layout::Layout;
use crate::vm::parts::Parts;
use crate::vm::{Loader, run};
use crate::world::World;

/// Bytes of a copy of U-Boot's environment, as `boot.cmd` and `fw_env.config` have it.
const ENV_BYTES: &str = "0x4000";
/// The factory: the agent is provisioned with files in place of partitions, which then become the disk.
pub(super) fn build(
    world: &World,
    parts: &Parts,
    layout: &Layout,
    loader: Loader,
    image: &Path,
) -> anyhow::Result<Vec<u8>> {
    let path = |name: &str| world.path(name);
    fs::create_dir_all(path("device"))?;
    fs::create_dir_all(path("boot/grub"))?;
    fs::create_dir_all(path("factory"))?;
    let mut config = config_head(&world.url());
    config.push_str("[state]\ndir = \"factory/state\"\n\n");
    let cmdline = "console=ttyS0 quiet nokaslr panic=1";
    match loader {
        Loader::Grub => {
            run(Command::new("grub-editenv")
                .arg(path("boot/grub/grubenv"))
                .arg("create"))?;
            let menu = include_str!("../guest/grub.cfg").replace("@CMDLINE@", cmdline);
            fs::write(path("boot/grub/grub.cfg"), menu)?;
            config.push_str("[boot]\ncontrol = \"grub\"\ngrubenv = \"boot/grub/grubenv\"\n");
        }
        Loader::Uboot => {
            let mut places = String::new();
            fs::write(path("device/env.txt"), "vendor=example\n")?;
            for name in ["env1", "env2"] {
                let file = path(&format!("device/{name}"));
                let mut mkenvimage = Command::new("mkenvimage");
                mkenvimage.args(["-r", "-s", ENV_BYTES, "-o"]).arg(&file);
                run(mkenvimage.arg(path("device/env.txt")))?;
                places.push_str(&format!("{} 0 {ENV_BYTES}\n", file.display()));
            }
            fs::write(path("fw_env.config"), places)?;
            config.push_str("[boot]\ncontrol = \"uboot\"\nattempts = 2\nfw_env_config = \"fw_env.config\"\n");
            let script = include_str!("../guest/boot.cmd").replace("@CMDLINE@", cmdline);
            fs::write(path("device/boot.cmd"), script)?;
            let mut mkimage = Command::new("mkimage");
            mkimage.args(["-A", "x86", "-T", "script", "-C", "none", "-d"]);
            run(mkimage.arg(path("device/boot.cmd")).arg(path("boot/boot.scr.uimg")))?;
        }
    }
    for name in ["A", "B"] {
        config.push_str(&format!(
            "\n[[slot]]\nname = \"{name}\"\nkind = \"file\"\npath = \"device/slot-{name}\"\n"
        ));
    }
    fs::write(path("device.toml"), config)?;
    let ran = world.fwagent(&["provision", "--root", "repo/metadata/1.root.json", "--from-server"])?;
    ensure!(ran.code == 0, "fwagent provision: {}{}", ran.out, ran.err);
    ensure!(
        fs::read(path("device/slot-A"))? == fs::read(image)?,
        "slot A is not the first release"
    );

    fs::write(path("factory/settings"), SETTINGS)?;
    file_system(&path("factory"), DATA_BYTES, &["-t", "ext4"], &path("device/data"))?;
    let boot = layout.find("boot")?;
    // Without what GRUB and U-Boot cannot read.
    let plain = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,^orphan_file"];
    file_system(&path("boot"), boot.size, &plain, &path("device/boot"))?;
    let (slot, boot, data) = (path("device/slot-A"), path("device/boot"), path("device/data"));
    let (env1, env2) = (path("device/env1"), path("device/env2"));
    let mut content = vec![("rootA", slot.as_path()), ("boot", &boot), ("data", &data)];
    if loader == Loader::Uboot {
        content.extend([("env1", env1.as_path()), ("env2", &env2)]);
    }
    let mut disk = layout.build(&path("device/disk"), &content)?;
    if loader == Loader::Grub {
        layout.install_grub(&mut disk, parts, &path("device/core"))?;
    }
    Ok(disk)
}
