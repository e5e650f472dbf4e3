//! Images on their way into a repository: hashed and compressed in one pass, reproducibly.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fwmeta::limits;
use fwmeta::manifest::Image;
use fwmeta::target::{Hasher, TargetFile};

/// Exponent of the largest window that devices provide: 8 MiB.
const WINDOW_LOG: u32 = 23;

/// An image and the target that carries it.
#[derive(Debug)]
pub struct Packed {
    /// The image as a device will have it.
    pub image: Image,
    /// The compressed target.
    pub file: TargetFile,
}

/// Compresses `input` to `output` as one zstd frame. The same input and level give the same bytes.
///
/// # Errors
/// When a file cannot be read or written, or the image is larger than devices accept.
pub fn pack(input: &Path, output: &Path, level: i32) -> anyhow::Result<Packed> {
    let mut source = File::open(input).with_context(|| input.display().to_string())?;
    let size = source.metadata()?.len();
    ensure!(
        size <= limits::IMAGE_BYTES,
        "{} has {size} bytes, more than {}",
        input.display(),
        limits::IMAGE_BYTES
    );
    let target = File::create(output).with_context(|| output.display().to_string())?;
    let mut encoder = zstd::Encoder::new(
        Hashing {
            hasher: Hasher::new(),
            inner: target,
        },
        level,
    )?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(size))?;
    encoder.window_log(window_log(size))?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = source.read(&mut buffer).with_context(|| input.display().to_string())?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        encoder
            .write_all(&buffer[..length])
            .with_context(|| output.display().to_string())?;
    }
    let packed = encoder
        .finish()
        .with_context(|| format!("compressing {}", input.display()))?;
    let (length, hashes) = packed.hasher.finish();
    let (read, image) = hasher.finish();
    ensure!(read == size, "{} changed while it was read", input.display());
    let (Some(sha256), Some(sha512)) = (image.sha256, image.sha512) else {
        anyhow::bail!("no digest of {}", input.display());
    };
    Ok(Packed {
        image: Image {
            size,
            sha256,
            sha512: *sha512,
        },
        file: TargetFile {
            length,
            hashes,
            custom: None,
            extra: std::collections::BTreeMap::new(),
        },
    })
}

/// The smallest window that covers the image, so that small images need little memory on the device.
fn window_log(size: u64) -> u32 {
    let needed = u64::BITS - size.saturating_sub(1).leading_zeros();
    needed.clamp(10, WINDOW_LOG)
}

struct Hashing<W> {
    hasher: Hasher,
    inner: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Makes a tar archive of a directory at `output`: entries sorted, owner 0, times 0, so that equal trees give equal
/// bytes.
///
/// # Errors
/// When a file cannot be read or is of a kind that devices refuse.
pub fn tar_of_directory(dir: &Path, output: &Path) -> anyhow::Result<()> {
    let file = File::create(output).with_context(|| output.display().to_string())?;
    let mut archive = tar::Builder::new(file);
    archive.follow_symlinks(false);
    append(&mut archive, dir, &PathBuf::new())?;
    archive.into_inner().context("finishing the archive")?;
    Ok(())
}

fn append(archive: &mut tar::Builder<File>, root: &Path, relative: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = root.join(relative);
    let entries = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()?;
    names.sort();
    for name in names {
        let relative = relative.join(name);
        let path = root.join(&relative);
        let metadata = path.symlink_metadata().with_context(|| path.display().to_string())?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.permissions().mode() & 0o777);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if metadata.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, &relative, io::empty())?;
            append(archive, root, &relative)?;
        } else if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, &relative, std::fs::read_link(&path)?)?;
        } else if metadata.is_file() {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(metadata.len());
            archive.append_data(&mut header, &relative, File::open(&path)?)?;
        } else {
            anyhow::bail!("{} is neither a file, a directory nor a symbolic link", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn packing_is_reproducible_and_reversible() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("image");
        for size in [0, 1, 1000, 3_000_000] {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 7 % 251) as u8).collect();
            std::fs::write(&input, &bytes).unwrap();
            let first = pack(&input, &dir.path().join("a"), 19).unwrap();
            let second = pack(&input, &dir.path().join("b"), 19).unwrap();
            assert_eq!((&first.image, &first.file), (&second.image, &second.file));
            let packed = std::fs::read(dir.path().join("a")).unwrap();
            first.file.check_bytes(&packed).unwrap();
            assert_eq!(zstd::decode_all(&packed[..]).unwrap(), bytes);
            assert_eq!(first.image.size, size as u64);
        }
    }

    #[test]
    fn equal_trees_give_equal_archives() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, order: [&str; 2]| {
            let root = dir.path().join(name);
            std::fs::create_dir_all(root.join("sub")).unwrap();
            for file in order {
                std::fs::write(root.join(file), file).unwrap();
            }
            std::os::unix::fs::symlink("a", root.join("link")).unwrap();
            let output = dir.path().join(format!("{name}.tar"));
            tar_of_directory(&root, &output).unwrap();
            std::fs::read(output).unwrap()
        };
        let first = make("x", ["a", "sub/b"]);
        assert_eq!(first, make("y", ["sub/b", "a"]));
        let mut archive = tar::Archive::new(&first[..]);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned())
            .collect();
        assert_eq!(names, ["a", "link", "sub/", "sub/b"].map(PathBuf::from));
    }

    #[test]
    fn windows_grow_with_the_image_up_to_the_bound() {
        assert_eq!([0, 1, 1024, 1025, 1 << 30].map(window_log), [10, 10, 10, 11, 23]);
    }
}
