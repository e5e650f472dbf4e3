//! `fwagent provision`: the factory's step. The device gets its root of trust, its boot record and its first state.
//!
//! The state is stored last, so that a loss of power in between leaves a device that can be provisioned again, never one
//! that believes in software it does not have.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use fwmeta::json::object;
use fwmeta::limits;
use fwmeta::manifest::Manifest;
use fwmeta::trusted::TrustedSet;
use sha2::{Digest, Sha256};

use crate::cli::Provision;
use crate::cmd::{check, floors, observer, settings, take_bundle, version};
use crate::device::Device;
use crate::failure::{Code, Failure, Outcome};
use crate::host::clock::SystemClock;
use crate::host::generation::GenerationStore;
use crate::host::identity::Identity;
use crate::host::state_file::StateFile;
use crate::host::tpm_state::TpmState;
use crate::machine::plan::Wish;
use crate::machine::release::ReleaseRef;
use crate::machine::slot::SlotId;
use crate::machine::state::State;
use crate::output::Report;
use crate::ports::{Clock, PortError, SlotStore, StateStore};

pub fn run(mut device: Device, args: &Provision, json: bool) -> Outcome<Report> {
    let environment = |error: anyhow::Error| Failure::new(Code::Environment, error);
    let root = read_bounded(&args.root, limits::ROOT_BYTES).map_err(environment)?;
    TrustedSet::new(&root, SystemClock.now())
        .with_context(|| format!("root of trust {}", args.root.display()))
        .map_err(|error| Failure::new(Code::Refused, error))?;
    let slot = first_slot(&device, args.slot.as_deref())?;
    if (args.from_server || args.bundle.is_some()) && Some(&slot) == device.config.rescue.as_ref() {
        let text = format!("slot {slot} is that of the rescue system, which no release is for");
        return Err(Failure::new(Code::Usage, text));
    }
    let mut wish = Wish {
        version: version(args.version.as_deref())?,
        ..Wish::default()
    };
    take_bundle(&mut device, args.bundle.as_deref(), &mut wish)?;
    let dir = device.config.state_dir.clone();
    fwdurable::create_dir_all(&dir)
        .and_then(|()| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))
        })
        .with_context(|| format!("creating {}", dir.display()))
        .map_err(environment)?;
    let _lock = device.lock()?;
    let mut file = StateFile::new(&dir);
    if file.load()?.is_some() {
        return Ok(Report {
            text: format!("{} is provisioned already; nothing was changed", dir.display()),
            json: object([("provisioned", false.into())]),
            code: Code::Nothing,
        });
    }
    floors::before_provision(&device, args.accept_tpm)?;
    // It may be all that is left of a device: what it boots is not to be changed by the way.
    if let Some(primary) = device.boot().primary()?.filter(|primary| *primary != slot) {
        return Err(Failure {
            code: Code::Environment,
            error: format!("the boot loader boots slot {primary}, not slot {slot}").into(),
            advice: Some("name the slot that is booted with --slot, or empty the state directory of a new device"),
        });
    }
    let adopted = args.manifest.as_deref().map(|path| adopt(&device, &slot, path));
    let adopted = adopted.transpose()?;
    // Without a state the device trusts nothing yet: what is there is of an attempt that was refused or interrupted,
    // perhaps with a root that was the wrong one.
    fwdurable::remove_tree(&device.metadata_dir())
        .context("clearing what an earlier attempt left")
        .map_err(environment)?;
    GenerationStore::provision(&device.metadata_dir(), &root)
        .context("keeping the root of trust")
        .map_err(environment)?;

    let (mut state, release, schema) = if args.from_server || args.bundle.is_some() {
        let states = Box::new(InMemory(Some(State::new(slot.clone(), None))));
        let health = Box::new(device.health());
        let watch = observer(&device, json);
        let mut driver = device.driver_with(watch, states, health)?;
        let checked = driver.check(&wish)?;
        let Some(offer) = &checked.offer else {
            return Ok(check::report(&checked, &wish));
        };
        let release = driver.fill_first(&slot, offer)?;
        let mut state = driver.state().clone();
        state.floors.confirm(&release);
        state.confirmed.insert(slot.clone(), release.clone());
        let schema = offer.manifest.settings.as_ref().map(|settings| settings.schema);
        (state, Some(release), schema)
    } else if let Some((release, schema)) = adopted {
        (State::new(slot.clone(), Some(release.clone())), Some(release), schema)
    } else {
        (State::new(slot.clone(), None), None, None)
    };
    settings::first(&device, &mut state, schema)?;
    device.boot().create(&slot)?;
    // Made where nobody else is yet: its owner may read the public half in the factory.
    Identity::load_or_make(&dir).map_err(|error| Failure::new(Code::Environment, error))?;
    match device.config.tpm.clone() {
        Some(tpm) => {
            TpmState::new(file, tpm).bind(&state)?;
        }
        None => file.store(&state)?,
    }
    let held = match &release {
        Some(release) => format!("{} (sequence {})", release.version, release.sequence),
        None => "software that the agent does not know".to_owned(),
    };
    let text = format!(
        "provisioned: slot {slot} holds {held}; trusted is {}",
        args.root.display()
    );
    let json = object([
        ("provisioned", true.into()),
        ("slot", slot.as_str().into()),
        ("release", release.as_ref().map(ReleaseRef::to_value).into()),
    ]);
    Ok(Report::done(text, json))
}

fn first_slot(device: &Device, name: Option<&str>) -> Outcome<SlotId> {
    let sets = device.config.slot_sets();
    let found = match name {
        None => sets.iter().find(|slot| Some(*slot) != device.config.rescue.as_ref()),
        Some(name) => sets.iter().find(|slot| slot.as_str() == name),
    };
    found.cloned().ok_or_else(|| {
        let names: Vec<_> = sets.iter().map(SlotId::as_str).collect();
        Failure::new(
            Code::Usage,
            format!(
                "the configuration has no slot {}; it has {}",
                name.unwrap_or(""),
                names.join(", ")
            ),
        )
    })
}

/// Checks the slot against the manifest of what the factory put there; the release, and the schema of its settings.
fn adopt(device: &Device, slot: &SlotId, path: &Path) -> Outcome<(ReleaseRef, Option<u64>)> {
    let bytes = read_bounded(path, limits::MANIFEST_BYTES).map_err(|error| Failure::new(Code::Environment, error))?;
    let refused = |error: anyhow::Error| Failure::new(Code::Refused, error);
    let manifest = Manifest::parse(&bytes)
        .with_context(|| format!("manifest {}", path.display()))
        .map_err(refused)?;
    let mut slots = device.slots();
    for component in &manifest.components {
        if !slots.holds(slot, component)? {
            return Err(refused(anyhow::anyhow!(
                "slot {slot} does not hold component {} of {}",
                component.name,
                path.display()
            )));
        }
    }
    let release = ReleaseRef::of_manifest(&manifest, Sha256::digest(&bytes).into());
    Ok((release, manifest.settings.map(|settings| settings.schema)))
}

fn read_bounded(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| path.display().to_string())?;
    anyhow::ensure!(
        bytes.len() as u64 <= limit,
        "{} is longer than the {limit} bytes allowed",
        path.display()
    );
    Ok(bytes)
}

/// The record while the factory works: nothing is kept until the end.
#[derive(Debug)]
struct InMemory(Option<State>);

impl StateStore for InMemory {
    fn load(&mut self) -> Result<Option<State>, PortError> {
        Ok(self.0.clone())
    }

    fn store(&mut self, state: &State) -> Result<(), PortError> {
        self.0 = Some(state.clone());
        Ok(())
    }
}
