//! Slots: a block device or a plain file holds a raw image, a directory holds an unpacked archive.
//!
//! What it decides: whether an image fits a slot, whether a slot holds an image, and when a write has succeeded. What it
//! does not decide: which slot may be written; that the running one never is, is the driver's rule. But whoever is wrong
//! about what runs, nothing is written here that the system uses.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fwdurable::Disk;
use fwmeta::manifest::{Component, ImageKind};
use fwmeta::target::MismatchError;
use rustix::fs::statvfs;

use crate::host::system::{System, Use};
use crate::host::tree::{Difference, TreeError};
use crate::host::unpack::UnpackError;
use crate::machine::slot::SlotId;
use crate::ports::{PortError, PortErrorKind, Progress, SlotStore};

mod block;
mod dir;
mod file;
mod image;
mod raw;

use image::ImageReader;

/// How a slot holds an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotKind {
    /// The image's bytes are those of a plain file.
    File,
    /// The image is an archive that is unpacked into a directory.
    Dir,
    /// The image's bytes are the first ones of a disk or partition.
    Block,
}

/// One slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotConfig {
    /// The set that it belongs to.
    pub slot: SlotId,
    /// Its class: components name the class they go into.
    pub class: String,
    /// How it holds an image.
    pub kind: SlotKind,
    /// The file; the block device, or a link to it; or the directory that holds the trees, of which `current` is the one
    /// in use.
    pub path: PathBuf,
    /// Largest image in bytes; the free space or the size of the device alone decides when absent.
    pub size: Option<u64>,
}

/// The slots of this device.
#[derive(Debug, Clone)]
pub struct HostSlots {
    slots: Vec<SlotConfig>,
    system: System,
}

