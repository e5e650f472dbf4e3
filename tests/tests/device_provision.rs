//! The factory's step: a device gets its root of trust and says or installs what it runs; the real programs.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use fwtests::device::{Agent, CHECK, Health, Scene};
use fwtests::world::Slots;

const ROOT: &str = "repo/metadata/1.root.json";

#[test]
fn a_device_is_provisioned_once() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.world.configure(Slots::Dirs, CHECK)?;
    let ran = scene.ends(3, &["status"])?;
    ensure!(ran.err.contains("provision"), "{}", ran.err);

    // Nothing is published yet: then nothing is provisioned either.
    scene.ends(3, &["provision", "--root", ROOT, "--from-server"])?;
    scene.ends(3, &["status"])?;

    scene.publish_tree("1.0.0", Health::Good, &[])?;
    let ran = scene.ends(0, &["--json", "provision", "--root", ROOT, "--from-server"])?;
    let said = ran.json()?;
    ensure!(said["provisioned"] == true && said["slot"] == "a" && said["release"]["version"] == "1.0.0");
    ensure!(scene.version_in("a")? == "1.0.0");
    let status = scene.world.status()?;
    ensure!(status["running"] == "a" && status["phase"] == "idle" && status["slots"][1]["status"] == "empty");
    ensure!(status["floors"]["components"][0]["sequence"] == 1, "{status}");

    let again = scene.refuses(4, &["--json", "provision", "--root", ROOT, "--from-server"])?;
    ensure!(again.json()?["provisioned"] == false);
    scene.refuses(4, &["provision", "--root", ROOT, "--slot", "b"])?;
    scene.refuses(2, &["provision", "--root", ROOT, "--slot", "c"])?;
    scene.refuses(3, &["provision", "--root", "no-such-file"])?;
    scene.ends(4, &["check"])?;
    Ok(())
}

#[test]
fn a_tampered_root_of_trust_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.publish_tree("1.0.0", Health::Good, &[])?;
    scene.world.configure(Slots::Dirs, "")?;
    let root = fs::read_to_string(scene.world.path(ROOT))?;
    let at = root.find("\"sig\"").map(|at| at + 12).unwrap_or_default();
    let digit = if &root[at..=at] == "0" { "1" } else { "0" };
    let tampered = format!("{}{digit}{}", &root[..at], &root[at + 1..]);
    fs::write(scene.world.path("tampered.json"), tampered)?;
    for more in [&[][..], &["--from-server"]] {
        let mut arguments = vec!["provision", "--root", "tampered.json"];
        arguments.extend(more);
        let ran = scene.ends(1, &arguments)?;
        ensure!(ran.err.contains("root"), "{}", ran.err);
    }
    ensure!(scene.device()?.is_empty(), "something was provisioned");

    // A root of somebody else: its own signatures are good, and those of the server are not.
    let other = Scene::new()?;
    let stranger = fs::read(other.world.path(ROOT))?;
    fs::write(scene.world.path("stranger.json"), stranger)?;
    scene.ends(1, &["provision", "--root", "stranger.json", "--from-server"])?;
    scene.ends(3, &["status"])?;

    // The mistake can be mended.
    scene.ends(0, &["provision", "--root", ROOT, "--from-server"])?;
    ensure!(scene.world.status()?["running_release"]["version"] == "1.0.0");
    Ok(())
}

