//! `publish --server` against a server that does what it is told: uploads, resumption, refusals, and the token.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;

use support::server::{Fault, Server, TOKEN};
use support::{Run, Workshop, command, text, tree};

const OBJECT: &str = "PUT /api/v1/objects/";

struct Scene {
    shop: Workshop,
    server: Server,
    token: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let shop = Workshop::new();
        let token = shop.file("token", format!("{TOKEN}\n").as_bytes());
        Self {
            shop,
            server: Server::start(),
            token,
        }
    }

    /// A release whose payload takes several pieces.
    fn big_release(&self) {
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..1_200_000)
            .flat_map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 20).to_le_bytes()
            })
            .collect();
        let image = self.shop.file("big", &noise);
        let options = [
            "--product",
            "router",
            "--version",
            "1.0.0",
            "--hardware",
            "a",
            "--level",
            "1",
            "--image",
            text(&image),
        ];
        self.shop.with_keys(&["release", "add"], &options).expect(0);
    }

    fn publish(&self, more: &[&str]) -> Run {
        let mut command = command();
        command
            .arg("publish")
            .arg(self.shop.repo())
            .args(["--server", &self.server.url()]);
        command.arg("--token-file").arg(&self.token).args(more);
        let run: Run = command.output().unwrap().into();
        assert!(
            !run.stdout.contains(TOKEN) && !run.stderr.contains(TOKEN),
            "the token is never shown"
        );
        run
    }

    /// What the server has published is what `publish --dir` would make.
    fn assert_published(&self) {
        let dir = self.shop.path("expected");
        self.shop.publish_to(&dir, &[]).expect(0);
        let mut expected = tree(&dir);
        expected.retain(|name, _| !name.ends_with('/'));
        fs::remove_dir_all(dir).unwrap();
        let published = self.server.published();
        for (name, bytes) in &expected {
            assert!(published.get(name) == Some(bytes), "{name} is missing or differs");
        }
        assert_eq!(published.keys().filter(|name| name.starts_with("targets")).count(), 4);
    }
}

#[test]
fn everything_arrives_once_and_then_there_is_nothing_to_do() {
    let scene = Scene::new();
    scene.big_release();
    let before = tree(&scene.shop.repo());
    let dry = scene.publish(&["--dry-run"]).expect(0);
    assert!(dry.stdout.starts_with("would publish"), "{}", dry.stdout);
    assert_eq!((scene.server.count("PUT"), scene.server.count("POST")), (0, 0));
    let json = scene.publish(&["--json"]).expect(0).json();
    assert_eq!(json["files"], 7);
    assert!(scene.server.count(OBJECT) > 7, "the payload goes in pieces");
    scene.assert_published();
    let uploads = scene.server.count(OBJECT);
    scene.publish(&[]).expect_error(4, "has timestamp version 2 already");
    scene.shop.release("1.1.0", &[]).expect(0);
    scene.publish(&[]).expect(0);
    assert_eq!(
        scene.server.count(OBJECT) - uploads,
        5,
        "only what is new: two targets, router, snapshot, timestamp"
    );
    let tokens = scene.server.state.lock().unwrap().tokens.clone();
    assert!(tokens.iter().all(|token| *token == format!("Bearer {TOKEN}")));
    assert!(
        before
            .iter()
            .all(|(name, bytes)| name.contains("timestamp") || tree(&scene.shop.repo()).get(name) == Some(bytes))
    );
}

#[test]
fn broken_connections_are_resumed_where_they_broke() {
    let scene = Scene::new();
    scene.big_release();
    // Taken in part, taken whole but not answered, not taken at all; an error of a proxy; and somebody else's upload.
    scene.server.fault(OBJECT, Fault::Break(10));
    scene.server.fault(OBJECT, Fault::DoAndBreak);
    scene.server.fault(OBJECT, Fault::Answer(502, "", "<html>"));
    scene.server.fault("HEAD", Fault::Break(0));
    scene.server.fault("GET", Fault::Answer(503, "Retry-After: 0\r\n", ""));
    scene.server.fault(
        OBJECT,
        Fault::Answer(
            409,
            "",
            r#"{"error":"conflict","reason":"another upload is in progress"}"#,
        ),
    );
    scene.publish(&[]).expect(0);
    scene.assert_published();
    assert!(scene.server.state.lock().unwrap().faults.is_empty());
}

