//! Block slots, on loop devices: written in place, read back from the medium, never while anybody uses them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use fwagent::host::slots::{HostSlots, SlotConfig, SlotError, SlotKind};
use fwagent::host::system::{System, Use};
use fwagent::machine::slot::SlotId;
use fwagent::ports::{PortErrorKind, SlotStore};
use fwmeta::manifest::ImageKind;
use fwmeta::target::MismatchError;

use crate::device::{component, slot_error};
use crate::loop_device::{LoopDevice, Undo, done};

const MIB: u64 = 1024 * 1024;

/// Longer than one chunk, and no multiple of a block.
fn image(seed: u8) -> Vec<u8> {
    (0..700_001u32).map(|at| (at / 5 % 251) as u8 ^ seed).collect()
}

/// A file, a loop device over it, and a slot that names the device by a link.
struct Device {
    device: LoopDevice,
    slots: HostSlots,
    backing: PathBuf,
    dir: tempfile::TempDir,
}

impl Device {
    fn new(size: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("backing");
        let device = LoopDevice::new(&backing, size)?;
        Some(Self::over(device, dir))
    }

    fn over(device: LoopDevice, dir: tempfile::TempDir) -> Self {
        symlink(&device.path, dir.path().join("by-label")).unwrap();
        let slots = HostSlots::new(vec![slot(&dir.path().join("by-label"), SlotKind::Block)]);
        let backing = dir.path().join("backing");
        Self {
            device,
            slots,
            backing,
            dir,
        }
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.device.path).unwrap()
    }

    /// Expects a refusal, by both ways to ask for it, that does not change one byte.
    fn refuses(&mut self, image: &[u8]) -> SlotError {
        let before = self.content();
        let slots = &mut self.slots;
        let checked = slots.check(&name(), &component(image, ImageKind::Raw)).unwrap_err();
        let written = write(slots, image).unwrap_err();
        assert_eq!(slot_error(checked).to_string(), written.to_string());
        assert!(self.content() == before);
        written
    }

    fn accepts(&mut self, image: &[u8]) {
        let slots = &mut self.slots;
        slots.check(&name(), &component(image, ImageKind::Raw)).unwrap();
        write(slots, image).unwrap();
        assert!(holds(slots, image));
    }
}

fn name() -> SlotId {
    SlotId::parse("b").unwrap()
}

fn slot(path: &Path, kind: SlotKind) -> SlotConfig {
    SlotConfig {
        slot: name(),
        class: "rootfs".to_owned(),
        kind,
        path: path.to_owned(),
        size: None,
    }
}

fn write(slots: &mut HostSlots, mut image: &[u8]) -> Result<(), SlotError> {
    let component = component(image, ImageKind::Raw);
    let written = slots.write(&name(), &component, &mut image, &mut |_, _| true);
    written.map_err(slot_error)
}

fn holds(slots: &mut HostSlots, image: &[u8]) -> bool {
    slots.holds(&name(), &component(image, ImageKind::Raw)).unwrap()
}

