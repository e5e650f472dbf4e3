//! What a device says of itself, signed by its own key (DESIGN §5.7): how an update ended, what it refused, what it runs.
//!
//! ```text
//! {"signatures": [{"keyid": ID, "sig": HEX}], "signed": {"_type": "fw-statement", "spec": 1, "device": ID, …}}
//! ```
//!
//! The envelope is that of TUF metadata: the signature covers the canonical form of `signed`, and the one key id is the
//! device's. Statements of a device form chains. Within one, sequence numbers begin at 1 and are never used twice, and
//! each statement has the SHA-256 of the canonical form of the one before. A device that lost its records begins another
//! chain, under a new random name, so that the loss is seen and no number ever means two things.
//!
//! What it decides: whether bytes are a statement of the device that a key belongs to, and how two of them relate. What it
//! does not decide: which keys are those of devices, and what a server makes of what they say.

use sha2::{Digest, Sha256};

use crate::json::{Node, Value, object};
use crate::key::{KeyId, PublicKey, SignError, Signer};
use crate::signed::{self, Envelope, EnvelopeError};
use crate::time::UtcSeconds;
use crate::{canonical, hex, limits};

/// `_type` of a statement.
pub const TYPE: &str = "fw-statement";
/// Version of the form.
pub const SPEC: u64 = 1;

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Whose: id of the device's key.
    pub device: KeyId,
    /// Where in the device's statements.
    pub position: Position,
    /// The device's clock when it was made.
    pub clock: UtcSeconds,
    /// Whether the device believes its clock: it is not behind the latest time that signed metadata proved.
    pub clock_believed: bool,
    /// Product of the device.
    pub product: String,
    /// Hardware revision.
    pub hardware: String,
    /// Channel that it follows.
    pub channel: String,
    /// How often it has booted since its records began.
    pub boots: u64,
    /// What it is about.
    pub event: Event,
    /// The slot with the confirmed software, and what that is, when the device knows.
    pub active: Option<Placed>,
    /// Generation of the settings, when the device keeps any.
    pub settings_generation: Option<u64>,
    /// What the device never accepts again.
    pub floors: Vec<Floor>,
    /// The latest time that signed metadata proved.
    pub time_floor: UtcSeconds,
    /// Trusted versions of root, timestamp and snapshot; 0 for none.
    pub metadata: [u64; 3],
    /// Different refusals since the records began.
    pub refusals: u64,
    /// The last of them; empty when there was none.
    pub last_refusal: String,
    /// Statements that were given up because too many waited.
    pub dropped: u64,
    /// Statements that the server would not have.
    pub unwanted: u64,
}

/// The place of a statement among those of its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Random name of the chain, 32 hexadecimal digits.
    pub chain: String,
    /// From 1 on.
    pub sequence: u64,
    /// SHA-256 of the canonical form of the statement before; absent for the first.
    pub previous: Option<[u8; 32]>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// In one word: `confirmed`, `fell-back`, `rolled-back`, `install-failed` end an update; `installed`, `refused`,
    /// `degraded`, `settings-orphaned` and others do not.
    pub result: String,
    /// Number of the update that ended so, as this device counts; 0 when none ended.
    pub outcome: u64,
    /// When, by the device's clock.
    pub at: UtcSeconds,
    /// The slot and release concerned.
    pub subject: Option<Placed>,
    /// Why.
    pub reason: String,
    /// Last lines of what failed.
    pub log: String,
}

/// A release in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The slot.
    pub slot: String,
    /// What it holds, when that is known.
    pub release: Option<Release>,
}

/// A release, by its digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// SHA-256 of its manifest.
    pub manifest_sha256: [u8; 32],
    /// Version for people.
    pub version: String,
    /// Order within product and channel.
    pub sequence: u64,
    /// Name and SHA-256 of the image of each component.
    pub components: Vec<(String, [u8; 32])>,
}

/// The floors of one component in one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    /// The component.
    pub component: String,
    /// The channel.
    pub channel: String,
    /// Nothing with a lower sequence is installed.
    pub sequence: u64,
    /// Nothing with a lower sequence is booted.
    pub security: u64,
}

