//! Delegations: the order in which roles are visited, what ends a search, who may list what, and names that need quoting.

use fwmeta::delegation::PathSet;
use fwmeta::target::TargetPath;
use fwtests::repo_sim::{RepoSim, paths};

use crate::harness::{Case, in_days};

/// `from -> to`, the patterns, and whether it is terminating.
type Edge<'a> = (&'a str, &'a str, &'a [&'a str], bool);

const ANY: &[&str] = &["*"];
const PY: &[&str] = &["*.py"];

fn graph(edges: &[Edge<'_>]) -> RepoSim {
    let mut sim = RepoSim::expiring(in_days(30));
    for (from, to, patterns, terminating) in edges {
        sim.delegate(from, to, paths(patterns)).terminating = *terminating;
    }
    sim
}

/// Publishes everything, delegates at version 1.
fn publish(sim: &mut RepoSim) {
    let delegates: Vec<_> = sim.targets.keys().filter(|name| *name != "targets").cloned().collect();
    let delegates: Vec<_> = delegates.iter().map(String::as_str).collect();
    sim.publish(&[&delegates, &["targets", "snapshot", "timestamp"][..]].concat());
}

/// Delegated roles that a search for a target asks for, in order.
fn visited(case: &Case) -> Vec<String> {
    let requests = case.requests().into_iter().skip(4);
    requests.filter(|name| !name.starts_with("targets/")).collect()
}

#[test]
fn roles_are_visited_in_pre_order() {
    let cases: [(&str, &[Edge<'_>], &[&str]); 12] = [
        ("one", &[("targets", "A", ANY, false)], &["A"]),
        (
            "two",
            &[("targets", "A", ANY, false), ("targets", "B", ANY, false)],
            &["A", "B"],
        ),
        (
            "below the second",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("B", "C", ANY, false),
            ],
            &["A", "B", "C"],
        ),
        (
            "depth before breadth",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("A", "C", ANY, false),
                ("A", "D", ANY, false),
            ],
            &["A", "C", "D", "B"],
        ),
        (
            "depth before breadth, three levels",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("A", "C", ANY, false),
                ("C", "D", ANY, false),
            ],
            &["A", "C", "D", "B"],
        ),
        (
            "terminating ends everything behind it",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("A", "C", ANY, true),
                ("A", "D", ANY, false),
            ],
            &["A", "C"],
        ),
        (
            "terminating does not end what is below it",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("A", "C", ANY, true),
                ("C", "D", ANY, false),
            ],
            &["A", "C", "D"],
        ),
        (
            "terminating for other paths ends nothing",
            &[("targets", "A", PY, true), ("targets", "B", ANY, false)],
            &["B"],
        ),
        (
            "a branch for other paths",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("A", "C", PY, false),
                ("C", "D", ANY, false),
            ],
            &["A", "B"],
        ),
        (
            "a cycle",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("B", "C", ANY, false),
                ("C", "D", ANY, false),
                ("D", "B", ANY, false),
            ],
            &["A", "B", "C", "D"],
        ),
        (
            "two ways to one role",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("B", "C", ANY, false),
                ("A", "C", ANY, false),
            ],
            &["A", "C", "B"],
        ),
        (
            "two ways to one role, one for other paths",
            &[
                ("targets", "A", ANY, false),
                ("targets", "B", ANY, false),
                ("B", "C", ANY, false),
                ("A", "C", PY, false),
            ],
            &["A", "B", "C"],
        ),
    ];
    for (what, edges, expected) in cases {
        let mut sim = graph(edges);
        publish(&mut sim);
        let case = Case::of(sim);
        assert_eq!(case.download(&["missingpath"]), 1);
        let expected: Vec<_> = expected.iter().map(|role| format!("1.{role}.json")).collect();
        assert_eq!(visited(&case), expected, "{what}");
    }
}

#[test]
fn a_target_is_found_only_where_every_delegation_on_the_way_covers_it() {
    let mut sim = graph(&[
        ("targets", "A", &["*.doc", "*.md"], false),
        ("targets", "B", &["releases/*/*"], false),
        ("B", "C", &["releases/x/*"], false),
        ("B", "D", &["releases/y/*.zip"], false),
    ]);
    let files = [
        ("targets", "targetfile"),
        ("A", "README.md"),
        ("C", "releases/x/x_v1"),
        ("D", "releases/y/y_v1.zip"),
        ("D", "releases/z/z_v1.zip"),
    ];
    for (role, path) in files {
        sim.add_target(role, path, path.as_bytes());
    }
    publish(&mut sim);
    let root = sim.served("root", 1).clone();
    let server = Case::uninitialised(sim);
    for (path, found, expected) in [
        ("targetfile", true, &[][..]),
        ("README.md", true, &["A"]),
        ("releases/x/x_v1", true, &["B", "C"]),
        ("releases/y/y_v1.zip", true, &["B", "D"]),
        ("releases/z/z_v1.zip", false, &["B"]),
        ("docs/README.md", false, &[]),
    ] {
        std::fs::remove_dir_all(server.metadata_dir()).unwrap();
        assert_eq!(server.init(&root), 0);
        server.requests();
        assert_eq!(server.download(&[path]), i32::from(!found), "{path}");
        let expected: Vec<_> = expected.iter().map(|role| format!("1.{role}.json")).collect();
        assert_eq!(visited(&server), expected, "{path}");
        assert_eq!(server.downloaded().contains(&path.as_bytes().to_vec()), found, "{path}");
    }
}

