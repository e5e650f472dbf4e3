//! When a device may be updated: power, hours, the user's hold, programs that ask to wait, dry runs (RULES PW-13, UP-16,
//! UP-17, UP-24).

use std::fs;

use anyhow::ensure;
use fwtests::device::{CHECK, Health, Scene};
use fwtests::world::Slots;

/// A device whose power supplies and inhibitors are directories of the test.
const CONDITIONS: &str = "\n[conditions]\nmin_battery = 30\npower_supply_dir = \"power\"\ninhibit_dir = \"inhibit\"\n\
                          recheck_s = 1\n";

fn scene(more: &str) -> anyhow::Result<Scene> {
    let scene = Scene::provisioned(Slots::Dirs, &format!("{CHECK}{CONDITIONS}{more}"))?;
    battery(&scene, 80)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    Ok(scene)
}

fn battery(scene: &Scene, charge: u8) -> anyhow::Result<()> {
    let dir = scene.world.path("power/BAT0");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("type"), "Battery\n")?;
    fs::write(dir.join("capacity"), format!("{charge}\n"))?;
    Ok(())
}

/// Hours of updates, around noon or midnight, that do not begin for some hours.
fn closed_window() -> anyhow::Result<String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let hour = (now.as_secs() / 3600 + 12) % 24;
    Ok(format!("{hour:02}:00-{:02}:00", (hour + 1) % 24))
}

#[test]
fn a_low_battery_withholds_the_first_byte_and_nobody_s_word_helps() -> anyhow::Result<()> {
    let scene = scene("")?;
    battery(&scene, 29)?;
    // Metadata may move on; slots and the boot record may not.
    scene.ends(0, &["check"])?;
    let ran = scene.refuses(3, &["--json", "install"])?;
    let held = &ran.json()?["held"];
    ensure!(
        held["gate"] == "install" && held["reasons"][0]["condition"] == "power",
        "{held}"
    );
    let ran = scene.refuses(3, &["install", "--ignore", "window,hold,inhibit"])?;
    ensure!(ran.out.contains("29 %, below the 30 %"), "{}", ran.out);
    scene.refuses(2, &["install", "--ignore", "power"])?;
    for command in ["check", "explain", "status"] {
        let said = scene.ends(0, &[command])?.out;
        ensure!(
            said.contains("the install waits: power: the battery"),
            "{command}: {said}"
        );
    }
    // The position of unknown power, and the control: with power it goes on.
    fs::remove_dir_all(scene.world.path("power"))?;
    let ran = scene.refuses(3, &["install"])?;
    ensure!(ran.out.contains("neither external power nor"), "{}", ran.out);
    battery(&scene, 30)?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    Ok(())
}

#[test]
fn what_waits_for_its_restart_is_not_armed_and_goes_on_by_itself() -> anyhow::Result<()> {
    let window = closed_window()?;
    let scene = scene(&format!("window = [\"{window}\"]\nwindow_from = \"restart\"\n"))?;
    let ran = scene.ends(3, &["--json", "install"])?;
    ensure!(ran.json()?["held"]["gate"] == "restart", "{}", ran.out);
    let status = scene.world.status()?;
    ensure!(
        status["phase"] == "staged" && status["slots"][1]["status"] == "staged",
        "{status}"
    );
    ensure!(status["held"]["reasons"][0]["until"].is_string(), "{status}");
    // Whoever switches it off and on meanwhile gets the software that he had.
    ensure!(scene.boot()? == "a");
    let mut agent = scene.run()?;
    let (at, _) = agent.hears(0, |line| line["event"] == "held" && line["held"]["gate"] == "restart")?;
    agent.status(at, "next poll")?;
    agent.stop()?;
    ensure!(scene.world.status()?["phase"] == "staged" && scene.boot()? == "a");
    // A newer one takes its place, and waits in turn.
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    scene.ends(3, &["install"])?;
    ensure!(scene.version_in("b")? == "1.2.0" && scene.boot()? == "a");
    // The window opens while the agent runs: here, by a wider one.
    let mut agent = scene.run()?;
    agent.hears(0, |line| line["event"] == "held")?;
    agent.stop()?;
    scene.edit(&window, "00:00-24:00")?;
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success());
    ensure!(scene.boot()? == "b");
    let agent = scene.switch_on()?;
    scene.rests_on("1.2.0")?;
    agent.stop()
}

