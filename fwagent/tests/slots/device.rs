//! A device with one slot, next to something that must never change; and archives made byte by byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fwagent::host::slots::{HostSlots, SlotConfig, SlotError, SlotKind};
use fwagent::host::tree::Tree;
use fwagent::host::unpack::UnpackError;
use fwagent::machine::slot::SlotId;
use fwagent::ports::{PortError, SlotStore};
use fwmeta::manifest::{Component, Encoding, Image, ImageKind, Payload};
use fwmeta::target::{Hasher, TargetPath};
use tar::{EntryType, Header};

pub struct Device {
    dir: tempfile::TempDir,
    pub slots: HostSlots,
    pub slot: SlotId,
    pub kind: ImageKind,
}

impl Device {
    pub fn new(kind: ImageKind, size: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/file"), "untouched").unwrap();
        let slot = SlotId::parse("b").unwrap();
        let slots = HostSlots::new(vec![SlotConfig {
            slot: slot.clone(),
            class: "rootfs".to_owned(),
            kind: match kind {
                ImageKind::Raw => SlotKind::File,
                ImageKind::Tar => SlotKind::Dir,
            },
            path: dir.path().join("slot"),
            size,
        }]);
        Self { dir, slots, slot, kind }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("slot")
    }

    /// Everything there is: the slot and what is next to it.
    pub fn everything(&self) -> Tree {
        Tree::read(self.dir.path()).unwrap()
    }

    pub fn component(&self, image: &[u8]) -> Component {
        component(image, self.kind)
    }

    /// Writes an image, which is what its metadata announce.
    pub fn write(&mut self, image: &[u8]) -> Result<(), SlotError> {
        let component = self.component(image);
        self.write_as(&component, image)
    }

    /// Writes an image, whatever its metadata announce.
    pub fn write_as(&mut self, component: &Component, mut image: &[u8]) -> Result<(), SlotError> {
        let (slot, mut last) = (self.slot.clone(), 0);
        let mut progress = |done, size| {
            assert!(last < done && done <= size && size == component.image.size);
            last = done;
            true
        };
        let written = self.slots.write(&slot, component, &mut image, &mut progress);
        written.map_err(slot_error)
    }

    pub fn holds(&mut self, image: &[u8]) -> bool {
        let component = self.component(image);
        self.slots.holds(&self.slot.clone(), &component).unwrap()
    }

    /// Expects a refusal that changes nothing at all.
    pub fn refuses(&mut self, image: &[u8]) -> SlotError {
        let before = self.everything();
        let error = self.write(image).unwrap_err();
        assert_eq!(before.first_difference(&self.everything()), None);
        error
    }
}

impl Drop for Device {
    /// Lets the temporary directory be removed whoever runs the tests.
    fn drop(&mut self) {
        fn unlock(path: &Path) {
            if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
                fs::read_dir(path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .for_each(|entry| unlock(&entry.path()));
            }
        }
        unlock(self.dir.path());
    }
}

/// The refusal of an archive.
pub fn archive_error(error: SlotError) -> UnpackError {
    match error {
        SlotError::Unpack(error) => error,
        other => panic!("{other:?}"),
    }
}

pub fn slot_error(error: PortError) -> SlotError {
    let slot = *error.source.unwrap().downcast::<SlotError>().unwrap();
    assert_eq!(slot.kind(), error.kind);
    slot
}

pub fn component(image: &[u8], kind: ImageKind) -> Component {
    let mut hasher = Hasher::new();
    hasher.update(image);
    let (size, hashes) = hasher.finish();
    Component {
        name: "rootfs".to_owned(),
        slot_class: "rootfs".to_owned(),
        kind,
        communication_function: false,
        image: Image {
            size,
            sha256: hashes.sha256.unwrap(),
            sha512: *hashes.sha512.unwrap(),
        },
        payload: Payload {
            target: TargetPath::parse("product/1.0.0/rootfs").unwrap(),
            encoding: Encoding::Identity,
        },
        patches: vec![],
        verity_root: None,
    }
}

/// An archive in the making. The library's own builder refuses to make what these tests are about.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn entry(mut self, kind: EntryType, path: impl AsRef<[u8]>, mode: u32, content: impl AsRef<[u8]>) -> Self {
        let (path, content) = (path.as_ref(), content.as_ref());
        let mut header = header(kind, path, mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, path, 0o644, content)
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, 0o755, "")
    }

    pub fn link(self, path: &str, target: impl AsRef<[u8]>) -> Self {
        self.linked(EntryType::Symlink, path, target)
    }

    pub fn linked(mut self, kind: EntryType, path: &str, target: impl AsRef<[u8]>) -> Self {
        let mut header = header(kind, path.as_bytes(), 0o777);
        let target = target.as_ref();
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    /// A header that says that it has `size` bytes of content, which do not follow.
    pub fn claims(mut self, kind: EntryType, path: &str, size: u64) -> Self {
        let mut header = header(kind, path.as_bytes(), 0o644);
        header.set_size(size);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        self.pax_as(EntryType::XHeader, records)
    }

    pub fn pax_as(self, kind: EntryType, records: &[(&str, &str)]) -> Self {
        let record = |(key, value): &(&str, &str)| {
            let rest = key.len() + value.len() + 3;
            // The number counts itself.
            let length = (rest + 1..).find(|all| rest + all.to_string().len() == *all).unwrap();
            format!("{length} {key}={value}\n")
        };
        let content: String = records.iter().map(record).collect();
        self.entry(kind, "pax", 0o644, content)
    }

    /// Without the end marker.
    pub fn open(self) -> Vec<u8> {
        self.0
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn header(kind: EntryType, path: &[u8], mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}

/// An archive of every acceptable kind of entry; `name` tells several apart.
pub fn good(name: &str) -> Vec<u8> {
    Tar::default()
        .dir("./")
        .dir("./bin/")
        .entry(EntryType::Regular, "./bin/tool", 0o755, name)
        .link("./bin/alias", "tool")
        .link("./bin/up", "../etc/name")
        .file("etc/name", name)
        .entry(EntryType::Directory, "locked/", 0o555, "")
        .entry(EntryType::Regular, "locked/secret", 0o400, "s")
        .end()
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
