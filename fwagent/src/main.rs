//! `fwagent`: parses, dispatches, prints the error chain, sets the exit code.

use std::panic;
use std::process::ExitCode;

use clap::Parser;

/// Portable firmware update agent.
#[derive(Debug, Parser)]
#[command(name = "fwagent", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// TUF client with the interface of the public conformance suite
    Tuf(fwagent::tuf::TufArgs),
}

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
            let code = if error.use_stderr() { 2 } else { 0 };
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return code;
        }
    };
    let result = match &cli.command {
        Command::Tuf(args) => fwagent::tuf::run(args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("fwagent: {error:#}");
            1
        }
    }
}