/// A statement whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub statement: Statement,
    /// SHA-256 of its canonical form: the next one has it as `previous`, and it names the statement.
    pub digest: [u8; 32],
}

/// How a statement relates to the newest one that is known of the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The next one.
    Next,
    /// The very same again: delivery is at least once.
    Repeated,
    /// An earlier one of the chain, or a later one with others missing in between.
    Apart,
    /// The first that is known of another chain: the device lost its records, or somebody has a copy of its key.
    NewChain,
    /// It has the place of the known one, or the one after, and does not fit: two devices with one key, or a forged past.
    Broken,
}

/// The bytes are no statement of that device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// Longer than [`limits::STATEMENT_BYTES`].
    #[error("statement: longer than the {} bytes allowed", limits::STATEMENT_BYTES)]
    TooLong,
    /// Not an envelope.
    #[error("statement")]
    Envelope(#[from] EnvelopeError),
    /// A field is missing, malformed or beyond its bounds.
    #[error("statement: field {field} is missing or malformed")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Another type of document, or a version of the form that is not known here.
    #[error("statement: {found} is not {TYPE} of spec {SPEC}")]
    Type {
        /// What it is.
        found: String,
    },
    /// Not exactly one signature, by the device that it is about.
    #[error("statement of {device}: it is not signed by that device alone")]
    Signer {
        /// The device.
        device: KeyId,
    },
    /// The key is not the device's.
    #[error("statement of {device}: key {key} is another device's")]
    OtherDevice {
        /// The device.
        device: KeyId,
        /// The key.
        key: KeyId,
    },
    /// The signature does not verify.
    #[error("statement of {device}: the signature does not verify")]
    Signature {
        /// The device.
        device: KeyId,
    },
}

/// The device that a statement is said to be of: to find its key by, before [`verify`].
///
/// # Errors
/// [`StatementError`] when the bytes are no statement at all.
pub fn device_of(bytes: &[u8]) -> Result<KeyId, StatementError> {
    let envelope = envelope(bytes)?;
    text(envelope.signed(), "device").map(KeyId::new)
}

/// Takes a statement of the device that has this key.
///
/// # Errors
/// [`StatementError`].
pub fn verify(bytes: &[u8], key: &PublicKey) -> Result<Verified, StatementError> {
    let envelope = envelope(bytes)?;
    let statement = read(envelope.signed())?;
    let device = statement.device.clone();
    let [signature] = envelope.signatures() else {
        return Err(StatementError::Signer { device });
    };
    if signature.keyid != device {
        return Err(StatementError::Signer { device });
    }
    // Computed: a key may be listed under any id.
    let id = key.id();
    if id != device {
        return Err(StatementError::OtherDevice { device, key: id });
    }
    let message = envelope.message()?;
    if !key.verify(&message, &signature.bytes) {
        return Err(StatementError::Signature { device });
    }
    Ok(Verified {
        statement,
        digest: Sha256::digest(&message).into(),
    })
}

impl Statement {
    /// The `signed` object.
    pub fn to_value(&self) -> Value {
        let floors = self.floors.iter().map(|floor| {
            object([
                ("component", (&floor.component).into()),
                ("channel", (&floor.channel).into()),
                ("sequence", floor.sequence.into()),
                ("security", floor.security.into()),
            ])
        });
        let [root, timestamp, snapshot] = self.metadata;
        object([
            ("_type", TYPE.into()),
            ("spec", SPEC.into()),
            ("device", self.device.as_str().into()),
            ("chain", (&self.position.chain).into()),
            ("sequence", self.position.sequence.into()),
            (
                "previous",
                self.position.previous.map(|digest| hex::encode(&digest)).into(),
            ),
            ("clock", self.clock.to_string().into()),
            ("clock_believed", self.clock_believed.into()),
            ("product", (&self.product).into()),
            ("hardware", (&self.hardware).into()),
            ("channel", (&self.channel).into()),
            ("boots", self.boots.into()),
            ("event", self.event.to_value()),
            ("active", self.active.as_ref().map(Placed::to_value).into()),
            ("settings_generation", self.settings_generation.into()),
            ("floors", floors.collect::<Vec<_>>().into()),
            ("time_floor", self.time_floor.to_string().into()),
            (
                "metadata",
                object([
                    ("root", root.into()),
                    ("timestamp", timestamp.into()),
                    ("snapshot", snapshot.into()),
                ]),
            ),
            ("refusals", self.refusals.into()),
            ("last_refusal", (&self.last_refusal).into()),
            ("dropped", self.dropped.into()),
            ("unwanted", self.unwanted.into()),
        ])
    }

