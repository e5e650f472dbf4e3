//! The life of one device under power cuts: what is done to it, and what must hold after every one.
//!
//! ```text
//! calm    a release whose health check fails, one whose kernel panics, a good one       each ends as it must
//! storm   releases of all fates; the power fails at a request of the disk or a line of the console, again and again
//! rest    a last good release, no more cuts        the device ends on it; its file systems and settings are whole
//! ```
//!
//! What must hold at every boot is in [`Story::sound`]; the evidence is what `fwagent status --json` says on the device,
//! and the bytes of the disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use fwmeta::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::device::floors_at_least;
use crate::random::Random;
use crate::vm::disk::{Caching, Disk};
use crate::vm::guest::{Fate, Guest, config_head, file_system};
use crate::vm::layout::Layout;
use crate::vm::machine::{Happening, Machine};
use crate::vm::nbd::{Counts, FreezeAt, Server};
use crate::vm::parts::Parts;
use crate::vm::{Loader, Planted, run};
use crate::world::World;

const MIB: u64 = 1024 * 1024;
const DATA_BYTES: u64 = 64 * MIB;
/// Bytes of a copy of U-Boot's environment, as `boot.cmd` and `fw_env.config` have it.
const ENV_BYTES: &str = "0x4000";
const SETTINGS: &str = "door = locked\nlanguage = ja\n";
/// More boots than any update takes without cuts: two attempts for one that fails, and the boot after it.
const MOST_BOOTS: u32 = 8;
/// More polls than a device needs to decide about a release.
const MOST_POLLS: u32 = 30;
/// Cuts are drawn from so many requests of the disk, or lines of the console, after it is switched on: about what an
/// update takes.
const REQUESTS: u64 = 300;
const FLUSHES: u64 = 120;
const LINES: u64 = 50;

/// Something that must hold did not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(String);

fn violated<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(Violation(text.into()).into())
}

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

/// What was seen.
#[derive(Debug, Default)]
pub struct Summary {
    /// How often the boot loader chose a slot.
    pub boots: u32,
    /// How often the software of a slot came up.
    pub ups: u32,
    /// Releases, by what they do.
    pub releases: BTreeMap<&'static str, u32>,
    /// How updates ended, as the device says.
    pub results: BTreeMap<String, u32>,
    /// Cuts, by what they waited for.
    pub cuts: BTreeMap<&'static str, u32>,
    /// Cuts, by what became of pending writes.
    pub fates: BTreeMap<String, u32>,
    /// Cuts, by the last phase that the agent had entered.
    pub phases: BTreeMap<String, u32>,
    /// Sectors that were pending at cuts, and lost.
    pub sectors: (usize, usize),
    /// Requests that the disk has done, up to the last cut.
    pub requests: Counts,
}

impl Summary {
    /// As data.
    pub fn to_value(&self) -> Value {
        json!({
            "boots": self.boots,
            "ups": self.ups,
            "releases": self.releases,
            "results": self.results,
            "cuts": self.cuts,
            "fates": self.fates,
            "phases": self.phases,
            "requests": {"reads": self.requests.reads, "writes": self.requests.writes, "flushes": self.requests.flushes},
            "sectors": {"pending": self.sectors.0, "lost": self.sectors.1},
        })
    }
}

/// When the power fails.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Request(FreezeAt),
    Line(u64),
}

impl Cut {
    fn draw(random: &mut Random) -> Self {
        match random.below(5) {
            0 => Self::Line(1 + random.below(LINES)),
            1 => Self::Request(FreezeAt::Write(1 + random.below(REQUESTS))),
            2 | 3 => Self::Request(FreezeAt::BeforeFlush(1 + random.below(FLUSHES))),
            _ => Self::Request(FreezeAt::AfterFlush(1 + random.below(FLUSHES))),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Request(FreezeAt::Write(_)) => "write",
            Self::Request(FreezeAt::BeforeFlush(_)) => "before a flush",
            Self::Request(FreezeAt::AfterFlush(_)) => "after a flush",
            Self::Line(_) => "console line",
        }
    }
}

/// What is new.
enum Seen {
    /// The agent waits for its next poll; this is its status.
    Waits(Value),
    /// The power has failed.
    Off,
    /// The device has stopped by itself.
    Stopped,
    /// Nothing that matters.
    Other,
}

