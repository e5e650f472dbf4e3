//! Where things lie in a bundle: a walk from header to header, each judged before the next is read. Pure; who walks reads.

use std::collections::BTreeMap;

use fwmeta::target::TargetPath;

use crate::header::{BLOCK, entry};
use crate::{BundleError, ENTRIES, FORMAT_NAME, METADATA, TARGETS};

/// Where the contents of an entry lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Bytes before it.
    pub at: u64,
    /// Its length.
    pub length: u64,
}

/// All entries of a bundle.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<String, Span>,
}

impl Index {
    /// The place of an entry.
    pub fn get(&self, name: &str) -> Option<Span> {
        self.entries.get(name).copied()
    }

    /// All entries, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Span)> {
        self.entries.iter().map(|(name, span)| (name.as_str(), *span))
    }

    /// Versions of root metadata, ascending.
    pub fn roots(&self) -> Vec<u64> {
        let names = self.entries.keys().filter_map(|name| name.strip_prefix(METADATA));
        let version = |name: &str| name.strip_suffix(".root.json")?.parse().ok();
        let mut versions: Vec<u64> = names.filter_map(version).collect();
        versions.sort_unstable();
        versions
    }

    /// Products and versions of the releases whose manifests are in the bundle, by the names of these: what a device may
    /// look for, nothing that it believes.
    pub fn releases(&self) -> Vec<(String, String)> {
        let names = self.entries.keys().filter_map(|name| name.strip_prefix(TARGETS));
        let release = |name: &str| {
            let parts: Vec<&str> = name.split('/').collect();
            let [product, version, file] = parts[..] else {
                return None;
            };
            let manifest = file == "manifest.json" || file.ends_with(".manifest.json");
            manifest.then(|| (product.to_owned(), version.to_owned()))
        };
        names.filter_map(release).collect()
    }
}

/// A walk over the headers of a bundle.
#[derive(Debug)]
pub struct Walk {
    length: u64,
    at: u64,
    index: Index,
    section: Section,
}

/// What has been read; an earlier one does not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Start,
    Format,
    Metadata,
    Targets,
}

/// What was found at the place of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// An entry, and the zero bytes after it that must be there.
    Entry {
        /// Its contents.
        contents: Span,
        /// What fills the last block up.
        filler: Span,
    },
    /// The end.
    End,
}

impl Walk {
    /// A walk over a file of this length.
    pub fn new(length: u64) -> Self {
        Self {
            length,
            at: 0,
            index: Index::default(),
            section: Section::Start,
        }
    }

    /// Where the next header lies.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Takes the header that lies there.
    pub(crate) fn take(&mut self, block: &[u8; BLOCK]) -> Result<Found, BundleError> {
        let at = self.at;
        let malformed = |reason| BundleError::Malformed { at, reason };
        if block.iter().all(|byte| *byte == 0) {
            return match self.length - at {
                _ if self.section == Section::Start => Err(malformed("it is empty")),
                1024 => Ok(Found::End),
                0..1024 => Err(malformed("it ends early")),
                _ => Err(malformed("there is data after the end")),
            };
        }
        let entry = entry(block).map_err(malformed)?;
        let section = section(&entry.name).ok_or_else(|| malformed("a name is not one of a bundle"))?;
        let follows = match self.section {
            Section::Start => section == Section::Format,
            _ => section != Section::Format && section >= self.section,
        };
        if !follows {
            return Err(malformed("an entry is out of order"));
        }
        self.section = section;
        if self.index.entries.len() >= ENTRIES {
            return Err(BundleError::TooManyEntries);
        }
        let contents = Span {
            at: at + BLOCK as u64,
            length: entry.size,
        };
        let end = contents.at + entry.size;
        let filler = Span {
            at: end,
            length: (BLOCK as u64 - end % BLOCK as u64) % BLOCK as u64,
        };
        self.at = filler.at + filler.length;
        if self.at > self.length {
            return Err(malformed("it ends early"));
        }
        if self.index.entries.contains_key(&entry.name) {
            return Err(BundleError::Duplicate { name: entry.name });
        }
        self.index.entries.insert(entry.name, contents);
        Ok(Found::Entry { contents, filler })
    }

    /// What the walk has found.
    pub fn finish(self) -> Index {
        self.index
    }
}

fn section(name: &str) -> Option<Section> {
    if name == FORMAT_NAME {
        return Some(Section::Format);
    }
    if let Some(name) = name.strip_prefix(METADATA) {
        let plain = name.ends_with(".json") && !name.contains('/') && !name.starts_with('.');
        return plain.then_some(Section::Metadata);
    }
    TargetPath::parse(name.strip_prefix(TARGETS)?).ok()?;
    Some(Section::Targets)
}
