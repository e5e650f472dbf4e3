//! Public keys, key ids and the check of one signature; the trait by which others sign. No private key type lives here.
//!
//! Schemes (TUF 1.0.34 §4.2.1): `ed25519`, `ecdsa-sha2-nistp256`, `rsassa-pss-sha256`; also `rsa-pkcs1v15-sha256`, which
//! hardware that cannot do PSS writes and the public conformance suite generates. A key of another type or scheme,
//! or one whose public value cannot be read, is kept as it was received and verifies nothing: metadata may name keys
//! that a device does not understand, as long as enough understood ones have signed.

use std::collections::BTreeMap;
use std::fmt;

use p256::ecdsa::signature::Verifier as _;
use p256::pkcs8::DecodePublicKey as _;
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::traits::PublicKeyParts as _;
use sha2::{Digest, Sha256};

use crate::json::{Value, object};
use crate::{canonical, hex};

/// Fewest bits of an RSA modulus that count as secure (NIST SP 800-131A).
const RSA_MIN_BITS: u32 = 2048;
/// Most bits of an RSA modulus: bounds the time of one check.
const RSA_MAX_BITS: u32 = 8192;

/// Names a key within metadata. Ours are the hexadecimal SHA-256 of the canonical key object; others may be any text
/// (TUF 1.0.34 §4.2.1), so a key id proves nothing about the key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// A key id as it stands in metadata.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for KeyId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key as it stands in metadata, ready to verify if its scheme is known.
#[derive(Debug, Clone)]
pub struct PublicKey {
    value: Value,
    verifier: Verifier,
}

#[derive(Debug, Clone)]
enum Verifier {
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
    EcdsaP256(Box<p256::ecdsa::VerifyingKey>),
    RsaPss(Box<rsa::PublicKey>),
    RsaPkcs1(Box<rsa::PublicKey>),
    /// A type or scheme that is not known here, or a public value that cannot be read.
    Unusable,
}

/// A public key could not be read from its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key object lacks a field, or a field has the wrong type.
    #[error("key: field {field} is missing or not text")]
    Field {
        /// Name of the field.
        field: &'static str,
    },
    /// Not a usable public key of the named scheme.
    #[error("not a {scheme} public key")]
    Unreadable {
        /// The scheme asked for.
        scheme: &'static str,
    },
}

/// Signing failed.
#[derive(Debug, thiserror::Error)]
#[error("signing with key {keyid} failed: {reason}")]
pub struct SignError {
    /// The key that was to sign.
    pub keyid: KeyId,
    /// Why, without secrets.
    pub reason: String,
}

/// Something that holds a private key and signs with it: a file, a hardware token, a remote service.
pub trait Signer {
    /// The public key that verifies what [`sign`](Self::sign) makes.
    fn public(&self) -> &PublicKey;

    /// Signs `message`. The signature is as metadata carry it: 64 bytes for ed25519, DER for ECDSA.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

impl PublicKey {
    /// An ed25519 key from its 32 bytes.
    pub fn ed25519(public: [u8; 32]) -> Self {
        Self::build("ed25519", "ed25519", &hex::encode(&public))
    }

    /// An ECDSA key on P-256 from a PEM `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`].
    pub fn ecdsa_p256_pem(pem: &str) -> Result<Self, KeyError> {
        let key = Self::build("ecdsa", "ecdsa-sha2-nistp256", pem);
        if key.is_usable() {
            Ok(key)
        } else {
            Err(KeyError::Unreadable {
                scheme: "ecdsa-sha2-nistp256",
            })
        }
    }

    fn build(keytype: &str, scheme: &str, public: &str) -> Self {
        let value = object([
            ("keytype", keytype.into()),
            ("scheme", scheme.into()),
            ("keyval", object([("public", public.into())])),
        ]);
        Self {
            verifier: Verifier::read(keytype, scheme, public),
            value,
        }
    }

    /// A key object of metadata: `{keytype, scheme, keyval: {public}}`, other fields kept.
    ///
    /// # Errors
    /// [`KeyError::Field`]. An unknown type or an unreadable public value is not an error (see the module).
    pub fn from_value(value: Value) -> Result<Self, KeyError> {
        let text = |field| {
            value
                .get(field)
                .and_then(Value::as_str)
                .ok_or(KeyError::Field { field })
        };
        let (keytype, scheme) = (text("keytype")?, text("scheme")?);
        let keyval = value.get("keyval").filter(|keyval| keyval.as_object().is_some());
        let keyval = keyval.ok_or(KeyError::Field { field: "keyval" })?;
        let verifier = match keyval.get("public").and_then(Value::as_str) {
            Some(public) => Verifier::read(keytype, scheme, public),
            None => Verifier::Unusable,
        };
        Ok(Self { verifier, value })
    }

