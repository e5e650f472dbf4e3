//! Boot control `systemd-boot`: entries whose names count boots, in `loader/entries` of the ESP or of XBOOTLDR.
//!
//! ```text
//! change of a name     1. the new name, written with the same content, fsync, read back
//!                      2. the old names removed, one after the other
//! ```
//!
//! Not a rename: on FAT that is two places of a directory, and a loss of power between them leaves two names of one chain
//! of clusters, or none. So, for a moment, there are two entries of a slot, each whole or the new one cut off; which one
//! counts then, `machine/boot_entries.rs` says, and the next change of the slot removes the others.
//!
//! The loader itself does rename; an ESP is to be checked (`fsck.fat`) before it is mounted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::host::loader::efivarfs::EfiVars;
use crate::host::loader::{HostBoot, Running};
use crate::machine::boot::BootView;
use crate::machine::boot_entries::{
    self, Count, ENTRY_BYTES, Entries, EntryError, EntryName, Found, Rename, SlotEntry,
};
use crate::machine::efi_boot;
use crate::machine::slot::SlotId;
use crate::ports::{BootControl, PortError};

/// Of the variables of the boot loader interface (systemd, `src/fundamental/efivars-fundamental.h`).
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Longest `loader.conf`, in bytes.
const CONF_BYTES: usize = 64 * 1024;

/// Where things lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPaths {
    /// The directory of the entries.
    pub entries: PathBuf,
    /// `loader.conf` on the ESP.
    pub conf: PathBuf,
    /// EFI variables.
    pub vars: EfiVars,
}

/// systemd-boot.
#[derive(Debug)]
pub struct SystemdBoot {
    paths: EntryPaths,
    names: [(SlotId, EntryName); 2],
    running: Running,
}

impl SystemdBoot {
    /// The loader with these entries.
    pub fn new(paths: EntryPaths, names: [(SlotId, EntryName); 2], running: Running) -> Self {
        Self { paths, names, running }
    }

    fn load(&self) -> Result<Entries, PortError> {
        self.check_patterns()?;
        let mut slots = Vec::new();
        for (slot, name) in &self.names {
            let files = self.files(name)?;
            let found: Vec<Found> = files.into_iter().map(|(_, found)| found).collect();
            slots.push((slot.clone(), SlotEntry::of(slot, name, &found)));
        }
        let slots = <[_; 2]>::try_from(slots);
        slots
            .map(Entries)
            .map_err(|_| self.failed("reading", "there must be two slots"))
    }

    /// The files of a slot.
    fn files(&self, name: &EntryName) -> Result<Vec<(PathBuf, Found)>, PortError> {
        let read = || -> io::Result<Vec<(PathBuf, Found)>> {
            let mut files = Vec::new();
            for entry in self.paths.entries.read_dir()? {
                let entry = entry?;
                let count = entry.file_name().to_str().and_then(|file| name.parse(file));
                if let Some(count) = count {
                    let bytes = read_bounded(&entry.path(), ENTRY_BYTES)?;
                    files.push((entry.path(), Found { count, bytes }));
                }
            }
            Ok(files)
        };
        read().map_err(|error| self.failed("reading", error))
    }

    /// Whoever chooses an entry for good makes counting pointless.
    fn check_patterns(&self) -> Result<(), PortError> {
        let names = self.names.each_ref().map(|(_, name)| name.clone());
        let check = |place: &str, pattern: &str| {
            boot_entries::check_pattern(place, pattern, &names).map_err(|error| self.failed("reading", error))
        };
        let conf = match read_bounded(&self.paths.conf, CONF_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            conf => conf.map_err(|error| {
                PortError::environment(format!("reading {}", self.paths.conf.display()), Some(error.into()))
            })?,
        };
        let conf = String::from_utf8_lossy(&conf);
        if let Some(pattern) = boot_entries::default_pattern(&conf) {
            check(&format!("`default` in {}", self.paths.conf.display()), pattern)?;
        }
        match self.variable("LoaderEntryDefault")? {
            Some(pattern) => check("the EFI variable LoaderEntryDefault", &pattern),
            None => Ok(()),
        }
    }

    fn variable(&self, name: &str) -> Result<Option<String>, PortError> {
        let data = self.paths.vars.read(name, LOADER)?;
        Ok(data.map(|data| efi_boot::text(&data)))
    }

