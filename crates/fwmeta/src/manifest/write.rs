//! Writing manifests.

use super::{Component, Encoding, ImageKind, Kind, Manifest, SCHEMA};
use crate::hex;
use crate::json::{Value, object};

pub(super) fn texts(texts: &[String]) -> Value {
    Value::Array(texts.iter().map(Value::from).collect())
}

/// Drops entries whose value is null: an absent option is an absent field.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(entries) => {
            Value::Object(entries.into_iter().filter(|(_, value)| *value != Value::Null).collect())
        }
        other => other,
    }
}

fn list<T>(items: &[T], item: impl Fn(&T) -> Value) -> Value {
    Value::Array(items.iter().map(item).collect())
}

impl Manifest {
    /// The manifest as JSON; reading it gives the same manifest.
    pub fn to_value(&self) -> Value {
        let path = |path: &Option<crate::target::TargetPath>| path.as_ref().map(|path| path.as_str().to_owned()).into();
        let settings = self.settings.as_ref().map(|settings| {
            let migrations = list(&settings.migrations, |migration| {
                object([
                    ("from", migration.from.into()),
                    ("to", migration.to.into()),
                    ("target", migration.target.as_str().into()),
                    ("reversible", migration.reversible.into()),
                ])
            });
            object([("schema", settings.schema.into()), ("migrations", migrations)])
        });
        let advisory = self.advisory.as_ref().map(|advisory| {
            without_nulls(object([
                ("text", (&advisory.text).into()),
                ("cves", texts(&advisory.cves)),
                ("severity", advisory.severity.clone().into()),
            ]))
        });
        let design_conformity = self.design_conformity.as_ref().map(|decision| {
            object([
                ("items", list(&decision.items, |item| (*item).into())),
                ("partial_change", decision.partial_change.into()),
                ("decided_by", (&decision.decided_by).into()),
                ("date", (&decision.date).into()),
            ])
        });
        let extensions = (!self.extensions.is_empty()).then(|| self.extensions.clone());
        without_nulls(object([
            ("schema", SCHEMA.into()),
            ("vendor", (&self.vendor).into()),
            ("product", (&self.product).into()),
            ("version", self.version.to_string().into()),
            ("sequence", self.sequence.into()),
            ("security_floor", self.security_floor.into()),
            ("hardware", texts(&self.hardware)),
            ("channel", (&self.channel).into()),
            ("kind", self.kind.as_str().into()),
            ("requires", self.requires.as_ref().map(ToString::to_string).into()),
            ("components", list(&self.components, Component::to_value)),
            ("settings", settings.into()),
            ("advisory", advisory.into()),
            ("notes", self.notes.clone().into()),
            ("support_end", self.support_end.clone().into()),
            ("sbom", path(&self.sbom)),
            ("provenance", path(&self.provenance)),
            ("design_conformity", design_conformity.into()),
            ("extensions", extensions.into()),
        ]))
    }
}

impl Component {
    fn to_value(&self) -> Value {
        let image = object([
            ("size", self.image.size.into()),
            ("sha256", hex::encode(&self.image.sha256).into()),
            ("sha512", hex::encode(&self.image.sha512).into()),
        ]);
        let payload = object([
            ("target", self.payload.target.as_str().into()),
            ("encoding", self.payload.encoding.as_str().into()),
        ]);
        let patches = list(&self.patches, |patch| {
            object([
                ("from", hex::encode(&patch.from).into()),
                ("target", patch.target.as_str().into()),
            ])
        });
        without_nulls(object([
            ("name", (&self.name).into()),
            ("slot_class", (&self.slot_class).into()),
            ("type", self.kind.as_str().into()),
            ("communication_function", self.communication_function.into()),
            ("image", image),
            ("payload", payload),
            ("patches", patches),
            ("verity_root", self.verity_root.map(|root| hex::encode(&root)).into()),
        ]))
    }
}

macro_rules! words {
    ($type:ident: $($variant:ident = $word:literal),*) => {
        impl $type {
            /// The word that stands for it in a manifest.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            pub(super) fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words!(Kind: Security = "security", Feature = "feature");
words!(ImageKind: Raw = "raw", Tar = "tar");
words!(Encoding: Identity = "identity", Zstd = "zstd");
