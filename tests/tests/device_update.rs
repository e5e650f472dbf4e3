//! What a device does with good releases: provisioning, updates, confirmation, and going back; the real programs.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use fwtests::device::{Agent, CHECK, Health, Scene, same};
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

#[test]
fn an_update_is_tried_and_confirmed() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.ends(4, &["check"])?;
    let ran = scene.refuses(4, &["install"])?;
    ensure!(ran.out.contains("nothing to install"), "{}", ran.out);

    scene.publish_tree("1.1.0", Health::Good, &[])?;
    let ran = scene.ends(0, &["--json", "check"])?;
    ensure!(ran.json()?["offer"]["release"]["version"] == "1.1.0");
    ensure!(scene.verdict("1.1.0")? == "will be installed");
    ensure!(scene.verdict("1.0.0")? == "is installed");

    scene.ends(0, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["phase"] == "pending" && status["running"] == "a" && status["slots"][1]["status"] == "pending");
    ensure!(scene.version_in("b")? == "1.1.0" && scene.version_in("a")? == "1.0.0");
    // The restart has not happened: to install again is to wait for it.
    let ran = scene.refuses(0, &["install"])?;
    ensure!(ran.out.contains("installed already"), "{}", ran.out);

    ensure!(scene.boot()? == "b");
    let status = scene.world.status()?;
    ensure!(status["running"] == "b" && status["active"] == "a", "{status}");
    ensure!(
        status["floors"]["components"][0]["sequence"] == 1,
        "the floor rose before confirmation"
    );
    let agent = scene.run()?;
    let status = scene.rests_on("1.1.0")?;
    agent.stop()?;
    ensure!(status["last"]["result"] == "confirmed" && status["active"] == "b");
    ensure!(status["floors"]["components"][0]["sequence"] == 2, "{status}");
    ensure!(status["slots"][0]["status"] == "confirmed" && scene.version_in("a")? == "1.0.0");
    ensure!(scene.boot()? == "b");

    // The old release is refused although it is signed.
    let ran = scene.refuses(1, &["install", "--version", "1.0.0"])?;
    ensure!(ran.out.contains("floor"), "{}", ran.out);
    scene.refuses(1, &["install", "--version", "1.0.0", "--retry"])?;
    scene.refuses(4, &["install", "--version", "9.9.9"])?;
    scene.refuses(2, &["install", "--version", "one"])?;
    Ok(())
}

#[test]
fn a_release_that_is_never_confirmed_uses_its_attempts_up() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, &format!("{CHECK}\n[boot]\nattempts = 2\n"))?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    let booted = [scene.boot()?, scene.boot()?, scene.boot()?, scene.boot()?];
    ensure!(booted == ["b", "b", "a", "a"], "{booted:?}");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["last"]["result"] == "fell-back" && status["running_release"]["version"] == "1.0.0");
    ensure!(status["slots"][1]["status"] == "bad");
    ensure!(scene.verdict("1.1.0")?.contains("2 boot attempts"));
    // Only on demand, and then it may be confirmed.
    scene.ends(1, &["install", "--version", "1.1.0"])?;
    scene.ends(0, &["install", "--version", "1.1.0", "--retry"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    ensure!(scene.world.status()?["last"]["result"] == "confirmed");
    Ok(())
}

#[test]
fn an_operator_goes_back_and_forth() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.refuses(1, &["rollback"])?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    // Given up before it ran.
    scene.ends(0, &["install"])?;
    let ran = scene.ends(0, &["--json", "rollback"])?;
    ensure!(ran.json()?["restart"] == false, "{}", ran.out);
    ensure!(scene.boot()? == "a" && scene.world.status()?["last"]["result"] == "rolled-back");
    scene.ends(4, &["install"])?;
    ensure!(scene.verdict("1.1.0")?.contains("given up by the operator"));

    scene.ends(0, &["install", "--version", "1.1.0", "--retry"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    ensure!(scene.world.status()?["active"] == "b");
    scene.refuses(4, &["confirm"])?;

    // From the confirmed release to the one before.
    let ran = scene.ends(0, &["--json", "rollback"])?;
    ensure!(ran.json()?["restart"] == true, "{}", ran.out);
    ensure!(scene.boot()? == "a");
    let agent = scene.run()?;
    let status = scene.rests_on("1.0.0")?;
    ensure!(status["last"]["result"] == "rolled-back" && status["last"]["release"]["version"] == "1.1.0");
    ensure!(status["floors"]["components"][0]["sequence"] == 2, "a floor fell");
    agent.stop()?;
    // Not again by itself, and not the one before either: the floor stands above it.
    let ran = scene.ends(4, &["install"])?;
    ensure!(ran.out.contains("rolled back by the operator"), "{}", ran.out);
    ensure!(scene.boot()? == "a");
    scene.ends(0, &["install", "--version", "1.1.0", "--retry"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["last"]["result"] == "confirmed" && status["running_release"]["version"] == "1.1.0");
    // A newer one needs no word.
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "a" && scene.version_in("a")? == "1.2.0");
    Ok(())
}

#[test]
fn an_operator_confirms_while_the_agent_runs() -> anyhow::Result<()> {
    let manual = format!("{CHECK}\n[health]\nconfirm = \"manual\"\nmanual_timeout_s = 600\n");
    let manual = reorder(&manual);
    let scene = Scene::provisioned(Slots::Dirs, &manual)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    let mut agent = scene.run()?;
    agent.status(0, "waiting for `fwagent confirm`")?;
    let status = scene.world.status()?;
    ensure!(status["phase"] == "trial" && status["active"] == "a");
    scene.ends(0, &["confirm"])?;
    ensure!(scene.world.status()?["last"]["result"] == "confirmed");
    let (at, _) = agent.status(0, "next poll")?;
    // It polls on.
    agent.status(at, "next poll")?;
    agent.stop()?;
    ensure!(scene.boot()? == "b");

    // And an operator who does not like the next one.
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "a");
    let mut agent = scene.run()?;
    agent.status(0, "waiting for `fwagent confirm`")?;
    scene.ends(0, &["rollback"])?;
    let status = agent.end()?;
    ensure!(status.success(), "{status}");
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["running_release"]["version"] == "1.1.0" && status["last"]["result"] == "fell-back");
    ensure!(status["last"]["reason"] == "rolled back by the operator", "{status}");
    Ok(())
}