fn used(error: SlotError) -> Use {
    assert_eq!(error.kind(), PortErrorKind::Environment { retry_after: None });
    match error {
        SlotError::InUse { used, .. } => used,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_device_begins_with_the_image_and_the_rest_is_untouched() {
    let Some(mut device) = Device::new(2 * MIB) else { return };
    fs::write(&device.device.path, vec![0xff; 2 * MIB as usize]).unwrap();
    let (first, second) = (image(1), image(2)[..500_000].to_vec());
    assert!(!holds(&mut device.slots, &first));
    device.accepts(&first);
    assert!(!holds(&mut device.slots, &second));
    device.accepts(&second);
    let content = device.content();
    assert!(content[..500_000] == second && content[500_000..700_001] == first[500_000..]);
    assert!(content[700_001..].iter().all(|byte| *byte == 0xff));
    // On the medium: the file behind the device.
    assert!(fs::read(&device.backing).unwrap() == content);
    let path = device.slots.bootable_path(&name(), None);
    assert_eq!(path, Some(device.dir.path().join("by-label")));
}

#[test]
fn what_is_too_large_is_refused_and_what_fits_exactly_is_not() {
    let Some(mut device) = Device::new(MIB) else { return };
    let large = vec![7; MIB as usize + 1];
    let error = device.refuses(&large);
    assert!(matches!(
        error,
        SlotError::TooLarge {
            image: 1_048_577,
            slot: 1_048_576,
            ..
        }
    ));
    assert_eq!(error.kind(), PortErrorKind::Refused);
    device.accepts(&large[..MIB as usize]);
}

#[test]
fn wrong_images_are_refused_and_the_next_write_mends_it() {
    let Some(mut device) = Device::new(2 * MIB) else { return };
    let image = image(3);
    let announced = component(&image, ImageKind::Raw);
    let mut write_as = |mut content: &[u8]| {
        let written = device.slots.write(&name(), &announced, &mut content, &mut |_, _| true);
        slot_error(written.unwrap_err())
    };
    let long = [&image[..], b"x"].concat();
    assert!(matches!(write_as(&long), SlotError::TooLong { announced: 700_001 }));
    assert!(matches!(
        write_as(&image[..700_000]),
        SlotError::Mismatch(MismatchError::Length { actual: 700_000, .. })
    ));
    let mut flipped = image.clone();
    flipped[699_999] ^= 1;
    assert!(matches!(
        write_as(&flipped),
        SlotError::Mismatch(MismatchError::Hash { .. })
    ));
    assert!(!holds(&mut device.slots, &image));
    device.accepts(&image);
}

#[test]
fn what_is_no_block_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slot");
    let image = image(4);
    let mut slots = HostSlots::new(vec![slot(&path, SlotKind::Block)]);
    assert!(matches!(
        write(&mut slots, &image),
        Err(SlotError::Io { action: "finding", .. })
    ));
    fs::write(&path, "a file").unwrap();
    assert!(matches!(write(&mut slots, &image), Err(SlotError::Obstacle { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"a file");
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    assert!(matches!(write(&mut slots, &image), Err(SlotError::Obstacle { .. })));
    assert!(!holds(&mut slots, &image));
}

#[test]
fn a_device_that_can_only_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(5);
    fs::write(dir.path().join("backing"), [&image[..], &[0; 1000]].concat()).unwrap();
    let Some(device) = LoopDevice::attach(&dir.path().join("backing"), &["--read-only"]) else {
        return;
    };
    let mut device = Device::over(device, dir);
    assert!(matches!(device.refuses(&image), SlotError::ReadOnly { .. }));
    // Without sysfs the kernel refuses.
    let system = System {
        sys: device.dir.path().join("nothing"),
        ..System::default()
    };
    let mut blind = HostSlots::on(vec![slot(&device.device.path, SlotKind::Block)], system);
    assert!(matches!(
        write(&mut blind, &image),
        Err(SlotError::ReadOnly { .. } | SlotError::Io { .. })
    ));
}

#[test]
fn a_mounted_device_is_refused() {
    let Some(mut device) = Device::new(4 * MIB) else { return };
    let image = image(6);
    done("mkfs.ext4", ["-q".as_ref(), device.device.path.as_os_str()]);
    let point = device.dir.path().join("mnt");
    let mounted = Undo::mount(&[device.device.path.to_str().unwrap()], &point);
    assert!(matches!(used(device.refuses(&image)), Use::Mounted { at, .. } if at == point));
    drop(mounted);
    device.accepts(&image);
}

/// A disk with two partitions of 2 MiB each, which the kernel is told of, since not every kernel reads every table.
fn partitioned(dir: &Path) -> Option<LoopDevice> {
    let backing = dir.join("backing");
    File::create(&backing).unwrap().set_len(5 * MIB).unwrap();
    // With this option partitions go when the device does.
    let disk = LoopDevice::attach(&backing, &["--partscan"])?;
    for (number, start) in [("1", "2048"), ("2", "6144")] {
        done(
            "addpart",
            [disk.path.as_os_str(), number.as_ref(), start.as_ref(), "4096".as_ref()],
        );
    }
    Some(disk)
}

#[test]
fn a_disk_with_a_mounted_partition_is_refused_and_so_is_a_partition_of_a_used_disk() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = partitioned(dir.path()) else { return };
    let partition = |number: u32| PathBuf::from(format!("{}p{number}", disk.path.display()));
    let image = image(7);
    let mut first = HostSlots::new(vec![slot(&partition(1), SlotKind::Block)]);
    let mut second = HostSlots::new(vec![slot(&partition(2), SlotKind::Block)]);
    let mut whole = HostSlots::new(vec![slot(&disk.path, SlotKind::Block)]);
    write(&mut second, &image).unwrap();
    done("mkfs.ext4", ["-q".as_ref(), partition(1).as_os_str()]);
    let point = dir.path().join("mnt");
    let mounted = Undo::mount(&[partition(1).to_str().unwrap()], &point);
    for slots in [&mut first, &mut whole] {
        let used = used(write(slots, &image).unwrap_err());
        assert!(matches!(used, Use::Mounted { at, .. } if at == point));
    }
    // The neighbour may be written: that is how a device with two slots on one disk lives.
    write(&mut second, &image).unwrap();
    drop(mounted);
    write(&mut first, &image).unwrap();
    for program in ["mkswap", "swapon"] {
        done(program, [partition(1).as_os_str()]);
    }
    let swap = Undo::by("swapoff", &partition(1));
    for slots in [&mut first, &mut whole] {
        assert!(matches!(used(write(slots, &image).unwrap_err()), Use::Swap { .. }));
    }
    write(&mut second, &image).unwrap();
    drop(swap);
    // The whole disk is kept, by whoever it is: the kernel keeps its partitions, too.
    let exclusive = exclusively(&disk.path);
    assert_eq!(used(write(&mut first, &image).unwrap_err()), Use::Claimed);
    drop(exclusive);
    write(&mut whole, &image).unwrap();
}

fn exclusively(path: &Path) -> File {
    let flags = rustix::fs::OFlags::EXCL.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path).unwrap()
}

#[test]
fn what_the_kernel_keeps_for_others_is_refused() {
    let Some(mut device) = Device::new(2 * MIB) else { return };
    let image = image(8);
    let exclusive = exclusively(&device.device.path);
    assert_eq!(used(device.refuses(&image)), Use::Claimed);
    drop(exclusive);
    device.accepts(&image);
}

#[test]
fn what_is_behind_a_mounted_loop_device_is_refused() {
    let Some(mut device) = Device::new(4 * MIB) else { return };
    let image = image(9);
    done("mkfs.ext4", ["-q".as_ref(), device.device.path.as_os_str()]);
    let Some(upper) = LoopDevice::attach(&device.device.path, &[]) else {
        return;
    };
    let mut file = HostSlots::new(vec![slot(&device.backing, SlotKind::File)]);
    let point = device.dir.path().join("mnt");
    let mounted = Undo::mount(&[upper.path.to_str().unwrap()], &point);
    let error = used(device.refuses(&image));
    assert!(matches!(error, Use::Loop { used, .. } if matches!(&*used, Use::Mounted { at, .. } if *at == point)));
    let error = used(write(&mut file, &image).unwrap_err());
    assert!(matches!(error, Use::Loop { used, .. } if matches!(*used, Use::Loop { .. })));
    drop(mounted);
    // Loop devices that nobody uses are no use.
    device.accepts(&image);
    write(&mut file, &image).unwrap();
}

#[test]
fn a_layer_of_an_overlay_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = crate::device::Device::new(ImageKind::Tar, None);
    let tree = |version: &str| crate::device::Tar::default().file("version", version).end();
    tar.write(&tree("1")).unwrap();
    if crate::tools::program("losetup").is_none() || !rustix::process::geteuid().is_root() {
        crate::tools::skip("only root mounts");
        return;
    }
    for name in ["upper", "work"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let lower = tar.path().join("current").canonicalize().unwrap();
    let options = format!(
        "lowerdir={},upperdir={1}/upper,workdir={1}/work",
        lower.display(),
        dir.path().display()
    );
    let point = dir.path().join("mnt");
    let mounted = Undo::mount(&["-t", "overlay", "overlay", "-o", &options], &point);
    assert!(matches!(used(tar.refuses(&tree("2"))), Use::Layer { at } if at == point));
    drop(mounted);
    tar.write(&tree("2")).unwrap();
}

/// A kernel that says something of one device, and nothing else.
fn told(dir: &Path, device: &Path, cmdline: &str, holders: &[&str]) -> System {
    let rdev = fs::metadata(device).unwrap().rdev();
    let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let (proc, sys, dev) = (dir.join("proc"), dir.join("sys"), dir.join("dev"));
    let node = sys.join("devices/virtual/block/loopx");
    for dir in [
        &proc.join("self"),
        &node.join("holders"),
        &sys.join("dev/block"),
        &dev.join("disk/by-partlabel"),
    ] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(proc.join("cmdline"), cmdline).unwrap();
    fs::write(proc.join("self/mountinfo"), "").unwrap();
    symlink(&node, sys.join("dev/block").join(&number)).unwrap();
    fs::write(node.join("dev"), format!("{number}\n")).unwrap();
    for holder in holders {
        fs::create_dir(node.join("holders").join(holder)).unwrap();
    }
    symlink(device, dev.join("disk/by-partlabel/root\\x20B")).unwrap();
    fs::create_dir_all(sys.join("class/block")).unwrap();
    symlink(&node, sys.join("class/block/loopx")).unwrap();
    fs::write(node.join("uevent"), "DEVNAME=loopx\nPARTNAME=root-b\nPARTUUID=0a-02\n").unwrap();
    System { proc, sys, dev }
}

#[test]
fn what_holds_a_device_and_the_root_of_the_kernel_are_refused() {
    let Some(mut device) = Device::new(MIB) else { return };
    let image = image(10);
    let root = |value: &str| (format!("quiet root={value} ro"), vec![]);
    let node = device.device.path.display().to_string();
    for (at, ((cmdline, holders), refused)) in [
        ((String::new(), vec![]), false),
        ((String::new(), vec!["dm-0"]), true),
        (root("PARTLABEL=root\\x20B"), false),
        (root("PARTLABEL=root-b"), true),
        (root("PARTLABEL=root-a"), false),
        (root("PARTUUID=0A-02"), true),
        (root("UUID=0A-02"), false),
        (root("/dev/disk/by-partlabel/root\\x20B"), true),
        (root(&node), false),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = device.dir.path().join(at.to_string());
        let system = told(&dir, &device.device.path, &cmdline, &holders);
        device.slots = HostSlots::on(vec![slot(&device.device.path, SlotKind::Block)], system);
        if refused {
            let used = used(device.refuses(&image));
            assert!(matches!(used, Use::Held { .. } | Use::Root { .. }), "{cmdline}: {used}");
        } else {
            device.accepts(&image);
        }
    }
    // Who cannot know what is in use does not write.
    let blind = System {
        proc: device.dir.path().join("nothing"),
        ..System::default()
    };
    device.slots = HostSlots::on(vec![slot(&device.device.path, SlotKind::Block)], blind);
    assert!(matches!(device.refuses(&image), SlotError::Unknown(_)));
}

#[test]
fn the_medium_is_read_not_the_memory_of_it() {
    let Some(mut device) = Device::new(MIB) else { return };
    let image = image(11);
    device.accepts(&image);
    // While somebody has it open, the system keeps what was read of it.
    let mut reader = File::open(&device.device.path).unwrap();
    let mut seen = vec![0; image.len()];
    reader.read_exact(&mut seen).unwrap();
    let behind = OpenOptions::new().write(true).open(&device.backing).unwrap();
    for at in [0, 350_000, image.len() - 1] {
        behind.write_all_at(&[!image[at]], at as u64).unwrap();
        behind.sync_all().unwrap();
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_exact(&mut seen).unwrap();
        assert!(seen == image, "the system's memory would have shown nothing");
        assert!(!holds(&mut device.slots, &image), "byte {at}");
        behind.write_all_at(&image[at..=at], at as u64).unwrap();
        assert!(holds(&mut device.slots, &image));
    }
}

#[test]
fn a_medium_that_fails_is_an_error_of_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let Some(probe) = LoopDevice::new(&dir.path().join("probe"), MIB) else {
        return;
    };
    drop(probe);
    // A file system that is smaller than the file on it claims to be.
    let small = dir.path().join("small");
    let mounted = Undo::mount(&["-t", "tmpfs", "-o", "size=256k", "tmpfs"], &small);
    let device = LoopDevice::new(&small.join("backing"), 2 * MIB).unwrap();
    let mut slots = HostSlots::new(vec![slot(&device.path, SlotKind::Block)]);
    let image = image(12);
    let error = write(&mut slots, &image).unwrap_err();
    assert!(matches!(&error, SlotError::Io { action: "writing", .. }), "{error:?}");
    assert_eq!(error.kind(), PortErrorKind::Environment { retry_after: None });
    // Positive control: what fits is written.
    write(&mut slots, &image[..100_000]).unwrap();
    drop((device, mounted));

    // A disk that has lost its end.
    let Some(mut device) = Device::new(2 * MIB) else { return };
    device.accepts(&image);
    OpenOptions::new()
        .write(true)
        .open(&device.backing)
        .unwrap()
        .set_len(MIB / 2)
        .unwrap();
    assert!(!holds(&mut device.slots, &image));
}

