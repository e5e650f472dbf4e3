//! Keys: made, read, protected, and exchanged with OpenSSL.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;
#[path = "../../tests/src/tools.rs"]
mod tools;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::{Run, Workshop, command, fwsign, text};

fn openssl(args: &[&str]) -> Run {
    Command::new("openssl")
        .args(args)
        .output()
        .expect("openssl is installed")
        .into()
}

fn keygen(path: &Path, passphrase: &str) -> Run {
    command()
        .env("FWSIGN_PASSPHRASE", passphrase)
        .arg("keygen")
        .arg(path)
        .output()
        .unwrap()
        .into()
}

/// `fwsign refresh` with another timestamp key than the repository's tells whether a key file could be opened: then it
/// counts for nothing, and the command says so by exit code 2.
fn open(shop: &Workshop, key: &Path, passphrase: Option<&str>) -> Run {
    let mut command = command();
    command.arg("refresh").arg(shop.repo()).arg("--key").arg(key);
    if let Some(passphrase) = passphrase {
        command.env("FWSIGN_PASSPHRASE", passphrase);
    }
    command.output().unwrap().into()
}

#[test]
fn keygen_writes_an_encrypted_private_key_for_its_owner_and_a_public_one_for_all() {
    let shop = Workshop::empty();
    let file = shop.path("root.pem");
    let run = keygen(&file, "correct horse").expect(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&shop.path("root.pub.pem"))), (0o600, 0o644));
    let private = fs::read_to_string(&file).unwrap();
    assert!(private.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert_eq!(run.stdout.lines().next().unwrap().len(), 64);
    assert!(!run.stdout.contains("correct horse") && !run.stderr.contains("correct horse"));
}

#[test]
fn keygen_never_overwrites_and_never_writes_half_a_pair() {
    let shop = Workshop::empty();
    let file = shop.path("key.pem");
    keygen(&file, "one").expect(0);
    let before = (fs::read(&file).unwrap(), fs::read(shop.path("key.pub.pem")).unwrap());
    keygen(&file, "two").expect_error(2, "keys are never overwritten");
    assert_eq!(
        before,
        (fs::read(&file).unwrap(), fs::read(shop.path("key.pub.pem")).unwrap())
    );
    // The public half alone is in the way too, and so is a dangling link.
    let file = shop.path("other.pem");
    shop.file("other.pub.pem", b"somebody else's");
    keygen(&file, "x").expect_error(2, "other.pub.pem exists");
    assert!(!file.exists());
    std::os::unix::fs::symlink("/nonexistent", shop.path("link.pem")).unwrap();
    keygen(&shop.path("link.pem"), "x").expect_error(2, "never overwritten");
    keygen(&shop.path("no/such/dir/key.pem"), "x").expect_error(3, "writing");
}

#[test]
fn keygen_wants_a_passphrase_or_an_explicit_no() {
    let shop = Workshop::empty();
    let file = shop.path("key.pem");
    fwsign(["keygen", text(&file)]).expect_error(2, "no passphrase");
    keygen(&file, "").expect_error(3, "the passphrase is empty");
    let secret = shop.file("secret", b"");
    fwsign(["keygen", text(&file), "--passphrase-file", text(&secret)]).expect_error(3, "the passphrase is empty");
    let secret = shop.file("secret", &[b'a'; 5000]);
    fwsign(["keygen", text(&file), "--passphrase-file", text(&secret)]).expect_error(3, "4096");
    fwsign([
        "keygen",
        text(&file),
        "--passphrase-file",
        text(&secret),
        "--unencrypted",
    ])
    .expect(2);
    fwsign(["keygen", text(&file), "--passphrase-file", "/nonexistent"]).expect_error(3, "/nonexistent");
    assert!(!file.exists() && !shop.path("key.pub.pem").exists());
    fwsign(["keygen", text(&file), "--unencrypted"]).expect(0);
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
}

#[test]
fn a_passphrase_comes_from_a_file_a_descriptor_or_the_environment() {
    let shop = Workshop::new();
    let keys = shop.path("keys");
    fs::create_dir(&keys).unwrap();
    for name in ["a.pem", "b.pem"] {
        keygen(&keys.join(name), "correct horse").expect(0);
    }
    let secret = shop.file("secret", b"correct horse\r\nsecond line\n");
    let refresh = ["refresh", text(&shop.repo()), "--keys-dir", text(&keys)].map(str::to_owned);
    let opened = "metadata need 1 signatures and the keys given make 0";
    fwsign(
        refresh
            .iter()
            .cloned()
            .chain(["--passphrase-file".to_owned(), text(&secret).to_owned()]),
    )
    .expect_error(2, opened);
    // A pipe can be read once, and there are two keys.
    let script = format!(
        "printf 'correct horse\\n' | {} {} --passphrase-fd 0",
        env!("CARGO_BIN_EXE_fwsign"),
        refresh.join(" ")
    );
    Run::from(Command::new("sh").arg("-c").arg(script).output().unwrap()).expect_error(2, opened);
    let run: Run = command()
        .env("FWSIGN_PASSPHRASE", "correct horse")
        .args(&refresh)
        .output()
        .unwrap()
        .into();
    run.expect_error(2, opened);
    let run: Run = command()
        .env("FWSIGN_PASSPHRASE", "wrong")
        .args(&refresh)
        .output()
        .unwrap()
        .into();
    run.expect_error(3, "does not decrypt");
    fwsign(&refresh).expect_error(3, "is encrypted and no passphrase was given");
}

