//! A signed repository in memory, as a vendor publishes it step by step, and the transport that reads it.
//!
//! The signatures are real; only the keys come from a number, so that every run is the same.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::rc::Rc;

use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::client::Fetch;
use fwmeta::hex;
use fwmeta::json::Value;
use fwmeta::key::{PublicKey, SignError, Signer};
use fwmeta::layout;
use fwmeta::manifest::{Component, Encoding, Image, ImageKind, Kind, Manifest, Payload, SemVer};
use fwmeta::role::{MetaFile, RoleKeys, RoleName, Root, RootRoles, Snapshot, Targets, Timestamp};
use fwmeta::signed;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use sha2::{Digest, Sha256};

use crate::machine::release::ReleaseRef;
use crate::ports::{KnownTimestamp, PortError, Progress, Source, Transport};

/// Product of the simulated device.
pub const PRODUCT: &str = "router";
/// The channel that it follows.
pub const CHANNEL: &str = "stable";
/// Its hardware revision.
pub const HARDWARE: &str = "rev-a";
/// The class of its slots.
pub const CLASS: &str = "rootfs";
/// The moment at which the simulation begins: 2030-01-01T00:00:00Z.
pub const NOW: UtcSeconds = UtcSeconds(1_893_456_000);
/// Seconds for which metadata are valid.
const VALIDITY: i64 = 365 * 86_400;
/// Bytes of an image: some sectors and a part of one.
const IMAGE_BYTES: usize = 2_300;

/// What a vendor publishes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// A release.
    Release {
        /// Its sequence; also the number of its image.
        sequence: u64,
        /// Its security floor.
        security_floor: u64,
        /// How the image travels.
        encoding: Encoding,
        /// Whether the payload, though signed, is not the image that the manifest announces.
        wrong: bool,
    },
    /// A new root with another timestamp key, and all else signed again.
    Rotation,
}

impl Publication {
    /// A sound release.
    pub const fn release(sequence: u64) -> Self {
        Self::Release {
            sequence,
            security_floor: 0,
            encoding: Encoding::Identity,
            wrong: false,
        }
    }
}

/// What a server gives out: objects by name, `metadata/` and `targets/` in front.
pub type Objects = Rc<BTreeMap<String, Vec<u8>>>;

/// A release as the simulation knows it.
#[derive(Debug, Clone)]
pub struct Published {
    /// What the agent calls it.
    pub release: ReleaseRef,
    /// What a slot holds then.
    pub image: Vec<u8>,
}

/// The vendor with its keys, and everything that was published.
#[derive(Debug)]
pub struct Repository {
    root: Root,
    targets: Targets,
    snapshot: Snapshot,
    timestamp: Timestamp,
    signers: BTreeMap<&'static str, Key>,
    keys: u64,
    objects: BTreeMap<String, Vec<u8>>,
    /// The first root, which the factory puts into devices.
    pub factory_root: Vec<u8>,
    /// All releases, by sequence.
    pub releases: BTreeMap<u64, Published>,
}

#[derive(Debug, Clone)]
struct Key {
    secret: SigningKey,
    public: PublicKey,
}

impl Key {
    fn new(number: u64) -> Self {
        let secret = SigningKey::from_bytes(&Sha256::digest(format!("simulated key {number}")).into());
        let public = PublicKey::ed25519(secret.verifying_key().to_bytes());
        Self { secret, public }
    }
}

impl Signer for Key {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.secret.sign(message).to_bytes().to_vec())
    }
}

/// Why a repository could not be made: a mistake in this module.
#[derive(Debug, thiserror::Error)]
#[error("the simulated repository: {0}")]
pub struct RepositoryError(String);

fn mistake(error: impl std::fmt::Display) -> RepositoryError {
    RepositoryError(error.to_string())
}