    /// Carries renames out; each is durable before the next begins.
    fn apply(
        &self,
        attempt: &str,
        change: impl FnOnce(&Entries) -> Result<Vec<Rename>, EntryError>,
    ) -> Result<(), PortError> {
        let entries = self.load()?;
        for (slot, count) in change(&entries).map_err(|error| self.failed(attempt, error))? {
            self.settle(&slot, count, &entries)
                .map_err(|error| self.failed(attempt, error))?;
        }
        Ok(())
    }

    /// Makes `count` the one name of a slot's entry.
    fn settle(
        &self,
        slot: &SlotId,
        count: Count,
        entries: &Entries,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let name = self.names.iter().find(|(named, _)| named == slot).map(|(_, name)| name);
        let entry = entries
            .0
            .iter()
            .find(|(named, _)| named == slot)
            .map(|(_, entry)| entry);
        let (Some(name), Some(Ok(entry))) = (name, entry) else {
            return Err(format!("slot {slot} has no entry").into());
        };
        let files = self.files(name)?;
        let is_kept = |found: &Found| found.count == count && found.bytes == entry.bytes;
        // Two names may mean the same count: `+3` and `+3-0`.
        let kept = match files.iter().find(|(_, found)| is_kept(found)) {
            Some((path, _)) => path.clone(),
            None => {
                let path = self.paths.entries.join(name.file(count));
                fwdurable::remove_file(&path)?;
                create(&path, &entry.bytes)?;
                path
            }
        };
        for (path, _) in files.iter().filter(|(path, _)| *path != kept) {
            fwdurable::remove_file(path)?;
        }
        Ok(())
    }

    fn failed(&self, attempt: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PortError {
        let attempt = format!("{attempt} in {}", self.paths.entries.display());
        PortError::environment(attempt, Some(error.into()))
    }

    /// The slot that runs, which the loader must not deny.
    fn running(&self) -> Result<SlotId, PortError> {
        let slots = self.names.each_ref().map(|(slot, _)| slot.clone());
        let running = self.running.slot(&slots)?;
        let name = self
            .names
            .iter()
            .find(|(slot, _)| *slot == running)
            .map(|(_, name)| name);
        let Some(name) = name else { return Ok(running) };
        // The one is an entry without counters, the other the path of its file.
        let selected = self.variable("LoaderEntrySelected")?;
        let counted = self.variable("LoaderBootCountPath")?;
        let counted = counted.as_deref().and_then(|path| path.rsplit('\\').next());
        let denied = selected.as_deref().filter(|id| !id.eq_ignore_ascii_case(&name.id()));
        match denied.or(counted.filter(|file| name.parse(file).is_none())) {
            Some(other) => Err(PortError::environment(
                format!(
                    "finding the slot that runs: it is {running} by what the kernel says, and the boot loader booted {other}"
                ),
                None,
            )),
            None => Ok(running),
        }
    }
}

fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!(
            "{} is longer than {limit} bytes",
            path.display()
        )));
    }
    Ok(bytes)
}

/// A new file of its own clusters, durable and read back.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fwdurable::sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    if read_bounded(path, bytes.len())? != bytes {
        return Err(io::Error::other(format!(
            "{} gives back something else",
            path.display()
        )));
    }
    Ok(())
}

impl BootControl for SystemdBoot {
    fn view(&mut self) -> Result<BootView, PortError> {
        self.peek()
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.apply(&format!("disabling slot {slot}"), |entries| entries.disable(slot))
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), PortError> {
        self.apply(&format!("arming slot {slot}"), |entries| entries.arm(slot, attempts))
    }

    fn confirm(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.apply(&format!("confirming slot {slot}"), |entries| entries.confirm(slot))
    }

    fn replenish(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.apply(&format!("marking slot {slot} good"), |entries| entries.replenish(slot))
    }
}

impl HostBoot for SystemdBoot {
    fn primary(&mut self) -> Result<Option<SlotId>, PortError> {
        let primary = self.load()?.primary();
        primary.map_err(|error| self.failed("reading", error))
    }

    fn create(&mut self, slot: &SlotId) -> Result<(), PortError> {
        self.apply("setting the boot loader up", |entries| entries.create(slot))
    }

    fn peek(&self) -> Result<BootView, PortError> {
        let running = self.running()?;
        let view = self.load()?.view(&running);
        view.map_err(|error| self.failed("reading", error))
    }
}
