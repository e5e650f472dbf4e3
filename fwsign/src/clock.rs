//! The time of a command: the clock, or `SOURCE_DATE_EPOCH` for reproducible outputs.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use fwmeta::time::UtcSeconds;

/// Variable of <https://reproducible-builds.org/specs/source-date-epoch/>.
const VARIABLE: &str = "SOURCE_DATE_EPOCH";
/// 9999-01-01T00:00:00Z: later than that, expiries could not be written.
const LATEST: i64 = 253_370_764_800;

/// `SOURCE_DATE_EPOCH`, when set.
///
/// # Errors
/// When it is no number of seconds between 1970 and 9999.
pub fn fixed() -> anyhow::Result<Option<UtcSeconds>> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    match seconds.filter(|seconds| (0..LATEST).contains(seconds)) {
        Some(seconds) => Ok(Some(UtcSeconds(seconds))),
        None => bail!("{VARIABLE} is {text:?}, not a number of seconds between 1970 and 9999"),
    }
}

/// The moment at which signatures are made: `SOURCE_DATE_EPOCH` when set.
///
/// # Errors
/// As [`fixed`], or when the clock is before 1970.
pub fn signing_time() -> anyhow::Result<UtcSeconds> {
    fixed()?.map_or_else(now, Ok)
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
