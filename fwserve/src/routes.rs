//! Which object a request path names. Pure.
//!
//! ```text
//! /healthz
//! /metadata/<N>.<role>.json    one part; on disk it keeps its percent-encoding
//! /targets/<dir>/<HASH>.<file> decoded once; on disk it is plain; `tough` asks for <HASH>.<dir>/<file>, and the other one
//!                              is given when only that is there
//! /api/v1/repository   /api/v1/objects/<SHA-256>   /api/v1/publish
//! ```
//!
//! Everything else names nothing. A name that could mean another file than its parts say (`..`, an encoded slash, NUL,
//! a backslash, a dotfile) names nothing either, so that no later code has to look again.

use fwmeta::layout;

/// The one published file that changes.
pub const TIMESTAMP: &str = "metadata/timestamp.json";

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The health check.
    Health,
    /// A file of the repository: names relative to its directory, the first that exists is meant.
    File(Vec<String>),
    /// The present versions.
    Repository,
    /// An upload, by its SHA-256 in lower-case hexadecimal.
    Object(String),
    /// The switch to a candidate.
    Publish,
}

impl Route {
    /// The methods that it has, as in an `Allow` header.
    pub fn allow(&self) -> &'static str {
        match self {
            Self::Health | Self::File(_) | Self::Repository => "GET, HEAD",
            Self::Object(_) => "HEAD, PUT",
            Self::Publish => "POST",
        }
    }

    /// Whether it has this method.
    pub fn allows(&self, method: &str) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method)
    }

    /// Whether it belongs to the publish API.
    pub fn is_api(&self) -> bool {
        matches!(self, Self::Repository | Self::Object(_) | Self::Publish)
    }
}

/// How long caches may keep a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// For ever: the name is bound to the contents.
    Immutable,
    /// Briefly: `timestamp.json`.
    Short,
    /// Only after asking.
    Revalidate,
}

/// Reads a request path.
pub fn route(path: &str) -> Option<Route> {
    let path = path.strip_prefix('/')?;
    if let Some(name) = path.strip_prefix("metadata/") {
        return metadata_names(name).map(Route::File);
    }
    if let Some(name) = path.strip_prefix("targets/") {
        let parts: Option<Vec<String>> = name.split('/').map(decode_part).collect();
        return parts.map(|parts| Route::File(target_names(&parts)));
    }
    if let Some(digest) = path.strip_prefix("api/v1/objects/") {
        return is_sha256(digest).then(|| Route::Object(digest.to_owned()));
    }
    match path {
        "healthz" => Some(Route::Health),
        "api/v1/repository" => Some(Route::Repository),
        "api/v1/publish" => Some(Route::Publish),
        _ => None,
    }
}

/// The name itself, and the one that means the same to clients that put the digest elsewhere.
fn target_names(parts: &[String]) -> Vec<String> {
    let mut names = vec![format!("targets/{}", parts.join("/"))];
    if let [first, middle @ .., last] = parts {
        let middle: String = middle.iter().flat_map(|part| [part, "/"]).collect();
        let digest_first = split_digest(first).map(|(digest, dir)| format!("targets/{dir}/{middle}{digest}.{last}"));
        let digest_last = split_digest(last).map(|(digest, file)| format!("targets/{digest}.{first}/{middle}{file}"));
        names.extend([digest_first, digest_last].into_iter().flatten());
        // What was a part is not always one without its digest.
        names.retain(|name| name.split('/').all(is_safe_part));
    }
    names
}

/// `<HASH>.<rest>` in its two parts.
fn split_digest(part: &str) -> Option<(&str, &str)> {
    let (digest, rest) = part.split_once('.')?;
    let hexadecimal = digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hexadecimal && matches!(digest.len(), 64 | 128) && !rest.is_empty()).then_some((digest, rest))
}

/// The name of a file in a path that names it plainly, as all frequent ones do: without escapes, the first name that
/// [`route`] would give, if it gives any, is the path itself.
pub fn plain_name(path: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte);
    // In the name of a role a slash is escaped on disk, also when the client did not.
    let is_nested = |name: &str| name.starts_with("metadata/") && name.matches('/').count() > 1;
    path.strip_prefix('/')
        .filter(|name| name.bytes().all(is_plain) && !is_nested(name))
}

/// Whether the text is a SHA-256 as the API writes it.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of the encoded file comes first: that is how our tools write. Other writers may store a plain one.
fn metadata_names(raw: &str) -> Option<Vec<String>> {
    let decoded = decode(raw)?;
    if decoded.is_empty() || decoded.starts_with('.') || decoded.contains('\0') {
        return None;
    }
    let encoded = layout::escape(&decoded, false);
    let mut names = vec![format!("metadata/{encoded}")];
    if encoded != decoded && is_safe_part(&decoded) {
        names.push(format!("metadata/{decoded}"));
    }
    Some(names)
}

fn decode_part(raw: &str) -> Option<String> {
    decode(raw).filter(|part| is_safe_part(part))
}

/// Whether a name is one part of a path on disk, and a visible one.
pub fn is_safe_part(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0']) && part.len() <= 255
}

