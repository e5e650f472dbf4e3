//! `init`, `product add`, `release add`, `refresh`, `status`: what they make, what they refuse, and that a refusal changes
//! nothing.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use support::{Run, Workshop, command, fwsign, signed, text, tree};

/// Seconds since 1970, so many days ago.
fn days_ago(days: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (now - days * 86_400).to_string()
}

#[test]
fn init_makes_a_repository_that_both_verifiers_accept() {
    let shop = Workshop::empty();
    let run: Run = shop.init_command(&[]).arg("--json").output().unwrap().into();
    let json = run.expect(0).json();
    assert_eq!(json["products"][0], "router");
    let root = signed(&shop.metadata("1.root.json"));
    assert_eq!(root["roles"]["root"]["threshold"], 2);
    assert_eq!(root["consistent_snapshot"], true);
    let mut names: Vec<_> = tree(&shop.repo()).into_keys().collect();
    names.retain(|name| name.ends_with(".json"));
    let expected = [
        "1.root.json",
        "1.router.json",
        "1.snapshot.json",
        "1.targets.json",
        "timestamp.json",
    ];
    assert_eq!(names, expected.map(|name| format!("metadata/{name}")));
    let verified: Run = command()
        .args(["--json", "verify", text(&shop.repo())])
        .output()
        .unwrap()
        .into();
    assert_eq!(
        verified.expect(0).json()["verifiers"],
        serde_json::json!(["fwmeta", "tough"])
    );
}

#[test]
fn init_refuses_and_leaves_nothing_behind() {
    let shop = Workshop::empty();
    shop.init(&["--root-threshold", "3"])
        .expect_error(2, "threshold of 3 cannot be met by 2");
    shop.init(&["--root-threshold", "0"]).expect_error(2, "threshold of 0");
    shop.init(&["--product-threshold", "2"])
        .expect_error(2, "router: a threshold of 2");
    for name in [
        "root",
        "timestamp",
        "rollout",
        "hold",
        ".hidden",
        "a/b",
        "a b",
        "..",
        &"x".repeat(200),
    ] {
        let product = format!("{name}={}", shop.key("p").display());
        shop.init(&["--product", &product])
            .expect_error(2, "is not a product name");
    }
    shop.init(&["--product", "nokey"]).expect(2);
    shop.init(&["--product", "a=/nonexistent"])
        .expect_error(3, "/nonexistent");
    shop.init(&["--timestamp-days", "0"]).expect(2);
    let dry = shop.init(&["--dry-run"]).expect(0);
    assert!(dry.stdout.starts_with("would make"));
    for epoch in ["", "yesterday", "-1", "99999999999999", "999999999999999999999"] {
        let run: Run = shop
            .init_command(&[])
            .env("SOURCE_DATE_EPOCH", epoch)
            .output()
            .unwrap()
            .into();
        run.expect_error(3, "SOURCE_DATE_EPOCH");
    }
    let left = tree(&shop.path(""));
    assert!(left.keys().all(|name| name == "/" || name == "repo/"), "{left:?}");
    shop.init(&[]).expect(0);
    let before = tree(&shop.repo());
    shop.init(&[]).expect_error(2, "holds a repository already");
    assert_eq!(tree(&shop.repo()), before);
}

#[test]
fn the_same_epoch_gives_the_same_bytes() {
    let trees = [0, 1].map(|_| {
        let shop = Workshop::empty();
        let epoch = days_ago(1);
        let epoch = &epoch[..epoch.len() - 4];
        let epoch = format!("{epoch}0000");
        let run = |mut command: std::process::Command| -> Run {
            command.env("SOURCE_DATE_EPOCH", &epoch).output().unwrap().into()
        };
        run(shop.init_command(&[])).expect(0);
        run(shop.release_command("1.0.0", &[])).expect(0);
        run(shop.command_with_keys(&["refresh"], &[])).expect(0);
        tree(&shop.repo())
    });
    assert_eq!(trees[0], trees[1]);
}

#[test]
fn product_add_delegates_and_refuses_what_it_must() {
    let shop = Workshop::new();
    let camera = format!("camera={}", shop.key("p2").display());
    let add = |product: &str, more: &[&str]| shop.with_keys(&["product", "add"], &[&[product], more].concat());
    let before = tree(&shop.repo());
    add(&format!("router={}", shop.key("p").display()), &[]).expect_error(2, "product router exists already");
    add(&camera, &["--threshold", "2"]).expect_error(2, "threshold of 2");
    add(&camera, &["--dry-run"]).expect(0);
    fwsign([
        "product",
        "add",
        text(&shop.repo()),
        &camera,
        "--key",
        text(&shop.key("s")),
    ])
    .expect_error(2, "targets metadata need 1 signatures");
    fwsign(["product", "add", text(&shop.path("none")), &camera]).expect_error(3, "none");
    assert_eq!(tree(&shop.repo()), before);
    assert!(!shop.path("none").exists());
    add(&camera, &[]).expect(0);
    let targets = signed(&shop.metadata("2.targets.json"));
    let role = &targets["delegations"]["roles"][1];
    assert_eq!(role["name"], "camera");
    assert_eq!(role["paths"], serde_json::json!(["camera/*", "camera/*/*"]));
    shop.verify().expect(0);
}

