//! The environment block of GRUB (`grubenv`): reads it, changes variables, writes it.
//!
//! Source: GRUB `grub-core/lib/envblk.c`, `util/editenv.c`.
//!
//! ```text
//! # GRUB Environment Block\n      exactly these 25 bytes
//! # any comment\n
//! name=value\n                    \ and newline in a value are written as \\ and \newline
//! ##########…                     to byte 1024
//! ```
//!
//! There is no checksum, so a half-written block can look whole; whoever writes keeps a copy elsewhere. GRUB itself reads
//! nearly anything; what it could misread (a line without `=`, a value without an end, a name that is there twice) is
//! refused here. What is not changed is written as it was read.

/// Length of a block, in bytes.
pub const BLOCK_BYTES: usize = 1024;
/// How it begins.
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// A block cannot be used, or not be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Not 1024 bytes.
    #[error("an environment block has {BLOCK_BYTES} bytes, and this has {length}")]
    Length {
        /// Bytes.
        length: usize,
    },
    /// It does not begin as a block does.
    #[error("it does not begin as an environment block does")]
    Signature,
    /// A line makes no sense.
    #[error("the environment block is broken at byte {at}")]
    Broken {
        /// Where the line begins.
        at: usize,
    },
    /// Readers differ in which of them counts.
    #[error("variable {name} is there twice")]
    Duplicate {
        /// The variable.
        name: String,
    },
    /// The variables do not fit.
    #[error("the variables need {needed} bytes of {BLOCK_BYTES}")]
    TooLong {
        /// Bytes needed.
        needed: usize,
    },
    /// Such a variable cannot be stored.
    #[error("variable {name:?} cannot be stored")]
    Unstorable {
        /// The variable.
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    /// Without the newline.
    Comment(Vec<u8>),
    /// The value as it is written, escapes included.
    Variable { name: Vec<u8>, written: Vec<u8> },
}

/// Variables and comments in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Block {
    lines: Vec<Line>,
}

impl Block {
    /// Reads a block.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        if bytes.len() != BLOCK_BYTES {
            return Err(BlockError::Length { length: bytes.len() });
        }
        let body = bytes.strip_prefix(SIGNATURE).ok_or(BlockError::Signature)?;
        // The fill; a comment ends with a newline, so that none of it is lost.
        let end = body.iter().rposition(|byte| *byte != b'#').map_or(0, |last| last + 1);
        let mut lines = Vec::new();
        let mut rest = &body[..end];
        while !rest.is_empty() {
            let broken = BlockError::Broken {
                at: SIGNATURE.len() + end - rest.len(),
            };
            let length = line_length(rest).ok_or(broken.clone())?;
            lines.push(line(&rest[..length]).ok_or(broken)?);
            rest = &rest[length + 1..];
        }
        let mut names: Vec<&[u8]> = lines.iter().filter_map(Line::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let name = String::from_utf8_lossy(twice[0]).into_owned();
            return Err(BlockError::Duplicate { name });
        }
        Ok(Self { lines })
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.lines.iter().find_map(|line| match line {
            Line::Variable { name: found, written } if found == name.as_bytes() => Some(unescaped(written)),
            _ => None,
        })
    }

    /// Names and values, in their order.
    pub fn variables(&self) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
        self.lines.iter().filter_map(|line| match line {
            Line::Variable { name, written } => Some((name.as_slice(), unescaped(written))),
            Line::Comment(_) => None,
        })
    }

    /// Sets a variable, in its place or after all others.
    ///
    /// # Errors
    /// [`BlockError::Unstorable`] for a name or value that would read as something else.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), BlockError> {
        if name.is_empty() || name.contains(['=', '\n', '#', '\\', '\0']) || value.contains('\0') {
            return Err(BlockError::Unstorable { name: name.to_owned() });
        }
        let line = Line::Variable {
            name: name.as_bytes().to_vec(),
            written: escaped(value.as_bytes()),
        };
        match self.lines.iter().position(|line| line.name() == Some(name.as_bytes())) {
            Some(at) => self.lines[at] = line,
            None => self.lines.push(line),
        }
        Ok(())
    }

    /// The block.
    ///
    /// # Errors
    /// [`BlockError::TooLong`].
    pub fn encode(&self) -> Result<[u8; BLOCK_BYTES], BlockError> {
        let mut text = SIGNATURE.to_vec();
        for line in &self.lines {
            match line {
                Line::Comment(comment) => text.extend_from_slice(comment),
                Line::Variable { name, written } => {
                    text.extend_from_slice(name);
                    text.push(b'=');
                    text.extend_from_slice(written);
                }
            }
            text.push(b'\n');
        }
        let mut block = [b'#'; BLOCK_BYTES];
        let place = block.get_mut(..text.len());
        place
            .ok_or(BlockError::TooLong { needed: text.len() })?
            .copy_from_slice(&text);
        Ok(block)
    }
}

