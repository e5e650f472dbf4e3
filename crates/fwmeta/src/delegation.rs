//! Delegations: which role may speak for which target paths (TUF 1.0.34 §4.5).
//!
//! A path pattern is matched part by part: the target must have as many `/`-separated parts as the pattern, and `*`, `?`
//! and `[…]` never match a `/`. So `p/*` covers `p/a` and not `p/a/b`.

use std::collections::BTreeMap;

use crate::json::{Value, object};
use crate::key::{KeyId, PublicKey, keys_to_value};
use crate::role_name::{RoleKeys, RoleName};
use crate::target::TargetPath;

/// The `delegations` object of a targets role. The order of `roles` is their priority.
#[derive(Debug, Clone, Default)]
pub struct Delegations {
    /// Keys of the delegated roles.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Delegated roles, the first consulted first; no name twice.
    pub roles: Vec<DelegatedRole>,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// One delegated role.
#[derive(Debug, Clone)]
pub struct DelegatedRole {
    /// Its name, never that of a top-level role.
    pub name: RoleName,
    /// Who signs for it.
    pub keys: RoleKeys,
    /// Whether the search ends here for the paths it covers, found or not.
    pub terminating: bool,
    /// The paths it covers.
    pub paths: PathSet,
    /// Fields not known here.
    pub extra: BTreeMap<String, Value>,
}

/// The target paths that a delegated role covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathSet {
    /// `paths`: glob patterns.
    Patterns(Vec<String>),
    /// `path_hash_prefixes`: lower-case hexadecimal prefixes of the SHA-256 of the path.
    HashPrefixes(Vec<String>),
}

impl PathSet {
    /// Whether the role covers `path`.
    pub fn covers(&self, path: &TargetPath) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.iter().any(|pattern| matches_path(pattern, path.as_str())),
            Self::HashPrefixes(prefixes) => {
                let hash = path.hash();
                prefixes.iter().any(|prefix| hash.starts_with(prefix.as_str()))
            }
        }
    }

    /// Whether the role may cover some `<first>/<anything>/<last>`: which roles to read when releases are listed.
    pub(crate) fn may_cover(&self, first: &str, last: &str) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.iter().any(|pattern| {
                let parts: Vec<_> = pattern.split('/').collect();
                matches!(parts[..], [a, _, c] if matches_part(a, first) && matches_part(c, last))
            }),
            Self::HashPrefixes(_) => true,
        }
    }
}

impl Delegations {
    /// Roles to search for `path` in order, up to and including the first terminating one that covers it.
    pub(crate) fn covering<'a>(&'a self, path: &TargetPath) -> Vec<&'a DelegatedRole> {
        self.first_until_terminating(|role| role.paths.covers(path))
    }

    pub(crate) fn first_until_terminating(&self, covers: impl Fn(&DelegatedRole) -> bool) -> Vec<&DelegatedRole> {
        let mut found = Vec::new();
        for role in self.roles.iter().filter(|role| covers(role)) {
            found.push(role);
            if role.terminating {
                break;
            }
        }
        found
    }

    /// The `delegations` object.
    pub fn to_value(&self) -> Value {
        let mut entries = self.extra.clone();
        entries.insert("keys".to_owned(), keys_to_value(&self.keys));
        entries.insert(
            "roles".to_owned(),
            self.roles
                .iter()
                .map(DelegatedRole::to_value)
                .collect::<Vec<_>>()
                .into(),
        );
        Value::Object(entries)
    }
}

impl DelegatedRole {
    fn to_value(&self) -> Value {
        let texts = |texts: &[String]| Value::Array(texts.iter().map(Value::from).collect());
        let (field, paths) = match &self.paths {
            PathSet::Patterns(patterns) => ("paths", texts(patterns)),
            PathSet::HashPrefixes(prefixes) => ("path_hash_prefixes", texts(prefixes)),
        };
        let known = object([
            ("name", self.name.as_str().into()),
            ("keyids", self.keys.keyids_value()),
            ("threshold", self.keys.threshold.into()),
            ("terminating", self.terminating.into()),
            (field, paths),
        ]);
        let mut entries = self.extra.clone();
        entries.extend(
            known
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        Value::Object(entries)
    }
}

/// Whether a glob pattern covers a target path, part by part.
pub fn matches_path(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if matches_part(pattern, part) => {}
            _ => return false,
        }
    }
}