#[test]
fn openssl_reads_our_keys_and_verifies_what_it_signs_with_them() {
    if tools::program("openssl").is_none() {
        return;
    }
    let shop = Workshop::empty();
    let (plain, encrypted) = (shop.path("plain.pem"), shop.path("enc.pem"));
    fwsign(["keygen", "--unencrypted", text(&plain)]).expect(0);
    keygen(&encrypted, "correct horse").expect(0);
    let message = shop.file("message", b"a message");
    for (key, passin) in [(&plain, "pass:"), (&encrypted, "pass:correct horse")] {
        let public = key.with_extension("pub.pem");
        let shown = openssl(&["pkey", "-in", text(key), "-passin", passin, "-pubout"])
            .expect(0)
            .stdout;
        assert_eq!(
            shown,
            fs::read_to_string(&public).unwrap(),
            "the public half is the one that we wrote"
        );
        let signature = shop.path("signature");
        let sign = [
            "pkeyutl",
            "-sign",
            "-rawin",
            "-in",
            text(&message),
            "-inkey",
            text(key),
            "-passin",
            passin,
        ];
        openssl(&[&sign[..], &["-out", text(&signature)]].concat()).expect(0);
        let verify = [
            "pkeyutl",
            "-verify",
            "-rawin",
            "-pubin",
            "-inkey",
            text(&public),
            "-sigfile",
            text(&signature),
        ];
        openssl(&[&verify[..], &["-in", text(&message)]].concat()).expect(0);
        let other = shop.file("other", b"b message");
        openssl(&[&verify[..], &["-in", text(&other)]].concat()).expect(1);
    }
    openssl(&["pkey", "-in", text(&encrypted), "-passin", "pass:wrong", "-noout"]).expect(1);
}

#[test]
fn openssl_verifies_our_signatures() {
    if tools::program("openssl").is_none() {
        return;
    }
    let shop = Workshop::new();
    let metadata: serde_json::Value =
        serde_json::from_slice(&fs::read(shop.metadata("timestamp.json")).unwrap()).unwrap();
    let envelope = fs::read(shop.metadata("timestamp.json")).unwrap();
    let envelope = fwmeta::signed::Envelope::parse(&envelope).unwrap();
    let message = shop.file("message", &envelope.message().unwrap());
    let hex = metadata["signatures"][0]["sig"].as_str().unwrap();
    let signature = shop.file("signature", &fwmeta::hex::decode(hex).unwrap());
    let public = shop.key("ts").with_extension("pub.pem");
    let verify = [
        "pkeyutl",
        "-verify",
        "-rawin",
        "-pubin",
        "-inkey",
        text(&public),
        "-sigfile",
        text(&signature),
    ];
    openssl(&[&verify[..], &["-in", text(&message)]].concat()).expect(0);
}

#[test]
fn we_read_keys_of_openssl_and_warn_of_weak_derivation() {
    if tools::program("openssl").is_none() {
        return;
    }
    let shop = Workshop::empty();
    let (plain, encrypted) = (shop.path("plain.pem"), shop.path("enc.pem"));
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", text(&plain)]).expect(0);
    let aes = ["-aes256", "-pass", "pass:correct horse"];
    openssl(
        &[
            &["genpkey", "-algorithm", "ed25519", "-out", text(&encrypted)],
            &aes[..],
        ]
        .concat(),
    )
    .expect(0);
    let mut command = command();
    command
        .arg("init")
        .arg(shop.repo())
        .env("FWSIGN_PASSPHRASE", "correct horse");
    for (option, key) in [
        ("--root-key", &plain),
        ("--root-key", &encrypted),
        ("--targets-key", &plain),
        ("--snapshot-key", &plain),
        ("--timestamp-key", &encrypted),
    ] {
        command.arg(option).arg(key);
    }
    let run: Run = command.output().unwrap().into();
    let run = run.expect(0);
    assert!(run.stderr.contains("2048 rounds of PBKDF2"), "{}", run.stderr);
    assert!(!run.stderr.contains("plain.pem"));
    fwsign(["verify", text(&shop.repo())]).expect(0);
}