#[test]
fn a_write_that_is_interrupted_is_not_held_and_starts_over() {
    /// Ends in the middle, as the power may.
    struct Cut<'a>(&'a [u8]);

    impl Read for Cut<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::from_raw_os_error(5)),
                length => Ok(length),
            }
        }
    }
    let Some(mut device) = Device::new(MIB) else { return };
    let (old, new) = (image(13), image(14));
    device.accepts(&old);
    let announced = component(&new, ImageKind::Raw);
    for end in [0, 300_000, 700_000] {
        let mut source = Cut(&new[..end]);
        let written = device.slots.write(&name(), &announced, &mut source, &mut |_, _| true);
        assert!(matches!(slot_error(written.unwrap_err()), SlotError::Source(_)));
        assert!(!holds(&mut device.slots, &new));
        assert_eq!(holds(&mut device.slots, &old), end == 0);
    }
    let mut stopped = &new[..];
    let stopped = device.slots.write(&name(), &announced, &mut stopped, &mut |_, _| false);
    assert!(matches!(slot_error(stopped.unwrap_err()), SlotError::Stopped));
    device.accepts(&new);
}

#[test]
fn another_device_behind_the_same_name_is_another_slot() {
    let Some(mut device) = Device::new(MIB) else { return };
    let other = device.dir.path().join("other");
    let Some(other) = LoopDevice::new(&other, MIB) else {
        return;
    };
    let image = image(15);
    device.accepts(&image);
    let link = device.dir.path().join("by-label");
    fs::remove_file(&link).unwrap();
    symlink(&other.path, &link).unwrap();
    assert!(!holds(&mut device.slots, &image));
    File::options()
        .write(true)
        .open(&other.path)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    device.accepts(&image);
}