    /// Signs it: the bytes to be sent, and the digest that names it.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(&self, signer: &dyn Signer) -> Result<(Vec<u8>, [u8; 32]), SignError> {
        let value = self.to_value();
        let digest = Sha256::digest(canonical::encode(&value)).into();
        Ok((signed::sign(&value, &[signer])?, digest))
    }
}

impl Verified {
    /// How it relates to the newest statement that is known of its device.
    pub fn follows(&self, known: &Self) -> Link {
        let (ours, theirs) = (&self.statement.position, &known.statement.position);
        if self.digest == known.digest {
            Link::Repeated
        } else if self.statement.device != known.statement.device || ours.sequence == theirs.sequence {
            if ours.chain == theirs.chain {
                Link::Broken
            } else {
                Link::NewChain
            }
        } else if ours.chain != theirs.chain {
            Link::NewChain
        } else if ours.sequence == theirs.sequence.saturating_add(1) {
            if ours.previous == Some(known.digest) {
                Link::Next
            } else {
                Link::Broken
            }
        } else {
            Link::Apart
        }
    }
}

impl Event {
    fn to_value(&self) -> Value {
        object([
            ("result", (&self.result).into()),
            ("outcome", self.outcome.into()),
            ("at", self.at.to_string().into()),
            ("subject", self.subject.as_ref().map(Placed::to_value).into()),
            ("reason", (&self.reason).into()),
            ("log", (&self.log).into()),
        ])
    }
}

impl Placed {
    fn to_value(&self) -> Value {
        object([
            ("slot", (&self.slot).into()),
            ("release", self.release.as_ref().map(Release::to_value).into()),
        ])
    }
}

impl Release {
    fn to_value(&self) -> Value {
        let components = self
            .components
            .iter()
            .map(|(name, digest)| object([("name", name.into()), ("image_sha256", hex::encode(digest).into())]));
        object([
            ("manifest_sha256", hex::encode(&self.manifest_sha256).into()),
            ("version", (&self.version).into()),
            ("sequence", self.sequence.into()),
            ("components", components.collect::<Vec<_>>().into()),
        ])
    }
}

fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, StatementError> {
    if bytes.len() as u64 > limits::STATEMENT_BYTES {
        return Err(StatementError::TooLong);
    }
    Ok(Envelope::parse(bytes)?)
}

/// Reads the object that is signed.
fn read(node: Node<'_>) -> Result<Statement, StatementError> {
    let found = (text(node, "_type")?, number(node, "spec")?);
    if found.0 != TYPE || found.1 != SPEC {
        return Err(StatementError::Type {
            found: format!("{} of spec {}", found.0, found.1),
        });
    }
    let chain = text(node, "chain")?;
    let sequence = number(node, "sequence")?;
    let previous = optional(node, "previous", |value, field| digest_of(value, field))?;
    if chain.len() != 32 || hex::decode(&chain).is_none() {
        return Err(StatementError::Field { field: "chain" });
    }
    if sequence == 0 || previous.is_some() != (sequence > 1) {
        return Err(StatementError::Field { field: "previous" });
    }
    let metadata = field(node, "metadata")?;
    let mut floors = Vec::new();
    for floor in list(node, "floors", limits::STATEMENT_FLOORS)? {
        floors.push(Floor {
            component: text(floor, "component")?,
            channel: text(floor, "channel")?,
            sequence: number(floor, "sequence")?,
            security: number(floor, "security")?,
        });
    }
    Ok(Statement {
        device: KeyId::new(text(node, "device")?),
        position: Position {
            chain,
            sequence,
            previous,
        },
        clock: time(node, "clock")?,
        clock_believed: field(node, "clock_believed")?.as_bool().ok_or(StatementError::Field {
            field: "clock_believed",
        })?,
        product: text(node, "product")?,
        hardware: text(node, "hardware")?,
        channel: text(node, "channel")?,
        boots: number(node, "boots")?,
        event: read_event(field(node, "event")?)?,
        active: optional(node, "active", |value, _| read_placed(value))?,
        settings_generation: optional(node, "settings_generation", |value, field| {
            value.as_u64().ok_or(StatementError::Field { field })
        })?,
        floors,
        time_floor: time(node, "time_floor")?,
        metadata: [
            number(metadata, "root")?,
            number(metadata, "timestamp")?,
            number(metadata, "snapshot")?,
        ],
        refusals: number(node, "refusals")?,
        last_refusal: long_text(node, "last_refusal")?,
        dropped: number(node, "dropped")?,
        unwanted: number(node, "unwanted")?,
    })
}

