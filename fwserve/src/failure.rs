//! Chains of causes as one line, for answers and for the terminal.

use std::error::Error;

/// The message of an error and of all its causes, outermost first, joined by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
