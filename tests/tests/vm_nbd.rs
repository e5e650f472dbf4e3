//! The disk of the virtual machine against clients of other people: qemu-io and nbdinfo.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, ensure};
use fwtests::device::PATIENCE;
use fwtests::random::Random;
use fwtests::tools;
use fwtests::vm::disk::{Caching, Disk, Fate, SECTOR};
use fwtests::vm::nbd::{FreezeAt, Server};

const SIZE: usize = 1024 * 1024;

struct Bench {
    dir: tempfile::TempDir,
    server: Server,
    qemu_io: PathBuf,
}

impl Bench {
    fn new(caching: Caching) -> anyhow::Result<Option<Self>> {
        let Some(qemu_io) = tools::program("qemu-io") else {
            return Ok(None);
        };
        let dir = tempfile::tempdir()?;
        let server = Server::start(&dir.path().join("disk"), Disk::new(vec![b'o'; SIZE], caching))?;
        Ok(Some(Self { dir, server, qemu_io }))
    }

    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.dir.path().join("disk").display())
    }

    fn command(&self, commands: &[&str]) -> Command {
        let mut command = Command::new(&self.qemu_io);
        // Write-back: what the client is not told to flush, it does not.
        command.args(["-f", "raw", "-t", "writeback"]);
        for one in commands {
            command.args(["-c", one]);
        }
        command.arg(self.url()).stdin(Stdio::null());
        command
    }

    fn does(&self, commands: &[&str]) -> anyhow::Result<Output> {
        let output = self.command(commands).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // qemu-io ends with 0 when a pattern differs; it says so.
        ensure!(
            output.status.success() && !said.contains("failed"),
            "{commands:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// Starts a client that will never be answered again once `at` has come, waits for that, and kills it.
    fn cut(&self, at: FreezeAt, commands: &[&str]) -> anyhow::Result<()> {
        let (frozen, heard): (_, Receiver<()>) = channel();
        self.server.freeze_at(at, move || {
            let _ = frozen.send(());
        });
        let mut client = self.command(commands).stdout(Stdio::null()).spawn()?;
        let came = heard.recv_timeout(PATIENCE);
        let still_waits = client.try_wait()?.is_none();
        end(&mut client)?;
        came.with_context(|| format!("{at:?} never came"))?;
        ensure!(still_waits, "the client was answered, or lost its connection");
        Ok(())
    }

    /// The first byte of a sector, as a reader sees it.
    fn sector(&self, sector: usize) -> anyhow::Result<u8> {
        let bytes = self
            .server
            .disk(|disk| disk.read((sector * SECTOR) as u64, SECTOR as u64))?;
        Ok(bytes[0])
    }
}

fn end(child: &mut Child) -> anyhow::Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[test]
fn nbdinfo_sees_a_disk_that_can_flush() -> anyhow::Result<()> {
    let Some(bench) = Bench::new(Caching::Honest)? else {
        return Ok(());
    };
    let Some(nbdinfo) = tools::program("nbdinfo") else {
        return Ok(());
    };
    let output = Command::new(nbdinfo)
        .args(["--json", "--no-content", &bench.url()])
        .output()?;
    let seen: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let export = &seen["exports"][0];
    ensure!(seen["protocol"] == "newstyle-fixed", "{seen}");
    ensure!(
        export["export-size"] == SIZE && export["block_size_minimum"] == SECTOR,
        "{seen}"
    );
    ensure!(export["can_flush"] == true && export["can_fua"] == true, "{seen}");
    ensure!(export["is_read_only"] == false && export["can_trim"] == false, "{seen}");
    Ok(())
}

#[test]
fn a_client_reads_what_it_wrote() -> anyhow::Result<()> {
    let Some(bench) = Bench::new(Caching::Honest)? else {
        return Ok(());
    };
    bench.does(&[
        "read -P 0x6f 0 1M",
        "write -P 0x41 512 1024",
        "write -f -P 0x42 4096 64k",
        "flush",
    ])?;
    bench.does(&[
        "read -P 0x41 512 1024",
        "read -P 0x42 4096 64k",
        "read -P 0x6f 1536 512",
    ])?;
    ensure!(
        bench.does(&["read -P 0x41 0 512"]).is_err(),
        "a pattern that is not there was found"
    );
    let counts = bench.server.counts();
    ensure!(counts.writes == 2 && counts.flushes >= 2, "{counts:?}");
    Ok(())
}

#[test]
fn what_was_flushed_outlives_a_cut_and_what_was_not_does_not() -> anyhow::Result<()> {
    for (caching, flushed) in [(Caching::Honest, *b"ABoo"), (Caching::Lying, *b"oooo")] {
        let Some(bench) = Bench::new(caching)? else {
            return Ok(());
        };
        let commands = [
            "write -P 0x41 0 512",
            "flush",
            "write -f -P 0x42 512 512",
            "write -P 0x43 1024 512",
            "flush",
        ];
        // The flush that FUA counts as comes second.
        bench.cut(FreezeAt::BeforeFlush(3), &commands)?;
        let damage = bench
            .server
            .when_gone(|disk| disk.cut_as(Fate::Lost, &mut Random::new(1)));
        ensure!(damage.pending == damage.lost, "{damage:?}");
        for (sector, expected) in flushed.into_iter().enumerate() {
            ensure!(bench.sector(sector)? == expected, "{caching:?}: sector {sector}");
        }
        // It serves again.
        bench.does(&["write -P 0x44 0 512", "flush", "read -P 0x44 0 512"])?;
    }
    Ok(())
}

#[test]
fn a_flush_that_was_done_and_not_acknowledged_is_done() -> anyhow::Result<()> {
    let Some(bench) = Bench::new(Caching::Honest)? else {
        return Ok(());
    };
    bench.cut(FreezeAt::AfterFlush(1), &["write -P 0x41 0 512", "flush"])?;
    let damage = bench.server.power_cut(&mut Random::new(1));
    ensure!(damage.pending == 0 && bench.sector(0)? == b'A', "{damage:?}");
    bench.cut(FreezeAt::Write(2), &["write -P 0x42 0 512", "write -P 0x43 512 512"])?;
    let damage = bench
        .server
        .when_gone(|disk| disk.cut_as(Fate::Kept, &mut Random::new(1)));
    ensure!(damage.pending == 2 && bench.sector(0)? == b'B' && bench.sector(1)? == b'C');
    Ok(())
}

#[test]
fn a_frozen_disk_hears_and_neither_does_nor_answers() -> anyhow::Result<()> {
    let Some(bench) = Bench::new(Caching::Honest)? else {
        return Ok(());
    };
    bench.server.freeze();
    let mut client = bench.command(&["write -P 0x41 0 512"]).stdout(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(client.try_wait()?.is_none() && bench.sector(0)? == b'o');
    end(&mut client)?;
    let mut said = String::new();
    client
        .stdout
        .take()
        .context("no standard output")?
        .read_to_string(&mut said)?;
    ensure!(said.is_empty(), "{said}");
    bench.server.power_cut(&mut Random::new(1));
    bench.does(&["read -P 0x6f 0 512"])?;
    Ok(())
}

#[test]
fn a_request_outside_of_the_disk_is_an_error_of_that_request_only() -> anyhow::Result<()> {
    let Some(bench) = Bench::new(Caching::Honest)? else {
        return Ok(());
    };
    let mut raw = Raw::connect(&bench.dir.path().join("disk"))?;
    for (command, offset, length, expected) in [
        (0, 0, 512, 0),
        (0, SIZE as u64, 512, 22),
        (0, 100, 512, 22),
        (1, SIZE as u64 - 512, 1024, 22),
        (1, 0, 512, 0),
        (9, 0, 0, 22),
        (3, 0, 0, 0),
    ] {
        let error = raw.request(command, offset, length)?;
        ensure!(error == expected, "command {command} at {offset}: {error}");
    }
    ensure!(bench.sector(0)? == b'r' && bench.sector(SIZE / SECTOR - 1)? == b'o');
    Ok(())
}

/// A client that asks for what qemu-io would not.
struct Raw(std::os::unix::net::UnixStream);

impl Raw {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        ensure!(&greeting[..16] == b"NBDMAGICIHAVEOPT");
        let mut option = vec![0, 0, 0, 3];
        option.extend(b"IHAVEOPT");
        option.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        stream.write_all(&option)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        ensure!(export[..8] == (SIZE as u64).to_be_bytes());
        Ok(Self(stream))
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> anyhow::Result<u32> {
        use std::io::Write;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(b"cookie__");
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        if command == 1 {
            request.extend(vec![b'r'; length as usize]);
        }
        self.0.write_all(&request)?;
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply)?;
        ensure!(reply[..4] == [0x67, 0x44, 0x66, 0x98] && &reply[8..] == b"cookie__");
        let error = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
        if command == 0 && error == 0 {
            self.0.read_exact(&mut vec![0; length as usize])?;
        }
        Ok(error)
    }
}
