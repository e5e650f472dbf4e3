//! The medium of a U-Boot with a boot counter: its environment, and the file of the counter if there is one.
//!
//! ```text
//! counting is to run    1. file   2. environment      in between the confirmed slot is counted, with itself to go back to
//! counting is to end    1. environment   2. file      the same
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use crate::host::loader::Medium;
use crate::host::loader::uboot::{Uboot, write_in_place};
use crate::machine::boot_count::{Counted, CounterFile, SlotNames};
use crate::machine::slot::SlotId;
use crate::ports::PortError;

/// The environment of U-Boot, with a counter.
#[derive(Debug)]
pub struct UbootCount {
    uboot: Uboot,
    names: Arc<SlotNames>,
    file: Option<PathBuf>,
}

impl UbootCount {
    /// The environment `uboot`, in which slots have these names; the counter is in `file` or in the environment.
    pub fn new(uboot: Uboot, names: SlotNames, file: Option<PathBuf>) -> Self {
        Self {
            uboot,
            names: Arc::new(names),
            file,
        }
    }

    fn counter(&self) -> Result<Option<CounterFile>, PortError> {
        let Some(path) = &self.file else { return Ok(None) };
        let mut bytes = Vec::new();
        match File::open(path).and_then(|file| file.take(4).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(CounterFile::decode(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(CounterFile::decode(&[]))),
            Err(error) => Err(self.failed("reading", error)),
        }
    }

    /// Four bytes of one sector are written where they lie; a file of another length is replaced.
    fn write_counter(&self, counter: CounterFile) -> Result<(), PortError> {
        let Some(path) = &self.file else { return Ok(()) };
        let bytes = counter.encode();
        let whole = path
            .metadata()
            .is_ok_and(|metadata| metadata.len() == bytes.len() as u64);
        let written = if whole {
            write_in_place(path, &bytes, 0)
        } else {
            fwdurable::write_file_mode(path, &bytes, 0o644)
        };
        written.map_err(|error| self.failed("writing", error))?;
        if self.counter()? != Some(counter) {
            return Err(self.failed("writing", io::Error::other("it gives back something else")));
        }
        Ok(())
    }

    fn failed(&self, action: &str, error: io::Error) -> PortError {
        let path = self.file.as_deref().unwrap_or_else(|| "".as_ref()).display();
        PortError::environment(format!("{action} the boot counter {path}"), Some(error.into()))
    }
}

impl Medium for UbootCount {
    type Vars = Counted;

    fn lock(&self) -> Result<Option<File>, PortError> {
        self.uboot.lock()
    }

    fn read(&self, running: Option<&SlotId>) -> Result<(Counted, bool), PortError> {
        let (environment, damaged) = self.uboot.read(running)?;
        let vars = Counted {
            environment,
            file: self.counter()?,
            names: Arc::clone(&self.names),
        };
        Ok((vars, damaged))
    }

    fn mend(&mut self, vars: &Counted) -> Result<(), PortError> {
        self.uboot.mend(&vars.environment)
    }

    fn write(&mut self, vars: &Counted) -> Result<(), PortError> {
        let (before, _) = self.read(None)?;
        let counter = vars.file.filter(|counter| before.file != Some(*counter));
        let (first, last) = match counter {
            Some(counter) if counter.upgrade_available => (Some(counter), None),
            other => (None, other),
        };
        if let Some(counter) = first {
            self.write_counter(counter)?;
        }
        if before.environment != vars.environment {
            self.uboot.write(&vars.environment)?;
        }
        last.map_or(Ok(()), |counter| self.write_counter(counter))
    }
}