#[test]
fn several_targets_share_one_refresh() {
    let mut sim = graph(&[("targets", "A", &["a/*"], false), ("targets", "B", &["b/*"], false)]);
    sim.add_target("A", "a/1", b"a1");
    sim.add_target("B", "b/1", b"b1");
    sim.add_target("A", "a/2", b"a2");
    publish(&mut sim);
    let case = Case::of(sim);
    assert_eq!(case.download(&["b/1", "a/1", "a/2"]), 0);
    let requests = case.requests();
    let metadata: Vec<_> = requests.iter().filter(|name| !name.starts_with("targets/")).collect();
    assert_eq!(metadata[4..], ["1.B.json", "1.A.json"]);
    assert_eq!(case.downloaded(), [b"a1", b"a2", b"b1"]);
}

#[test]
fn a_role_with_bad_metadata_is_no_obstacle_to_other_paths() {
    let mut sim = graph(&[
        ("targets", "bad", &["bad/*"], false),
        ("targets", "good", &["good/*"], false),
    ]);
    sim.add_target("bad", "bad/1", b"x");
    sim.add_target("good", "good/1", b"y");
    sim.signers.get_mut("bad").unwrap().clear();
    publish(&mut sim);
    let case = Case::of(sim);
    assert_eq!(case.download(&["good/1"]), 0);
    assert_eq!(case.download(&["bad/1"]), 1);
    assert_eq!(case.downloaded(), [b"y"]);
    assert!(!case.trusted().iter().any(|(name, _)| name == "bad"));
}

#[test]
fn hash_bins_divide_the_paths() {
    let mut sim = RepoSim::expiring(in_days(30));
    for bin in 0..16 {
        let prefix = format!("{bin:x}");
        sim.delegate("targets", &format!("bin-{prefix}"), PathSet::HashPrefixes(vec![prefix]))
            .terminating = true;
    }
    let path = "some/firmware.img";
    let bin = format!("bin-{}", &TargetPath::parse(path).unwrap().hash()[..1]);
    sim.add_target(&bin, path, b"content");
    publish(&mut sim);
    let case = Case::of(sim);
    assert_eq!(case.download(&[path]), 0);
    assert_eq!(visited(&case), [format!("1.{bin}.json")]);
    assert_eq!(case.downloaded(), [b"content"]);
}

#[test]
fn odd_role_names_are_quoted_in_requests_and_harmless_as_files() {
    for (role, quoted) in [
        ("?", "%3F"),
        ("#", "%23"),
        ("/delegatedrole", "%2Fdelegatedrole"),
        ("../delegatedrole", "..%2Fdelegatedrole"),
        (".", "."),
        ("..", ".."),
        ("a b%2Fc", "a%20b%252Fc"),
        ("é\n\"", "%C3%A9%0A%22"),
        (&"long ".repeat(50), &"long%20".repeat(50)),
    ] {
        let mut sim = graph(&[("targets", role, ANY, false)]);
        publish(&mut sim);
        let case = Case::of(sim);
        assert_eq!(case.download(&["nonexistent target"]), 1);
        let object = format!("1.{quoted}.json");
        assert!(case.requests().contains(&object), "{object}");
        assert_eq!(case.trusted().len(), 5, "{role}");
        // And found again in the directory.
        assert_eq!(case.download(&["nonexistent target"]), 1);
        assert!(!case.requests().contains(&object), "{object} is fetched twice");
    }
}

#[test]
fn a_delegated_role_cannot_take_the_name_of_a_top_level_role() {
    for name in ["root", "snapshot", "timestamp", "targets"] {
        let mut sim = RepoSim::expiring(in_days(30));
        sim.delegate("targets", "x", paths(ANY)).name = fwmeta::role::RoleName::parse(name).unwrap();
        sim.publish(&["x", "targets", "snapshot", "timestamp"]);
        let case = Case::of(sim);
        assert_eq!(case.refresh(), 1, "{name}");
        case.assert_trusted(&[("root", 1), ("snapshot", 2), ("timestamp", 2)]);
    }
}
