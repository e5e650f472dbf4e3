//! Private key files: PKCS#8 in PEM, encrypted unless asked otherwise.
//!
//! Written as PKCS#8 version 1 (48 bytes for ed25519), because OpenSSL 3.0 and Python's `cryptography` refuse version 2;
//! encrypted with PBES2: PBKDF2-HMAC-SHA256, 600,000 rounds, AES-256-CBC, which both read. Either version, and any PBES2
//! that the library knows, is read; few rounds give a warning.

use std::io;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use pkcs8::der::pem::PemLabel;
use pkcs8::der::{Decode, Encode};
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::{Kdf, Parameters};
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

use crate::bounded;

/// Rounds of PBKDF2 that we write (OWASP 2023 for HMAC-SHA256).
const ROUNDS: u32 = 600_000;
/// Fewer rounds than this give a warning.
const ROUNDS_WEAK: u32 = 100_000;
/// More rounds than this are refused: they would take seconds to minutes for each key.
const ROUNDS_MAX: u32 = 8_000_000;
/// Memory that scrypt may take, in bytes, all its parts together (128 N r p): they are done one after the other, so it bounds
/// the time too.
const SCRYPT_BYTES: u64 = 1 << 30;
/// Longest key file that is read, in bytes.
const FILE_BYTES: u16 = 32 * 1024;
/// PKCS#8 version 1 around an ed25519 seed (RFC 8410 §7): everything before its 32 bytes.
const V1_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// `SubjectPublicKeyInfo` of ed25519: everything before the 32 bytes of the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file system failed.
    #[error("key file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// Not a private key in PEM.
    #[error("key file {} is not a PKCS#8 private key in PEM", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// A private key, but not ed25519.
    #[error("key file {} holds a key that is not ed25519", path.display())]
    NotEd25519 {
        /// The file.
        path: PathBuf,
    },
    /// The file is encrypted and there is no passphrase.
    #[error("key file {} is encrypted and no passphrase was given", path.display())]
    NeedsPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// It does not decrypt.
    #[error("key file {} does not decrypt: wrong passphrase or damaged file", path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// Decrypting would take too long or too much memory.
    #[error("key file {} asks for {cost} to derive its key, more than allowed", path.display())]
    TooExpensive {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        cost: String,
    },
    /// It could not be encoded.
    #[error("encoding a private key failed")]
    Encoding,
}

/// A key that was read, and what its reader should know.
#[derive(Debug)]
pub struct Loaded {
    /// The key.
    pub key: SigningKey,
    /// A weakness of the file.
    pub warning: Option<String>,
}

/// Makes a new key from the system's random source.
///
/// # Errors
/// [`KeyFileError::Encoding`] when the system gives no randomness.
pub fn generate() -> Result<SigningKey, KeyFileError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|_| KeyFileError::Encoding)?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The private key in PEM, encrypted when there is a passphrase.
///
/// # Errors
/// [`KeyFileError::Encoding`].
pub fn to_pem(key: &SigningKey, passphrase: Option<&str>) -> Result<Zeroizing<String>, KeyFileError> {
    encode(key, passphrase).ok_or(KeyFileError::Encoding)
}

fn encode(key: &SigningKey, passphrase: Option<&str>) -> Option<Zeroizing<String>> {
    let seed = Zeroizing::new(key.to_bytes());
    let der = Zeroizing::new([&V1_PREFIX[..], &seed[..]].concat());
    let Some(passphrase) = passphrase else {
        let document = SecretDocument::try_from(&der[..]).ok()?;
        return document.to_pem(PrivateKeyInfoRef::PEM_LABEL, LineEnding::LF).ok();
    };
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt).ok()?;
    getrandom::fill(&mut iv).ok()?;
    let parameters = Parameters::generate_pbkdf2_sha256_aes256cbc(ROUNDS, &salt, iv).ok()?;
    let info = PrivateKeyInfoRef::from_der(&der).ok()?;
    let encrypted = info.encrypt_with_params(parameters, passphrase).ok()?;
    encrypted
        .to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)
        .ok()
}

/// The public key as PEM `SubjectPublicKeyInfo`.
pub fn public_pem(key: &SigningKey) -> String {
    let der = [&SPKI_PREFIX[..], key.verifying_key().as_bytes()].concat();
    // 44 bytes are one line of base64.
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        base64(&der)
    )
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Reads a private key. `passphrase` is asked only for an encrypted file; `None` from it means that there is none.
///
/// # Errors
/// [`KeyFileError`], or the error of `passphrase`.
pub fn load<E: From<KeyFileError>>(
    path: &Path,
    passphrase: impl FnOnce() -> Result<Option<Zeroizing<String>>, E>,
) -> Result<Loaded, E> {
    parse(&read(path)?, path, passphrase)
}

/// Reads the text of a key file that lies at `path`, as [`load`] does.
///
/// # Errors
/// [`KeyFileError`], or the error of `passphrase`.
pub fn parse<E: From<KeyFileError>>(
    text: &str,
    path: &Path,
    passphrase: impl FnOnce() -> Result<Option<Zeroizing<String>>, E>,
) -> Result<Loaded, E> {
    let not_a_key = || KeyFileError::NotAKey { path: path.to_owned() };
    let (label, document) = SecretDocument::from_pem(text).map_err(|_| not_a_key())?;
    let (document, warning) = match label {
        label if label == PrivateKeyInfoRef::PEM_LABEL => (document, None),
        label if label == EncryptedPrivateKeyInfoRef::PEM_LABEL => {
            let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| not_a_key())?;
            check_cost(path, &encrypted.encryption_algorithm)?;
            let passphrase = passphrase()?.ok_or_else(|| KeyFileError::NeedsPassphrase { path: path.to_owned() })?;
            let wrong = |_| KeyFileError::WrongPassphrase { path: path.to_owned() };
            let warning = weakness(path, &encrypted.encryption_algorithm);
            (encrypted.decrypt(passphrase.as_bytes()).map_err(wrong)?, warning)
        }
        _ => return Err(not_a_key().into()),
    };
    let info = PrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| not_a_key())?;
    if info.to_der().is_err() || info.algorithm.oid.to_string() != "1.3.101.112" {
        return Err(KeyFileError::NotEd25519 { path: path.to_owned() }.into());
    }
    let key = SigningKey::from_pkcs8_der(document.as_bytes()).map_err(|_| not_a_key())?;
    Ok(Loaded { key, warning })
}

