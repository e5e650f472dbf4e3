//! Offline bundles: made by `fwsign`, taken by `fwagent`, with the rules of the network path; the real programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use fwtests::device::{CHECK, Files, Health, Scene};
use fwtests::tools;
use fwtests::world::Slots;

const BUNDLE: &str = "stick/router.fwbundle";

/// Makes a bundle, whose server is then gone.
fn bundle(scene: &Scene, more: &[&str]) -> anyhow::Result<()> {
    fs::create_dir_all(scene.world.path("stick"))?;
    let mut arguments = vec!["bundle", "repo", "--product", "router", "-o", BUNDLE];
    arguments.extend(more);
    scene.world.sign(&arguments)?;
    Ok(())
}

fn offline(scene: &Scene) -> anyhow::Result<()> {
    // Port 9 is nobody's: whoever asks a server fails.
    scene.world.point_at("http://127.0.0.1:9")
}

/// What a device holds and boots. Metadata that were verified before something else was refused stay, and raise floors.
fn installed(scene: &Scene) -> anyhow::Result<Files> {
    let mut files = scene.device()?;
    files.retain(|path, _| !path.starts_with("/state/metadata") && !path.starts_with("/state/state."));
    Ok(files)
}

/// Entries of a bundle: name, and where header and contents begin and the next header follows.
fn entries(bytes: &[u8]) -> anyhow::Result<Vec<(String, usize, usize)>> {
    let (mut at, mut found) = (0, Vec::new());
    while bytes[at] != 0 {
        let block: &[u8; 512] = bytes[at..at + 512].try_into()?;
        let entry = fwbundle::entry(block).map_err(anyhow::Error::msg)?;
        let next = at + 512 + (entry.size as usize).next_multiple_of(512);
        found.push((entry.name, at, next));
        at = next;
    }
    Ok(found)
}

fn without(bytes: &[u8], name: &str) -> anyhow::Result<Vec<u8>> {
    let entries = entries(bytes)?;
    let (_, at, next) = entries
        .iter()
        .find(|(other, ..)| other.ends_with(name))
        .context("no entry")?;
    Ok([&bytes[..*at], &bytes[*next..]].concat())
}

#[test]
fn a_release_goes_from_a_stick_into_the_device() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    offline(&scene)?;
    bundle(&scene, &["--version", "1.1.0"])?;
    let first = fs::read(scene.world.path(BUNDLE))?;
    bundle(&scene, &["--version", "1.1.0"])?;
    ensure!(
        fs::read(scene.world.path(BUNDLE))? == first,
        "the same bundle has other bytes"
    );

    // 1.2.0 is in the metadata, and 1.1.0 is what the bundle has.
    let checked = scene.ends(0, &["--json", "check", "--bundle", BUNDLE])?;
    ensure!(
        checked.json()?["offer"]["release"]["version"] == "1.1.0",
        "{}",
        checked.out
    );
    scene.ends(0, &["install", "--bundle", BUNDLE])?;
    ensure!(scene.version_in("b")? == "1.1.0" && scene.boot()? == "b");
    ensure!(!scene.world.path("device/state/downloads").exists(), "a copy was made");
    scene.ends(4, &["install", "--bundle", BUNDLE])?;
    let status = scene.world.status()?;
    ensure!(status["last"]["result"] == "confirmed", "{status}");
    // Nothing else is in it.
    scene.refuses(1, &["install", "--bundle", BUNDLE, "--version", "1.2.0"])?;
    // Now the floor has risen, and the old one is refused as from a server.
    bundle(&scene, &["--version", "1.0.0"])?;
    let refused = scene.refuses(1, &["install", "--bundle", BUNDLE])?;
    ensure!(refused.out.contains("floor"), "{}", refused.out);
    bundle(&scene, &[])?;
    scene.ends(0, &["install", "--bundle", BUNDLE])?;
    ensure!(scene.version_in("a")? == "1.2.0");
    Ok(())
}

#[test]
fn tar_reads_a_bundle_and_what_it_unpacks_is_a_repository() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    bundle(&scene, &[])?;
    let Some(tar) = tools::program("tar") else {
        return Ok(());
    };
    let dir = scene.world.path("unpacked");
    fs::create_dir_all(&dir)?;
    let status = Command::new(tar)
        .arg("-xf")
        .arg(scene.world.path(BUNDLE))
        .arg("-C")
        .arg(&dir)
        .status()?;
    ensure!(status.success());
    ensure!(fs::read_to_string(dir.join("fwbundle"))? == "fwbundle 1\n");
    let verified = scene.world.sign(&["verify", "unpacked", "--metadata-only"])?;
    ensure!(verified.out.contains("agree"), "{}", verified.out);
    // Only the release that was asked for.
    let versions: Vec<_> = fs::read_dir(dir.join("targets/router"))?.collect::<Result<_, _>>()?;
    ensure!(
        versions.len() == 1 && versions[0].file_name() == "1.1.0",
        "{versions:?}"
    );
    Ok(())
}

