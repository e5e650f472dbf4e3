//! `fwagent tuf`: the three commands by which the public TUF conformance suite drives a client, over the same workflow
//! and transport as the agent itself.
//!
//! ```text
//! fwagent tuf --metadata-dir DIR init TRUSTED_ROOT
//! fwagent tuf --metadata-dir DIR --metadata-url URL refresh
//! fwagent tuf --metadata-dir DIR --metadata-url URL --target-name PATH… --target-base-url URL --target-dir DIR download
//! ```
//!
//! Options may stand before or after the command. Exit code 0, or 1 for whatever went wrong.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use fwmeta::client::{Cache, Client};
use fwmeta::layout;
use fwmeta::role::RoleName;
use fwmeta::target::{TargetFile, TargetPath};
use fwmeta::time::UtcSeconds;
use fwmeta::trusted::TrustedSet;

use crate::host::dir_cache::DirCache;
use crate::host::http::{Http, HttpOptions, MetadataSource, partial_path};

/// Arguments of `fwagent tuf`.
#[derive(Debug, clap::Args)]
pub struct TufArgs {
    /// Directory of trusted metadata
    #[arg(long, value_name = "DIR")]
    metadata_dir: PathBuf,
    /// Base URL of the repository's metadata
    #[arg(long, value_name = "URL")]
    metadata_url: Option<String>,
    /// Target to download; may be given several times, handled in order
    // A path may begin with a dash.
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    target_name: Vec<String>,
    /// Base URL of the repository's targets
    #[arg(long, value_name = "URL")]
    target_base_url: Option<String>,
    /// Directory for downloaded targets
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    /// What to do
    #[arg(value_enum)]
    command: TufCommand,
    /// Trusted root metadata, for init
    trusted_root: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TufCommand {
    /// Trust a root metadata file; makes no request
    Init,
    /// Bring the trusted metadata up to date
    Refresh,
    /// Bring the trusted metadata up to date and download targets
    Download,
}

/// Runs one command.
///
/// # Errors
/// Whatever went wrong, for people.
pub fn run(args: &TufArgs) -> anyhow::Result<()> {
    if args.trusted_root.is_some() && args.command != TufCommand::Init {
        bail!("only init takes a trusted root");
    }
    match args.command {
        TufCommand::Init => init(args),
        TufCommand::Refresh => refresh(args).map(|_| ()),
        TufCommand::Download => download(args),
    }
}

fn init(args: &TufArgs) -> anyhow::Result<()> {
    let path = args
        .trusted_root
        .as_deref()
        .context("init needs the file of the trusted root")?;
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    TrustedSet::new(&bytes, now()?).with_context(|| path.display().to_string())?;
    fwdurable::create_dir_all(&args.metadata_dir)
        .with_context(|| format!("creating {}", args.metadata_dir.display()))?;
    DirCache::new(&args.metadata_dir)
        .store(&RoleName::root(), &bytes)
        .context("storing the trusted root")
}

fn refresh(args: &TufArgs) -> anyhow::Result<(Http, Client<MetadataSource, DirCache>)> {
    let url = args.metadata_url.as_deref().context("--metadata-url is needed")?;
    let mut cache = DirCache::new(&args.metadata_dir);
    let root = cache.load(&RoleName::root()).context("reading the trusted root")?;
    let root = root.with_context(|| format!("no trusted root in {}: run init first", args.metadata_dir.display()))?;
    let http = Http::new(HttpOptions::default())?;
    let source = MetadataSource::new(http.clone(), url, None);
    let mut client = Client::new(source, cache, &root, now()?)?;
    client.refresh()?;
    Ok((http, client))
}

fn download(args: &TufArgs) -> anyhow::Result<()> {
    let dir = args.target_dir.as_deref().context("--target-dir is needed")?;
    let base = args.target_base_url.as_deref().context("--target-base-url is needed")?;
    if args.target_name.is_empty() {
        bail!("--target-name is needed");
    }
    let (http, mut client) = refresh(args)?;
    fwdurable::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for name in &args.target_name {
        let path = TargetPath::parse(name)?;
        let file = client
            .find_target(&path)?
            .with_context(|| format!("no role has a target {path}"))?;
        let prefixed = client.trusted().root().consistent_snapshot;
        fetch_target(&http, base, dir, &path, &file, prefixed)?;
    }
    Ok(())
}

fn fetch_target(
    http: &Http,
    base: &str,
    dir: &Path,
    path: &TargetPath,
    file: &TargetFile,
    prefixed: bool,
) -> anyhow::Result<()> {
    let url = format!("{}/{}", base.trim_end_matches('/'), target_object(path, file, prefixed));
    let local = dir.join(layout::local_part(path.as_str()));
    let downloaded = http.download(&url, file, &local, &mut |_, _| true);
    if downloaded.is_err() {
        // The directory is the caller's: nothing half-done stays in it.
        fwdurable::remove_file(&partial_path(&local)).context("removing the unfinished download")?;
    }
    downloaded.with_context(|| format!("downloading {path}"))
}

/// Object name of a target: with a digest before its last part in a repository with consistent snapshots.
pub(crate) fn target_object(path: &TargetPath, file: &TargetFile, prefixed: bool) -> String {
    let sha256 = file.hashes.sha256.as_ref().map(<[u8; 32]>::as_slice);
    let digest = sha256.or_else(|| file.hashes.sha512.as_ref().map(|digest| digest.as_slice()));
    layout::target_name(path, digest.filter(|_| prefixed))
}

fn now() -> anyhow::Result<UtcSeconds> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(UtcSeconds(i64::try_from(since.as_secs())?))
}
