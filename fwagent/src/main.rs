//! `fwagent`: parses, dispatches, prints the result or the error chain, sets the exit code.

use std::panic;
use std::process::ExitCode;

use clap::Parser;
use fwagent::cli::{Cli, Command};
use fwagent::failure::{Code, Failure};
use fwagent::output;

fn main() -> ExitCode {
    // The conformance interface knows only 0 and 1, whatever happens.
    let conformance = std::env::args_os().nth(1).is_some_and(|argument| argument == "tuf");
    let code = panic::catch_unwind(run).unwrap_or(3);
    ExitCode::from(if conformance { code.min(1) } else { code })
}

fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if !error.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") {
                // Nothing can be done about a closed terminal.
                let _ = error.print();
                return if error.use_stderr() { 2 } else { 0 };
            }
            let text = error.render().to_string();
            let message = text.trim().trim_start_matches("error: ").to_owned();
            output::failure(&Failure::new(Code::Usage, message), true);
            return Code::Usage as u8;
        }
    };
    if let Command::Tuf(args) = &cli.command {
        return match fwagent::tuf::run(args) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("fwagent: {error:#}");
                1
            }
        };
    }
    if let Command::MigrationChild(args) = &cli.command {
        eprintln!("{:#}", fwagent::host::settings::confine::run(args));
        return Code::Environment as u8;
    }
    match fwagent::cmd::run(&cli) {
        Ok(report) => {
            output::report(&report, cli.json);
            report.code as u8
        }
        Err(failure) => {
            output::failure(&failure, cli.json);
            failure.code as u8
        }
    }
}