#[test]
fn release_add_makes_a_release_that_metadata_and_manifest_describe_alike() {
    let shop = Workshop::new();
    let more = [
        "--requires",
        "0.9.0",
        "--notes",
        "first",
        "--kind",
        "security",
        "--advisory",
        "text",
        "--cve",
        "CVE-2026-1",
    ];
    let run: Run = shop
        .release_command("1.0.0", &more)
        .arg("--json")
        .output()
        .unwrap()
        .into();
    let json = run.expect(0).json();
    assert_eq!((&json["sequence"], &json["channel"]), (&1.into(), &"stable".into()));
    let manifest = shop.manifest("1.0.0");
    let listed = signed(&shop.metadata("2.router.json"));
    let fw = &listed["targets"]["router/1.0.0/manifest.json"]["custom"]["fw"];
    assert_eq!(fw["sequence"], manifest["sequence"]);
    assert_eq!(fw["min_version"], manifest["requires"]);
    assert_eq!(manifest["advisory"]["cves"][0], "CVE-2026-1");
    let payload = fs::read(shop.payload("1.0.0")).unwrap();
    assert_eq!(
        zstd::decode_all(&payload[..]).unwrap(),
        fs::read(shop.path("image")).unwrap()
    );
    let status = fwsign(["status", text(&shop.repo())]).expect(0);
    assert!(
        status
            .stdout
            .contains("router 1.0.0 sequence 1 channel stable for rev-b"),
        "{}",
        status.stdout
    );
    shop.verify().expect(0);
}

#[test]
fn versions_and_sequences_are_used_once() {
    let shop = Workshop::new();
    shop.release("1.0.0", &["--sequence", "5"]).expect(0);
    let before = tree(&shop.repo());
    shop.release("1.0.0", &[]).expect_error(1, "a version is released once");
    shop.release("1.0.0", &["--channel", "beta"])
        .expect_error(1, "a version is released once");
    shop.release("1.1.0", &["--sequence", "5"])
        .expect_error(1, "sequence 5 is not above 5");
    shop.release("1.1.0", &["--sequence", "4"])
        .expect_error(1, "sequence 4 is not above 5");
    shop.release("1.1.0", &["--dry-run"]).expect(0);
    assert_eq!(tree(&shop.repo()), before);
    // Another channel counts for itself, and the next one goes on where this one is.
    shop.release("1.1.0-beta", &["--channel", "beta", "--sequence", "1"])
        .expect(0);
    shop.release("1.1.0", &[]).expect(0);
    assert_eq!(shop.manifest("1.1.0")["sequence"], 6);
    shop.verify().expect(0);
}

#[test]
fn the_security_floor_is_the_last_one_unless_it_rises() {
    let shop = Workshop::new();
    let floor = |version: &str| shop.manifest(version)["security_floor"].as_u64().unwrap();
    shop.release("1.0.0", &[]).expect(0);
    shop.release("1.1.0", &["--security-floor", "2"]).expect(0);
    shop.release("1.2.0", &[]).expect(0);
    assert_eq!((floor("1.0.0"), floor("1.1.0"), floor("1.2.0")), (0, 2, 2));
    let before = tree(&shop.repo());
    shop.release("1.3.0", &["--security-floor", "1"])
        .expect_error(1, "security floor 1 is below 2");
    // Above its own sequence a device could not boot it again.
    shop.release("1.3.0", &["--security-floor", "5"])
        .expect_error(2, "security_floor");
    assert_eq!(tree(&shop.repo()), before);
    shop.release("1.3.0", &["--security-floor", "4"]).expect(0);
    assert_eq!(floor("1.3.0"), 4);
    // A beta channel has its own.
    shop.release("2.0.0", &["--channel", "beta"]).expect(0);
    assert_eq!(floor("2.0.0"), 0);
}

