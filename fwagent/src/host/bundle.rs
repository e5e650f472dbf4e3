//! The repository in an offline bundle, under the rules of every repository: an untrusted mirror.
//!
//! The bundle may be on a stick that is pulled, swapped or lies while it is read. So a payload is verified before anything
//! on the device changes, and again, chunk by chunk, while it is used (see [`fwbundle::Target`]).

use std::collections::BTreeMap;
use std::path::Path;

use fwbundle::{Bundle, BundleError, BundleMetadata, Target};
use fwmeta::client::Fetch;
use fwmeta::manifest::SemVer;
use fwmeta::target::{TargetFile, TargetPath};

use crate::failure::{Code, Failure, Outcome};
use crate::machine::plan::{Identity, Wish};
use crate::ports::{KnownTimestamp, PortError, PortErrorKind, Progress, Source, Transport};

/// Opens a bundle that somebody named.
///
/// # Errors
/// [`Failure`].
pub fn open(path: &Path) -> Outcome<Bundle> {
    Bundle::open(path).map_err(|error| {
        let refusal = error.is_refusal();
        let code = if refusal { Code::Refused } else { Code::Environment };
        Failure {
            code,
            error: format!("bundle {}: {}", path.display(), crate::drive::chain(&error)).into(),
            advice: refusal.then_some("make it anew with `fwsign bundle`, or copy it again"),
        }
    })
}

/// Lets a wish without a version mean the release that the bundle has: its metadata list others, too.
///
/// # Errors
/// [`Failure`] when the bundle has releases, and none of them is for this product.
pub fn narrow(wish: &mut Wish, bundle: &Bundle, identity: &Identity) -> Outcome<()> {
    let releases = bundle.index().releases();
    let ours = releases.iter().filter(|(product, _)| *product == identity.product);
    let mut versions = ours.filter_map(|(_, version)| SemVer::parse(version).ok());
    let first = versions.next();
    if let (None, Some((product, version))) = (&first, releases.first()) {
        return Err(Failure::new(
            Code::Refused,
            format!(
                "bundle {} is of {product} {version}, and this device is a {}",
                bundle.path().display(),
                identity.product
            ),
        ));
    }
    if wish.version.is_none() && versions.next().is_none() {
        wish.version = first;
    }
    Ok(())
}

/// The repository in a bundle.
#[derive(Debug)]
pub struct BundleRepository {
    bundle: Bundle,
    prepared: BTreeMap<TargetPath, Target>,
}

impl BundleRepository {
    /// The repository in `bundle`.
    pub fn new(bundle: Bundle) -> Self {
        Self {
            bundle,
            prepared: BTreeMap::new(),
        }
    }

    fn verify(
        &self,
        path: &TargetPath,
        file: &TargetFile,
        prefixed: bool,
        progress: Progress<'_>,
    ) -> Result<Target, PortError> {
        let verified = self.bundle.target(path, file, prefixed, progress);
        verified.map_err(|error| port_error(format!("target {path}"), error))
    }
}

/// The metadata of a bundle.
#[derive(Debug)]
pub struct BundleSource {
    metadata: BundleMetadata,
    known: Option<KnownTimestamp>,
    etag: Option<String>,
}

impl Fetch for BundleSource {
    type Error = PortError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, PortError> {
        let fetched = self.metadata.fetch(name, max_length);
        let fetched = fetched.map_err(|error| port_error(format!("metadata {name}"), error))?;
        if let (Some(bytes), Some(known)) = (&fetched, &self.known)
            && name == "timestamp.json"
            && *bytes == known.bytes
        {
            // What the server said of it holds.
            self.etag = Some(known.etag.clone());
        }
        Ok(fetched)
    }
}

impl Source for BundleSource {
    fn timestamp_etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }
}

impl Transport for BundleRepository {
    type Source = BundleSource;
    type Target = Target;

    fn metadata(&mut self, known: Option<KnownTimestamp>) -> Result<BundleSource, PortError> {
        Ok(BundleSource {
            metadata: self.bundle.metadata(),
            known,
            etag: None,
        })
    }

    fn prepare(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        progress: Progress<'_>,
    ) -> Result<(), PortError> {
        let target = self.verify(path, file, consistent_snapshot, progress)?;
        self.prepared.insert(path.clone(), target);
        Ok(())
    }

    fn target(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        progress: Progress<'_>,
    ) -> Result<Target, PortError> {
        match self.prepared.remove(path) {
            Some(target) if progress(file.length, file.length) => Ok(target),
            Some(_) => Err(port_error(format!("target {path}"), BundleError::Stopped)),
            None => self.verify(path, file, consistent_snapshot, progress),
        }
    }

    fn discard_targets(&mut self) -> Result<(), PortError> {
        self.prepared.clear();
        Ok(())
    }
}

fn port_error(attempt: String, error: BundleError) -> PortError {
    let kind = match &error {
        BundleError::Stopped => PortErrorKind::Stopped,
        error if error.is_refusal() => PortErrorKind::Refused,
        _ => PortErrorKind::Environment { retry_after: None },
    };
    PortError {
        attempt,
        kind,
        source: Some(Box::new(error)),
    }
}
