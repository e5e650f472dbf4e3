//! Argument types.

use std::path::PathBuf;

use crate::release::Lifetimes;
use crate::signer::{KeyArgs, OpenArgs};

/// Signs firmware releases: keys, repository, releases, verification, publishing.
#[derive(Debug, clap::Parser)]
#[command(name = "fwsign", version, about, max_term_width = 100)]
pub struct Cli {
    /// Print the result, or the error, as one JSON object
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
// The URL of an example is shown by `--help`, where angle brackets would be read as part of it.
#[allow(rustdoc::bare_urls)]
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key pair: FILE (private, encrypted) and FILE with .pub.pem
    ///
    /// Example: fwsign keygen keys/root-1.pem
    Keygen(Keygen),
    /// Make a new repository: root, targets, snapshot, timestamp, and a role for each product
    ///
    /// Example: fwsign init repo --root-key r1.pem --root-key r2.pem --targets-key t.pem --snapshot-key s.pem
    /// --timestamp-key ts.pem --product router=p.pem
    Init(Init),
    /// Add a product to a repository
    #[command(subcommand)]
    Product(ProductCommand),
    /// Add releases
    #[command(subcommand)]
    Release(ReleaseCommand),
    /// Renew timestamp and snapshot, and the targets roles that are named
    ///
    /// Example: fwsign refresh repo --keys-dir keys
    Refresh(Refresh),
    /// Verify a repository as devices do, and by `tough`; both must agree
    ///
    /// Example: fwsign verify repo --root factory-root.json
    Verify(Verify),
    /// Say what expires when and who may sign what; exit code 1 when something has expired
    ///
    /// Example: fwsign status repo
    Status(Status),
    /// Bring a repository to a directory that is served, or to a running fwserve
    ///
    /// Example: fwsign publish repo --server https://updates.example.com --token-file token
    Publish(Publish),
    /// Put one release into a file that travels on a stick: `fwagent install --bundle FILE`
    ///
    /// Example: fwsign bundle repo --product router -o router.fwbundle
    Bundle(Bundle),
}

/// Arguments of `keygen`.
#[derive(Debug, clap::Args)]
pub struct Keygen {
    /// Private key file to make; never overwritten
    pub file: PathBuf,
    /// Write the private key without encryption
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_fd"])]
    pub unencrypted: bool,
    /// Where the passphrase comes from.
    #[command(flatten)]
    pub passphrase: crate::passphrase::PassphraseArgs,
}

/// How long metadata are valid.
#[derive(Debug, Clone, clap::Args)]
pub struct LifetimeArgs {
    /// Days for which root is valid
    #[arg(long, value_name = "DAYS", default_value_t = Lifetimes::default().root, value_parser = clap::value_parser!(u32).range(1..=36500))]
    root_days: u32,
    /// Days for which top-level targets are valid
    #[arg(long, value_name = "DAYS", default_value_t = Lifetimes::default().targets, value_parser = clap::value_parser!(u32).range(1..=36500))]
    targets_days: u32,
    /// Days for which product metadata are valid
    #[arg(long, value_name = "DAYS", default_value_t = Lifetimes::default().product, value_parser = clap::value_parser!(u32).range(1..=36500))]
    product_days: u32,
    /// Days for which snapshot is valid
    #[arg(long, value_name = "DAYS", default_value_t = Lifetimes::default().snapshot, value_parser = clap::value_parser!(u32).range(1..=36500))]
    snapshot_days: u32,
    /// Days for which timestamp is valid
    #[arg(long, value_name = "DAYS", default_value_t = Lifetimes::default().timestamp, value_parser = clap::value_parser!(u32).range(1..=36500))]
    timestamp_days: u32,
}

impl LifetimeArgs {
    /// The lifetimes.
    pub fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            root: self.root_days,
            targets: self.targets_days,
            product: self.product_days,
            snapshot: self.snapshot_days,
            timestamp: self.timestamp_days,
        }
    }
}

/// A product and a key of its role.
#[derive(Debug, Clone)]
pub struct ProductKey {
    /// The product.
    pub product: String,
    /// Private key file.
    pub key: PathBuf,
}

