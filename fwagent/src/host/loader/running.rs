//! Which slot runs, by what the kernel was told and by what is mounted.
//!
//! ```text
//! parameter   fwagent.slot=B on the kernel command line              written by the boot script
//! root        root=PARTLABEL=rootB on the kernel command line        the device of a slot
//! mount       what is mounted at /                                   the device, file or tree of a slot
//! ```
//!
//! By default each of them that says something must say the same, and one of them must say something: what disagrees is an
//! error, never a guess.

use std::fs;
use std::path::{Path, PathBuf};

use crate::host::slots::{SlotConfig, SlotKind, current_tree};
use crate::host::system::{System, block_device, is_on, is_same};
use crate::machine::cmdline;
use crate::machine::mounts::{DeviceNumber, Mount};
use crate::machine::slot::SlotId;
use crate::ports::PortError;

/// How to find out which slot runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Whom to ask.
    pub by: RunningBy,
    /// Parameter of the kernel command line.
    pub parameter: String,
    /// The kernel command line: `/proc/cmdline`.
    pub cmdline: PathBuf,
    /// Where the running slot is mounted.
    pub mount: PathBuf,
    /// What the slots are.
    pub places: Vec<SlotConfig>,
    /// What the kernel says.
    pub system: System,
}

/// Who says which slot runs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunningBy {
    /// All of them; they must not disagree.
    #[default]
    Auto,
    /// The parameter alone.
    Parameter,
    /// The root that the kernel was told to mount, alone.
    Root,
    /// What is mounted, alone.
    Mount,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            by: RunningBy::Auto,
            parameter: "fwagent.slot".to_owned(),
            cmdline: "/proc/cmdline".into(),
            mount: "/".into(),
            places: Vec::new(),
            system: System::default(),
        }
    }
}

impl Running {
    /// The slot that runs; one of `slots`.
    ///
    /// # Errors
    /// [`PortError`] when nobody says which, or not the same.
    pub fn slot(&self, slots: &[SlotId]) -> Result<SlotId, PortError> {
        self.said(slots)?.ok_or_else(|| {
            let problem = match self.by {
                RunningBy::Auto | RunningBy::Parameter => {
                    format!("there is no {}= in {}", self.parameter, self.cmdline.display())
                        + if self.by == RunningBy::Auto {
                            ", and neither its root= nor a mount is of a slot"
                        } else {
                            ""
                        }
                }
                RunningBy::Root => format!("there is no root= in {} that is a slot", self.cmdline.display()),
                RunningBy::Mount => format!("what is mounted at {} is no slot", self.mount.display()),
            };
            refused(&problem)
        })
    }

    /// Like [`slot`](Self::slot), for a boot loader that says it, too: then nobody else needs to.
    ///
    /// # Errors
    /// [`PortError`] when they do not say the same.
    pub fn said(&self, slots: &[SlotId]) -> Result<Option<SlotId>, PortError> {
        let mut said: Vec<(String, SlotId)> = Vec::new();
        let asked = |source| self.by == RunningBy::Auto || self.by == source;
        let text = fs::read(&self.cmdline).map_err(|error| {
            let attempt = format!("finding the slot that runs in {}", self.cmdline.display());
            PortError::environment(attempt, Some(error.into()))
        })?;
        let text = String::from_utf8_lossy(&text);
        if asked(RunningBy::Parameter) {
            said.extend(self.by_parameter(&text, slots)?);
        }
        if asked(RunningBy::Root)
            && let Some(device) = self.system.root_device(&text)
        {
            let source = format!("root= in {}", self.cmdline.display());
            let found = self.places_that(|place| place_device(place) == Some(device));
            said.extend(found.into_iter().map(|slot| (source.clone(), slot)));
        }
        if asked(RunningBy::Mount) {
            said.extend(self.by_mount()?);
        }
        match said.first() {
            None => Ok(None),
            Some((_, slot)) if said.iter().all(|(_, other)| other == slot) => Ok(Some(slot.clone())),
            Some(_) => {
                let all: Vec<_> = said
                    .iter()
                    .map(|(source, slot)| format!("{slot} by {source}"))
                    .collect();
                Err(refused(&format!("it is {}", all.join(", but "))))
            }
        }
    }