#[test]
fn an_earlier_manifest_that_is_gone_or_changed_stops_a_release() {
    let shop = Workshop::new();
    shop.release("1.0.0", &["--security-floor", "1"]).expect(0);
    let dir = shop.repo().join("targets/router/1.0.0");
    let manifest = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let manifest = manifest
        .filter(|path| text(path).ends_with("manifest.json"))
        .last()
        .unwrap();
    let contents = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        contents.replace("\"security_floor\": 1", "\"security_floor\": 0"),
    )
    .unwrap();
    shop.release("1.1.0", &[]).expect_error(1, "router/1.0.0/manifest.json");
    fs::remove_file(&manifest).unwrap();
    shop.release("1.1.0", &[]).expect_error(1, "router/1.0.0/manifest.json");
    fs::write(&manifest, contents).unwrap();
    shop.release("1.1.0", &[]).expect(0);
}

#[test]
fn bad_releases_are_refused_and_change_nothing() {
    let shop = Workshop::new();
    let repo = shop.repo();
    let before = tree(&shop.repo());
    for (version, more, code, part) in [
        ("1.0", &[][..], 2, "not a semantic version"),
        ("../1.0.0", &[], 2, "not a semantic version"),
        ("1.0.0", &["--requires", "old"], 2, "--requires"),
        ("1.0.0", &["--channel", "a b"], 2, "channel"),
        ("1.0.0", &["--component", "a/b"], 2, "components"),
        ("1.0.0", &["--component", "../../x"], 2, "--component"),
        ("1.0.0", &["--hardware", ""], 2, "hardware"),
        ("1.0.0", &["--vendor", ""], 2, "vendor"),
        ("1.0.0", &["--support-end", "2026-02-30"], 2, "support_end"),
        ("1.0.0", &["--support-end", "soon"], 2, "support_end"),
        ("1.0.0", &["--sequence", "0"], 1, "sequence 0 is not above 0"),
        ("1.0.0", &["--sequence", "many"], 2, "--sequence"),
        ("1.0.0", &["--product", "camera"], 2, ""),
        ("1.0.0", &["--kind", "other"], 2, "--kind"),
        ("1.0.0", &["--level", "23"], 2, "--level"),
        ("1.0.0", &["--cve", "CVE-1"], 2, "--advisory"),
        ("1.0.0", &["--tar", "x"], 2, "--tar"),
    ] {
        shop.release(version, more).expect_error(code, part);
    }
    let add = |more: &[&str]| {
        let options = ["--product", "router", "--version", "1.0.0", "--hardware", "a"];
        shop.with_keys(&["release", "add"], &[&options[..], more].concat())
    };
    add(&[]).expect(2);
    add(&["--image", "/nonexistent"]).expect_error(3, "/nonexistent");
    add(&["--image", text(&repo)]).expect_error(3, "not a regular file");
    add(&["--tar", text(&shop.file("x.tar", b"not a tar archive at all"))]).expect_error(1, "devices would refuse");
    let image = shop.file("image", b"image");
    let few = [
        "release",
        "add",
        text(&repo),
        "--product",
        "router",
        "--version",
        "1.0.0",
        "--hardware",
        "a",
    ];
    fwsign(
        few.iter()
            .chain(&["--image", text(&image), "--key", text(&shop.key("p"))]),
    )
    .expect_error(2, "snapshot metadata need 1");
    let unknown = [
        "release",
        "add",
        text(&repo),
        "--product",
        "camera",
        "--version",
        "1.0.0",
        "--hardware",
        "a",
    ];
    fwsign(unknown.iter().chain(&["--image", text(&image)])).expect_error(2, "fwsign product add");
    assert_eq!(tree(&shop.repo()), before);
    shop.release("1.0.0", &[]).expect(0);
}

#[test]
fn a_directory_becomes_an_archive_and_links_out_of_it_are_refused() {
    let shop = Workshop::new();
    let root = shop.path("rootfs");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/conf"), "x").unwrap();
    std::os::unix::fs::symlink("etc/conf", root.join("link")).unwrap();
    let add = |version: &str, input: &str| {
        let options = [
            "--product",
            "router",
            "--hardware",
            "a",
            "--version",
            version,
            "--tar",
            input,
        ];
        shop.with_keys(&["release", "add"], &options)
    };
    add("1.0.0", text(&root)).expect(0);
    let archive = zstd::decode_all(&fs::read(shop.payload("1.0.0")).unwrap()[..]).unwrap();
    let archive = shop.file("rootfs.tar", &archive);
    assert_eq!(shop.manifest("1.0.0")["components"][0]["type"], "tar");
    // The archive by itself is as good.
    add("1.1.0", text(&archive)).expect(0);
    let image = |version: &str| shop.manifest(version)["components"][0]["image"].clone();
    assert_eq!(image("1.0.0"), image("1.1.0"));
    let before = tree(&shop.repo());
    std::os::unix::fs::symlink("../../etc/passwd", root.join("etc/out")).unwrap();
    add("1.2.0", text(&root)).expect_error(1, "leads out of the tree");
    assert_eq!(tree(&shop.repo()), before);
    shop.verify().expect(0);
}

