//! What the workspace depends on: licences, bans, duplicate versions and sources by `.cargo/deny.toml`, without network;
//! and which crate of ours may know which.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use semver::{Version, VersionReq};
use serde_json::Value;

const PRODUCTS: [&str; 3] = ["fwagent", "fwserve", "fwsign"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn rules() -> toml::Value {
    let text = std::fs::read_to_string(root().join(".cargo/deny.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

/// The dependency graph for this platform, from the lock file.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Package ids that are linked into or run to build our programs; development dependencies are not.
fn used(metadata: &Value) -> BTreeSet<String> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let mut stack: Vec<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = stack.pop() {
        if !seen.insert(id.to_owned()) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|kind| kind["kind"] != "dev") {
                stack.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    seen
}

fn packages(metadata: &Value) -> Vec<&Value> {
    let used = used(metadata);
    let all = metadata["packages"].as_array().unwrap();
    all.iter()
        .filter(|package| used.contains(package["id"].as_str().unwrap()))
        .collect()
}

/// Whether an SPDX expression can be met with allowed licences only. `AND` binds closer than `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let expression = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut tokens: Vec<&str> = expression.split_whitespace().rev().collect();
    let met = any(&mut tokens, allow);
    met && tokens.is_empty()
}

fn any(tokens: &mut Vec<&str>, allow: &BTreeSet<String>) -> bool {
    let mut met = all(tokens, allow);
    while tokens.last() == Some(&"OR") {
        tokens.pop();
        met |= all(tokens, allow);
    }
    met
}

fn all(tokens: &mut Vec<&str>, allow: &BTreeSet<String>) -> bool {
    let mut met = one(tokens, allow);
    while tokens.last() == Some(&"AND") {
        tokens.pop();
        met &= one(tokens, allow);
    }
    met
}

fn one(tokens: &mut Vec<&str>, allow: &BTreeSet<String>) -> bool {
    match tokens.pop() {
        Some("(") => {
            let met = any(tokens, allow);
            assert_eq!(tokens.pop(), Some(")"));
            met
        }
        Some(name) if tokens.last() == Some(&"WITH") => {
            tokens.pop();
            let exception = tokens.pop().unwrap();
            allow.contains(&format!("{name} WITH {exception}"))
        }
        Some(name) => allow.contains(name),
        None => false,
    }
}

fn allow() -> BTreeSet<String> {
    let rules = rules();
    let list = rules["licenses"]["allow"].as_array().unwrap().clone();
    list.into_iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let allow = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned(), "A WITH E".to_owned()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND ISC", true),
        ("MIT AND (GPL-3.0 OR ISC)", true),
        ("GPL-3.0 OR MIT AND BSD", false),
        ("MIT/GPL-3.0", true),
        ("A WITH E", true),
        ("A", false),
        ("", false),
    ] {
        assert_eq!(allowed(expression, &allow), expected, "{expression}");
    }
}

#[test]
fn every_licence_is_allowed() {
    let (metadata, allow) = (metadata(), allow());
    let refused: Vec<_> = packages(&metadata)
        .into_iter()
        .filter(|package| !allowed(package["license"].as_str().unwrap_or(""), &allow))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn nothing_banned_is_used() {
    let (metadata, rules) = (metadata(), rules());
    let packages = packages(&metadata);
    assert!(packages.len() > 100, "the graph was read");
    for ban in rules["bans"]["deny"].as_array().unwrap() {
        let text = ban["crate"].as_str().unwrap();
        let (name, range) = text.split_once('@').unwrap_or((text, "*"));
        let range = VersionReq::parse(range).unwrap();
        for package in &packages {
            let version = Version::parse(package["version"].as_str().unwrap()).unwrap();
            assert!(
                package["name"] != name || !range.matches(&version),
                "{name} {version} is banned: {:?}",
                ban["reason"]
            );
        }
    }
}

#[test]
fn duplicate_versions_are_known_and_explained() {
    let (metadata, rules) = (metadata(), rules());
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(&metadata) {
        let version = package["version"].as_str().unwrap();
        versions
            .entry(package["name"].as_str().unwrap())
            .or_default()
            .insert(version);
    }
    let skipped: BTreeSet<String> = rules["bans"]["skip"]
        .as_array()
        .unwrap()
        .iter()
        .map(|skip| {
            assert!(skip["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
            skip["crate"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut unused = skipped.clone();
    for (name, found) in versions {
        let extra: Vec<_> = found
            .iter()
            .filter(|version| {
                let named = format!("{name}@{version}");
                unused.remove(&named);
                !skipped.contains(&named)
            })
            .collect();
        assert!(extra.len() <= 1, "{name} is used in versions {found:?}");
    }
    assert!(unused.is_empty(), "no longer needed in .cargo/deny.toml: {unused:?}");
}

#[test]
fn everything_comes_from_the_one_registry() {
    let (metadata, rules) = (metadata(), rules());
    let registry = rules["sources"]["allow-registry"][0].as_str().unwrap().to_owned();
    for package in packages(&metadata) {
        match package["source"].as_str() {
            None => assert!(package["publish"].as_array().is_some_and(Vec::is_empty), "{package}"),
            Some(source) => assert_eq!(source, format!("registry+{registry}"), "{}", package["name"]),
        }
    }
}

/// Names of the packages that a package of ours links, at any depth, with the features that it has by itself: what
/// another product asks for does not count.
fn linked(name: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", name, "--edges", "normal", "--prefix", "none"])
        .args(["--locked", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // The first line is the package itself.
    text.lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn no_product_knows_another_and_the_shared_crates_know_none() {
    for name in PRODUCTS.iter().chain(&["fwmeta", "fwdurable"]) {
        let linked = linked(name);
        assert!(!linked.is_empty());
        for product in PRODUCTS {
            assert!(!linked.contains(product), "{name} depends on {product}");
        }
    }
    // Positive control: the tests know all of them.
    assert!(PRODUCTS.iter().all(|product| linked("fwtests").contains(*product)));
}

#[test]
fn the_crate_that_decides_reaches_no_file_socket_clock_or_random_source() {
    let linked = linked("fwmeta");
    for name in ["tokio", "hyper", "reqwest", "rustls", "tempfile", "rustix", "fwdurable"] {
        assert!(!linked.contains(name), "fwmeta depends on {name}");
    }
    // Its libraries may contain a random source for making keys; its own code must not ask for one.
    let banned = [
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "SystemTime",
        "Instant",
        "getrandom",
        "OsRng",
    ];
    let mut files = 0;
    for path in sources(&root().join("crates/fwmeta/src")) {
        files += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let own = text.split("#[cfg(test)]").next().unwrap();
        for word in banned {
            assert!(!own.contains(word), "{} uses {word}", path.display());
        }
    }
    assert!(files > 15, "the sources were found");
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_agent_links_one_tls_and_no_signer() {
    let linked = linked("fwagent");
    for name in ["tough", "aws-lc-rs", "aws-lc-sys", "openssl", "rpassword", "h2"] {
        assert!(!linked.contains(name), "fwagent depends on {name}");
    }
    assert!(linked.contains("ring"), "positive control");
}