impl Repository {
    /// A repository that lists nothing yet.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn new() -> Result<Self, RepositoryError> {
        let expires = NOW.plus_seconds(VALIDITY);
        let nobody = RoleKeys {
            keyids: Vec::new(),
            threshold: 1,
        };
        let mut repository = Self {
            root: Root {
                version: 1,
                expires,
                consistent_snapshot: true,
                keys: BTreeMap::new(),
                roles: RootRoles {
                    root: nobody.clone(),
                    timestamp: nobody.clone(),
                    snapshot: nobody.clone(),
                    targets: nobody,
                },
                extra: BTreeMap::new(),
            },
            targets: Targets {
                version: 0,
                expires,
                targets: BTreeMap::new(),
                delegations: None,
                extra: BTreeMap::new(),
            },
            snapshot: Snapshot {
                version: 0,
                expires,
                meta: BTreeMap::new(),
                extra: BTreeMap::new(),
            },
            timestamp: Timestamp {
                version: 0,
                expires,
                snapshot: MetaFile::of_version(1),
                extra: BTreeMap::new(),
            },
            signers: BTreeMap::new(),
            keys: 0,
            objects: BTreeMap::new(),
            factory_root: Vec::new(),
            releases: BTreeMap::new(),
        };
        for role in ["root", "targets", "snapshot", "timestamp"] {
            repository.new_key(role);
        }
        repository.factory_root = repository.put("root", 1, repository.root.to_value())?;
        Ok(repository)
    }

    /// Publishes, and gives what a server then has.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn publish(&mut self, what: Publication) -> Result<Objects, RepositoryError> {
        match what {
            Publication::Release {
                sequence,
                security_floor,
                encoding,
                wrong,
            } => self.release(sequence, security_floor, encoding, wrong)?,
            Publication::Rotation => {
                self.new_key("timestamp");
                self.root.version += 1;
                self.put("root", self.root.version, self.root.to_value())?;
            }
        }
        self.sign()
    }

    /// What a server has that lists only the release of this sequence, in metadata newer than all others: the attack by
    /// whoever holds the keys, or an operator's mistake.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn only(&self, sequence: u64) -> Result<Objects, RepositoryError> {
        let mut forged = Self {
            root: self.root.clone(),
            targets: self.targets.clone(),
            snapshot: self.snapshot.clone(),
            timestamp: self.timestamp.clone(),
            signers: self.signers.clone(),
            keys: self.keys,
            objects: self.objects.clone(),
            factory_root: self.factory_root.clone(),
            releases: BTreeMap::new(),
        };
        let prefix = format!("{PRODUCT}/{}/", version(sequence));
        forged.targets.targets.retain(|path, _| path.starts_with(&prefix));
        forged.sign()
    }

    fn sign(&mut self) -> Result<Objects, RepositoryError> {
        self.targets.version += 1;
        self.put("targets", self.targets.version, self.targets.to_value())?;
        let listed = MetaFile::of_version(self.targets.version);
        self.snapshot.meta.insert("targets.json".to_owned(), listed);
        self.snapshot.version += 1;
        self.put("snapshot", self.snapshot.version, self.snapshot.to_value())?;
        self.timestamp.snapshot = MetaFile::of_version(self.snapshot.version);
        self.timestamp.version += 1;
        self.put("timestamp", self.timestamp.version, self.timestamp.to_value())?;
        Ok(Rc::new(self.objects.clone()))
    }

    fn new_key(&mut self, role: &'static str) {
        self.keys += 1;
        let key = Key::new(self.keys);
        let listed = match role {
            "root" => &mut self.root.roles.root,
            "targets" => &mut self.root.roles.targets,
            "snapshot" => &mut self.root.roles.snapshot,
            _ => &mut self.root.roles.timestamp,
        };
        listed.keyids = vec![key.public.id()];
        self.root.keys.insert(key.public.id(), key.public.clone());
        self.signers.insert(role, key);
    }

    fn put(&mut self, role: &'static str, version: u64, value: Value) -> Result<Vec<u8>, RepositoryError> {
        let signers: Vec<&dyn Signer> = self.signers.get(role).into_iter().map(|key| key as _).collect();
        let bytes = signed::sign(&value, &signers).map_err(mistake)?;
        let name = RoleName::parse(role).map_err(mistake)?;
        let name = layout::metadata_name(&name, (role != "timestamp").then_some(version));
        self.objects.insert(format!("metadata/{name}"), bytes.clone());
        Ok(bytes)
    }

    fn release(
        &mut self,
        sequence: u64,
        security_floor: u64,
        encoding: Encoding,
        wrong: bool,
    ) -> Result<(), RepositoryError> {
        let image = image(sequence);
        let path = |file: &str| TargetPath::parse(&format!("{PRODUCT}/{}/{file}", version(sequence)));
        let target = path("rootfs.img").map_err(mistake)?;
        let (digests, manifest_path) = (TargetFile::of_bytes(&image), path("manifest.json").map_err(mistake)?);
        let (Some(sha256), Some(sha512)) = (digests.hashes.sha256, digests.hashes.sha512) else {
            return Err(mistake("no digest"));
        };
        let manifest = Manifest {
            vendor: "acme".to_owned(),
            product: PRODUCT.to_owned(),
            version: version(sequence),
            sequence,
            security_floor,
            hardware: vec![HARDWARE.to_owned()],
            channel: CHANNEL.to_owned(),
            kind: Kind::Security,
            requires: None,
            components: vec![Component {
                name: CLASS.to_owned(),
                slot_class: CLASS.to_owned(),
                kind: ImageKind::Raw,
                communication_function: true,
                image: Image {
                    size: image.len() as u64,
                    sha256,
                    sha512: *sha512,
                },
                payload: Payload {
                    target: target.clone(),
                    encoding,
                },
                patches: Vec::new(),
                verity_root: None,
            }],
            settings: None,
            advisory: None,
            notes: None,
            support_end: None,
            sbom: None,
            provenance: None,
            design_conformity: None,
            extensions: BTreeMap::new(),
        };
        manifest.validate().map_err(mistake)?;
        let content = if wrong {
            self::image(u64::MAX - sequence)
        } else {
            image.clone()
        };
        let payload = match encoding {
            Encoding::Identity => content,
            Encoding::Zstd => zstd::encode_all(content.as_slice(), 1).map_err(mistake)?,
        };
        let bytes = manifest.to_value().to_json().into_bytes();
        let file = TargetFile::of_bytes(&bytes).with_fw(manifest.summary(None).to_value());
        self.list(&manifest_path, file, &bytes);
        self.list(&target, TargetFile::of_bytes(&payload), &payload);
        let release = ReleaseRef::of_manifest(&manifest, Sha256::digest(&bytes).into());
        self.releases.insert(sequence, Published { release, image });
        Ok(())
    }

    fn list(&mut self, path: &TargetPath, mut file: TargetFile, bytes: &[u8]) {
        file.hashes.sha512 = None;
        let digest = file.hashes.sha256.unwrap_or_default();
        let name = layout::target_name(path, Some(&digest));
        self.objects.insert(format!("targets/{name}"), bytes.to_vec());
        self.targets.targets.insert(path.to_string(), file);
    }
}

