//! Arguments of `settings` and `factory-reset`.

use std::path::PathBuf;

/// Work on the settings of the running software.
#[derive(Debug, clap::Subcommand)]
pub enum SettingsCommand {
    /// Print one setting, or the settings below a key; exit code 4 when there is none
    Get(Get),
    /// Change one setting, or remove it
    ///
    /// Example: fwagent settings set network.mtu 1500
    Set(Set),
    /// Change several settings at once, all or none; or apply, or discard, edits that a return left over
    ///
    /// Example: fwagent settings apply changes.json --expect 7
    Apply(Apply),
    /// Print all settings
    List(List),
    /// Print the generations that are kept, edits that wait for a decision, and what was damaged
    History,
    /// Write all settings with their schema, for `import`
    Export(Export),
    /// Replace all settings; protected ones only with --with-secrets
    Import(Import),
}

/// Arguments of `settings get`.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// Key, such as network.hostname
    pub key: String,
    /// Also print what is of a protected class
    #[arg(long)]
    pub show_secrets: bool,
}

/// Arguments of `settings set`.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// Key, such as network.hostname
    pub key: String,
    /// JSON, or else a text; an object replaces all below the key
    #[arg(required_unless_present_any = ["stdin", "remove"], conflicts_with_all = ["stdin", "remove"], allow_hyphen_values = true)]
    pub value: Option<String>,
    /// The value is a text whatever it looks like
    #[arg(long)]
    pub text: bool,
    /// Read the value from standard input, so that no list of processes shows it
    #[arg(long, conflicts_with = "remove")]
    pub stdin: bool,
    /// Remove the key and all below it
    #[arg(long)]
    pub remove: bool,
    /// Only when this generation is in use
    #[arg(long, value_name = "NUMBER")]
    pub expect: Option<u64>,
}

/// Arguments of `settings apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// JSON or TOML (by its name) with the new values; `null` removes; `-` is JSON from standard input
    #[arg(required_unless_present_any = ["orphaned", "discard_orphaned"])]
    pub file: Option<PathBuf>,
    /// Apply the edits that a return could not carry over
    #[arg(long, conflicts_with_all = ["file", "discard_orphaned"])]
    pub orphaned: bool,
    /// Forget the edits that a return could not carry over
    #[arg(long, conflicts_with = "file")]
    pub discard_orphaned: bool,
    /// Only when this generation is in use
    #[arg(long, value_name = "NUMBER")]
    pub expect: Option<u64>,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `settings list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Also print what is of a protected class
    #[arg(long)]
    pub show_secrets: bool,
}

/// Arguments of `settings export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Where to, mode 0600; standard output when absent
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// With what is of a protected class
    #[arg(long)]
    pub with_secrets: bool,
}

/// Arguments of `settings import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// What `export` wrote, or TOML of the same form; `-` is JSON from standard input
    pub file: PathBuf,
    /// Protected settings are replaced, too
    #[arg(long)]
    pub with_secrets: bool,
    /// Only when this generation is in use
    #[arg(long, value_name = "NUMBER")]
    pub expect: Option<u64>,
}

/// Arguments of `factory-reset`.
#[derive(Debug, clap::Args)]
pub struct FactoryReset {
    /// All settings are given up, accounts and passwords among them
    #[arg(long, required = true)]
    pub yes: bool,
}
