//! Boot control `efi`: the boot manager of the firmware itself, by its variables `BootOrder` and `BootNext`.
//!
//! ```text
//! arm       1. BootOrder without the slot     2. BootNext is the slot
//! confirm   1. BootOrder with the slot first  2. no BootNext that is a slot
//! disable   1. no BootNext                    2. BootOrder without the slot
//! ```
//!
//! Each is one variable, and whatever the power leaves undone is done again; in no order of these is a slot booted that
//! was not to be.

use std::collections::BTreeMap;

use crate::host::loader::efivarfs::{EfiVars, GLOBAL};
use crate::host::loader::{HostBoot, Running};
use crate::machine::boot::BootView;
use crate::machine::efi_boot::{self, Boot, BootNumber, EfiError, Entry, LoadOption, Slots};
use crate::machine::slot::SlotId;
use crate::ports::{BootControl, PortError};

const ORDER: &str = "BootOrder";
const NEXT: &str = "BootNext";
const CURRENT: &str = "BootCurrent";

/// The boot manager of UEFI firmware.
#[derive(Debug)]
pub struct Efi {
    vars: EfiVars,
    entries: Vec<(SlotId, Entry)>,
    running: Running,
}

impl Efi {
    /// The boot manager with these variables; `entries` are the load options of the slots.
    pub fn new(vars: EfiVars, entries: Vec<(SlotId, Entry)>, running: Running) -> Self {
        Self { vars, entries, running }
    }

    fn load(&self) -> Result<(Slots, Boot), PortError> {
        let mut options = BTreeMap::new();
        for name in self.vars.names(GLOBAL)? {
            if let Some(number) = BootNumber::parse(&name)
                && let Some(data) = self.vars.read(&name, GLOBAL)?
                // One that is broken is nobody's; if it was a slot's, that slot has none.
                && let Ok(option) = LoadOption::decode(&data)
            {
                options.insert(number, option);
            }
        }
        let slots = Slots::find(&self.entries, &options);
        let reading = "reading the boot order of the firmware";
        let order = self.vars.read(ORDER, GLOBAL)?;
        let order = efi_boot::numbers(ORDER, &order.unwrap_or_default()).map_err(failed(reading))?;
        let next = self.number(NEXT)?;
        Ok((slots, Boot { order, next }))
    }

    fn number(&self, name: &'static str) -> Result<Option<BootNumber>, PortError> {
        let data = self.vars.read(name, GLOBAL)?;
        let number = data.map(|data| efi_boot::number(name, &data)).transpose();
        number.map_err(failed("reading the boot order of the firmware"))
    }

    fn change(
        &self,
        attempt: &str,
        change: impl FnOnce(&Boot, &Slots) -> Result<Boot, EfiError>,
    ) -> Result<(), PortError> {
        let (slots, before) = self.load()?;
        let after = change(&before, &slots).map_err(failed(attempt))?;
        if before.next.is_some() && after.next.is_none() {
            self.vars.delete(NEXT, GLOBAL)?;
        }
        if after.order != before.order {
            self.vars.write(ORDER, GLOBAL, &efi_boot::bytes(&after.order))?;
        }
        match after.next.filter(|_| after.next != before.next) {
            Some(next) => self.vars.write(NEXT, GLOBAL, &efi_boot::bytes(&[next])),
            None => Ok(()),
        }
    }
}

fn failed(attempt: impl Into<String>) -> impl FnOnce(EfiError) -> PortError {
    move |error| PortError::environment(attempt, Some(error.into()))
}

impl BootControl for Efi {
    fn view(&mut self) -> Result<BootView, PortError> {
        self.peek()
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(&format!("disabling slot {slot}"), |boot, slots| {
            boot.disabled(slots, slot)
        })
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError> {
        self.change(&format!("arming slot {slot}"), |boot, slots| {
            boot.armed(slots, slot, attempts)
        })
    }

    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(&format!("confirming slot {slot}"), |boot, slots| {
            boot.confirmed(slots, slot)
        })
    }

    fn replenish(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change(&format!("putting slot {slot} first"), |boot, slots| {
            boot.replenished(slots, slot)
        })
    }
}

impl HostBoot for Efi {
    fn primary(&mut self) -> Result<Option<SlotId>, PortError> {
        let (slots, boot) = self.load()?;
        Ok(boot.primary(&slots))
    }

    fn create(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.change("setting the boot order up", |boot, slots| boot.created(slots, slot))
    }

    fn peek(&self) -> Result<BootView, PortError> {
        let names: Vec<SlotId> = self.entries.iter().map(|(slot, _)| slot.clone()).collect();
        let running = self.running.slot(&names)?;
        let (slots, boot) = self.load()?;
        boot.view(&slots, &running, self.number(CURRENT)?)
            .map_err(failed("finding the slot that runs"))
    }
}
