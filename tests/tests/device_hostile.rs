//! What a device does when the server lies, fails, or replays the past: the real agent against servers that a test
//! controls.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::ensure;
use fwtests::device::{CHECK, Files, Health, Scene, same};
use fwtests::lie_server::{Lie, LieServer};
use fwtests::world::Slots;

/// Spoils the directory of trusted metadata.
type Damage = fn(&Path) -> io::Result<()>;

/// What runs, what is recorded and what would boot: everything but the trusted metadata.
fn without_metadata(scene: &Scene) -> anyhow::Result<Files> {
    let mut files = scene.device()?;
    files.retain(|path, _| !path.starts_with("/state/metadata"));
    Ok(files)
}

/// A device on 1.0.0 that asks a server which lies about a repository with 1.1.0.
fn lied_to() -> anyhow::Result<(Scene, LieServer)> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    let server = LieServer::start(&scene.world.path("repo"));
    scene.world.point_at(server.url())?;
    Ok((scene, server))
}

/// Every way to spoil JSON, and the exit code: 1 when it was judged and refused, 3 when there was nothing to judge.
fn lies(genuine: &[u8], limit: usize) -> Vec<(&'static str, Lie, i32)> {
    let text = String::from_utf8_lossy(genuine);
    let body = |text: &str| Lie::Body(text.as_bytes().to_vec());
    let with = |first: &str| format!("{{{first},{}", &text[1..]);
    let mut flipped = genuine.to_vec();
    if let Some(at) = text.find("\"version\"") {
        flipped[at + 3] ^= 1;
    }
    let padded = format!("{text}{}", " ".repeat(limit));
    vec![
        (
            "cut, with a length that fits",
            Lie::Body(genuine[..genuine.len() / 2].to_vec()),
            1,
        ),
        ("cut", Lie::CutAfter(genuine.len() / 2), 3),
        ("empty", body(""), 1),
        ("no JSON", body("<html>504 Gateway Timeout</html>"), 1),
        ("one bit flipped", Lie::Body(flipped), 1),
        (
            "not UTF-8",
            Lie::Body([&b"{\"\xff\xfe\":1,"[..], &genuine[1..]].concat()),
            1,
        ),
        (
            "nested too deeply",
            body(&with(&format!("\"x\":{}{}", "[".repeat(4000), "]".repeat(4000)))),
            1,
        ),
        ("a key twice", body(&with("\"signatures\":[]")), 1),
        (
            "no signatures",
            body(&text.replace("\"signatures\"", "\"signature\"")),
            1,
        ),
        (
            "a number out of range",
            body(&text.replace("\"version\":", "\"version\":1e999")),
            1,
        ),
        ("more bytes after it", body(&format!("{text}{text}")), 1),
        ("longer than allowed", body(&padded), 3),
        ("without end", Lie::Endless, 3),
        ("status 500", Lie::Status(500, ""), 3),
        ("status 204", Lie::Status(204, ""), 3),
        ("redirected to itself", Lie::RedirectLoop, 3),
        (
            "redirected elsewhere",
            Lie::Status(302, "Location: ftp://127.0.0.1/x\r\n"),
            3,
        ),
        ("not there", Lie::Status(404, ""), 3),
    ]
}

#[test]
fn a_spoilt_timestamp_changes_nothing() -> anyhow::Result<()> {
    let (scene, server) = lied_to()?;
    let genuine = fs::read(scene.world.path("repo/metadata/timestamp.json"))?;
    for (what, lie, code) in lies(&genuine, 16 * 1024) {
        server.lie("/timestamp.json", lie);
        let ran = scene.refuses(code, &["--json", "install"]);
        let ran = ran.map_err(|error| error.context(what))?;
        let said = ran.json()?;
        ensure!(
            said["message"].as_str().is_some_and(|text| text.contains("timestamp")),
            "{what}: {said}"
        );
        let kind = if code == 1 { "refused" } else { "environment" };
        ensure!(said["error"] == kind, "{what}: {said}");
    }
    server.tell_the_truth();
    scene.ends(0, &["install"])?;
    Ok(())
}

#[test]
fn spoilt_metadata_of_other_roles_change_nothing_but_metadata() -> anyhow::Result<()> {
    let (scene, server) = lied_to()?;
    // The floors of timestamp and snapshot rise when only a product's role is spoilt.
    let kept = |scene: &Scene| -> anyhow::Result<Files> {
        let mut files = without_metadata(scene)?;
        files.retain(|path, _| !path.starts_with("/state/state."));
        Ok(files)
    };
    let before = kept(&scene)?;
    for suffix in [".snapshot.json", ".router.json"] {
        let names = fs::read_dir(scene.world.path("repo/metadata"))?.flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let role = names.filter(|name| name.ends_with(suffix)).max().unwrap_or_default();
        let genuine = fs::read(scene.world.path("repo/metadata").join(&role))?;
        for (what, lie, code) in lies(&genuine, 8 * 1024 * 1024) {
            // The timestamp and the snapshot announce lengths, so that more bytes are not even read.
            let too_long = matches!(&lie, Lie::Body(bytes) if bytes.len() > genuine.len());
            server.lie(&role, lie);
            let ran = scene.world.fwagent(&["install"])?;
            let good = ran.code == code || (too_long && ran.code == 3);
            ensure!(good, "{role} {what}: {} {}{}", ran.code, ran.out, ran.err);
            same(&before, &kept(&scene)?).map_err(|error| error.context(format!("{role} {what}")))?;
            ensure!(scene.world.status()?["phase"] == "idle");
        }
        server.tell_the_truth();
    }
    scene.ends(0, &["install"])?;
    Ok(())
}

