//! What is fuzzed: one function a target, each of which states what must hold of any input. `cargo fuzz` runs them for
//! long, `tests/fuzz.rs` of fwsign runs the same functions over the seeds and mutations of them.
//!
//! ```text
//! cargo +nightly fuzz run pem corpus/pem seeds/pem -- -max_total_time=600
//! ```

use std::fs;
use std::path::Path;

use fwsign::keyfile::{self, KeyFileError, Loaded};
use fwsign::passphrase as passphrases;
use pkcs8::der::pem::PemLabel;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

/// Of the encrypted seeds.
const PASSPHRASE: &str = "fuzz";

/// A key file as it is.
pub fn pem(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        parse(text);
    }
}

/// The DER of a plain key file: mutations of it get past the PEM.
pub fn plain(data: &[u8]) {
    der(data, PrivateKeyInfoRef::PEM_LABEL);
}

/// The DER of an encrypted key file.
pub fn encrypted(data: &[u8]) {
    der(data, EncryptedPrivateKeyInfoRef::PEM_LABEL);
}

fn der(data: &[u8], label: &'static str) {
    let document = SecretDocument::try_from(data);
    if let Ok(text) = document.and_then(|document| document.to_pem(label, LineEnding::LF)) {
        parse(&text);
    }
}

/// A key that is accepted is the same when written. One that is encrypted is decrypted only when that is quick; how much
/// it may cost is decided before the passphrase is asked for.
fn parse(text: &str) {
    let path = Path::new("key.pem");
    let loaded = match keyfile::parse::<KeyFileError>(text, path, || Ok(None)) {
        Err(KeyFileError::NeedsPassphrase { .. }) if is_quick(text) => {
            keyfile::parse::<KeyFileError>(text, path, || Ok(Some(Zeroizing::new(PASSPHRASE.to_owned()))))
        }
        other => other,
    };
    let Ok(Loaded { key, .. }) = loaded else { return };
    let written = keyfile::to_pem(&key, None).expect("a key");
    let again =
        keyfile::parse::<KeyFileError>(&written, path, || panic!("it is plain")).expect("what we write we read");
    assert_eq!(again.key.to_bytes(), key.to_bytes());
}

fn is_quick(text: &str) -> bool {
    let Ok((_, document)) = SecretDocument::from_pem(text) else {
        return false;
    };
    let Ok(info) = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()) else {
        return false;
    };
    let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else {
        return true;
    };
    match &parameters.kdf {
        Kdf::Pbkdf2(kdf) => kdf.iteration_count <= 100,
        Kdf::Scrypt(kdf) => kdf.cost_parameter <= 16 && kdf.block_size <= 8 && kdf.parallelization <= 8,
        _ => true,
    }
}

/// A passphrase file: its first line, without what ends it.
pub fn passphrase(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("passphrase");
    fs::write(&path, data).expect("a file");
    match passphrases::read(&path) {
        Ok(line) => {
            assert!(data.starts_with(line.as_bytes()) && !line.contains('\n'));
            assert!(matches!(data[line.len()..], [] | [b'\n', ..] | [b'\r', b'\n', ..]));
        }
        Err(_) => assert!(data.len() > 4096 || std::str::from_utf8(data).is_err()),
    }
}
