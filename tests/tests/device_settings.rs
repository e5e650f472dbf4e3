//! Settings that travel with the software, through the real programs: migrated with an update, restored with a return,
//! never lost and never reset by themselves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use fwtests::device::{Health, Scene};
use fwtests::random::Random;
use fwtests::tools;
use fwtests::world::Slots;
use serde_json::{Value, json};

/// Somebody decides about each trial, so that it can be looked at.
const MANUAL: &str = "\n[health]\nconfirm = \"manual\"\n[boot]\nattempts = 5\n[settings]\nfactory = \"factory.json\"\n";

/// From schema 1 to 2: `host` becomes `name`. Back again: `tag`, which schema 1 has no place for, is dropped.
const RENAME: &str = r#"#!/bin/sh
line=$(cat)
settings=$(printf '%s' "$line" | sed 's/.*"settings":\({.*}\),"to".*/\1/')
case "$line" in
*'"direction":"up"'*) printf '%s' "$settings" | sed 's/"host":/"name":/' ;;
*) printf '%s' "$settings" | sed 's/"name":/"host":/; s/,"tag":[0-9]*//' ;;
esac
"#;

/// A device with software of schema 1 and factory defaults.
fn device(config: &str) -> anyhow::Result<Scene> {
    let scene = Scene::new()?;
    fs::write(
        scene.world.path("factory.json"),
        json!({"schema": 1, "values": {"host": "gate", "mtu": 1500, "access": {"admin": "factory-hash"}}}).to_string(),
    )?;
    scene.publish_tree("1.0.0", Health::Good, &["--settings-schema", "1"])?;
    scene.world.configure(Slots::Dirs, config)?;
    let provision = ["provision", "--root", "repo/metadata/1.root.json", "--from-server"];
    scene.ends(0, &provision)?;
    ensure!(scene.boot()? == "a");
    Ok(scene)
}

fn publish(scene: &Scene, version: &str, program: &str, how: &str) -> anyhow::Result<()> {
    let file = scene.world.path(&format!("migration-{version}"));
    fs::write(&file, program)?;
    let migration = format!("1:2:{}{how}", file.display());
    let more = ["--settings-schema", "2", "--migration", &migration];
    scene.publish_tree(version, Health::Good, &more)?;
    Ok(())
}

fn set(scene: &Scene, key: &str, value: &str) -> anyhow::Result<()> {
    scene.ends(0, &["settings", "set", key, value]).map(drop)
}

fn list(scene: &Scene) -> anyhow::Result<Value> {
    scene.ends(0, &["--json", "settings", "list", "--show-secrets"])?.json()
}

fn values(scene: &Scene) -> anyhow::Result<Value> {
    Ok(list(scene)?["values"].clone())
}

/// Installs what is published, restarts, and lets the agent start in the new slot.
fn to_trial(scene: &Scene) -> anyhow::Result<()> {
    scene.ends(0, &["install"])?;
    start_trial(scene)
}

fn start_trial(scene: &Scene) -> anyhow::Result<()> {
    ensure!(scene.boot()? == "b");
    // Nothing else is to be installed; on the way the trial begins.
    scene.ends(4, &["install"])?;
    ensure!(scene.world.status()?["phase"] == "trial");
    Ok(())
}

#[test]
fn an_update_migrates_and_a_return_restores_software_and_settings_with_the_edits() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    publish(&scene, "1.1.0", RENAME, "")?;
    scene.ends(0, &["install"])?;
    // After staging, before the restart: not lost either.
    set(&scene, "mtu", "1400")?;
    start_trial(&scene)?;
    let migrated = list(&scene)?;
    ensure!(migrated["schema"] == 2, "{migrated}");
    ensure!(
        migrated["values"] == json!({"name": "gate", "mtu": 1400, "access": {"admin": "factory-hash"}}),
        "{migrated}"
    );
    set(&scene, "name", "bridge")?;
    set(&scene, "access.admin", "changed-hash")?;
    scene.ends(0, &["rollback"])?;
    ensure!(scene.boot()? == "a");
    // Before the agent has carried anything over, the password is the new one already.
    ensure!(values(&scene)?["access"]["admin"] == "changed-hash");
    scene.ends(4, &["install"])?;
    let back = list(&scene)?;
    ensure!(back["schema"] == 1 && back["orphaned"] == json!([]), "{back}");
    ensure!(
        back["values"] == json!({"host": "bridge", "mtu": 1400, "access": {"admin": "changed-hash"}}),
        "{back}"
    );
    Ok(())
}

