//! Offline bundles: everything that a device fetches for one release, in one file that travels on a USB stick.
//!
//! A bundle is a tar archive (POSIX ustar), so that anybody can look into it and unpack it: its two directories are then a
//! repository as a server serves it. It is stricter than tar: one content has one sequence of bytes.
//!
//! ```text
//! fwbundle                                  "fwbundle 1\n": the format and its version
//! metadata/1.root.json … N.root.json        the whole chain, so that a device may start from any of them
//! metadata/timestamp.json, V.snapshot.json, V.targets.json, V.<role>.json      in the order of their names
//! targets/<product>/<version>/<digest>.manifest.json, then what the manifest names
//! 1024 zero bytes, and the end of the file
//! ```
//!
//! Every header is exactly what [`header`] writes: a plain file, mode 0644, owner 0, time 0; names are those of
//! [`fwmeta::layout`]. What it decides: whether a file has this form, and that what is read out of it as a target is the
//! one that verified metadata describe, at each reading. What it does not decide: whether metadata are right, which
//! release is installed, or anything that a server would not decide: a bundle is an untrusted mirror of a repository.

mod header;
mod index;
mod reader;
mod target;
mod writer;

#[cfg(test)]
mod tests;

pub use header::{BLOCK, Entry, SIZE_MAX, entry, header};
pub use index::{Index, Span, Walk};
pub use reader::{Bundle, BundleMetadata};
pub use target::Target;
pub use writer::Writer;

use std::io;
use std::path::PathBuf;

use fwmeta::target::MismatchError;

/// Name of the first entry.
pub const FORMAT_NAME: &str = "fwbundle";
/// Contents of the first entry.
pub const FORMAT: &[u8] = b"fwbundle 1\n";
/// Directory of metadata.
pub const METADATA: &str = "metadata/";
/// Directory of targets.
pub const TARGETS: &str = "targets/";
/// Most entries of a bundle: every root that a device can be behind, and far more roles and targets than a release needs.
/// Bounds the memory of the index.
pub const ENTRIES: usize = 2048;

/// Why a bundle was refused, could not be read, or could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The file cannot be opened or read.
    #[error("bundle {}", path.display())]
    Io {
        /// The bundle.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// Not a bundle, or one that is damaged.
    #[error("not an acceptable bundle, at byte {at}: {reason}")]
    Malformed {
        /// Bytes before the fault.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A name is there twice: which of them counts would depend on the reader.
    #[error("the bundle has {name} twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More than [`ENTRIES`] entries.
    #[error("the bundle has more than {ENTRIES} entries")]
    TooManyEntries,
    /// A version of the format that is not known here.
    #[error("the bundle says of itself {found:?}, and only {:?} is known here", String::from_utf8_lossy(FORMAT).trim_end())]
    Format {
        /// What it says, cut.
        found: String,
    },
    /// A root between that of the device and the newest one of the bundle is not there.
    #[error(
        "the bundle lacks root version {wanted}, which leads from the root that is trusted here to the version \
         {newest} that it has"
    )]
    MissingRoot {
        /// The version that is needed next.
        wanted: u64,
        /// The newest version in the bundle.
        newest: u64,
    },
    /// An object is longer than allowed.
    #[error("{name} has {length} bytes in the bundle, more than the {limit} allowed")]
    TooLong {
        /// Its name.
        name: String,
        /// Its length.
        length: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The bundle does not have a target.
    #[error("the bundle has no {name}")]
    MissingTarget {
        /// Its name in the bundle.
        name: String,
    },
    /// A target is not the one that metadata describe.
    #[error("{name} in the bundle is not the target that metadata describe")]
    WrongTarget {
        /// Its name in the bundle.
        name: String,
        /// The difference.
        source: MismatchError,
    },
    /// A name or a size that a header cannot hold.
    #[error("{name:?} cannot go into a bundle: {reason}")]
    Unwritable {
        /// The name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl BundleError {
    /// Whether the content was judged, as opposed to not readable now.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Stopped)
    }
}