/// Decodes `%XX` once; `None` when that is malformed or not UTF-8.
fn decode(raw: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether a metadata file name (not its directory) starts with a version.
pub fn is_versioned(name: &str) -> bool {
    match name.split_once('.') {
        Some((version, rest)) => {
            !version.is_empty()
                && version.bytes().all(|byte| byte.is_ascii_digit())
                && rest.strip_suffix(".json").is_some_and(|role| !role.is_empty())
        }
        None => false,
    }
}

/// The digest that a target's name claims: before its last part, or, as `tough` asks, before the first.
pub fn claimed_digest(name: &str) -> Option<&str> {
    let name = name.strip_prefix("targets/")?;
    let last = name.rsplit('/').next()?;
    [last, name]
        .into_iter()
        .find_map(|part| split_digest(part).map(|(digest, _)| digest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_they_should() {
        let file = |names: &[&str]| Some(Route::File(names.iter().map(|name| (*name).to_owned()).collect()));
        let digest = "ab".repeat(32);
        let table = [
            ("/healthz", Some(Route::Health)),
            ("/metadata/1.root.json", file(&["metadata/1.root.json"])),
            ("/metadata/1.a%2fb.json", file(&["metadata/1.a%2Fb.json"])),
            (
                "/metadata/1.a%20b.json",
                file(&["metadata/1.a%20b.json", "metadata/1.a b.json"]),
            ),
            ("/metadata/1.%2e%2e%2Fx.json", file(&["metadata/1...%2Fx.json"])),
            ("/targets/a/b%2Bc", file(&["targets/a/b+c"])),
            ("/targets/%252e%252e/x", file(&["targets/%2e%2e/x"])),
            ("/api/v1/publish", Some(Route::Publish)),
            ("/api/v1/repository", Some(Route::Repository)),
            ("/metadata/", None),
            ("/metadata/..", None),
            ("/metadata/%2e%2e%2f.lock", None),
            ("/metadata/.hidden", None),
            ("/targets/", None),
            ("/targets//x", None),
            ("/targets/a/../b", None),
            ("/targets/a/%2e%2e/b", None),
            ("/targets/%2E./b", None),
            ("/targets/a%2fb", None),
            ("/targets/a%5cb", None),
            ("/targets/a%00b", None),
            ("/targets/.x", None),
            ("/targets/a%zz", None),
            ("/targets/a%", None),
            ("/targets/%ff", None),
            ("/.lock", None),
            ("/.uploads/x", None),
            ("/", None),
            ("", None),
            ("*", None),
            ("/metadata", None),
            ("//metadata/1.root.json", None),
            ("/api/v1/objects/x", None),
        ];
        for (path, expected) in table {
            assert_eq!(route(path), expected, "{path}");
        }
        assert_eq!(
            route(&format!("/api/v1/objects/{digest}")),
            Some(Route::Object(digest.clone()))
        );
        assert_eq!(route(&format!("/api/v1/objects/{}", digest.to_uppercase())), None);
    }

    #[test]
    fn plain_names_are_those_of_the_route() {
        for path in ["/metadata/1.root.json", "/targets/a/b~c_d-e.f"] {
            assert_eq!(
                route(path),
                Some(Route::File(vec![plain_name(path).unwrap().to_owned()]))
            );
        }
        for path in [
            "/metadata/1.a%2Fb.json",
            "/metadata/1.a+b.json",
            "/metadata/1.a/b.json",
            "/targets/a b",
            "targets/a",
            "",
        ] {
            assert_eq!(plain_name(path), None, "{path}");
        }
    }

    #[test]
    fn a_digest_may_be_in_the_first_part_or_in_the_last() {
        let digest = "0f".repeat(32);
        let file = |names: &[String]| Some(Route::File(names.to_vec()));
        let usual = format!("targets/a/b/{digest}.f");
        let tough = format!("targets/{digest}.a/b/f");
        assert_eq!(route(&format!("/{usual}")), file(&[usual.clone(), tough.clone()]));
        assert_eq!(route(&format!("/{tough}")), file(&[tough, usual]));
        let flat = format!("targets/{digest}.f");
        assert_eq!(route(&format!("/{flat}")), file(&[flat]));
        // Nothing hidden and nothing above becomes reachable.
        for rest in [".lock", "..", "./x"] {
            let name = format!("targets/{digest}.{rest}");
            let names = route(&format!("/{name}/f"));
            assert_eq!(names, file(&[format!("{name}/f")]), "{rest}");
        }
    }

    #[test]
    fn one_metadata_part_never_becomes_two() {
        let Some(Route::File(names)) = route("/metadata/a%2F..%2Fb") else {
            panic!("a name");
        };
        assert_eq!(names, ["metadata/a%2F..%2Fb"]);
    }

    #[test]
    fn names_tell_what_is_immutable() {
        for (name, versioned) in [
            ("1.root.json", true),
            ("10.a.b.json", true),
            ("timestamp.json", false),
            ("1.json", false),
            ("x1.root.json", false),
            ("1.root", false),
        ] {
            assert_eq!(is_versioned(name), versioned, "{name}");
        }
        let digest = "0f".repeat(32);
        assert_eq!(
            claimed_digest(&format!("targets/p/1/{digest}.f")),
            Some(digest.as_str())
        );
        assert_eq!(
            claimed_digest(&format!("targets/{digest}.p/1/f")),
            Some(digest.as_str())
        );
        assert_eq!(claimed_digest("targets/p/1/abc.f"), None);
        assert_eq!(claimed_digest(&format!("metadata/{digest}.f")), None);
    }

    #[test]
    fn methods() {
        assert!(Route::Health.allows("HEAD"));
        assert!(!Route::Publish.allows("GET"));
        assert!(Route::Object(String::new()).allows("PUT"));
    }
}
