//! Power cuts on a device in a virtual machine, with real boot loaders: `cargo vm --loader grub --cuts 20`.
//!
//! Needs `qemu-system-x86_64`, `mke2fs`, `debugfs`, `sgdisk`, `strip`, the tools of the boot loader, and what
//! `tests/src/vm/setup.sh` unpacks. With `--planted` it succeeds when it finds the bug.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use fwtests::vm::story::{Options, Story, Violation};
use fwtests::vm::{Loader, Planted};
use serde_json::json;

/// Cuts the power of a virtual device, again and again, and checks that it always recovers.
#[derive(Debug, Parser)]
#[command(name = "vm")]
struct Arguments {
    /// The boot loader
    #[arg(long)]
    loader: Loader,
    /// Power cuts
    #[arg(long, default_value_t = 10)]
    cuts: u32,
    /// Seed of all chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Plant a bug, which must be found
    #[arg(long)]
    planted: Option<Planted>,
    /// Go straight to the cuts, without the updates that fail before; so does --planted
    #[arg(long)]
    no_calm: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Show the console of the device
    #[arg(long)]
    console: bool,
    /// Work in this new directory and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::from(3)
        }
    }
}

/// Whether all held; or, with a planted bug, whether it was found.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let temporary = tempfile::tempdir()?;
    let dir = match &arguments.keep {
        Some(dir) => {
            std::fs::create_dir(dir)?;
            dir.canonicalize()?
        }
        None => temporary.path().to_owned(),
    };
    let start = Instant::now();
    let options = Options {
        loader: arguments.loader,
        cuts: arguments.cuts,
        seed: arguments.seed,
        planted: arguments.planted,
        console: arguments.console,
    };
    let mut story = Story::new(options, &dir)?;
    let violation = match live(&mut story, !arguments.no_calm && arguments.planted.is_none()) {
        Ok(()) => None,
        Err(error) if error.chain().any(|cause| cause.is::<Violation>()) => Some(format!("{error:#}")),
        Err(error) => return Err(error),
    };
    let seconds = start.elapsed().as_secs();
    let expected = arguments.planted.is_some() == violation.is_some();
    let summary = story.summary.to_value();
    if arguments.json {
        let result = json!({
            "loader": format!("{:?}", arguments.loader).to_lowercase(),
            "seed": arguments.seed,
            "planted": arguments.planted.map(|planted| format!("{planted:?}")),
            "violation": violation,
            "as_expected": expected,
            "seconds": seconds,
            "seen": summary,
        });
        println!("{result}");
    } else {
        println!("{summary:#}");
        match (&violation, arguments.planted) {
            (Some(violation), None) => println!("VIOLATED: {violation}"),
            (Some(violation), Some(planted)) => println!("the planted bug {planted:?} was found: {violation}"),
            (None, Some(planted)) => println!("the planted bug {planted:?} was NOT found"),
            (None, None) => println!("all held, in {seconds} s"),
        }
    }
    Ok(expected)
}

fn live(story: &mut Story, calm: bool) -> anyhow::Result<()> {
    if calm {
        story.calm()?;
    }
    story.storm()?;
    story.rest()
}
