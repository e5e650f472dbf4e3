//! The medium of boot loaders that read partition attributes: a GUID partition table on a disk or in an image of one.
//!
//! ```text
//! write     1. primary entries and header, fsync, read back     a torn one: loaders and the agent take the backup
//!           2. backup entries and header, fsync, read back      until then the backup is the old table
//! mend      whichever copy is not what the other one says
//! ```
//!
//! The first step begins only when both copies are intact and the same, so one of them is intact at any time.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise, ioctl_blksszget};

use crate::host::loader::Medium;
use crate::host::loader::file_lock::FileLock;
use crate::machine::gpt::{Flaw, GptError, Header, MAX_ARRAY_BYTES, Partition, Read, SECTOR_BYTES, Side, Table};
use crate::machine::gpt_priority::Prioritised;
use crate::machine::slot::SlotId;
use crate::ports::PortError;

/// Bytes of a sector in an image file.
const FILE_SECTOR: usize = 512;

/// The partition table of a disk.
#[derive(Debug)]
pub struct Gpt {
    disk: PathBuf,
    slots: Arc<BTreeMap<SlotId, Partition>>,
}

/// The table of an open disk or image; `None` when there is none that can be used.
pub fn table(disk: File) -> Option<Table> {
    let (table, _) = Disk::new(disk).ok()?.table().ok()?;
    Some(table)
}

/// An open disk.
#[derive(Debug)]
struct Disk {
    file: File,
    sector: usize,
    sectors: u64,
}

impl Gpt {
    /// The table of `disk`, a block device or an image with sectors of 512 bytes, and the partition of each slot.
    pub fn new(disk: PathBuf, slots: BTreeMap<SlotId, Partition>) -> Self {
        Self {
            disk,
            slots: Arc::new(slots),
        }
    }

    fn open(&self, options: &OpenOptions) -> Result<Disk, PortError> {
        let file = options.open(&self.disk);
        file.and_then(Disk::new).map_err(|error| self.failed("opening", error))
    }

    /// Writes what differs, the primary copy first.
    fn put(&self, table: &Table) -> Result<(), PortError> {
        let disk = self.open(OpenOptions::new().read(true).write(true))?;
        for side in [Side::Primary, Side::Backup] {
            let action = match side {
                Side::Primary => "writing the primary copy of",
                Side::Backup => "writing the backup copy of",
            };
            let written = disk.write(table, side);
            written.map_err(|error| self.failed(action, error))?;
        }
        Ok(())
    }

    fn failed(&self, action: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PortError {
        let attempt = format!("{action} the partition table of {}", self.disk.display());
        PortError::environment(attempt, Some(error.into()))
    }

    fn slots(&self, table: Table) -> Result<Prioritised, PortError> {
        let labels = table.labels().join(", ");
        Prioritised::new(table, &self.slots).map_err(|error| {
            let action = match error {
                GptError::Partition { .. } => format!("finding the slots among the partitions {labels} in"),
                _ => "reading".to_owned(),
            };
            self.failed(&action, error)
        })
    }
}

impl Disk {
    fn new(mut file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        let sector = if kind.is_block_device() {
            ioctl_blksszget(&file)? as usize
        } else if kind.is_file() {
            FILE_SECTOR
        } else {
            return Err(io::Error::other("it is neither a block device nor a file"));
        };
        if !SECTOR_BYTES.contains(&sector) {
            return Err(io::Error::other(format!(
                "its sectors of {sector} bytes are not supported"
            )));
        }
        let sectors = file.seek(SeekFrom::End(0))? / sector as u64;
        Ok(Self { file, sector, sectors })
    }

    fn table(&self) -> Result<(Table, bool), Box<dyn std::error::Error + Send + Sync>> {
        let primary = self.side(Side::Primary, 1)?;
        // Where the primary header says; without one, at the end.
        let end = self.sectors.saturating_sub(1);
        let at = primary.as_ref().map_or(end, |(header, _)| header.alternate_lba());
        let backup = self.side(Side::Backup, at)?;
        Ok(Table::choose(primary, backup)?)
    }

    fn read(&self, lba: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = vec![0; bytes.next_multiple_of(self.sector)];
        let offset = self.offset(lba)?;
        // What is read is to be what is on the medium. The kernel may know better; then it is only not as strict.
        let _ = fadvise(&self.file, offset, NonZeroU64::new(read.len() as u64), Advice::DontNeed);
        self.file.read_exact_at(&mut read, offset)?;
        Ok(read)
    }

    fn offset(&self, lba: u64) -> io::Result<u64> {
        let offset = lba.checked_mul(self.sector as u64).filter(|_| lba < self.sectors);
        offset.ok_or_else(|| io::Error::other(format!("sector {lba} lies outside of the disk")))
    }

    fn side(&self, side: Side, lba: u64) -> io::Result<Read> {
        if lba == 0 || lba >= self.sectors {
            return Ok(Err(Flaw::Signature));
        }
        let sector = self.read(lba, self.sector)?;
        let header = match Header::decode(&sector, side, lba, self.sectors) {
            Ok(header) => header,
            Err(flaw) => return Ok(Err(flaw)),
        };
        // Bounded when the header was read.
        let entries = self.read(header.entries_lba(), header.array_bytes().min(MAX_ARRAY_BYTES))?;
        Ok(Ok((header, entries)))
    }

    fn write(&self, table: &Table, side: Side) -> io::Result<()> {
        let pieces = table.encode(side);
        let mut changed = false;
        for (lba, bytes) in &pieces {
            if self.read(*lba, bytes.len())? != *bytes {
                self.file.write_all_at(bytes, self.offset(*lba)?)?;
                changed = true;
            }
        }
        if !changed {
            return Ok(());
        }
        self.file.sync_all()?;
        for (lba, bytes) in &pieces {
            if self.read(*lba, bytes.len())? != *bytes {
                return Err(io::Error::other("it gives back something else"));
            }
        }
        Ok(())
    }
}

impl Medium for Gpt {
    type Vars = Prioritised;

    /// The lock that udev and partitioning tools heed on a whole disk (systemd, "Locking Block Device Access").
    fn lock(&self) -> Result<Option<File>, PortError> {
        let disk = self
            .disk
            .canonicalize()
            .map_err(|error| self.failed("locking", error))?;
        FileLock::new(disk, "the partition table", "a partitioning tool").take()
    }

    fn read(&self, _running: Option<&SlotId>) -> Result<(Prioritised, bool), PortError> {
        let disk = self.open(OpenOptions::new().read(true))?;
        let (table, damaged) = disk.table().map_err(|error| self.failed("reading", error))?;
        Ok((self.slots(table)?, damaged))
    }

    fn mend(&mut self, vars: &Prioritised) -> Result<(), PortError> {
        self.put(vars.table())
    }

    fn write(&mut self, vars: &Prioritised) -> Result<(), PortError> {
        let (before, damaged) = self.read(None)?;
        if damaged {
            self.put(before.table())?;
        }
        self.put(vars.table())
    }
}
