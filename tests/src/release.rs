//! Releases for the repository in memory: what tests say of one is its version, its parts, and what is promised of them.

use std::collections::BTreeMap;

use fwmeta::manifest::{Component, Encoding, Image, ImageKind, Kind, Manifest, Payload, SemVer};
use fwmeta::target::{TargetFile, TargetPath};
use sha2::{Digest, Sha256, Sha512};

use crate::repo_sim::RepoSim;

/// Size and digests of these bytes.
pub fn image_of(bytes: &[u8]) -> Image {
    Image {
        size: bytes.len() as u64,
        sha256: Sha256::digest(bytes).into(),
        sha512: Sha512::digest(bytes).into(),
    }
}

/// A component that travels as it is, in the target `target`.
///
/// # Errors
/// When `target` is no target path.
pub fn component(name: &str, class: &str, kind: ImageKind, image: Image, target: &str) -> anyhow::Result<Component> {
    Ok(Component {
        name: name.to_owned(),
        slot_class: class.to_owned(),
        kind,
        communication_function: true,
        image,
        payload: Payload {
            target: TargetPath::parse(target)?,
            encoding: Encoding::Identity,
        },
        patches: Vec::new(),
        verity_root: None,
    })
}

/// The manifest of a release of product `router` for hardware `rev-b`.
///
/// # Errors
/// When `version` is none.
pub fn manifest(version: &str, sequence: u64, components: Vec<Component>) -> anyhow::Result<Manifest> {
    Ok(Manifest {
        vendor: "acme".to_owned(),
        product: "router".to_owned(),
        version: SemVer::parse(version).map_err(anyhow::Error::msg)?,
        sequence,
        security_floor: 0,
        hardware: vec!["rev-b".to_owned()],
        channel: "stable".to_owned(),
        kind: Kind::Feature,
        requires: None,
        components,
        settings: None,
        advisory: None,
        notes: None,
        support_end: None,
        sbom: None,
        provenance: None,
        design_conformity: None,
        extensions: BTreeMap::new(),
    })
}

/// Lists a manifest and the payloads of its components, in their order, in a role. Nothing is signed.
pub fn list(sim: &mut RepoSim, role: &str, manifest: &Manifest, payloads: &[&[u8]]) {
    let bytes = manifest.to_value().to_json().into_bytes();
    let file = TargetFile::of_bytes(&bytes).with_fw(manifest.summary(None).to_value());
    let path = format!("router/{}/manifest.json", manifest.version);
    sim.add_target_file(role, &path, file, &bytes);
    for (component, payload) in manifest.components.iter().zip(payloads) {
        let target = component.payload.target.as_str();
        sim.add_target_file(role, target, TargetFile::of_bytes(payload), payload);
    }
}
