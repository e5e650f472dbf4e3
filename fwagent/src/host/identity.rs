//! The device's own key: ed25519, made on this device, never leaves it and is never printed.
//!
//! `STATE/identity.pem`, mode 0600, is PKCS#8 version 1 (48 bytes, which OpenSSL reads) in PEM. It is made once, by
//! `fwdurable::create_new`: of two processes, or of two attempts with a loss of power in between, one wins and the other
//! reads its key. A file that cannot be read as a key is an error, never a reason to make another: servers know the device
//! by its key.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::key::{PublicKey, SignError, Signer};
use zeroize::Zeroizing;

/// Longest key file, in bytes.
const FILE_BYTES: u64 = 1024;
/// PKCS#8 version 1 around an ed25519 seed (RFC 8410 §7): everything before its 32 bytes.
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// `SubjectPublicKeyInfo` of ed25519: everything before the 32 bytes of the key.
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
const END: &str = "-----END PRIVATE KEY-----\n";

/// The key of this device. Its memory is wiped when it is dropped.
pub struct Identity {
    key: SigningKey,
    public: PublicKey,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.public.id()).finish()
    }
}

/// The key of this device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file system failed.
    #[error("identity {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there and is no key.
    #[error("identity {} is not a private ed25519 key as this agent writes it; nothing replaces it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system has no random numbers.
    #[error("no random numbers for a key: {reason}")]
    Random {
        /// Why.
        reason: String,
    },
}

impl Identity {
    /// The key in the directory `dir`, which is made when there is none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_make(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join("identity.pem");
        if let Some(identity) = load(&path)? {
            return Ok(identity);
        }
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| IdentityError::Random {
            reason: error.to_string(),
        })?;
        match fwdurable::create_new(&path, encode(&seed).as_bytes(), 0o600) {
            Ok(()) => Ok(Self::of_seed(&seed)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                load(&path)?.ok_or(IdentityError::Damaged { path })
            }
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }

    fn of_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = PublicKey::ed25519(key.verifying_key().to_bytes());
        Self { key, public }
    }

    /// The public key as PEM `SubjectPublicKeyInfo`.
    pub fn public_pem(&self) -> String {
        let der = [&PUBLIC_PREFIX[..], self.key.verifying_key().as_bytes()].concat();
        // 44 bytes are one line of base64.
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64.encode(der)
        )
    }
}

impl Signer for Identity {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}

fn load(path: &Path) -> Result<Option<Identity>, IdentityError> {
    let failed = |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    // With room for all of it from the start no copy is left behind by growing.
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES as usize + 64));
    file.take(FILE_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    match decode(&text) {
        Some(seed) => Ok(Some(Identity::of_seed(&seed))),
        None => Err(IdentityError::Damaged { path: path.to_owned() }),
    }
}

fn encode(seed: &[u8; 32]) -> Zeroizing<String> {
    let mut der = Zeroizing::new([0; 48]);
    der[..16].copy_from_slice(&PRIVATE_PREFIX);
    der[16..].copy_from_slice(seed);
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(BEGIN);
    BASE64.encode_string(*der, &mut text);
    text.push('\n');
    text.push_str(END);
    text
}

fn decode(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let text = std::str::from_utf8(text).ok()?;
    let body = text.strip_prefix(BEGIN)?.strip_suffix(END)?.trim_end();
    let mut der = Zeroizing::new([0; 64]);
    let length = BASE64.decode_slice(body, &mut *der).ok()?;
    let seed = der.get(..length)?.strip_prefix(&PRIVATE_PREFIX)?;
    Some(Zeroizing::new(seed.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.pem");
        let made = Identity::load_or_make(dir.path()).unwrap();
        let text = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Identity::load_or_make(dir.path()).unwrap();
        assert_eq!(again.public().id(), made.public().id());
        assert_eq!(fs::read(&path).unwrap(), text);
        assert!(made.public().verify(b"message", &again.sign(b"message").unwrap()));
        let elsewhere = Identity::load_or_make(tempfile::tempdir().unwrap().path()).unwrap();
        assert_ne!(elsewhere.public().id(), made.public().id());
        // No secret in what may be printed.
        let secret = text.split(|byte| *byte == b'\n').nth(1).unwrap();
        let shown = format!("{made:?} {}", made.public_pem());
        assert!(!shown.contains(std::str::from_utf8(secret).unwrap()));
    }

    #[test]
    fn of_many_makers_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Identity::load_or_make(dir.path()).unwrap().public().id()))
                .collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_damaged_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.pem");
        Identity::load_or_make(dir.path()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for text in [
            String::new(),
            good[1..].to_owned(),
            good.replace("MC4", "MC5"),
            good.replace("PRIVATE", "PUBLIC"),
            format!("{good}{good}"),
            "x".repeat(4096),
        ] {
            fs::write(&path, &text).unwrap();
            let refused = Identity::load_or_make(dir.path());
            assert!(matches!(refused, Err(IdentityError::Damaged { .. })), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, &good).unwrap();
        Identity::load_or_make(dir.path()).unwrap();
    }
}
