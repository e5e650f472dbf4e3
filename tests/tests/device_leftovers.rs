//! What damage and interrupted writes leave behind: it is mended from the other copy, or said clearly, and never taken
//! for a new device.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::ensure;
use fwtests::device::{CHECK, Health, Scene, same};
use fwtests::world::Slots;
use serde_json::Value;

/// A device that runs 1.1.0 from slot b and may go back to 1.0.0 in slot a.
fn updated() -> anyhow::Result<Scene> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    Ok(scene)
}

/// Ways to spoil a file.
fn spoil(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut flipped = bytes.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    vec![
        ("truncated", bytes[..bytes.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("flipped", flipped),
        ("zeros", vec![0; bytes.len()]),
        ("longer", [bytes, b"x"].concat()),
    ]
}

#[test]
fn one_damaged_copy_of_a_record_is_mended() -> anyhow::Result<()> {
    let scene = updated()?;
    // The clock goes on meanwhile.
    let timeless = || -> anyhow::Result<Value> {
        let mut status = scene.world.status()?;
        status["time"] = Value::Null;
        Ok(status)
    };
    let (before, status) = (scene.device()?, timeless()?);
    for copy in [
        "state.a",
        "state.b",
        "boot.a",
        "boot.b",
        "metadata/generation.a",
        "metadata/generation.b",
    ] {
        let path = scene.world.path("device/state").join(copy);
        let genuine = fs::read(&path)?;
        for (how, bytes) in spoil(&genuine) {
            fs::write(&path, &bytes)?;
            let seen = timeless()?;
            ensure!(seen == status, "{copy} {how}: {seen}");
            ensure!(fs::read(&path)? == bytes, "{copy} {how}: status wrote");
            // A command that holds the lock mends it.
            scene.ends(4, &["install"])?;
            same(&before, &scene.device()?).map_err(|error| error.context(format!("{copy} {how}")))?;
        }
        fs::remove_file(&path)?;
        scene.ends(4, &["install"])?;
        same(&before, &scene.device()?).map_err(|error| error.context(format!("{copy} gone")))?;
    }
    ensure!(scene.boot()? == "b");
    Ok(())
}

#[test]
fn a_lost_record_is_said_and_never_taken_for_a_new_device() -> anyhow::Result<()> {
    let scene = updated()?;
    let state = scene.world.path("device/state");
    let provision = ["provision", "--root", "repo/metadata/1.root.json", "--from-server"];
    let commands: [&[&str]; 8] = [
        &["status"],
        &["explain"],
        &["check"],
        &["install"],
        &["run"],
        &["confirm"],
        &["rollback"],
        &provision,
    ];
    let genuine = [fs::read(state.join("state.a"))?, fs::read(state.join("state.b"))?];
    for (how, bytes) in spoil(&genuine[0]) {
        fs::write(state.join("state.a"), &bytes)?;
        fs::write(state.join("state.b"), &bytes)?;
        for command in commands {
            let ran = scene.refuses(3, command).map_err(|error| error.context(how))?;
            ensure!(ran.err.contains("no intact copy"), "{how}: {}", ran.err);
        }
        // The software boots all the same.
        ensure!(scene.boot()? == "b" && scene.version_in("b")? == "1.1.0", "{how}");
    }
    fs::write(state.join("state.a"), &genuine[0])?;
    scene.ends(4, &["install"])?;
    ensure!(fs::read(state.join("state.b"))? == genuine[1]);

    for copy in ["boot.a", "boot.b"] {
        fs::write(state.join(copy), "torn")?;
    }
    for command in [&["boot"][..], &["status"], &["install"], &["run"], &["rollback"]] {
        let ran = scene.refuses(3, command)?;
        ensure!(ran.err.contains("boot record"), "{}", ran.err);
    }
    Ok(())
}

#[test]
fn a_lost_factory_root_stops_updates_and_nothing_else() -> anyhow::Result<()> {
    let scene = updated()?;
    let root = scene.world.path("device/state/metadata/factory-root.json");
    let genuine = fs::read(&root)?;
    for (how, bytes, code) in [
        ("cut", genuine[..genuine.len() / 2].to_vec(), 1),
        (
            "of somebody else",
            fs::read(Scene::new()?.world.path("repo/metadata/1.root.json"))?,
            1,
        ),
    ] {
        fs::write(&root, bytes)?;
        scene.refuses(code, &["install"]).map_err(|error| error.context(how))?;
    }
    fs::remove_file(&root)?;
    scene.refuses(3, &["install"])?;
    ensure!(scene.boot()? == "b");
    fs::write(&root, genuine)?;
    scene.ends(4, &["install"])?;
    Ok(())
}

#[test]
fn what_interrupted_writes_left_in_a_directory_slot_goes() -> anyhow::Result<()> {
    let scene = updated()?;
    let slot = scene.world.path("device/slot-a");
    let clean: Vec<_> = scene
        .device()?
        .into_keys()
        .filter(|path| path.starts_with("/slot-b"))
        .collect();
    fs::create_dir_all(slot.join(".new/half"))?;
    fs::write(slot.join(".new/half/file"), "half")?;
    fs::create_dir_all(slot.join("tree-0000000000000000"))?;
    fs::write(slot.join("tree-0000000000000000.inventory"), "half")?;
    symlink("tree-0000000000000000", slot.join(".current.new"))?;
    fs::write(slot.join(".tree-0000000000000000.inventory.tmp-1-1"), "half")?;
    scene.publish_tree("1.2.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(scene.version_in("a")? == "1.2.0" && scene.version_in("b")? == "1.1.0");
    let held: Vec<_> = scene
        .device()?
        .into_keys()
        .filter(|path| path.starts_with("/slot-a"))
        .collect();
    ensure!(held.len() == clean.len(), "{held:?} beside {clean:?}");
    ensure!(scene.boot()? == "a");
    Ok(())
}

#[test]
fn what_interrupted_writes_left_elsewhere_goes() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Files, "")?;
    let before = scene.device()?;
    let state = scene.world.path("device/state");
    for name in [
        ".state.a.tmp-1-1",
        ".boot.b.tmp-77-3",
        "metadata/.generation.a.tmp-1-2",
        "metadata/objects/.x.tmp-1-3",
    ] {
        fs::write(state.join(name), "half")?;
    }
    // An object that no generation names.
    fs::write(state.join("metadata/objects").join("0".repeat(64)), "half")?;
    let image = scene.publish_image("1.1.0", &[])?;
    // What is there of the download is not of this payload.
    let downloads = state.join("downloads");
    fs::create_dir_all(&downloads)?;
    scene.ends(0, &["check"])?;
    let payload = fs::read_dir(scene.world.path("repo/targets/router/1.1.0"))?.flatten();
    let payload = payload.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let payload = payload
        .filter(|name| name.ends_with(".img.zst"))
        .min()
        .unwrap_or_default();
    let digest = payload.split('.').next().unwrap_or_default();
    let partial = downloads.join(format!(".{}.router%2F1.1.0%2Fmain.img.zst.partial", &digest[..32]));
    fs::write(&partial, vec![7; 5000])?;
    let asked = scene.served(&payload)?.len();
    scene.ends(0, &["install"])?;
    // It was gone on with, found to be wrong, and fetched anew.
    ensure!(
        scene.served(&payload)?[asked..] == [206, 200],
        "{:?}",
        scene.served(&payload)?
    );
    ensure!(fs::read(scene.world.path("device/slot-b.img"))? == fs::read(image)?);
    let mut after: Vec<_> = scene
        .device()?
        .into_keys()
        .filter(|path| !path.contains("/objects/"))
        .collect();
    after.retain(|path| path != "/slot-b.img");
    let before: Vec<_> = before.into_keys().filter(|path| !path.contains("/objects/")).collect();
    ensure!(before == after, "{before:?} became {after:?}");
    let objects = state.join("metadata/objects");
    ensure!(!objects.join("0".repeat(64)).exists() && !objects.join(".x.tmp-1-3").exists());
    Ok(())
}
