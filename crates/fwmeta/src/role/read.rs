//! Reading the role types from the `signed` object of a document.

use std::collections::{BTreeMap, BTreeSet};

use super::{MetaFile, Metadata, RoleError, RoleKeys, RoleName, Root, RootRoles, Snapshot, Targets, Timestamp};
use crate::delegation::{DelegatedRole, Delegations, PathSet};
use crate::json::{Node, Value};
use crate::key::{KeyId, PublicKey};
use crate::limits;
use crate::target::{Hashes, TargetFile};
use crate::time::UtcSeconds;

/// Fields that all roles share.
struct Common {
    version: u64,
    expires: UtcSeconds,
    extra: BTreeMap<String, Value>,
}

const COMMON: [&str; 3] = ["_type", "version", "expires"];

fn common<T: Metadata>(signed: Node<'_>, known: &[&str]) -> Result<Common, RoleError> {
    let text = |field: &'static str| {
        signed
            .get(field)
            .and_then(Node::as_str)
            .ok_or(RoleError::Field { field })
    };
    let actual = text("_type")?;
    if actual != T::TYPE {
        return Err(RoleError::Type {
            expected: T::TYPE,
            actual: actual.chars().take(64).collect(),
        });
    }
    let spec_version = text("spec_version")?;
    let parts: Vec<_> = spec_version.split('.').collect();
    let numeric = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !matches!(parts.len(), 2 | 3) || parts[0] != "1" || !parts.iter().all(numeric) {
        return Err(RoleError::SpecVersion {
            actual: spec_version.chars().take(64).collect(),
        });
    }
    Ok(Common {
        version: positive(signed, "version")?,
        expires: UtcSeconds::parse(&text("expires")?)?,
        // `spec_version` stays among the extra fields, so that it is written back as it was.
        extra: extra(signed, &[&COMMON[..], known].concat(), "signed")?,
    })
}

impl Root {
    pub(super) fn read(signed: Node<'_>) -> Result<Self, RoleError> {
        let common = common::<Self>(signed, &["consistent_snapshot", "keys", "roles"])?;
        let consistent_snapshot = match signed.get("consistent_snapshot") {
            None => false,
            Some(value) => value.as_bool().ok_or(RoleError::Field {
                field: "consistent_snapshot",
            })?,
        };
        let roles = required_object(signed, "roles")?;
        let role = |name, field| match roles.get(name) {
            Some(role) if role.is_object() => role_keys(role, field),
            _ => Err(RoleError::Field { field }),
        };
        Ok(Self {
            version: common.version,
            expires: common.expires,
            consistent_snapshot,
            keys: keys(signed)?,
            roles: RootRoles {
                root: role("root", "roles.root")?,
                timestamp: role("timestamp", "roles.timestamp")?,
                snapshot: role("snapshot", "roles.snapshot")?,
                targets: role("targets", "roles.targets")?,
            },
            extra: common.extra,
        })
    }
}

impl Timestamp {
    pub(super) fn read(signed: Node<'_>) -> Result<Self, RoleError> {
        let common = common::<Self>(signed, &["meta"])?;
        let field = "meta.snapshot.json";
        let snapshot = required_object(signed, "meta")?
            .get("snapshot.json")
            .ok_or(RoleError::Field { field })?;
        Ok(Self {
            version: common.version,
            expires: common.expires,
            snapshot: meta_file(snapshot, field)?,
            extra: common.extra,
        })
    }
}

impl Snapshot {
    pub(super) fn read(signed: Node<'_>) -> Result<Self, RoleError> {
        let common = common::<Self>(signed, &["meta"])?;
        let mut meta = BTreeMap::new();
        for (name, file) in required_object(signed, "meta")?.entries() {
            meta.insert(name.into_owned(), meta_file(file, "meta")?);
        }
        Ok(Self {
            version: common.version,
            expires: common.expires,
            meta,
            extra: common.extra,
        })
    }
}

impl Targets {
    pub(super) fn read(signed: Node<'_>) -> Result<Self, RoleError> {
        let common = common::<Self>(signed, &["targets", "delegations"])?;
        let mut targets = BTreeMap::new();
        for (path, file) in required_object(signed, "targets")?.entries() {
            targets.insert(path.into_owned(), target_file(file)?);
        }
        let delegations = match signed.get("delegations") {
            None => None,
            Some(node) if node.is_object() => Some(delegations(node)?),
            Some(_) => return Err(RoleError::Field { field: "delegations" }),
        };
        Ok(Self {
            version: common.version,
            expires: common.expires,
            targets,
            delegations,
            extra: common.extra,
        })
    }
}

fn positive(object: Node<'_>, field: &'static str) -> Result<u64, RoleError> {
    object
        .get(field)
        .and_then(Node::as_u64)
        .filter(|number| *number >= 1)
        .ok_or(RoleError::Field { field })
}

fn required_object<'d>(object: Node<'d>, field: &'static str) -> Result<Node<'d>, RoleError> {
    object
        .get(field)
        .filter(|node| node.is_object())
        .ok_or(RoleError::Field { field })
}

fn extra(object: Node<'_>, known: &[&str], field: &'static str) -> Result<BTreeMap<String, Value>, RoleError> {
    object
        .entries()
        .filter(|(key, _)| !known.contains(&&**key))
        .map(|(key, value)| {
            Ok((
                key.into_owned(),
                value.to_value().map_err(|source| RoleError::Value { field, source })?,
            ))
        })
        .collect()
}