#[test]
fn a_confirmed_update_keeps_its_settings_and_a_later_rollback_brings_them_back() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    publish(&scene, "1.1.0", RENAME, "")?;
    to_trial(&scene)?;
    scene.ends(0, &["confirm"])?;
    set(&scene, "name", "bridge")?;
    scene.ends(0, &["rollback"])?;
    ensure!(scene.boot()? == "a");
    scene.ends(4, &["install"])?;
    ensure!(values(&scene)?["host"] == "bridge");
    // And forth again, with what was edited meanwhile.
    set(&scene, "host", "tower")?;
    scene.ends(0, &["rollback"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let forth = list(&scene)?;
    ensure!(forth["schema"] == 2 && forth["values"]["name"] == "tower", "{forth}");
    Ok(())
}

#[test]
fn edits_that_the_old_schema_cannot_hold_wait_for_the_operator() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    publish(&scene, "1.1.0", RENAME, "")?;
    to_trial(&scene)?;
    set(&scene, "tag", "7")?;
    set(&scene, "access.admin", "changed-hash")?;
    scene.ends(0, &["rollback"])?;
    scene.boot()?;
    scene.ends(4, &["install"])?;
    let back = list(&scene)?;
    ensure!(
        back["values"] == json!({"host": "gate", "mtu": 1500, "access": {"admin": "changed-hash"}}),
        "{back}"
    );
    let reason = back["orphaned"][0]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("lose a part"), "{back}");
    let history = scene.ends(0, &["--json", "settings", "history"])?.json()?;
    ensure!(history["orphaned"][0]["keys"] == json!(["tag"]), "{history}");
    scene.ends(0, &["settings", "apply", "--orphaned"])?;
    let applied = list(&scene)?;
    ensure!(
        applied["values"]["tag"] == 7 && applied["orphaned"] == json!([]),
        "{applied}"
    );
    scene.ends(4, &["settings", "apply", "--orphaned"])?;
    Ok(())
}

#[test]
fn a_migration_without_a_way_back_needs_a_word() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    publish(&scene, "1.1.0", RENAME, ":one-way")?;
    scene.ends(4, &["install"])?;
    let verdict = scene.verdict("1.1.0")?;
    ensure!(
        verdict.contains("--accept-one-way") && verdict.contains("1 to 2"),
        "{verdict}"
    );
    scene.ends(1, &["check", "--version", "1.1.0"])?;
    ensure!(scene.world.status()?["phase"] == "idle");
    scene.ends(0, &["install", "--accept-one-way"])?;
    start_trial(&scene)?;
    set(&scene, "name", "bridge")?;
    scene.ends(0, &["rollback"])?;
    scene.boot()?;
    scene.ends(4, &["install"])?;
    let back = list(&scene)?;
    ensure!(back["values"]["host"] == "gate", "{back}");
    let reason = back["orphaned"][0]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("cannot be taken back"), "{back}");
    Ok(())
}

#[test]
fn a_release_that_leads_nowhere_is_refused_before_the_first_byte() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    scene.publish_tree("1.1.0", Health::Good, &["--settings-schema", "9"])?;
    let before = (list(&scene)?, scene.device()?);
    let ran = scene.ends(1, &["install"])?;
    ensure!(
        ran.err.contains("schema 1") && ran.err.contains("needs 9"),
        "{}",
        ran.err
    );
    ensure!(list(&scene)? == before.0);
    ensure!(!scene.world.path("device/slot-b/current").exists());
    Ok(())
}

