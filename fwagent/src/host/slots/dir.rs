//! A slot that is a directory of trees, one of them current.
//!
//! ```text
//! PATH/.new                     a tree being unpacked; worth nothing
//! PATH/tree-HHHHHHHHHHHHHHHH    a tree; 16 digits of the image's SHA-256
//! PATH/tree-….inventory         what the tree consists of, and of which image: see `tree`
//! PATH/current                  a symbolic link to the tree in use
//! ```
//!
//! A tree gets its name only after it was read back, `current` moves by one rename, and what the slot held before is
//! removed last; so a write that is refused or interrupted leaves the old tree current and whole. Only when the same
//! image is written again, over a tree of its own that is damaged, is that tree removed first.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use fwmeta::hex;
use fwmeta::manifest::Image;

use super::image::ImageReader;
use super::{SlotError, failed, in_use, metadata, occupied};
use crate::host::system::System;
use crate::host::tree::{INVENTORY_BYTES, Tree, TreeError, inventory_head, open_plain};
use crate::host::unpack::unpack;

/// The link to the tree in use.
pub(super) const CURRENT: &str = "current";
/// A new link on its way to become [`CURRENT`].
const CURRENT_NEW: &str = ".current.new";
/// A tree being unpacked.
const NEW: &str = ".new";
/// How trees and inventories begin.
const TREE: &str = "tree-";
/// How inventories end.
const INVENTORY: &str = ".inventory";

/// Checks what is at `path`; the bytes that a write frees before it needs any: those of an interrupted one.
pub(super) fn replaced(path: &Path, system: &System) -> Result<u64, SlotError> {
    let obstacle = |path: &Path, expected| {
        let path = path.to_owned();
        Err(SlotError::Obstacle { path, expected })
    };
    match metadata(path)? {
        None => return Ok(0),
        Some(found) if found.is_dir() => {}
        Some(_) => return obstacle(path, "a directory"),
    }
    let current = path.join(CURRENT);
    if metadata(&current)?.is_some_and(|found| !found.is_symlink()) {
        return obstacle(&current, "a symbolic link");
    }
    in_use(path, system.look().map_err(SlotError::Unknown)?.tree(path, &current))?;
    occupied_below(&path.join(NEW))
}

/// Unpacks the image and makes its tree the current one.
pub(super) fn write(path: &Path, mut image: ImageReader<'_>) -> Result<(), SlotError> {
    let announced = image.image();
    fwdurable::create_dir_all(path).map_err(failed("creating", path))?;
    let new = path.join(NEW);
    remove(&new)?;
    let prepared = prepare(&new, &mut image).and_then(|tree| {
        image.finish()?;
        settle(&new, &tree)?;
        Ok(tree)
    });
    let tree = prepared.inspect_err(|_| {
        // The error at hand matters more than one of this; the next write removes it in any case.
        let _ = remove(&new);
    })?;
    let (name, inventory) = (tree_name(announced), inventory_path(path, announced));
    // What has this name is no tree that anybody needs: `holds` denied it, or nobody asked.
    remove(&path.join(&name))?;
    fwdurable::write_file_mode(&inventory, tree.inventory(announced).as_bytes(), 0o600)
        .map_err(failed("writing", &inventory))?;
    fwdurable::rename(&new, &path.join(&name)).map_err(failed("renaming", &new))?;
    switch(path, &name)?;
    remove_others(path, &name)
}

/// Whether `current` is a tree of the image, unchanged since it was unpacked.
pub(super) fn holds(path: &Path, image: &Image) -> Result<bool, SlotError> {
    let (name, current) = (tree_name(image), path.join(CURRENT));
    let linked = match fs::read_link(&current) {
        Ok(target) => target == Path::new(&name),
        // Nothing there, or not a link.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => false,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => false,
        Err(error) => return Err(failed("reading", &current)(error)),
    };
    if !linked {
        return Ok(false);
    }
    let inventory = inventory_path(path, image);
    let recorded = match read_bounded(&inventory) {
        Ok(recorded) => recorded,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
            return Ok(false);
        }
        Err(error) => return Err(failed("reading", &inventory)(error)),
    };
    // Only to be quick: the comparison below would find it too.
    if !recorded.starts_with(inventory_head(image).as_bytes()) {
        return Ok(false);
    }
    // Equal texts are the only proof: an inventory that is damaged in any byte proves nothing for any tree.
    let tree = read_tree(&path.join(name))?;
    Ok(tree.inventory(image).as_bytes() == recorded)
}

