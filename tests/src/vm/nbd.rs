//! A [`Disk`] behind a Unix socket, for QEMU: an NBD server that stops answering at the write or flush it was told.
//!
//! Source: the NBD protocol, `doc/proto.md` of github.com/NetworkBlockDevice/nbd: fixed newstyle handshake, simple
//! replies, the commands READ, WRITE with FUA, FLUSH and DISC. One export, whatever name is asked for.
//!
//! ```text
//! serving --(the request that it waits for, or freeze)--> frozen: hears everything, does and answers nothing
//! frozen  --(QEMU was killed)--> power_cut: the disk decides about what was pending --> serving
//! ```
//!
//! A frozen server keeps its connection: closing it would tell the guest of an error, which a loss of power does not.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::random::Random;
use crate::vm::disk::{Damage, Disk, SECTOR};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake: fixed newstyle; the zeroes after an export name are left out.
const HANDSHAKE: u16 = 1 | 2;
const NO_ZEROES: u32 = 2;
/// Transmission: flags are there, flush, FUA.
const TRANSMISSION: u16 = 1 | 4 | 8;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;
const EINVAL: u32 = 22;

/// Longest option of the handshake and longest request, in bytes.
const OPTION_BYTES: u32 = 64 * 1024;
const REQUEST_BYTES: u32 = 32 * 1024 * 1024;

/// The request at which the server freezes, counted from 1 since it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeAt {
    /// This write, which is pending and was not acknowledged.
    Write(u64),
    /// This flush, before it does anything.
    BeforeFlush(u64),
    /// This flush, which is done and was not acknowledged.
    AfterFlush(u64),
}

/// Requests that were done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes, FUA or not.
    pub writes: u64,
    /// Flushes, and writes with FUA.
    pub flushes: u64,
}

/// The server. Serves until the end of the process.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    disk: Disk,
    counts: Counts,
    frozen: bool,
    connections: usize,
    plan: Option<Plan>,
}

