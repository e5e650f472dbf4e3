//! TLS from PEM files: rustls with ring, TLS 1.2 and 1.3, HTTP/2 by ALPN.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A PEM file is unreadable or does not hold what it should.
    #[error("{what} in {path}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("certificate {path}")]
    Unusable {
        /// The certificate file.
        path: String,
        /// Why.
        source: rustls::Error,
    },
}

pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let pem = |what, path: &Path| {
        let path = path.display().to_string();
        move |source| TlsError::Pem { what, path, source }
    };
    let failed = |path: &Path| pem("no certificate", path);
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.certificates)
        .map_err(failed(&files.certificates))?
        .collect::<Result<_, _>>()
        .map_err(failed(&files.certificates))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(pem("no private key", &files.key))?;
    let unusable = |source| TlsError::Unusable {
        path: files.certificates.display().to_string(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    // A device that polls resumes its session instead of paying for a handshake; the keys live in memory only.
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
