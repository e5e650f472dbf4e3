//! Releases of several components, together or not at all; and a device with a rescue system beside its main one.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use fwmeta::manifest::ImageKind;
use fwmeta::time::UtcSeconds;
use fwtests::device::{Agent, CHECK, Health, Scene, files_of, noise, same};
use fwtests::release::{component, image_of, list, manifest};
use fwtests::repo_sim::{RepoSim, paths};
use fwtests::sim_server::SimServer;
use fwtests::world::{Ran, Slots, World};

/// A tree of one file.
fn tree(content: &str) -> Vec<u8> {
    let mut tar = vec![0; 512];
    let mut put = |at: usize, text: &str| tar[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "version");
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(content.as_bytes());
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// Signs a release of a tree and a raw image, of which the manifest promises `promised`.
fn release(
    sim: &mut RepoSim,
    version: &str,
    sequence: u64,
    tree: &[u8],
    data: &[u8],
    promised: &[u8],
) -> anyhow::Result<()> {
    let part = |name: &str, class: &str, kind, image: &[u8]| {
        component(name, class, kind, image_of(image), &format!("router/{version}/{name}"))
    };
    let components = vec![
        part("main", "system", ImageKind::Tar, tree)?,
        part("data", "data", ImageKind::Raw, promised)?,
    ];
    list(sim, "router", &manifest(version, sequence, components)?, &[tree, data]);
    sim.publish(&["router", "snapshot", "timestamp"]);
    Ok(())
}

/// A device whose sets have a tree and a file each, on 1.0.0.
struct Two {
    world: World,
    server: SimServer,
    _dir: tempfile::TempDir,
}

impl Two {
    fn new() -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut sim = RepoSim::expiring(UtcSeconds(i64::try_from(now)? + 30 * 86_400));
        sim.delegate("targets", "router", paths(&["router/*", "router/*/*"]));
        sim.publish(&["router", "targets", "snapshot", "timestamp"]);
        let data = noise("1", 700_000);
        release(&mut sim, "1.0.0", 1, &tree("1"), &data, &data)?;
        let dir = tempfile::tempdir()?;
        let world = World::new(dir.path())?;
        fs::write(world.path("root.json"), sim.served("root", 1))?;
        let server = SimServer::start(sim);
        let data = |name: &str| {
            format!("\n[[slot]]\nname = \"{name}\"\nclass = \"data\"\nkind = \"file\"\npath = \"device/data-{name}\"\n")
        };
        world.configure(Slots::Dirs, &(data("a") + &data("b")))?;
        world.point_at(server.metadata_url().trim_end_matches("/metadata/"))?;
        let two = Self {
            world,
            server,
            _dir: dir,
        };
        two.ends(0, &["provision", "--root", "root.json", "--from-server"])?;
        two.holds("a", "1")?;
        Ok(two)
    }

    fn publish(&self, version: &str, sequence: u64, content: [&str; 2]) -> anyhow::Result<()> {
        let data = noise(content[1], 700_000);
        release(
            &mut self.server.repo(),
            version,
            sequence,
            &tree(content[0]),
            &data,
            &data,
        )
    }

    fn ends(&self, code: i32, arguments: &[&str]) -> anyhow::Result<Ran> {
        let ran = self.world.fwagent(arguments)?;
        ensure!(ran.code == code, "{arguments:?}: {} {}{}", ran.code, ran.out, ran.err);
        Ok(ran)
    }

    /// Chooses a slot, as a boot loader does, and lets the agent confirm what is on trial.
    fn boots(&self, slot: &str) -> anyhow::Result<()> {
        let booted = self.ends(0, &["--json", "boot"])?.json()?;
        ensure!(booted["slot"] == slot, "{booted}");
        self.ends(4, &["install"])?;
        let status = self.world.status()?;
        ensure!(status["active"] == slot && status["phase"] == "idle", "{status}");
        Ok(())
    }

    fn holds(&self, slot: &str, version: &str) -> anyhow::Result<()> {
        let held = fs::read(self.world.path(&format!("device/slot-{slot}/current/version")))?;
        ensure!(
            held == version.as_bytes(),
            "the tree of {slot} is {}",
            String::from_utf8_lossy(&held)
        );
        ensure!(fs::read(self.world.path(&format!("device/data-{slot}")))? == noise(version, 700_000));
        Ok(())
    }
}

fn kept(ran: &Ran) -> Vec<&str> {
    let lines = ran.out.lines().filter(|line| line.contains("\"kept\""));
    lines
        .map(|line| if line.contains("\"data\"") { "data" } else { "main" })
        .collect()
}

