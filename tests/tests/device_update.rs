//! What a device does with good releases: updates, confirmation, and going back; the real programs.

use std::fs;

use anyhow::ensure;
use fwtests::device::{CHECK, Health, Scene, same};
use fwtests::world::Slots;

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
        status["last"]["result"] == "confirmed" && status["slots"][0]["status"] == "bad",
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
