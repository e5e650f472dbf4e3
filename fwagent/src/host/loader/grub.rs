//! The medium of GRUB: its environment block, with a shadow in the agent's state directory.
//!
//! ```text
//! read           block                                         shadow: what was written last, or is being written
//! write          1. shadow: old and new block, "under way"
//!                2. block: the same 1024 bytes of the same file, fsync, read back
//!                3. shadow: new block, "written"
//! ```
//!
//! GRUB's `save_env` writes the blocks of the file where they lie, so they must stay where they are: the file is
//! overwritten, never replaced. It has no checksum; the shadow says whether a write was interrupted:
//!
//! ```text
//! shadow      block                                            taken is
//! written     reads well                                       the block: GRUB may have changed it since
//! written     broken (GRUB's own write was torn)               the shadow
//! under way   the old or the new one, GRUB's marks apart       the block
//! under way   anything else: torn                              the old one
//! ```
//!
//! When the shadow is taken the running slot counts as tried, for GRUB had marked it so before it started it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fwdurable::twin::{Loaded, Twin};

use crate::host::loader::Medium;
use crate::host::loader::uboot::write_in_place;
use crate::machine::grub_env::{BLOCK_BYTES, Block, BlockError};
use crate::machine::slot::SlotId;
use crate::ports::PortError;

/// The block was written whole.
const WRITTEN: u8 = b'W';
/// The old block, and the new one that is being written.
const UNDER_WAY: u8 = b'U';

/// The environment block of GRUB.
#[derive(Debug)]
pub struct Grub {
    path: PathBuf,
    shadow: Twin,
    /// [`write_in_place`]; tests tear it.
    put: fn(&Path, &[u8], u64) -> io::Result<()>,
}

/// What the shadow says.
#[derive(Debug, PartialEq, Eq)]
enum Shadow {
    None,
    Written(Block),
    UnderWay { old: Block, new: Block },
}

impl Grub {
    /// The block in the file `path`, with its shadow in the directory `state`.
    pub fn new(path: PathBuf, state: &Path) -> Self {
        Self {
            path,
            shadow: Twin::new(state.join("grubenv"), 1 + 2 * BLOCK_BYTES),
            put: write_in_place,
        }
    }

    fn bytes(&self) -> Result<Vec<u8>, PortError> {
        let mut bytes = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(BLOCK_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| self.failed("reading", error))?;
        Ok(bytes)
    }

    fn shadow(&self) -> Result<Shadow, PortError> {
        let payload = match self
            .shadow
            .load()
            .map_err(|error| self.failed("reading the shadow of", error))?
        {
            Loaded::Empty => return Ok(Shadow::None),
            Loaded::Record { payload, .. } => payload,
        };
        Shadow::decode(&payload).ok_or_else(|| self.failed("reading the shadow of", "it is malformed"))
    }

    fn store_shadow(&self, kind: u8, blocks: &[&[u8]]) -> Result<(), PortError> {
        let payload = [&[kind][..], &blocks.concat()].concat();
        self.shadow
            .store(&payload)
            .map_err(|error| self.failed("storing the shadow of", error))
    }

    fn write_block(&self, block: &[u8]) -> Result<(), PortError> {
        (self.put)(&self.path, block, 0).map_err(|error| self.failed("writing", error))?;
        if self.bytes()? != block {
            return Err(self.failed("writing", "it gives back something else"));
        }
        Ok(())
    }

    fn failed(&self, action: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PortError {
        let attempt = format!("{action} the environment block {}", self.path.display());
        PortError::environment(attempt, Some(error.into()))
    }
}

impl Medium for Grub {
    type Vars = Block;

    fn read(&self, running: Option<&SlotId>) -> Result<(Block, bool), PortError> {
        let read = Block::decode(&self.bytes()?);
        let mut restored = match (read, self.shadow()?) {
            (Ok(block), Shadow::None | Shadow::Written(_)) => return Ok((block, false)),
            // Only the shadow is behind.
            (Ok(block), Shadow::UnderWay { old, new }) if is_marked(&old, &block) || is_marked(&new, &block) => {
                return Ok((block, true));
            }
            (Ok(_), Shadow::UnderWay { old, .. }) => old,
            // A file of another length was not torn but replaced; writing it would move its blocks.
            (Err(error @ BlockError::Length { .. }), _) | (Err(error), Shadow::None) => {
                return Err(self.failed("reading", error));
            }
            (Err(_), Shadow::Written(block) | Shadow::UnderWay { old: block, .. }) => block,
        };
        if let Some(slot) = running {
            let tried = restored.set(&format!("{slot}_TRY"), "1");
            tried.map_err(|error| self.failed("mending", error))?;
        }
        Ok((restored, true))
    }