fn product_key(text: &str) -> Result<ProductKey, String> {
    match text.split_once('=') {
        Some((product, key)) if !product.is_empty() && !key.is_empty() => Ok(ProductKey {
            product: product.to_owned(),
            key: key.into(),
        }),
        _ => Err("expected PRODUCT=KEYFILE".to_owned()),
    }
}

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub struct Init {
    /// Directory of the repository to make
    pub repo: PathBuf,
    /// Private key of root; at least as many as the threshold
    #[arg(long = "root-key", value_name = "FILE", required = true)]
    pub root_keys: Vec<PathBuf>,
    /// Root keys that must sign a change of root
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub root_threshold: u64,
    /// Private key of top-level targets
    #[arg(long = "targets-key", value_name = "FILE", required = true)]
    pub targets_keys: Vec<PathBuf>,
    /// Targets keys that must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub targets_threshold: u64,
    /// Private key of snapshot
    #[arg(long = "snapshot-key", value_name = "FILE", required = true)]
    pub snapshot_keys: Vec<PathBuf>,
    /// Private key of timestamp
    #[arg(long = "timestamp-key", value_name = "FILE", required = true)]
    pub timestamp_keys: Vec<PathBuf>,
    /// Product and a private key of its role; repeat for several products or keys
    #[arg(long = "product", value_name = "PRODUCT=FILE", value_parser = product_key)]
    pub products: Vec<ProductKey>,
    /// Product keys that must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub product_threshold: u64,
    /// How long metadata are valid.
    #[command(flatten)]
    pub lifetimes: LifetimeArgs,
    /// How to open private keys.
    #[command(flatten)]
    pub open: OpenArgs,
    /// Do everything but write
    #[arg(long)]
    pub dry_run: bool,
}

/// Work on products.
#[derive(Debug, clap::Subcommand)]
pub enum ProductCommand {
    /// Add a product: a role that may speak for PRODUCT/* and PRODUCT/*/*
    ///
    /// Example: fwsign product add repo camera=camera.pem --keys-dir keys
    Add(ProductAdd),
}

/// Arguments of `product add`.
#[derive(Debug, clap::Args)]
pub struct ProductAdd {
    /// Directory of the repository
    pub repo: PathBuf,
    /// Product and a private key of its role; repeat the product for several keys
    #[arg(value_name = "PRODUCT=FILE", value_parser = product_key, required = true)]
    pub products: Vec<ProductKey>,
    /// Product keys that must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threshold: u64,
    /// Keys of targets, snapshot and timestamp.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// How long metadata are valid.
    #[command(flatten)]
    pub lifetimes: LifetimeArgs,
    /// Do everything but write
    #[arg(long)]
    pub dry_run: bool,
}

/// Work on releases.
#[derive(Debug, clap::Subcommand)]
pub enum ReleaseCommand {
    /// Add a release of one image or tar archive
    ///
    /// Example: fwsign release add repo --product router --version 1.2.0 --hardware rev-b --image rootfs.img --keys-dir keys
    Add(Box<ReleaseAdd>),
}

