//! The agent as a service: signals, the service manager, polls that cost nothing, the supervisor, and what it says of
//! wrong usage.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use fwtests::device::{Agent, CHECK, Health, PATIENCE, Scene};
use fwtests::lie_server::{Lie, LieServer};
use fwtests::world::Slots;

#[test]
fn a_stop_while_waiting_is_clean() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.edit("interval_s = 1\n", "interval_s = 3600\n")?;
    let before = scene.device()?;
    for signal in ["TERM", "INT"] {
        let mut agent = scene.run()?;
        agent.status(0, "next poll in 3600 s")?;
        agent.signal(signal)?;
        ensure!(agent.end()?.success());
        let last = agent.said().pop().unwrap_or_default();
        ensure!(last["stopped"] == true && last["restart"] == false, "{last}");
    }
    fwtests::device::same(&before, &scene.device()?)
}

#[test]
fn a_stop_while_downloading_is_clean_and_the_next_start_goes_on() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Files, "")?;
    let image = scene.publish_image("1.1.0", &[])?;
    let server = LieServer::start(&scene.world.path("repo"));
    server.lie(".img.zst", Lie::Drip);
    scene.world.point_at(server.url())?;
    let mut agent = scene.run()?;
    agent.hears(0, |line| {
        line["event"] == "downloading" && line["done"].as_u64() > Some(2000)
    })?;
    agent.stop()?;
    let status = scene.world.status()?;
    ensure!(
        status["phase"] == "staging" && status["slots"][1]["status"] == "empty",
        "{status}"
    );
    ensure!(scene.boot()? == "a");

    scene.world.point_at(&scene.world.url())?;
    let mut agent = scene.run()?;
    ensure!(agent.end()?.success());
    let asked = scene.served(".img.zst")?;
    ensure!(asked.last() == Some(&206), "{asked:?}");
    ensure!(scene.boot()? == "b");
    ensure!(fs::read(scene.world.path("device/slot-b.img"))? == fs::read(image)?);
    Ok(())
}

#[test]
fn a_signal_polls_at_once() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.edit("interval_s = 1\n", "interval_s = 3600\n")?;
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "next poll in 3600 s")?;
    agent.signal("USR1")?;
    let (_, _) = agent.status(at, "next poll in 3600 s")?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    agent.signal("USR1")?;
    ensure!(agent.end()?.success());
    ensure!(scene.world.status()?["phase"] == "pending");
    Ok(())
}

#[test]
fn there_is_one_agent_and_commands_work_beside_it() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "next poll")?;
    let ran = scene.ends(3, &["--json", "run"])?;
    ensure!(
        ran.json()?["message"]
            .as_str()
            .is_some_and(|text| text.contains("locked")),
        "{}",
        ran.out
    );
    scene.ends(4, &["check"])?;
    scene.ends(4, &["confirm"])?;
    scene.ends(0, &["explain"])?;
    agent.status(at, "next poll")?;
    agent.stop()?;
    // The lock went with its holder, also when that is killed.
    let mut agent = scene.run()?;
    agent.status(0, "next poll")?;
    agent.kill()?;
    let mut agent = scene.run()?;
    agent.status(0, "next poll")?;
    agent.stop()
}

#[test]
fn the_service_manager_is_told() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    let path = scene.world.path("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let next = || -> anyhow::Result<String> {
        let mut message = [0; 1024];
        let length = manager.recv(&mut message)?;
        Ok(String::from_utf8(message[..length].to_vec())?)
    };
    let mut command = scene.world.agent_command(&["--json", "run"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let agent = Agent::start(&mut command)?;
    ensure!(next()? == "READY=1");
    let mut heard = Vec::new();
    for wanted in ["STATUS=next poll in", "WATCHDOG=1"] {
        while !heard.iter().any(|message: &String| message.starts_with(wanted)) {
            heard.push(next()?);
        }
    }
    agent.stop()?;
    while !heard.iter().any(|message| message == "STOPPING=1") {
        heard.push(next()?);
    }
    ensure!(heard.last().is_some_and(|message| message == "STOPPING=1"), "{heard:?}");
    Ok(())
}

#[test]
fn a_poll_without_news_costs_one_request_and_no_write() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.ends(4, &["check"])?;
    let written = || -> anyhow::Result<BTreeMap<String, u64>> {
        let mut inodes = BTreeMap::new();
        for path in scene.device()?.into_keys().chain(["/state/last-check.json".to_owned()]) {
            // Every write makes a new file.
            let inode = fs::symlink_metadata(scene.world.path(&format!("device{path}")))?.ino();
            inodes.insert(path, inode);
        }
        Ok(inodes)
    };
    let before = written()?;
    let (asked, roots) = (
        scene.served("/timestamp.json")?.len(),
        scene.served("2.root.json")?.len(),
    );
    let all = scene.served("")?.len();
    scene.ends(4, &["check"])?;
    ensure!(scene.served("/timestamp.json")?[asked..] == [304]);
    ensure!(scene.served("2.root.json")?[roots..] == [404]);
    ensure!(scene.served("")?.len() == all + 2, "more was asked for");
    ensure!(written()? == before, "something was written");

    // The same in the loop.
    let mut agent = scene.run()?;
    let (mut at, _) = agent.status(0, "next poll in 1 s")?;
    for _ in 0..2 {
        at = agent.status(at, "next poll in 1 s")?.0;
    }
    agent.stop()?;
    let statuses = scene.served("/timestamp.json")?;
    ensure!(
        statuses.len() >= asked + 4 && statuses[asked..].iter().all(|status| *status == 304),
        "{statuses:?}"
    );
    ensure!(written()? == before, "something was written");

    // And news are news.
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["check"])?;
    ensure!(scene.served("/timestamp.json")?.last() == Some(&200) && written()? != before);
    Ok(())
}

