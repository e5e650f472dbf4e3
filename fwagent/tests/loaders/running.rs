//! Which slot runs, by the kernel command line and by mounts: on loop devices, with what a kernel may say.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use fwagent::host::loader::Running;
use fwagent::host::loader::running::RunningBy;
use fwagent::host::slots::{SlotConfig, SlotKind};
use fwagent::host::system::System;

use crate::loop_device::{LoopDevice, Undo, done};
use crate::{slot, slots};

fn place(name: &str, kind: SlotKind, path: &Path) -> SlotConfig {
    SlotConfig {
        slot: slot(name),
        class: "system".to_owned(),
        kind,
        path: path.to_owned(),
        size: None,
    }
}

fn number(path: &Path) -> String {
    let rdev = fs::metadata(path).unwrap().rdev();
    format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev))
}

fn found(running: &Running) -> Result<String, String> {
    let found = running.slot(&slots());
    found.map(|slot| slot.to_string()).map_err(|error| error.to_string())
}

#[test]
fn whoever_says_which_slot_runs_must_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let device = |name: &str| LoopDevice::new(&dir.path().join(name), 1 << 20);
    let (Some(a), Some(b), Some(other)) = (device("a"), device("b"), device("other")) else {
        return;
    };
    let (proc, dev) = (dir.path().join("proc"), dir.path().join("dev"));
    fs::create_dir_all(proc.join("self")).unwrap();
    fs::create_dir_all(dev.join("disk/by-partlabel")).unwrap();
    for (label, device) in [("rootA", &a), ("rootB", &b), ("data", &other)] {
        symlink(&device.path, dev.join("disk/by-partlabel").join(label)).unwrap();
    }
    let mut running = Running {
        cmdline: proc.join("cmdline"),
        places: vec![
            place("A", SlotKind::Block, &a.path),
            place("B", SlotKind::Block, &b.path),
        ],
        system: System {
            proc: proc.clone(),
            dev: dev.clone(),
            ..System::default()
        },
        ..Running::default()
    };
    let on = |device: &LoopDevice| format!("1 0 {} / / rw - ext4 /dev/root rw\n", number(&device.path));
    let (on_a, on_b, on_other) = (on(&a), on(&b), on(&other));
    // A file system with a number of its own, whose source is a device; and one mount over another.
    let btrfs_b = format!("1 0 0:40 /sub / rw - btrfs {} rw\n", b.path.display());
    let a_then_b = format!("{on_a}{on_b}");
    for (by, cmdline, mountinfo, expected) in [
        (RunningBy::Auto, "fwagent.slot=A", &on_other, Ok("A")),
        (RunningBy::Auto, "root=PARTLABEL=rootB ro", &on_other, Ok("B")),
        (RunningBy::Auto, "quiet", &on_b, Ok("B")),
        (RunningBy::Auto, "quiet", &btrfs_b, Ok("B")),
        (RunningBy::Auto, "quiet", &a_then_b, Ok("B")),
        (RunningBy::Auto, "root=PARTLABEL=rootA fwagent.slot=A", &on_a, Ok("A")),
        (
            RunningBy::Auto,
            "root=PARTLABEL=rootA fwagent.slot=B",
            &on_other,
            Err("B by fwagent.slot="),
        ),
        (RunningBy::Auto, "fwagent.slot=A", &on_b, Err("B by the mount at /")),
        (RunningBy::Auto, "root=PARTLABEL=rootA", &on_b, Err("A by root=")),
        (
            RunningBy::Auto,
            "root=PARTLABEL=data",
            &on_other,
            Err("neither its root= nor a mount"),
        ),
        (
            RunningBy::Auto,
            "fwagent.slot=C",
            &on_a,
            Err("no slot of the configuration"),
        ),
        (RunningBy::Parameter, "fwagent.slot=A", &on_b, Ok("A")),
        (
            RunningBy::Parameter,
            "root=PARTLABEL=rootA",
            &on_a,
            Err("there is no fwagent.slot="),
        ),
        (RunningBy::Root, "root=PARTLABEL=rootA fwagent.slot=B", &on_b, Ok("A")),
        (RunningBy::Root, "root=PARTLABEL=rootC", &on_b, Err("no root=")),
        (RunningBy::Mount, "fwagent.slot=A", &on_b, Ok("B")),
        (RunningBy::Mount, "fwagent.slot=A", &on_other, Err("is no slot")),
    ] {
        running.by = by;
        fs::write(proc.join("cmdline"), cmdline).unwrap();
        fs::write(proc.join("self/mountinfo"), mountinfo).unwrap();
        match (found(&running), expected) {
            (Ok(slot), Ok(expected)) => assert_eq!(slot, expected, "{by:?} {cmdline}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{by:?} {cmdline}: {error}"),
            (found, _) => panic!("{by:?} {cmdline} {mountinfo}: {found:?}"),
        }
    }
}

#[test]
fn what_is_mounted_is_found_whatever_a_slot_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let Some(device) = LoopDevice::new(&image, 4 << 20) else {
        return;
    };
    done("mkfs.ext4", ["-q".as_ref(), device.path.as_os_str()]);
    let trees = dir.path().join("trees");
    fs::create_dir_all(trees.join("tree-1")).unwrap();
    symlink("tree-1", trees.join("current")).unwrap();
    let point = dir.path().join("mnt");
    let cmdline = dir.path().join("cmdline");
    fs::write(&cmdline, "quiet").unwrap();
    let mut running = Running {
        cmdline,
        mount: point.clone(),
        places: vec![place("A", SlotKind::File, &image), place("B", SlotKind::Dir, &trees)],
        ..Running::default()
    };
    let mounted = Undo::mount(&[device.path.to_str().unwrap()], &point);
    assert_eq!(found(&running).as_deref(), Ok("A"));
    running.places[0] = place("B", SlotKind::Block, &device.path);
    assert_eq!(found(&running).as_deref(), Ok("B"));
    drop(mounted);
    running.places[0] = place("A", SlotKind::File, &image);
    let mounted = Undo::mount(&["--bind", trees.join("tree-1").to_str().unwrap()], &point);
    assert_eq!(found(&running).as_deref(), Ok("B"));
    drop(mounted);
    assert!(found(&running).is_err());
}