#[test]
fn a_new_device_gets_its_first_software_from_a_stick() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.publish_tree("1.0.0", Health::Good, &[])?;
    scene.world.configure(Slots::Dirs, CHECK)?;
    offline(&scene)?;
    bundle(&scene, &[])?;
    let root = "repo/metadata/1.root.json";
    scene.ends(2, &["provision", "--root", root, "--version", "1.0.0"])?;
    scene.ends(2, &["provision", "--root", root, "--from-server", "--bundle", BUNDLE])?;
    scene.ends(0, &["provision", "--root", root, "--bundle", BUNDLE])?;
    ensure!(scene.version_in("a")? == "1.0.0" && scene.boot()? == "a");
    ensure!(scene.world.status()?["floors"]["components"][0]["sequence"] == 1);
    Ok(())
}

#[test]
fn a_damaged_bundle_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    offline(&scene)?;
    bundle(&scene, &[])?;
    let good = fs::read(scene.world.path(BUNDLE))?;
    let names = entries(&good)?;
    let entry = |suffix: &str| {
        let found = names.iter().find(|(name, ..)| name.ends_with(suffix));
        found.cloned().with_context(|| format!("no {suffix}"))
    };
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let (_, root, after_root) = entry("1.root.json")?;
    let (_, timestamp, _) = entry("timestamp.json")?;
    let (_, manifest, _) = entry(".manifest.json")?;
    let (_, payload, _) = entry(".zst")?;
    let swapped = [&good[..root], &good[after_root..after_root + 512], &good[root + 512..]].concat();
    let twice = [&good[..after_root], &good[root..after_root], &good[after_root..]].concat();
    let early = [&good[..payload], &[0; 1024][..], &good[payload..]].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "ends early"),
        ("one zero block", vec![0; 512], "empty"),
        ("not a bundle", b"PK\x03\x04".repeat(1000), "bundle"),
        ("cut in the payload", good[..payload + 700].to_vec(), "ends early"),
        ("cut before the end", good[..good.len() - 512].to_vec(), "ends early"),
        ("trailing data", [&good[..], &[0; 512]].concat(), "after the end"),
        ("trailing text", [&good[..], b"x"].concat(), "after the end"),
        ("an end in the middle", early, "after the end"),
        ("an entry twice", twice, "twice"),
        ("another header", swapped, ""),
        ("format of tomorrow", good.clone(), "fwbundle 2"),
        ("no timestamp", without(&good, "timestamp.json")?, "timestamp.json"),
        ("no manifest", without(&good, ".manifest.json")?, "manifest.json"),
        ("no payload", without(&good, ".zst")?, ".zst"),
        ("timestamp changed", flipped(timestamp + 512 + 40), "timestamp"),
        ("manifest changed", flipped(manifest + 512 + 40), "not the target"),
        ("payload changed", flipped(payload + 512 + 40), "not the target"),
    ];
    for (name, mut bytes, message) in cases {
        if name == "format of tomorrow" {
            bytes[512 + 9] = b'2';
        }
        fs::write(scene.world.path(BUNDLE), bytes)?;
        let before = installed(&scene)?;
        let ran = scene.world.fwagent(&["--json", "install", "--bundle", BUNDLE])?;
        // What lacks a file that it should have is no more than incomplete; everything else was judged.
        let expected = if name == "no timestamp" { 3 } else { 1 };
        ensure!(ran.code == expected, "{name}: {} {}", ran.code, ran.out);
        ensure!(ran.out.contains(message), "{name}: {}", ran.out);
        fwtests::device::same(&before, &installed(&scene)?).with_context(|| name.to_owned())?;
        let explained = scene.ends(0, &["--json", "explain"])?.json()?;
        ensure!(
            explained["status"]["phase"] == "idle" && explained["status"]["last"].is_null(),
            "{name}"
        );
        ensure!(
            explained["rejected"].as_array().is_some_and(Vec::is_empty),
            "{name}: {explained}"
        );
    }
    // And the good one goes in: nothing that was refused has rejected the release.
    fs::write(scene.world.path(BUNDLE), good)?;
    scene.ends(0, &["install", "--bundle", BUNDLE])?;
    ensure!(scene.version_in("b")? == "1.1.0");
    Ok(())
}

