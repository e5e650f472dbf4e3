//! Directory slots: written, replaced, verified.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use fwagent::host::slots::SlotError;
use fwagent::ports::{PortErrorKind, SlotStore};
use fwmeta::manifest::ImageKind;

use crate::device::{Device, exists, good, slot_error};

type Change<'a> = &'a dyn Fn(&Path);

fn device() -> Device {
    Device::new(ImageKind::Tar, None)
}

fn trees(device: &Device) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(device.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_tree_is_unpacked_and_becomes_current() {
    let mut device = device();
    let (first, second) = (good("first"), good("second"));
    device.slots.check(&device.slot, &device.component(&first)).unwrap();
    assert!(!device.holds(&first));
    device.write(&first).unwrap();
    assert!(device.holds(&first) && !device.holds(&second));

    let current = device.slots.bootable_path(&device.slot, None).unwrap();
    assert_eq!(current, device.path().join("current"));
    let name = fs::read_link(&current).unwrap();
    assert!(name.to_str().unwrap().starts_with("tree-") && name.as_os_str().len() == 21);
    for path in ["bin/tool", "bin/alias", "bin/up", "etc/name"] {
        assert_eq!(fs::read_to_string(current.join(path)).unwrap(), "first", "{path}");
    }
    let mode = |path: &str| fs::metadata(current.join(path)).unwrap().permissions().mode() & 0o7777;
    let modes = ["bin/tool", "etc/name", "etc", "locked", "locked/secret", "."].map(mode);
    assert_eq!(modes, [0o755, 0o644, 0o755, 0o555, 0o400, 0o755]);

    device.write(&second).unwrap();
    assert!(device.holds(&second) && !device.holds(&first));
    assert_eq!(fs::read_to_string(current.join("bin/up")).unwrap(), "second");
    let name = fs::read_link(&current).unwrap().into_os_string().into_string().unwrap();
    assert_eq!(
        trees(&device),
        ["current".to_owned(), name.clone(), name + ".inventory"]
    );
}

#[test]
fn any_change_of_the_tree_is_seen_and_repaired() {
    let image = good("content");
    let changes: [(&str, Change); 9] = [
        ("nothing", &|_| {}),
        ("one byte", &|tree| fs::write(tree.join("etc/name"), "kontent").unwrap()),
        ("one mode", &|tree| {
            fs::set_permissions(tree.join("bin/tool"), Permissions::from_mode(0o754)).unwrap();
        }),
        ("the root's mode", &|tree| {
            fs::set_permissions(tree, Permissions::from_mode(0o700)).unwrap();
        }),
        ("one more file", &|tree| fs::write(tree.join("bin/more"), "").unwrap()),
        ("one file less", &|tree| fs::remove_file(tree.join("bin/tool")).unwrap()),
        ("another target", &|tree| {
            fs::remove_file(tree.join("bin/alias")).unwrap();
            symlink("toil", tree.join("bin/alias")).unwrap();
        }),
        ("no tree", &|tree| {
            fs::rename(tree, tree.with_file_name("gone")).unwrap()
        }),
        ("another kind", &|tree| {
            fs::remove_file(tree.join("bin/tool")).unwrap();
            std::os::unix::net::UnixDatagram::bind(tree.join("bin/tool")).unwrap();
        }),
    ];
    let mut device = device();
    for (what, change) in changes {
        device.write(&image).unwrap();
        change(&device.path().join("current").canonicalize().unwrap());
        assert_eq!(device.holds(&image), what == "nothing", "{what}");
        device.write(&image).unwrap();
        assert!(device.holds(&image), "{what}");
    }
}

#[test]
fn an_inventory_is_believed_only_when_intact() {
    let image = good("content");
    let mut device = device();
    device.write(&image).unwrap();
    let name = fs::read_link(device.path().join("current")).unwrap();
    let path = device.path().join(format!("{}.inventory", name.display()));
    let intact = fs::read(&path).unwrap();
    for at in (0..intact.len()).step_by(7) {
        let mut damaged = intact.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert!(!device.holds(&image), "byte {at}");
    }
    for length in [0, 1, intact.len() - 1] {
        fs::write(&path, &intact[..length]).unwrap();
        assert!(!device.holds(&image), "length {length}");
    }
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(!device.holds(&image));
    fs::remove_file(&path).unwrap();
    assert!(!device.holds(&image));
    fs::write(&path, &intact).unwrap();
    assert!(device.holds(&image));
}

#[test]
fn what_an_interrupted_write_left_is_no_obstacle() {
    let (old, image) = (good("old"), good("new"));
    let mut device = device();
    device.write(&old).unwrap();
    let path = device.path();
    fs::create_dir_all(path.join(".new/locked/deeper")).unwrap();
    fs::write(path.join(".new/locked/half"), "ha").unwrap();
    fs::set_permissions(path.join(".new/locked"), Permissions::from_mode(0o000)).unwrap();
    symlink("nowhere", path.join(".current.new")).unwrap();
    fs::create_dir(path.join("tree-0123456789abcdef")).unwrap();
    fs::write(path.join(".tree-0123456789abcdef.inventory.tmp-1-1"), "").unwrap();
    // Also the interruption between the inventory and the names.
    assert!(device.holds(&old));
    device.write(&image).unwrap();
    assert!(device.holds(&image));
    assert_eq!(trees(&device).len(), 3);
    // An interruption after the old tree of the same image was removed.
    fs::rename(path.join("current").canonicalize().unwrap(), path.join("gone")).unwrap();
    assert!(!device.holds(&image));
    device.write(&image).unwrap();
    assert!(device.holds(&image));
}

#[test]
fn obstacles_are_named_and_kept() {
    let image = good("x");
    let obstacles: [&dyn Fn(&Path); 4] = [
        &|path| fs::write(path, "a file").unwrap(),
        &|path| symlink("canary", path).unwrap(),
        &|path| fs::create_dir_all(path.join("current")).unwrap(),
        &|path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("current"), "a file").unwrap();
        },
    ];
    for make in obstacles {
        let mut device = device();
        make(&device.path());
        let refused = device.slots.check(&device.slot.clone(), &device.component(&image));
        assert!(matches!(slot_error(refused.unwrap_err()), SlotError::Obstacle { .. }));
        assert!(matches!(device.refuses(&image), SlotError::Obstacle { .. }));
        assert!(!device.holds(&image));
    }
}