#[test]
fn keys_that_are_none_or_others_are_refused() {
    let shop = Workshop::new();
    open(&shop, &shop.key("stranger"), None).expect_error(2, "give private keys of");
    let key = shop.path("key.pem");
    for (algorithm, options) in [("rsa", "rsa_keygen_bits:2048"), ("EC", "ec_paramgen_curve:P-256")] {
        openssl(&[
            "genpkey",
            "-algorithm",
            algorithm,
            "-pkeyopt",
            options,
            "-out",
            text(&key),
        ])
        .expect(0);
        open(&shop, &key, None).expect_error(3, "not ed25519");
    }
    for bytes in [
        &b""[..],
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        &[0xff; 100],
        &[b'a'; 1 << 20],
    ] {
        fs::write(&key, bytes).unwrap();
        open(&shop, &key, None).expect_error(3, "not a PKCS#8 private key");
    }
    open(&shop, &shop.path("none.pem"), None).expect_error(3, "none.pem");
    open(&shop, &shop.repo(), None).expect(3);
    keygen(&shop.path("enc.pem"), "right").expect(0);
    open(&shop, &shop.path("enc.pem"), Some("wrong")).expect_error(3, "does not decrypt");
}

#[test]
fn a_key_file_cannot_ask_for_endless_work() {
    use base64::Engine;
    let shop = Workshop::new();
    let key = shop.path("key.pem");
    keygen(&key, "x").expect(0);
    // Positive control: with its own number of rounds it is read, without a warning.
    let run = open(&shop, &key, Some("x")).expect_error(2, "give private keys of");
    assert!(!run.stderr.contains("rounds"), "{}", run.stderr);
    let base64 = base64::engine::general_purpose::STANDARD;
    let pem = fs::read_to_string(&key).unwrap();
    let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = base64.decode(lines).unwrap();
    let rounds = [0x02, 0x03, 0x09, 0x27, 0xc0];
    let at = der
        .windows(5)
        .position(|window| window == rounds)
        .expect("600,000 rounds, as documented");
    der[at + 2..at + 5].copy_from_slice(&[0x7f, 0xff, 0xff]);
    let label = "ENCRYPTED PRIVATE KEY";
    let lines: Vec<_> = base64
        .encode(der)
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    fs::write(
        &key,
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")),
    )
    .unwrap();
    open(&shop, &key, Some("x")).expect_error(3, "8388607 rounds");
}

#[test]
fn a_directory_of_keys_gives_those_that_are_keys() {
    let shop = Workshop::new();
    let dir = shop.path("keys");
    fs::create_dir(&dir).unwrap();
    for name in ["s", "ts"] {
        fs::copy(shop.key(name), dir.join(format!("{name}.pem"))).unwrap();
        fs::copy(
            shop.key(name).with_extension("pub.pem"),
            dir.join(format!("{name}.pub.pem")),
        )
        .unwrap();
    }
    fs::write(
        dir.join("certificate.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    fs::write(dir.join("notes.txt"), "not looked at").unwrap();
    fs::create_dir(dir.join("directory.pem")).unwrap();
    fwsign(["refresh", text(&shop.repo()), "--keys-dir", text(&dir)]).expect(0);
    fwsign(["refresh", text(&shop.repo()), "--keys-dir", "/nonexistent"]).expect_error(3, "/nonexistent");
}

#[test]
fn example_keys_sign_only_with_the_flag_and_are_not_published_without_it() {
    let shop = Workshop::empty();
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keys-example");
    let init = |more: &[&str]| -> Run {
        let mut command = command();
        command.arg("init").arg(shop.repo());
        for (option, key) in [
            ("--root-key", "root/root-1.pem"),
            ("--root-key", "root/root-2.pem"),
            ("--targets-key", "targets/targets.pem"),
            ("--snapshot-key", "snapshot/snapshot.pem"),
            ("--timestamp-key", "timestamp/timestamp.pem"),
        ] {
            command.arg(option).arg(keys.join(key));
        }
        command
            .arg("--product")
            .arg(format!("router={}", keys.join("product/product.pem").display()));
        command.args(more).output().unwrap().into()
    };
    init(&[]).expect_error(1, "example key");
    assert!(!shop.repo().exists());
    init(&["--allow-example-keys"]).expect(0);
    let repo = shop.repo();
    let refresh = |more: &[&str]| {
        let online = [keys.join("snapshot/snapshot.pem"), keys.join("timestamp/timestamp.pem")];
        let args = [
            "refresh",
            text(&repo),
            "--key",
            text(&online[0]),
            "--key",
            text(&online[1]),
        ];
        fwsign(args.iter().chain(more))
    };
    refresh(&[]).expect_error(1, "--allow-example-keys");
    refresh(&["--allow-example-keys"]).expect(0);
    let public = shop.path("public");
    shop.publish_to(&public, &[]).expect_error(1, "trusts example key");
    assert!(!public.exists());
    shop.publish_to(&public, &["--allow-example-keys"]).expect(0);
}
