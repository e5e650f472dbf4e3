//! What a command reports: the same facts for people and for machines.

use fwmeta::json::Value;

/// Result of a command.
#[derive(Debug)]
pub struct Report {
    /// For people, without a final newline.
    pub text: String,
    /// For machines.
    pub json: Value,
}

impl Report {
    /// A report.
    pub fn new(text: impl Into<String>, json: Value) -> Self {
        Self {
            text: text.into(),
            json,
        }
    }
}