#[test]
fn images_that_do_not_fit_are_refused() {
    let image = good("x");
    let mut device = Device::new(ImageKind::Tar, Some(image.len() as u64 - 1));
    assert!(matches!(device.refuses(&image), SlotError::TooLarge { .. }));
    assert!(!exists(&device.path()));
    let mut device = Device::new(ImageKind::Tar, Some(image.len() as u64));
    let slot = device.slot.clone();
    let good = device.component(&image);
    let mut check = |change: &dyn Fn(&mut fwmeta::manifest::Component)| {
        let mut component = good.clone();
        change(&mut component);
        device.slots.check(&slot, &component).map_err(slot_error)
    };
    check(&|_| {}).unwrap();
    let refused = check(&|component| component.kind = ImageKind::Raw).unwrap_err();
    assert!(matches!(refused, SlotError::WrongKind { .. }));
    let refused = check(&|component| component.slot_class = "kernel".to_owned()).unwrap_err();
    assert!(matches!(refused, SlotError::NoSlot { .. }));
    assert_eq!(refused.kind(), PortErrorKind::Refused);
    let mut unbounded = Device::new(ImageKind::Tar, None);
    let mut huge = unbounded.component(&image);
    huge.image.size = 1 << 60;
    let refused = slot_error(unbounded.slots.check(&slot, &huge).unwrap_err());
    assert!(matches!(refused, SlotError::NoSpace { .. }));
    assert_eq!(refused.kind(), PortErrorKind::Environment { retry_after: None });
}

#[test]
fn a_stop_leaves_the_old_tree() {
    let (old, image) = (good("old"), good("new"));
    let mut device = device();
    device.write(&old).unwrap();
    let (slot, component) = (device.slot.clone(), device.component(&image));
    let before = device.everything();
    let stopped = device
        .slots
        .write(&slot, &component, &mut &image[..], &mut |_, _| false);
    assert_eq!(stopped.unwrap_err().kind, PortErrorKind::Stopped);
    assert_eq!(before.first_difference(&device.everything()), None);
    device.write(&image).unwrap();
}