    fn by_parameter(&self, cmdline: &str, slots: &[SlotId]) -> Result<Option<(String, SlotId)>, PortError> {
        let mut found: Vec<&str> = cmdline::values(cmdline, &self.parameter).collect();
        found.dedup();
        let (name, file) = (&self.parameter, self.cmdline.display());
        match found.as_slice() {
            [] => Ok(None),
            [one] => match slots.iter().find(|slot| slot.as_str() == *one) {
                Some(slot) => Ok(Some((format!("{name}= in {file}"), slot.clone()))),
                None => Err(refused(&format!(
                    "{name}={one} in {file} is no slot of the configuration"
                ))),
            },
            _ => Err(refused(&format!("{name}= is there with different slots in {file}"))),
        }
    }

    fn by_mount(&self) -> Result<Vec<(String, SlotId)>, PortError> {
        let mounts = self.system.mounts().map_err(|error| {
            PortError::environment("finding the slot that runs among the mounts", Some(error.into()))
        })?;
        // What was mounted last hides the others.
        let Some(mount) = mounts.iter().rev().find(|mount| mount.point == self.mount) else {
            return Ok(Vec::new());
        };
        let source = format!("the mount at {}", self.mount.display());
        let found = self.places_that(|place| self.is_mounted(place, mount));
        Ok(found.into_iter().map(|slot| (source.clone(), slot)).collect())
    }

    fn is_mounted(&self, place: &SlotConfig, mount: &Mount) -> bool {
        match place.kind {
            SlotKind::Block => place_device(place).is_some_and(|device| is_on(mount, device)),
            SlotKind::File => {
                fs::metadata(&place.path).is_ok_and(|file| file.is_file() && self.system.is_behind(&file, mount))
            }
            SlotKind::Dir => {
                let here = |tree: &fs::Metadata| {
                    let point = fs::metadata(&mount.point).ok();
                    point.is_some_and(|point| is_same(&point, tree))
                };
                fs::metadata(current_tree(&place.path)).is_ok_and(|tree| here(&tree)) || is_layer(mount, &place.path)
            }
        }
    }

    /// The sets of the slots that are so, each once.
    fn places_that(&self, is: impl Fn(&SlotConfig) -> bool) -> Vec<SlotId> {
        let mut sets: Vec<SlotId> = Vec::new();
        for place in self.places.iter().filter(|place| is(place)) {
            if !sets.contains(&place.slot) {
                sets.push(place.slot.clone());
            }
        }
        sets
    }
}

fn is_layer(mount: &Mount, dir: &Path) -> bool {
    let Ok(dir) = fs::canonicalize(dir) else { return false };
    let inside = |layer: &PathBuf| fs::canonicalize(layer).is_ok_and(|layer| layer.starts_with(&dir));
    mount.layers().iter().any(inside)
}

fn place_device(place: &SlotConfig) -> Option<DeviceNumber> {
    let found = (place.kind == SlotKind::Block).then(|| fs::metadata(&place.path).ok())??;
    block_device(&found)
}

fn refused(problem: &str) -> PortError {
    PortError::environment(format!("finding the slot that runs: {problem}"), None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_running_slot_is_named_once_or_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let running = Running {
            cmdline: dir.path().join("cmdline"),
            ..Running::default()
        };
        let slots = ["a", "b"].map(|name| SlotId::parse(name).unwrap());
        assert!(running.slot(&slots).is_err());
        for (text, expected) in [
            ("root=/dev/sda2 fwagent.slot=b quiet\n", Ok("b")),
            ("fwagent.slot=a fwagent.slot=a", Ok("a")),
            ("\"fwagent.slot=a\"", Ok("a")),
            ("fwagent.slot=\"a\"", Ok("a")),
            ("fwagent.slot=a fwagent.slot=b", Err("different slots")),
            ("fwagent.slot=c", Err("no slot of the configuration")),
            ("fwagent.slot=", Err("no slot of the configuration")),
            (
                "xfwagent.slot=a fwagent.slots=a -- fwagent.slot=a",
                Err("there is no fwagent.slot="),
            ),
        ] {
            std::fs::write(&running.cmdline, text).unwrap();
            match (running.slot(&slots), expected) {
                (Ok(slot), Ok(expected)) => assert_eq!(slot.as_str(), expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