#[test]
fn a_trial_that_nobody_confirms_ends() -> anyhow::Result<()> {
    let manual = reorder(&format!(
        "{CHECK}\n[health]\nconfirm = \"manual\"\nmanual_timeout_s = 1\n"
    ));
    let scene = Scene::provisioned(Slots::Dirs, &manual)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success());
    ensure!(
        agent.said().iter().any(|line| line["restart"] == true),
        "{:?}",
        agent.said()
    );
    ensure!(scene.boot()? == "a");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(
        status["last"]["reason"] == "nobody confirmed the trial in time",
        "{status}"
    );
    ensure!(status["running_release"]["version"] == "1.0.0" && status["last"]["result"] == "fell-back");
    Ok(())
}

/// TOML wants the table `health` before its array of checks.
fn reorder(config: &str) -> String {
    let at = config.find("\n[health]").unwrap_or_default();
    format!("{}{}", &config[at..], &config[..at])
}

#[test]
fn a_failed_check_is_reported_with_its_last_words() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Bad, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success());
    ensure!(scene.world.status()?["phase"] == "falling-back");
    ensure!(scene.boot()? == "a");
    let ran = scene.ends(4, &["install"])?;
    ensure!(ran.out.contains("not installed again by itself"), "{}", ran.out);
    let status = scene.world.status()?;
    ensure!(
        status["last"]["reason"] == "check \"own\" ended with exit status 7",
        "{status}"
    );
    ensure!(status["last"]["log"] == "the radio is silent", "{status}");
    ensure!(status["floors"]["components"][0]["sequence"] == 1);
    // The next one is taken, over the bad one.
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b" && scene.version_in("b")? == "1.2.0");
    Ok(())
}

#[test]
fn a_security_release_takes_the_old_slot_away() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &["--security-floor", "2", "--kind", "security"])?;
    scene.ends(0, &["install"])?;
    // Until it is confirmed the device may go back.
    ensure!(scene.world.status()?["slots"][0]["status"] == "confirmed");
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(
        status["last"]["result"] == "confirmed" && status["slots"][0]["status"] == "empty",
        "{status}"
    );
    ensure!(status["floors"]["components"][0]["security"] == 2);
    let ran = scene.refuses(1, &["rollback"])?;
    ensure!(ran.err.contains("security floor"), "{}", ran.err);
    ensure!(scene.boot()? == "b");
    Ok(())
}

