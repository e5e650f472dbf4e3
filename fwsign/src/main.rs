//! `fwsign`: parses, dispatches, prints the result or the error chain, sets the exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use fwmeta::json::object;
use fwsign::cli::Cli;

fn main() -> ExitCode {
    // clap ends the process with 2 for usage errors, which is the project's code for them too.
    let cli = Cli::parse();
    match fwsign::cmd::run(&cli.command) {
        Ok(report) => {
            print(&if cli.json { report.json.to_json() } else { report.text });
            report.code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code as u8))
        }
        Err(failure) => {
            if cli.json {
                let json = object([
                    ("error", failure.code.word().into()),
                    ("message", failure.to_string().into()),
                ]);
                print(&json.to_json());
            } else {
                eprintln!("fwsign: {failure}");
            }
            ExitCode::from(failure.code as u8)
        }
    }
}

/// A reader that went away is no reason to panic.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
