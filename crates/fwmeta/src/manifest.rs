//! The release manifest and `custom.fw`, the short form of it that travels in targets metadata.
//!
//! Reading is strict: every field is checked for type and bounds, and an unknown field refuses the manifest, because a
//! device that skips what it does not understand may skip a condition (RFC 9124 §3). What tools want to add for
//! themselves goes under `extensions`, which devices ignore; a change of meaning needs a new `schema`.
//!
//! ```text
//! { "schema": 1, "vendor": "acme", "product": "router", "version": "1.2.0", "sequence": 7, "security_floor": 5,
//!   "hardware": ["rev-b"], "channel": "stable", "kind": "security", "requires": "1.0.0",
//!   "components": [ { "name": "rootfs", "slot_class": "rootfs", "type": "raw", "communication_function": true,
//!                     "image": { "size": …, "sha256": …, "sha512": … },
//!                     "payload": { "target": "router/1.2.0/rootfs.img.zst", "encoding": "zstd" },
//!                     "patches": [ { "from": <sha256>, "target": … } ], "verity_root": <sha256> } ],
//!   "settings": …, "advisory": …, "notes": …, "support_end": "2031-12-31", "sbom": …, "provenance": …,
//!   "design_conformity": …, "extensions": { … } }
//! ```

use std::collections::BTreeMap;

use crate::json::{Doc, JsonError, Value, object};
use crate::limits;
use crate::target::{TargetFile, TargetPath};

mod read;
mod write;

#[cfg(test)]
mod tests;

/// A version of a product, by the rules of Semantic Versioning 2.0.0.
pub type SemVer = semver::Version;

/// The only schema there is.
pub const SCHEMA: u64 = 1;

/// Everything about one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Who makes the product.
    pub vendor: String,
    /// The product, RFC 9124's class; also the name of its delegated role and the first part of its target paths.
    pub product: String,
    /// Version for people. Order is decided by `sequence` alone.
    pub version: SemVer,
    /// Rises with every release of a product and channel, even when older software is released again.
    pub sequence: u64,
    /// Devices that confirmed this release boot nothing below this sequence any more.
    pub security_floor: u64,
    /// Hardware revisions it is for; at least one.
    pub hardware: Vec<String>,
    /// Channel, such as `stable`.
    pub channel: String,
    /// Why it is released.
    pub kind: Kind,
    /// Oldest installed version from which it may be installed.
    pub requires: Option<SemVer>,
    /// What is installed, together or not at all; at least one, no name twice.
    pub components: Vec<Component>,
    /// Settings schema of the new software, and how to get there.
    pub settings: Option<Settings>,
    /// What it repairs.
    pub advisory: Option<Advisory>,
    /// Text for people.
    pub notes: Option<String>,
    /// Last day of support, `YYYY-MM-DD`.
    pub support_end: Option<String>,
    /// Target path of the software bill of materials.
    pub sbom: Option<TargetPath>,
    /// Target path of the build provenance.
    pub provenance: Option<TargetPath>,
    /// The decision whether the release touches the approved design (RULES SU-06).
    pub design_conformity: Option<DesignConformity>,
    /// Free data of tools; devices ignore it.
    pub extensions: BTreeMap<String, Value>,
}

/// Why a release is made (EU CRA Annex I part II (2) asks to keep them apart).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Repairs vulnerabilities.
    Security,
    /// Anything else.
    Feature,
}

/// One image of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name within the release.
    pub name: String,
    /// The class of slots it goes into.
    pub slot_class: String,
    /// How the image fills a slot.
    pub kind: ImageKind,
    /// Whether it implements sending or receiving over the network (RULES §2.3).
    pub communication_function: bool,
    /// The image as it is read back from the slot (raw) or unpacked (tar).
    pub image: Image,
    /// How the image travels.
    pub payload: Payload,
    /// Shorter ways from known earlier images.
    pub patches: Vec<Patch>,
    /// Root hash of the dm-verity tree of the image.
    pub verity_root: Option<[u8; 32]>,
}

/// How an image fills a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Its bytes are the contents of the slot.
    Raw,
    /// A tar archive that is unpacked into a directory slot.
    Tar,
}

/// Size and digests of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Bytes, at most [`limits::IMAGE_BYTES`].
    pub size: u64,
    /// SHA-256 of the whole image.
    pub sha256: [u8; 32],
    /// SHA-512 of the whole image.
    pub sha512: [u8; 64],
}

/// How an image travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Target path.
    pub target: TargetPath,
    /// What turns the target into the image.
    pub encoding: Encoding,
}

/// What turns a payload target into an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The target is the image.
    Identity,
    /// The target is one zstd frame with a window of at most 8 MiB.
    Zstd,
}

/// A way from an earlier image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// SHA-256 of the earlier image.
    pub from: [u8; 32],
    /// Target path of the patch.
    pub target: TargetPath,
}

/// Settings schema and migrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Schema of the new software.
    pub schema: u64,
    /// Steps from earlier schemas.
    pub migrations: Vec<Migration>,
}

/// One settings migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Schema it starts from.
    pub from: u64,
    /// Schema it leads to.
    pub to: u64,
    /// Target path of the program.
    pub target: TargetPath,
    /// Whether it can be undone without loss.
    pub reversible: bool,
}

