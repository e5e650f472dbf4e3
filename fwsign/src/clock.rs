//! The time of a command: the clock, or `SOURCE_DATE_EPOCH` for reproducible outputs.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fwmeta::time::UtcSeconds;

/// Variable of <https://reproducible-builds.org/specs/source-date-epoch/>.
const VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// The moment at which signatures are made: `SOURCE_DATE_EPOCH` when set.
///
/// # Errors
/// When the variable is no number, or the clock is before 1970.
pub fn signing_time() -> anyhow::Result<UtcSeconds> {
    match std::env::var(VARIABLE) {
        Ok(text) => text
            .parse()
            .map(UtcSeconds)
            .with_context(|| format!("{VARIABLE} is {text:?}, not a number of seconds")),
        Err(_) => now(),
    }
}

/// The clock.
///
/// # Errors
/// When it is before 1970.
pub fn now() -> anyhow::Result<UtcSeconds> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(UtcSeconds(i64::try_from(since.as_secs())?))
}
