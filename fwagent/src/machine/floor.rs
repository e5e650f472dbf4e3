//! Floors: what this device will never accept again (DESIGN §5.4–5.6). They rise and never fall.
//!
//! * The **sequence floor** of a component says what may be installed; it rises to the sequence of what is confirmed.
//! * The **security floor** of a component says what may be booted as well; it rises only by releases that say so. So a
//!   confirmed slot with older software stays a legal fall-back until a release declares it dangerous.
//! * The **metadata floor** keeps the newest root version, and the highest timestamp and snapshot versions seen, these
//!   two bound to the keys that signed them: it matters when a damaged generation of metadata had to be given up, and
//!   ends with those keys, so that recovery from a fast-forward attack by rotating them works.
//! * The **time floor** is the latest moment at which metadata were verified as fresh.
//!
//! Sequences are ordered within a product and channel, so floors are kept for each component and channel.

use std::collections::{BTreeMap, BTreeSet};

use fwmeta::json::{Value, object};
use fwmeta::limits;
use fwmeta::time::UtcSeconds;

use crate::machine::release::ReleaseRef;

/// Most floors that a record may hold: as many components as a release may have, in several channels.
const MAX_FLOORS: usize = 4 * limits::LIST_ENTRIES;

/// The floors of one component in one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// Nothing with a lower sequence is installed.
    pub sequence: u64,
    /// Nothing with a lower sequence is booted.
    pub security: u64,
}

/// The highest version of a role that was accepted, and who signed it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionFloor {
    /// Version.
    pub version: u64,
    /// Public keys of the role at that time, in their TUF form as JSON: keys, not ids, which a new root may rename.
    pub keys: BTreeSet<String>,
}

/// All floors of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floors {
    components: BTreeMap<(String, String), Floor>,
    /// The newest root that was trusted. Without it, whoever holds retired online keys could replay the time before
    /// their retirement to a device that lost its metadata.
    pub root: u64,
    /// Of the timestamp role.
    pub timestamp: VersionFloor,
    /// Of the snapshot role.
    pub snapshot: VersionFloor,
    /// The latest moment at which metadata were verified as fresh.
    pub time: UtcSeconds,
}

impl Default for Floors {
    fn default() -> Self {
        Self {
            components: BTreeMap::new(),
            root: 0,
            timestamp: VersionFloor::default(),
            snapshot: VersionFloor::default(),
            time: UtcSeconds(0),
        }
    }
}

/// A release is below a floor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sequence {sequence} is below the {kind} floor {floor} of component {component} in channel {channel}")]
pub struct BelowFloor {
    /// Sequence of the release.
    pub sequence: u64,
    /// `rollback` or `security`.
    pub kind: &'static str,
    /// The floor.
    pub floor: u64,
    /// The component.
    pub component: String,
    /// The channel.
    pub channel: String,
}

impl Floors {
    /// Whether a release of `sequence` in `channel` may be installed on a device with these components.
    ///
    /// # Errors
    /// [`BelowFloor`] for the first component whose floor is higher. All components of the channel count, whether the
    /// release names them or not: leaving one out must not evade its floor.
    pub fn permit_install(&self, channel: &str, sequence: u64) -> Result<(), BelowFloor> {
        self.permit(channel, sequence, "rollback", |floor| {
            floor.sequence.max(floor.security)
        })
    }

    /// Whether a release of `sequence` in `channel` may be booted.
    ///
    /// # Errors
    /// [`BelowFloor`].
    pub fn permit_boot(&self, channel: &str, sequence: u64) -> Result<(), BelowFloor> {
        self.permit(channel, sequence, "security", |floor| floor.security)
    }

    /// Whether no floor is below what it was in `earlier`. Floors of metadata end with the keys that they are bound to.
    pub fn never_below(&self, earlier: &Self) -> bool {
        let components = earlier.components.iter().all(|(key, then)| {
            let now = self.components.get(key).copied().unwrap_or_default();
            now.sequence >= then.sequence && now.security >= then.security
        });
        let versions = [
            (&self.timestamp, &earlier.timestamp),
            (&self.snapshot, &earlier.snapshot),
        ];
        let versions = versions
            .iter()
            .all(|(now, then)| now.version >= then.version || now.keys != then.keys);
        components && versions && self.root >= earlier.root && self.time >= earlier.time
    }