    fn mend(&mut self, vars: &Block) -> Result<(), PortError> {
        let block = vars.encode().map_err(|error| self.failed("mending", error))?;
        if self.bytes()? != block {
            // Torn once more, it may look whole.
            self.store_shadow(UNDER_WAY, &[&block, &block])?;
            self.write_block(&block)?;
        }
        self.store_shadow(WRITTEN, &[&block])
    }

    fn write(&mut self, vars: &Block) -> Result<(), PortError> {
        let old = self.bytes()?;
        // A caller has read it before; but what is kept as the old block must be one.
        Block::decode(&old).map_err(|error| self.failed("writing", error))?;
        let new = vars.encode().map_err(|error| self.failed("writing", error))?;
        self.store_shadow(UNDER_WAY, &[&old, &new])?;
        self.write_block(&new)?;
        self.store_shadow(WRITTEN, &[&new])
    }
}

impl Shadow {
    fn decode(payload: &[u8]) -> Option<Self> {
        let (kind, blocks) = payload.split_first()?;
        match (*kind, blocks.len()) {
            (WRITTEN, BLOCK_BYTES) => Some(Self::Written(Block::decode(blocks).ok()?)),
            (UNDER_WAY, length) if length == 2 * BLOCK_BYTES => {
                let (old, new) = blocks.split_at(BLOCK_BYTES);
                Some(Self::UnderWay {
                    old: Block::decode(old).ok()?,
                    new: Block::decode(new).ok()?,
                })
            }
            _ => None,
        }
    }
}

/// Whether `found` is what GRUB may have made of `base`: the same but for marks of tried slots.
fn is_marked(base: &Block, found: &Block) -> bool {
    let but_marks = |block: &Block| -> Vec<(Vec<u8>, Vec<u8>)> {
        let variables = block.variables().map(|(name, value)| (name.to_vec(), value));
        variables
            .map(|(name, value)| {
                let is_mark = name.ends_with(b"_TRY") && matches!(value.as_slice(), b"0" | b"1");
                if is_mark { (name, Vec::new()) } else { (name, value) }
            })
            .collect()
    };
    but_marks(base) == but_marks(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Writes the first half, which looks whole together with the old second one.
    fn tear(path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_in_place(path, &bytes[..BLOCK_BYTES / 2], offset)?;
        Err(io::Error::other("the power is gone"))
    }

    #[test]
    fn the_shadow_knows_of_a_write_before_it_begins_and_of_its_mending_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block");
        let running = SlotId::parse("A").unwrap();
        let mut old = Block::default();
        old.set("ORDER", "A B").unwrap();
        old.set("A_TRY", "1").unwrap();
        old.set("other", &"x".repeat(600)).unwrap();
        old.set("B_OK", "0").unwrap();
        std::fs::write(&path, old.encode().unwrap()).unwrap();
        let mut grub = Grub::new(path.clone(), dir.path());
        assert_eq!(grub.read(Some(&running)).unwrap(), (old.clone(), false));
        let mut new = old.clone();
        new.set("ORDER", "B A").unwrap();
        new.set("B_OK", "1").unwrap();
        grub.put = tear;
        grub.write(&new).unwrap_err();
        let torn = Block::decode(&std::fs::read(&path).unwrap()).unwrap();
        assert!(torn != old && torn != new, "it looks whole and is neither");
        assert_eq!(grub.read(Some(&running)).unwrap(), (old.clone(), true));
        grub.mend(&old).unwrap_err();
        assert_eq!(grub.read(Some(&running)).unwrap(), (old.clone(), true));
        grub.put = write_in_place;
        grub.mend(&old).unwrap();
        assert_eq!(grub.read(Some(&running)).unwrap(), (old, false));
        grub.write(&new).unwrap();
        assert_eq!(grub.read(Some(&running)).unwrap(), (new, false));

        // Torn by GRUB; the shadow has no doubt about its block until it is mended.
        let mut other = Block::decode(&std::fs::read(&path).unwrap()).unwrap();
        other.set("ORDER", "A B").unwrap();
        std::fs::write(&path, [b'#'; BLOCK_BYTES]).unwrap();
        let (restored, damaged) = grub.read(Some(&running)).unwrap();
        assert!(damaged);
        grub.put = tear;
        grub.mend(&restored).unwrap_err();
        std::fs::write(&path, other.encode().unwrap()).unwrap();
        assert_eq!(grub.read(Some(&running)).unwrap(), (restored, true));
    }
}
