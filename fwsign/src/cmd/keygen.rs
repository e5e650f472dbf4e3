//! `fwsign keygen`.

use std::path::PathBuf;

use anyhow::Context;
use fwmeta::json::object;
use fwmeta::key::PublicKey;

use crate::cli::Keygen;
use crate::failure::{Outcome, usage};
use crate::keyfile;
use crate::output::Report;

pub fn run(args: &Keygen) -> Outcome<Report> {
    let public_file = public_path(args);
    for path in [&args.file, &public_file] {
        // A dangling link has the name too.
        if path.symlink_metadata().is_ok() {
            return Err(usage(format!("{} exists; keys are never overwritten", path.display())));
        }
    }
    let passphrase = if args.unencrypted {
        None
    } else {
        args.passphrase.get_new()?
    };
    if passphrase.is_none() && !args.unencrypted {
        return Err(usage(
            "no passphrase: give one by --passphrase-file, --passphrase-fd or FWSIGN_PASSPHRASE, run on a terminal, \
             or pass --unencrypted for a key that something else protects",
        ));
    }
    let key = keyfile::generate()?;
    let pem = keyfile::to_pem(&key, passphrase.as_ref().map(|passphrase| passphrase.as_str()))?;
    // The public half first: if only one can be written, it is the one that nobody misses.
    fwdurable::create_new(&public_file, keyfile::public_pem(&key).as_bytes(), 0o644)
        .with_context(|| format!("writing {}", public_file.display()))?;
    if let Err(error) = fwdurable::create_new(&args.file, pem.as_bytes(), 0o600) {
        fwdurable::remove_file(&public_file).with_context(|| format!("removing {}", public_file.display()))?;
        return Err(anyhow::Error::new(error)
            .context(format!("writing {}", args.file.display()))
            .into());
    }
    let keyid = PublicKey::ed25519(key.verifying_key().to_bytes()).id();
    let json = object([
        ("keyid", keyid.as_str().into()),
        ("private", args.file.display().to_string().into()),
        ("public", public_file.display().to_string().into()),
        ("encrypted", (!args.unencrypted).into()),
    ]);
    let text = format!(
        "{keyid}\nprivate key: {}\npublic key:  {}",
        args.file.display(),
        public_file.display()
    );
    Ok(Report::new(text, json))
}

fn public_path(args: &Keygen) -> PathBuf {
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    args.file.with_file_name(format!("{stem}.pub.pem"))
}