fn read_event(node: Node<'_>) -> Result<Event, StatementError> {
    Ok(Event {
        result: text(node, "result")?,
        outcome: number(node, "outcome")?,
        at: time(node, "at")?,
        subject: optional(node, "subject", |value, _| read_placed(value))?,
        reason: long_text(node, "reason")?,
        log: long_text(node, "log")?,
    })
}

fn read_placed(node: Node<'_>) -> Result<Placed, StatementError> {
    Ok(Placed {
        slot: text(node, "slot")?,
        release: optional(node, "release", |value, _| read_release(value))?,
    })
}

fn read_release(node: Node<'_>) -> Result<Release, StatementError> {
    let mut components = Vec::new();
    for component in list(node, "components", limits::LIST_ENTRIES)? {
        let digest = field(component, "image_sha256")?;
        components.push((text(component, "name")?, digest_of(digest, "image_sha256")?));
    }
    Ok(Release {
        manifest_sha256: digest_of(field(node, "manifest_sha256")?, "manifest_sha256")?,
        version: text(node, "version")?,
        sequence: number(node, "sequence")?,
        components,
    })
}

fn field<'d>(node: Node<'d>, field: &'static str) -> Result<Node<'d>, StatementError> {
    node.get(field).ok_or(StatementError::Field { field })
}

fn optional<'d, T>(
    node: Node<'d>,
    name: &'static str,
    read: impl FnOnce(Node<'d>, &'static str) -> Result<T, StatementError>,
) -> Result<Option<T>, StatementError> {
    let value = field(node, name)?;
    if value.is_null() {
        return Ok(None);
    }
    read(value, name).map(Some)
}

fn list<'d>(
    node: Node<'d>,
    name: &'static str,
    limit: usize,
) -> Result<impl Iterator<Item = Node<'d>>, StatementError> {
    let value = field(node, name)?;
    if !value.is_array() || value.items().count() > limit {
        return Err(StatementError::Field { field: name });
    }
    Ok(value.items())
}

fn bounded(node: Node<'_>, name: &'static str, limit: usize) -> Result<String, StatementError> {
    let value = field(node, name)?.as_str();
    let value = value.filter(|value| value.len() <= limit);
    value
        .map(|value| value.into_owned())
        .ok_or(StatementError::Field { field: name })
}

fn text(node: Node<'_>, name: &'static str) -> Result<String, StatementError> {
    bounded(node, name, limits::NAME_BYTES)
}

fn long_text(node: Node<'_>, name: &'static str) -> Result<String, StatementError> {
    bounded(node, name, limits::STATEMENT_TEXT_BYTES)
}

fn number(node: Node<'_>, name: &'static str) -> Result<u64, StatementError> {
    field(node, name)?.as_u64().ok_or(StatementError::Field { field: name })
}

fn time(node: Node<'_>, name: &'static str) -> Result<UtcSeconds, StatementError> {
    let value = text(node, name)?;
    UtcSeconds::parse(&value).map_err(|_| StatementError::Field { field: name })
}

fn digest_of(node: Node<'_>, name: &'static str) -> Result<[u8; 32], StatementError> {
    let value = node.as_str().and_then(|value| hex::decode_array(&value));
    value.ok_or(StatementError::Field { field: name })
}

#[cfg(test)]
mod tests;
