//! Writes a bundle, entry by entry.

use std::io::{self, Read, Write};

use crate::header::{BLOCK, header};
use crate::{BundleError, FORMAT, FORMAT_NAME};

/// A bundle in the making. The caller keeps the order of the format; [`crate::Bundle::open`] checks it.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// Begins a bundle.
    ///
    /// # Errors
    /// The error of `output`.
    pub fn new(output: W) -> io::Result<Self> {
        let mut writer = Self { output };
        writer.add(FORMAT_NAME, FORMAT.len() as u64, &mut &*FORMAT)?;
        Ok(writer)
    }

    /// Adds an entry of `size` bytes.
    ///
    /// # Errors
    /// The error of `contents` or of the output; [`io::ErrorKind::InvalidInput`] around [`BundleError::Unwritable`];
    /// [`io::ErrorKind::UnexpectedEof`] when `contents` is not of that size.
    pub fn add(&mut self, name: &str, size: u64, contents: &mut dyn Read) -> io::Result<()> {
        let invalid = |error: BundleError| io::Error::new(io::ErrorKind::InvalidInput, error);
        self.output.write_all(&header(name, size).map_err(invalid)?)?;
        let copied = io::copy(&mut contents.take(size.saturating_add(1)), &mut self.output)?;
        if copied != size {
            let message = format!("{name} has not the {size} bytes expected");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let filler = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.output.write_all(&[0; BLOCK][..filler as usize])
    }

    /// Ends the bundle and gives the output back.
    ///
    /// # Errors
    /// The error of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }
}