/// What a security release repairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advisory {
    /// Text for people.
    pub text: String,
    /// CVE ids.
    pub cves: Vec<String>,
    /// Severity, such as `high`.
    pub severity: Option<String>,
}

/// The decision whether the release touches items 1–4 of Article 34-10 (RULES SU-06).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesignConformity {
    /// Items touched, each from 1 to 4.
    pub items: Vec<u64>,
    /// Whether the approval needs a partial change.
    pub partial_change: bool,
    /// Who decided.
    pub decided_by: String,
    /// When, `YYYY-MM-DD`.
    pub date: String,
}

/// `custom.fw` of a manifest's target: what a device needs to choose a release without fetching its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FwCustom {
    /// As in the manifest.
    pub product: String,
    /// As in the manifest.
    pub hardware: Vec<String>,
    /// As in the manifest.
    pub version: SemVer,
    /// As in the manifest.
    pub sequence: u64,
    /// As in the manifest.
    pub channel: String,
    /// `requires` of the manifest.
    pub min_version: Option<SemVer>,
    /// Id of the roll-out that gates it.
    pub rollout: Option<String>,
    /// Sum of the image sizes, in bytes.
    pub size: u64,
}

/// A manifest or `custom.fw` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Longer than [`limits::MANIFEST_BYTES`].
    #[error("{length} bytes exceed the limit of {}", limits::MANIFEST_BYTES)]
    TooLong {
        /// Bytes received.
        length: u64,
    },
    /// Not acceptable JSON.
    #[error("not acceptable JSON")]
    Json(#[from] JsonError),
    /// A schema that this program does not know.
    #[error("schema is {actual}, known is {SCHEMA}: a newer program is needed to read it")]
    Schema {
        /// The schema found.
        actual: u64,
    },
    /// A required field is missing.
    #[error("field {field} is missing")]
    Missing {
        /// Path of the field.
        field: String,
    },
    /// A field that this schema does not have.
    #[error("field {field} is unknown")]
    Unknown {
        /// Path of the field.
        field: String,
    },
    /// A field has the wrong type or is out of range.
    #[error("field {field} is not {expected}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// Two parts of the metadata that must agree do not.
    #[error("{field} is {manifest} in the manifest and {metadata} in targets metadata")]
    Disagrees {
        /// The field.
        field: &'static str,
        /// Its value in the manifest.
        manifest: String,
        /// Its value in `custom.fw`.
        metadata: String,
    },
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let length = bytes.len() as u64;
        if length > limits::MANIFEST_BYTES {
            return Err(ManifestError::TooLong { length });
        }
        read::manifest(&Doc::parse(bytes)?.root().to_value()?)
    }

    /// Checks a manifest that was built, not read, by the rules for reading.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn validate(&self) -> Result<(), ManifestError> {
        Self::parse(self.to_value().to_json_pretty().as_bytes()).map(|_| ())
    }

    /// The short form for targets metadata.
    pub fn summary(&self, rollout: Option<String>) -> FwCustom {
        FwCustom {
            product: self.product.clone(),
            hardware: self.hardware.clone(),
            version: self.version.clone(),
            sequence: self.sequence,
            channel: self.channel.clone(),
            min_version: self.requires.clone(),
            rollout,
            // Reading bounds each size and the number of components, so that this cannot overflow.
            size: self
                .components
                .iter()
                .map(|component| component.image.size)
                .fold(0, u64::saturating_add),
        }
    }

    /// Checks that `custom.fw`, by which the release was chosen, says what the manifest says.
    ///
    /// # Errors
    /// [`ManifestError::Disagrees`] for the first field that differs.
    pub fn check_summary(&self, fw: &FwCustom) -> Result<(), ManifestError> {
        let (manifest, metadata) = (self.summary(fw.rollout.clone()).to_value(), fw.to_value());
        let shown = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_json);
        for field in FwCustom::FIELDS {
            let (manifest, metadata) = (manifest.get(field), metadata.get(field));
            if manifest != metadata {
                return Err(ManifestError::Disagrees {
                    field,
                    manifest: shown(manifest),
                    metadata: shown(metadata),
                });
            }
        }
        Ok(())
    }
}

impl FwCustom {
    const FIELDS: [&str; 8] = [
        "product",
        "hardware",
        "version",
        "sequence",
        "channel",
        "min_version",
        "rollout",
        "size",
    ];

    /// Reads `custom.fw` of a target; `None` when it has none.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn of_target(file: &TargetFile) -> Result<Option<Self>, ManifestError> {
        file.custom.as_ref().map_or(Ok(None), Self::from_custom)
    }

    /// Reads `fw` of a `custom` object; `None` when it has none.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn from_custom(custom: &Value) -> Result<Option<Self>, ManifestError> {
        custom.get("fw").map(read::custom).transpose()
    }

    /// The `fw` object.
    pub fn to_value(&self) -> Value {
        let known = object([
            ("product", (&self.product).into()),
            ("hardware", write::texts(&self.hardware)),
            ("version", self.version.to_string().into()),
            ("sequence", self.sequence.into()),
            ("channel", (&self.channel).into()),
            ("min_version", self.min_version.as_ref().map(ToString::to_string).into()),
            ("rollout", self.rollout.clone().into()),
            ("size", self.size.into()),
        ]);
        write::without_nulls(known)
    }
}