#[test]
fn refresh_renews_what_is_due_and_nothing_else() {
    let shop = Workshop::new();
    let run = shop
        .with_keys(&["refresh"], &["--within-days", "1"])
        .expect_error(4, "nothing expires within 1 days");
    assert!(run.stdout.is_empty());
    let before = tree(&shop.repo());
    shop.with_keys(&["refresh"], &["--dry-run"]).expect(0);
    let wrong = ["--key", text(&shop.key("stranger"))].map(str::to_owned);
    fwsign(
        ["refresh".to_owned(), text(&shop.repo()).to_owned()]
            .iter()
            .chain(&wrong),
    )
    .expect(2);
    shop.with_keys(&["refresh"], &["--role", "camera"])
        .expect_error(2, "neither `targets` nor a product");
    assert_eq!(tree(&shop.repo()), before);
    // The timestamp is due within 8 days, the snapshot is not: its key is not needed.
    let online = [
        "refresh",
        text(&shop.repo()),
        "--key",
        text(&shop.key("ts")),
        "--within-days",
        "8",
    ]
    .map(str::to_owned);
    fwsign(&online).expect(0);
    assert_eq!(signed(&shop.metadata("timestamp.json"))["version"], 2);
    assert!(!shop.metadata("2.snapshot.json").exists());
    shop.refresh().expect(0);
    assert_eq!(
        signed(&shop.metadata("timestamp.json"))["snapshot"],
        serde_json::Value::Null
    );
    assert!(shop.metadata("2.snapshot.json").exists());
    shop.with_keys(&["refresh"], &["--role", "targets", "--role", "router"])
        .expect(0);
    assert!(shop.metadata("2.targets.json").exists() && shop.metadata("2.router.json").exists());
    shop.verify().expect(0);
}

#[test]
fn what_has_expired_is_reported_and_can_be_renewed() {
    let shop = Workshop::empty();
    let old: Run = shop
        .init_command(&["--timestamp-days", "1", "--product-days", "2"])
        .env("SOURCE_DATE_EPOCH", days_ago(10))
        .output()
        .unwrap()
        .into();
    old.expect(0);
    let status = || -> (i32, serde_json::Value) {
        let run: Run = command()
            .args(["--json", "status", text(&shop.repo())])
            .output()
            .unwrap()
            .into();
        (run.code, run.json())
    };
    let (code, json) = status();
    assert_eq!(
        (code, &json["expired"]),
        (1, &serde_json::json!(["timestamp", "router"]))
    );
    assert!(
        fwsign(["status", text(&shop.repo())])
            .expect(1)
            .stdout
            .contains("(EXPIRED)")
    );
    shop.verify().expect_error(1, "both verifiers refuse");
    let past = text(&shop.repo()).to_owned();
    fwsign(["verify", &past, "--at", "2001-01-01T00:00:00Z"]).expect(0);
    fwsign(["verify", &past, "--at", "yesterday"]).expect_error(2, "--at");
    // An expired product does not keep the timestamp from being renewed, or others from releasing.
    let run = shop.refresh().expect(0);
    assert!(run.stderr.contains("router expired"), "{}", run.stderr);
    assert_eq!(status().1["expired"], serde_json::json!(["router"]));
    let camera = format!("camera={}", shop.key("p2").display());
    shop.with_keys(&["product", "add"], &[&camera]).expect(0);
    shop.verify().expect_error(1, "router");
    shop.with_keys(&["refresh"], &["--role", "router"]).expect(0);
    assert_eq!(status().0, 0);
    shop.verify().expect(0);
}

#[test]
fn a_repository_that_does_not_verify_is_not_signed() {
    let shop = Workshop::new();
    let path = shop.metadata("1.router.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"version\":1", "\"version\":3")).unwrap();
    assert_ne!(good, fs::read_to_string(&path).unwrap());
    let before = tree(&shop.repo());
    for run in [
        shop.release("1.0.0", &[]),
        shop.refresh(),
        fwsign(["status", text(&shop.repo())]),
    ] {
        run.expect_error(1, "does not verify");
    }
    assert_eq!(tree(&shop.repo()), before);
    for run in [
        fwsign(["status", text(&shop.path("none"))]),
        fwsign(["verify", text(&shop.path("none"))]),
    ] {
        run.expect_error(3, "none");
    }
    fs::write(&path, good).unwrap();
    shop.release("1.0.0", &[]).expect(0);
}

#[test]
fn errors_are_json_when_asked_for() {
    let shop = Workshop::new();
    let run: Run = shop
        .command_with_keys(&["--json", "refresh"], &["--within-days", "1"])
        .output()
        .unwrap()
        .into();
    let run = run.expect(4);
    assert_eq!(run.json()["error"], "nothing-to-do");
    assert!(run.stderr.is_empty());
}
