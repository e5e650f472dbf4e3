//! Why the driver could not do something, and what that means: a refusal, a stop, or a reason to try again later.

use std::time::Duration;

use fwmeta::client::ClientError;
use fwmeta::role::RoleName;
use fwmeta::target::TargetPath;

use crate::machine::plan;
use crate::machine::slot::SlotId;
use crate::machine::step::Refusal;
use crate::machine::time::Reference;
use crate::ports::{PortError, PortErrorKind};

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The device was never provisioned.
    #[error("this device was never provisioned")]
    NotProvisioned,
    /// Metadata were refused or could not be had.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Metadata have expired: somebody keeps newer ones back, nobody signs them any more, or the clock is ahead.
    #[error("the metadata are stale, and the time is {time}")]
    Stale {
        /// The time that was used.
        time: Reference,
        /// Which role has expired when.
        source: Box<ClientError>,
    },
    /// Metadata are older than what this device has seen.
    #[error("{role}: version {offered} is older than version {floor}, which this device has seen")]
    BelowMetadataFloor {
        /// The role.
        role: RoleName,
        /// The version offered.
        offered: u64,
        /// The highest version seen.
        floor: u64,
    },
    /// The manifest of a release was refused.
    #[error("manifest {path}")]
    Manifest {
        /// Its target path.
        path: TargetPath,
        /// Why.
        source: plan::ManifestRefusal,
    },
    /// A payload that the manifest names is not listed.
    #[error("manifest {manifest} names {payload}, which no role lists")]
    UnlistedPayload {
        /// Target path of the manifest.
        manifest: TargetPath,
        /// Target path of the payload.
        payload: TargetPath,
    },
    /// The event makes no sense now.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// A port failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// All slots are in use.
    #[error("no slot is free: slot {active} is active, and there is no other")]
    NoFreeSlot {
        /// The active slot.
        active: SlotId,
    },
}

impl DriveError {
    /// Whether something was judged and refused, as opposed to not possible now.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Client(error) => error.is_refusal(),
            Self::Port(error) => error.kind == PortErrorKind::Refused,
            Self::Stale { .. }
            | Self::BelowMetadataFloor { .. }
            | Self::Manifest { .. }
            | Self::UnlistedPayload { .. }
            | Self::Refusal(_) => true,
            Self::NotProvisioned | Self::NoFreeSlot { .. } => false,
        }
    }

    /// Whether somebody asked to stop.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Port(error) if error.kind == PortErrorKind::Stopped)
    }

    /// How long the server asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let port: Option<&PortError> = match self {
            Self::Port(error) => Some(error),
            Self::Client(ClientError::Fetch { source, .. }) => source.downcast_ref(),
            _ => None,
        };
        match port?.kind {
            PortErrorKind::Environment { retry_after } => retry_after,
            _ => None,
        }
    }
}

/// An error and its causes, joined by colons.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
