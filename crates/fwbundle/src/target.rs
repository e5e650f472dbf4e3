//! A target in a bundle that is read twice: once to verify it, once to use it.
//!
//! Between the two the medium may give other bytes: a stick is pulled, swapped, or lies. So the first reading keeps a
//! digest of each chunk, in memory and of bounded number, and the second hands out only chunks that have them. Nothing
//! unverified is ever decompressed, and no copy on the device's own medium is needed.

use std::io::{self, Read};

use fwmeta::target::{Hasher, TargetFile};
use sha2::{Digest, Sha256};

use crate::BundleError;
use crate::index::Span;
use crate::reader::Bundle;

/// Most chunks of a target: 128 KiB of digests.
const CHUNKS: u64 = 4096;
/// Smallest chunk, in bytes. A target of 8 GiB has chunks of 2 MiB.
const CHUNK_MIN: u64 = 64 * 1024;
/// EIO. Whoever reads this way tells a medium that fails, which may do better later, from content that is wrong.
const MEDIUM_FAILED: i32 = 5;

/// A verified target.
#[derive(Debug)]
pub struct Target {
    bundle: Bundle,
    span: Span,
    /// Bytes of a chunk; the last may be shorter.
    chunk: u64,
    digests: Vec<[u8; 32]>,
    /// The chunk that is handed out, and how much of it was.
    buffer: Vec<u8>,
    used: usize,
    next: usize,
}

impl Target {
    pub(crate) fn verify(
        bundle: Bundle,
        name: String,
        span: Span,
        file: &TargetFile,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Self, BundleError> {
        let mut target = Self {
            bundle,
            span,
            chunk: span.length.div_ceil(CHUNKS).max(CHUNK_MIN),
            digests: Vec::new(),
            buffer: Vec::new(),
            used: 0,
            next: 0,
        };
        let mut hasher = Hasher::for_checking(&file.hashes);
        // Wrong by its length, it need not be read.
        if span.length == file.length {
            for number in 0..span.length.div_ceil(target.chunk) {
                target.load(number).map_err(|error| target.bundle.failed(error))?;
                hasher.update(&target.buffer);
                target.digests.push(Sha256::digest(&target.buffer).into());
                if !progress(hasher.length(), file.length) {
                    return Err(BundleError::Stopped);
                }
            }
            let (length, hashes) = hasher.finish();
            file.check(length, &hashes)
                .map_err(|source| BundleError::WrongTarget { name, source })?;
        } else {
            let source = fwmeta::target::MismatchError::Length {
                expected: file.length,
                actual: span.length,
            };
            return Err(BundleError::WrongTarget { name, source });
        }
        target.buffer.clear();
        Ok(target)
    }

    fn load(&mut self, number: u64) -> io::Result<()> {
        let from = number * self.chunk;
        let length = self.chunk.min(self.span.length.saturating_sub(from));
        self.buffer.resize(length as usize, 0);
        self.bundle.read_at(self.span.at + from, &mut self.buffer)
    }
}

impl Read for Target {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            let Some(digest) = self.digests.get(self.next).copied() else {
                return Ok(0);
            };
            self.used = 0;
            let loaded = self.load(self.next as u64);
            if loaded.is_err() || Sha256::digest(&self.buffer).as_slice() != digest {
                // What is in the buffer must not be handed out by the next call either.
                self.buffer.clear();
                return Err(io::Error::from_raw_os_error(MEDIUM_FAILED));
            }
            self.next += 1;
        }
        let length = out.len().min(self.buffer.len() - self.used);
        out[..length].copy_from_slice(&self.buffer[self.used..self.used + length]);
        self.used += length;
        Ok(length)
    }
}
