//! Signed statements of a device: made, kept and delivered whatever the server does and whenever the power goes; the real
//! agent.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fwmeta::hex;
use fwmeta::json::Doc;
use fwmeta::key::PublicKey;
use fwmeta::statement::{Link, Verified, verify};
use fwtests::device::{Agent, CHECK, Health, PATIENCE, Scene};
use fwtests::report_server::{Manner, ReportServer};
use fwtests::tools;
use fwtests::world::Slots;

fn scene(server: &ReportServer) -> anyhow::Result<Scene> {
    Scene::provisioned(Slots::Dirs, &format!("{CHECK}\n[report]\nurl = \"{}\"\n", server.url()))
}

/// The key of the device, as its owner reads it.
fn key(scene: &Scene) -> anyhow::Result<PublicKey> {
    let said = scene.ends(0, &["--json", "identity"])?.json()?;
    let value = Doc::parse(said["key"].to_string().as_bytes())?.root().to_value()?;
    let key = PublicKey::from_value(value)?;
    ensure!(said["device"] == key.id().as_str());
    Ok(key)
}

/// The statements that the server has, each once, verified, by their numbers.
fn taken(server: &ReportServer, key: &PublicKey) -> anyhow::Result<Vec<Verified>> {
    let mut by_sequence: BTreeMap<u64, Verified> = BTreeMap::new();
    for received in server.received().into_iter().filter(|received| received.taken) {
        let verified = verify(&received.body, key)?;
        ensure!(received.key == hex::encode(&verified.digest), "another idempotency key");
        let sequence = verified.statement.position.sequence;
        if let Some(before) = by_sequence.insert(sequence, verified.clone()) {
            ensure!(before == verified, "number {sequence} means two things");
        }
    }
    Ok(by_sequence.into_values().collect())
}

fn chained(statements: &[Verified]) -> anyhow::Result<()> {
    for pair in statements.windows(2) {
        ensure!(pair[1].follows(&pair[0]) == Link::Next, "{pair:?}");
    }
    Ok(())
}

fn waiting(scene: &Scene) -> anyhow::Result<usize> {
    let listed = scene.ends(0, &["--json", "report"])?.json()?;
    Ok(listed["statements"].as_array().map_or(0, Vec::len))
}