impl Line {
    fn name(&self) -> Option<&[u8]> {
        match self {
            Self::Comment(_) => None,
            Self::Variable { name, .. } => Some(name),
        }
    }
}

/// Bytes before the newline that ends the first line.
fn line_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'\n' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn line(text: &[u8]) -> Option<Line> {
    if text.contains(&0) {
        return None;
    }
    if text.first() == Some(&b'#') {
        return Some(Line::Comment(text.to_vec()));
    }
    let at = text.iter().position(|byte| *byte == b'=')?;
    let (name, written) = (text[..at].to_vec(), text[at + 1..].to_vec());
    // GRUB knows no escapes in names.
    let is_name = !name.is_empty() && !name.iter().any(|byte| matches!(byte, b'\\' | b'\n'));
    is_name.then_some(Line::Variable { name, written })
}

fn escaped(value: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(value.len());
    for byte in value {
        if matches!(byte, b'\\' | b'\n') {
            written.push(b'\\');
        }
        written.push(*byte);
    }
    written
}

fn unescaped(written: &[u8]) -> Vec<u8> {
    let mut bytes = written.iter();
    let mut value = Vec::with_capacity(written.len());
    while let Some(byte) = bytes.next() {
        // A line never ends within an escape.
        value.push(if *byte == b'\\' {
            *bytes.next().unwrap_or(byte)
        } else {
            *byte
        });
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn block(body: &[u8]) -> Vec<u8> {
        let mut block = [SIGNATURE, body].concat();
        block.resize(BLOCK_BYTES, b'#');
        block
    }

    #[test]
    fn what_is_not_changed_stays_as_it_was() {
        let before = block(b"# WARNING\nORDER=A B\n#\nx=a\\\\b\\\nc\\d\nempty=\n");
        let mut read = Block::decode(&before).unwrap();
        assert_eq!(read.encode().unwrap().as_slice(), before);
        assert_eq!(read.get("x"), Some(b"a\\b\ncd".to_vec()));
        assert_eq!((read.get("empty"), read.get("ORDE")), (Some(vec![]), None));
        read.set("ORDER", "B A").unwrap();
        read.set("new", "back\\slash\nline #").unwrap();
        let expected = block(b"# WARNING\nORDER=B A\n#\nx=a\\\\b\\\nc\\d\nempty=\nnew=back\\\\slash\\\nline #\n");
        assert_eq!(read.encode().unwrap().as_slice(), expected);
        assert_eq!(Block::decode(&expected), Ok(read));
    }

    #[test]
    fn a_full_block_has_no_fill_and_one_more_byte_does_not_fit() {
        let mut full = Block::decode(&block(b"")).unwrap();
        let room = BLOCK_BYTES - SIGNATURE.len() - "a=\n".len();
        full.set("a", &"#".repeat(room)).unwrap();
        let bytes = full.encode().unwrap();
        assert_eq!(bytes.last(), Some(&b'\n'));
        assert_eq!(Block::decode(&bytes), Ok(full.clone()));
        full.set("a", &"x".repeat(room + 1)).unwrap();
        assert_eq!(
            full.encode(),
            Err(BlockError::TooLong {
                needed: BLOCK_BYTES + 1
            })
        );
    }

    #[test]
    fn broken_blocks_are_refused() {
        let broken = |at| Err(BlockError::Broken { at });
        for (body, expected) in [
            (&b"a=1"[..], broken(25)),
            (b"a=1\nno variable\n", broken(29)),
            (b"=1\n", broken(25)),
            (b"a=\0\n", broken(25)),
            (b"a=1\\\n", broken(25)),
            (b"a\\\nb=1\n", broken(25)),
            (b"\n", broken(25)),
            (b"a=1\na=2\n", Err(BlockError::Duplicate { name: "a".to_owned() })),
        ] {
            assert_eq!(Block::decode(&block(body)), expected, "{}", body.escape_ascii());
        }
        assert_eq!(
            Block::decode(&block(b"")[1..]),
            Err(BlockError::Length { length: 1023 })
        );
        assert_eq!(Block::decode(&[b'#'; BLOCK_BYTES]), Err(BlockError::Signature));
        for name in ["", "a=b", "#a", "a\nb", "a\\b"] {
            assert!(Block::default().set(name, "x").is_err());
        }
    }
}
