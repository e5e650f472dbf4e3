//! The text of files that the device's own software reads.
//!
//! ```text
//! json   {"network":{"hostname":"gate","mtu":1500}}
//! env    NETWORK_HOSTNAME='gate'                      for shells and EnvironmentFile= of systemd
//! toml   network.hostname = "gate"
//! ```

use std::collections::BTreeMap;

use fwmeta::json::Value;

use super::key::Key;
use super::values::Values;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON, indented.
    Json,
    /// Lines of `NAME='value'`.
    Env,
    /// TOML with dotted keys.
    Toml,
}

/// Settings that a format cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// Two keys have one name.
    #[error("{first} and {second} would both be {name}")]
    SameName {
        /// One.
        first: Key,
        /// The other.
        second: Key,
        /// The name.
        name: String,
    },
    /// A character that ends the line or the text.
    #[error("{key} holds a line break or a NUL, which the format env cannot express")]
    LineBreak {
        /// The key.
        key: Key,
    },
    /// `null`, or an integer beyond 64 bits.
    #[error("{key} holds {what}, which TOML cannot express")]
    NotToml {
        /// The key.
        key: Key,
        /// What.
        what: &'static str,
    },
}

/// The text.
///
/// # Errors
/// [`RenderError`].
pub fn render(values: &Values, format: Format) -> Result<String, RenderError> {
    match format {
        Format::Json => Ok(values.to_tree().to_json_pretty()),
        Format::Env => env(values),
        Format::Toml => toml(values),
    }
}

fn env(values: &Values) -> Result<String, RenderError> {
    let mut named: BTreeMap<String, &Key> = BTreeMap::new();
    let mut text = String::new();
    for (key, value) in values.iter() {
        let name = key.as_str().replace(['.', '-'], "_").to_ascii_uppercase();
        // A name that began with a digit would be none.
        let name = if name.starts_with(|first: char| first.is_ascii_digit()) {
            format!("_{name}")
        } else {
            name
        };
        if let Some(first) = named.insert(name.clone(), key) {
            return Err(RenderError::SameName {
                first: first.clone(),
                second: key.clone(),
                name,
            });
        }
        let value = match value {
            Value::Str(value) => value.clone(),
            other => other.to_json(),
        };
        if value.contains(['\n', '\r', '\0']) {
            return Err(RenderError::LineBreak { key: key.clone() });
        }
        text.push_str(&format!("{name}='{}'\n", value.replace('\'', "'\\''")));
    }
    Ok(text)
}

fn toml(values: &Values) -> Result<String, RenderError> {
    let mut text = String::new();
    for (key, value) in values.iter() {
        let written = toml_value(value).map_err(|what| RenderError::NotToml { key: key.clone(), what })?;
        // Parts of keys are bare keys of TOML.
        text.push_str(&format!("{key} = {written}\n"));
    }
    Ok(text)
}

fn toml_value(value: &Value) -> Result<String, &'static str> {
    Ok(match value {
        Value::Null => return Err("null"),
        Value::Int(number) => i64::try_from(*number)
            .map_err(|_| "an integer beyond 64 bits")?
            .to_string(),
        Value::Bool(truth) => truth.to_string(),
        // The escapes of JSON that the writer uses are those of TOML, too.
        Value::Str(_) => value.to_json(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_value).collect::<Result<_, _>>()?;
            format!("[{}]", items.join(", "))
        }
        Value::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| {
                let key = Value::from(key.as_str()).to_json();
                Ok(format!("{key} = {}", toml_value(value)?))
            });
            let entries: Vec<String> = entries.collect::<Result<_, &'static str>>()?;
            format!("{{{}}}", entries.join(", "))
        }
    })
}
