//! A bundle in a file, read where it lies: nothing is unpacked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fwmeta::client::Fetch;
use fwmeta::layout;
use fwmeta::target::{TargetFile, TargetPath};

use crate::header::BLOCK;
use crate::index::{Found, Index, Span, Walk};
use crate::target::Target;
use crate::{BundleError, FORMAT, METADATA, TARGETS};

/// A bundle whose headers have been read; cheap to clone. The file may change at any time, so that whatever is read out of
/// it is to be verified when it is read, metadata by `fwmeta` and targets by [`Target`].
#[derive(Debug, Clone)]
pub struct Bundle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: File,
    index: Index,
}

impl Bundle {
    /// Opens a bundle and reads its headers.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let failed = |source| BundleError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file");
            return Err(failed(source));
        }
        let mut walk = Walk::new(metadata.len());
        let read = |at: u64, buffer: &mut [u8]| match file.read_exact_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(BundleError::Malformed {
                at,
                reason: "it ends early",
            }),
            other => other.map_err(failed),
        };
        let zeros = |span: Span| {
            let mut buffer = [0; 2 * BLOCK];
            let buffer = &mut buffer[..span.length as usize];
            read(span.at, buffer)?;
            let clean = buffer.iter().all(|byte| *byte == 0);
            clean.then_some(()).ok_or(BundleError::Malformed {
                at: span.at,
                reason: "there is data between entries",
            })
        };
        loop {
            let (at, mut block) = (walk.at(), [0; BLOCK]);
            read(at, &mut block)?;
            match walk.take(&block)? {
                Found::Entry { contents, filler } => {
                    zeros(filler)?;
                    if at == 0 {
                        let mut text = vec![0; contents.length.min(64) as usize];
                        read(contents.at, &mut text)?;
                        if text != FORMAT {
                            let found = String::from_utf8_lossy(&text).trim_end().to_owned();
                            return Err(BundleError::Format { found });
                        }
                    }
                }
                Found::End => {
                    zeros(Span {
                        at,
                        length: 2 * BLOCK as u64,
                    })?;
                    break;
                }
            }
        }
        Ok(Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                index: walk.finish(),
                file,
            }),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What is in it.
    pub fn index(&self) -> &Index {
        &self.shared.index
    }

    /// Its metadata as a source for `fwmeta`'s client.
    pub fn metadata(&self) -> BundleMetadata {
        BundleMetadata(self.clone())
    }

    /// A target, read to its end and verified; what is read from it afterwards is what was verified, or an error. Told of
    /// each piece: bytes so far and in all; `false` asks to stop.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn target(
        &self,
        path: &TargetPath,
        file: &TargetFile,
        prefixed: bool,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Target, BundleError> {
        let name = target_name(path, file, prefixed);
        let Some(span) = self.index().get(&name) else {
            return Err(BundleError::MissingTarget { name });
        };
        Target::verify(self.clone(), name, span, file, progress)
    }

    pub(crate) fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.shared.file.read_exact_at(buffer, at)
    }

    pub(crate) fn failed(&self, source: io::Error) -> BundleError {
        BundleError::Io {
            path: self.shared.path.clone(),
            source,
        }
    }
}

/// Name of a target in a bundle: that of a repository's file.
pub(crate) fn target_name(path: &TargetPath, file: &TargetFile, prefixed: bool) -> String {
    let sha256 = file.hashes.sha256.as_ref().map(<[u8; 32]>::as_slice);
    let digest = sha256.or_else(|| file.hashes.sha512.as_ref().map(|digest| digest.as_slice()));
    format!("{TARGETS}{}", layout::target_file(path, digest.filter(|_| prefixed)))
}

/// The metadata of a bundle.
#[derive(Debug, Clone)]
pub struct BundleMetadata(Bundle);

impl Fetch for BundleMetadata {
    type Error = BundleError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, BundleError> {
        let bundle = &self.0;
        let Some(span) = bundle.index().get(&format!("{METADATA}{name}")) else {
            let wanted = name.strip_suffix(".root.json").and_then(|version| version.parse().ok());
            // "No newer root" only if that is so: otherwise the bundle hides one.
            return match (wanted, bundle.index().roots().last()) {
                (Some(wanted), Some(newest)) if *newest > wanted => Err(BundleError::MissingRoot {
                    wanted,
                    newest: *newest,
                }),
                _ => Ok(None),
            };
        };
        if span.length > max_length {
            return Err(BundleError::TooLong {
                name: name.to_owned(),
                length: span.length,
                limit: max_length,
            });
        }
        // Bounded by `max_length`.
        let mut bytes = vec![0; span.length as usize];
        bundle
            .read_at(span.at, &mut bytes)
            .map_err(|error| bundle.failed(error))?;
        Ok(Some(bytes))
    }
}