#[test]
fn components_are_installed_together_or_not_at_all() -> anyhow::Result<()> {
    let two = Two::new()?;
    two.publish("1.1.0", 2, ["2", "2"])?;
    ensure!(kept(&two.ends(0, &["--json", "install"])?).is_empty());
    two.boots("b")?;
    two.holds("b", "2")?;
    two.holds("a", "1")?;

    // The second component is not what was promised: nothing of the release may be booted.
    let (set, data) = (two.world.path("device/slot-b"), two.world.path("device/data-b"));
    let before = (files_of(&set)?, fs::read(&data)?);
    let (evil, promised) = (noise("evil", 700_000), noise("3", 700_000));
    release(&mut two.server.repo(), "1.2.0", 3, &tree("3"), &evil, &promised)?;
    two.ends(1, &["install"])?;
    let status = two.world.status()?;
    ensure!(
        status["active"] == "b" && status["last"]["result"] == "install-failed",
        "{status}"
    );
    ensure!(
        status["slots"][0]["status"] != "confirmed" && status["slots"][0]["status"] != "pending",
        "{status}"
    );
    two.boots("b")?;
    same(&before.0, &files_of(&set)?)?;
    ensure!(fs::read(&data)? == before.1);

    // Its first component is there already: only the other is written.
    two.publish("1.3.0", 4, ["3", "3"])?;
    let ran = two.ends(0, &["--json", "install"])?;
    ensure!(kept(&ran) == ["main"], "{}", ran.out);
    two.boots("a")?;
    two.holds("a", "3")?;

    // All is there already: it is armed and tried as any other.
    two.publish("1.4.0", 5, ["2", "2"])?;
    let ran = two.ends(0, &["--json", "install"])?;
    ensure!(kept(&ran) == ["main", "data"], "{}", ran.out);
    ensure!(two.world.status()?["phase"] == "pending");
    two.boots("b")?;
    two.holds("b", "2")
}

#[test]
fn a_kill_between_components_leaves_the_old_set_running() -> anyhow::Result<()> {
    let two = Two::new()?;
    two.publish("1.1.0", 2, ["2", "2"])?;
    let mut agent = Agent::start(&mut two.world.agent_command(&["--json", "install"]))?;
    agent.hears(0, |line| line["component"] == "data")?;
    agent.kill()?;
    let booted = two.ends(0, &["--json", "boot"])?.json()?;
    // Only a machine that was slow to kill has gone further.
    if booted["slot"] == "a" {
        let status = two.world.status()?;
        ensure!(
            status["phase"] == "staging" && status["slots"][1]["status"] == "empty",
            "{status}"
        );
        two.holds("a", "1")?;
        let ran = two.ends(0, &["--json", "install"])?;
        ensure!(kept(&ran).first() == Some(&"main"), "{}", ran.out);
    }
    two.boots("b")?;
    two.holds("b", "2")?;
    two.holds("a", "1")
}

#[test]
fn main_is_written_from_rescue_and_rescue_never() -> anyhow::Result<()> {
    let scene = Scene::provisioned(Slots::Dirs, CHECK)?;
    scene.edit("name = \"b\"\n", "name = \"b\"\nrole = \"rescue\"\n")?;
    let rescue = scene.world.path("device/slot-b");
    fs::create_dir_all(&rescue)?;
    fs::write(rescue.join("system"), "rescue")?;
    let before = files_of(&rescue)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    let mut device = scene.switch_on()?;
    let (at, _) = device.hears(0, |line| line["phase"] == "to-rescue")?;
    scene.wait("run 1.1.0", |status| {
        status["running_release"]["version"] == "1.1.0" && status["phase"] == "idle"
    })?;
    ensure!(scene.world.status()?["running"] == "a" && scene.version_in("a")? == "1.1.0");

    // A bad one falls back to rescue, which brings main back to what worked, and does not come again.
    scene.publish_tree("1.2.0", Health::Bad, &[])?;
    let (at, _) = device.hears(at, |line| line["phase"] == "falling-back")?;
    let (mut at, _) = device.hears(at, |line| line["phase"] == "confirming")?;
    scene.rests_on("1.1.0")?;
    for _ in 0..3 {
        at = device.status(at, "next poll")?.0;
    }
    // One for each release: recorded, then known to the boot loader.
    let said = device.said();
    let entered = said.iter().filter(|line| line["phase"] == "to-rescue").count();
    ensure!(entered == 4, "{said:#?}");
    let verdict = scene.verdict("1.2.0")?;
    ensure!(verdict.contains("not installed again"), "{verdict}");
    device.stop()?;

    // The operator goes to rescue, whose polls do not bring back what he left.
    scene.ends(0, &["rollback"])?;
    ensure!(scene.boot()? == "b");
    scene.ends(4, &["install"])?;
    let status = scene.world.status()?;
    ensure!(status["active"] == "b" && status["phase"] == "idle", "{status}");
    same(&before, &files_of(&rescue)?)
}
