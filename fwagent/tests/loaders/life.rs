//! The state machine over these controls and their boot scripts: whole updates, with the power lost at random between any
//! two effects and with the agent restarted in between.

use fwagent::machine::release::{ComponentRef, ReleaseRef};
use fwagent::machine::slot::SlotId;
use fwagent::machine::state::{Phase, State, UpdateResult};
use fwagent::machine::step::{Effect, Event, step};
use fwagent::ports::PortError;
use fwmeta::manifest::SemVer;
use fwmeta::time::UtcSeconds;

use crate::{Loader, efi, entries, gpt, grub, slot, tryboot, uboot};

const AT: UtcSeconds = UtcSeconds(1_800_000_000);

/// The power went.
struct Dark;

struct Device<'a> {
    loader: &'a dyn Loader,
    state: State,
    /// Releases that pass their checks are even.
    random: u64,
    cuts: bool,
}

fn release(sequence: u64) -> ReleaseRef {
    ReleaseRef {
        manifest_sha256: [sequence as u8; 32],
        version: SemVer::new(1, sequence, 0),
        sequence,
        security_floor: 0,
        channel: "stable".to_owned(),
        security: false,
        components: vec![ComponentRef {
            name: "main".to_owned(),
            slot_class: "system".to_owned(),
            image_sha256: [sequence as u8; 32],
        }],
    }
}

impl Device<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn breath(&mut self) -> Result<(), Dark> {
        if self.cuts && self.below(6) == 0 {
            Err(Dark)
        } else {
            Ok(())
        }
    }

    /// Like the driver: the state first, then the effects. `Ok(true)` asks for a restart.
    fn tell(&mut self, event: Event) -> Result<bool, Dark> {
        let taken = step(&self.state, event.clone(), AT)
            .unwrap_or_else(|error| panic!("{event:?} in {:?}: {error}", self.state.phase));
        self.breath()?;
        self.state = taken.state;
        let done =
            |result: Result<(), PortError>| result.unwrap_or_else(|error| panic!("{}", fwagent::drive::chain(&error)));
        for effect in taken.effects {
            self.breath()?;
            let mut control = self.loader.control();
            let follows = match effect {
                Effect::SettleSettings(_) | Effect::CarrySettingsBack | Effect::PublishSettings => None,
                Effect::Clear(slot) => {
                    done(control.disable(&slot));
                    Some(Event::Cleared)
                }
                Effect::Disable(slot) => {
                    done(control.disable(&slot));
                    None
                }
                Effect::Install => Some(Event::Installed),
                Effect::Arm(slot) => {
                    let attempts = self.loader.attempts();
                    done(control.arm(&slot, attempts));
                    Some(Event::Armed { attempts })
                }
                Effect::Confirm(slot) => {
                    done(control.confirm(&slot));
                    for below in self.state.below_next_floor() {
                        done(control.disable(&below));
                    }
                    Some(Event::Confirmed)
                }
                Effect::CheckHealth(_) => Some(self.verdict()),
                Effect::Reboot => {
                    if let Phase::Pending { slot, .. } = &self.state.phase {
                        done(control.spend(slot));
                        self.breath()?;
                        self.loader.restart_for_trial();
                    }
                    return Ok(true);
                }
            };
            self.breath()?;
            if let Some(event) = follows
                && self.tell(event)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn verdict(&self) -> Event {
        match &self.state.phase {
            Phase::Trial { release, .. } if release.sequence % 2 == 0 => Event::HealthPassed,
            _ => Event::HealthFailed {
                reason: "check".to_owned(),
                log: String::new(),
            },
        }
    }

    /// One boot: the script, then the agent until it restarts or has nothing more to do.
    fn boot(&mut self) -> SlotId {
        let running = self.loader.power_on().expect("there is always something to boot");
        let view = self.loader.control().view().unwrap();
        assert_eq!(view.booted.as_ref(), Some(&running));
        if self.breath().is_ok() {
            if running == self.state.active || self.state.confirmed.contains_key(&running) {
                self.loader.control().replenish(&running).unwrap();
            }
            // Dark or a restart: either way the next thing is the next boot.
            let ended = self.tell(Event::PowerOn(view));
            if let (Ok(false), Phase::Staging { slot, release }) = (ended, self.state.phase.clone()) {
                // The next poll plans it again.
                let _ = self.tell(Event::Planned { slot, release });
            }
        }
        running
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let running = self.boot();
            if self.state.phase == Phase::Idle && running == self.state.active {
                return;
            }
        }
        panic!("no end: {:?}", self.state.phase);
    }

    fn other(&self) -> SlotId {
        slot(if self.state.active.as_str() == "A" { "B" } else { "A" })
    }
}

fn live(loader: &dyn Loader, seed: u64) {
    let mut device = Device {
        loader,
        state: State::new(slot("A"), Some(release(2))),
        random: seed | 1,
        cuts: false,
    };
    device.settle();
    let mut installed = 2;
    for sequence in 3..23 {
        device.cuts = sequence > 8;
        let next = release(sequence);
        let planned = Event::Planned {
            slot: device.other(),
            release: next.clone(),
        };
        let _ = device.tell(planned);
        device.settle();
        let last = device.state.last.clone();
        let confirmed = device.state.installed().unwrap().sequence;
        match last.filter(|last| last.release == next) {
            Some(last) if last.result == UpdateResult::Confirmed => installed = sequence,
            // With cuts the attempts may be used up by them; without, the checks decide.
            _ => assert!(device.cuts || sequence % 2 == 1, "{sequence} was not confirmed"),
        }
        if device.cuts && loader.leaves_confirmed() && confirmed < installed {
            // Cuts before the agent could give the attempts back used them up: the loader went to the other confirmed slot.
            installed = confirmed;
        }
        assert_eq!((confirmed, confirmed % 2), (installed, 0));
        assert!(sequence % 2 == 0 || installed != sequence, "{sequence} was confirmed");
        // The slot that is active is the one that boots, for ever.
        device.cuts = false;
        for _ in 0..5 {
            assert_eq!(device.boot(), device.state.active);
        }
    }
}

#[test]
fn updates_through_u_boot() {
    for seed in 1..6 {
        for place in uboot::PLACES {
            live(
                &uboot::Board::new(place, fwagent::machine::uboot_env::ByteOrder::Little),
                seed * 7919,
            );
        }
    }
}

#[test]
fn updates_through_u_boot_with_a_boot_counter() {
    let order = fwagent::machine::uboot_env::ByteOrder::Little;
    let mut seed = 0;
    for script in uboot::COUNTS {
        for place in uboot::PLACES {
            seed += 7919;
            live(&uboot::Board::with(place, order, script), seed);
        }
    }
}

#[test]
fn updates_through_a_partition_table() {
    for seed in 1..6 {
        live(&gpt::Board::new(), seed * 7919);
    }
}

#[test]
fn updates_through_grub() {
    for seed in 1..12 {
        live(&grub::Board::new(), seed * 7919);
    }
}

#[test]
fn updates_through_efi_variables() {
    for seed in 1..12 {
        live(&efi::Board::new(), seed * 7919);
    }
}

#[test]
fn updates_through_tryboot() {
    for seed in 1..12 {
        live(&tryboot::Board::new(), seed * 7919);
    }
}

#[test]
fn updates_through_systemd_boot() {
    for seed in 1..4 {
        for board in entries::boards() {
            live(&board, seed * 7919);
        }
    }
}