#[test]
fn an_interrupted_upload_goes_on_at_the_next_call() {
    let scene = Scene::new();
    scene.big_release();
    let payload = fs::read(scene.shop.payload("1.0.0")).unwrap();
    let name = scene.shop.payload("1.0.0").file_name().unwrap().to_str().unwrap()[..64].to_owned();
    let have = payload.len() - 1000;
    scene
        .server
        .state
        .lock()
        .unwrap()
        .parts
        .insert(name.clone(), payload[..have].to_vec());
    let json = scene.publish(&["--json"]).expect(0).json();
    assert!(
        json["bytes"].as_u64().unwrap() < 20_000,
        "only the rest travels: {json}"
    );
    scene.assert_published();
    // What a part claims to be is judged by the server: a wrong beginning ends in its refusal.
    let scene = Scene::new();
    scene.big_release();
    scene.server.state.lock().unwrap().parts.insert(name, vec![0; have]);
    scene.publish(&[]).expect_error(1, "sha256 of the upload is another");
    assert!(scene.server.published().is_empty());
}

#[test]
fn a_server_that_never_gets_on_is_given_up() {
    let scene = Scene::new();
    for _ in 0..20 {
        scene.server.fault(
            OBJECT,
            Fault::Answer(503, "Retry-After: 0\r\n", r#"{"error":"busy","reason":"full"}"#),
        );
    }
    scene.publish(&[]).expect_error(3, "giving up after 6 tries");
    assert_eq!(scene.server.count(OBJECT), 6);
    // One that takes the bytes and stays where it is.
    let scene = Scene::new();
    for _ in 0..20 {
        scene
            .server
            .fault(OBJECT, Fault::Answer(202, "Upload-Offset: 0\r\n", ""));
    }
    scene.publish(&[]).expect_error(3, "it stays at byte 0");
    assert_eq!(scene.server.count("POST"), 0);
}

#[test]
fn the_servers_refusals_are_passed_on() {
    for (fault, code, part) in [
        (
            Fault::Answer(
                409,
                "",
                r#"{"error":"conflict","reason":"published timestamp is A, publication is based on B"}"#,
            ),
            1,
            "is A, publication is based on B",
        ),
        (
            Fault::Answer(
                422,
                "",
                r#"{"error":"refused","reason":"devices would refuse it: expired\u001b[31m"}"#,
            ),
            1,
            "devices would refuse it: expired[31m",
        ),
        (Fault::Answer(401, "", ""), 3, "does not accept the token of"),
        (Fault::Answer(404, "", ""), 3, "--publish-token-file"),
        (
            Fault::Answer(413, "", r#"{"error":"too-large","reason":"the request is too long"}"#),
            3,
            "the request is too long",
        ),
        (
            Fault::Answer(307, "Location: http://elsewhere.example/\r\n", ""),
            3,
            "http://elsewhere.example/",
        ),
        (Fault::Answer(200, "", "not JSON"), 3, "not one of a publish API"),
        (
            Fault::Answer(200, "", r#"{"timestamp":{"version":9,"sha256":"00"}}"#),
            3,
            "instead of",
        ),
    ] {
        let scene = Scene::new();
        scene.server.fault("POST", fault);
        let run = scene.publish(&[]).expect_error(code, part);
        assert!(!run.stderr.contains('\u{1b}'));
        assert!(scene.server.published().is_empty());
        assert_eq!(scene.server.count("POST"), 1, "a refusal is final");
        scene.publish(&[]).expect(0);
    }
    let scene = Scene::new();
    scene.server.fault(
        OBJECT,
        Fault::Answer(
            413,
            "",
            r#"{"error":"too-large","reason":"object of 9 bytes is over the limit of 8"}"#,
        ),
    );
    scene.publish(&[]).expect_error(3, "over the limit of 8");
    let run = scene.publish(&["--json"]).expect(0);
    assert!(
        run.stderr.is_empty(),
        "no progress bar without a terminal: {}",
        run.stderr
    );
}

#[test]
fn a_lost_answer_to_a_publication_is_no_failure() {
    let scene = Scene::new();
    scene.server.fault("POST", Fault::DoAndBreak);
    scene.publish(&[]).expect(0);
    assert_eq!(scene.server.count("POST"), 1, "it had happened");
    scene.shop.refresh().expect(0);
    scene.server.fault("POST", Fault::Break(3));
    scene.server.fault(
        "POST",
        Fault::Answer(503, "Retry-After: 0\r\n", r#"{"error":"busy","reason":"busy"}"#),
    );
    scene.publish(&[]).expect(0);
    assert_eq!(scene.server.count("POST"), 4, "it had not, so it was asked again");
}

#[test]
fn rollback_and_forks_are_refused_before_anything_is_uploaded() {
    let scene = Scene::new();
    let old = scene.shop.copy("old");
    scene.big_release();
    scene.publish(&[]).expect(0);
    let (published, uploads) = (scene.server.published(), scene.server.count(OBJECT));
    let mut publish = command();
    publish
        .arg("publish")
        .arg(&old)
        .args(["--server", &scene.server.url(), "--token-file"])
        .arg(&scene.token);
    Run::from(publish.output().unwrap()).expect_error(1, "timestamp version 1 is older than version 2");
    let mut refresh = command();
    refresh
        .arg("refresh")
        .arg(&old)
        .arg("--key")
        .arg(scene.shop.key("s"))
        .arg("--key")
        .arg(scene.shop.key("ts"));
    Run::from(refresh.output().unwrap()).expect(0);
    Run::from(publish.output().unwrap()).expect_error(1, "somebody else published");
    assert_eq!(
        (scene.server.published(), scene.server.count(OBJECT)),
        (published, uploads)
    );
}

#[test]
fn what_devices_would_refuse_is_not_uploaded() {
    let scene = Scene::new();
    scene.big_release();
    let payload = scene.shop.payload("1.0.0");
    let good = fs::read(&payload).unwrap();
    fs::write(&payload, &good[1..]).unwrap();
    scene.publish(&[]).expect_error(1, "main.img.zst");
    assert_eq!((scene.server.count("PUT"), scene.server.count("POST")), (0, 0));
    fs::write(&payload, good).unwrap();
    scene.publish(&[]).expect(0);
}

#[test]
fn the_token_goes_nowhere_unprotected() {
    let scene = Scene::new();
    let publish = |url: &str, more: &[&str]| -> Run {
        let mut command = command();
        command
            .arg("publish")
            .arg(scene.shop.repo())
            .args(["--server", url, "--token-file"])
            .arg(&scene.token);
        // A proxy is another machine: it must not be asked for what is on this one.
        command
            .env("http_proxy", "http://127.0.0.1:9/")
            .args(more)
            .output()
            .unwrap()
            .into()
    };
    publish("http://updates.example", &[]).expect_error(2, "--allow-plain-http");
    publish("http://10.0.0.1:8080/x", &[]).expect_error(2, "--allow-plain-http");
    publish("ftp://updates.example", &[]).expect_error(2, "not an http or https URL");
    let refused = publish("https://me:hunter2@updates.example", &[]).expect_error(2, "--token-file");
    assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    publish("nonsense", &[]).expect_error(2, "is not a URL");
    publish(&scene.server.url(), &[]).expect(0);
    // Allowed is what was asked for: here it fails for want of such a machine, not by the rule.
    publish("http://updates.invalid:1", &["--allow-plain-http", "--dry-run"]).expect_error(3, "no answer");

    let wrong = scene.shop.file("wrong", b"guess\n");
    let mut command = command();
    command
        .arg("publish")
        .arg(scene.shop.repo())
        .args(["--server", &scene.server.url(), "--token-file"])
        .arg(&wrong);
    let run = Run::from(command.output().unwrap()).expect_error(3, "does not accept the token of");
    assert!(!run.stderr.contains("guess"));
    fs::write(&wrong, "").unwrap();
    Run::from(command.output().unwrap()).expect_error(3, "its first line is not a token");
    fs::remove_file(&wrong).unwrap();
    Run::from(command.output().unwrap()).expect_error(3, "token file");
}

#[test]
fn nobody_there_and_bad_authorities_are_errors_of_the_environment() {
    let scene = Scene::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    let publish = |url: &str, more: &[&str]| -> Run {
        let mut command = command();
        command
            .arg("publish")
            .arg(scene.shop.repo())
            .args(["--server", url, "--token-file"])
            .arg(&scene.token);
        command.args(more).output().unwrap().into()
    };
    publish(&nobody, &[]).expect_error(3, "no answer");
    publish(&nobody, &["--ca-file", "/nonexistent"]).expect_error(3, "/nonexistent");
    let empty = scene.shop.file("ca.pem", b"nothing");
    publish(&nobody, &["--ca-file", text(&empty)]).expect_error(3, "no certificate");
}
