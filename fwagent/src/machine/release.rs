//! What the agent remembers of a release: enough to know it again, and to judge floors without its manifest.

use fwmeta::json::{Value, object};
use fwmeta::manifest::{Kind, Manifest, SemVer};
use fwmeta::{hex, limits};

/// A release, known by the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRef {
    /// SHA-256 of the manifest.
    pub manifest_sha256: [u8; 32],
    /// Version for people.
    pub version: SemVer,
    /// Order within product and channel.
    pub sequence: u64,
    /// Sequence below which nothing may be booted once this release is confirmed.
    pub security_floor: u64,
    /// Channel.
    pub channel: String,
    /// Whether it mends a vulnerability.
    pub security: bool,
    /// Names and image digests of its components.
    pub components: Vec<ComponentRef>,
}

/// One component of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentRef {
    /// Its name.
    pub name: String,
    /// The class of slots that holds it.
    pub slot_class: String,
    /// SHA-256 of its image.
    pub image_sha256: [u8; 32],
}

impl ReleaseRef {
    /// Refers to a manifest whose bytes have this digest.
    pub fn of_manifest(manifest: &Manifest, manifest_sha256: [u8; 32]) -> Self {
        Self {
            manifest_sha256,
            version: manifest.version.clone(),
            sequence: manifest.sequence,
            security_floor: manifest.security_floor,
            channel: manifest.channel.clone(),
            security: manifest.kind == Kind::Security,
            components: manifest
                .components
                .iter()
                .map(|component| ComponentRef {
                    name: component.name.clone(),
                    slot_class: component.slot_class.clone(),
                    image_sha256: component.image.sha256,
                })
                .collect(),
        }
    }

    /// The form in records and on terminals.
    pub fn to_value(&self) -> Value {
        let components = self.components.iter().map(|component| {
            object([
                ("name", (&component.name).into()),
                ("slot_class", (&component.slot_class).into()),
                ("image_sha256", hex::encode(&component.image_sha256).into()),
            ])
        });
        object([
            ("manifest_sha256", hex::encode(&self.manifest_sha256).into()),
            ("version", self.version.to_string().into()),
            ("sequence", self.sequence.into()),
            ("security_floor", self.security_floor.into()),
            ("channel", (&self.channel).into()),
            ("security", self.security.into()),
            ("components", components.collect::<Vec<_>>().into()),
        ])
    }

    /// Reads [`to_value`](Self::to_value) back; `None` for anything else.
    pub fn from_value(value: &Value) -> Option<Self> {
        let text = |value: &Value, field: &str| {
            let text = value.get(field)?.as_str()?;
            (text.len() <= limits::NAME_BYTES).then(|| text.to_owned())
        };
        let components = value.get("components")?.as_array()?;
        if components.len() > limits::LIST_ENTRIES {
            return None;
        }
        let components = components.iter().map(|component| {
            Some(ComponentRef {
                name: text(component, "name")?,
                slot_class: text(component, "slot_class")?,
                image_sha256: hex::decode_array(component.get("image_sha256")?.as_str()?)?,
            })
        });
        Some(Self {
            manifest_sha256: hex::decode_array(value.get("manifest_sha256")?.as_str()?)?,
            version: SemVer::parse(value.get("version")?.as_str()?).ok()?,
            sequence: value.get("sequence")?.as_u64()?,
            security_floor: value.get("security_floor")?.as_u64()?,
            channel: text(value, "channel")?,
            // Records of before do not say.
            security: matches!(value.get("security"), Some(Value::Bool(true))),
            components: components.collect::<Option<_>>()?,
        })
    }
}
