//! The real binaries, as their users run them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Path of one of the project's programs, in the profile of the caller; built if need be, once in a process.
///
/// # Panics
/// When it does not compile: no test can go on without it.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .get_or_insert_default()
        .entry(name.to_owned())
        .or_insert_with(|| build(name))
        .clone()
}

fn build(name: &str) -> PathBuf {
    // A test lies in TARGET/PROFILE/deps, a program in TARGET/PROFILE.
    let own = std::env::current_exe().unwrap_or_else(|error| panic!("the path of this program: {error}"));
    let profile = own
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps"))
        .unwrap_or_else(|| panic!("{} is in no directory", own.display()));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace, so that dependencies have the features, and thus the builds, that the tests have too.
    cargo.args(["build", "--quiet", "--workspace", "--bin", name]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if let Some(target) = profile.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("starting cargo: {error}"));
    assert!(status.success(), "cargo could not build {name}: {status}");
    profile.join(name)
}
