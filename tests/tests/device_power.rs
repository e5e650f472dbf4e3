//! A device whose agent is killed at any moment, again and again: it always boots what its record says, its floors never
//! fall, and left alone it ends on the newest release.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fwtests::device::{Agent, Health, Scene, check_of, files_of, floors_at_least};
use fwtests::random::Random;
use fwtests::world::Slots;

/// Times that the agent is killed in one test.
const KILLS: u32 = 45;
/// A release appears every so many kills.
const PER_RELEASE: u32 = 5;

#[test]
fn directory_slots_survive_kills_at_any_moment() -> anyhow::Result<()> {
    let seed = seed(1)?;
    storm(Slots::Dirs, seed).with_context(|| format!("seed {seed}"))
}

#[test]
fn file_slots_survive_kills_at_any_moment() -> anyhow::Result<()> {
    let seed = seed(2)?;
    storm(Slots::Files, seed).with_context(|| format!("seed {seed}"))
}

/// `FWTESTS_SEED` when set: to look for more, or to see a failure again.
fn seed(usual: u64) -> anyhow::Result<u64> {
    match std::env::var("FWTESTS_SEED") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(usual),
    }
}

fn storm(slots: Slots, seed: u64) -> anyhow::Result<()> {
    let check = check_of(slots);
    let scene = Scene::provisioned(slots, &format!("{check}\n[boot]\nattempts = 4\n"))?;
    let mut random = Random::new(seed);
    let mut floors = scene.world.status()?["floors"].clone();
    let mut published = 0;
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    let mut agents = 0;
    for kill in 0..KILLS {
        if kill % PER_RELEASE == 0 {
            published += 1;
            let health = if published % 3 == 0 { Health::Bad } else { Health::Good };
            scene.publish_either(slots, &format!("1.{published}.0"), health)?;
        }
        let context = || format!("kill {kill}, after {ends:?}");
        let slot = scene.boot().with_context(context)?;
        let status = scene.sound(slots, &slot, &mut floors).with_context(context)?;
        let command = match random.below(10) {
            0 => "boot",
            1 => "rollback",
            2 | 3 => "install",
            _ => "run",
        };
        agents += 1;
        let mut agent = Agent::start(&mut scene.world.agent_command(&["--json", command]))?;
        wait_a_little(&mut agent, &mut random)?;
        agent.kill()?;
        let phase = status["phase"].as_str().unwrap_or_default();
        *ends.entry(phase.to_owned()).or_default() += 1;
    }
    println!("seed {seed}: phases when the agent was started and killed: {ends:?}");
    ensure!(
        agents == KILLS && ends.len() > 1,
        "the agent was killed in one phase only: {ends:?}"
    );

    // Left alone: the newest may be one that the kills have cost all its attempts, so that there is a newer one.
    let newest = "2.0.0";
    scene.publish_either(slots, newest, Health::Good)?;
    let device = scene.switch_on()?;
    scene.rests_on(newest).with_context(|| format!("after {ends:?}"))?;
    device.stop()?;
    let slot = scene.boot()?;
    let status = scene.sound(slots, &slot, &mut floors)?;
    ensure!(
        status["running_release"]["version"] == newest && status["last"]["result"] == "confirmed",
        "{status}"
    );
    let left: Vec<_> = files_of(&scene.world.path("device"))?
        .into_keys()
        .filter(|path| path.contains(".tmp-") || path.ends_with("/.new") || path.contains(".partial"))
        .collect();
    ensure!(left.is_empty(), "left over: {left:?}");
    Ok(())
}

/// Half of the time until it has said something, half of the time for any time: so that a slow machine reaches all
/// phases too.
fn wait_a_little(agent: &mut Agent, random: &mut Random) -> anyhow::Result<()> {
    let lines = random.below(16);
    let start = Instant::now();
    let limit = Duration::from_secs(2);
    if random.below(2) == 0 {
        while (agent.said().len() as u64) < lines && start.elapsed() < limit && !agent.has_ended()? {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.below(4000)));
    } else {
        std::thread::sleep(Duration::from_micros(random.below(300_000)));
    }
    Ok(())
}

#[test]
fn floors_are_compared_as_numbers() -> anyhow::Result<()> {
    let floors = |sequence: u64, timestamp: u64| {
        serde_json::json!({
            "components": [{"sequence": sequence, "security": 0}],
            "root": 1,
            "timestamp": {"version": timestamp},
            "snapshot": {"version": 1},
            "time": "2030-01-01T00:00:00Z",
        })
    };
    ensure!(floors_at_least(&floors(10, 10), &floors(9, 9)));
    ensure!(!floors_at_least(&floors(9, 10), &floors(10, 9)) && !floors_at_least(&floors(10, 9), &floors(9, 10)));
    Ok(())
}
