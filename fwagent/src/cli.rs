//! Argument types.

use std::path::PathBuf;

use crate::config::DEFAULT_PATH;

pub mod settings;

/// Portable firmware update agent: verifies, installs into the inactive slot, tries, confirms or falls back.
///
/// Exit codes: 0 done, 1 refused by verification, 2 usage, 3 environment, 4 nothing to do.
#[derive(Debug, clap::Parser)]
#[command(name = "fwagent", version, about, max_term_width = 100)]
pub struct Cli {
    /// Print results, progress and errors as JSON objects, one a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Configuration file
    #[arg(long, value_name = "FILE", global = true, default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Give a new device its root of trust, and say or install what it runs
    ///
    /// Example: fwagent provision --root 1.root.json --from-server
    Provision(Provision),
    /// Ask the server and say what would be installed; exit code 4 when nothing would
    Check(Check),
    /// Ask the server and install what it has, once
    ///
    /// Example: fwagent install --version 1.2.0; fwagent install --bundle /media/stick/router.fwbundle
    Install(Install),
    /// Poll, install, confirm and fall back until SIGTERM; SIGUSR1 polls at once
    Run,
    /// Say what runs, what is in the slots and how the last update ended
    Status(Status),
    /// Print what the running agent does as it does it, until one of the two ends
    Watch(Watch),
    /// Confirm the software on trial
    Confirm,
    /// Give up the update in progress, or go back to the other confirmed slot
    Rollback,
    /// Keep the software as it is until a time, or until `resume`
    ///
    /// Example: fwagent hold --for 7d --reason "exhibition"
    Hold(Hold),
    /// End a hold
    Resume,
    /// Say whether the record of the floors belongs to the counter in the TPM; exit code 1 when it does not
    ///
    /// Example: fwagent floors --accept-tpm
    Floors(FloorsArgs),
    /// Say why there is or is not an update, from what the last check found
    Explain,
    /// Say which statements about this device wait for a server, send them, or take them away
    ///
    /// Example: fwagent report --deliver; fwagent report --export /media/stick/report.jsonl
    Report(ReportArgs),
    /// Show the public key by which servers know this device
    Identity,
    /// The boot loader's half of boot control `file`: choose a slot, spend an attempt, start a command in it
    ///
    /// Example: fwagent boot --supervise -- {slot}/bin/app
    Boot(Boot),
    /// Inspect a running system and write a configuration for it, or say what is missing
    ///
    /// Example: fwagent adopt --product router --output /etc/fwagent/fwagent.toml
    Adopt(Adopt),
    /// Cut the power at every storage operation of a simulated device, and check what must hold
    ///
    /// Needs no configuration. Exit code 1 when an invariant is violated, or a deliberate mistake is not found.
    #[cfg(feature = "simulate")]
    Simulate(Simulate),
    /// Read and change the settings that travel with the software
    #[command(subcommand)]
    Settings(settings::SettingsCommand),
    /// Give all settings up for the factory defaults; root of trust, floors and identity stay
    FactoryReset(settings::FactoryReset),
    /// Confines itself and becomes a migration program
    #[command(hide = true)]
    MigrationChild(crate::host::settings::confine::MigrationChild),
    /// TUF client with the interface of the public conformance suite
    Tuf(crate::tuf::TufArgs),
}

/// Arguments of `provision`.
#[derive(Debug, clap::Args)]
pub struct Provision {
    /// Root metadata to trust from now on
    #[arg(long, value_name = "FILE")]
    pub root: PathBuf,
    /// Slot set that the device runs; the first of the configuration when absent
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// Install the newest release that suits into that slot, verified as every update is
    #[arg(long, group = "source", conflicts_with = "manifest")]
    pub from_server: bool,
    /// The same from an offline bundle
    #[arg(long, value_name = "FILE", group = "source", conflicts_with = "manifest")]
    pub bundle: Option<PathBuf>,
    /// With --from-server or --bundle: only this version
    #[arg(long, value_name = "VERSION", requires = "source")]
    pub version: Option<String>,
    /// Manifest of the software that is in that slot already; the slot is checked against it
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Also on a device whose TPM belongs to a record that is gone; its floors are lost
    #[arg(long)]
    pub accept_tpm: bool,
}