/// Unpacks the image into a new directory that nobody else may enter.
fn prepare(new: &Path, image: &mut ImageReader<'_>) -> Result<Tree, SlotError> {
    DirBuilder::new()
        .mode(0o700)
        .create(new)
        .map_err(failed("creating", new))?;
    let unpacked = unpack(image, new);
    image.failure()?;
    Ok(unpacked?)
}

/// Makes the tree durable and compares what the medium gives back with what the archive said.
fn settle(new: &Path, tree: &Tree) -> Result<(), SlotError> {
    fwdurable::sync_tree(new).map_err(failed("writing", new))?;
    let actual = read_tree(new)?;
    match tree.first_difference(&actual) {
        None => Ok(()),
        Some(difference) => Err(SlotError::ReadBackTree {
            path: new.to_owned(),
            source: Box::new(difference),
        }),
    }
}

/// Points `current` at the tree `name`, by one rename.
fn switch(path: &Path, name: &str) -> Result<(), SlotError> {
    let (link, current) = (path.join(CURRENT_NEW), path.join(CURRENT));
    remove(&link)?;
    symlink(name, &link).map_err(failed("creating", &link))?;
    fwdurable::rename(&link, &current).map_err(failed("renaming", &link))
}

/// Removes the trees and inventories that are not of the tree `name`, and what interrupted writes left.
fn remove_others(path: &Path, name: &str) -> Result<(), SlotError> {
    let inventory = format!("{name}{INVENTORY}");
    for entry in fs::read_dir(path).map_err(failed("listing", path))? {
        let entry = entry.map_err(failed("listing", path))?;
        let found = entry.file_name();
        let ours = found.as_encoded_bytes().starts_with(TREE.as_bytes());
        if ours && found != name && found != inventory.as_str() {
            remove(&entry.path())?;
        }
    }
    fwdurable::sweep_temporaries(path).map_err(failed("cleaning", path))
}

/// Removes whatever is at `path`, durably, following no link.
fn remove(path: &Path) -> Result<(), SlotError> {
    let removed = match metadata(path)? {
        Some(found) if found.is_dir() => {
            // Directories of an image may forbid their owner to write; only root ignores that.
            allow_removal(path).and_then(|()| fwdurable::remove_tree(path))
        }
        // Also when nothing is there: an earlier removal may not be on the medium yet.
        _ => fwdurable::remove_file(path),
    };
    removed.map_err(failed("removing", path))
}

/// Makes directories writable, the outermost first: the inner ones cannot be seen before.
fn allow_removal(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            allow_removal(&entry.path())?;
        }
    }
    Ok(())
}

/// Bytes that a tree takes, as far as they can be seen: what cannot only makes the answer smaller.
fn occupied_below(path: &Path) -> Result<u64, SlotError> {
    let Some(found) = metadata(path)? else { return Ok(0) };
    let mut sum = occupied(&found);
    if found.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            sum = sum.saturating_add(occupied_below(&entry.path())?);
        }
    }
    Ok(sum)
}

fn read_tree(path: &Path) -> Result<Tree, SlotError> {
    Tree::read(path).map_err(|source: TreeError| SlotError::Tree {
        path: path.to_owned(),
        source,
    })
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(INVENTORY_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > INVENTORY_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "longer than an inventory"));
    }
    Ok(bytes)
}

fn tree_name(image: &Image) -> String {
    format!("{TREE}{}", hex::encode(&image.sha256[..8]))
}

fn inventory_path(path: &Path, image: &Image) -> PathBuf {
    path.join(tree_name(image) + INVENTORY)
}