fn read(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let refused = |kind| matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge);
    bounded::read_secret(path, FILE_BYTES).map_err(|source| {
        let path = path.to_owned();
        if refused(source.kind()) {
            KeyFileError::NotAKey { path }
        } else {
            KeyFileError::Io { path, source }
        }
    })
}

fn check_cost(path: &Path, scheme: &EncryptionScheme) -> Result<(), KeyFileError> {
    let kdf = scheme.pbes2().map(|parameters| &parameters.kdf);
    // The library would panic at 0; any other that is no power of two means nothing either (RFC 7914 §2).
    if matches!(kdf, Some(Kdf::Scrypt(kdf)) if !kdf.cost_parameter.is_power_of_two()) {
        return Err(KeyFileError::NotAKey { path: path.to_owned() });
    }
    let cost = kdf.and_then(|kdf| match kdf {
        Kdf::Pbkdf2(kdf) if kdf.iteration_count > ROUNDS_MAX => Some(format!("{} rounds", kdf.iteration_count)),
        Kdf::Scrypt(kdf) => {
            let bytes = kdf
                .cost_parameter
                .saturating_mul(u64::from(kdf.block_size))
                .saturating_mul(u64::from(kdf.parallelization))
                .saturating_mul(128);
            (bytes > SCRYPT_BYTES).then(|| format!("{bytes} bytes"))
        }
        _ => None,
    });
    match cost {
        None => Ok(()),
        Some(cost) => Err(KeyFileError::TooExpensive {
            path: path.to_owned(),
            cost,
        }),
    }
}

fn weakness(path: &Path, scheme: &EncryptionScheme) -> Option<String> {
    let rounds = scheme.pbes2()?.kdf.pbkdf2()?.iteration_count;
    (rounds < ROUNDS_WEAK).then(|| {
        format!(
            "{}: {rounds} rounds of PBKDF2 protect the passphrase badly; {ROUNDS} are advised",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn given(passphrase: &str) -> impl FnOnce() -> Result<Option<Zeroizing<String>>, KeyFileError> {
        let passphrase = Zeroizing::new(passphrase.to_owned());
        move || Ok(Some(passphrase))
    }

    #[test]
    fn plain_and_encrypted_files_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let key = generate().unwrap();
        std::fs::write(&path, to_pem(&key, None).unwrap().as_bytes()).unwrap();
        let loaded = load::<KeyFileError>(&path, || panic!("a plain file asks for no passphrase")).unwrap();
        assert_eq!(loaded.key.to_bytes(), key.to_bytes());
        std::fs::write(&path, to_pem(&key, Some("correct horse")).unwrap().as_bytes()).unwrap();
        let loaded = load(&path, given("correct horse")).unwrap();
        assert_eq!(loaded.key.to_bytes(), key.to_bytes());
        assert_eq!(loaded.warning, None);
        assert!(matches!(
            load(&path, given("wrong")),
            Err(KeyFileError::WrongPassphrase { .. })
        ));
        assert!(matches!(
            load(&path, || Ok(None)),
            Err(KeyFileError::NeedsPassphrase { .. })
        ));
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            load(&path, given("x")).unwrap_err()
        };
        let public = public_pem(&generate().unwrap());
        for bytes in [&b""[..], b"text", b"\xff\xfe", public.as_bytes(), &[b'a'; 70_000]] {
            assert!(matches!(refused(bytes), KeyFileError::NotAKey { .. }));
        }
        // A key of X25519, by its object identifier.
        let mut der = [&V1_PREFIX[..], &[7; 32]].concat();
        der[11] = 0x6e;
        let pem = SecretDocument::try_from(&der[..])
            .unwrap()
            .to_pem("PRIVATE KEY", LineEnding::LF)
            .unwrap();
        assert!(matches!(refused(pem.as_bytes()), KeyFileError::NotEd25519 { .. }));
        let missing = load(&dir.path().join("none"), given("x"));
        assert!(matches!(missing, Err(KeyFileError::Io { .. })));
    }

    #[test]
    fn a_derivation_that_would_take_too_long_is_refused_before_anybody_is_asked() {
        let scrypt = |cost_log_n, block_size, parallelization| {
            let parameters = pkcs8::pkcs5::scrypt::Params::new(cost_log_n, block_size, parallelization).unwrap();
            EncryptionScheme::from(Parameters::generate_scrypt_aes256cbc(parameters, &[1; 16], [2; 16]).unwrap())
        };
        let path = Path::new("key.pem");
        for (scheme, cheap) in [
            (scrypt(14, 8, 1), true),
            (scrypt(20, 8, 1), true),
            (scrypt(21, 8, 1), false),
            (scrypt(14, 8, 1000), false),
        ] {
            assert_eq!(check_cost(path, &scheme).is_ok(), cheap);
        }
    }
}