#[test]
fn software_that_is_there_is_adopted_only_when_it_is_what_the_manifest_says() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let image = scene.publish_image("1.0.0", &[])?;
    scene.world.configure(Slots::Files, "")?;
    let targets = scene.world.path("repo/targets/router/1.0.0");
    let manifest = fs::read_dir(&targets)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().ends_with("manifest.json"));
    let Some(manifest) = manifest.map(|entry| entry.path().display().to_string()) else {
        anyhow::bail!("no manifest in {}", targets.display());
    };
    let slot = scene.world.path("device/slot-a.img");
    fs::create_dir_all(scene.world.path("device"))?;
    let good = fs::read(&image)?;
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let arguments = ["provision", "--root", ROOT, "--manifest", &manifest];
    for content in [&bad[..], &good[..good.len() - 1], &[]] {
        fs::write(&slot, content)?;
        let ran = scene.ends(1, &arguments)?;
        ensure!(ran.err.contains("does not hold"), "{}", ran.err);
        scene.ends(3, &["status"])?;
        ensure!(fs::read(&slot)? == content);
    }
    fs::write(&slot, &good)?;
    scene.ends(0, &arguments)?;
    let status = scene.world.status()?;
    ensure!(status["running_release"]["version"] == "1.0.0" && status["slots"][0]["status"] == "confirmed");
    let ran = scene.ends(4, &["check"])?;
    ensure!(ran.out.contains("1.0.0 (sequence 1) is installed"), "{}", ran.out);
    Ok(())
}

#[test]
fn a_device_may_start_with_software_that_nobody_knows() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.publish_tree("1.0.0", Health::Bad, &[])?;
    scene.world.configure(Slots::Dirs, CHECK)?;
    scene.ends(0, &["provision", "--root", ROOT, "--slot", "b"])?;
    let status = scene.world.status()?;
    ensure!(
        status["active"] == "b" && status["running_release"].is_null(),
        "{status}"
    );
    ensure!(scene.boot()? == "b");
    scene.refuses(1, &["rollback"])?;
    // A bad release leads back to it.
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "a");
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success() && scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(
        status["last"]["result"] == "fell-back" && status["active"] == "b",
        "{status}"
    );
    // What needs a known version is not for it.
    scene.publish_tree("1.1.0", Health::Good, &["--requires", "1.0.0"])?;
    scene.ends(4, &["install"])?;
    ensure!(scene.verdict("1.1.0")? == "needs at least version 1.0.0, installed is unknown");
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "a");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["last"]["result"] == "confirmed" && status["running_release"]["version"] == "1.2.0");
    Ok(())
}

#[test]
fn a_factory_step_that_is_cut_is_repeated() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    scene.publish_tree("1.0.0", Health::Good, &[])?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.world.configure(Slots::Dirs, CHECK)?;
    let arguments = [
        "--json",
        "provision",
        "--root",
        ROOT,
        "--from-server",
        "--version",
        "1.0.0",
    ];
    // Killed a little later each time, until it was not killed any more.
    let mut cuts = 0;
    for milliseconds in (0..).step_by(2) {
        let mut agent = Agent::start(&mut scene.world.agent_command(&arguments))?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        if agent.kill()?.success() {
            break;
        }
        cuts += 1;
        // Not provisioned, or wholly so: the kill may have come after the last write.
        let ran = scene.world.fwagent(&["status"])?;
        ensure!(
            ran.code == 3 || ran.out.contains("1.0.0 (sequence 1)"),
            "{} {}{}",
            ran.code,
            ran.out,
            ran.err
        );
        if ran.code == 0 {
            break;
        }
    }
    ensure!(cuts > 0, "it was never cut");
    ensure!(scene.boot()? == "a" && scene.version_in("a")? == "1.0.0");
    ensure!(scene.world.status()?["running_release"]["version"] == "1.0.0");
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b" && scene.version_in("b")? == "1.1.0");
    Ok(())
}

#[test]
fn a_lost_record_does_not_change_what_is_booted() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    for copy in ["state.a", "state.b"] {
        fs::remove_file(scene.world.path("device/state").join(copy))?;
    }
    let ran = scene.refuses(3, &["provision", "--root", ROOT, "--from-server"])?;
    ensure!(ran.err.contains("boots slot b, not slot a"), "{}", ran.err);
    ensure!(scene.boot()? == "b");
    scene.ends(0, &["provision", "--root", ROOT, "--from-server", "--slot", "b"])?;
    ensure!(scene.boot()? == "b" && scene.world.status()?["running_release"]["version"] == "1.1.0");
    Ok(())
}
