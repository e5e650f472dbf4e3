#![allow(clippy::unwrap_used)]
use ed25519_dalek::{Signer as _, SigningKey};

use super::*;

struct Key(SigningKey, PublicKey);

impl Signer for Key {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

fn key(seed: u8) -> Key {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let public = PublicKey::ed25519(key.verifying_key().to_bytes());
    Key(key, public)
}

fn release() -> Release {
    Release {
        manifest_sha256: [1; 32],
        version: "1.2.0".to_owned(),
        sequence: 7,
        components: vec![("main".to_owned(), [2; 32])],
    }
}

fn statement(sequence: u64, previous: Option<[u8; 32]>) -> Statement {
    Statement {
        device: key(3).1.id(),
        position: Position {
            chain: "00112233445566778899aabbccddeeff".to_owned(),
            sequence,
            previous,
        },
        clock: UtcSeconds(1_800_000_000),
        clock_believed: true,
        product: "router".to_owned(),
        hardware: "rev-b".to_owned(),
        channel: "stable".to_owned(),
        boots: 5,
        event: Event {
            result: "fell-back".to_owned(),
            outcome: 2,
            at: UtcSeconds(1_799_999_990),
            subject: Some(Placed {
                slot: "b".to_owned(),
                release: Some(release()),
            }),
            reason: "health check \"own\" ended with 7".to_owned(),
            log: "the radio is silent\n".to_owned(),
        },
        active: Some(Placed {
            slot: "a".to_owned(),
            release: None,
        }),
        settings_generation: Some(3),
        floors: vec![Floor {
            component: "main".to_owned(),
            channel: "stable".to_owned(),
            sequence: 6,
            security: 2,
        }],
        time_floor: UtcSeconds(1_799_000_000),
        metadata: [1, 9, 8],
        refusals: 0,
        last_refusal: String::new(),
        dropped: 0,
        unwanted: 0,
    }
}

#[test]
fn a_signed_statement_is_read_as_it_was_said() {
    for statement in [
        statement(1, None),
        Statement {
            active: None,
            settings_generation: None,
            floors: Vec::new(),
            ..statement(2, Some([9; 32]))
        },
    ] {
        let (bytes, digest) = statement.sign(&key(3)).unwrap();
        assert_eq!(device_of(&bytes), Ok(statement.device.clone()));
        let verified = verify(&bytes, &key(3).1).unwrap();
        assert_eq!(verified, Verified { statement, digest });
    }
}

/// Frozen: a device in the field signs these bytes. They were made by Python and OpenSSL, not by this code.
#[test]
fn the_form_does_not_change() {
    let (bytes, digest) = statement(2, Some([9; 32])).sign(&key(3)).unwrap();
    let vector = include_bytes!("../../fuzz/seeds/statement/signed");
    assert_eq!(
        String::from_utf8_lossy(&bytes),
        String::from_utf8_lossy(vector).trim_end()
    );
    assert_eq!(
        hex::encode(&digest),
        "ae78779f50497ffa3d51d605bfbb1909d7ecd2d298ec2885322fa0497626d79c"
    );
}

#[test]
fn only_the_device_itself_speaks_for_it() {
    let good = statement(1, None);
    let (bytes, _) = good.sign(&key(3)).unwrap();
    verify(&bytes, &key(3).1).unwrap();
    assert!(matches!(
        verify(&bytes, &key(4).1),
        Err(StatementError::OtherDevice { .. })
    ));
    // Signed by another, under that other's name.
    let (forged, _) = good.sign(&key(4)).unwrap();
    for signer in [3, 4] {
        let refused = verify(&forged, &key(signer).1);
        assert!(matches!(refused, Err(StatementError::Signer { .. })), "{refused:?}");
    }
    // Under the device's name.
    let text = String::from_utf8(forged).unwrap();
    let renamed = text.replace(key(4).1.id().as_str(), key(3).1.id().as_str());
    let refused = verify(renamed.as_bytes(), &key(3).1);
    assert!(matches!(refused, Err(StatementError::Signature { .. })), "{refused:?}");
    let both = signed::add_signature(&bytes, &key(4)).unwrap();
    assert!(matches!(verify(&both, &key(3).1), Err(StatementError::Signer { .. })));
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in [
        ("fell-back", "confirmed"),
        ("\"boots\":5", "\"boots\":6"),
        ("\"sequence\":7", "\"sequence\":8"),
        ("radio is silent", "radio is  silent"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        let refused = verify(changed.as_bytes(), &key(3).1);
        assert!(matches!(refused, Err(StatementError::Signature { .. })), "{from}");
    }
}

#[test]
fn fields_have_their_types_and_bounds() {
    let good = statement(1, None);
    let with = |name: &str, value: Value| {
        let Value::Object(mut entries) = good.to_value() else {
            unreachable!()
        };
        entries.insert(name.to_owned(), value);
        let bytes = signed::sign(&Value::Object(entries), &[&key(3)]).unwrap();
        verify(&bytes, &key(3).1).map(drop)
    };
    // Unknown fields are covered by the signature and otherwise passed over.
    with("tomorrow", 1_u64.into()).unwrap();
    for (name, value) in [
        ("_type", "timestamp".into()),
        ("spec", 2_u64.into()),
        ("sequence", 0_u64.into()),
        ("sequence", 2_u64.into()),
        ("previous", hex::encode(&[1; 32]).into()),
        ("chain", "0011".into()),
        ("chain", "zz112233445566778899aabbccddeeff".into()),
        ("clock", "yesterday".into()),
        ("clock_believed", 1_u64.into()),
        ("product", "p".repeat(limits::NAME_BYTES + 1).into()),
        ("last_refusal", "r".repeat(limits::STATEMENT_TEXT_BYTES + 1).into()),
        ("floors", Value::Null),
        ("floors", vec![Value::Null; limits::STATEMENT_FLOORS + 1].into()),
        ("event", Value::Null),
        ("active", object([("slot", "a".into())])),
        ("boots", "5".into()),
    ] {
        let refused = with(name, value);
        assert!(
            matches!(refused, Err(StatementError::Field { .. } | StatementError::Type { .. })),
            "{name} {refused:?}"
        );
    }
    let long = vec![b' '; limits::STATEMENT_BYTES as usize + 1];
    assert_eq!(verify(&long, &key(3).1), Err(StatementError::TooLong));
    assert!(matches!(verify(b"{}", &key(3).1), Err(StatementError::Envelope(_))));
}

#[test]
fn chains_are_followed() {
    let made = |statement: Statement| {
        let (bytes, _) = statement.sign(&key(3)).unwrap();
        verify(&bytes, &key(3).1).unwrap()
    };
    let first = made(statement(1, None));
    let second = made(statement(2, Some(first.digest)));
    assert_eq!(second.follows(&first), Link::Next);
    assert_eq!(second.follows(&second), Link::Repeated);
    assert_eq!(first.follows(&second), Link::Apart);
    assert_eq!(made(statement(4, Some([1; 32]))).follows(&second), Link::Apart);
    assert_eq!(made(statement(3, Some([1; 32]))).follows(&second), Link::Broken);
    let mut other = statement(2, Some(first.digest));
    other.boots = 6;
    assert_eq!(made(other.clone()).follows(&second), Link::Broken);
    other.position = Position {
        chain: "f".repeat(32),
        sequence: 1,
        previous: None,
    };
    assert_eq!(made(other).follows(&second), Link::NewChain);
}
