//! The life of one device under power cuts: what is done to it, and what must hold after every one.
//!
//! ```text
//! calm    a release whose health check fails, one whose kernel panics       the loader goes back, the agent says why
//! storm   releases of all fates; the power fails at a request of the disk or a line of the console, again and again
//! rest    a last good release, no more cuts        the device ends on it; its file systems and settings are whole
//! ```
//!
//! What must hold at every boot is in `sound`; the evidence is what `fwagent status --json` says on the device,
//! and the bytes of the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

pub use self::sound::Violation;
pub use self::summary::Summary;

use self::cut::Cut;
use self::live::Seen;
use self::sound::{Release, ensure_held};
use crate::random::Random;
use crate::vm::disk::{Caching, Disk};
use crate::vm::guest::{Fate, Guest};
use crate::vm::layout::Layout;
use crate::vm::machine::Machine;
use crate::vm::nbd::Server;
use crate::vm::parts::Parts;
use crate::vm::{Loader, Planted};
use crate::world::World;

mod cut;
mod factory;
mod live;
mod sound;
mod summary;

const MIB: u64 = 1024 * 1024;
const DATA_BYTES: u64 = 64 * MIB;
const SETTINGS: &str = "door = locked\nlanguage = ja\n";
/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The boot loader.
    pub loader: Loader,
    /// Power cuts.
    pub cuts: u32,
    /// Of all chance.
    pub seed: u64,
    /// A bug to be found, if any.
    pub planted: Option<Planted>,
    /// Whether to show the console.
    pub console: bool,
}

/// The story.
#[derive(Debug)]
pub struct Story {
    options: Options,
    /// What was seen so far.
    pub summary: Summary,
    world: World,
    parts: Parts,
    guest: Guest,
    layout: Layout,
    server: Server,
    socket: PathBuf,
    random: Random,
    machine: Option<Machine>,
    releases: BTreeMap<String, Release>,
    newest: String,
    floors: Value,
    /// How the last update ended, as far as it was seen.
    last: Value,
    /// The slot that the loader chose, and the version that came up in it.
    chosen: String,
    up: Option<String>,
    /// The slot that the agent has armed, until the loader runs or the power fails.
    armed: Option<String>,
    /// What the agent said it entered last.
    phase: String,
    cut: Option<Cut>,
    lines: u64,
    /// Since the last cut or release.
    boots: u32,
    polls: u32,
}

impl Story {
    /// Vendor, server and a new device in `dir`.
    ///
    /// # Errors
    /// When something is missing.
    pub fn new(options: Options, dir: &Path) -> anyhow::Result<Self> {
        let parts = Parts::find()?;
        let mut world = World::new(dir)?;
        world.found_vendor()?;
        world.serve("published")?;
        // The host, as QEMU's network shows it to the guest.
        let url = world.url().replace("127.0.0.1", "10.0.2.2");
        let guest = Guest::build(&world.path("tree"), &parts, options.loader, options.planted, &url)?;
        let image = world.path("first.img");
        guest.image("1.0.0", Fate::Good, &image)?;
        let first = Release::of(Fate::Good, &image)?;
        world.release("1.0.0", &image, &[])?;
        world.publish()?;

        // Some room for later releases.
        let layout = Layout::new(first.size + 4 * MIB, DATA_BYTES);
        let disk = factory::build(&world, &parts, &layout, options.loader, &image)?;
        let caching = match options.planted {
            Some(Planted::LyingDisk) => Caching::Lying,
            _ => Caching::Honest,
        };
        let socket = world.path("disk.socket");
        let server = Server::start(&socket, Disk::new(disk, caching))?;
        Ok(Self {
            random: Random::new(options.seed),
            options,
            summary: Summary::default(),
            world,
            parts,
            guest,
            layout,
            server,
            socket,
            machine: None,
            releases: BTreeMap::from([("1.0.0".to_owned(), first)]),
            newest: "1.0.0".to_owned(),
            floors: Value::Null,
            last: Value::Null,
            chosen: String::new(),
            up: None,
            armed: None,
            phase: String::new(),
            cut: None,
            lines: 0,
            boots: 0,
            polls: 0,
        })
    }

