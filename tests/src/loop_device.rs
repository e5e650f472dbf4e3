//! Block devices for tests: loop devices over files, and what the system does with them. Std only: crates that this
//! package depends on include the file by path, next to `tools`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tools;

/// A loop device; detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its node.
    pub path: PathBuf,
}

impl LoopDevice {
    /// Attaches a file; `options` are those of `losetup`. Skips where that is not possible: without root or loop devices.
    pub fn attach(file: &Path, options: &[&str]) -> Option<Self> {
        let losetup = tools::program("losetup")?;
        let mut command = Command::new(losetup);
        let output = command.args(["--find", "--show"]).args(options).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8_lossy(&output.stdout).trim().into();
                Some(Self { path })
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                tools::skip(&format!("no loop device: {said}"));
                None
            }
            Err(error) => {
                tools::skip(&format!("losetup: {error}"));
                None
            }
        }
    }

    /// A new file of so many bytes, attached.
    ///
    /// # Panics
    /// When the file cannot be made.
    pub fn new(file: &Path, size: u64) -> Option<Self> {
        let made = fs::File::create(file).and_then(|made| made.set_len(size));
        made.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self::attach(file, &[])
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", [OsStr::new("--detach"), self.path.as_os_str()]);
    }
}

/// Something that is undone when dropped.
#[derive(Debug)]
pub struct Undo {
    program: &'static str,
    argument: PathBuf,
}

impl Undo {
    /// Mounts, with arguments of `mount`; the last one is the mount point, which is created.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount(arguments: &[&str], point: &Path) -> Self {
        let made = fs::create_dir_all(point);
        made.unwrap_or_else(|error| panic!("{}: {error}", point.display()));
        done("mount", arguments.iter().map(OsStr::new).chain([point.as_os_str()]));
        Self::by("umount", point)
    }

    /// What a program undoes, given one argument.
    pub fn by(program: &'static str, argument: &Path) -> Self {
        Self {
            program,
            argument: argument.to_owned(),
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = run(self.program, [self.argument.as_os_str()]);
    }
}

/// Runs a program, which must succeed.
///
/// # Panics
/// When it does not.
pub fn done<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) {
    let ran = run(program, arguments).unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(ran.0, "{program}: {}", ran.1);
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> io::Result<(bool, String)> {
    let output = Command::new(program).args(arguments).output()?;
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