#[test]
fn an_unreachable_server_is_no_verdict() -> anyhow::Result<()> {
    let (scene, server) = lied_to()?;
    // A port that was free a moment ago.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    scene.world.point_at(&format!("http://{nobody}"))?;
    for command in ["check", "install"] {
        let ran = scene.refuses(3, &["--json", command])?;
        ensure!(ran.json()?["error"] == "environment", "{}", ran.out);
    }
    ensure!(scene.boot()? == "a");
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "poll failed")?;
    agent.status(at, "poll failed")?;
    // It recovers by itself? Its configuration is read at the start, so it is started anew.
    agent.stop()?;
    scene.world.point_at(server.url())?;
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success());
    ensure!(scene.world.status()?["phase"] == "pending");
    Ok(())
}

#[test]
fn the_agent_waits_as_long_as_the_server_asks() -> anyhow::Result<()> {
    let (scene, server) = lied_to()?;
    for path in ["/timestamp.json", ".router.json", ".tar.zst"] {
        server.lie(path, Lie::Status(503, "Retry-After: 1234\r\n"));
        let mut agent = scene.run()?;
        let (at, failed) = agent.status(0, "poll failed")?;
        ensure!(failed.contains("503"), "{failed}");
        let (_, next) = agent.status(at, "next poll in ")?;
        ensure!(next == "next poll in 1234 s", "{path}: {next}");
        agent.stop()?;
    }
    // No longer than a day, whatever it asks.
    server.lie("/timestamp.json", Lie::Status(429, "Retry-After: 99999999999\r\n"));
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "poll failed")?;
    let (_, next) = agent.status(at, "next poll in ")?;
    ensure!(next == "next poll in 86400 s", "{next}");
    // An operator's word is stronger.
    server.tell_the_truth();
    agent.signal("USR1")?;
    ensure!(agent.end()?.success());
    ensure!(scene.world.status()?["phase"] == "pending");
    Ok(())
}

#[test]
fn a_payload_that_is_not_the_listed_one_is_not_installed() -> anyhow::Result<()> {
    let (scene, server) = lied_to()?;
    let slot = |scene: &Scene| -> anyhow::Result<Files> {
        let mut files = scene.device()?;
        files.retain(|path, _| path.starts_with("/slot"));
        Ok(files)
    };
    let before = slot(&scene)?;
    let dir = scene.world.path("repo/targets/router/1.1.0");
    for (suffix, name) in [("manifest.json", "manifest"), (".tar.zst", "payload")] {
        let genuine = fs::read_dir(&dir)?.flatten().find(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().ends_with(suffix)
        });
        let Some(genuine) = genuine else {
            anyhow::bail!("no {name} in {}", dir.display());
        };
        let genuine = fs::read(genuine.path())?;
        let mut flipped = genuine.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x40;
        for (what, lie) in [
            ("one bit flipped", Lie::Body(flipped)),
            ("too short", Lie::Body(genuine[..genuine.len() - 1].to_vec())),
            ("too long", Lie::Body([&genuine[..], b"x"].concat())),
            ("endless", Lie::Endless),
            ("not there", Lie::Status(404, "")),
            ("cut", Lie::CutAfter(10)),
        ] {
            server.lie(suffix, lie);
            let ran = scene.world.fwagent(&["install"])?;
            ensure!(ran.code == 3, "{name} {what}: {} {}{}", ran.code, ran.out, ran.err);
            same(&before, &slot(&scene)?).map_err(|error| error.context(format!("{name} {what}")))?;
            ensure!(scene.boot()? == "a", "{name} {what}");
            ensure!(scene.world.status()?["running_release"]["version"] == "1.0.0");
        }
    }
    server.tell_the_truth();
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b" && scene.version_in("b")? == "1.1.0");
    Ok(())
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Files, "")?;
    let image = scene.publish_image("1.1.0", &[])?;
    let server = LieServer::start(&scene.world.path("repo"));
    scene.world.point_at(server.url())?;
    server.lie(".img.zst", Lie::CutAfter(100_000));
    let ran = scene.ends(3, &["install"])?;
    ensure!(ran.err.contains("img.zst"), "{}", ran.err);
    ensure!(scene.world.status()?["phase"] == "staging" && scene.boot()? == "a");
    let kept: Vec<u64> = fs::read_dir(scene.world.path("device/state/downloads"))?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".partial"))
        .flat_map(|entry| entry.metadata().map(|metadata| metadata.len()))
        .collect();
    ensure!(kept == [100_000], "{kept:?}");

    scene.world.point_at(&scene.world.url())?;
    let before = scene.served(".img.zst")?.len();
    scene.ends(0, &["install"])?;
    let served = scene.served(".img.zst")?;
    ensure!(served[before..] == [206], "{served:?}");
    ensure!(fs::read(scene.world.path("device/slot-b.img"))? == fs::read(image)?);
    ensure!(!scene.world.path("device/state/downloads").exists());
    Ok(())
}

