//! `fwserve`: parses, dispatches, prints the result or the error chain, sets the exit code.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fwmeta::json::{Value, object};
use fwserve::config::{AccessLogTo, Config, Limits, PublishConfig, TlsFiles};

/// Serves a firmware update repository, and takes publications that devices would accept.
#[derive(Debug, Parser)]
#[command(name = "fwserve", version, about, max_term_width = 100)]
struct Cli {
    /// Print results and errors as JSON objects
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a repository directory until SIGTERM or SIGINT
    ///
    /// Example: fwserve serve --repo /srv/updates --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem
    Serve(Box<Serve>),
    /// Publish tokens
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Args)]
struct Serve {
    /// Repository directory, with metadata/ and targets/
    #[arg(long, value_name = "DIR")]
    repo: PathBuf,
    /// Address to listen on; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// PEM file of the certificate chain
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file of the private key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Take publications from the tokens in this file (see `fwserve token new`)
    #[arg(long, value_name = "FILE")]
    publish_token_file: Option<PathBuf>,
    /// Root metadata from which publications are judged; needed for the first one
    #[arg(long, value_name = "FILE", requires = "publish_token_file")]
    trusted_root: Option<PathBuf>,
    /// Longest object that may be uploaded, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30)]
    max_object: u64,
    /// Let tokens travel over plain HTTP to an address that is not loopback, as behind a proxy
    #[arg(long, requires = "publish_token_file")]
    allow_plain_http: bool,
    /// Append one JSON line a request to this file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Seconds for which caches may use timestamp.json without asking
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timestamp_max_age: u32,
    /// Connections at one time
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token, print it once, and add its hash to a file
    ///
    /// Example: fwserve token new --name ci --file tokens
    New {
        /// Who will use it
        #[arg(long)]
        name: String,
        /// Token file; made if need be
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// Exit codes shared by all programs of the project.
const USAGE: u8 = 2;
const ENVIRONMENT: u8 = 3;

fn main() -> ExitCode {
    // clap ends the process with 2 for usage errors, which is the project's code for them too.
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(serve) => run(*serve, cli.json),
        Command::Token(TokenCommand::New { name, file }) => new_token(&name, &file, cli.json),
    };
    let Err((code, error)) = result else {
        return ExitCode::SUCCESS;
    };
    if cli.json {
        let word = if code == USAGE { "usage" } else { "environment" };
        print(&object([("error", word.into()), ("message", format!("{error:#}").into())]).to_json());
    } else {
        eprintln!("fwserve: {error:#}");
    }
    ExitCode::from(code)
}

type Failure = (u8, anyhow::Error);

fn run(serve: Serve, json: bool) -> Result<(), Failure> {
    let config = config(serve);
    let environment = |error: anyhow::Error| (ENVIRONMENT, error);
    let running = fwserve::start(config).map_err(|error| match error {
        fwserve::StartError::PlainTokens { .. } => (USAGE, error.into()),
        error => (ENVIRONMENT, error.into()),
    })?;
    let url = running.url();
    if json {
        let address = running.address();
        print(
            &object([
                ("listening", Value::from(url)),
                ("address", address.ip().to_string().into()),
                ("port", u64::from(address.port()).into()),
            ])
            .to_json(),
        );
    } else {
        print(&format!("listening on {url}"));
    }
    running.run_until_signal().map_err(|error| environment(error.into()))
}

fn config(serve: Serve) -> Config {
    let (max_object, allow_plain_http, trusted_root) = (serve.max_object, serve.allow_plain_http, serve.trusted_root);
    Config {
        repo: serve.repo,
        listen: serve.listen,
        tls: serve
            .tls_cert
            .zip(serve.tls_key)
            .map(|(certificates, key)| TlsFiles { certificates, key }),
        publish: serve.publish_token_file.map(|token_file| PublishConfig {
            token_file,
            trusted_root,
            max_object,
            allow_plain_http,
        }),
        access_log: match serve.access_log {
            None => AccessLogTo::Nowhere,
            Some(path) if path.as_os_str() == "-" => AccessLogTo::Stdout,
            Some(path) => AccessLogTo::File(path),
        },
        timestamp_max_age: serve.timestamp_max_age,
        limits: Limits {
            connections: serve.max_connections.clamp(1, 1 << 20),
            ..Limits::default()
        },
    }
}

fn new_token(name: &str, file: &std::path::Path, json: bool) -> Result<(), Failure> {
    let token = fwserve::tokens::create(file, name).map_err(|error| match error {
        fwserve::tokens::TokenError::Name { .. } => (USAGE, error.into()),
        error => (ENVIRONMENT, error.into()),
    })?;
    if json {
        print(&object([("name", name.into()), ("token", token.into())]).to_json());
    } else {
        print(&token);
    }
    Ok(())
}

/// Flushed, because scripts wait for it. A reader that went away is no reason to panic.
fn print(text: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