/// A slot refused an image or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// This device has no such slot.
    #[error("slot set {slot} has no slot of class {class:?}")]
    NoSlot {
        /// The set.
        slot: SlotId,
        /// The class.
        class: String,
    },
    /// The image is of a kind that the slot cannot hold.
    #[error("{} holds {expected}", path.display())]
    WrongKind {
        /// The slot.
        path: PathBuf,
        /// What it holds.
        expected: &'static str,
    },
    /// The image is larger than the slot.
    #[error("the image has {image} bytes, {} holds {slot}", path.display())]
    TooLarge {
        /// The slot.
        path: PathBuf,
        /// Bytes of the image.
        image: u64,
        /// Bytes that the slot holds.
        slot: u64,
    },
    /// The file system has not enough space.
    #[error("{needed} bytes are needed at {}, {available} are free", path.display())]
    NoSpace {
        /// The slot.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes that can be had, those that a write replaces included.
        available: u64,
    },
    /// Something else has the place of the slot.
    #[error("{} is not {expected}", path.display())]
    Obstacle {
        /// The place.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Somebody uses the slot.
    #[error("{} is in use: {used}", path.display())]
    InUse {
        /// The slot.
        path: PathBuf,
        /// Who.
        used: Use,
    },
    /// Nobody can say whether the slot is in use.
    #[error("reading what the system uses")]
    Unknown(#[source] io::Error),
    /// The slot cannot be written.
    #[error("{} can only be read", path.display())]
    ReadOnly {
        /// The slot.
        path: PathBuf,
    },
    /// The image could not be read from where it comes from.
    #[error("reading the image")]
    Source(#[source] io::Error),
    /// The image is longer than announced.
    #[error("the image is longer than the {announced} bytes announced")]
    TooLong {
        /// Bytes announced.
        announced: u64,
    },
    /// The image is not the one announced.
    #[error("the image is not the one announced")]
    Mismatch(#[from] MismatchError),
    /// The image is not an acceptable archive.
    #[error("unpacking the image")]
    Unpack(#[from] UnpackError),
    /// The medium did not give back the image that was written.
    #[error("reading back {}", path.display())]
    ReadBack {
        /// The slot.
        path: PathBuf,
        /// How it differs.
        source: MismatchError,
    },
    /// The medium did not give back the tree that was written.
    #[error("reading back {}", path.display())]
    ReadBackTree {
        /// The slot.
        path: PathBuf,
        /// How it differs.
        source: Box<Difference>,
    },
    /// The tree on the medium cannot be described.
    #[error("reading {}", path.display())]
    Tree {
        /// The slot.
        path: PathBuf,
        /// Why.
        source: TreeError,
    },
    /// The file system failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

impl HostSlots {
    /// These slots.
    pub fn new(slots: Vec<SlotConfig>) -> Self {
        Self::on(slots, System::default())
    }

    /// These slots of a system.
    pub fn on(slots: Vec<SlotConfig>, system: System) -> Self {
        Self { slots, system }
    }

    /// Where the content of a slot is used from: the file, or the link `current` in the directory, whether or not it is
    /// there yet. The first configured class when `class` is `None`; `None` when there is no such slot.
    pub fn bootable_path(&self, slot: &SlotId, class: Option<&str>) -> Option<PathBuf> {
        let found = self
            .slots
            .iter()
            .find(|config| config.slot == *slot && class.is_none_or(|class| config.class == class))?;
        Some(match found.kind {
            SlotKind::File | SlotKind::Block => found.path.clone(),
            SlotKind::Dir => current_tree(&found.path),
        })
    }

    fn find(&self, slot: &SlotId, component: &Component) -> Result<&SlotConfig, SlotError> {
        let class = &component.slot_class;
        self.slots
            .iter()
            .find(|config| config.slot == *slot && config.class == *class)
            .ok_or_else(|| SlotError::NoSlot {
                slot: slot.clone(),
                class: class.clone(),
            })
    }

    fn check_fit(&self, slot: &SlotId, component: &Component) -> Result<&SlotConfig, SlotError> {
        let config = self.find(slot, component)?;
        let (path, image) = (&config.path, component.image.size);
        let expected = match (config.kind, component.kind) {
            (SlotKind::File | SlotKind::Block, ImageKind::Raw) | (SlotKind::Dir, ImageKind::Tar) => None,
            (SlotKind::File | SlotKind::Block, _) => Some("raw images"),
            (SlotKind::Dir, _) => Some("unpacked archives"),
        };
        if let Some(expected) = expected {
            let path = path.clone();
            return Err(SlotError::WrongKind { path, expected });
        }
        if let Some(slot) = config.size.filter(|size| image > *size) {
            let path = path.clone();
            return Err(SlotError::TooLarge { path, image, slot });
        }
        let replaced = match config.kind {
            SlotKind::File => file::replaced(path, &self.system)?,
            SlotKind::Dir => dir::replaced(path, &self.system)?,
            SlotKind::Block => return block::claim(path, image, &self.system).map(|_| config),
        };
        let available = free_space(path)?.saturating_add(replaced);
        if image > available {
            let (path, needed) = (path.clone(), image);
            return Err(SlotError::NoSpace {
                path,
                needed,
                available,
            });
        }
        Ok(config)
    }

    fn write_image(
        &self,
        slot: &SlotId,
        component: &Component,
        image: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<(), SlotError> {
        // Again: the world may have changed since the caller's check, and nobody has to have called it.
        let config = self.check_fit(slot, component)?;
        let reader = ImageReader::new(image, &component.image, progress);
        match config.kind {
            SlotKind::File => file::write(&Disk::system(), &config.path, reader),
            SlotKind::Block => block::claim(&config.path, component.image.size, &self.system)?.write(reader),
            SlotKind::Dir => dir::write(&config.path, reader),
        }
    }

    fn holds_image(&self, slot: &SlotId, component: &Component) -> Result<bool, SlotError> {
        let config = self.find(slot, component)?;
        let held = match (config.kind, component.kind) {
            (SlotKind::File, ImageKind::Raw) => file::holds(&Disk::system(), &config.path, &component.image),
            (SlotKind::Block, ImageKind::Raw) => block::holds(&config.path, &component.image),
            (SlotKind::Dir, ImageKind::Tar) => dir::holds(&config.path, &component.image),
            _ => Ok(false),
        };
        match held {
            // What the medium does not give back is not held; a rewrite may find better blocks.
            Err(error) if error.is_damage() => Ok(false),
            other => other,
        }
    }
}

impl SlotStore for HostSlots {
    fn check(&mut self, slot: &SlotId, component: &Component) -> Result<(), PortError> {
        self.check_fit(slot, component)
            .map(|_| ())
            .map_err(|error| error.of_port("checking", slot, component))
    }

    fn holds(&mut self, slot: &SlotId, component: &Component) -> Result<bool, PortError> {
        self.holds_image(slot, component)
            .map_err(|error| error.of_port("reading", slot, component))
    }

    fn write(
        &mut self,
        slot: &SlotId,
        component: &Component,
        image: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<(), PortError> {
        self.write_image(slot, component, image, progress)
            .map_err(|error| error.of_port("writing", slot, component))
    }
}

/// A slot of kind `file` on a disk of the caller's choice: what is written and read back, without the checks of whether it
/// may be.
#[cfg(feature = "simulate")]
#[derive(Debug)]
pub(crate) struct FileSlot {
    disk: Disk,
    path: PathBuf,
}

#[cfg(feature = "simulate")]
impl FileSlot {
    pub(crate) fn new(disk: &Disk, path: &Path) -> Self {
        Self {
            disk: disk.clone(),
            path: path.to_owned(),
        }
    }

    pub(crate) fn holds(&self, component: &Component) -> Result<bool, SlotError> {
        file::holds(&self.disk, &self.path, &component.image)
    }

    pub(crate) fn write(
        &self,
        component: &Component,
        image: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<(), SlotError> {
        let reader = ImageReader::new(image, &component.image, progress);
        file::write(&self.disk, &self.path, reader)
    }
}

impl SlotError {
    /// Whether trying again can help: not when the image itself is wrong or never fits this device.
    pub fn kind(&self) -> PortErrorKind {
        let environment = match self {
            Self::Stopped => return PortErrorKind::Stopped,
            Self::NoSlot { .. } | Self::WrongKind { .. } | Self::TooLarge { .. } => false,
            Self::TooLong { .. } | Self::Mismatch(_) => false,
            // The source is a verified payload that is decoded: an error without a system's number is the decoder's.
            Self::Source(error) => error.raw_os_error().is_some(),
            Self::Unpack(error) => matches!(error, UnpackError::Io { .. }),
            Self::NoSpace { .. } | Self::Obstacle { .. } | Self::Io { .. } => true,
            Self::ReadBack { .. } | Self::ReadBackTree { .. } | Self::Tree { .. } => true,
            Self::InUse { .. } | Self::Unknown(_) | Self::ReadOnly { .. } => true,
        };
        if environment {
            PortErrorKind::Environment { retry_after: None }
        } else {
            PortErrorKind::Refused
        }
    }

    fn of_port(self, action: &str, slot: &SlotId, component: &Component) -> PortError {
        PortError {
            attempt: format!("{action} component {} in slot {slot}", component.name),
            kind: self.kind(),
            source: Some(Box::new(self)),
        }
    }

    fn read_back(path: &Path) -> impl FnOnce(MismatchError) -> Self {
        let path = path.to_owned();
        move |source| Self::ReadBack { path, source }
    }

    /// Whether it says that the content of a slot is gone or not what an image leaves there.
    fn is_damage(&self) -> bool {
        // EIO, EBADMSG and EUCLEAN: a bad block, or a structure of the file system that does not hold.
        const MEDIUM: [i32; 3] = [5, 74, 117];
        let medium = |error: &io::Error| error.raw_os_error().is_some_and(|code| MEDIUM.contains(&code));
        match self {
            Self::Io { source, .. } => medium(source),
            Self::Tree {
                source: TreeError::Io { source, .. },
                ..
            } => medium(source) || source.kind() == io::ErrorKind::NotFound,
            Self::Tree { .. } | Self::Obstacle { .. } => true,
            _ => false,
        }
    }
}

/// The link to the tree in use of a slot that is a directory.
pub fn current_tree(dir: &Path) -> PathBuf {
    dir.join(dir::CURRENT)
}

/// Bytes that may be written where `path` is or will be.
fn free_space(path: &Path) -> Result<u64, SlotError> {
    for place in path.ancestors() {
        let place = if place.as_os_str().is_empty() {
            Path::new(".")
        } else {
            place
        };
        match statvfs(place) {
            Ok(found) => return Ok(found.f_bavail.saturating_mul(found.f_frsize)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed("reading the free space of", place)(error.into())),
        }
    }
    Err(failed("reading the free space of", path)(
        io::ErrorKind::NotFound.into(),
    ))
}

/// Refuses a slot that somebody uses.
fn in_use(path: &Path, used: Option<Use>) -> Result<(), SlotError> {
    used.map_or(Ok(()), |used| {
        let path = path.to_owned();
        Err(SlotError::InUse { path, used })
    })
}

/// What is at `path`, not following a link; `None` for nothing.
fn metadata(path: &Path) -> Result<Option<fs::Metadata>, SlotError> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

/// Bytes that a file or directory itself takes.
fn occupied(metadata: &fs::Metadata) -> u64 {
    // `st_blocks` counts 512 bytes whatever the file system's blocks are.
    metadata.blocks().saturating_mul(512)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SlotError {
    move |source| SlotError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
