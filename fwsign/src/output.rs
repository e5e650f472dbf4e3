//! What a command reports: the same facts for people and for machines.

use fwmeta::json::Value;

use crate::code::Code;

/// Result of a command.
#[derive(Debug)]
pub struct Report {
    /// For people, without a final newline.
    pub text: String,
    /// For machines.
    pub json: Value,
    /// Exit code of a command that did its work and has bad news; `None` is 0.
    pub code: Option<Code>,
}

impl Report {
    /// A report of success.
    pub fn new(text: impl Into<String>, json: Value) -> Self {
        Self {
            text: text.into(),
            json,
            code: None,
        }
    }
}

/// Says something that does not stop the command, on standard error.
pub fn warn(text: &str) {
    eprintln!("fwsign: warning: {text}");
}