fn keys(object: Node<'_>) -> Result<BTreeMap<KeyId, PublicKey>, RoleError> {
    let mut keys = BTreeMap::new();
    for (keyid, key) in required_object(object, "keys")?.entries() {
        if keys.len() >= limits::KEYS {
            return Err(RoleError::TooMany {
                field: "keys",
                limit: limits::KEYS,
            });
        }
        let value = key
            .to_value()
            .map_err(|source| RoleError::Value { field: "keys", source })?;
        keys.insert(KeyId::new(keyid), PublicKey::from_value(value)?);
    }
    Ok(keys)
}

fn role_keys(role: Node<'_>, field: &'static str) -> Result<RoleKeys, RoleError> {
    let list = role
        .get("keyids")
        .filter(|list| list.is_array())
        .ok_or(RoleError::Field { field })?;
    let mut seen = BTreeSet::new();
    let mut keyids = Vec::new();
    for keyid in list.items() {
        if keyids.len() >= limits::KEYS {
            return Err(RoleError::TooMany {
                field,
                limit: limits::KEYS,
            });
        }
        let keyid = KeyId::new(keyid.as_str().ok_or(RoleError::Field { field })?);
        if !seen.insert(keyid.clone()) {
            return Err(RoleError::RepeatedKeyId { field, keyid });
        }
        keyids.push(keyid);
    }
    let threshold = positive(role, "threshold").map_err(|_| RoleError::Field { field })?;
    Ok(RoleKeys { keyids, threshold })
}

fn read_hashes(node: Node<'_>, field: &'static str) -> Result<Hashes, RoleError> {
    let entries = node.entries().map(|(algorithm, digest)| (algorithm, digest.as_str()));
    // Nothing to iterate over when it is no object, and no digest then.
    Hashes::from_entries(entries).ok_or(RoleError::Field { field })
}

fn meta_file(node: Node<'_>, field: &'static str) -> Result<MetaFile, RoleError> {
    let length = match node.get("length") {
        None => None,
        Some(length) => Some(length.as_u64().ok_or(RoleError::Field { field })?),
    };
    Ok(MetaFile {
        version: positive(node, "version").map_err(|_| RoleError::Field { field })?,
        length,
        hashes: node
            .get("hashes")
            .map(|hashes| read_hashes(hashes, field))
            .transpose()?,
        extra: extra(node, &["version", "length", "hashes"], field)?,
    })
}

/// One pass over the entries: there are tens of thousands of targets.
fn target_file(node: Node<'_>) -> Result<TargetFile, RoleError> {
    const FIELD: &str = "targets";
    let malformed = || RoleError::Field { field: FIELD };
    let value = |node: Node<'_>| {
        node.to_value()
            .map_err(|source| RoleError::Value { field: FIELD, source })
    };
    let (mut length, mut hashes, mut custom, mut extra) = (None, None, None, BTreeMap::new());
    for (key, entry) in node.entries() {
        match &*key {
            "length" => length = Some(entry.as_u64().ok_or_else(malformed)?),
            "hashes" => hashes = Some(read_hashes(entry, FIELD)?),
            "custom" => custom = Some(value(entry)?),
            _ => drop(extra.insert(key.into_owned(), value(entry)?)),
        }
    }
    Ok(TargetFile {
        length: length.ok_or_else(malformed)?,
        hashes: hashes.ok_or_else(malformed)?,
        custom,
        extra,
    })
}

fn delegations(node: Node<'_>) -> Result<Delegations, RoleError> {
    let field = "delegations.roles";
    let list = node
        .get("roles")
        .filter(|roles| roles.is_array())
        .ok_or(RoleError::Field { field })?;
    let mut names = BTreeSet::new();
    let mut roles = Vec::new();
    for role in list.items() {
        if roles.len() >= limits::DELEGATED_ROLES {
            return Err(RoleError::TooMany {
                field,
                limit: limits::DELEGATED_ROLES,
            });
        }
        let role = delegated_role(role)?;
        if role.name.is_top_level() || !names.insert(role.name.clone()) {
            return Err(RoleError::NameTaken {
                name: role.name.as_str().to_owned(),
            });
        }
        roles.push(role);
    }
    Ok(Delegations {
        keys: keys(node)?,
        roles,
        extra: extra(node, &["keys", "roles"], "delegations")?,
    })
}

fn delegated_role(node: Node<'_>) -> Result<DelegatedRole, RoleError> {
    let field = "delegations.roles";
    let name = node.get("name").and_then(Node::as_str).ok_or(RoleError::Field {
        field: "delegations.roles.name",
    })?;
    let texts = |list: Node<'_>| {
        let items = list
            .is_array()
            .then(|| list.items().map(|item| item.as_str().map(Into::into)));
        items
            .and_then(Iterator::collect::<Option<Vec<String>>>)
            .ok_or(RoleError::Field { field })
    };
    // Exactly one of the two, or it is not clear which paths are meant (§4.5).
    let paths = match (node.get("paths"), node.get("path_hash_prefixes")) {
        (Some(paths), None) => PathSet::Patterns(texts(paths)?),
        (None, Some(prefixes)) => PathSet::HashPrefixes(texts(prefixes)?),
        _ => {
            return Err(RoleError::Field {
                field: "delegations.roles.paths",
            });
        }
    };
    Ok(DelegatedRole {
        name: RoleName::parse(&name)?,
        keys: role_keys(node, "delegations.roles.keyids")?,
        terminating: node
            .get("terminating")
            .and_then(Node::as_bool)
            .ok_or(RoleError::Field { field })?,
        paths,
        extra: extra(
            node,
            &[
                "name",
                "keyids",
                "threshold",
                "terminating",
                "paths",
                "path_hash_prefixes",
            ],
            field,
        )?,
    })
}
