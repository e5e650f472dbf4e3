//! From trusted metadata to an offer: which release, whether its manifest is what the metadata said, and where its parts are.

use std::collections::BTreeSet;
use std::io::Read;

use fwmeta::client::{Client, ClientError, Refreshed, Release};
use fwmeta::limits;
use fwmeta::manifest::Manifest;
use fwmeta::role::{RoleKeys, RoleName, Root};
use fwmeta::target::TargetFile;
use fwmeta::time::UtcSeconds;
use fwmeta::trusted::{self, TrustedSet};
use sha2::{Digest, Sha256};

use super::settings::{self, OfferedSettings};
use super::{DriveError, Held, Setup};
use crate::machine::plan::{self, Considered, Wish};
use crate::machine::release::ReleaseRef;
use crate::machine::state::State;
use crate::machine::time::Freshness;
use crate::ports::{MetadataStore, PortError, Transport};

/// What a check found.
#[derive(Debug)]
pub struct Checked {
    /// Whether the timestamp was a new one.
    pub refreshed: Refreshed,
    /// The release to install, judged in full.
    pub offer: Option<Offer>,
    /// All releases of the product and what was decided about each.
    pub considered: Vec<Considered>,
    /// What had to be left out, and why.
    pub problems: Vec<ClientError>,
    /// What withholds the update now.
    pub held: Option<Held>,
    /// Whether the metadata are the newest, as far as their expiry tells; never stale, which is an error.
    pub freshness: Freshness,
}

/// A release that this device would install.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The release.
    pub release: ReleaseRef,
    /// Its manifest.
    pub manifest: Manifest,
    /// The payload of each component, in the order of the manifest.
    pub payloads: Vec<TargetFile>,
    /// The way of the settings.
    pub settings: OfferedSettings,
    /// Whether targets carry their digest in their names.
    pub(super) consistent_snapshot: bool,
}

impl Offer {
    /// Bytes to download at most.
    pub fn download_bytes(&self) -> u64 {
        self.payloads
            .iter()
            .map(|file| file.length)
            .fold(0, u64::saturating_add)
    }
}

/// Chooses a release, reads and judges its manifest, and finds its payloads.
pub(super) fn examine<M: MetadataStore, T: Transport>(
    client: &mut Client<T::Source, &mut M>,
    transport: &mut T,
    setup: &Setup,
    state: &State,
    wish: &Wish,
    refreshed: Refreshed,
) -> Result<Checked, DriveError> {
    let listed = client.releases(&setup.identity.product)?;
    let decision = plan::choose(listed.found, &setup.identity, state, wish);
    let mut considered = decision.considered;
    let offer = match decision.chosen {
        Some(chosen) => {
            let offer = judge(client, transport, setup, state, &chosen)?;
            let accepted = wish.accept_one_way || setup.accept_one_way;
            OfferedSettings::withhold(offer, accepted, &mut considered)
        }
        None => None,
    };
    Ok(Checked {
        refreshed,
        offer,
        considered,
        problems: listed.problems,
        held: None,
        freshness: Freshness::Unknown,
    })
}

fn judge<M: MetadataStore, T: Transport>(
    client: &mut Client<T::Source, &mut M>,
    transport: &mut T,
    setup: &Setup,
    state: &State,
    chosen: &Release,
) -> Result<Offer, DriveError> {
    let consistent_snapshot = client.trusted().root().consistent_snapshot;
    let input = transport.target(&chosen.path, &chosen.file, consistent_snapshot, &mut |_, _| true)?;
    let mut bytes = Vec::new();
    let read = input.take(limits::MANIFEST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| PortError::environment(format!("reading {}", chosen.path), Some(error.into())))?;
    let refused = |source| DriveError::Manifest {
        path: chosen.path.clone(),
        source,
    };
    let manifest = Manifest::parse(&bytes).map_err(|error| refused(error.into()))?;
    plan::check_manifest(&manifest, chosen, &setup.identity, &setup.classes).map_err(refused)?;
    let mut payloads = Vec::with_capacity(manifest.components.len());
    for component in &manifest.components {
        let payload = &component.payload.target;
        let file = client.find_target(payload)?;
        payloads.push(file.ok_or_else(|| DriveError::UnlistedPayload {
            manifest: chosen.path.clone(),
            payload: payload.clone(),
        })?);
    }
    Ok(Offer {
        release: ReleaseRef::of_manifest(&manifest, Sha256::digest(&bytes).into()),
        settings: settings::offered::<M, T>(client, state, &manifest, &chosen.path)?,
        manifest,
        payloads,
        consistent_snapshot,
    })
}

/// The versions that a cycle trusts, with the keys of their roles.
pub(super) struct Seen {
    pub(super) root: u64,
    pub(super) timestamp: Option<(u64, BTreeSet<String>)>,
    pub(super) snapshot: Option<(u64, BTreeSet<String>)>,
    /// The earliest expiry of the top-level roles.
    pub(super) expires: UtcSeconds,
}

impl Seen {
    pub(super) fn of(trusted: &TrustedSet) -> Self {
        let root = trusted.root();
        let keys = |role: &RoleKeys| role_keys(root, role);
        Self {
            root: root.version,
            timestamp: trusted
                .timestamp()
                .map(|timestamp| (timestamp.version, keys(&root.roles.timestamp))),
            snapshot: trusted
                .snapshot()
                .map(|snapshot| (snapshot.version, keys(&root.roles.snapshot))),
            expires: [
                trusted.timestamp().map(|timestamp| timestamp.expires),
                trusted.snapshot().map(|snapshot| snapshot.expires),
                trusted.targets(&RoleName::targets()).map(|targets| targets.expires),
            ]
            .into_iter()
            .flatten()
            .fold(root.expires, UtcSeconds::min),
        }
    }

    pub(super) fn check(&self, state: &State) -> Result<(), DriveError> {
        let below = |role, offered, floor| Err(DriveError::BelowMetadataFloor { role, offered, floor });
        let floors = &state.floors;
        if self.root < floors.root {
            return below(RoleName::root(), self.root, floors.root);
        }
        for (role, floor, version) in [
            (RoleName::timestamp(), &floors.timestamp, &self.timestamp),
            (RoleName::snapshot(), &floors.snapshot, &self.snapshot),
        ] {
            if let Some((version, keys)) = version
                && !floor.permits(*version, keys)
            {
                return below(role, *version, floor.version);
            }
        }
        Ok(())
    }
}

/// Whether something was refused because it has expired.
pub(super) fn is_expiry(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(refused) if matches!(refused.reason, trusted::Refusal::Expired { .. }))
}

fn role_keys(root: &Root, role: &RoleKeys) -> BTreeSet<String> {
    role.keyids
        .iter()
        .filter_map(|keyid| root.keys.get(keyid))
        .map(|key| key.to_value().to_json())
        .collect()
}