#[test]
fn a_hostile_or_broken_migration_changes_nothing() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    set(&scene, "secret.psk", "deep-secret")?;
    let before = list(&scene)?;
    for (version, program, expected) in [
        (
            "1.1.0",
            "#!/bin/sh\necho 'no such field' >&2\nexit 1\n",
            "no such field",
        ),
        (
            "1.2.0",
            "#!/bin/sh\necho '{\"access\":{\"mallory\":\"x\"}}'\n",
            "no migration may touch",
        ),
        (
            "1.3.0",
            "#!/bin/sh\ngrep -q deep-secret && exit 0\necho nothing seen >&2\nexit 1\n",
            "nothing seen",
        ),
        ("1.4.0", "#!/bin/sh\necho nonsense\n", "not JSON"),
        ("1.5.0", "#!/bin/sh\ncat ../../../state.a && echo '{}'\n", "enied"),
    ] {
        publish(&scene, version, program, "")?;
        let ran = scene.ends(1, &["install"])?;
        ensure!(ran.out.contains(expected), "{version}: {}{}", ran.out, ran.err);
        ensure!(list(&scene)? == before, "{version}");
        let status = scene.world.status()?;
        ensure!(status["phase"] == "idle" && status["running_release"]["version"] == "1.0.0");
        ensure!(scene.boot()? == "a", "the old software runs");
    }
    // The control: the same device takes a sound one.
    publish(&scene, "1.6.0", RENAME, "")?;
    to_trial(&scene)?;
    ensure!(values(&scene)?["secret"]["psk"] == "deep-secret");
    Ok(())
}

#[test]
fn a_migration_that_fails_in_the_trial_ends_it() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    // It fails on what was edited after the dry run.
    let program = RENAME.replacen(
        "line=$(cat)\n",
        "line=$(cat)\ncase \"$line\" in *bad*) echo too bad >&2; exit 1;; esac\n",
        1,
    );
    publish(&scene, "1.1.0", &program, "")?;
    scene.ends(0, &["install"])?;
    set(&scene, "host", "bad")?;
    ensure!(scene.boot()? == "b");
    scene.ends(0, &["install"])?;
    ensure!(scene.world.status()?["phase"] == "falling-back");
    ensure!(scene.boot()? == "a");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    let reason = status["last"]["reason"].as_str().unwrap_or_default();
    ensure!(
        status["last"]["result"] == "fell-back" && reason.contains("too bad"),
        "{status}"
    );
    ensure!(values(&scene)?["host"] == "bad", "the edit is there");
    Ok(())
}

#[test]
fn transactions_secrets_and_documents() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    let number = list(&scene)?["generation"].as_u64().context("a number")?;
    fs::write(
        scene.world.path("changes.json"),
        json!({"net": {"dns": ["::1"]}, "mtu": null, "secret": {"psk": "deep"}}).to_string(),
    )?;
    scene.refuses(
        1,
        &[
            "settings",
            "apply",
            "changes.json",
            "--expect",
            &(number + 1).to_string(),
        ],
    )?;
    scene.refuses(0, &["settings", "apply", "changes.json", "--dry-run"])?;
    scene.ends(
        0,
        &["settings", "apply", "changes.json", "--expect", &number.to_string()],
    )?;
    scene.ends(4, &["settings", "apply", "changes.json"])?;
    ensure!(
        values(&scene)?
            == json!({"host": "gate", "net": {"dns": ["::1"]}, "secret": {"psk": "deep"},
        "access": {"admin": "factory-hash"}})
    );
    // All or nothing.
    fs::write(scene.world.path("bad.json"), r#"{"fine": 1, "host": {"below": 1}}"#)?;
    scene.refuses(1, &["settings", "apply", "bad.json"])?;
    for words in [
        &["settings", "list"][..],
        &["--json", "settings", "list"],
        &["settings", "export"],
        &["status"],
    ] {
        let shown = scene.ends(0, words)?;
        ensure!(
            !shown.out.contains("deep") && !shown.out.contains("factory-hash"),
            "{}",
            shown.out
        );
    }
    scene.ends(2, &["settings", "get", "secret.psk"])?;
    let got = scene.ends(0, &["settings", "get", "secret.psk", "--show-secrets"])?;
    ensure!(got.out.trim() == "deep");
    scene.ends(4, &["settings", "get", "nothing"])?;
    // Without secrets, an import replaces the rest and loses nobody's password.
    scene.ends(0, &["settings", "export", "--file", "all.json"])?;
    ensure!(fs::metadata(scene.world.path("all.json"))?.mode() & 0o777 == 0o600);
    set(&scene, "host", "other")?;
    scene.ends(0, &["settings", "import", "all.json"])?;
    let after = values(&scene)?;
    ensure!(after["host"] == "gate" && after["secret"]["psk"] == "deep" && after["access"]["admin"] == "factory-hash");
    fs::write(scene.world.path("old.json"), r#"{"schema": 9, "values": {}}"#)?;
    scene.refuses(1, &["settings", "import", "old.json"])?;
    Ok(())
}

#[test]
fn a_factory_reset_is_asked_for_and_keeps_trust_and_floors() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    set(&scene, "host", "mine")?;
    let before = scene.world.status()?;
    scene.refuses(2, &["factory-reset"])?;
    scene.ends(0, &["factory-reset", "--yes"])?;
    ensure!(values(&scene)? == json!({"host": "gate", "mtu": 1500, "access": {"admin": "factory-hash"}}));
    ensure!(scene.world.status()?["floors"] == before["floors"]);
    scene.ends(4, &["check"])?;
    Ok(())
}

