//! What is fuzzed: one function a target, each of which states what must hold of any input. `cargo fuzz` runs them for
//! long, `tests/fuzz.rs` of fwmeta runs the same functions over the seeds and mutations of them.
//!
//! ```text
//! cargo +nightly fuzz run trusted corpus/trusted seeds/trusted -- -max_total_time=600
//! ```

use ed25519_dalek::{Signer as _, SigningKey};
use fwmeta::json::{Doc, Value, object};
use fwmeta::key::{PublicKey, SignError, Signer};
use fwmeta::manifest::{FwCustom, Manifest};
use fwmeta::role::{Metadata, RoleName, Root, Snapshot, Targets, Timestamp};
use fwmeta::signed::{self, Envelope};
use fwmeta::statement::{self, Link};
use fwmeta::time::UtcSeconds;
use fwmeta::trusted::{Origin, TrustError, TrustedSet};
use fwmeta::{canonical, delegation};

/// JSON that is accepted and has a canonical form keeps its meaning when written.
pub fn json(data: &[u8]) {
    let Ok(doc) = Doc::parse(data) else { return };
    let Ok(value) = doc.root().to_value() else { return };
    let message = canonical::encode_node(doc.root()).expect("integers only");
    assert_eq!(*message, canonical::encode(&value), "both encoders agree");
    for text in [value.to_json(), value.to_json_pretty()] {
        let again = Doc::parse(text.as_bytes()).expect("what we write we read");
        assert_eq!(again.root().to_value().as_ref(), Ok(&value));
    }
}

/// Metadata of any role that are accepted mean the same when written and read again.
pub fn metadata(data: &[u8]) {
    if let Ok(envelope) = Envelope::parse(data) {
        let ids: Vec<_> = envelope.signatures().iter().map(|signature| &signature.keyid).collect();
        assert!((1..ids.len()).all(|at| !ids[..at].contains(&ids[at])), "a key id twice");
    }
    round_trip::<Root>(data);
    round_trip::<Timestamp>(data);
    round_trip::<Snapshot>(data);
    round_trip::<Targets>(data);
}

fn round_trip<M: Metadata>(data: &[u8]) {
    let Ok(metadata) = M::parse(data) else { return };
    assert!(metadata.version() >= 1);
    let value = metadata.to_value();
    let written = signed::sign(&value, &[]).expect("nobody signs");
    let again = M::parse(&written).expect("what we write we read");
    assert_eq!(again.to_value(), value);
}

/// A manifest that is accepted is within bounds and means the same when written.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else { return };
    manifest.validate().expect("accepted, so valid");
    manifest
        .check_summary(&manifest.summary(None))
        .expect("its own summary");
    let again = Manifest::parse(manifest.to_value().to_json().as_bytes());
    assert_eq!(again.as_ref(), Ok(&manifest));
}

/// `custom` of a target, likewise.
pub fn custom(data: &[u8]) {
    let Ok(doc) = Doc::parse(data) else { return };
    let Ok(value) = doc.root().to_value() else { return };
    let Ok(Some(fw)) = FwCustom::from_custom(&value) else {
        return;
    };
    let again = FwCustom::from_custom(&object([("fw", fw.to_value())]));
    assert_eq!(again, Ok(Some(fw)));
}

/// A pattern and a path, one a line: the matcher agrees with a plain recursive one.
pub fn glob(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, path) = text.split_once('\n').unwrap_or((text, ""));
    let found = delegation::matches_path(pattern, path);
    // The plain one takes exponential time.
    if pattern.len() <= 14 && path.len() <= 14 {
        let (pattern, path): (Vec<_>, Vec<_>) = (pattern.chars().collect(), path.chars().collect());
        assert_eq!(found, plain_match(&pattern, &path), "{text:?}");
    }
}

fn plain_match(pattern: &[char], path: &[char]) -> bool {
    let rest = |from: usize| plain_match(&pattern[from..], path.get(1..).unwrap_or_default());
    match (pattern.first(), path.first()) {
        (None, end) => end.is_none(),
        (Some('*'), _) => {
            plain_match(&pattern[1..], path)
                || path.first().is_some_and(|next| *next != '/') && plain_match(pattern, &path[1..])
        }
        (Some(_), None) => false,
        (Some('?'), Some(next)) => *next != '/' && rest(1),
        (Some('['), Some(next)) => {
            // A set does not reach beyond its part.
            let part = pattern.iter().position(|other| *other == '/').unwrap_or(pattern.len());
            let first = if pattern.get(1) == Some(&'!') { 2 } else { 1 };
            let close = (first + 1..part).find(|at| pattern[*at] == ']');
            match close {
                Some(close) => *next != '/' && in_set(&pattern[first..close], *next) == (first == 1) && rest(close + 1),
                None => *next == '[' && rest(1),
            }
        }
        (Some(literal), Some(next)) => literal == next && rest(1),
    }
}

fn in_set(set: &[char], next: char) -> bool {
    match set {
        [low, '-', high, rest @ ..] => (*low <= next && next <= *high) || in_set(rest, next),
        [one, rest @ ..] => *one == next || in_set(rest, next),
        [] => false,
    }
}

