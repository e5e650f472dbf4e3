//! A device whose floors are bound to a counter in a TPM: copies of the past are refused; the real programs and swtpm.

use std::fs;

use anyhow::ensure;
use fwtests::device::{CHECK, Files, Health, Scene, same};
use fwtests::swtpm::Swtpm;
use fwtests::world::Slots;

const RECORDS: [&str; 2] = ["device/state/state.a", "device/state/state.b"];

fn scene() -> anyhow::Result<Option<(Scene, Swtpm)>> {
    let scene = Scene::new()?;
    let Some(tpm) = Swtpm::start(&scene.world.path("tpm")) else {
        return Ok(None);
    };
    scene.publish_tree("1.0.0", Health::Good, &[])?;
    scene.world.configure(
        Slots::Dirs,
        &format!("{CHECK}\n[floors]\ntpm = \"tpm/tpm\"\n[boot]\nattempts = 2\n"),
    )?;
    provision(&scene, 0, &[])?;
    Ok(Some((scene, tpm)))
}

fn provision(scene: &Scene, code: i32, more: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec!["provision", "--root", "repo/metadata/1.root.json", "--from-server"];
    arguments.extend(more);
    scene.ends(code, &arguments)?;
    Ok(())
}

/// Installs and confirms a release that was published; the counter then.
fn update(scene: &Scene, version: &str) -> anyhow::Result<u64> {
    scene.publish_tree(version, Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    scene.boot()?;
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["running_release"]["version"] == version && status["last"]["result"] == "confirmed");
    ensure!(status["tpm"]["standing"] == "sound" && status["tpm"]["counter"] == status["tpm"]["record"]);
    Ok(status["tpm"]["counter"].as_u64().unwrap_or_default())
}

/// What must not change: all but the device's statements about what it found.
fn kept(scene: &Scene) -> anyhow::Result<Files> {
    let mut files = scene.device()?;
    files.retain(|path, _| !path.contains("report.") && !path.contains("last-check"));
    Ok(files)
}

#[test]
fn an_older_record_is_refused_and_said_everywhere() -> anyhow::Result<()> {
    let Some((scene, _tpm)) = scene()? else { return Ok(()) };
    let first = scene.world.status()?["tpm"]["counter"].as_u64().unwrap_or_default();
    let old = RECORDS.map(|path| fs::read(scene.world.path(path)));
    let second = update(&scene, "1.1.0")?;
    ensure!(second == first + 1, "{first} {second}");
    scene.ends(0, &["floors"])?;
    scene.refuses(4, &["floors", "--accept-tpm"])?;

    // Also while the release that would have to be installed is a legal one.
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    for (path, copy) in RECORDS.iter().zip(old) {
        fs::write(scene.world.path(path), copy?)?;
    }
    let before = kept(&scene)?;
    for command in [&["install"][..], &["check"], &["confirm"], &["rollback"], &["run"]] {
        let ran = scene.ends(1, command)?;
        ensure!(ran.err.contains("an older record was put back"), "{}", ran.err);
        same(&before, &kept(&scene)?)?;
    }
    scene.refuses(1, &["floors"])?;
    let status = scene.world.status()?;
    ensure!(status["tpm"]["standing"] == "older-record", "{status}");
    ensure!(status["tpm"]["record"] == first && status["tpm"]["counter"] == second);
    let ran = scene.ends(0, &["explain"])?;
    ensure!(
        ran.out
            .contains(&format!("belongs to value {first}, and the counter is at {second}")),
        "{}",
        ran.out
    );
    ensure!(scene.ends(0, &["report"])?.out.contains("degraded"));
    // The software that runs is kept.
    ensure!(scene.boot()? == "b");

    let ran = scene.ends(0, &["floors", "--accept-tpm"])?;
    ensure!(ran.out.contains("older-record"), "{}", ran.out);
    ensure!(scene.ends(0, &["report"])?.out.contains("tpm-accepted"));
    ensure!(scene.world.status()?["tpm"]["standing"] == "sound");
    Ok(())
}

#[test]
fn a_trial_without_its_tpm_is_not_confirmed_and_goes_back() -> anyhow::Result<()> {
    let Some((scene, tpm)) = scene()? else { return Ok(()) };
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    drop(tpm);
    let before = kept(&scene)?;
    for command in [&["install"][..], &["confirm"], &["floors"]] {
        scene.ends(3, command)?;
        same(&before, &kept(&scene)?)?;
    }
    ensure!(scene.world.status()?["tpm"]["standing"] == "unreachable");
    ensure!(scene.boot()? == "b" && scene.boot()? == "a");

    // With it, what became of the update is recorded, and the next one goes through.
    let Some(_tpm) = Swtpm::start(&scene.world.path("tpm")) else {
        return Ok(());
    };
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(
        status["last"]["result"] == "fell-back" && status["tpm"]["standing"] == "sound",
        "{status}"
    );
    update(&scene, "1.2.0")?;
    Ok(())
}

#[test]
fn a_tpm_of_another_record_is_taken_only_when_somebody_says_so() -> anyhow::Result<()> {
    let Some((scene, tpm)) = scene()? else { return Ok(()) };
    // The record is gone, the counter is not.
    fs::remove_dir_all(scene.world.path("device"))?;
    provision(&scene, 1, &[])?;
    scene.ends(3, &["status"])?;
    provision(&scene, 0, &["--accept-tpm"])?;
    let kept = update(&scene, "1.1.0")?;

    // Another TPM.
    drop(tpm);
    let Some(_tpm) = Swtpm::start(&scene.world.path("other")) else {
        return Ok(());
    };
    scene.edit("tpm/tpm", "other/tpm")?;
    scene.ends(1, &["install"])?;
    let status = scene.world.status()?;
    ensure!(
        status["tpm"]["standing"] == "no-counter" && status["tpm"]["record"] == kept,
        "{status}"
    );
    // Settings are the user's, and no way to bind the record.
    scene.ends(0, &["settings", "set", "network.mtu", "1500"])?;
    let still = scene.world.status()?;
    ensure!(still["tpm"] == status["tpm"], "{still}");
    scene.ends(1, &["install"])?;
    scene.ends(0, &["floors", "--accept-tpm"])?;
    update(&scene, "1.2.0")?;
    Ok(())
}
