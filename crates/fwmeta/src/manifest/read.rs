//! Reading manifests: each field once, by type and bounds, and nothing left over.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Advisory, Component, DesignConformity, Encoding, FwCustom, Image, ImageKind, Kind, Manifest, ManifestError,
    Migration, Patch, Payload, SCHEMA, SemVer, Settings,
};
use crate::json::Value;
use crate::target::TargetPath;
use crate::time::UtcSeconds;
use crate::{hex, limits};

type Result<T> = std::result::Result<T, ManifestError>;

/// An object being read: remembers its place for messages and which fields were asked for.
struct Fields<'v> {
    entries: &'v BTreeMap<String, Value>,
    at: String,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'v> Fields<'v> {
    fn of(value: &'v Value, at: &str) -> Result<Self> {
        match value.as_object() {
            Some(entries) => Ok(Self {
                entries,
                at: at.to_owned(),
                asked: RefCell::default(),
            }),
            None => Err(ManifestError::Invalid {
                field: at.to_owned(),
                expected: "an object",
            }),
        }
    }

    fn path(&self, field: &str) -> String {
        if self.at.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.at)
        }
    }

    fn optional(&self, field: &'static str) -> Option<&'v Value> {
        self.asked.borrow_mut().insert(field);
        self.entries.get(field)
    }

    fn required(&self, field: &'static str) -> Result<&'v Value> {
        self.optional(field).ok_or_else(|| ManifestError::Missing {
            field: self.path(field),
        })
    }

    /// A field read by `read`, which answers `None` for a value that is not `expected`.
    fn get<T>(&self, field: &'static str, expected: &'static str, read: impl Fn(&'v Value) -> Option<T>) -> Result<T> {
        read(self.required(field)?).ok_or_else(|| self.invalid(field, expected))
    }

    fn maybe<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        read: impl Fn(&'v Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.optional(field) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.invalid(field, expected)),
        }
    }

    fn invalid(&self, field: &str, expected: &'static str) -> ManifestError {
        ManifestError::Invalid {
            field: self.path(field),
            expected,
        }
    }

    /// A list of objects, each read by `read`; an absent list is empty.
    fn objects<T>(&self, field: &'static str, read: impl Fn(Fields<'v>) -> Result<T>) -> Result<Vec<T>> {
        let items = self.maybe(field, "a list within bounds", list)?.unwrap_or_default();
        let place = |index: usize| format!("{}[{index}]", self.path(field));
        items
            .iter()
            .enumerate()
            .map(|(index, item)| read(Fields::of(item, &place(index))?))
            .collect()
    }

    fn object<T>(&self, field: &'static str, read: impl Fn(Fields<'v>) -> Result<T>) -> Result<Option<T>> {
        self.optional(field)
            .map(|value| read(Fields::of(value, &self.path(field))?))
            .transpose()
    }

    /// Refuses fields that nobody asked for.
    fn finish<T>(self, read: T) -> Result<T> {
        let asked = self.asked.borrow();
        match self.entries.keys().find(|key| !asked.contains(key.as_str())) {
            Some(unknown) => Err(ManifestError::Unknown {
                field: self.path(unknown),
            }),
            None => Ok(read),
        }
    }
}

const NAME: &str = "a name of 1 to 128 characters from A–Z a–z 0–9 . _ + -";
const VERSION: &str = "a semantic version";
const SHORT: &str = "a text of 1 to 128 bytes";
const PATH: &str = "a target path";
const SHA256: &str = "a SHA-256 in hexadecimal";

fn list(value: &Value) -> Option<&[Value]> {
    value.as_array().filter(|items| items.len() <= limits::LIST_ENTRIES)
}

/// Names become parts of paths and of log lines, so they hold nothing that means something there.
fn name(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let usable = (1..=limits::NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.');
    usable.then(|| text.to_owned())
}

fn short(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|text| (1..=limits::NAME_BYTES).contains(&text.len()))
        .map(str::to_owned)
}

fn long(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|text| text.len() <= limits::TEXT_BYTES)
        .map(str::to_owned)
}

fn names(value: &Value) -> Option<Vec<String>> {
    list(value)?.iter().map(name).collect()
}

fn version(value: &Value) -> Option<SemVer> {
    SemVer::parse(value.as_str().filter(|text| text.len() <= limits::NAME_BYTES)?).ok()
}

fn path(value: &Value) -> Option<TargetPath> {
    TargetPath::parse(value.as_str()?).ok()
}

fn digest<const N: usize>(value: &Value) -> Option<[u8; N]> {
    hex::decode_array(value.as_str()?)
}

fn size(value: &Value) -> Option<u64> {
    value.as_u64().filter(|size| *size <= limits::IMAGE_BYTES)
}

fn date(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    UtcSeconds::parse(&format!("{text}T00:00:00Z"))
        .ok()
        .map(|_| text.to_owned())
}

