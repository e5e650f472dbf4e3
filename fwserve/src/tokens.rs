//! Publish tokens.
//!
//! ```text
//! # comment
//! ci sha256:<64 hexadecimal digits of the SHA-256 of the token>
//! ```
//!
//! A token has 256 random bits, so that its plain hash can be stored. The file is read again when it changes: a line that
//! is removed ends its token at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Why tokens cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file could not be read or written.
    #[error("token file {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not `NAME sha256:HEX`.
    #[error("token file {path}, line {line}: expected `NAME sha256:HEX`", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The name has other characters than letters, digits, `-`, `_` and `.`, is too long, or is taken.
    #[error("token name {name:?} is {fault}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The system gave no random bytes.
    #[error("no random bytes from the system: {0}")]
    Random(String),
}

/// A line of a token file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Who publishes with it.
    pub name: String,
    /// SHA-256 of the token.
    pub digest: [u8; 32],
}

#[derive(Debug)]
struct Loaded {
    stamp: Option<(SystemTime, u64)>,
    tokens: Vec<Token>,
}

/// The tokens of a file.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokenError::Io`], [`TokenError::Malformed`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let loaded = load(path)?;
        Ok(Self {
            path: path.to_owned(),
            loaded: Mutex::new(loaded),
        })
    }

    /// The name of the token, if it is one. A file that has become unreadable has no tokens.
    pub fn name_of(&self, token: &str) -> Option<String> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp(&self.path) != loaded.stamp {
            *loaded = load(&self.path).unwrap_or(Loaded {
                stamp: None,
                tokens: Vec::new(),
            });
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        // No early exit: the time must not tell which line matched.
        for known in &loaded.tokens {
            if bool::from(known.digest.ct_eq(&digest)) {
                found = Some(known.name.clone());
            }
        }
        found
    }
}

/// Makes a token and adds it to the file, which is created if need be. The token is returned and kept nowhere.
///
/// # Errors
/// [`TokenError`].
pub fn create(path: &Path, name: &str) -> Result<String, TokenError> {
    let fault = |fault| TokenError::Name {
        name: name.to_owned(),
        fault,
    };
    let io = |source| TokenError::Io {
        path: path.to_owned(),
        source,
    };
    if name.is_empty()
        || name.len() > 64
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Err(fault("not 1 to 64 letters, digits, `-`, `_` or `.`"));
    }
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let _lock = fwdurable::Lock::exclusive(Path::new(&lock)).map_err(io)?;
    let mut text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.map_err(io)?,
    };
    if parse(path, &text)?.iter().any(|token| token.name == name) {
        return Err(fault("taken"));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| TokenError::Random(error.to_string()))?;
    let token = format!("fwp_{}", fwmeta::hex::encode(&random));
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let digest = fwmeta::hex::encode(&Sha256::digest(token.as_bytes()));
    text.push_str(&format!("{name} sha256:{digest}\n"));
    fwdurable::write_file_mode(path, text.as_bytes(), 0o600).map_err(io)?;
    Ok(token)
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ino()))
}

fn load(path: &Path) -> Result<Loaded, TokenError> {
    // Taken first: a change while reading is then seen at the next request.
    let stamp = stamp(path);
    let text = fs::read_to_string(path).map_err(|source| TokenError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(Loaded {
        stamp,
        tokens: parse(path, &text)?,
    })
}

/// Reads the text of a token file that lies at `path`.
///
/// # Errors
/// [`TokenError::Malformed`].
pub fn parse(path: &Path, text: &str) -> Result<Vec<Token>, TokenError> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = line.split_once(char::is_whitespace).and_then(|(name, digest)| {
            Some(Token {
                name: name.to_owned(),
                digest: fwmeta::hex::decode_array(digest.trim().strip_prefix("sha256:")?)?,
            })
        });
        tokens.push(token.ok_or_else(|| TokenError::Malformed {
            path: path.to_owned(),
            line: index + 1,
        })?);
    }
    Ok(tokens)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn tokens_are_made_found_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let first = create(&path, "ci").unwrap();
        let second = create(&path, "desk").unwrap();
        assert_ne!(first, second);
        assert!(matches!(
            create(&path, "ci"),
            Err(TokenError::Name { fault: "taken", .. })
        ));
        assert!(matches!(create(&path, "a b"), Err(TokenError::Name { .. })));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&first), "the token itself must not be stored");
        let tokens = Tokens::open(&path).unwrap();
        assert_eq!(tokens.name_of(&first).as_deref(), Some("ci"));
        assert_eq!(tokens.name_of(&second).as_deref(), Some("desk"));
        assert_eq!(tokens.name_of(""), None);
        assert_eq!(tokens.name_of(&first[..first.len() - 1]), None);
        let kept: String = text.lines().filter(|line| !line.starts_with("ci ")).collect();
        fwdurable::write_file(&path, kept.as_bytes()).unwrap();
        assert_eq!(tokens.name_of(&first), None);
        assert_eq!(tokens.name_of(&second).as_deref(), Some("desk"));
        fs::remove_file(&path).unwrap();
        assert_eq!(tokens.name_of(&second), None);
    }

    #[test]
    fn malformed_lines_are_named() {
        let path = Path::new("t");
        assert_eq!(parse(path, "# c\n\n").unwrap().len(), 0);
        for bad in ["x", "x sha256:12", "x md5:00"] {
            let error = parse(path, &format!("# c\n{bad}\n")).unwrap_err();
            assert!(matches!(error, TokenError::Malformed { line: 2, .. }), "{bad}");
        }
    }
}
