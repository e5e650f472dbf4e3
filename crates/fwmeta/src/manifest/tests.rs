#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::hex;

fn sample() -> Manifest {
    let path = |text: &str| TargetPath::parse(text).unwrap();
    Manifest {
        vendor: "Example KK".to_owned(),
        product: "router".to_owned(),
        version: SemVer::parse("1.2.0-rc.1+b7").unwrap(),
        sequence: 7,
        security_floor: 5,
        hardware: vec!["rev-b".to_owned(), "rev-c".to_owned()],
        channel: "stable".to_owned(),
        kind: Kind::Security,
        requires: Some(SemVer::parse("1.0.0").unwrap()),
        components: vec![Component {
            name: "rootfs".to_owned(),
            slot_class: "system".to_owned(),
            kind: ImageKind::Raw,
            communication_function: true,
            image: Image {
                size: 12,
                sha256: [1; 32],
                sha512: [2; 64],
            },
            payload: Payload {
                target: path("router/1.2.0/rootfs.img.zst"),
                encoding: Encoding::Zstd,
            },
            patches: vec![Patch {
                from: [3; 32],
                target: path("router/1.2.0/rootfs.from-1.1.0"),
            }],
            verity_root: Some([4; 32]),
        }],
        settings: Some(Settings {
            schema: 2,
            migrations: vec![Migration {
                from: 1,
                to: 2,
                target: path("router/1.2.0/m"),
                reversible: true,
            }],
        }),
        advisory: Some(Advisory {
            text: "Fixes…".to_owned(),
            cves: vec!["CVE-2026-1".to_owned()],
            severity: Some("high".to_owned()),
        }),
        notes: Some("line 1\nline 2".to_owned()),
        support_end: Some("2031-12-31".to_owned()),
        sbom: Some(path("router/1.2.0/sbom.json")),
        provenance: None,
        design_conformity: Some(DesignConformity {
            items: vec![3],
            partial_change: false,
            decided_by: "QA".to_owned(),
            date: "2026-11-24".to_owned(),
        }),
        extensions: BTreeMap::from([("ci".to_owned(), Value::from("run 17"))]),
    }
}

fn minimal() -> Value {
    let text = format!(
        r#"{{"schema":1,"vendor":"v","product":"p","version":"1.0.0","sequence":1,"security_floor":0,"hardware":["h"],
        "channel":"c","kind":"feature","components":[{{"name":"n","slot_class":"s","type":"tar",
        "communication_function":false,"image":{{"size":0,"sha256":"{}","sha512":"{}"}},
        "payload":{{"target":"p/1/x","encoding":"identity"}}}}]}}"#,
        hex::encode(&[0; 32]),
        hex::encode(&[0; 64])
    );
    Doc::parse(text.as_bytes()).unwrap().root().to_value().unwrap()
}

/// Sets (or with `None` removes) the field at a path of keys and indexes.
fn edit(value: &mut Value, path: &[&str], new: Option<Value>) {
    match (value, path) {
        (Value::Object(entries), [last]) => match new {
            Some(new) => drop(entries.insert((*last).to_owned(), new)),
            None => drop(entries.remove(*last)),
        },
        (Value::Object(entries), [first, rest @ ..]) => edit(entries.get_mut(*first).unwrap(), rest, new),
        (Value::Array(items), [first, rest @ ..]) => edit(&mut items[first.parse::<usize>().unwrap()], rest, new),
        _ => panic!("no such path"),
    }
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(value.to_json().as_bytes())
}

#[test]
fn written_manifests_read_back() {
    let manifest = sample();
    assert_eq!(
        Manifest::parse(manifest.to_value().to_json_pretty().as_bytes()).unwrap(),
        manifest
    );
    manifest.validate().unwrap();
    let minimal = parse(&minimal()).unwrap();
    assert_eq!(parse(&minimal.to_value()).unwrap(), minimal);
}

#[test]
fn every_required_field_is_required_and_typed() {
    for path in [
        &["schema"][..],
        &["vendor"],
        &["product"],
        &["version"],
        &["sequence"],
        &["security_floor"],
        &["hardware"],
        &["channel"],
        &["kind"],
        &["components"],
        &["components", "0", "name"],
        &["components", "0", "slot_class"],
        &["components", "0", "type"],
        &["components", "0", "communication_function"],
        &["components", "0", "image"],
        &["components", "0", "image", "size"],
        &["components", "0", "image", "sha256"],
        &["components", "0", "image", "sha512"],
        &["components", "0", "payload"],
        &["components", "0", "payload", "target"],
        &["components", "0", "payload", "encoding"],
    ] {
        let mut removed = minimal();
        edit(&mut removed, path, None);
        let error = parse(&removed).unwrap_err();
        assert!(
            matches!(error, ManifestError::Missing { .. } | ManifestError::Invalid { .. }),
            "{path:?}: {error}"
        );
        for wrong in [
            Value::Null,
            object([("x", Value::Null)]),
            Value::Int(-1),
            Value::Str(String::new()),
        ] {
            let mut changed = minimal();
            edit(&mut changed, path, Some(wrong.clone()));
            assert!(parse(&changed).is_err(), "{path:?} = {wrong:?}");
        }
    }
}

