//! All three programs over TLS: an authority of one's own, and what happens with a stranger's.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use fwtests::tools::program;
use fwtests::world::{Slots, World};

/// An authority `NAME.pem` and a certificate `NAME-server.pem`, `.key` that it made out to the loopback address.
fn authority(openssl: &Path, dir: &Path, name: &str) {
    let run = |arguments: &[&str]| {
        let output = Command::new(openssl).args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let file = |suffix: &str| format!("{name}{suffix}");
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let subject = format!("/CN={name}");
    let mut arguments = vec!["req", "-x509", "-days", "30", "-subj", &subject];
    arguments.extend(curve);
    let (key, certificate) = (file(".key"), file(".pem"));
    arguments.extend(["-keyout", &key, "-out", &certificate]);
    run(&arguments);
    let (server_key, request, server) = (file("-server.key"), file(".csr"), file("-server.pem"));
    let mut arguments = vec!["req", "-subj", "/CN=localhost"];
    arguments.extend(curve);
    arguments.extend(["-keyout", &server_key, "-out", &request]);
    run(&arguments);
    fs::write(
        dir.join("names"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n",
    )
    .unwrap();
    run(&[
        "x509",
        "-req",
        "-days",
        "30",
        "-in",
        &request,
        "-CA",
        &certificate,
        "-CAkey",
        &key,
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        &server,
    ]);
}

#[test]
fn only_the_configured_authority_is_believed() {
    let Some(openssl) = program("openssl") else { return };
    let dir = tempfile::tempdir().unwrap();
    authority(&openssl, dir.path(), "ours");
    authority(&openssl, dir.path(), "theirs");
    let mut world = World::new(dir.path()).unwrap();
    world.found_vendor().unwrap();
    let image = world.path("image");
    fs::write(&image, b"an image").unwrap();
    world.release("1.0.0", &image, &[]).unwrap();
    world.use_tls("ours-server.pem", "ours-server.key");
    world.serve("published").unwrap();
    assert!(world.url().starts_with("https://"));

    let publish = |ca: &str| {
        let url = world.url();
        let arguments = [
            "publish",
            "repo",
            "--server",
            &url,
            "--token-file",
            "token",
            "--ca-file",
            ca,
        ];
        world.fwsign(&arguments).unwrap()
    };
    let refused = publish("theirs.pem");
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(!world.path("published/metadata/timestamp.json").exists());
    assert_eq!(publish("ours.pem").code, 0);

    let provision = ["provision", "--root", "repo/metadata/1.root.json", "--from-server"];
    for (ca, code) in [("theirs.pem", 3), ("ours.pem", 0)] {
        world.configure(Slots::Files, "").unwrap();
        let text = fs::read_to_string(world.path("device.toml")).unwrap();
        let text = text.replace("[state]", &format!("ca_file = \"{ca}\"\n\n[state]"));
        fs::write(world.path("device.toml"), text).unwrap();
        let ran = world.fwagent(&provision).unwrap();
        assert_eq!(ran.code, code, "{ca}: {}{}", ran.out, ran.err);
        assert_eq!(world.path("device/slot-a.img").exists(), code == 0);
    }
    assert_eq!(fs::read(world.path("device/slot-a.img")).unwrap(), b"an image");
}
