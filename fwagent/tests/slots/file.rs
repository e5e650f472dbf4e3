//! File slots: written in place, read back.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;

use fwagent::host::slots::SlotError;
use fwagent::ports::{PortErrorKind, SlotStore};
use fwmeta::manifest::ImageKind;
use fwmeta::target::MismatchError;

use crate::device::{Device, exists, slot_error};

/// Longer than one chunk, and no multiple of one.
fn image(seed: u8) -> Vec<u8> {
    (0..700_001u32).map(|at| (at / 5 % 251) as u8 ^ seed).collect()
}

fn device() -> Device {
    Device::new(ImageKind::Raw, None)
}

#[test]
fn the_file_becomes_the_image_exactly() {
    let (first, second) = (image(1), image(2)[..500_000].to_vec());
    let mut device = device();
    assert!(!device.holds(&first));
    device.write(&first).unwrap();
    assert!(device.holds(&first) && !device.holds(&second));
    // A shorter image leaves nothing of the longer one; an empty one nothing at all.
    for image in [&second, &vec![], &first] {
        device.write(image).unwrap();
        assert_eq!(&fs::read(device.path()).unwrap(), image);
        assert!(device.holds(image));
    }
    let path = device.slots.bootable_path(&device.slot, Some("rootfs"));
    assert_eq!(path.as_deref(), Some(device.path().as_path()));
    assert_eq!(device.slots.bootable_path(&device.slot, Some("kernel")), None);
}

#[test]
fn one_flipped_byte_is_seen() {
    let image = image(0);
    let mut device = device();
    device.write(&image).unwrap();
    for at in [0, 350_000, image.len() - 1] {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        fs::write(device.path(), &damaged).unwrap();
        assert!(!device.holds(&image), "byte {at}");
    }
    fs::write(device.path(), [&image[..], b"x"].concat()).unwrap();
    assert!(!device.holds(&image));
    fs::write(device.path(), &image).unwrap();
    assert!(device.holds(&image));
}

#[test]
fn wrong_images_are_refused_and_the_next_write_mends_it() {
    let image = image(3);
    let mut device = device();
    let component = device.component(&image);
    fs::write(device.path(), vec![0xff; 900_000]).unwrap();

    let long = [&image[..], b"x"].concat();
    let error = device.write_as(&component, &long).unwrap_err();
    assert!(matches!(error, SlotError::TooLong { announced: 700_001 }));
    assert_eq!(error.kind(), PortErrorKind::Refused);
    // The bytes that follow the place of the image are those that were there before.
    assert!(
        fs::read(device.path()).unwrap()[700_001..]
            .iter()
            .all(|byte| *byte == 0xff)
    );

    let error = device.write_as(&component, &image[..700_000]).unwrap_err();
    assert!(matches!(
        error,
        SlotError::Mismatch(MismatchError::Length { actual: 700_000, .. })
    ));
    let mut flipped = image.clone();
    flipped[699_999] ^= 1;
    let error = device.write_as(&component, &flipped).unwrap_err();
    assert!(matches!(error, SlotError::Mismatch(MismatchError::Hash { .. })));
    let mut other = component.clone();
    other.image.sha512[0] ^= 1;
    let error = device.write_as(&other, &image).unwrap_err();
    assert!(matches!(error, SlotError::Mismatch(MismatchError::Hash { algorithm, .. }) if algorithm == "sha512"));
    assert!(!device.slots.holds(&device.slot.clone(), &other).unwrap());

    fs::write(device.path(), b"garbage of an interrupted write").unwrap();
    device.write(&image).unwrap();
    assert!(device.holds(&image));
}

#[test]
fn obstacles_are_refused_and_kept() {
    let image = image(4);
    let mut device = device();
    fs::create_dir(device.path()).unwrap();
    assert!(matches!(device.refuses(&image), SlotError::Obstacle { .. }));
    assert!(!device.holds(&image));
    fs::remove_dir(device.path()).unwrap();
    symlink("canary/file", device.path()).unwrap();
    assert!(matches!(device.refuses(&image), SlotError::Obstacle { .. }));
    assert!(!device.holds(&image));
    fs::remove_file(device.path()).unwrap();
    drop(std::os::unix::net::UnixDatagram::bind(device.path()).unwrap());
    assert!(matches!(device.write(&image), Err(SlotError::Obstacle { .. })));
    fs::remove_file(device.path()).unwrap();
    device.write(&image).unwrap();
}

#[test]
fn the_size_of_the_slot_is_kept() {
    let image = image(5);
    let mut small = Device::new(ImageKind::Raw, Some(700_000));
    assert!(matches!(
        small.refuses(&image),
        SlotError::TooLarge {
            image: 700_001,
            slot: 700_000,
            ..
        }
    ));
    assert!(!exists(&small.path()));
    Device::new(ImageKind::Raw, Some(700_001)).write(&image).unwrap();
    let mut tar = device();
    tar.kind = ImageKind::Tar;
    assert!(matches!(tar.refuses(&image), SlotError::WrongKind { .. }));
}

/// Fails with `error` after some bytes.
struct Failing<'a>(&'a [u8], Option<io::Error>);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(self.1.take().unwrap_or_else(|| io::ErrorKind::Interrupted.into())),
            length => Ok(length),
        }
    }
}

#[test]
fn a_source_that_fails_is_told_apart() {
    let image = image(6);
    let mut device = device();
    let (slot, component) = (device.slot.clone(), device.component(&image));
    let mut fails = |error| {
        let mut source = Failing(&image[..600_000], Some(error));
        device
            .slots
            .write(&slot, &component, &mut source, &mut |_, _| true)
            .unwrap_err()
            .kind
    };
    let medium = io::Error::from_raw_os_error(5);
    assert_eq!(fails(medium), PortErrorKind::Environment { retry_after: None });
    assert_eq!(fails(io::Error::other("corrupt frame")), PortErrorKind::Refused);
    let stopped = device
        .slots
        .write(&slot, &component, &mut &image[..], &mut |_, _| false);
    assert!(matches!(slot_error(stopped.unwrap_err()), SlotError::Stopped));
}