    /// The key object as received.
    pub fn to_value(&self) -> Value {
        self.value.clone()
    }

    /// The hexadecimal SHA-256 of the canonical key object: the id under which our tools list the key.
    pub fn id(&self) -> KeyId {
        KeyId(hex::encode(&Sha256::digest(canonical::encode(&self.value))))
    }

    /// `keytype` as received.
    pub fn keytype(&self) -> &str {
        self.value.get("keytype").and_then(Value::as_str).unwrap_or_default()
    }

    /// `scheme` as received.
    pub fn scheme(&self) -> &str {
        self.value.get("scheme").and_then(Value::as_str).unwrap_or_default()
    }

    /// The public value as received: hexadecimal for ed25519, PEM for the others.
    pub fn public(&self) -> &str {
        self.value
            .get("keyval")
            .and_then(|keyval| keyval.get("public"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Whether the scheme is known and the public value could be read.
    pub fn is_usable(&self) -> bool {
        !matches!(self.verifier, Verifier::Unusable)
    }

    /// Whether both are the same usable key, however their texts and ids differ.
    pub fn same_key(&self, other: &Self) -> bool {
        match (&self.verifier, &other.verifier) {
            (Verifier::Ed25519(a), Verifier::Ed25519(b)) => a == b,
            (Verifier::EcdsaP256(a), Verifier::EcdsaP256(b)) => a == b,
            // One key under two schemes is still one key.
            (Verifier::RsaPss(a) | Verifier::RsaPkcs1(a), Verifier::RsaPss(b) | Verifier::RsaPkcs1(b)) => a == b,
            _ => false,
        }
    }

    /// Whether `signature` is this key's over `message`. An unusable key verifies nothing.
    ///
    /// ed25519 is checked strictly (no small-order points), ECDSA signatures are DER, RSA-PSS takes any salt length
    /// as the reference implementation does.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.verifier {
            Verifier::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Verifier::EcdsaP256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Verifier::RsaPss(key) => rsa::pss::Signature::try_from(signature).is_ok_and(|signature| {
                rsa::pss::VerifyingKey::<rsa::sha2::Sha256>::new_with_auto_salt_len(key.as_ref().clone())
                    .verify(message, &signature)
                    .is_ok()
            }),
            Verifier::RsaPkcs1(key) => rsa::pkcs1v15::Signature::try_from(signature).is_ok_and(|signature| {
                rsa::pkcs1v15::VerifyingKey::<rsa::sha2::Sha256>::new(key.as_ref().clone())
                    .verify(message, &signature)
                    .is_ok()
            }),
            Verifier::Unusable => false,
        }
    }
}

impl Verifier {
    fn read(keytype: &str, scheme: &str, public: &str) -> Self {
        let verifier = match (keytype, scheme) {
            ("ed25519", "ed25519") => hex::decode_array(public)
                .and_then(|bytes| ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok())
                .map(|key| Self::Ed25519(Box::new(key))),
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                p256::ecdsa::VerifyingKey::from_public_key_pem(public)
                    .ok()
                    .map(|key| Self::EcdsaP256(Box::new(key)))
            }
            ("rsa", "rsassa-pss-sha256") => rsa_from_pem(public).map(|key| Self::RsaPss(Box::new(key))),
            ("rsa", "rsa-pkcs1v15-sha256") => rsa_from_pem(public).map(|key| Self::RsaPkcs1(Box::new(key))),
            _ => None,
        };
        verifier.unwrap_or(Self::Unusable)
    }
}

fn rsa_from_pem(pem: &str) -> Option<rsa::PublicKey> {
    let key = rsa::PublicKey::from_public_key_pem(pem)
        .or_else(|_| rsa::PublicKey::from_pkcs1_pem(pem))
        .ok()?;
    (RSA_MIN_BITS..=RSA_MAX_BITS)
        .contains(&key.n().bit_width())
        .then_some(key)
}

/// The keys of a `keys` object, by id.
pub(crate) fn keys_to_value(keys: &BTreeMap<KeyId, PublicKey>) -> Value {
    Value::Object(
        keys.iter()
            .map(|(keyid, key)| (keyid.0.clone(), key.to_value()))
            .collect(),
    )
}
