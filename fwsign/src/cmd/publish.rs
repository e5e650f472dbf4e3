//! `fwsign publish`.

use fwmeta::json::object;

use crate::cli::Publish;
use crate::failure::{Outcome, usage};
use crate::output::Report;
use crate::publish::{Api, ApiOptions, History, Options, Publication, to_dir, to_server};
use crate::repo_dir::RepoDir;

pub fn run(args: &Publish) -> Outcome<Report> {
    let source = RepoDir::new(&args.repo);
    let options = Options {
        history: if args.allow_fork {
            History::ForkAllowed
        } else {
            History::Continued
        },
        dry_run: args.dry_run,
    };
    let (destination, done) = match (&args.dir, &args.server, &args.token_file) {
        (Some(dir), ..) => {
            let publication = read(&source, args)?;
            (dir.display().to_string(), to_dir(&publication, dir, options)?)
        }
        (None, Some(url), Some(token_file)) => {
            // What cannot be reached need not be judged.
            let api = Api::new(&ApiOptions {
                url: url.clone(),
                token_file: token_file.clone(),
                ca_file: args.ca_file.clone(),
                allow_plain_http: args.allow_plain_http,
            })?;
            let publication = read(&source, args)?;
            (url.clone(), to_server(&publication, &api, options)?)
        }
        _ => return Err(usage("--dir, or --server with --token-file, is needed")),
    };
    let json = object([
        ("destination", destination.as_str().into()),
        ("timestamp_version", done.version.into()),
        ("files", done.files.into()),
        ("bytes", done.bytes.into()),
        ("written", (!args.dry_run).into()),
    ]);
    let text = format!(
        "{} timestamp version {} to {destination}: {} new files, {} bytes",
        if args.dry_run { "would publish" } else { "published" },
        done.version,
        done.files,
        done.bytes
    );
    Ok(Report::new(text, json))
}

fn read(source: &RepoDir, args: &Publish) -> Outcome<Publication> {
    let publication = Publication::read(source)?;
    if !args.allow_example_keys {
        publication.refuse_example_keys()?;
    }
    Ok(publication)
}