/// A statement that is accepted means the same when written, and only its own device's signature makes it one.
pub fn statement(data: &[u8]) {
    let key = statement_key();
    let device = statement::device_of(data);
    if let Ok(verified) = statement::verify(data, &key.1) {
        assert_eq!(device, Ok(verified.statement.device.clone()));
        let (bytes, _) = verified.statement.sign(&key).expect("the key signs");
        let again = statement::verify(&bytes, &key.1).expect("what we write we read");
        assert_eq!(again.statement, verified.statement);
    }
    // The same beyond the signature, which no mutation gets past.
    let Ok(envelope) = Envelope::parse(data) else { return };
    let Ok(value) = envelope.signed().to_value() else {
        return;
    };
    let signed = signed::sign(&value, &[&key]).expect("the key signs");
    if let Ok(verified) = statement::verify(&signed, &key.1) {
        let (bytes, _) = verified.statement.sign(&key).expect("the key signs");
        let again = statement::verify(&bytes, &key.1).expect("what we write we read");
        assert_eq!(again.statement, verified.statement);
        assert_eq!(again.follows(&again), Link::Repeated);
    }
}

/// The key of the device in the seeds.
fn statement_key() -> Key {
    let key = SigningKey::from_bytes(&[3; 32]);
    let public = PublicKey::ed25519(key.verifying_key().to_bytes());
    Key(key, public)
}

/// A time that is accepted is the same when written.
pub fn time(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(time) = UtcSeconds::parse(text) else { return };
    assert_eq!(UtcSeconds::parse(&time.to_string()), Ok(time));
    assert_eq!(&time.to_string()[..19], &text[..19]);
}

struct Key(SigningKey, PublicKey);

impl Signer for Key {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

/// The one key of the fuzzed repository; its id stands in the seeds.
fn key() -> Key {
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = PublicKey::ed25519(key.verifying_key().to_bytes());
    Key(key, public)
}

const NOW: UtcSeconds = UtcSeconds(1_893_456_000);

/// A trusted set fed one piece a line, `STEP JSON`: the `signed` object, which is signed here so that changed metadata get
/// past the signature check; `raw STEP BYTES` feeds bytes as they are. Nothing that is trusted ever goes back, and what
/// is refused changes nothing.
pub fn trusted(data: &[u8]) {
    trusted_state(data);
}

/// What [`trusted`] ends with: the versions of root, timestamp, snapshot and three targets roles; 0 for nothing.
pub fn trusted_state(data: &[u8]) -> Option<[u64; 6]> {
    let key = key();
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().and_then(|line| piece(line, &key))?;
    let mut set = TrustedSet::new(&first.1, NOW).ok()?;
    for line in lines {
        let Some((step, bytes)) = piece(line, &key) else {
            continue;
        };
        let before = state(&set);
        let result = take(&mut set, step, &bytes);
        let after = state(&set);
        if result.is_err() {
            assert_eq!(before, after, "refused, but something changed");
        }
        assert!(
            before.iter().zip(&after).all(|(before, after)| before <= after),
            "something went back"
        );
    }
    Some(state(&set))
}

/// The name of the step of a line, and the bytes to take.
fn piece<'a>(line: &'a [u8], key: &Key) -> Option<(&'a str, Vec<u8>)> {
    let text = std::str::from_utf8(line).ok()?;
    let (step, body) = text.split_once(' ').unwrap_or((text, ""));
    if step == "raw" {
        let (step, body) = body.split_once(' ')?;
        return Some((step, body.as_bytes().to_vec()));
    }
    let value = Doc::parse(body.as_bytes())
        .ok()
        .and_then(|doc| doc.root().to_value().ok());
    let signed = signed::sign(&value.unwrap_or(Value::Null), &[key]).expect("the key signs");
    Some((step, signed))
}

fn take(set: &mut TrustedSet, step: &str, bytes: &[u8]) -> Result<(), TrustError> {
    match step {
        "root" => set.update_root(bytes).map(drop),
        "finish" => set.finish_root(),
        "timestamp" => set.update_timestamp(bytes, Origin::Remote).map(drop),
        "local-timestamp" => set.update_timestamp(bytes, Origin::Local).map(drop),
        "snapshot" => set.update_snapshot(bytes, Origin::Remote).map(drop),
        "local-snapshot" => set.update_snapshot(bytes, Origin::Local).map(drop),
        "targets" => set.update_targets(bytes),
        other => match (RoleName::parse(other), other.split_once('/')) {
            (Ok(role), None) => set.update_delegated(bytes, &role, &RoleName::targets()),
            (Ok(role), Some((parent, _))) => match RoleName::parse(parent) {
                Ok(parent) => set.update_delegated(bytes, &role, &parent),
                Err(_) => Ok(()),
            },
            (Err(_), _) => Ok(()),
        },
    }
}

fn state(set: &TrustedSet) -> [u64; 6] {
    let targets = |name: &str| {
        let role = RoleName::parse(name).ok()?;
        set.targets(&role).map(Metadata::version)
    };
    [
        set.root().version(),
        set.timestamp().map_or(0, Metadata::version),
        set.snapshot().map_or(0, Metadata::version),
        targets("targets").unwrap_or(0),
        targets("d").unwrap_or(0),
        targets("d/e").unwrap_or(0),
    ]
}