/// Arguments of `release add`.
#[derive(Debug, clap::Args)]
pub struct ReleaseAdd {
    /// Directory of the repository
    pub repo: PathBuf,
    /// Product
    #[arg(long)]
    pub product: String,
    /// Version, by semantic versioning
    #[arg(long)]
    pub version: String,
    /// Sequence number; the channel's highest plus one when absent
    #[arg(long, value_name = "N")]
    pub sequence: Option<u64>,
    /// Sequence below which devices that confirm this release boot nothing any more; the channel's last release's when
    /// absent
    #[arg(long, value_name = "N")]
    pub security_floor: Option<u64>,
    /// Hardware revision it is for; may be given several times
    #[arg(long, value_name = "NAME", required = true)]
    pub hardware: Vec<String>,
    /// Channel
    #[arg(long, default_value = "stable")]
    pub channel: String,
    /// Vendor name
    #[arg(long, default_value = "unnamed")]
    pub vendor: String,
    /// security or feature
    #[arg(long, value_parser = ["security", "feature"], default_value = "feature")]
    pub kind: String,
    /// Oldest installed version from which it may be installed
    #[arg(long, value_name = "VERSION")]
    pub requires: Option<String>,
    /// Raw image whose bytes become the slot
    #[arg(long, value_name = "FILE", conflicts_with = "tar", required_unless_present = "tar")]
    pub image: Option<PathBuf>,
    /// Tar archive, or a directory to make one of, that is unpacked into the slot
    #[arg(long, value_name = "FILE|DIR")]
    pub tar: Option<PathBuf>,
    /// Name of the component
    #[arg(long, default_value = "main")]
    pub component: String,
    /// Class of slots it goes into
    #[arg(long, default_value = "system")]
    pub slot_class: String,
    /// The component has no communication function (RULES §2.3)
    #[arg(long)]
    pub no_communication_function: bool,
    /// zstd level, 1 to 22
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: i32,
    /// Schema of the settings that the software expects; devices of another one need migrations to it
    #[arg(long, value_name = "N")]
    pub settings_schema: Option<u64>,
    /// Program that leads settings from one schema to another and, unless one-way, back; may be given several times
    #[arg(
        long = "migration",
        value_name = "FROM:TO:FILE[:one-way]",
        requires = "settings_schema"
    )]
    pub migrations: Vec<crate::migration::MigrationFile>,
    /// Text for people
    #[arg(long)]
    pub notes: Option<String>,
    /// What it repairs, for people
    #[arg(long)]
    pub advisory: Option<String>,
    /// CVE id that it repairs; may be given several times
    #[arg(long = "cve", value_name = "ID", requires = "advisory")]
    pub cves: Vec<String>,
    /// Severity of what it repairs
    #[arg(long, requires = "advisory")]
    pub severity: Option<String>,
    /// Last day of support, YYYY-MM-DD
    #[arg(long, value_name = "DATE")]
    pub support_end: Option<String>,
    /// Keys of the product, snapshot and timestamp.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// How long metadata are valid.
    #[command(flatten)]
    pub lifetimes: LifetimeArgs,
    /// Do everything but write
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `refresh`.
#[derive(Debug, clap::Args)]
pub struct Refresh {
    /// Directory of the repository
    pub repo: PathBuf,
    /// Renew only what expires within this many days; the timestamp is renewed with anything else
    #[arg(long, value_name = "DAYS", default_value_t = 36500)]
    pub within_days: u32,
    /// Renew this role too: `targets`, or a product; may be given several times
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// Keys of timestamp, snapshot and the roles that are named.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// How long metadata are valid.
    #[command(flatten)]
    pub lifetimes: LifetimeArgs,
    /// Do everything but write
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Directory of the repository
    pub repo: PathBuf,
    /// Root metadata to trust; the oldest of the repository when absent
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
    /// Judge at this time instead of now, such as 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Check metadata only, not the contents of targets
    #[arg(long)]
    pub metadata_only: bool,
}

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Directory of the repository
    pub repo: PathBuf,
}

/// Arguments of `publish`.
#[derive(Debug, clap::Args)]
pub struct Publish {
    /// Directory of the repository
    pub repo: PathBuf,
    /// Directory to bring it to
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "server",
        required_unless_present = "server"
    )]
    pub dir: Option<PathBuf>,
    /// URL of a running fwserve
    #[arg(long, value_name = "URL", requires = "token_file")]
    pub server: Option<String>,
    /// File with the publish token of the server
    #[arg(long, value_name = "FILE", requires = "server")]
    pub token_file: Option<PathBuf>,
    /// PEM file of the certificate authorities to trust for the server
    #[arg(long, value_name = "FILE", requires = "server")]
    pub ca_file: Option<PathBuf>,
    /// Send the token over plain HTTP to a host that is not this machine
    #[arg(long, requires = "server")]
    pub allow_plain_http: bool,
    /// Publish although this repository does not continue what is published, whose later releases are then gone
    #[arg(long)]
    pub allow_fork: bool,
    /// Publish a repository that trusts the published keys of keys-example
    #[arg(long)]
    pub allow_example_keys: bool,
    /// Say what would be brought and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `bundle`.
#[derive(Debug, clap::Args)]
pub struct Bundle {
    /// Directory of the repository
    pub repo: PathBuf,
    /// Product
    #[arg(long)]
    pub product: String,
    /// Version; the channel's newest when absent
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Channel
    #[arg(long, default_value = "stable")]
    pub channel: String,
    /// File to write; an older bundle there is replaced
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Also from a repository that trusts the published keys of keys-example
    #[arg(long)]
    pub allow_example_keys: bool,
}