#[test]
fn releases_for_others_are_left_alone_and_explained() -> anyhow::Result<()> {
    let vendor = "";
    let scene = Scene::provisioned(Slots::Dirs, vendor)?;
    let tree = scene.tree("2.0.0", Health::Good)?;
    let before = scene.device()?;
    for (version, more, why) in [
        (
            "2.0.0",
            &["--requires", "1.5.0"][..],
            "needs at least version 1.5.0, installed is 1.0.0",
        ),
        (
            "2.0.1",
            &["--channel", "beta"],
            "is in channel beta, this device follows stable",
        ),
    ] {
        scene.world.release(version, &tree, more)?;
        scene.world.publish()?;
        scene.ends(4, &["install"])?;
        let verdict = scene.verdict(version)?;
        ensure!(verdict == why, "{version}: {verdict}");
        let ran = scene.ends(1, &["--json", "install", "--version", version])?;
        let said = ran.json()?;
        ensure!(said["offer"].is_null(), "{said}");
        let mut considered = said["considered"].as_array().into_iter().flatten();
        ensure!(
            considered.any(|one| one["version"] == version && one["verdict"] == why),
            "{said}"
        );
    }
    // World::release names rev-b; the last --hardware of several counts too.
    let config = fs::read_to_string(scene.world.path("device.toml"))?;
    let as_device = |from: &str, to: &str| fs::write(scene.world.path("device.toml"), config.replace(from, to));
    as_device("hardware = \"rev-b\"", "hardware = \"rev-c\"")?;
    scene.ends(4, &["install"])?;
    ensure!(scene.verdict("2.0.0")? == "is for hardware rev-b, this device is rev-c");
    as_device("product = \"router\"", "product = \"camera\"")?;
    let ran = scene.ends(4, &["install"])?;
    ensure!(
        !ran.out.contains("2.0.0"),
        "a role spoke for another product: {}",
        ran.out
    );
    as_device("product = \"router\"", "product = \"router\"\nvendor = \"acme\"")?;
    scene.publish_tree("2.1.0", Health::Good, &["--vendor", "else"])?;
    let ran = scene.ends(1, &["install"])?;
    ensure!(ran.err.contains("vendor else, this device is of acme"), "{}", ran.err);
    let explained = scene.ends(0, &["explain"])?.out;
    ensure!(explained.contains("vendor else"), "{explained}");
    let after = scene.device()?;
    for part in ["slot-a", "slot-b", "/state/boot"] {
        let of = |files: &fwtests::device::Files| {
            let kept = files.iter().filter(|(path, _)| path.contains(part));
            kept.map(|(path, digest)| (path.clone(), digest.clone())).collect()
        };
        same(&of(&before), &of(&after))?;
    }

    // The same for the device that they are for.
    fs::write(
        scene.world.path("device.toml"),
        config.replace("hardware = \"rev-b\"", "channel = \"beta\"\nhardware = \"rev-b\""),
    )?;
    scene.ends(0, &["install"])?;
    ensure!(scene.world.status()?["slots"][1]["release"]["version"] == "2.0.1");
    Ok(())
}

#[test]
fn file_slots_hold_images_byte_for_byte() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Files, "")?;
    let held = |slot: &str| fs::read(scene.world.path(&format!("device/slot-{slot}.img")));
    let first = fs::read(scene.world.path("1.0.0.img"))?;
    ensure!(held("a")? == first);
    let second = fs::read(scene.publish_image("1.1.0", &[])?)?;
    scene.ends(0, &["install"])?;
    ensure!(held("a")? == first && held("b")? == second);
    ensure!(scene.boot()? == "b");
    let agent = scene.run()?;
    scene.rests_on("1.1.0")?;
    agent.stop()?;
    // A smaller one over a larger one leaves nothing of it.
    let small = scene.world.path("small.img");
    fs::write(&small, b"small")?;
    scene.world.release("1.2.0", &small, &[])?;
    scene.world.publish()?;
    scene.ends(0, &["install"])?;
    ensure!(held("a")? == b"small" && held("b")? == second);
    // A directory's archive has no place in a file slot.
    scene.ends(0, &["rollback"])?;
    scene.publish_tree("1.3.0", Health::Good, &[])?;
    let ran = scene.ends(1, &["install"])?;
    ensure!(ran.err.contains("raw images"), "{}", ran.err);
    ensure!(held("a")? == b"small" && held("b")? == second && scene.boot()? == "b");
    Ok(())
}
