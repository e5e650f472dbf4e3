//! Where passphrases come from: a file, a descriptor, the environment, or a prompt; never the command line.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

/// Environment variable with the passphrase.
pub const VARIABLE: &str = "FWSIGN_PASSPHRASE";
/// Longest passphrase, in bytes.
const LIMIT: u64 = 4096;

/// How the caller offers a passphrase.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase of the key files
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    passphrase_file: Option<PathBuf>,
    /// Open file descriptor to read the passphrase from
    #[arg(long, value_name = "NUMBER")]
    passphrase_fd: Option<u32>,
}

impl PassphraseArgs {
    /// The passphrase offered, asking on a terminal if there is no other source. `None` when there is no terminal
    /// either.
    ///
    /// # Errors
    /// When the source cannot be read or is empty.
    pub fn get(&self, prompt: &str) -> anyhow::Result<Option<Zeroizing<String>>> {
        let passphrase = if let Some(path) = &self.passphrase_file {
            read(path.clone()).with_context(|| format!("passphrase file {}", path.display()))?
        } else if let Some(descriptor) = self.passphrase_fd {
            let path = PathBuf::from(format!("/dev/fd/{descriptor}"));
            read(path).with_context(|| format!("passphrase descriptor {descriptor}"))?
        } else if let Ok(passphrase) = std::env::var(VARIABLE) {
            Zeroizing::new(passphrase)
        } else if std::io::stdin().is_terminal() {
            Zeroizing::new(rpassword::prompt_password(prompt).context("reading the passphrase")?)
        } else {
            return Ok(None);
        };
        if passphrase.is_empty() {
            bail!("the passphrase is empty");
        }
        Ok(Some(passphrase))
    }

    /// Like [`get`](Self::get) for a new key: on a terminal the passphrase is asked twice.
    ///
    /// # Errors
    /// As [`get`](Self::get), and when the two differ.
    pub fn get_new(&self) -> anyhow::Result<Option<Zeroizing<String>>> {
        let first = self.get("Passphrase for the new key: ")?;
        let asked = self.passphrase_file.is_none() && self.passphrase_fd.is_none() && std::env::var(VARIABLE).is_err();
        if asked && first.is_some() && first != self.get("The same again: ")? {
            bail!("the two passphrases differ");
        }
        Ok(first)
    }
}

fn read(path: PathBuf) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?.take(LIMIT).read_to_string(&mut text)?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
