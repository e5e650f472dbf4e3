//! Where passphrases come from: a file, a descriptor, the environment, or a prompt; never the command line.

use std::cell::OnceCell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use zeroize::Zeroizing;

use crate::bounded;

/// Environment variable with the passphrase.
pub const VARIABLE: &str = "FWSIGN_PASSPHRASE";
/// Longest passphrase file, in bytes.
const LIMIT: u16 = 4096;

/// How the caller offers a passphrase.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase of the key files
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    passphrase_file: Option<PathBuf>,
    /// Open file descriptor to read the passphrase from
    #[arg(long, value_name = "NUMBER")]
    passphrase_fd: Option<u32>,
    /// What the descriptor gave: it can be read once, and a command may open several keys.
    #[arg(skip)]
    from_fd: OnceCell<Zeroizing<String>>,
}

impl PassphraseArgs {
    /// The passphrase offered, asking on a terminal if there is no other source. `None` when there is no terminal
    /// either.
    ///
    /// # Errors
    /// When the source cannot be read or is empty.
    pub fn get(&self, prompt: &str) -> anyhow::Result<Option<Zeroizing<String>>> {
        let passphrase = if let Some(path) = &self.passphrase_file {
            read(path).with_context(|| format!("passphrase file {}", path.display()))?
        } else if let Some(descriptor) = self.passphrase_fd {
            self.read_fd(descriptor)
                .with_context(|| format!("passphrase descriptor {descriptor}"))?
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

    fn read_fd(&self, descriptor: u32) -> std::io::Result<Zeroizing<String>> {
        if let Some(passphrase) = self.from_fd.get() {
            return Ok(passphrase.clone());
        }
        let passphrase = read(Path::new(&format!("/dev/fd/{descriptor}")))?;
        Ok(self.from_fd.get_or_init(|| passphrase).clone())
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

/// The first line of a passphrase file.
///
/// # Errors
/// When the file cannot be read, is too long or is not UTF-8.
pub fn read(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let text = bounded::read_secret(path, LIMIT)?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