#[test]
fn the_supervisor_passes_a_stop_on() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    let script = "trap 'echo stopped > heard; exit 0' TERM; \
                  echo up > up; while :; do sleep 0.05; done";
    let arguments = [
        "--json",
        "boot",
        "--supervise",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "{slot}",
    ];
    let mut agent = Agent::start(&mut scene.world.agent_command(&arguments))?;
    let start = Instant::now();
    while !scene.world.path("up").exists() {
        ensure!(
            start.elapsed() < PATIENCE && !agent.has_ended()?,
            "the command did not start"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    agent.stop()?;
    ensure!(fs::read_to_string(scene.world.path("heard"))? == "stopped\n");
    Ok(())
}

#[test]
fn the_supervisor_outlives_a_lock_that_is_held_and_a_command_that_ends_at_once() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    let lock = fwdurable::Lock::exclusive(&scene.world.path("device/state/.lock"))?;
    let arguments = ["boot", "--supervise", "--", "sh", "-c", "echo once >> ends"];
    let mut started = scene.world.agent_command(&arguments);
    let mut child = started.stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().ok_or_else(|| anyhow!("no standard error"))?).lines();
    let refused = lines.next().ok_or_else(|| anyhow!("the supervisor ended"))??;
    ensure!(
        refused.contains("cannot boot") && refused.contains("locked"),
        "{refused}"
    );
    ensure!(!scene.world.path("ends").exists());
    drop(lock);
    let booted: Vec<_> = lines.by_ref().take(4).collect::<Result<_, _>>()?;
    ensure!(booted.iter().all(|line| line.contains("booting slot a")), "{booted:?}");
    ensure!(Command::new("kill").arg(child.id().to_string()).status()?.success());
    ensure!(child.wait()?.success());
    Ok(())
}

#[test]
fn the_supervised_device_lives_through_good_and_bad_releases() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    let device = scene.switch_on()?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.rests_on("1.1.0")?;
    scene.publish_tree("1.2.0", Health::Bad, &[])?;
    scene.wait("fall back from 1.2.0", |status| {
        status["last"]["result"] == "fell-back" && status["last"]["release"]["version"] == "1.2.0"
    })?;
    scene.publish_tree("1.3.0", Health::Good, &[])?;
    scene.rests_on("1.3.0")?;
    device.stop()?;
    // It rests: no restart is due.
    ensure!(scene.boot()? == "a" && scene.version_in("a")? == "1.3.0");
    Ok(())
}

#[test]
fn wrong_usage_is_told_from_a_wrong_environment() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    let good = fs::read_to_string(scene.world.path("device.toml"))?;
    for (config, message) in [
        (good.replace("interval_s", "intervall_s"), "intervall_s"),
        (good.replace("[poll]", "[polls]"), "polls"),
        (good.replace("jitter_s = 0", "jitter_s = \"0\""), "jitter_s"),
        (good.replace("name = \"b\"", "name = \"a\""), "slot"),
        (good.replace("product = \"router\"\n", ""), "product"),
        ("[[[".to_owned(), "device.toml"),
    ] {
        fs::write(scene.world.path("device.toml"), config)?;
        for command in ["status", "check", "run", "boot"] {
            let ran = scene.refuses(2, &["--json", command])?;
            let said = ran.json()?;
            ensure!(
                said["error"] == "usage" && said["message"].as_str().is_some_and(|text| text.contains(message)),
                "{said}"
            );
            let ran = scene.refuses(2, &[command])?;
            ensure!(
                ran.out.is_empty() && ran.err.starts_with("fwagent: "),
                "{} {}",
                ran.out,
                ran.err
            );
        }
    }
    fs::remove_file(scene.world.path("device.toml"))?;
    for command in [
        "status", "check", "install", "run", "boot", "confirm", "rollback", "explain",
    ] {
        let ran = scene.refuses(3, &["--json", command])?;
        let said = ran.json()?;
        ensure!(
            said["error"] == "environment"
                && said["message"]
                    .as_str()
                    .is_some_and(|text| text.contains("device.toml"))
        );
    }
    fs::write(scene.world.path("device.toml"), good)?;
    for arguments in [
        &["--json", "no-such-command"][..],
        &["--json", "check", "--no-such-option"],
        &["--json"],
    ] {
        let ran = scene.refuses(2, arguments)?;
        ensure!(ran.json()?["error"] == "usage", "{}", ran.out);
    }
    scene.ends(4, &["--json", "check"])?;
    Ok(())
}
