//! The envelope `{"signatures": […], "signed": {…}}` of TUF metadata (1.0.34 §4.2.1).
//!
//! Received bytes are parsed once; what was signed is the canonical form of the received `signed` object, whatever it
//! contains, so unknown fields are covered by the signature and never lost.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::json::{Doc, JsonError, Node, Value, object};
use crate::key::{KeyId, SignError, Signer};
use crate::{canonical, hex, limits};

/// One entry of `signatures`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key that is said to have signed.
    pub keyid: KeyId,
    /// The signature; empty when its text was not hexadecimal, which verifies nothing.
    pub bytes: Vec<u8>,
}

/// A parsed metadata file, its signatures not yet checked.
#[derive(Debug)]
pub struct Envelope<'a> {
    doc: Doc<'a>,
    signatures: Vec<Signature>,
}

/// The bytes are not a metadata envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Not JSON as [`crate::json`] accepts it.
    #[error("not acceptable JSON")]
    Json(#[from] JsonError),
    /// A field is missing or has the wrong type.
    #[error("field {field} is missing or malformed")]
    Field {
        /// Path of the field.
        field: &'static str,
    },
    /// Two signatures name one key id: which of them counts would depend on the reader.
    #[error("key id {keyid} signs twice")]
    RepeatedKeyId {
        /// The repeated key id.
        keyid: KeyId,
    },
    /// More than [`limits::SIGNATURES`] signatures.
    #[error("more than {} signatures", limits::SIGNATURES)]
    TooManySignatures,
}

impl<'a> Envelope<'a> {
    /// Parses a metadata file.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let doc = Doc::parse(bytes)?;
        let signatures = read_signatures(doc.root())?;
        if !doc.root().get("signed").is_some_and(Node::is_object) {
            return Err(EnvelopeError::Field { field: "signed" });
        }
        Ok(Self { doc, signatures })
    }

    /// The object that the signatures cover.
    pub fn signed(&self) -> Node<'_> {
        // `parse` has checked that it is there.
        self.doc.root().get("signed").unwrap_or(self.doc.root())
    }

    /// The signatures in the order of the file, no key id twice.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The bytes that the signatures cover.
    ///
    /// # Errors
    /// [`EnvelopeError::Json`] when the object has no canonical form.
    pub fn message(&self) -> Result<Cow<'_, [u8]>, EnvelopeError> {
        Ok(canonical::encode_node(self.signed())?)
    }
}

fn read_signatures(envelope: Node<'_>) -> Result<Vec<Signature>, EnvelopeError> {
    let list = envelope.get("signatures").filter(|node| node.is_array());
    let list = list.ok_or(EnvelopeError::Field { field: "signatures" })?;
    let mut seen = BTreeSet::new();
    let mut signatures = Vec::new();
    for entry in list.items() {
        if signatures.len() >= limits::SIGNATURES {
            return Err(EnvelopeError::TooManySignatures);
        }
        let text = |field| entry.get(field).and_then(Node::as_str);
        let keyid = text("keyid").ok_or(EnvelopeError::Field {
            field: "signatures.keyid",
        })?;
        let sig = text("sig").ok_or(EnvelopeError::Field {
            field: "signatures.sig",
        })?;
        let keyid = KeyId::new(keyid);
        if !seen.insert(keyid.clone()) {
            return Err(EnvelopeError::RepeatedKeyId { keyid });
        }
        signatures.push(Signature {
            keyid,
            bytes: hex::decode(&sig).unwrap_or_default(),
        });
    }
    Ok(signatures)
}

/// Signs a `signed` object with every signer and writes the whole file: compact JSON, signatures ordered by key id, so
/// that the same object and keys give the same bytes (for deterministic schemes). One key given twice signs once.
///
/// # Errors
/// [`SignError`] from the first signer that fails.
pub fn sign(signed: &Value, signers: &[&dyn Signer]) -> Result<Vec<u8>, SignError> {
    let message = canonical::encode(signed);
    let mut signatures = Vec::new();
    for signer in signers {
        let keyid = signer.public().id();
        if signatures.iter().any(|(other, _)| *other == keyid) {
            continue;
        }
        let signature = signer.sign(&message)?;
        signatures.push((keyid, signature));
    }
    Ok(write(signed, signatures))
}

/// Adds a signature to a file, replacing one by the same key id. The `signed` object keeps its canonical form.
///
/// # Errors
/// [`AddSignatureError`] when the file is no envelope or the signer fails.
pub fn add_signature(envelope: &[u8], signer: &dyn Signer) -> Result<Vec<u8>, AddSignatureError> {
    let envelope = Envelope::parse(envelope)?;
    let keyid = signer.public().id();
    let signature = signer.sign(&envelope.message()?)?;
    let mut signatures: Vec<_> = envelope
        .signatures
        .iter()
        .filter(|other| other.keyid != keyid)
        .map(|other| (other.keyid.clone(), other.bytes.clone()))
        .collect();
    signatures.push((keyid, signature));
    Ok(write(
        &envelope.signed().to_value().map_err(EnvelopeError::Json)?,
        signatures,
    ))
}

/// Why a signature could not be added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddSignatureError {
    /// The file is no envelope.
    #[error("cannot add a signature")]
    Envelope(#[from] EnvelopeError),
    /// The signer failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

fn write(signed: &Value, mut signatures: Vec<(KeyId, Vec<u8>)>) -> Vec<u8> {
    signatures.sort();
    let signatures = signatures
        .into_iter()
        .map(|(keyid, bytes)| object([("keyid", keyid.as_str().into()), ("sig", hex::encode(&bytes).into())]))
        .collect::<Vec<_>>();
    object([("signatures", signatures.into()), ("signed", signed.clone())])
        .to_json()
        .into_bytes()
}
