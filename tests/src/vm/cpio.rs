//! The archive that a kernel takes its first file system from.
//!
//! Source: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`, format "newc": a header of eight-digit
//! hexadecimal fields, the name with a zero byte, the data; each padded to four bytes.

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn dir(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file that can be run.
    pub fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(name, REGULAR | 0o755, data);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let (length, name_length) = (data.len() as u32, name.len() as u32 + 1);
        // Inode, mode, owner, group, links, time, length, four device numbers, length of the name, no checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_kernel_wants_it() {
        let mut archive = Archive::default();
        archive.dir("dev");
        archive.file("init", b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000041ED"), "{text}");
        assert!(
            text.contains("00000005") && text.contains("init\0") && text.contains("hello\0\0\0"),
            "{text}"
        );
        assert!(text.contains("TRAILER!!!") && bytes.len() % 4 == 0);
    }
}
