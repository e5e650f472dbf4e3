//! Names of objects in a repository, relative to the metadata and targets base URLs, ready to be appended to one.
//!
//! ```text
//! metadata   timestamp.json   3.root.json   7.snapshot.json   7.targets.json   2.<role>.json
//! targets    dir/<hexadecimal digest>.file      (consistent snapshot)      dir/file      (otherwise)
//! ```
//!
//! Characters outside `A–Z a–z 0–9 _ . - ~` are percent-encoded; in a role name `/` is too, so that no role name can
//! leave the metadata directory or take another role's place (TUF 1.0.34 §4.5). On disk a metadata file has the encoded
//! name and a target the plain one: a server decodes target paths, and nothing decodes role names.

use sha2::{Digest, Sha256};

use crate::hex;
use crate::role_name::RoleName;
use crate::target::TargetPath;

/// Longest encoded name that is kept in [`local_part`]: file systems allow 255 bytes, and temporary files need some.
const LOCAL_PART_BYTES: usize = 200;

/// Object name of a role's metadata file, with the version in front when there is one.
pub fn metadata_name(role: &RoleName, version: Option<u64>) -> String {
    let name = escape(role.as_str(), false);
    match version {
        Some(version) => format!("{version}.{name}.json"),
        None => format!("{name}.json"),
    }
}

/// Name of a role's metadata file in a local store: unversioned, one path part whatever the role's name.
pub fn local_name(role: &RoleName) -> String {
    format!("{}.json", local_part(role.as_str()))
}

/// One path part that stands for `text` in a local directory: encoded like an object name, never hidden, and short enough
/// for every file system. Different texts have different parts.
pub fn local_part(text: &str) -> String {
    let escaped = escape(text, false);
    if escaped.len() > LOCAL_PART_BYTES {
        // An escaped text never has a `%` before anything but two digits.
        return format!("%sha256-{}", hex::encode(&Sha256::digest(text.as_bytes())));
    }
    match escaped.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => escaped,
    }
}

/// Object name of a target, percent-encoded; with the digest before the last part when one is given.
pub fn target_name(path: &TargetPath, digest: Option<&[u8]>) -> String {
    escape(&target_file(path, digest), true)
}

/// Like [`target_name`], not encoded: the path on disk.
pub fn target_file(path: &TargetPath, digest: Option<&[u8]>) -> String {
    let (dir, file) = path.split();
    let prefix = digest
        .map(|digest| format!("{}.", hex::encode(digest)))
        .unwrap_or_default();
    match dir {
        Some(dir) => format!("{dir}/{prefix}{file}"),
        None => format!("{prefix}{file}"),
    }
}

/// Percent-encodes `text`, keeping `/` if asked.
pub fn escape(text: &str, keep_slash: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || (keep_slash && byte == b'/') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names() {
        let role = |name| RoleName::parse(name).unwrap();
        assert_eq!(metadata_name(&role("root"), Some(3)), "3.root.json");
        assert_eq!(metadata_name(&role("timestamp"), None), "timestamp.json");
        assert_eq!(metadata_name(&role("../a b/é"), Some(1)), "1...%2Fa%20b%2F%C3%A9.json");
        assert_eq!(local_name(&role("..")), "%2E..json");
        assert_eq!(local_name(&role("a/b")), "a%2Fb.json");
        let long = "ü".repeat(127);
        let name = local_name(&role(&long));
        assert!(name.starts_with("%sha256-") && name.len() < 100, "{name}");
        assert_ne!(name, local_name(&role(&long.replacen('ü', "ö", 1))));
        let path = TargetPath::parse("p/1.0+x/a b").unwrap();
        assert_eq!(target_name(&path, Some(&[0xab, 1])), "p/1.0%2Bx/ab01.a%20b");
        assert_eq!(target_file(&path, None), "p/1.0+x/a b");
        assert_eq!(target_name(&TargetPath::parse("f").unwrap(), Some(&[1])), "01.f");
    }
}
