//! Images on their way into a repository: hashed and compressed in one pass, reproducibly.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

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

impl Packed {
    /// Nothing, packed to nothing.
    pub fn empty() -> Self {
        Self {
            image: Image {
                size: 0,
                sha256: [0; 32],
                sha512: [0; 64],
            },
            file: TargetFile::of_bytes(b""),
        }
    }
}

/// Compresses `input` to `output` as one zstd frame. The same input and level give the same bytes.
///
/// # Errors
/// When a file cannot be read or written, or the image is larger than devices accept.
pub fn pack(input: &Path, output: &Path, level: i32) -> anyhow::Result<Packed> {
    let mut source = File::open(input).with_context(|| input.display().to_string())?;
    let metadata = source.metadata().with_context(|| input.display().to_string())?;
    ensure!(metadata.is_file(), "{} is not a regular file", input.display());
    let size = metadata.len();
    ensure!(
        size <= limits::IMAGE_BYTES,
        "{} has {size} bytes, more than the {} that devices accept",
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
    ensure!(
        read == size,
        "{} changed while it was read: {size} bytes before, {read} after",
        input.display()
    );
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
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            // Never more than the header says. Less shows when the archive is checked.
            archive.append_data(&mut header, &relative, file.take(metadata.len()))?;
        } else {
            anyhow::bail!("{} is neither a file, a directory nor a symbolic link", path.display());
        }
    }
    Ok(())
}

/// Checks an archive by the rules of devices: files, directories and links with relative paths, none leading out of the
/// tree.
///
/// # Errors
/// The first entry that breaks a rule, or that the archive is damaged.
pub fn check_tar(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    let mut count = 0_u64;
    for entry in archive.entries().with_context(|| path.display().to_string())? {
        let mut entry = entry.with_context(|| format!("{} is no tar archive", path.display()))?;
        let name = entry.path().context("a path of the archive")?.into_owned();
        check_entry(&entry, &name).with_context(|| format!("{}: entry {}", path.display(), name.display()))?;
        io::copy(&mut entry, &mut io::sink()).with_context(|| format!("{} is damaged", path.display()))?;
        count += 1;
    }
    ensure!(count > 0, "{} is an empty archive", path.display());
    Ok(())
}

fn check_entry(entry: &tar::Entry<'_, impl Read>, name: &Path) -> anyhow::Result<()> {
    use tar::EntryType;
    let plain = |path: &Path| {
        path.components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    };
    ensure!(plain(name), "the path is absolute or has a part ..");
    let target = entry.link_name().context("the target of a link")?;
    match (entry.header().entry_type(), target) {
        (EntryType::Regular | EntryType::Continuous | EntryType::Directory, _) => Ok(()),
        (EntryType::Symlink, Some(target)) => {
            let depth = depth_inside(name.parent().unwrap_or(Path::new("")), 0);
            let inside = depth.and_then(|depth| depth_inside(&target, depth)).is_some();
            ensure!(inside, "link to {} leads out of the tree", target.display());
            Ok(())
        }
        (EntryType::Link, Some(target)) => {
            ensure!(
                plain(&target),
                "link to {} is absolute or has a part ..",
                target.display()
            );
            Ok(())
        }
        (kind, _) => anyhow::bail!("{kind:?} is neither a file, a directory nor a link"),
    }
}

/// How deep below the tree a relative path ends that starts at `depth`; `None` when it is absolute or leaves the tree on
/// its way.
fn depth_inside(path: &Path, depth: usize) -> Option<usize> {
    path.components().try_fold(depth, |depth, part| match part {
        Component::Normal(_) => Some(depth + 1),
        Component::CurDir => Some(depth),
        Component::ParentDir => depth.checked_sub(1),
        Component::RootDir | Component::Prefix(_) => None,
    })
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
    fn archives_that_devices_refuse_are_refused_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let archive = |name: &str, kind: tar::EntryType, link: &str| {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_cksum();
            let mut builder = tar::Builder::new(File::create(&path).unwrap());
            builder.append(&header, io::empty()).unwrap();
            builder.finish().unwrap();
            check_tar(&path)
        };
        use tar::EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
        for (name, kind, link) in [
            ("a", Regular, ""),
            ("./a/b", Regular, ""),
            ("d/", Directory, ""),
            ("d/l", Symlink, "../a"),
            ("l", Symlink, "d/x"),
            ("h", Link, "d/x"),
        ] {
            archive(name, kind, link).unwrap_or_else(|error| panic!("{name} {link}: {error:#}"));
        }
        for (name, kind, link) in [
            ("/a", Regular, ""),
            ("../a", Regular, ""),
            ("d/../../a", Regular, ""),
            ("d/l", Symlink, "../../a"),
            ("l", Symlink, "/etc/passwd"),
            ("l", Symlink, "d/../../x"),
            ("h", Link, "../x"),
            ("c", Char, ""),
            ("f", Fifo, ""),
        ] {
            assert!(archive(name, kind, link).is_err(), "{name} {link}");
        }
        for bytes in [&b""[..], &[0; 1024], b"not a tar archive", &[b'x'; 2000]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(check_tar(&path).is_err());
        }
    }

    #[test]
    fn windows_grow_with_the_image_up_to_the_bound() {
        assert_eq!([0, 1, 1024, 1025, 1 << 30].map(window_log), [10, 10, 10, 11, 23]);
    }
}