/// A release that was published.
#[derive(Debug)]
struct Release {
    fate: Fate,
    size: u64,
    sha256: String,
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
        let disk = factory(&world, &parts, &layout, options.loader, &image)?;
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
            phase: String::new(),
            cut: None,
            lines: 0,
            boots: 0,
            polls: 0,
        })
    }

    /// One update of each kind, without cuts.
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
        for (fate, reason) in [(Fate::Unhealthy, "radio"), (Fate::Panics, ""), (Fate::Good, "")] {
            let before = self.summary.ups;
            self.publish(fate)?;
            let (newest, boots) = (self.newest.clone(), self.summary.boots);
            let status = self.settles()?;
            let last = &status["last"];
            let boots = self.summary.boots - boots;
            let attempts = if self.options.loader == Loader::Uboot { 2 } else { 1 };
            let (result, running, expected) = match fate {
                Fate::Good => ("confirmed", newest.as_str(), 1),
                Fate::Panics => ("fell-back", "1.0.0", attempts + 1),
                _ => ("fell-back", "1.0.0", 2),
            };
            ensure_held(
                last["result"] == result && last["release"]["version"] == newest,
                result,
                &status,
            )?;
            ensure_held(status["running_release"]["version"] == running, running, &status)?;
            ensure_held(
                last["reason"].as_str().is_some_and(|text| text.contains(reason)),
                reason,
                &status,
            )?;
            ensure_held(boots == expected, &format!("{expected} boots, not {boots}"), &status)?;
            ensure!(self.summary.ups > before, "nothing came up");
            self.say(&format!(
                "{newest}, which is {}: {result} after {boots} boots",
                fate.word()
            ));
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

    fn machine(&mut self) -> anyhow::Result<&mut Machine> {
        self.machine.as_mut().context("the device is switched off")
    }

    fn switch_on(&mut self, cut: Option<Cut>) -> anyhow::Result<()> {
        let machine = Machine::start(self.options.loader, &self.parts, &self.socket)?;
        if let Some(Cut::Request(at)) = cut {
            self.server.freeze_at(at, machine.on_freeze());
        }
        self.machine = Some(machine);
        self.cut = cut;
        (self.lines, self.boots, self.polls) = (0, 0, 0);
        self.phase = "loader".to_owned();
        self.up = None;
        Ok(())
    }

    /// The power fails.
    fn switch_off(&mut self) -> anyhow::Result<()> {
        let Some(machine) = self.machine.take() else {
            return Ok(());
        };
        self.server.freeze();
        machine.kill()?;
        let damage = self.server.power_cut(&mut self.random);
        let cut = self.cut.take().map_or("hung or settled", Cut::word);
        *self.summary.cuts.entry(cut).or_default() += 1;
        *self.summary.fates.entry(format!("{:?}", damage.fate)).or_default() += 1;
        *self.summary.phases.entry(self.phase.clone()).or_default() += 1;
        self.summary.requests = self.server.counts();
        self.summary.sectors.0 += damage.pending;
        self.summary.sectors.1 += damage.lost;
        Ok(())
    }

    /// Waits for what happens next and judges it.
    fn step(&mut self) -> anyhow::Result<Seen> {
        match self.machine()?.next() {
            Happening::Frozen => {
                self.switch_off()?;
                Ok(Seen::Off)
            }
            Happening::Ended => Ok(Seen::Stopped),
            Happening::Silence => violated("the device is dead: nothing was heard for a long time"),
            Happening::Line(line) => {
                if self.options.console {
                    eprintln!("| {line}");
                }
                // Lines of progress would be most of those that a cut can be drawn from.
                let progress = line.contains("\"event\":\"downloading\"") || line.contains("\"event\":\"writing\"");
                self.lines += u64::from(!progress);
                if matches!(self.cut, Some(Cut::Line(at)) if self.lines >= at) {
                    self.switch_off()?;
                    return Ok(Seen::Off);
                }
                self.line(&line)
            }
        }
    }

    fn line(&mut self, line: &str) -> anyhow::Result<Seen> {
        if let Some(at) = line.find("fwvm ") {
            let (word, rest) = line[at + 5..].split_once(' ').unwrap_or((&line[at + 5..], ""));
            return self.marker(word, rest);
        }
        if line.contains("EXT4-fs error") {
            return violated(line);
        }
        if let Ok(said) = serde_json::from_str::<Value>(line) {
            if said.get("error").is_some() {
                return violated(format!("the agent ended: {said}"));
            }
            if let Some(phase) = said["phase"].as_str() {
                self.phase = phase.to_owned();
            }
            if said["status"]
                .as_str()
                .is_some_and(|text| text.starts_with("next poll"))
            {
                self.polls += 1;
                if self.polls > MOST_POLLS {
                    return violated(format!(
                        "{} is not decided about after {} polls",
                        self.newest, self.polls
                    ));
                }
                self.machine()?.say("status")?;
            }
        }
        Ok(Seen::Other)
    }

    fn marker(&mut self, word: &str, rest: &str) -> anyhow::Result<Seen> {
        match word {
            "loader" => {
                self.summary.boots += 1;
                self.boots += 1;
                if self.boots > MOST_BOOTS {
                    return violated(format!(
                        "{} boots, and {} is not decided about",
                        self.boots, self.newest
                    ));
                }
                self.chosen = rest.split(' ').next().unwrap_or_default().to_owned();
                self.phase = "start".to_owned();
            }
            "settings" if rest != digest(SETTINGS.as_bytes()) => {
                return violated("the settings are not what they were");
            }
            "broken:" => return violated(rest),
            "up" => {
                self.summary.ups += 1;
                self.up = Some(rest.to_owned());
            }
            "status" => {
                let status: Value = serde_json::from_str(rest).unwrap_or(Value::Null);
                let up = self.up.take();
                self.sound(rest, &status, up.as_deref())?;
                if up.is_none() {
                    return Ok(Seen::Waits(status));
                }
            }
            // Somebody switches it off and on again.
            "hangs" => {
                self.switch_off()?;
                return Ok(Seen::Off);
            }
            "off" => return Ok(Seen::Stopped),
            _ => {}
        }
        Ok(Seen::Other)
    }

    /// What must hold: the device knows what it runs, no floor has fallen, and when it has just come up, every slot that
    /// is said to hold a release holds it byte for byte.
    fn sound(&mut self, text: &str, status: &Value, up: Option<&str>) -> anyhow::Result<()> {
        if status.get("phase").is_none() {
            return violated(format!("the agent has no status: {text}"));
        }
        if status["running"] != self.chosen.as_str() {
            return violated(format!(
                "the loader chose slot {}, and the agent says {status}",
                self.chosen
            ));
        }
        if !self.floors.is_null() && !floors_at_least(&status["floors"], &self.floors) {
            return violated(format!("floors fell from {} to {}", self.floors, status["floors"]));
        }
        self.floors = status["floors"].clone();
        self.ended(&status["last"])?;
        let Some(up) = up else {
            return Ok(());
        };
        if status["running_release"]["version"] != up {
            return violated(format!("{up} runs, and the agent says {status}"));
        }
        for slot in status["slots"].as_array().into_iter().flatten() {
            let name = slot["slot"].as_str().unwrap_or_default();
            if let Some(version) = slot["release"]["version"].as_str()
                && slot["status"] != "empty"
            {
                self.holds(name, version)?;
            }
        }
        Ok(())
    }

    /// Counts how an update ended; only a good one may be confirmed.
    fn ended(&mut self, last: &Value) -> anyhow::Result<()> {
        let (result, version) = (&last["result"], &last["release"]["version"]);
        if *last == self.last || last.is_null() {
            return Ok(());
        }
        self.last = last.clone();
        let fate = self
            .releases
            .get(version.as_str().unwrap_or_default())
            .map(|release| release.fate);
        let Some(fate) = fate else {
            return violated(format!("an update ended that was never released: {last}"));
        };
        let result = result.as_str().unwrap_or_default();
        *self
            .summary
            .results
            .entry(format!("{} {result}", fate.word()))
            .or_default() += 1;
        if result == "confirmed" && fate != Fate::Good {
            return violated(format!("{version}, which is {}, was confirmed", fate.word()));
        }
        Ok(())
    }

    fn holds(&self, slot: &str, version: &str) -> anyhow::Result<()> {
        let Some(release) = self.releases.get(version) else {
            return violated(format!(
                "slot {slot} is said to hold {version}, which was never released"
            ));
        };
        let partition = self.layout.find(&format!("root{slot}"))?;
        let bytes = self.server.disk(|disk| disk.read(partition.offset, release.size))?;
        if digest(&bytes) != release.sha256 {
            return violated(format!(
                "slot {slot} is said to hold {version}, and holds something else"
            ));
        }
        Ok(())
    }

    /// After a clean stop: the file system is consistent, the settings are there, and nothing is left over.
    fn data_is_whole(&mut self) -> anyhow::Result<()> {
        let partition = self.layout.find("data")?;
        self.server.freeze();
        self.machine.take().context("the device is switched off")?.kill()?;
        let bytes = self
            .server
            .when_gone(|disk| disk.read(partition.offset, partition.size))?;
        let image = self.world.path("data.img");
        fs::write(&image, bytes)?;
        let check = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&image)
            .output()
            .context("starting e2fsck")?;
        if !check.status.success() {
            return violated(format!(
                "the data partition: {}",
                String::from_utf8_lossy(&check.stdout)
            ));
        }
        let dump = self.world.path("data");
        fs::create_dir(&dump)?;
        let request = format!("rdump / {}", dump.display());
        run(Command::new("debugfs").args(["-R", &request]).arg(&image))?;
        if fs::read_to_string(dump.join("settings"))? != SETTINGS {
            return violated("the settings are not what they were");
        }
        let left: Vec<String> = crate::device::files_of(&dump.join("state"))?
            .into_keys()
            .filter(|path| path.contains(".tmp-") || path.contains(".partial"))
            .collect();
        if !left.is_empty() {
            return violated(format!("left over: {left:?}"));
        }
        Ok(())
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

impl Release {
    fn of(fate: Fate, image: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(image)?;
        Ok(Self {
            fate,
            size: bytes.len() as u64,
            sha256: digest(&bytes),
        })
    }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}

fn ensure_held(held: bool, what: &str, status: &Value) -> anyhow::Result<()> {
    if held {
        return Ok(());
    }
    violated(format!("expected was {what}: {status}"))
}

/// The factory: the agent is provisioned with files in place of partitions, which then become the disk.
fn factory(world: &World, parts: &Parts, layout: &Layout, loader: Loader, image: &Path) -> anyhow::Result<Vec<u8>> {
    let path = |name: &str| world.path(name);
    fs::create_dir_all(path("device"))?;
    fs::create_dir_all(path("boot/grub"))?;
    fs::create_dir_all(path("factory"))?;
    let mut config = config_head(&world.url());
    config.push_str("[state]\ndir = \"factory/state\"\n\n");
    let cmdline = "console=ttyS0 quiet nokaslr panic=1";
    match loader {
        Loader::Grub => {
            run(Command::new("grub-editenv")
                .arg(path("boot/grub/grubenv"))
                .arg("create"))?;
            let menu = include_str!("guest/grub.cfg").replace("@CMDLINE@", cmdline);
            fs::write(path("boot/grub/grub.cfg"), menu)?;
            config.push_str("[boot]\ncontrol = \"grub\"\ngrubenv = \"boot/grub/grubenv\"\n");
        }
        Loader::Uboot => {
            let mut places = String::new();
            fs::write(path("device/env.txt"), "vendor=example\n")?;
            for name in ["env1", "env2"] {
                let file = path(&format!("device/{name}"));
                let mut mkenvimage = Command::new("mkenvimage");
                mkenvimage.args(["-r", "-s", ENV_BYTES, "-o"]).arg(&file);
                run(mkenvimage.arg(path("device/env.txt")))?;
                places.push_str(&format!("{} 0 {ENV_BYTES}\n", file.display()));
            }
            fs::write(path("fw_env.config"), places)?;
            config.push_str("[boot]\ncontrol = \"uboot\"\nattempts = 2\nfw_env_config = \"fw_env.config\"\n");
            let script = include_str!("guest/boot.cmd").replace("@CMDLINE@", cmdline);
            fs::write(path("device/boot.cmd"), script)?;
            let mut mkimage = Command::new("mkimage");
            mkimage.args(["-A", "x86", "-T", "script", "-C", "none", "-d"]);
            run(mkimage.arg(path("device/boot.cmd")).arg(path("boot/boot.scr.uimg")))?;
        }
    }
    for name in ["A", "B"] {
        config.push_str(&format!(
            "\n[[slot]]\nname = \"{name}\"\nkind = \"file\"\npath = \"device/slot-{name}\"\n"
        ));
    }
    fs::write(path("device.toml"), config)?;
    let ran = world.fwagent(&["provision", "--root", "repo/metadata/1.root.json", "--from-server"])?;
    ensure!(ran.code == 0, "fwagent provision: {}{}", ran.out, ran.err);
    ensure!(
        fs::read(path("device/slot-A"))? == fs::read(image)?,
        "slot A is not the first release"
    );

    fs::write(path("factory/settings"), SETTINGS)?;
    file_system(&path("factory"), DATA_BYTES, &["-t", "ext4"], &path("device/data"))?;
    let boot = layout.find("boot")?;
    // Without what GRUB and U-Boot cannot read.
    let plain = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,^orphan_file"];
    file_system(&path("boot"), boot.size, &plain, &path("device/boot"))?;
    let (slot, boot, data) = (path("device/slot-A"), path("device/boot"), path("device/data"));
    let (env1, env2) = (path("device/env1"), path("device/env2"));
    let mut content = vec![("rootA", slot.as_path()), ("boot", &boot), ("data", &data)];
    if loader == Loader::Uboot {
        content.extend([("env1", env1.as_path()), ("env2", &env2)]);
    }
    let mut disk = layout.build(&path("device/disk"), &content)?;
    if loader == Loader::Grub {
        layout.install_grub(&mut disk, parts, &path("device/core"))?;
    }
    Ok(disk)
}