#[test]
fn the_rules_of_the_network_path_hold() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    bundle(&scene, &[])?;
    let old = fs::read(scene.world.path(BUNDLE))?;
    // The device sees a newer timestamp from its server: then the stick is the past.
    scene.world.sign(&["refresh", "repo", "--keys-dir", "keys"])?;
    scene.world.publish()?;
    scene.ends(0, &["check"])?;
    offline(&scene)?;
    let refused = scene.refuses(1, &["--json", "install", "--bundle", BUNDLE])?;
    ensure!(refused.out.contains("older"), "{}", refused.out);
    bundle(&scene, &[])?;
    ensure!(fs::read(scene.world.path(BUNDLE))? != old);
    scene.ends(0, &["check", "--bundle", BUNDLE])?;

    // Other hardware.
    scene.edit("rev-b", "rev-c")?;
    scene.refuses(1, &["install", "--bundle", BUNDLE])?;
    scene.edit("rev-c", "rev-b")?;
    // Another product: of that the bundle has nothing.
    scene.edit("product = \"router\"", "product = \"camera\"")?;
    let refused = scene.refuses(1, &["--json", "install", "--bundle", BUNDLE])?;
    ensure!(refused.out.contains("is of router 1.1.0"), "{}", refused.out);
    scene.edit("product = \"camera\"", "product = \"router\"")?;

    // Expired: two weeks ago it was signed for one.
    scene.world.sign_at(-14, &["refresh", "repo", "--keys-dir", "keys"])?;
    let arguments = ["bundle", "repo", "--product", "router", "-o", BUNDLE];
    let late = scene.world.fwsign(&arguments)?;
    ensure!(late.code == 1 && late.err.contains("expired"), "{}", late.err);
    scene.world.sign_at(-14, &arguments)?;
    let refused = scene.refuses(1, &["--json", "install", "--bundle", BUNDLE])?;
    ensure!(refused.out.contains("expired"), "{}", refused.out);
    // Positive control.
    scene.world.sign(&["refresh", "repo", "--keys-dir", "keys"])?;
    bundle(&scene, &[])?;
    scene.ends(0, &["install", "--bundle", BUNDLE])?;
    Ok(())
}

#[test]
fn a_bad_release_from_a_stick_falls_back_and_is_not_taken_again() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Bad, &[])?;
    offline(&scene)?;
    bundle(&scene, &[])?;
    scene.ends(0, &["install", "--bundle", BUNDLE])?;
    ensure!(scene.boot()? == "b");
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success());
    ensure!(scene.boot()? == "a");
    scene.ends(1, &["install", "--bundle", BUNDLE])?;
    let status = scene.world.status()?;
    ensure!(status["last"]["result"] == "fell-back", "{status}");
    scene.ends(0, &["install", "--bundle", BUNDLE, "--retry"])?;
    Ok(())
}

#[test]
fn what_cannot_go_into_a_bundle_is_named() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.publish_tree("1.0.0", Health::Good, &[])?;
    let fails = |code: i32, message: &str, more: &[&str]| -> anyhow::Result<()> {
        let mut arguments = vec!["bundle", "repo", "-o", "out.fwbundle"];
        arguments.extend(more);
        let ran = scene.world.fwsign(&arguments)?;
        ensure!(
            ran.code == code && ran.err.contains(message),
            "{} {}",
            ran.code,
            ran.err
        );
        ensure!(!scene.world.path("out.fwbundle").exists());
        let left = fs::read_dir(scene.world.path(""))?.map_while(Result::ok);
        ensure!(
            !left
                .into_iter()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(".bundle-"))
        );
        Ok(())
    };
    fails(4, "no release camera", &["--product", "camera"])?;
    fails(
        4,
        "no release router 2.0.0",
        &["--product", "router", "--version", "2.0.0"],
    )?;
    fails(4, "channel beta", &["--product", "router", "--channel", "beta"])?;
    fails(2, "--version", &["--product", "router", "--version", "two"])?;
    let payload = payload_of(&scene.world.path("repo/targets/router/1.0.0"))?;
    let mut bytes = fs::read(&payload)?;
    bytes[100] ^= 1;
    fs::write(&payload, bytes)?;
    fails(1, "not the target", &["--product", "router"])
}

fn payload_of(dir: &Path) -> anyhow::Result<std::path::PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "zst") {
            return Ok(path);
        }
    }
    anyhow::bail!("no payload in {}", dir.display())
}
