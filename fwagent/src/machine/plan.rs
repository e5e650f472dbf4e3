//! Which release to install, or why none: a pure choice among verified releases.

use fwmeta::client::Release;
use fwmeta::json::{Value, object};
use fwmeta::manifest::{Manifest, ManifestError, SemVer};

use crate::machine::floor::BelowFloor;
use crate::machine::settings::migrate::NoWay;
use crate::machine::state::{Phase, State};

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Vendor; any when absent.
    pub vendor: Option<String>,
    /// Product: RFC 9124's class, and the role that may speak for it.
    pub product: String,
    /// Hardware revision.
    pub hardware: String,
    /// Channel that it follows.
    pub channel: String,
}

/// What is wanted of the choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Only this version.
    pub version: Option<SemVer>,
    /// Also a release that failed here before.
    pub retry: bool,
    /// Also a release whose migration of settings cannot be taken back.
    pub accept_one_way: bool,
}

/// Why a release is or is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Verdict {
    /// It will be installed.
    #[error("will be installed")]
    Chosen,
    /// It runs already.
    #[error("is installed")]
    Installed,
    /// It is in its slot and waits for the restart or its confirmation.
    #[error("is installed and not confirmed yet")]
    InProgress,
    /// A newer one is chosen.
    #[error("is superseded by sequence {by}")]
    Superseded {
        /// Sequence of the newer one.
        by: u64,
    },
    /// Another version was asked for.
    #[error("is not the version asked for, {asked}")]
    NotAsked {
        /// The version asked for.
        asked: SemVer,
    },
    /// It is for other hardware.
    #[error("is for hardware {}, this device is {device}", release.join(", "))]
    OtherHardware {
        /// What it is for.
        release: Vec<String>,
        /// What this device is.
        device: String,
    },
    /// It is for another channel.
    #[error("is in channel {release}, this device follows {device}")]
    OtherChannel {
        /// Its channel.
        release: String,
        /// The device's channel.
        device: String,
    },
    /// It is for another product.
    #[error("is for product {release}, this device is {device}")]
    OtherProduct {
        /// Its product.
        release: String,
        /// The device's product.
        device: String,
    },
    /// It is below a floor.
    #[error("is refused: {0}")]
    BelowFloor(BelowFloor),
    /// It is older than what is installed, by sequence.
    #[error("has sequence {sequence}, installed is {installed}")]
    Older {
        /// Its sequence.
        sequence: u64,
        /// The sequence installed.
        installed: u64,
    },
    /// A step in between is needed.
    #[error("needs at least version {needed}, installed is {}", installed.as_ref().map_or("unknown".to_owned(), ToString::to_string))]
    NeedsVersion {
        /// Oldest version from which it may be installed.
        needed: SemVer,
        /// The version installed, if it is known.
        installed: Option<SemVer>,
    },
    /// Going back would not bring edits of settings back.
    #[error(
        "migrates the settings from schema {from} to {to} without a way back for later edits; `fwagent install \
         --accept-one-way` installs it"
    )]
    OneWay {
        /// Schema of the device.
        from: u64,
        /// Schema of the release.
        to: u64,
    },
    /// It failed here, or an operator gave it up.
    #[error("is not installed again by itself: {reason}")]
    FailedHere {
        /// How.
        reason: String,
    },
}

/// A release and what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Target path of its manifest.
    pub path: String,
    /// Its version.
    pub version: SemVer,
    /// Its sequence.
    pub sequence: u64,
    /// The decision.
    pub verdict: Verdict,
}

/// The choice.
#[derive(Debug)]
pub struct Decision {
    /// The release to install.
    pub chosen: Option<Release>,
    /// All that were looked at, the highest sequence first.
    pub considered: Vec<Considered>,
}

/// Chooses among verified releases: of those that suit the device, the one with the highest sequence.
pub fn choose(releases: Vec<Release>, identity: &Identity, state: &State, wish: &Wish) -> Decision {
    let mut releases = releases;
    // Equal sequences do not occur in a sound repository; the path makes the choice the same everywhere.
    releases.sort_by(|a, b| (b.fw.sequence, &b.path).cmp(&(a.fw.sequence, &a.path)));
    let mut chosen: Option<Release> = None;
    let mut considered = Vec::with_capacity(releases.len());
    for release in releases {
        let verdict = match (suits(&release, identity, state, wish), &chosen) {
            (Err(verdict), _) => verdict,
            (Ok(()), Some(newer)) => Verdict::Superseded { by: newer.fw.sequence },
            (Ok(()), None) => Verdict::Chosen,
        };
        considered.push(Considered {
            path: release.path.to_string(),
            version: release.fw.version.clone(),
            sequence: release.fw.sequence,
            verdict: verdict.clone(),
        });
        if verdict == Verdict::Chosen {
            chosen = Some(release);
        }
    }
    Decision { chosen, considered }
}