    fn permit(
        &self,
        channel: &str,
        sequence: u64,
        kind: &'static str,
        of: impl Fn(&Floor) -> u64,
    ) -> Result<(), BelowFloor> {
        for ((component, in_channel), floor) in &self.components {
            if in_channel == channel && sequence < of(floor) {
                return Err(BelowFloor {
                    sequence,
                    kind,
                    floor: of(floor),
                    component: component.clone(),
                    channel: channel.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Raises the floors to a confirmed release.
    pub fn confirm(&mut self, release: &ReleaseRef) {
        for component in &release.components {
            let key = (component.name.clone(), release.channel.clone());
            let floor = self.components.entry(key).or_default();
            floor.sequence = floor.sequence.max(release.sequence);
            floor.security = floor.security.max(release.security_floor);
        }
    }

    /// Raises the time floor.
    pub fn raise_time(&mut self, now: UtcSeconds) {
        self.time = self.time.max(now);
    }

    /// Floors by component and channel.
    pub fn components(&self) -> impl Iterator<Item = (&str, &str, Floor)> {
        self.components
            .iter()
            .map(|((component, channel), floor)| (component.as_str(), channel.as_str(), *floor))
    }

    /// The form in records.
    pub fn to_value(&self) -> Value {
        let components = self.components().map(|(component, channel, floor)| {
            object([
                ("component", component.into()),
                ("channel", channel.into()),
                ("sequence", floor.sequence.into()),
                ("security", floor.security.into()),
            ])
        });
        object([
            ("components", components.collect::<Vec<_>>().into()),
            ("root", self.root.into()),
            ("timestamp", self.timestamp.to_value()),
            ("snapshot", self.snapshot.to_value()),
            ("time", self.time.to_string().into()),
        ])
    }

    /// Reads [`to_value`](Self::to_value) back; `None` for anything else.
    pub fn from_value(value: &Value) -> Option<Self> {
        let listed = value.get("components")?.as_array()?;
        if listed.len() > MAX_FLOORS {
            return None;
        }
        let mut components = BTreeMap::new();
        for entry in listed {
            let text = |field: &str| Some(entry.get(field)?.as_str()?.to_owned());
            let floor = Floor {
                sequence: entry.get("sequence")?.as_u64()?,
                security: entry.get("security")?.as_u64()?,
            };
            components.insert((text("component")?, text("channel")?), floor);
        }
        Some(Self {
            components,
            root: value.get("root")?.as_u64()?,
            timestamp: VersionFloor::from_value(value.get("timestamp")?)?,
            snapshot: VersionFloor::from_value(value.get("snapshot")?)?,
            time: UtcSeconds::parse(value.get("time")?.as_str()?).ok()?,
        })
    }
}

impl VersionFloor {
    /// Whether `version`, signed while the role had `keys`, may follow. A floor ends when a key that set it has been
    /// taken from the role (fast-forward recovery, TUF 1.0.34 §5.3.11).
    pub fn permits(&self, version: u64, keys: &BTreeSet<String>) -> bool {
        version >= self.version || !self.keys.is_subset(keys)
    }

    /// Raises the floor, or replaces it when its keys have gone.
    pub fn raise(&mut self, version: u64, keys: BTreeSet<String>) {
        if version >= self.version || !self.keys.is_subset(&keys) {
            *self = Self { version, keys };
        }
    }

    fn to_value(&self) -> Value {
        let keys: Vec<Value> = self.keys.iter().map(Value::from).collect();
        object([("version", self.version.into()), ("keys", keys.into())])
    }

    fn from_value(value: &Value) -> Option<Self> {
        let keys = value.get("keys")?.as_array()?;
        if keys.len() > limits::KEYS {
            return None;
        }
        let keys = keys.iter().map(|key| Some(key.as_str()?.to_owned()));
        Some(Self {
            version: value.get("version")?.as_u64()?,
            keys: keys.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::release::ComponentRef;
    use fwmeta::manifest::SemVer;

    fn release(sequence: u64, security_floor: u64) -> ReleaseRef {
        ReleaseRef {
            manifest_sha256: [0; 32],
            version: SemVer::new(1, sequence, 0),
            sequence,
            security_floor,
            channel: "stable".to_owned(),
            security: false,
            components: vec![ComponentRef {
                name: "main".to_owned(),
                slot_class: "system".to_owned(),
                image_sha256: [1; 32],
            }],
        }
    }

    #[test]
    fn floors_rise_and_never_fall() {
        let mut floors = Floors::default();
        assert!(floors.permit_install("stable", 0).is_ok());
        floors.confirm(&release(5, 3));
        let refused = floors.permit_install("stable", 4).unwrap_err();
        assert_eq!((refused.floor, refused.kind), (5, "rollback"));
        assert!(floors.permit_install("stable", 5).is_ok() && floors.permit_boot("stable", 3).is_ok());
        assert!(floors.permit_boot("stable", 2).is_err());
        // An older release that is confirmed again, as after an operator's roll-back, changes nothing.
        let before = floors.clone();
        floors.confirm(&release(4, 0));
        assert_eq!(floors, before);
        // Another channel has its own order.
        assert!(floors.permit_install("beta", 1).is_ok());
    }

    #[test]
    fn a_version_floor_ends_with_its_keys() {
        let keys = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut floor = VersionFloor::default();
        floor.raise(9, keys(&["a", "b"]));
        assert!(!floor.permits(8, &keys(&["a", "b"])) && floor.permits(9, &keys(&["a", "b"])));
        assert!(!floor.permits(8, &keys(&["a", "b", "c"])));
        assert!(floor.permits(1, &keys(&["a", "c"])));
        floor.raise(8, keys(&["a", "b"]));
        assert_eq!(floor.version, 9);
        floor.raise(1, keys(&["c"]));
        assert_eq!(floor.version, 1);
    }

    #[test]
    fn the_record_form_is_read_back() {
        let mut floors = Floors::default();
        floors.confirm(&release(5, 3));
        floors.raise_time(UtcSeconds(1_800_000_000));
        floors.raise_time(UtcSeconds(5));
        floors.timestamp.raise(7, BTreeSet::from(["k".to_owned()]));
        assert_eq!(Floors::from_value(&floors.to_value()), Some(floors));
        assert_eq!(Floors::from_value(&Value::Null), None);
    }
}
