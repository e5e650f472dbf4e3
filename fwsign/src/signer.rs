//! Signers: private keys behind the shared trait, and the set of them that a command was given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::key::{KeyId, PublicKey, SignError, Signer};
use fwmeta::role::{RoleKeys, RoleName};

use crate::example_keys;
use crate::keyfile::{self, KeyFileError};
use crate::output::warn;
use crate::passphrase::PassphraseArgs;

/// A private key read from a file; zeroised when dropped.
#[derive(Debug)]
pub struct FileSigner {
    key: SigningKey,
    public: PublicKey,
}

impl FileSigner {
    /// Wraps a private key.
    pub fn new(key: SigningKey) -> Self {
        let public = PublicKey::ed25519(key.verifying_key().to_bytes());
        Self { key, public }
    }
}

impl Signer for FileSigner {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}

/// Which private keys a command may use.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct KeyArgs {
    /// Private key file to sign with; may be given several times
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// Directory whose *.pem private keys may be signed with
    #[arg(long, value_name = "DIR")]
    keys_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
}

/// How to open private keys.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OpenArgs {
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    /// Accept the published keys of keys-example, whose private halves everybody has
    #[arg(long)]
    pub(crate) allow_example_keys: bool,
}

impl OpenArgs {
    /// Opens one private key file.
    ///
    /// # Errors
    /// When it cannot be read or is an example key.
    pub fn open(&self, path: &Path) -> anyhow::Result<FileSigner> {
        let asked =
            || -> Result<_, anyhow::Error> { self.passphrase.get(&format!("Passphrase of {}: ", path.display())) };
        let loaded = keyfile::load::<anyhow::Error>(path, asked)?;
        if let Some(warning) = loaded.warning {
            warn(&warning);
        }
        let signer = FileSigner::new(loaded.key);
        if !self.allow_example_keys && example_keys::contains(&signer.public().id()) {
            return Err(ExampleKey { path: path.to_owned() }.into());
        }
        Ok(signer)
    }
}

/// A key of `keys-example/`, which anybody can sign with.
#[derive(Debug, thiserror::Error)]
#[error(
    "key file {} holds an example key, whose private half is published; make your own with `fwsign keygen`, or pass \
     --allow-example-keys for a demonstration",
    path.display()
)]
pub struct ExampleKey {
    /// The file.
    pub path: PathBuf,
}

/// The private keys that a command was given, by key id.
#[derive(Debug, Default)]
pub struct Keyring {
    signers: BTreeMap<KeyId, FileSigner>,
}

/// Too few of a role's keys were given.
#[derive(Debug, thiserror::Error)]
#[error(
    "{role} metadata need {threshold} signatures and the keys given make {available}: give private keys of {} by --key \
     or --keys-dir",
    keyids.join(", ")
)]
pub struct MissingKeys {
    /// The role to be signed.
    pub role: RoleName,
    /// Signatures needed.
    pub threshold: u64,
    /// Keys of the role among those given.
    pub available: u64,
    /// All keys of the role.
    pub keyids: Vec<String>,
}

impl Keyring {
    /// Opens the keys that the arguments name. In a directory, files that are no private keys are passed over.
    ///
    /// # Errors
    /// When a named file cannot be opened.
    pub fn open(args: &KeyArgs) -> anyhow::Result<Self> {
        let mut ring = Self::default();
        for path in &args.keys {
            ring.add(args.open.open(path)?);
        }
        if let Some(dir) = &args.keys_dir {
            let entries = std::fs::read_dir(dir).with_context(|| format!("key directory {}", dir.display()))?;
            let mut paths: Vec<_> = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "pem") && path.is_file());
            paths.sort();
            for path in paths {
                match args.open.open(&path) {
                    Ok(signer) => ring.add(signer),
                    Err(error) if matches!(error.downcast_ref(), Some(KeyFileError::NotAKey { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(ring)
    }

    /// Adds a key.
    pub fn add(&mut self, signer: FileSigner) {
        self.signers.insert(signer.public().id(), signer);
    }

    /// The signers of a role among the keys given; all of them, at least as many as its threshold.
    ///
    /// # Errors
    /// [`MissingKeys`].
    pub fn for_role(
        &self,
        role: &RoleName,
        keys: &RoleKeys,
        public: &BTreeMap<KeyId, PublicKey>,
    ) -> Result<Vec<&dyn Signer>, MissingKeys> {
        let listed = |signer: &&FileSigner| {
            keys.keyids
                .iter()
                .filter_map(|keyid| public.get(keyid))
                .any(|key| key.same_key(&signer.public))
        };
        let found: Vec<&dyn Signer> = self
            .signers
            .values()
            .filter(listed)
            .map(|signer| signer as &dyn Signer)
            .collect();
        let available = found.len() as u64;
        if available < keys.threshold {
            return Err(MissingKeys {
                role: role.clone(),
                threshold: keys.threshold,
                available,
                keyids: keys.keyids.iter().map(ToString::to_string).collect(),
            });
        }
        Ok(found)
    }
}