/// To freeze at a request, counted from `since`.
struct Plan {
    at: FreezeAt,
    since: Counts,
    then: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("counts", &self.counts)
            .field("frozen", &self.frozen)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `disk` at the path `socket`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(socket: &Path, disk: Disk) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let state = State {
            disk,
            counts: Counts::default(),
            frozen: false,
            connections: 0,
            plan: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            ended: Condvar::new(),
        });
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                shared.lock().connections += 1;
                thread::spawn(move || {
                    // A client that was killed in the middle is what this server is for.
                    let _ = serve(&stream, &shared);
                    shared.lock().connections -= 1;
                    shared.ended.notify_all();
                });
            }
        });
        Ok(Self { shared })
    }

    /// Freezes at a request to come, and calls `then` when it has come.
    pub fn freeze_at(&self, at: FreezeAt, then: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.plan = Some(Plan {
            at,
            since: state.counts,
            then: Box::new(then),
        });
    }

    /// Freezes now.
    pub fn freeze(&self) {
        let mut state = self.shared.lock();
        state.frozen = true;
        state.plan = None;
    }

    /// What was done since the start.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// The power fails: freezes, waits until the clients are gone, which the caller has killed, and serves again what the
    /// disk then holds.
    pub fn power_cut(&self, random: &mut Random) -> Damage {
        self.when_gone(|disk| disk.cut(random))
    }

    /// Freezes, waits until the clients are gone, and lets `look` have the disk before it serves again.
    pub fn when_gone<T>(&self, look: impl FnOnce(&mut Disk) -> T) -> T {
        self.freeze();
        let mut state = self.shared.lock();
        while state.connections > 0 {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let found = look(&mut state.disk);
        state.frozen = false;
        found
    }

    /// Looks at the disk as its reader sees it.
    pub fn disk<T>(&self, look: impl FnOnce(&Disk) -> T) -> T {
        look(&self.shared.lock().disk)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Freezes if this is the request that is waited for.
    fn reached(&mut self, reached: impl FnOnce(FreezeAt, Counts) -> bool) {
        let counts = self.counts;
        let is_it = self.plan.as_ref().is_some_and(|plan| {
            let done = Counts {
                reads: counts.reads - plan.since.reads,
                writes: counts.writes - plan.since.writes,
                flushes: counts.flushes - plan.since.flushes,
            };
            reached(plan.at, done)
        });
        if is_it && let Some(plan) = self.plan.take() {
            self.frozen = true;
            (plan.then)();
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8], fua: bool) -> Result<(), u32> {
        self.counts.writes += 1;
        self.disk.write(offset, bytes, false).map_err(|_| EINVAL)?;
        self.reached(|at, done| at == FreezeAt::Write(done.writes));
        if fua && !self.frozen {
            // The same bytes again, to the medium.
            self.flush(|disk| {
                let _ = disk.write(offset, bytes, true);
            });
        }
        Ok(())
    }

    fn flush(&mut self, flush: impl FnOnce(&mut Disk)) {
        self.counts.flushes += 1;
        self.reached(|at, done| at == FreezeAt::BeforeFlush(done.flushes));
        if !self.frozen {
            flush(&mut self.disk);
            self.reached(|at, done| at == FreezeAt::AfterFlush(done.flushes));
        }
    }
}

fn serve(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::with_capacity(256 * 1024, stream);
    let mut to = BufWriter::new(stream);
    if handshake(&mut from, &mut to, shared)? {
        requests(&mut from, &mut to, shared)?;
    }
    Ok(())
}

/// Agrees on the export; false when the client goes away.
fn handshake(from: &mut impl Read, to: &mut impl Write, shared: &Shared) -> io::Result<bool> {
    to.write_all(&MAGIC.to_be_bytes())?;
    to.write_all(&OPTION_MAGIC.to_be_bytes())?;
    to.write_all(&HANDSHAKE.to_be_bytes())?;
    to.flush()?;
    let client = u32::from_be_bytes(take(from)?);
    let size = shared.lock().disk.size();
    loop {
        if u64::from_be_bytes(take(from)?) != OPTION_MAGIC {
            return Err(io::Error::other("not an option"));
        }
        let option = u32::from_be_bytes(take(from)?);
        let length = u32::from_be_bytes(take(from)?);
        if length > OPTION_BYTES {
            return Err(io::Error::other("the option is too long"));
        }
        let mut data = vec![0; length as usize];
        from.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| -> io::Result<()> {
            to.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
            to.write_all(&option.to_be_bytes())?;
            to.write_all(&kind.to_be_bytes())?;
            to.write_all(&(data.len() as u32).to_be_bytes())?;
            to.write_all(data)
        };
        match option {
            OPTION_EXPORT_NAME => {
                to.write_all(&size.to_be_bytes())?;
                to.write_all(&TRANSMISSION.to_be_bytes())?;
                if client & NO_ZEROES == 0 {
                    to.write_all(&[0; 124])?;
                }
                to.flush()?;
                return Ok(true);
            }
            OPTION_INFO | OPTION_GO => {
                let export = [
                    &INFO_EXPORT.to_be_bytes()[..],
                    &size.to_be_bytes(),
                    &TRANSMISSION.to_be_bytes(),
                ];
                reply(REPLY_INFO, &export.concat())?;
                let blocks = [
                    &INFO_BLOCK_SIZE.to_be_bytes()[..],
                    &(SECTOR as u32).to_be_bytes(),
                    &4096_u32.to_be_bytes(),
                    &REQUEST_BYTES.to_be_bytes(),
                ];
                reply(REPLY_INFO, &blocks.concat())?;
                reply(REPLY_ACK, &[])?;
            }
            OPTION_LIST => {
                reply(REPLY_SERVER, &0_u32.to_be_bytes())?;
                reply(REPLY_ACK, &[])?;
            }
            OPTION_ABORT => reply(REPLY_ACK, &[])?,
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
        to.flush()?;
        match option {
            OPTION_GO => return Ok(true),
            OPTION_ABORT => return Ok(false),
            _ => {}
        }
    }
}

fn requests(from: &mut impl Read, to: &mut impl Write, shared: &Shared) -> io::Result<()> {
    loop {
        if u32::from_be_bytes(take(from)?) != REQUEST_MAGIC {
            return Err(io::Error::other("not a request"));
        }
        let flags = u16::from_be_bytes(take(from)?);
        let command = u16::from_be_bytes(take(from)?);
        let cookie: [u8; 8] = take(from)?;
        let offset = u64::from_be_bytes(take(from)?);
        let length = u32::from_be_bytes(take(from)?);
        if length > REQUEST_BYTES {
            return Err(io::Error::other("the request is too long"));
        }
        let mut written = vec![0; if command == WRITE { length as usize } else { 0 }];
        from.read_exact(&mut written)?;

        let mut state = shared.lock();
        if state.frozen {
            continue;
        }
        let done = match command {
            READ => {
                state.counts.reads += 1;
                state.disk.read(offset, u64::from(length)).map_err(|_| EINVAL)
            }
            WRITE => state
                .write(offset, &written, flags & FLAG_FUA != 0)
                .map(|()| Vec::new()),
            FLUSH => {
                state.flush(Disk::flush);
                Ok(Vec::new())
            }
            DISCONNECT => return Ok(()),
            _ => Err(EINVAL),
        };
        // What the client never hears of may have been done or not; that is the point.
        if state.frozen {
            continue;
        }
        drop(state);
        to.write_all(&REPLY_MAGIC.to_be_bytes())?;
        to.write_all(&done.as_ref().err().unwrap_or(&0).to_be_bytes())?;
        to.write_all(&cookie)?;
        to.write_all(&done.unwrap_or_default())?;
        to.flush()?;
    }
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
