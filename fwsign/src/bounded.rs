//! Files from outside, read whole and never longer than allowed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] for a longer one; any other error of the file system.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    read_into(path, limit, &mut bytes)?;
    Ok(bytes)
}

/// Like [`read`] for a text that must not stay in memory.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_secret(path: &Path, limit: u16) -> io::Result<Zeroizing<String>> {
    // With room for all of it from the start no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::from(limit) + 64));
    read_into(path, u64::from(limit), &mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_into(path: &Path, limit: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    let length = File::open(path)?.take(limit.saturating_add(1)).read_to_end(bytes)?;
    if length as u64 > limit {
        let message = format!("longer than the {limit} bytes allowed");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bound_is_the_longest_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_secret(&path, 5).unwrap().as_str(), "12345");
        assert_eq!(read_secret(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_secret(&path, 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
