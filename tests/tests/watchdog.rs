//! A trial that hangs, one that never ends and one that never came up, through the real agent: a file stands in place of
//! the watchdog device and shows what it was fed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::ensure;
use fwtests::device::{Health, PATIENCE, Scene};
use fwtests::world::Slots;

const WATCHDOG: &str = "\n[watchdog]\ndevice = \"watchdog\"\ninterval_s = 1\ngrace_s = 5\n";
/// Passes only when the device is fed while it runs.
const FED: &str = "\n[[health.check]]\nname = \"fed\"\ncommand = [\"sh\", \"-c\", \"for n in $(seq 600); do test -s \
                   watchdog && exit 0; sleep 0.1; done; exit 1\"]\n";

/// A device with this configuration that is about to try 1.1.0.
fn about_to_try(config: &str) -> anyhow::Result<Scene> {
    let scene = Scene::provisioned(Slots::Dirs, config)?;
    fs::write(scene.world.path("watchdog"), "")?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(eaten(&scene)?.is_empty(), "it was opened before the trial");
    ensure!(scene.boot()? == "b");
    Ok(scene)
}

fn eaten(scene: &Scene) -> anyhow::Result<String> {
    Ok(fs::read_to_string(scene.world.path("watchdog"))?)
}

/// Waits until the device was fed so often.
fn fed(scene: &Scene, times: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    while eaten(scene)?.len() < times {
        ensure!(start.elapsed() < PATIENCE, "it was not fed");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether it was fed at least so often, and then told that closing it is meant.
fn is_closed(eaten: &str, times: usize) -> bool {
    let food = eaten.strip_suffix('V').unwrap_or_default();
    food.len() >= times && food.bytes().all(|byte| byte == b'1')
}

#[test]
fn it_is_fed_during_the_checks_and_at_no_other_time() -> anyhow::Result<()> {
    let scene = about_to_try(&format!("{WATCHDOG}{FED}"))?;
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "next poll")?;
    let all = eaten(&scene)?;
    ensure!(is_closed(&all, 1), "{all}");
    ensure!(scene.world.status()?["last"]["result"] == "confirmed");
    agent.status(at, "next poll")?;
    agent.stop()?;
    ensure!(eaten(&scene)? == all, "it was opened after the trial");
    // The confirmed slot is no trial.
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    ensure!(eaten(&scene)? == all);
    Ok(())
}

#[test]
fn it_is_fed_while_an_operator_is_awaited_and_an_agent_that_stops_is_no_hang() -> anyhow::Result<()> {
    let scene = about_to_try(&format!("\n[health]\nconfirm = \"manual\"\n{FED}{WATCHDOG}"))?;
    let mut agent = scene.run()?;
    agent.status(0, "waiting for `fwagent confirm`")?;
    fed(&scene, 3)?;
    agent.stop()?;
    let all = eaten(&scene)?;
    ensure!(is_closed(&all, 3), "{all}");
    ensure!(scene.world.status()?["phase"] == "trial");

    fs::write(scene.world.path("watchdog"), "")?;
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "waiting for `fwagent confirm`")?;
    ensure!(!eaten(&scene)?.contains('V'));
    scene.ends(0, &["confirm"])?;
    agent.status(at, "next poll")?;
    let all = eaten(&scene)?;
    ensure!(is_closed(&all, 1), "{all}");
    agent.stop()
}

#[test]
fn checks_without_end_fail_the_trial_and_an_agent_that_hangs_is_fed_no_more() -> anyhow::Result<()> {
    let config = format!(
        "\n[health]\ndeadline_s = 1\n\n[[health.check]]\nname = \"link\"\nretries = 4000000000\nretry_delay_s = 0\n\
         command = [\"sh\", \"-c\", \"echo no link; exit 1\"]\n{WATCHDOG}"
    );
    let scene = Scene::provisioned(Slots::Dirs, &config)?;
    scene.edit(
        "mode = \"exit\"",
        "command = [\"sh\", \"-c\", \"test ! -e hang || exec sleep 60\"]",
    )?;
    fs::write(scene.world.path("watchdog"), "")?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b" && eaten(&scene)?.is_empty());
    // The restart that ends the trial never returns.
    fs::write(scene.world.path("hang"), "")?;
    let mut agent = scene.run()?;
    let start = Instant::now();
    scene.wait("fail its trial", |status| status["phase"] == "falling-back")?;
    fed(&scene, 3)?;
    // One second for the checks, five of grace.
    let mut last = (eaten(&scene)?, Instant::now());
    while last.1.elapsed() < Duration::from_secs(3) {
        ensure!(start.elapsed() < PATIENCE, "it is fed for ever");
        std::thread::sleep(Duration::from_millis(50));
        let now = eaten(&scene)?;
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    ensure!(last.0.bytes().all(|byte| byte == b'1') && !agent.has_ended()?);
    // Which resets the device.
    agent.kill()?;
    fs::remove_file(scene.world.path("hang"))?;
    ensure!(!eaten(&scene)?.contains('V'));
    ensure!(scene.boot()? == "a");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["last"]["result"] == "fell-back", "{status}");
    ensure!(
        status["last"]["reason"] == "check \"link\" had not passed when the 1s for all checks were over",
        "{status}"
    );
    ensure!(status["last"]["log"] == "no link", "{status}");
    Ok(())
}

#[test]
fn a_device_that_cannot_be_opened_fails_the_trial_where_it_is_required() -> anyhow::Result<()> {
    for (required, result) in [(false, "confirmed"), (true, "fell-back")] {
        let scene = about_to_try(&format!("{WATCHDOG}required = {required}\n"))?;
        fs::remove_file(scene.world.path("watchdog"))?;
        let told = scene.world.fwagent(&["install"])?;
        if !required {
            ensure!(
                told.err.contains("the trial goes on without it"),
                "{}{}",
                told.out,
                told.err
            );
        }
        scene.boot()?;
        scene.world.fwagent(&["install"])?;
        let status = scene.world.status()?;
        ensure!(status["last"]["result"] == result, "{status}");
        ensure!(
            required
                == status["last"]["reason"]
                    .as_str()
                    .unwrap_or_default()
                    .contains("watchdog")
        );
        ensure!(!scene.world.path("watchdog").exists());
    }
    Ok(())
}

#[test]
fn what_a_slot_left_behind_that_never_came_up_is_told() -> anyhow::Result<()> {
    let scene = about_to_try("\n[health]\nevidence = [\"pstore/dmesg-*\"]\n")?;
    // The agent never starts there.
    ensure!(scene.boot()? == "b" && scene.boot()? == "b");
    fs::create_dir(scene.world.path("pstore"))?;
    fs::write(
        scene.world.path("pstore/dmesg-ramoops-0"),
        "VFS: Cannot open root\nKernel panic\x1b[2J\n",
    )?;
    fs::write(scene.world.path("pstore/other"), "not this")?;
    ensure!(scene.boot()? == "a");
    ensure!(scene.world.status()?["phase"] == "pending");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(
        status["last"]["reason"] == "no confirmation within 3 boot attempts",
        "{status}"
    );
    let log = status["last"]["log"].as_str().unwrap_or_default();
    ensure!(log.contains("pstore/dmesg-ramoops-0, changed "), "{log}");
    ensure!(log.ends_with("VFS: Cannot open root\nKernel panic\u{fffd}[2J"), "{log}");
    Ok(())
}