#[test]
fn refusals_name_the_field() {
    for (path, value, expected) in [
        (&["product"][..], "../etc".into(), "product"),
        (&["product"], ".hidden".into(), "product"),
        (&["product"], "a/b".into(), "product"),
        (&["product"], "x".repeat(129).into(), "product"),
        (&["version"], "1.0".into(), "version"),
        (&["sequence"], 0_u64.into(), "sequence"),
        (&["sequence"], Value::Int(i128::from(u64::MAX) + 1), "sequence"),
        (&["security_floor"], 2_u64.into(), "security_floor"),
        (&["hardware"], Value::Array(vec![]), "hardware"),
        (&["hardware"], Value::Array(vec!["h".into(); 257]), "hardware"),
        (&["components"], Value::Array(vec![]), "components"),
        (
            &["components", "0", "image", "size"],
            (limits::IMAGE_BYTES + 1).into(),
            "components[0].image.size",
        ),
        (
            &["components", "0", "payload", "target"],
            "a/../b".into(),
            "components[0].payload.target",
        ),
        (
            &["components", "0", "payload", "encoding"],
            "lzma".into(),
            "components[0].payload.encoding",
        ),
        (
            &["components", "0", "image", "sha256"],
            "00".into(),
            "components[0].image.sha256",
        ),
        (&["support_end"], "2026-02-30".into(), "support_end"),
        (&["notes"], "x".repeat(limits::TEXT_BYTES + 1).into(), "notes"),
        (&["extensions"], Value::Int(1), "extensions"),
    ] {
        let mut changed = minimal();
        edit(&mut changed, path, Some(value));
        match parse(&changed) {
            Err(ManifestError::Invalid { field, .. }) => assert_eq!(field, expected),
            other => panic!("{path:?}: {other:?}"),
        }
    }
}

#[test]
fn unknown_fields_refuse_everywhere_but_in_extensions() {
    for path in [
        &["x"][..],
        &["components", "0", "x"],
        &["components", "0", "image", "x"],
        &["components", "0", "payload", "x"],
    ] {
        let mut changed = minimal();
        edit(&mut changed, path, Some(Value::Null));
        assert!(
            matches!(parse(&changed), Err(ManifestError::Unknown { .. })),
            "{path:?}"
        );
    }
    let mut extended = minimal();
    edit(&mut extended, &["extensions"], Some(object([("x", Value::Null)])));
    parse(&extended).unwrap();
}

#[test]
fn other_schema_size_and_duplicate_components() {
    let mut other = minimal();
    edit(&mut other, &["schema"], Some(2_u64.into()));
    edit(&mut other, &["new_field"], Some(2_u64.into()));
    assert_eq!(parse(&other), Err(ManifestError::Schema { actual: 2 }));
    let long = vec![b' '; limits::MANIFEST_BYTES as usize + 1];
    assert!(matches!(Manifest::parse(&long), Err(ManifestError::TooLong { .. })));
    let mut manifest = sample();
    manifest.components.push(manifest.components[0].clone());
    assert!(matches!(manifest.validate(), Err(ManifestError::Invalid { field, .. }) if field == "components"));
}

#[test]
fn summary_agrees_with_its_manifest_only() {
    let manifest = sample();
    let fw = manifest.summary(Some("wave-1".to_owned()));
    manifest.check_summary(&fw).unwrap();
    let custom = object([("fw", fw.to_value()), ("other", Value::Null)]);
    assert_eq!(FwCustom::from_custom(&custom).unwrap().unwrap(), fw);
    assert_eq!(FwCustom::from_custom(&object([])).unwrap(), None);
    let changed = FwCustom {
        sequence: 8,
        ..fw.clone()
    };
    assert_eq!(
        manifest.check_summary(&changed).unwrap_err().to_string(),
        "sequence is 7 in the manifest and 8 in targets metadata"
    );
    assert!(
        manifest
            .check_summary(&FwCustom {
                min_version: None,
                ..fw.clone()
            })
            .is_err()
    );
    assert!(manifest.check_summary(&FwCustom { hardware: vec![], ..fw }).is_err());
    assert!(FwCustom::from_custom(&object([("fw", Value::Null)])).is_err());
}

proptest! {
    #[test]
    fn a_changed_byte_never_panics_and_never_passes_as_another_type(at in 0_usize..1800, byte in any::<u8>()) {
        let mut text = sample().to_value().to_json().into_bytes();
        let at = at % text.len();
        text[at] = byte;
        if let Ok(manifest) = Manifest::parse(&text) {
            prop_assert_eq!(Manifest::parse(manifest.to_value().to_json().as_bytes()).unwrap(), manifest);
        }
    }
}