#[test]
fn expired_metadata_are_refused() -> anyhow::Result<()> {
    let (scene, server) = lied_to()?;
    let tree = scene.tree("1.2.0", Health::Good)?.display().to_string();
    let add = [
        "release",
        "add",
        "repo",
        "--product",
        "router",
        "--version",
        "1.2.0",
        "--hardware",
        "rev-b",
    ];
    let more = [
        "--tar",
        &tree,
        "--level",
        "3",
        "--keys-dir",
        "keys",
        "--timestamp-days",
        "1",
    ];
    scene.world.sign_at(-3, &[&add[..], &more[..]].concat())?;
    let ran = scene.refuses(1, &["install"])?;
    ensure!(
        ran.err.contains("timestamp") && ran.err.contains("expired"),
        "{}",
        ran.err
    );
    // An expired snapshot under a fresh timestamp.
    scene.world.sign_at(
        -3,
        &[
            "refresh",
            "repo",
            "--keys-dir",
            "keys",
            "--snapshot-days",
            "1",
            "--timestamp-days",
            "9",
        ],
    )?;
    let before = without_metadata(&scene)?;
    let ran = scene.ends(1, &["install"])?;
    ensure!(
        ran.err.contains("snapshot") && ran.err.contains("expired"),
        "{}",
        ran.err
    );
    same(&before, &without_metadata(&scene)?)?;
    // A product's role that has expired blocks the product, and is no "nothing to do".
    let late = [
        "refresh",
        "repo",
        "--keys-dir",
        "keys",
        "--role",
        "router",
        "--product-days",
        "1",
    ];
    scene.world.sign_at(
        -3,
        &[&late[..], &["--snapshot-days", "9", "--timestamp-days", "9"]].concat(),
    )?;
    let ran = scene.ends(1, &["install"])?;
    ensure!(
        ran.out.contains("router") && ran.out.contains("expired"),
        "{}{}",
        ran.out,
        ran.err
    );
    scene
        .world
        .sign(&["refresh", "repo", "--keys-dir", "keys", "--role", "router"])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.version_in("b")? == "1.2.0", "{server:?}");
    Ok(())
}

#[test]
fn a_replayed_repository_is_refused_also_when_the_metadata_are_lost() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.world.copy("repo", "old")?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let server = LieServer::start(&scene.world.path("old"));
    scene.world.point_at(server.url())?;
    let ran = scene.refuses(1, &["install"])?;
    ensure!(ran.err.contains("timestamp"), "{}", ran.err);

    let metadata = scene.world.path("device/state/metadata");
    scene.world.copy("device/state/metadata", "metadata-kept")?;
    let damages: [(&str, Damage); 4] = [
        ("objects flipped", |metadata| {
            for entry in fs::read_dir(metadata.join("objects"))? {
                let path = entry?.path();
                let mut bytes = fs::read(&path)?;
                bytes[10] ^= 1;
                fs::write(&path, bytes)?;
            }
            Ok(())
        }),
        ("objects gone", |metadata| {
            fs::remove_dir_all(metadata.join("objects"))?;
            fs::create_dir(metadata.join("objects"))
        }),
        ("records torn", |metadata| {
            fs::write(metadata.join("generation.a"), "torn")?;
            fs::write(metadata.join("generation.b"), "torn")
        }),
        ("all but the root gone", |metadata| {
            fs::remove_dir_all(metadata.join("objects"))?;
            fs::remove_file(metadata.join("generation.a"))?;
            fs::remove_file(metadata.join("generation.b"))
        }),
    ];
    for (what, damage) in damages {
        fs::remove_dir_all(&metadata)?;
        scene.world.copy("metadata-kept", "device/state/metadata")?;
        damage(&metadata)?;
        server.serve(&scene.world.path("old"));
        let before = without_metadata(&scene)?;
        let ran = scene.ends(1, &["install"]).map_err(|error| error.context(what))?;
        ensure!(ran.err.contains("which this device has seen"), "{what}: {}", ran.err);
        scene.ends(1, &["install", "--version", "1.0.0", "--retry"])?;
        same(&before, &without_metadata(&scene)?).map_err(|error| error.context(what))?;
        ensure!(scene.boot()? == "b", "{what}");
        // The genuine one is taken, and all is as before.
        server.serve(&scene.world.path("repo"));
        let ran = scene.ends(4, &["install"]).map_err(|error| error.context(what))?;
        ensure!(
            ran.out.contains("1.1.0 (sequence 2) is installed"),
            "{what}: {}",
            ran.out
        );
        server.serve(&scene.world.path("old"));
        let ran = scene.refuses(1, &["check"])?;
        ensure!(!ran.err.contains("damaged"), "{what}: {}", ran.err);
    }
    Ok(())
}
