//! A TPM 2.0 in software, behind a Unix socket. Std only: crates that this package depends on include the file by path,
//! and [`tools`](crate::tools) with it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Only a broken machine lets anybody wait so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running swtpm, whose state is in a directory; ended when dropped.
#[derive(Debug)]
pub struct Swtpm {
    dir: PathBuf,
    child: Child,
}

impl Swtpm {
    /// Starts one with the state in `dir`, new when there is none; `None` where it is not installed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(dir: &Path) -> Option<Self> {
        let program = crate::tools::program("swtpm")?;
        fs::create_dir_all(dir).expect("a directory");
        let of = |option: &str, name: &str| {
            let mut text = OsString::from(option);
            text.push(dir.join(name));
            text
        };
        for left in ["tpm", "tpm.ctrl"] {
            let _ = fs::remove_file(dir.join(left));
        }
        let child = Command::new(program)
            .args([
                "socket",
                "--tpm2",
                "--flags",
                "startup-clear,not-need-init",
                "--tpmstate",
            ])
            .arg(of("dir=", ""))
            .arg("--server")
            .arg(of("type=unixio,path=", "tpm"))
            .arg("--ctrl")
            .arg(of("type=unixio,path=", "tpm.ctrl"))
            .stdin(Stdio::null())
            // It names every client that goes.
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm starts");
        let tpm = Self {
            dir: dir.to_owned(),
            child,
        };
        let start = Instant::now();
        while UnixStream::connect(tpm.socket()).is_err() {
            assert!(start.elapsed() < PATIENCE, "swtpm does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(tpm)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("tpm")
    }

    /// Runs a program of tpm2-tools; what it printed. `None` where it is not installed.
    ///
    /// # Panics
    /// When it fails.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Option<Vec<u8>> {
        let mut tcti = OsString::from("swtpm:path=");
        tcti.push(self.socket());
        let ran = Command::new(crate::tools::program(name)?)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", tcti)
            .output()
            .expect("it starts");
        assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
        Some(ran.stdout)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