    /// Updates that fail, without cuts: the loader goes back, and the agent says why.
    ///
    /// # Errors
    /// [`Violation`], or that something of the host failed.
    pub fn calm(&mut self) -> anyhow::Result<()> {
        let status = self.settles()?;
        ensure_held(
            status["running"] == "A" && status["running_release"]["version"] == "1.0.0",
            "the first boot",
            &status,
        )?;
        let attempts = if self.options.loader == Loader::Uboot { 2 } else { 1 };
        // The boot that fails the health check, or as many as there are attempts; then the one of the old slot.
        for (fate, reason, expected) in [(Fate::Unhealthy, "radio", 2), (Fate::Panics, "", attempts + 1)] {
            let boots = self.summary.boots;
            self.publish(fate)?;
            let status = self.settles()?;
            let (last, boots) = (&status["last"], self.summary.boots - boots);
            ensure_held(
                last["result"] == "fell-back" && last["release"]["version"] == self.newest,
                "a fall-back",
                &status,
            )?;
            let said = last["reason"].as_str().unwrap_or_default();
            ensure_held(!said.is_empty() && said.contains(reason), "its reason", &status)?;
            ensure_held(status["running_release"]["version"] == "1.0.0", "1.0.0", &status)?;
            ensure_held(boots == expected, &format!("{expected} boots, not {boots}"), &status)?;
            self.say(&format!("{} ({}) fell back, because: {said}", self.newest, fate.word()));
        }
        Ok(())
    }

    /// The cuts.
    ///
    /// # Errors
    /// As [`calm`](Self::calm).
    pub fn storm(&mut self) -> anyhow::Result<()> {
        self.switch_off()?;
        for number in 1..=self.options.cuts {
            let cut = Cut::draw(&mut self.random);
            self.switch_on(Some(cut))?;
            let context = |story: &Self| {
                format!(
                    "cut {number} of seed {}, {cut:?}, in {:?}",
                    story.options.seed, story.phase
                )
            };
            loop {
                match self.step().with_context(|| context(self))? {
                    Seen::Waits(status) if self.decided(&status) => {
                        let fate = self.draw_fate();
                        self.publish(fate)?;
                    }
                    Seen::Off => break,
                    Seen::Stopped => bail!("QEMU has ended"),
                    Seen::Waits(_) | Seen::Other => {}
                }
            }
            let line = format!(
                "cut {number} of {}: {} in {:?}",
                self.options.cuts,
                cut.word(),
                self.phase
            );
            self.say(&line);
        }
        Ok(())
    }

    /// Left alone, the device ends on the newest good release.
    ///
    /// # Errors
    /// As [`calm`](Self::calm).
    pub fn rest(&mut self) -> anyhow::Result<()> {
        self.switch_off()?;
        self.settles()?;
        self.publish(Fate::Good)?;
        let status = self.settles()?;
        ensure_held(
            status["running_release"]["version"] == self.newest && status["last"]["result"] == "confirmed",
            "the newest release, confirmed",
            &status,
        )?;
        let floor = &status["floors"]["components"][0]["sequence"];
        ensure_held(
            *floor == status["running_release"]["sequence"],
            "a floor that has risen to it",
            &status,
        )?;
        self.machine()?.say("off")?;
        while !matches!(self.step()?, Seen::Stopped) {}
        self.data_is_whole()?;
        self.say(&format!(
            "left alone: {} is confirmed, settings and file systems are whole",
            self.newest
        ));
        Ok(())
    }

    /// Lives until the device has decided about the newest release; its status.
    fn settles(&mut self) -> anyhow::Result<Value> {
        loop {
            if self.machine.is_none() {
                self.switch_on(None)?;
            }
            match self.step()? {
                Seen::Waits(status) if self.decided(&status) => return Ok(status),
                Seen::Stopped => bail!("QEMU has ended"),
                _ => {}
            }
        }
    }

    /// Whether the device runs the newest release, or says how it ended.
    fn decided(&self, status: &Value) -> bool {
        status["phase"] == "idle"
            && (status["running_release"]["version"] == self.newest
                || status["last"]["release"]["version"] == self.newest)
    }

    fn draw_fate(&mut self) -> Fate {
        match self.random.below(8) {
            0 => Fate::Unhealthy,
            1 => Fate::Panics,
            2 => Fate::Unbootable,
            3 => Fate::Hangs,
            _ => Fate::Good,
        }
    }

    fn publish(&mut self, fate: Fate) -> anyhow::Result<()> {
        let version = format!("1.{}.0", self.releases.len());
        let image = self.world.path("next.img");
        self.guest.image(&version, fate, &image)?;
        let release = Release::of(fate, &image)?;
        self.world.release(&version, &image, &[])?;
        self.world.publish()?;
        *self.summary.releases.entry(fate.word()).or_default() += 1;
        self.releases.insert(version.clone(), release);
        self.newest = version;
        (self.boots, self.polls) = (0, 0);
        self.machine()?.say("poll")
    }

    fn say(&self, text: &str) {
        eprintln!(
            "vm: {}: {text}",
            if self.options.loader == Loader::Grub {
                "grub"
            } else {
                "uboot"
            }
        );
    }
}