fn version(sequence: u64) -> SemVer {
    SemVer::new(1, sequence, 0)
}

/// Bytes that no two images share for long.
fn image(number: u64) -> Vec<u8> {
    let blocks = (0_u64..).flat_map(|block| Sha256::digest(format!("image {number} block {block}")));
    blocks.take(IMAGE_BYTES).collect()
}

/// A connection to a server.
#[derive(Debug, Clone)]
pub struct SimTransport {
    /// What it has.
    pub objects: Objects,
}

/// Metadata of one cycle.
#[derive(Debug)]
pub struct SimSource {
    objects: Objects,
    etag: Option<String>,
}

impl Fetch for SimSource {
    type Error = PortError;

    fn fetch(&mut self, name: &str, max_length: u64) -> Result<Option<Vec<u8>>, PortError> {
        let Some(bytes) = self.objects.get(&format!("metadata/{name}")) else {
            return Ok(None);
        };
        if bytes.len() as u64 > max_length {
            return Err(PortError::environment(format!("metadata {name} is too long"), None));
        }
        if name == "timestamp.json" {
            self.etag = Some(hex::encode(&Sha256::digest(bytes)));
        }
        Ok(Some(bytes.clone()))
    }
}

impl Source for SimSource {
    fn timestamp_etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }
}

impl Transport for SimTransport {
    type Source = SimSource;
    type Target = Cursor<Vec<u8>>;

    fn metadata(&mut self, _known: Option<KnownTimestamp>) -> Result<SimSource, PortError> {
        Ok(SimSource {
            objects: Rc::clone(&self.objects),
            etag: None,
        })
    }

    fn target(
        &mut self,
        path: &TargetPath,
        file: &TargetFile,
        consistent_snapshot: bool,
        _progress: Progress<'_>,
    ) -> Result<Cursor<Vec<u8>>, PortError> {
        let name = format!("targets/{}", crate::tuf::target_object(path, file, consistent_snapshot));
        let bytes = self
            .objects
            .get(&name)
            .ok_or_else(|| PortError::environment(format!("target {path} is not there"), None))?;
        file.check_bytes(bytes)
            .map_err(|error| PortError::environment(format!("target {path}"), Some(error.into())))?;
        Ok(Cursor::new(bytes.clone()))
    }

    fn discard_targets(&mut self) -> Result<(), PortError> {
        Ok(())
    }
}
