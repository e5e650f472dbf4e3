//! `fwsign bundle`.

use fwmeta::json::object;
use fwmeta::manifest::SemVer;

use crate::bundle::{Wish, collect};
use crate::cli::Bundle;
use crate::clock;
use crate::failure::{Outcome, usage};
use crate::output::Report;
use crate::repo_dir::RepoDir;

pub fn run(args: &Bundle) -> Outcome<Report> {
    let version = args.version.as_deref().map(SemVer::parse).transpose();
    let wish = Wish {
        product: args.product.clone(),
        version: version.map_err(|error| usage(format!("--version: {error}")))?,
        channel: args.channel.clone(),
    };
    let repo = RepoDir::new(&args.repo);
    let now = clock::signing_time()?;
    let contents = collect(&repo, &wish, now, args.allow_example_keys)?;
    let file = contents.write(&repo, &args.output, now)?;
    let fw = &contents.release.fw;
    let digest = file.hashes.names().into_iter().next().unwrap_or_default();
    let json = object([
        ("file", args.output.display().to_string().into()),
        ("product", (&fw.product).into()),
        ("version", fw.version.to_string().into()),
        ("sequence", fw.sequence.into()),
        ("channel", (&fw.channel).into()),
        ("bytes", file.length.into()),
        ("sha256", digest.into()),
        ("expires", contents.expires.to_string().into()),
    ]);
    let text = format!(
        "{}: {} {} (sequence {}), {} bytes; devices take it until {}",
        args.output.display(),
        fw.product,
        fw.version,
        fw.sequence,
        file.length,
        contents.expires
    );
    Ok(Report::new(text, json))
}
