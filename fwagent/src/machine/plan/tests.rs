#![allow(clippy::unwrap_used)]
use fwmeta::manifest::FwCustom;
use fwmeta::target::{TargetFile, TargetPath};

use super::*;
use crate::machine::release::{ComponentRef, ReleaseRef};
use crate::machine::slot::SlotId;

fn identity() -> Identity {
    Identity {
        vendor: None,
        product: "router".to_owned(),
        hardware: "rev-b".to_owned(),
        channel: "stable".to_owned(),
    }
}

fn offered(sequence: u64) -> Release {
    let version = SemVer::new(1, sequence, 0);
    Release {
        path: TargetPath::parse(&format!("router/{version}/manifest.json")).unwrap(),
        file: TargetFile::of_bytes(&sequence.to_le_bytes()),
        fw: FwCustom {
            product: "router".to_owned(),
            hardware: vec!["rev-a".to_owned(), "rev-b".to_owned()],
            version,
            sequence,
            channel: "stable".to_owned(),
            min_version: None,
            rollout: None,
            size: 1,
        },
    }
}

fn known(release: &Release) -> ReleaseRef {
    ReleaseRef {
        manifest_sha256: release.file.hashes.sha256.unwrap(),
        version: release.fw.version.clone(),
        sequence: release.fw.sequence,
        security_floor: 0,
        channel: release.fw.channel.clone(),
        security: false,
        components: vec![ComponentRef {
            name: "main".to_owned(),
            slot_class: "system".to_owned(),
            image_sha256: [0; 32],
        }],
    }
}

fn device(installed: u64) -> State {
    State::new(SlotId::parse("a").unwrap(), Some(known(&offered(installed))))
}

fn verdicts(releases: Vec<Release>, state: &State, wish: &Wish) -> Vec<(u64, Verdict)> {
    let decision = choose(releases, &identity(), state, wish);
    let chosen = decision.considered.iter().find(|one| one.verdict == Verdict::Chosen);
    assert_eq!(
        decision.chosen.map(|release| release.fw.sequence),
        chosen.map(|one| one.sequence)
    );
    decision
        .considered
        .into_iter()
        .map(|one| (one.sequence, one.verdict))
        .collect()
}

#[test]
fn the_newest_that_suits_is_chosen_and_the_rest_is_explained() {
    let releases = vec![offered(1), offered(2), offered(4), offered(3)];
    let found = verdicts(releases, &device(2), &Wish::default());
    assert_eq!(found[0], (4, Verdict::Chosen));
    assert_eq!(found[1], (3, Verdict::Superseded { by: 4 }));
    assert_eq!(found[2], (2, Verdict::Installed));
    assert!(matches!(found[3], (1, Verdict::BelowFloor(_))));
}

#[test]
fn what_is_for_somebody_else_is_refused() {
    let change = |edit: &dyn Fn(&mut FwCustom)| {
        let mut release = offered(5);
        edit(&mut release.fw);
        verdicts(vec![release], &device(1), &Wish::default()).remove(0).1
    };
    assert_eq!(change(&|_| {}), Verdict::Chosen);
    assert!(matches!(
        change(&|fw| fw.product = "camera".to_owned()),
        Verdict::OtherProduct { .. }
    ));
    assert!(matches!(
        change(&|fw| fw.channel = "beta".to_owned()),
        Verdict::OtherChannel { .. }
    ));
    assert!(matches!(
        change(&|fw| fw.hardware = vec!["rev-a".to_owned()]),
        Verdict::OtherHardware { .. }
    ));
}

#[test]
fn a_stepping_stone_is_taken_first() {
    let mut newest = offered(9);
    newest.fw.min_version = Some(SemVer::new(1, 5, 0));
    let found = verdicts(vec![newest.clone(), offered(5)], &device(1), &Wish::default());
    assert!(matches!(found[0].1, Verdict::NeedsVersion { .. }));
    assert_eq!(found[1].1, Verdict::Chosen);
    assert_eq!(
        verdicts(vec![newest.clone()], &device(5), &Wish::default())[0].1,
        Verdict::Chosen
    );
    // A device that does not know its version meets no such condition.
    let unknown = State::new(SlotId::parse("a").unwrap(), None);
    assert!(matches!(
        verdicts(vec![newest], &unknown, &Wish::default())[0].1,
        Verdict::NeedsVersion { .. }
    ));
}

#[test]
fn a_release_that_failed_here_waits_for_the_operator() {
    let mut state = device(1);
    state.reject(&known(&offered(2)), "check web failed");
    assert!(matches!(
        verdicts(vec![offered(2)], &state, &Wish::default())[0].1,
        Verdict::FailedHere { .. }
    ));
    let retry = Wish {
        retry: true,
        ..Wish::default()
    };
    assert_eq!(verdicts(vec![offered(2)], &state, &retry)[0].1, Verdict::Chosen);
    // A later release is another matter.
    assert_eq!(
        verdicts(vec![offered(2), offered(3)], &state, &Wish::default())[0].1,
        Verdict::Chosen
    );
}

#[test]
fn asking_for_a_version_evades_no_floor() {
    let wish = |minor| Wish {
        version: Some(SemVer::new(1, minor, 0)),
        retry: true,
        ..Wish::default()
    };
    let releases = || vec![offered(1), offered(4), offered(5)];
    assert_eq!(verdicts(releases(), &device(2), &wish(4))[1].1, Verdict::Chosen);
    assert!(matches!(
        verdicts(releases(), &device(2), &wish(1))[2].1,
        Verdict::BelowFloor(_)
    ));
}

#[test]
fn a_manifest_must_fill_every_slot_class_once() {
    let text = r#"{"schema":1,"vendor":"acme","product":"router","version":"1.5.0","sequence":5,"security_floor":0,
        "hardware":["rev-a","rev-b"],"channel":"stable","kind":"feature","components":[{"name":"main",
        "slot_class":"system","type":"raw","communication_function":true,"image":{"size":1,"sha256":"S","sha512":"L"},
        "payload":{"target":"router/1.5.0/main.img","encoding":"identity"},"patches":[]}]}"#;
    let text = text.replace("\"S\"", &format!("\"{}\"", "0".repeat(64)));
    let text = text.replace("\"L\"", &format!("\"{}\"", "0".repeat(128)));
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    let release = offered(5);
    let check = |identity: &Identity, classes: &[&str]| {
        let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
        check_manifest(&manifest, &release, identity, &classes)
    };
    assert_eq!(check(&identity(), &["system"]), Ok(()));
    for classes in [&["app", "system"][..], &[], &["app"], &["system", "system"]] {
        assert!(matches!(
            check(&identity(), classes),
            Err(ManifestRefusal::SlotClasses { .. })
        ));
    }
    let vendor = Identity {
        vendor: Some("other".to_owned()),
        ..identity()
    };
    assert!(matches!(
        check(&vendor, &["system"]),
        Err(ManifestRefusal::OtherVendor { .. })
    ));
    let mut lying = release.clone();
    lying.fw.sequence = 6;
    assert!(matches!(
        check_manifest(&manifest, &lying, &identity(), &["system".to_owned()]),
        Err(ManifestRefusal::Manifest(ManifestError::Disagrees {
            field: "sequence",
            ..
        }))
    ));
}