fn copies(scene: &Scene, number: u64) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for place in ["objects", "copies"] {
        for entry in fs::read_dir(scene.world.path(&format!("device/state/settings/{place}")))? {
            let path = entry?.path();
            if fs::read_to_string(&path).is_ok_and(|text| text.contains(&format!("\"number\":{number},"))) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[test]
fn damage_costs_at_most_the_last_edit_and_never_brings_factory_values() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    set(&scene, "host", "first")?;
    set(&scene, "host", "second")?;
    let number = list(&scene)?["generation"].as_u64().context("a number")?;
    let both = copies(&scene, number)?;
    ensure!(both.len() == 2, "{both:?}");
    // One copy: nothing is lost, and the next edit or start mends it.
    fs::write(&both[0], "damage")?;
    ensure!(values(&scene)?["host"] == "second" && list(&scene)?["damaged"] == json!([]));
    scene.ends(4, &["install"])?;
    ensure!(copies(&scene, number)?.len() == 2);
    for path in &both {
        fs::write(path, "damage")?;
    }
    let damaged = list(&scene)?;
    ensure!(
        damaged["values"]["host"] == "first" && damaged["damaged"] == json!([number]),
        "{damaged}"
    );
    scene.ends(4, &["install"])?;
    let text = scene.ends(0, &["settings", "list"])?.out;
    ensure!(text.contains(&format!("generation {number} was damaged")), "{text}");
    set(&scene, "host", "third")?;
    ensure!(values(&scene)?["host"] == "third");
    // All of them: an error, not the factory's values.
    for entry in fs::read_dir(scene.world.path("device/state/settings/objects"))?
        .chain(fs::read_dir(scene.world.path("device/state/settings/copies"))?)
    {
        fs::write(entry?.path(), "damage")?;
    }
    scene.ends(3, &["settings", "get", "host"])?;
    scene.ends(3, &["settings", "set", "host", "fourth"])?;
    Ok(())
}

#[test]
fn a_full_disk_leaves_the_settings_as_they_were() -> anyhow::Result<()> {
    if !rootly() {
        tools::skip("mounting a small file system needs root");
        return Ok(());
    }
    let scene = device(MANUAL)?;
    let state = scene.world.path("device/state");
    let aside = scene.world.path("device/aside");
    fs::rename(&state, &aside)?;
    fs::create_dir(&state)?;
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs"])
        .arg(&state)
        .status()?;
    ensure!(mount.success(), "mount: {mount}");
    let result = full_disk(&scene, &aside);
    let unmounted = Command::new("umount").arg(&state).status()?;
    ensure!(unmounted.success(), "umount: {unmounted}");
    result
}

fn full_disk(scene: &Scene, aside: &std::path::Path) -> anyhow::Result<()> {
    let state = scene.world.path("device/state");
    let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&state).status()?;
    ensure!(copied.success());
    set(scene, "host", "before")?;
    let before = list(scene)?;
    let filler = state.join("filler");
    let mut chunk = 64 * 1024;
    let mut file = fs::File::create(&filler)?;
    while chunk > 0 {
        if std::io::Write::write_all(&mut file, &vec![0; chunk]).is_err() {
            chunk /= 2;
        }
    }
    let ran = scene.ends(3, &["settings", "set", "host", "after"])?;
    ensure!(ran.err.contains("space"), "{}", ran.err);
    ensure!(list(scene)? == before);
    drop(file);
    fs::remove_file(&filler)?;
    set(scene, "host", "after")?;
    ensure!(values(scene)?["host"] == "after");
    Ok(())
}

fn rootly() -> bool {
    fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0)
}