/// Arguments of `floors`.
#[derive(Debug, clap::Args)]
pub struct FloorsArgs {
    /// Take the record as it is: after a TPM was replaced or cleared, or an older record was put back on purpose
    #[arg(long)]
    pub accept_tpm: bool,
}

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Only this version
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Also a release that failed on this device before
    #[arg(long)]
    pub retry: bool,
    /// Offline bundle to take in place of the server, under the same rules
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
}

/// Arguments of `install`.
#[derive(Debug, clap::Args)]
pub struct Install {
    /// Which release.
    #[command(flatten)]
    pub wish: Check,
    /// Do not wait for these: window, hold, inhibit; several with commas
    #[arg(long, value_name = "CONDITION", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// Say what would be done, and write nothing into slots and records of updates
    #[arg(long)]
    pub dry_run: bool,
    /// Where the signed result of a bundle goes; STATE/bundle-result.json when absent
    #[arg(long, value_name = "FILE", requires = "bundle")]
    pub result: Option<PathBuf>,
    /// Also when later edits of settings could not be carried back
    #[arg(long)]
    pub accept_one_way: bool,
}

/// Arguments of `hold`.
#[derive(Debug, clap::Args)]
pub struct Hold {
    /// Until this moment, such as 2030-12-31T23:59:59Z
    #[arg(long, value_name = "TIME", conflicts_with = "for")]
    pub until: Option<String>,
    /// For so long: 90m, 12h, 7d, 2w
    #[arg(long, value_name = "DURATION")]
    pub r#for: Option<String>,
    /// Why, for whoever asks
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

/// Arguments of `adopt`.
#[derive(Debug, clap::Args)]
pub struct Adopt {
    /// Where the configuration goes; it must not exist. Without one, it is printed
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Root of the system to inspect
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub sysroot: PathBuf,
    /// The boot control, where several would do
    #[arg(long, value_name = "NAME")]
    pub control: Option<String>,
    /// What the device is, as its releases name it
    #[arg(long, value_name = "NAME")]
    pub product: Option<String>,
    /// What its hardware is, as releases name it
    #[arg(long, value_name = "NAME")]
    pub hardware: Option<String>,
    /// Where updates are
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Directory of the agent's state, on a file system that no update replaces
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Arguments of `simulate`.
#[cfg(feature = "simulate")]
#[derive(Debug, clap::Args)]
pub struct Simulate {
    /// List scenarios and deliberate mistakes, and do nothing
    #[arg(long)]
    pub list: bool,
    /// Only this scenario, with the code as it is or with the mistake of --broken
    #[arg(long, value_name = "NAME")]
    pub scenario: Option<String>,
    /// Only code with this deliberate mistake, which must be found
    #[arg(long, value_name = "NAME")]
    pub broken: Option<String>,
    /// Number from which everything is drawn that is not exhaustive
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Second cuts in each scenario, drawn by the seed; `all` for every one
    #[arg(long, value_name = "N|all", default_value = "2000")]
    pub double: String,
    /// Run one case again and tell the story: the cut is at this operation
    #[arg(long, value_name = "K", requires = "variant", requires = "scenario")]
    pub cut: Option<usize>,
    /// In this way: before, after, lost, after-lost, torn:BYTES, some:BITS
    #[arg(long, value_name = "V", requires = "cut")]
    pub variant: Option<String>,
    /// A second cut, at this operation of the recovery
    #[arg(long, value_name = "K", requires = "recovery_variant", requires = "cut")]
    pub recovery_cut: Option<usize>,
    /// In this way
    #[arg(long, value_name = "V", requires = "recovery_cut")]
    pub recovery_variant: Option<String>,
}

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Ask the agent that runs at this socket instead of reading its records
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub struct Watch {
    /// Socket of the agent; status.socket of the configuration when absent
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Send what waits now, also what the server refused before
    #[arg(long, conflicts_with = "export")]
    pub deliver: bool,
    /// Write what waits into a file, one statement a line, for a server to take in later; it goes on waiting
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
}

/// Arguments of `boot`.
#[derive(Debug, clap::Args)]
pub struct Boot {
    /// Stay, and boot anew whenever the command ends
    #[arg(long, requires = "command")]
    pub supervise: bool,
    /// Command to start; `{slot}` is the path of the slot. Without one, the slot is printed
    #[arg(last = true)]
    pub command: Vec<String>,
}