#[test]
fn the_run_loop_goes_on_when_the_last_inhibitor_has_gone() -> anyhow::Result<()> {
    let scene = scene("")?;
    scene.edit("interval_s = 1\n", "interval_s = 3600\n")?;
    fs::create_dir_all(scene.world.path("inhibit"))?;
    fs::write(scene.world.path("inhibit/recorder"), "recording until 20:15\n")?;
    let mut agent = scene.run()?;
    agent.status(0, "next poll")?;
    let (_, line) = agent.hears(0, |line| line["event"] == "held")?;
    ensure!(
        line["held"]["reasons"][0]["reason"] == "recorder: recording until 20:15",
        "{line}"
    );
    let asked = scene.served("/timestamp.json")?.len();
    fs::remove_file(scene.world.path("inhibit/recorder"))?;
    ensure!(agent.end()?.success());
    ensure!(scene.boot()? == "b");
    // One more poll, not one each second.
    ensure!(scene.served("/timestamp.json")?.len() == asked + 1);
    Ok(())
}

#[test]
fn the_user_holds_and_resumes_within_what_the_maker_allows() -> anyhow::Result<()> {
    let scene = scene("hold_max_s = 864000\n")?;
    let said = scene.ends(0, &["hold", "--for", "7d", "--reason", "exhibition"])?.out;
    ensure!(said.contains("held until 2") && said.contains("exhibition"), "{said}");
    scene.ends(0, &["check"])?;
    let ran = scene.refuses(3, &["install"])?;
    ensure!(ran.out.contains("hold: held until 2"), "{}", ran.out);
    for (arguments, text) in [
        (["--for", "30d"], "is longer than allowed"),
        (["--for", "soon"], "is not a duration"),
        (["--until", "2020-01-01T00:00:00Z"], "has ended already"),
        (["--until", "tomorrow"], "is not a time"),
    ] {
        let ran = scene.refuses(2, &["hold", arguments[0], arguments[1]])?;
        ensure!(ran.err.contains(text), "{}", ran.err);
    }
    scene.ends(0, &["resume"])?;
    scene.ends(4, &["resume"])?;
    // The operator's word stands above it.
    scene.ends(0, &["hold"])?;
    scene.ends(0, &["install", "--ignore", "hold"])?;
    ensure!(scene.world.status()?["phase"] == "pending");
    Ok(())
}

#[test]
fn security_releases_pass_where_the_maker_says_so_also_after_a_restart_of_the_agent() -> anyhow::Result<()> {
    let window = closed_window()?;
    let scene = scene(&format!("window = [\"{window}\"]\nsecurity_passes = [\"window\"]\n"))?;
    scene.ends(0, &["check"])?;
    scene.refuses(3, &["install"])?;
    scene.publish_tree("1.1.1", Health::Good, &["--kind", "security"])?;
    // The hold is not among what passes; it is taken back once the release waits for its restart.
    scene.ends(0, &["hold"])?;
    scene.ends(0, &["check"])?;
    scene.refuses(3, &["install"])?;
    scene.ends(0, &["resume"])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    Ok(())
}

#[test]
fn payloads_are_fetched_while_their_installation_waits() -> anyhow::Result<()> {
    let window = closed_window()?;
    let scene = scene(&format!("window = [\"{window}\"]\nprefetch = true\n"))?;
    let before = scene.device()?;
    scene.ends(3, &["install"])?;
    let downloads = fs::read_dir(scene.world.path("device/state/downloads"))?.count();
    ensure!(downloads >= 1);
    let after = scene.device()?;
    let slots = |files: &fwtests::device::Files| {
        let slots = files.iter().filter(|(path, _)| path.starts_with("/slot-"));
        slots
            .map(|(path, digest)| (path.clone(), digest.clone()))
            .collect::<Vec<_>>()
    };
    ensure!(slots(&before) == slots(&after));
    let fetched = scene.served(".tar.zst")?.len();
    scene.ends(0, &["install", "--ignore", "window"])?;
    ensure!(scene.boot()? == "b");
    ensure!(scene.served(".tar.zst")?.len() == fetched, "it was fetched twice");
    Ok(())
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() -> anyhow::Result<()> {
    let scene = scene("")?;
    scene.ends(0, &["check"])?;
    let ran = scene.refuses(0, &["--json", "install", "--dry-run"])?;
    let json = ran.json()?;
    ensure!(
        json["slot"] == "b" && json["found"]["offer"]["release"]["version"] == "1.1.0",
        "{json}"
    );
    battery(&scene, 1)?;
    let ran = scene.refuses(0, &["install", "--dry-run"])?;
    ensure!(ran.out.starts_with("would wait, then go into slot b"), "{}", ran.out);
    battery(&scene, 90)?;
    scene.ends(0, &["install"])?;
    Ok(())
}
