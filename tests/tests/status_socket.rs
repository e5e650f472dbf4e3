//! The status socket of a running agent, asked by the agent's own commands and by a stranger.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::ensure;
use fwtests::device::{Agent, CHECK, Health, Scene};
use fwtests::tools;
use fwtests::world::Slots;

const SOCKET: &str = "agent.sock";

/// Prints the answer to its request and so many lines after it.
const STRANGER: &str = "
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(sys.argv[2].encode() + b'\\n')
lines = client.makefile()
for _ in range(int(sys.argv[3])):
    print(lines.readline(), end='', flush=True)
";

fn scene() -> anyhow::Result<Scene> {
    let scene = Scene::provisioned(
        Slots::Dirs,
        &format!("{CHECK}\n[status]\nsocket = \"{SOCKET}\"\nmode = \"0660\"\n"),
    )?;
    scene.edit("interval_s = 1\n", "interval_s = 3600\n")?;
    Ok(scene)
}

#[test]
fn a_running_agent_says_how_it_is() -> anyhow::Result<()> {
    let scene = scene()?;
    scene.ends(3, &["status", "--socket", SOCKET])?;
    scene.ends(3, &["watch"])?;
    let mut agent = scene.run()?;
    agent.status(0, "next poll in 3600 s")?;
    let mode = fs::metadata(scene.world.path(SOCKET))?.permissions().mode();
    ensure!(mode & 0o777 == 0o660, "{mode:o}");
    let asked = scene.ends(0, &["--json", "status", "--socket", SOCKET])?.json()?;
    ensure!(asked == scene.world.status()?, "{asked}");
    // One that is killed leaves its socket, and the next takes the place over.
    agent.kill()?;
    ensure!(scene.world.path(SOCKET).exists());
    scene.ends(3, &["status", "--socket", SOCKET])?;
    let mut agent = scene.run()?;
    agent.status(0, "next poll in 3600 s")?;
    scene.ends(0, &["status", "--socket", SOCKET])?;
    agent.stop()?;
    ensure!(!scene.world.path(SOCKET).exists());
    Ok(())
}

#[test]
fn an_update_can_be_watched() -> anyhow::Result<()> {
    let scene = scene()?;
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "next poll in 3600 s")?;
    let mut watch = Agent::start(&mut scene.world.agent_command(&["--json", "watch"]))?;
    watch.hears(0, |line| line["watching"] == "events")?;
    // Somebody who never reads, and somebody who writes without end.
    let socket = scene.world.path(SOCKET);
    let mut deaf = std::os::unix::net::UnixStream::connect(&socket)?;
    std::io::Write::write_all(&mut deaf, b"{\"watch\":\"events\"}\n")?;
    let mut loud = std::os::unix::net::UnixStream::connect(&socket)?;
    while std::io::Write::write_all(&mut loud, &[b'x'; 4096]).is_ok() {}
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    agent.signal("USR1")?;
    ensure!(agent.end()?.success());
    ensure!(watch.end()?.success());
    // The same as the agent itself printed, but for what each says of itself.
    let events = |said: Vec<serde_json::Value>| -> Vec<serde_json::Value> {
        said.into_iter().filter(|line| line.get("event").is_some()).collect()
    };
    let (printed, watched) = (events(agent.said()), events(watch.said()));
    let printed: Vec<_> = printed
        .into_iter()
        .skip(at)
        .filter(|line| line.get("done").is_none())
        .collect();
    let watched: Vec<_> = watched.into_iter().filter(|line| line.get("done").is_none()).collect();
    ensure!(watched == printed, "{watched:?} {printed:?}");
    ensure!(
        watched
            .iter()
            .any(|line| line["event"] == "entered" && line["phase"] == "pending")
    );
    Ok(())
}

#[test]
fn a_stranger_is_answered() -> anyhow::Result<()> {
    let Some(python) = tools::program("python3") else {
        return Ok(());
    };
    let scene = scene()?;
    let mut agent = scene.run()?;
    let (at, _) = agent.status(0, "next poll in 3600 s")?;
    let stranger = |request: &str, lines: &str| {
        let mut command = Command::new(&python);
        command
            .args(["-c", STRANGER])
            .arg(scene.world.path(SOCKET))
            .args([request, lines]);
        command
    };
    let output = stranger("{\"get\": \"status\"}", "1")
        .stderr(Stdio::inherit())
        .output()?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        status["phase"] == "idle" && status["running_release"]["version"] == "1.0.0",
        "{status}"
    );
    let output = stranger("{\"get\": \"explain\"}", "1").output()?;
    let explained: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(explained["status"]["phase"] == "idle", "{explained}");
    let output = stranger("{\"set\": \"anything\"}", "2").output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("usage") && text.lines().count() == 1, "{text}");

    let mut watch = Agent::start(&mut stranger("{\"watch\": \"events\"}", "2"))?;
    watch.hears(0, |line| line["watching"] == "events")?;
    agent.signal("USR1")?;
    agent.status(at, "next poll in 3600 s")?;
    ensure!(watch.end()?.success());
    let last = watch.said().pop().unwrap_or_default();
    ensure!(last["event"] == "status", "{last}");
    agent.stop()
}
