//! An image on its way into a slot: bounded, hashed and counted as it is read.

use std::io::{self, Read};

use fwmeta::manifest::Image;
use fwmeta::target::{Hasher, Hashes, MismatchError, TargetFile};

use super::SlotError;
use crate::ports::Progress;

/// Bytes between two calls of the progress callback.
const STEP: u64 = 256 * 1024;

/// Reads an image of which only the announced size and digests are trusted. Not one byte more than announced comes out
/// of it. After an error it stays failed; [`finish`](Self::finish) says why.
pub(super) struct ImageReader<'a> {
    inner: &'a mut dyn Read,
    image: &'a Image,
    progress: Progress<'a>,
    hasher: Hasher,
    reported: u64,
    failure: Option<SlotError>,
}

impl<'a> ImageReader<'a> {
    pub(super) fn new(inner: &'a mut dyn Read, image: &'a Image, progress: Progress<'a>) -> Self {
        Self {
            inner,
            image,
            progress,
            hasher: Hasher::new(),
            reported: 0,
            failure: None,
        }
    }

    pub(super) fn image(&self) -> &'a Image {
        self.image
    }

    /// Why reading failed. Asked for before what the reader of this reader made of it.
    pub(super) fn failure(&mut self) -> Result<(), SlotError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Compares what was read, to its end, with what was announced.
    pub(super) fn finish(mut self) -> Result<(), SlotError> {
        self.failure()?;
        let (length, hashes) = self.hasher.finish();
        Ok(announced(self.image).check(length, &hashes)?)
    }

    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, SlotError> {
        let length = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(SlotError::Source)?,
            }
        };
        let size = self.image.size;
        if length as u64 > size - self.hasher.length() {
            return Err(SlotError::TooLong { announced: size });
        }
        self.hasher.update(&buffer[..length]);
        let done = self.hasher.length();
        if done - self.reported >= STEP || (done == size && self.reported < size) {
            self.reported = done;
            if !(self.progress)(done, size) {
                return Err(SlotError::Stopped);
            }
        }
        Ok(length)
    }
}

impl Read for ImageReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_none() {
            match self.next(buffer) {
                Ok(length) => return Ok(length),
                Err(failure) => self.failure = Some(failure),
            }
        }
        Err(io::Error::other("the image cannot be read"))
    }
}

/// Compares what a slot gives back with the image.
pub(super) fn compare(image: &Image, hasher: Hasher) -> Result<(), MismatchError> {
    let (length, hashes) = hasher.finish();
    announced(image).check(length, &hashes)
}

fn announced(image: &Image) -> TargetFile {
    TargetFile {
        length: image.size,
        hashes: Hashes {
            sha256: Some(image.sha256),
            sha512: Some(Box::new(image.sha512)),
            ..Hashes::default()
        },
        custom: None,
        extra: Default::default(),
    }
}