pub(super) fn manifest(value: &Value) -> Result<Manifest> {
    let fields = Fields::of(value, "")?;
    let schema = fields.get("schema", "a number", Value::as_u64)?;
    if schema != SCHEMA {
        return Err(ManifestError::Schema { actual: schema });
    }
    let manifest = Manifest {
        vendor: fields.get("vendor", SHORT, short)?,
        product: fields.get("product", NAME, name)?,
        version: fields.get("version", VERSION, version)?,
        sequence: fields.get("sequence", "a number from 1 on", |value| {
            value.as_u64().filter(|number| *number >= 1)
        })?,
        security_floor: fields.get("security_floor", "a number", Value::as_u64)?,
        hardware: fields.get("hardware", "a list of 1 to 256 names", |value| {
            names(value).filter(|names| !names.is_empty())
        })?,
        channel: fields.get("channel", NAME, name)?,
        kind: fields.get("kind", "security or feature", |value| Kind::from_word(value.as_str()?))?,
        requires: fields.maybe("requires", VERSION, version)?,
        components: fields.objects("components", component)?,
        settings: fields.object("settings", settings)?,
        advisory: fields.object("advisory", advisory)?,
        notes: fields.maybe("notes", "a text of at most 64 KiB", long)?,
        support_end: fields.maybe("support_end", "a date YYYY-MM-DD", date)?,
        sbom: fields.maybe("sbom", PATH, path)?,
        provenance: fields.maybe("provenance", PATH, path)?,
        design_conformity: fields.object("design_conformity", design_conformity)?,
        extensions: fields
            .maybe("extensions", "an object", |value| value.as_object().cloned())?
            .unwrap_or_default(),
    };
    if manifest.components.is_empty() {
        return Err(fields.invalid("components", "a list of at least one component"));
    }
    let mut seen = BTreeSet::new();
    if !manifest.components.iter().all(|component| seen.insert(&component.name)) {
        return Err(fields.invalid("components", "a list of components with different names"));
    }
    if manifest.security_floor > manifest.sequence {
        // Otherwise a device that confirms it could not boot it again.
        return Err(fields.invalid("security_floor", "at most the release's own sequence"));
    }
    fields.finish(manifest)
}

fn component(fields: Fields<'_>) -> Result<Component> {
    let payload = |fields: Fields<'_>| {
        let payload = Payload {
            target: fields.get("target", PATH, path)?,
            encoding: fields.get("encoding", "identity or zstd", |value| {
                Encoding::from_word(value.as_str()?)
            })?,
        };
        fields.finish(payload)
    };
    let image = |fields: Fields<'_>| {
        let image = Image {
            size: fields.get("size", "a size of at most 1 TiB", size)?,
            sha256: fields.get("sha256", SHA256, digest)?,
            sha512: fields.get("sha512", "a SHA-512 in hexadecimal", digest)?,
        };
        fields.finish(image)
    };
    let patch = |fields: Fields<'_>| {
        let patch = Patch {
            from: fields.get("from", SHA256, digest)?,
            target: fields.get("target", PATH, path)?,
        };
        fields.finish(patch)
    };
    let missing = |field| ManifestError::Missing {
        field: fields.path(field),
    };
    let component = Component {
        name: fields.get("name", NAME, name)?,
        slot_class: fields.get("slot_class", NAME, name)?,
        kind: fields.get("type", "raw or tar", |value| ImageKind::from_word(value.as_str()?))?,
        communication_function: fields.get("communication_function", "true or false", Value::as_bool)?,
        image: fields.object("image", image)?.ok_or_else(|| missing("image"))?,
        payload: fields.object("payload", payload)?.ok_or_else(|| missing("payload"))?,
        patches: fields.objects("patches", patch)?,
        verity_root: fields.maybe("verity_root", SHA256, digest)?,
    };
    fields.finish(component)
}

fn settings(fields: Fields<'_>) -> Result<Settings> {
    let migration = |fields: Fields<'_>| {
        let migration = Migration {
            from: fields.get("from", "a number", Value::as_u64)?,
            to: fields.get("to", "a number", Value::as_u64)?,
            target: fields.get("target", PATH, path)?,
            reversible: fields.get("reversible", "true or false", Value::as_bool)?,
        };
        fields.finish(migration)
    };
    let settings = Settings {
        schema: fields.get("schema", "a number", Value::as_u64)?,
        migrations: fields.objects("migrations", migration)?,
    };
    fields.finish(settings)
}

fn advisory(fields: Fields<'_>) -> Result<Advisory> {
    let advisory = Advisory {
        text: fields.get("text", "a text of at most 64 KiB", long)?,
        cves: fields
            .maybe("cves", "a list of at most 256 names", names)?
            .unwrap_or_default(),
        severity: fields.maybe("severity", NAME, name)?,
    };
    fields.finish(advisory)
}

fn design_conformity(fields: Fields<'_>) -> Result<DesignConformity> {
    let items = |value| {
        list(value)?
            .iter()
            .map(|item| item.as_u64().filter(|item| (1..=4).contains(item)))
            .collect()
    };
    let decision = DesignConformity {
        items: fields.get("items", "a list of numbers from 1 to 4", items)?,
        partial_change: fields.get("partial_change", "true or false", Value::as_bool)?,
        decided_by: fields.get("decided_by", SHORT, short)?,
        date: fields.get("date", "a date YYYY-MM-DD", date)?,
    };
    fields.finish(decision)
}

/// `custom.fw`. Unknown fields are passed over here: the manifest, which decides, is strict.
pub(super) fn custom(value: &Value) -> Result<FwCustom> {
    let fields = Fields::of(value, "fw")?;
    Ok(FwCustom {
        product: fields.get("product", NAME, name)?,
        hardware: fields.get("hardware", "a list of at most 256 names", names)?,
        version: fields.get("version", VERSION, version)?,
        sequence: fields.get("sequence", "a number", Value::as_u64)?,
        channel: fields.get("channel", NAME, name)?,
        min_version: fields.maybe("min_version", VERSION, version)?,
        rollout: fields.maybe("rollout", NAME, name)?,
        size: fields.get("size", "a number", Value::as_u64)?,
    })
}