fn wait_for(what: &str, mut ready: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !ready()? {
        ensure!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A device that is on until the closure is done.
fn switched_on(scene: &Scene, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let device = scene.switch_on()?;
    work()?;
    device.stop()
}

#[test]
fn how_an_update_ended_is_reported_when_it_has() -> anyhow::Result<()> {
    let server = ReportServer::start();
    let scene = scene(&server)?;
    let key = key(&scene)?;
    ensure!(waiting(&scene)? == 0);
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    ensure!(waiting(&scene)? == 0, "nothing has been confirmed");
    switched_on(&scene, || {
        scene.rests_on("1.1.0")?;
        scene.publish_tree("1.2.0", Health::Bad, &[])?;
        wait_for("two reports", || Ok(taken(&server, &key)?.len() == 2))
    })?;
    let statements = taken(&server, &key)?;
    chained(&statements)?;
    let [confirmed, fell_back] = &statements[..] else {
        anyhow::bail!("{statements:?}");
    };
    let (confirmed, fell_back) = (&confirmed.statement, &fell_back.statement);
    ensure!(confirmed.event.result == "confirmed" && fell_back.event.result == "fell-back");
    let status = scene.world.status()?;
    let active = confirmed.active.as_ref().and_then(|active| active.release.as_ref());
    let active = active.context("no release")?;
    ensure!(
        active.version == "1.1.0"
            && hex::encode(&active.components[0].1)
                == status["running_release"]["components"][0]["image_sha256"]
                    .as_str()
                    .unwrap_or_default()
            && hex::encode(&active.manifest_sha256) == status["running_release"]["manifest_sha256"]
    );
    ensure!(confirmed.floors[0].sequence == 2 && confirmed.boots == 1 && confirmed.clock_believed);
    ensure!(confirmed.metadata[0] == 1 && confirmed.metadata[1] >= 2);
    ensure!(fell_back.event.log.contains("the radio is silent") && fell_back.event.reason.contains("own"));
    let subject = fell_back
        .event
        .subject
        .as_ref()
        .and_then(|subject| subject.release.as_ref());
    ensure!(subject.is_some_and(|release| release.version == "1.2.0"));
    ensure!(waiting(&scene)? == 0);
    scene.ends(4, &["report", "--deliver"])?;
    Ok(())
}

#[test]
fn openssl_reads_the_identity_and_checks_a_statement() -> anyhow::Result<()> {
    let server = ReportServer::start();
    let scene = scene(&server)?;
    let key = key(&scene)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    scene.ends(0, &["rollback"])?;
    scene.ends(0, &["report", "--export", "report.jsonl"])?;
    let text = fs::read_to_string(scene.world.path("report.jsonl"))?;
    ensure!(text.lines().count() == 1);
    let verified = verify(text.trim_end().as_bytes(), &key)?;
    ensure!(verified.statement.event.result == "rolled-back");
    // No secret anywhere but in its file.
    let secret = fs::read_to_string(scene.world.path("device/state/identity.pem"))?;
    let secret = secret.lines().nth(1).context("no key")?.to_owned();
    let said = scene.ends(0, &["identity"])?;
    ensure!(!said.out.contains(&secret) && !text.contains(&secret));

    let Some(openssl) = tools::program("openssl") else {
        return Ok(());
    };
    let run = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(&openssl)
            .args(arguments)
            .current_dir(scene.world.path(""))
            .output()?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    let public = run(&["pkey", "-in", "device/state/identity.pem", "-pubout"])?;
    ensure!(said.out.contains(public.trim_end()), "{public} {}", said.out);
    fs::write(scene.world.path("public.pem"), public)?;
    let envelope = fwmeta::signed::Envelope::parse(text.trim_end().as_bytes())?;
    fs::write(scene.world.path("message"), envelope.message()?)?;
    fs::write(scene.world.path("signature"), &envelope.signatures()[0].bytes)?;
    let check = [
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "public.pem",
        "-rawin",
        "-in",
        "message",
        "-sigfile",
        "signature",
    ];
    run(&check)?;
    fs::write(scene.world.path("message"), b"another")?;
    ensure!(run(&check).is_err());
    Ok(())
}

#[test]
fn a_server_that_fails_lies_or_is_late_gets_every_report_at_last() -> anyhow::Result<()> {
    let server = ReportServer::start();
    let scene = scene(&server)?;
    let key = key(&scene)?;
    for version in ["1.1.0", "1.2.0", "1.3.0"] {
        scene.publish_tree(version, Health::Good, &[])?;
        scene.ends(0, &["install"])?;
        scene.ends(0, &["rollback"])?;
    }
    ensure!(waiting(&scene)? == 3);
    let deliver = |code: i32, left: usize| -> anyhow::Result<()> {
        scene.ends(code, &["report", "--deliver"])?;
        ensure!(waiting(&scene)? == left);
        Ok(())
    };
    for manner in [
        Manner::HangUp,
        Manner::TakeAndHangUp,
        Manner::Status(500, ""),
        Manner::Status(503, "Retry-After: 1\r\n"),
        Manner::Status(429, ""),
        Manner::Status(408, ""),
        Manner::Status(302, "Location: /elsewhere\r\n"),
    ] {
        server.behave(&[manner], Manner::Take);
        deliver(3, 3).with_context(|| format!("{manner:?}"))?;
    }
    let late = Manner::TakeLate(Duration::from_millis(300));
    server.behave(&[late, Manner::TakeEndless, Manner::HangUp], Manner::Take);
    deliver(3, 1)?;
    deliver(0, 0)?;
    let statements = taken(&server, &key)?;
    chained(&statements)?;
    ensure!(statements.len() == 3);
    // The one whose answer was lost came twice, under one key.
    let first: Vec<_> = server
        .received()
        .into_iter()
        .filter(|received| received.taken)
        .collect();
    ensure!(first[0] == first[1]);

    // Nobody listens.
    scene.edit(server.url(), "http://127.0.0.1:9/reports")?;
    scene.publish_tree("1.4.0", Health::Good, &[])?;
    scene.ends(0, &["install"])?;
    scene.ends(0, &["rollback"])?;
    deliver(3, 1)?;
    scene.edit("http://127.0.0.1:9/reports", server.url())?;
    deliver(0, 0)
}

#[test]
fn what_the_server_refuses_is_kept_aside_and_holds_up_nothing() -> anyhow::Result<()> {
    let server = ReportServer::start();
    let scene = scene(&server)?;
    for version in ["1.1.0", "1.2.0"] {
        scene.publish_tree(version, Health::Good, &[])?;
        scene.ends(0, &["install"])?;
        scene.ends(0, &["rollback"])?;
    }
    server.behave(&[Manner::Status(422, "")], Manner::Take);
    let mut agent = scene.run()?;
    let (at, said) = agent.hears(0, |line| {
        line["status"]
            .as_str()
            .is_some_and(|status| status.contains("delivered"))
    })?;
    ensure!(
        said["status"] == "1 report(s) delivered; the server refused 1 report(s)",
        "{said}"
    );
    // Two polls on it was not sent again, nor spoken of.
    let (at, _) = agent.status(at, "next poll")?;
    let (at, _) = agent.status(at, "next poll")?;
    agent.status(at, "next poll")?;
    ensure!(
        agent
            .said()
            .iter()
            .filter(|line| line.to_string().contains("refused"))
            .count()
            == 1
    );
    agent.stop()?;
    ensure!(server.received().len() == 2);
    let listed = scene.ends(0, &["--json", "report"])?.json()?;
    ensure!(
        listed["statements"].as_array().map(Vec::len) == Some(1) && listed["statements"][0]["unwanted"] == 422,
        "{listed}"
    );
    // Somebody asks for it.
    scene.ends(0, &["report", "--deliver"])?;
    ensure!(waiting(&scene)? == 0);
    Ok(())
}

#[test]
fn an_attack_is_reported_once_and_what_came_of_a_stick_too() -> anyhow::Result<()> {
    let server = ReportServer::start();
    let scene = scene(&server)?;
    let key = key(&scene)?;
    scene.publish_tree("1.1.0", Health::Good, &[])?;
    scene.ends(0, &["check"])?;
    // The past is served.
    scene.world.copy("repo", "past")?;
    scene.world.sign(&["refresh", "repo", "--keys-dir", "keys"])?;
    scene.world.publish()?;
    scene.ends(0, &["check"])?;
    let liar = fwtests::lie_server::LieServer::start(&scene.world.path("past"));
    scene.world.point_at(liar.url())?;
    for _ in 0..3 {
        scene.ends(1, &["check"])?;
    }
    ensure!(waiting(&scene)? == 1);
    scene.ends(0, &["report", "--export", "report.jsonl"])?;
    let read = |name: &str| -> anyhow::Result<Verified> {
        let text = fs::read_to_string(scene.world.path(name))?;
        Ok(verify(text.trim_end().as_bytes(), &key)?)
    };
    let refusal = read("report.jsonl")?;
    ensure!(refusal.statement.event.result == "refused" && refusal.statement.event.reason.contains("older"));
    ensure!(refusal.statement.refusals == 1);

    // Results of bundles, good and bad, are of the same chain.
    fs::create_dir_all(scene.world.path("stick"))?;
    let bundle = "stick/router.fwbundle";
    scene
        .world
        .sign(&["bundle", "repo", "--product", "router", "-o", bundle])?;
    let good = fs::read(scene.world.path(bundle))?;
    fs::write(scene.world.path(bundle), &good[..good.len() - 1])?;
    scene.ends(1, &["install", "--bundle", bundle, "--result", "stick/result.json"])?;
    let bad = read("stick/result.json")?;
    ensure!(bad.statement.event.result == "refused" && bad.statement.event.reason.contains("ends early"));
    ensure!(bad.follows(&refusal) == Link::Next);
    fs::write(scene.world.path(bundle), good)?;
    scene.ends(0, &["install", "--bundle", bundle])?;
    let installed = read("device/state/bundle-result.json")?;
    ensure!(installed.follows(&bad) == Link::Next && installed.statement.event.result == "installed");
    let subject = installed.statement.event.subject.and_then(|subject| subject.release);
    ensure!(subject.is_some_and(|release| release.version == "1.1.0"));
    scene.ends(2, &["install", "--result", "x"])?;
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

#[test]
fn no_outcome_is_lost_or_invented_when_the_agent_is_killed_at_any_moment() -> anyhow::Result<()> {
    let server = ReportServer::start();
    let scene = scene(&server)?;
    let key = key(&scene)?;
    let mut random = Random(7);
    for kill in 0..25_u64 {
        if kill % 5 == 0 {
            let health = if kill % 10 == 0 { Health::Bad } else { Health::Good };
            scene.publish_tree(&format!("1.{}.0", kill + 1), health, &[])?;
        }
        let manners = [
            Manner::Take,
            Manner::TakeAndHangUp,
            Manner::HangUp,
            Manner::Status(500, ""),
            Manner::TakeLate(Duration::from_millis(100)),
        ];
        let next: Vec<_> = (0..4).map(|_| manners[random.below(5) as usize]).collect();
        server.behave(&next, Manner::Status(503, ""));
        scene.boot()?;
        let arguments: &[&str] = match random.below(8) {
            0 => &["--json", "install"],
            1 => &["--json", "rollback"],
            2 => &["--json", "report", "--deliver"],
            _ => &["--json", "run"],
        };
        let mut agent = Agent::start(&mut scene.world.agent_command(arguments))?;
        std::thread::sleep(Duration::from_millis(random.below(700)));
        agent.kill()?;
    }
    server.behave(&[], Manner::Take);
    switched_on(&scene, || {
        scene.wait("come to rest", |status| status["phase"] == "idle")?;
        wait_for("all reports", || Ok(waiting(&scene)? == 0))
    })?;
    let statements = taken(&server, &key)?;
    chained(&statements)?;
    ensure!(
        statements
            .first()
            .is_some_and(|first| first.statement.position.sequence == 1)
    );
    let outcomes: Vec<u64> = statements
        .iter()
        .map(|statement| statement.statement.event.outcome)
        .filter(|outcome| *outcome > 0)
        .collect();
    let ended = fwagent::host::state_file::StateFile::new(&scene.world.path("device/state"))
        .peek()?
        .context("no state")?
        .outcomes;
    ensure!(ended > 0, "nothing ended");
    ensure!(outcomes == (1..=ended).collect::<Vec<_>>(), "{outcomes:?} of {ended}");
    Ok(())
}