#[test]
fn kills_at_any_moment_leave_the_old_settings_or_the_new() -> anyhow::Result<()> {
    let scene = device(MANUAL)?;
    let mut random = Random::new(7);
    let mut reached = 0_u64;
    let (mut killed, mut done) = (0, 0);
    for number in 1..=60_u64 {
        let text = number.to_string();
        let mut command = scene.world.agent_command(&["settings", "set", "count", &text]);
        let mut child = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_micros(random.below(25_000)));
        child.kill()?;
        let finished = child.wait()?.success();
        let now = values(&scene)?["count"].as_u64().unwrap_or(0);
        ensure!(
            now == number || (now == reached && !finished),
            "{now} after {number}, before {reached}"
        );
        reached = now;
        if finished {
            done += 1
        } else {
            killed += 1
        }
        ensure!(values(&scene)?["access"]["admin"] == "factory-hash");
    }
    println!("killed {killed} times, {done} times too late");
    ensure!(killed > 0);
    set(&scene, "count", "1000")?;
    let left = fs::read_dir(scene.world.path("device/state/settings/objects"))?.count();
    ensure!(left <= 10, "{left} objects are kept");
    Ok(())
}

#[test]
fn files_are_exported_and_carried() -> anyhow::Result<()> {
    let config = format!(
        "{MANUAL}\n[[settings.export]]\npath = \"out/net.env\"\nkeys = [\"mtu\", \"host\"]\nformat = \"env\"\nmode = \"640\"\n\
         command = [\"sh\", \"-c\", \"echo reloaded >> out/reloads\"]\n\
         [[settings.export]]\npath = \"out/access.json\"\nkeys = [\"access\"]\n\
         [[settings.export]]\npath = \"out/all.json\"\n\
         [[settings.carry]]\npath = \"app\"\n"
    );
    let scene = {
        let scene = Scene::new()?;
        fs::create_dir(scene.world.path("out"))?;
        fs::create_dir_all(scene.world.path("app/deep"))?;
        fs::write(
            scene.world.path("factory.json"),
            json!({"schema": 1, "values": {"host": "gate", "mtu": 1500, "access": {"admin": "hash"}}}).to_string(),
        )?;
        scene.publish_tree("1.0.0", Health::Good, &["--settings-schema", "1"])?;
        scene.world.configure(Slots::Dirs, &config)?;
        scene.ends(
            0,
            &["provision", "--root", "repo/metadata/1.root.json", "--from-server"],
        )?;
        scene.boot()?;
        scene
    };
    let read = |name: &str| fs::read_to_string(scene.world.path(name)).with_context(|| name.to_owned());
    let reloads = || read("out/reloads").unwrap_or_default().lines().count();
    ensure!(read("out/net.env")? == "HOST='gate'\nMTU='1500'\n");
    ensure!(fs::metadata(scene.world.path("out/net.env"))?.mode() & 0o777 == 0o640);
    ensure!(fs::metadata(scene.world.path("out/access.json"))?.mode() & 0o777 == 0o600);
    ensure!(read("out/access.json")?.contains("hash") && !read("out/all.json")?.contains("hash"));
    ensure!(reloads() == 1);
    set(&scene, "mtu", "1400")?;
    ensure!(read("out/net.env")?.contains("1400") && reloads() == 2);
    // What somebody else changed is put right at the next start.
    fs::write(scene.world.path("out/net.env"), "nonsense")?;
    scene.ends(4, &["install"])?;
    ensure!(read("out/net.env")?.contains("1400") && reloads() == 3);
    scene.ends(4, &["install"])?;
    ensure!(reloads() == 3, "nothing changed");

    let state = scene.world.path("app/deep/db");
    fs::write(&state, "old")?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o600))?;
    publish(&scene, "1.1.0", RENAME, "")?;
    to_trial(&scene)?;
    ensure!(read("out/net.env")?.contains("MTU") && !read("out/net.env")?.contains("HOST"));
    fs::write(&state, "converted")?;
    fs::write(scene.world.path("app/new"), "x")?;
    scene.ends(0, &["rollback"])?;
    scene.boot()?;
    scene.ends(4, &["install"])?;
    ensure!(read("app/deep/db")? == "old" && !scene.world.path("app/new").exists());
    ensure!(fs::metadata(&state)?.mode() & 0o777 == 0o600);
    ensure!(read("out/net.env")?.contains("HOST='gate'"));
    Ok(())
}
