//! The repository of a device: a server, or a bundle.

use std::io::Read;

use fwmeta::client::Fetch;
use fwmeta::target::{TargetFile, TargetPath};

use crate::host::bundle::{BundleRepository, BundleSource};
use crate::host::repository::{HttpMetadata, HttpRepository};
use crate::ports::{KnownTimestamp, PortError, Progress, Source, Transport};

/// A repository.
#[derive(Debug)]
pub enum HostTransport {
    /// On a server.
    Http(HttpRepository),
    /// In a file.
    Bundle(BundleRepository),
}

/// Its metadata.
#[derive(Debug)]
pub enum HostSource {
    /// On a server.
    Http(HttpMetadata),
    /// In a file.
    Bundle(BundleSource),
}

impl Fetch for HostSource {
    type Error = PortError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, PortError> {
        match self {
            Self::Http(source) => source.fetch(name, max_length),
            Self::Bundle(source) => source.fetch(name, max_length),
        }
    }
}

impl Source for HostSource {
    fn timestamp_etag(&self) -> Option<&str> {
        match self {
            Self::Http(source) => source.timestamp_etag(),
            Self::Bundle(source) => source.timestamp_etag(),
        }
    }
}

impl Transport for HostTransport {
    type Source = HostSource;
    type Target = Box<dyn Read>;

    fn metadata(&mut self, known: Option<KnownTimestamp>) -> Result<HostSource, PortError> {
        match self {
            Self::Http(repository) => repository.metadata(known).map(HostSource::Http),
            Self::Bundle(repository) => repository.metadata(known).map(HostSource::Bundle),
        }
    }

    fn prepare(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        progress: Progress<'_>,
    ) -> Result<(), PortError> {
        match self {
            Self::Http(repository) => repository.prepare(path, file, consistent_snapshot, progress),
            Self::Bundle(repository) => repository.prepare(path, file, consistent_snapshot, progress),
        }
    }

    fn target(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        progress: Progress<'_>,
    ) -> Result<Box<dyn Read>, PortError> {
        Ok(match self {
            Self::Http(repository) => Box::new(repository.target(path, file, consistent_snapshot, progress)?),
            Self::Bundle(repository) => Box::new(repository.target(path, file, consistent_snapshot, progress)?),
        })
    }

    fn discard_targets(&mut self) -> Result<(), PortError> {
        match self {
            Self::Http(repository) => repository.discard_targets(),
            Self::Bundle(repository) => repository.discard_targets(),
        }
    }
}
