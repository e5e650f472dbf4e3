//! Programs of other people that tests run against. Std only: crates that this package depends on include the file by
//! path.

use std::io::Write;
use std::path::PathBuf;

/// Says that a test does not run, and fails where every tool must be there: in CI, and with `FWTESTS_REQUIRE_TOOLS=1`.
///
/// # Panics
/// There.
pub fn skip(reason: &str) {
    let set = |name, value| std::env::var(name).is_ok_and(|found| found == value);
    assert!(
        !set("CI", "true") && !set("FWTESTS_REQUIRE_TOOLS", "1"),
        "a required tool is missing: {reason}"
    );
    // Not by `eprintln!`, which the test harness keeps to itself when a test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// The path of a program that the system has; otherwise [`skip`]s.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}
