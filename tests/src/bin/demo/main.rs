//! The demo: keys, signed releases, a running server and a device that updates itself, falls back, refuses and survives,
//! all with the real programs, without root and without network.
//!
//! `cargo demo` updates fwagent itself, out of directory slots. `cargo demo -- --image-a A --image-b B` does the same
//! with two raw images and file slots.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fwtests::bins::binary;

mod images;
mod itself;
mod stage;

/// Shows the whole chain from a key to a confirmed device.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Raw image that the device runs first
    #[arg(long, value_name = "FILE", requires = "image_b")]
    image_a: Option<PathBuf>,
    /// Raw image that it is updated to
    #[arg(long, value_name = "FILE", requires = "image_a")]
    image_b: Option<PathBuf>,
    /// Work in this directory and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    println!("building fwsign, fwserve and fwagent (only the first time takes long)");
    for program in ["fwsign", "fwserve", "fwagent"] {
        binary(program);
    }
    let temporary;
    let dir = match &arguments.keep {
        Some(dir) => {
            anyhow::ensure!(!dir.join("repo").exists(), "{} was used before", dir.display());
            std::fs::create_dir_all(dir)?;
            dir.canonicalize()?
        }
        None => {
            temporary = tempfile::tempdir()?;
            temporary.path().to_owned()
        }
    };
    match (&arguments.image_a, &arguments.image_b) {
        (Some(a), Some(b)) => images::run(&dir, &a.canonicalize()?, &b.canonicalize()?),
        _ => itself::run(&dir),
    }
}
