//! The real agent under a clock that libfaketime shifts; every cell of clock, age and attack is in `time_matrix.rs`.

use std::process::Command;

use anyhow::ensure;
use fwtests::device::{CHECK, Health, Scene, same};
use fwtests::tools::program;
use fwtests::world::Slots;
use serde_json::Value;

/// Runs `fwagent` with the clock shifted; its exit code and what it printed last.
fn at(scene: &Scene, clock: &str, arguments: &[&str]) -> anyhow::Result<Option<(i32, Value)>> {
    let Some(faketime) = program("faketime") else {
        return Ok(None);
    };
    let agent = scene.world.agent_command(arguments);
    let mut command = Command::new(faketime);
    command
        .args(["-f", clock])
        .arg(agent.get_program())
        .args(agent.get_args());
    if let Some(dir) = agent.get_current_dir() {
        command.current_dir(dir);
    }
    let output = command
        .env("NO_PROXY", "127.0.0.1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .output()?;
    let out = String::from_utf8(output.stdout)?;
    let last = serde_json::from_str(out.trim_end().lines().last().unwrap_or_default())?;
    Ok(Some((output.status.code().unwrap_or(-1), last)))
}

#[test]
fn a_clock_that_is_ahead_changes_nothing_and_one_that_was_never_set_stops_no_update() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    let before = scene.device()?;
    let Some((code, ahead)) = at(&scene, "+4000d", &["--json", "install"])? else {
        return Ok(());
    };
    ensure!(code == 1 && ahead["error"] == "refused", "{code}: {ahead}");
    let message = ahead["message"].as_str().unwrap_or_default();
    ensure!(message.contains("stale") && message.contains("expired at"), "{ahead}");
    same(&before, &scene.device()?)?;
    let explained = scene.ends(0, &["explain"])?.out;
    ensure!(explained.contains("freshness: stale"), "{explained}");

    let Some((_, status)) = at(&scene, "-20000d", &["--json", "status"])? else {
        return Ok(());
    };
    ensure!(status["time"]["clock_believed"] == false, "{status}");
    let Some((code, found)) = at(&scene, "-20000d", &["--json", "check"])? else {
        return Ok(());
    };
    ensure!(code == 0 && found["freshness"] == "unknown", "{found}");
    scene.edit("[restart]", "[time]\nunknown = \"refuse\"\n\n[restart]")?;
    let Some((code, held)) = at(&scene, "-20000d", &["--json", "install"])? else {
        return Ok(());
    };
    ensure!(
        code == 3 && held["held"]["reasons"][0]["condition"] == "time",
        "{code}: {held}"
    );
    scene.edit("unknown = \"refuse\"", "unknown = \"install\"")?;
    let Some((code, _)) = at(&scene, "-20000d", &["--json", "install"])? else {
        return Ok(());
    };
    ensure!(code == 0 && scene.boot()? == "b");
    Ok(())
}