fn suits(release: &Release, identity: &Identity, state: &State, wish: &Wish) -> Result<(), Verdict> {
    let fw = &release.fw;
    if fw.product != identity.product {
        return Err(Verdict::OtherProduct {
            release: fw.product.clone(),
            device: identity.product.clone(),
        });
    }
    if fw.channel != identity.channel {
        return Err(Verdict::OtherChannel {
            release: fw.channel.clone(),
            device: identity.channel.clone(),
        });
    }
    if !fw.hardware.contains(&identity.hardware) {
        return Err(Verdict::OtherHardware {
            release: fw.hardware.clone(),
            device: identity.hardware.clone(),
        });
    }
    if let Some(asked) = wish.version.as_ref().filter(|asked| **asked != fw.version) {
        return Err(Verdict::NotAsked { asked: asked.clone() });
    }
    let manifest = release.file.hashes.sha256;
    let installed = state.installed().filter(|installed| installed.channel == fw.channel);
    if let Some(installed) = installed {
        if manifest == Some(installed.manifest_sha256) {
            return Err(Verdict::Installed);
        }
        if fw.sequence == installed.sequence {
            return Err(Verdict::Installed);
        }
    }
    state
        .floors
        .permit_install(&fw.channel, fw.sequence)
        .map_err(Verdict::BelowFloor)?;
    if let Some(installed) = installed.filter(|installed| fw.sequence < installed.sequence) {
        return Err(Verdict::Older {
            sequence: fw.sequence,
            installed: installed.sequence,
        });
    }
    if let Some((_, underway)) = state.phase.update()
        && manifest == Some(underway.manifest_sha256)
        && !matches!(state.phase, Phase::Clearing { .. } | Phase::Staging { .. })
    {
        return Err(Verdict::InProgress);
    }
    if let Some(needed) = &fw.min_version {
        let installed = state.installed().map(|installed| installed.version.clone());
        // `requires` without a known version is not met: nobody can say that it is.
        if installed
            .as_ref()
            .is_none_or(|installed| installed.cmp_precedence(needed).is_lt())
        {
            return Err(Verdict::NeedsVersion {
                needed: needed.clone(),
                installed,
            });
        }
    }
    if !wish.retry
        && let Some(rejected) = manifest.and_then(|manifest| state.rejection(&manifest))
    {
        return Err(Verdict::FailedHere {
            reason: rejected.reason.clone(),
        });
    }
    Ok(())
}

/// A manifest does not fit the device or the metadata by which it was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestRefusal {
    /// It says other than `custom.fw`.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Another vendor's.
    #[error("manifest is of vendor {manifest}, this device is of {device}")]
    OtherVendor {
        /// Vendor in the manifest.
        manifest: String,
        /// Vendor of the device.
        device: String,
    },
    /// The settings of the device cannot be used with it.
    #[error(transparent)]
    Settings(#[from] NoWay),
    /// A slot class of the device would stay without new content, or a component has no place.
    #[error("release fills slot classes {}, this device has {}", manifest.join(", "), device.join(", "))]
    SlotClasses {
        /// Classes that the release fills.
        manifest: Vec<String>,
        /// Classes of each slot set of the device.
        device: Vec<String>,
    },
}

/// Checks the whole manifest of a chosen release. `classes` are those of each slot set, sorted.
///
/// # Errors
/// [`ManifestRefusal`].
pub fn check_manifest(
    manifest: &Manifest,
    release: &Release,
    identity: &Identity,
    classes: &[String],
) -> Result<(), ManifestRefusal> {
    manifest.check_summary(&release.fw)?;
    if let Some(vendor) = identity.vendor.as_ref().filter(|vendor| **vendor != manifest.vendor) {
        return Err(ManifestRefusal::OtherVendor {
            manifest: manifest.vendor.clone(),
            device: vendor.clone(),
        });
    }
    let mut filled: Vec<String> = manifest
        .components
        .iter()
        .map(|component| component.slot_class.clone())
        .collect();
    filled.sort();
    // Equal lists: no class is left with old content, none is filled twice, none is missing on the device.
    if filled != classes {
        return Err(ManifestRefusal::SlotClasses {
            manifest: filled,
            device: classes.to_vec(),
        });
    }
    Ok(())
}

impl Considered {
    /// The form for `--json`.
    pub fn to_value(&self) -> Value {
        object([
            ("path", (&self.path).into()),
            ("version", self.version.to_string().into()),
            ("sequence", self.sequence.into()),
            ("chosen", (self.verdict == Verdict::Chosen).into()),
            ("verdict", self.verdict.to_string().into()),
        ])
    }
}

#[cfg(test)]
mod tests;
