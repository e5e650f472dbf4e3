//! Metadata that other implementations wrote and signed: accepted as they are at the recorded reference time, refused
//! once expired, refused with any signed byte changed.

#![allow(clippy::unwrap_used)]

use fwmeta::client::ClientError;
use fwmeta::target::TargetPath;
use fwmeta::time::UtcSeconds;
use fwmeta::trusted::Refusal;
use fwtests::repo_sim::{NOW, RepoSim};
use fwtests::sim_device::SimDevice;
use fwtests::vectors::Vector;

/// All vectors of all makers.
fn vectors() -> Vec<Vector> {
    ["python-tuf", "tuftool"].into_iter().flat_map(Vector::all).collect()
}

fn targets(vector: &Vector) -> &'static [&'static str] {
    match vector.name.as_str() {
        "tuftool/delegated" => &["top.bin", "delegated.bin"],
        name if name.starts_with("tuftool/") => &["top.bin"],
        _ => &["top.bin", "dir/delegated.bin"],
    }
}

/// Refreshes a new device from the repository and finds these targets.
fn accept(sim: &mut RepoSim, targets: &[&str], now: UtcSeconds) -> Result<SimDevice, ClientError> {
    let mut device = SimDevice::new(sim);
    device.now = now;
    let mut found = Vec::new();
    let mut client = device.client(sim)?;
    client.refresh()?;
    for path in targets {
        let file = client.find_target(&TargetPath::parse(path).unwrap())?;
        found.push((path, file.unwrap_or_else(|| panic!("{path} is not found"))));
    }
    let consistent = client.trusted().root().consistent_snapshot;
    drop(client);
    sim.root.consistent_snapshot = consistent;
    for (path, file) in found {
        for object in sim.target_objects(path, &file.hashes) {
            file.check_bytes(&sim.objects[&object]).unwrap();
        }
    }
    Ok(device)
}

#[test]
fn python_tuf_repositories_are_accepted() {
    for vector in Vector::all("python-tuf") {
        let mut sim = vector.serve();
        let roots = sim.objects.keys().filter(|name| name.ends_with(".root.json")).count() as u64;
        let accepted = accept(&mut sim, targets(&vector), NOW);
        let device = accepted.unwrap_or_else(|error| panic!("{}: {error:?}", vector.name));
        assert_eq!(device.version("root"), Some(roots), "{}", vector.name);
        assert_eq!(device.version("a/b c"), Some(1), "{}", vector.name);
        assert_eq!(device.version("never"), None, "{}", vector.name);
    }
}

#[test]
fn tuftool_repositories_are_accepted() {
    let versions = |name: &str| match name {
        "tuftool/delegated" => [Some(1), Some(3), Some(2)],
        "tuftool/rotated" => [Some(3), Some(2), None],
        _ => [Some(1), Some(1), None],
    };
    for vector in Vector::all("tuftool") {
        let accepted = accept(&mut vector.serve(), targets(&vector), NOW);
        let device = accepted.unwrap_or_else(|error| panic!("{}: {error:?}", vector.name));
        let found = ["root", "targets", "product"].map(|role| device.version(role));
        assert_eq!(found, versions(&vector.name), "{}", vector.name);
    }
}

#[test]
fn and_refused_from_the_second_they_expire() {
    let expires = UtcSeconds::parse("2040-01-01T00:00:00Z").unwrap();
    for vector in vectors() {
        accept(&mut vector.serve(), targets(&vector), expires.plus_seconds(-1)).unwrap();
        let error = accept(&mut vector.serve(), targets(&vector), expires).unwrap_err();
        let ClientError::Refused(error) = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            error.reason,
            Refusal::Expired { expires, now: expires },
            "{}",
            vector.name
        );
    }
}

#[test]
fn and_refused_with_any_signed_byte_changed() {
    for vector in vectors() {
        let names: Vec<_> = vector
            .serve()
            .objects
            .into_keys()
            .filter(|name| name.ends_with(".json"))
            .collect();
        for name in names
            .iter()
            .filter(|name| !name.ends_with("1.root.json") || name.ends_with("11.root.json"))
        {
            let mut sim = vector.serve();
            let bytes = sim.objects.get_mut(name).unwrap();
            let signed = String::from_utf8(bytes.clone()).unwrap().find("\"signed\":").unwrap();
            // A few places in each file: together they hit every kind of field.
            let step = (bytes.len() - signed) / 9;
            for at in (signed + 10..bytes.len() - 2).step_by(step) {
                let mut sim = vector.serve();
                sim.objects.get_mut(name).unwrap()[at] ^= 1;
                let result = accept(&mut sim, targets(&vector), NOW);
                assert!(result.is_err(), "{}: {name} with byte {at} changed", vector.name);
            }
        }
    }
}

#[test]
fn every_signature_that_the_threshold_needs_is_needed() {
    let vector = Vector::all("python-tuf")
        .into_iter()
        .find(|vector| vector.name.ends_with("all-must-sign"));
    let vector = vector.unwrap();
    for name in ["metadata/2.root.json", "metadata/timestamp.json"] {
        let text = String::from_utf8(vector.serve().objects[name].clone()).unwrap();
        let signatures: Vec<_> = text
            .match_indices("\"sig\":\"")
            .map(|(at, label)| at + label.len())
            .collect();
        assert!(signatures.len() >= 3);
        for at in signatures {
            let mut sim = vector.serve();
            let digit = &mut sim.objects.get_mut(name).unwrap()[at + 20];
            *digit = if *digit == b'0' { b'1' } else { b'0' };
            let error = accept(&mut sim, targets(&vector), NOW).unwrap_err();
            let ClientError::Refused(error) = error else {
                panic!("{error:?}")
            };
            assert!(
                matches!(error.reason, Refusal::Threshold { .. }),
                "{name}: {:?}",
                error.reason
            );
        }
    }
}