/// Shell-style match of one part: `*` any characters, `?` one, `[a-c]` one of a set, `[!a-c]` one outside it. A `[`
/// without its `]` is an ordinary character. Takes time bounded by the product of the two lengths.
fn matches_part(pattern: &str, part: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let part: Vec<char> = part.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where to go on when a match fails: after the last `*`, one character further in the part.
    let mut retry: Option<(usize, usize)> = None;
    while t < part.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match set_length(&pattern[p..]) {
                Some(length) => set_contains(&pattern[p + 1..p + length - 1], part[t]).then_some(length),
                None => (part[t] == '[').then_some(1),
            },
            Some(literal) => (*literal == part[t]).then_some(1),
            None => None,
        };
        match (step, retry) {
            (Some(step), _) => {
                p += step;
                t += 1;
            }
            (None, Some((after_star, from))) => {
                retry = Some((after_star, from + 1));
                p = after_star;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|rest| *rest == '*')
}

/// Length of the set that begins `pattern`, brackets included. A `]` right after `[` or `[!` is a member.
fn set_length(pattern: &[char]) -> Option<usize> {
    let first = if pattern.get(1) == Some(&'!') { 2 } else { 1 };
    let close = pattern.iter().skip(first + 1).position(|character| *character == ']')?;
    Some(first + 1 + close + 1)
}

fn set_contains(set: &[char], character: char) -> bool {
    let (negated, mut set) = match set {
        ['!', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    while let Some((first, rest)) = set.split_first() {
        if let ['-', last, rest @ ..] = rest {
            found |= (*first..=*last).contains(&character);
            set = rest;
        } else {
            found |= *first == character;
            set = rest;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("targets/*.tgz", "targets/foo.tgz", true),
            ("targets/*.tgz", "targets/foo.txt", false),
            ("targets/*.tgz", "targets/foo/bar.tgz", false),
            ("foo-version-?.tgz", "foo-version-2.tgz", true),
            ("foo-version-?.tgz", "foo-version-alpha.tgz", false),
            ("*.tgz", "foo.tgz", true),
            ("*.tgz", "dir/foo.tgz", false),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a/*", "a/", true),
            ("a/*", "a", false),
            ("", "", true),
            ("**a", "bca", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("[ab]?", "bz", true),
            ("[!ab]", "b", false),
            ("[!ab]", "c", true),
            ("[a-cx]", "b", true),
            ("[a-cx]", "d", false),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[!]]", "a", true),
            ("[a", "[a", true),
            ("[a", "a", false),
            ("[", "[", true),
            ("[a-]", "-", true),
            ("é?", "éé", true),
            ("A", "a", false),
        ] {
            assert_eq!(matches_path(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn long_star_patterns_take_bounded_time() {
        assert!(!matches_path(&"*a".repeat(200), &"a".repeat(199).replace("aa", "ba")));
    }

    #[test]
    fn which_roles_may_hold_releases() {
        let may = |pattern: &str| PathSet::Patterns(vec![pattern.to_owned()]).may_cover("router", "manifest.json");
        assert!(may("router/*/*") && may("*/1.?/manifest.json") && may("rout??/x/*.json"));
        assert!(!may("router/*") && !may("camera/*/*") && !may("router/*/*.img"));
        assert!(PathSet::HashPrefixes(vec!["0".to_owned()]).may_cover("router", "manifest.json"));
    }

    proptest! {
        #[test]
        fn a_literal_matches_itself_only(text in "[a-z]{0,12}", other in "[a-z]{0,12}") {
            prop_assert!(matches_path(&text, &text));
            prop_assert_eq!(matches_path(&text, &other), text == other);
        }

        #[test]
        fn any_pattern_terminates(pattern in "[a\\[\\]!*?/-]{0,24}", path in "[a\\[\\]!/-]{0,24}") {
            matches_path(&pattern, &path);
        }

        #[test]
        fn star_matches_every_part(text in "[^/]{0,20}") {
            prop_assert!(matches_path("*", &text));
        }
    }
}
