//! Files that people exchange: settings as JSON or TOML.
//!
//! ```text
//! {"schema": 2, "values": {…}}      whole settings: export, import, factory defaults
//! {"network": {"mtu": null}}        a transaction for `settings apply` (RFC 7396)
//! ```

use fwmeta::json::{Doc, Value};

use super::values::{MAX_BYTES, Values, ValuesError};

/// Longest document, in bytes: indented JSON of the longest settings.
pub const DOCUMENT_BYTES: usize = 4 * MAX_BYTES;

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON.
    Json,
    /// TOML: no `null`, so that nothing can be removed by it.
    Toml,
}

impl Form {
    /// By the name of a file: TOML when it ends with `.toml`.
    pub fn of_name(name: &str) -> Self {
        if name.ends_with(".toml") {
            Self::Toml
        } else {
            Self::Json
        }
    }
}

/// A document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Too long.
    #[error("it is longer than the {DOCUMENT_BYTES} bytes allowed")]
    TooLong,
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// Not TOML.
    #[error("not TOML: {0}")]
    Toml(String),
    /// A number with a fraction, or a date.
    #[error(
        "a value is of type {what}; settings know text, integers, truth values, lists and tables: write it as text"
    )]
    Kind {
        /// The type.
        what: String,
    },
    /// Not whole settings.
    #[error("it needs a field schema, a number, and a field values, and no others")]
    NotWhole,
    /// The settings in it are none.
    #[error(transparent)]
    Values(#[from] ValuesError),
}

/// Reads a tree.
///
/// # Errors
/// [`DocumentError`].
pub fn tree(bytes: &[u8], form: Form) -> Result<Value, DocumentError> {
    if bytes.len() > DOCUMENT_BYTES {
        return Err(DocumentError::TooLong);
    }
    match form {
        Form::Json => {
            let doc = Doc::parse(bytes).map_err(|error| DocumentError::Json(error.to_string()))?;
            let value = doc.root().to_value();
            value.map_err(|error| DocumentError::Json(error.to_string()))
        }
        Form::Toml => {
            let text = std::str::from_utf8(bytes).map_err(|error| DocumentError::Toml(error.to_string()))?;
            let table: toml::Table =
                toml::from_str(text).map_err(|error| DocumentError::Toml(error.message().to_owned()))?;
            of_toml(toml::Value::Table(table))
        }
    }
}

fn of_toml(value: toml::Value) -> Result<Value, DocumentError> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(of_toml).collect::<Result<_, _>>()?),
        toml::Value::Table(entries) => Value::Object(
            entries
                .into_iter()
                .map(|(key, value)| Ok((key, of_toml(value)?)))
                .collect::<Result<_, DocumentError>>()?,
        ),
        other @ (toml::Value::Float(_) | toml::Value::Datetime(_)) => {
            let what = other.type_str().to_owned();
            return Err(DocumentError::Kind { what });
        }
    })
}

/// Reads whole settings: their schema and values.
///
/// # Errors
/// [`DocumentError`].
pub fn whole(bytes: &[u8], form: Form) -> Result<(u64, Values), DocumentError> {
    let document = tree(bytes, form)?;
    let fields = document.as_object().ok_or(DocumentError::NotWhole)?;
    let schema = document.get("schema").and_then(Value::as_u64);
    match (schema, document.get("values"), fields.len()) {
        (Some(schema), Some(values), 2) => Ok((schema, Values::from_tree(values)?)),
        _ => Err(DocumentError::NotWhole),
    }
}
