//! The repository over HTTP: metadata and targets below two base URLs; fetched targets wait in a directory until they
//! are in their slots, so that an interrupted installation downloads nothing twice.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};

use fwmeta::client::Fetch;
use fwmeta::layout;
use fwmeta::target::{TargetFile, TargetPath};

use crate::host::http::{Http, HttpError, Known, MetadataSource};
use crate::ports::{KnownTimestamp, PortError, PortErrorKind, Progress, Source, Transport};
use crate::tuf::target_object;

/// A repository.
#[derive(Debug)]
pub struct HttpRepository {
    http: Http,
    metadata_url: String,
    targets_url: String,
    downloads: PathBuf,
}

impl HttpRepository {
    /// A repository whose fetched targets wait in `downloads`.
    pub fn new(http: Http, metadata_url: &str, targets_url: &str, downloads: &Path) -> Self {
        Self {
            http,
            metadata_url: metadata_url.to_owned(),
            targets_url: targets_url.trim_end_matches('/').to_owned(),
            downloads: downloads.to_owned(),
        }
    }
}

/// [`MetadataSource`] whose failures say what the driver may do.
#[derive(Debug)]
pub struct HttpMetadata(MetadataSource);

impl Fetch for HttpMetadata {
    type Error = PortError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, PortError> {
        self.0
            .fetch(name, max_length)
            .map_err(|error| port_error(format!("metadata {name}"), error))
    }
}

impl Source for HttpMetadata {
    fn timestamp_etag(&self) -> Option<&str> {
        self.0.timestamp_etag()
    }
}

impl Transport for HttpRepository {
    type Source = HttpMetadata;
    type Target = File;

    fn metadata(&mut self, known: Option<KnownTimestamp>) -> Result<HttpMetadata, PortError> {
        let known = known.map(|known| Known {
            name: "timestamp.json".to_owned(),
            etag: known.etag,
            bytes: known.bytes,
        });
        Ok(HttpMetadata(MetadataSource::new(
            self.http.clone(),
            &self.metadata_url,
            known,
        )))
    }

    fn target(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        progress: Progress<'_>,
    ) -> Result<File, PortError> {
        let attempt = format!("target {path}");
        let io_error = |error: std::io::Error| PortError::environment(attempt.clone(), Some(error.into()));
        fwdurable::create_dir_all(&self.downloads).map_err(io_error)?;
        let url = format!(
            "{}/{}",
            self.targets_url,
            target_object(path, file, consistent_snapshot)
        );
        let local = self.downloads.join(local_name(path, file));
        self.http
            .download(&url, file, &local, progress)
            .map_err(|error| port_error(attempt.clone(), error))?;
        File::open(&local).map_err(io_error)
    }

    fn discard_targets(&mut self) -> Result<(), PortError> {
        fwdurable::remove_tree(&self.downloads).map_err(|error| {
            PortError::environment(format!("removing {}", self.downloads.display()), Some(error.into()))
        })
    }
}

/// The digest keeps files of one path and different releases apart; the path is cut so that the name stays legal.
fn local_name(path: &TargetPath, file: &TargetFile) -> String {
    let digest = file.hashes.names().into_iter().next().unwrap_or_default();
    let name: String = layout::escape(path.as_str(), false).chars().take(100).collect();
    format!("{}.{name}", &digest[..digest.len().min(32)])
}

fn port_error(attempt: String, error: HttpError) -> PortError {
    let kind = match &error {
        HttpError::Stopped => PortErrorKind::Stopped,
        // Bytes that are not what metadata say may be the fault of one mirror or of a broken line, so that trying again
        // later may help; the metadata themselves were accepted.
        error => PortErrorKind::Environment {
            retry_after: error.retry_after(),
        },
    };
    PortError {
        attempt,
        kind,
        source: Some(Box::new(error) as Box<dyn Error + Send + Sync>),
    }
}
