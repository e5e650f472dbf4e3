//! A TPM 2.0 behind a character device of the kernel (`/dev/tpmrm0`) or a Unix socket (swtpm): one command, one answer,
//! in bounded time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use crate::machine::counter::Reading;
use crate::machine::tpm::{self, ANSWER_BYTES, HEADER_BYTES, Index, TpmError};

/// Time for a command, repetitions included. A counter takes a tenth of a second; a TPM that tests itself, some seconds.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a TPM that asks for it is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// A counter that only counts up, outside the state directory.
pub trait Counter {
    /// Where it is, for people.
    fn place(&self) -> String;

    /// Its value, if it has one.
    ///
    /// # Errors
    /// [`CounterError`].
    fn read(&mut self) -> Result<Reading, CounterError>;

    /// Makes it; it has no value then.
    ///
    /// # Errors
    /// [`CounterError`], also when it is there.
    fn define(&mut self) -> Result<(), CounterError>;

    /// Raises it by one, or gives it its first value.
    ///
    /// # Errors
    /// [`CounterError`]; it may have been raised all the same.
    fn increment(&mut self) -> Result<(), CounterError>;
}

/// A TPM could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// It cannot be reached.
    #[error("{attempt}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The path is neither a character device nor a socket.
    #[error("it is neither a character device nor a socket")]
    NoTpm,
    /// What it answered.
    #[error("{command}")]
    Answer {
        /// The command.
        command: &'static str,
        /// The answer.
        source: TpmError,
    },
}

/// A counter in a TPM.
#[derive(Debug, Clone)]
pub struct Tpm {
    path: PathBuf,
    index: u32,
}

impl Tpm {
    /// The counter at `index` of the TPM at `path`. Nothing is opened yet.
    pub fn new(path: PathBuf, index: u32) -> Self {
        Self { path, index }
    }

    /// Sends a command until the TPM does not put it off, and reads its answer.
    fn run<T>(
        &self,
        command: &'static str,
        bytes: &[u8],
        read: impl Fn(&[u8]) -> Result<T, TpmError>,
    ) -> Result<T, CounterError> {
        let start = Instant::now();
        loop {
            let answer = exchange(&self.path, bytes, start + TIMEOUT)?;
            match read(&answer) {
                Ok(done) => return Ok(done),
                Err(error) if error.is_later() && start.elapsed() < TIMEOUT => std::thread::sleep(PAUSE),
                Err(source) => return Err(CounterError::Answer { command, source }),
            }
        }
    }
}

impl Counter for Tpm {
    fn place(&self) -> String {
        format!("counter 0x{:08x} of the TPM at {}", self.index, self.path.display())
    }

    fn read(&mut self) -> Result<Reading, CounterError> {
        let index = self.index;
        let public = self.run("TPM2_NV_ReadPublic", &tpm::read_public(index), |answer| {
            tpm::public(answer, index)
        })?;
        Ok(match public {
            Index::Missing => Reading::Missing,
            Index::Unwritten => Reading::Unwritten,
            Index::Written => Reading::At(self.run("TPM2_NV_Read", &tpm::read(index), tpm::value)?),
        })
    }

    fn define(&mut self) -> Result<(), CounterError> {
        self.run("TPM2_NV_DefineSpace", &tpm::define(self.index), tpm::done)
    }

    fn increment(&mut self) -> Result<(), CounterError> {
        self.run("TPM2_NV_Increment", &tpm::increment(self.index), tpm::done)
    }
}

fn exchange(path: &Path, command: &[u8], until: Instant) -> Result<Vec<u8>, CounterError> {
    let io = |attempt| move |source| CounterError::Io { attempt, source };
    let kind = fs::metadata(path).map_err(io("looking for it"))?.file_type();
    if kind.is_socket() {
        let mut stream = UnixStream::connect(path).map_err(io("connecting to it"))?;
        stream
            .set_write_timeout(Some(left(until)))
            .and_then(|()| stream.write_all(command))
            .map_err(io("sending a command"))?;
        return answer(&mut stream, until);
    }
    if !kind.is_char_device() {
        return Err(CounterError::NoTpm);
    }
    // Not blocking, so that the wait for the answer has an end. Kernels before 4.20 wait in `write`, within their own
    // bounds.
    let flags = OFlags::NONBLOCK.bits();
    let mut device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.cast_signed())
        .open(path)
        .map_err(io("opening it"))?;
    let written = device.write(command).map_err(io("sending a command"))?;
    if written != command.len() {
        return Err(io("sending a command")(io::ErrorKind::WriteZero.into()));
    }
    device_answer(&mut device, until).map_err(io("waiting for its answer"))
}

/// The time that is left; not zero, which would mean for ever.
fn left(until: Instant) -> Duration {
    until
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// The kernel gives an answer in one read.
fn device_answer(device: &mut File, until: Instant) -> io::Result<Vec<u8>> {
    let mut answer = vec![0; ANSWER_BYTES];
    loop {
        let timeout = left(until).try_into().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&*device, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match device.read(&mut answer) {
            Ok(count) => {
                answer.truncate(count);
                return Ok(answer);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                if Instant::now() >= until {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// The answer out of a stream: its header says how long it is.
fn answer(stream: &mut UnixStream, until: Instant) -> Result<Vec<u8>, CounterError> {
    let mut answer = vec![0; HEADER_BYTES];
    let mut have = 0;
    while have < answer.len() {
        let read = stream
            .set_read_timeout(Some(left(until)))
            .and_then(|()| stream.read(answer.get_mut(have..).unwrap_or_default()));
        have += match read {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other,
        }
        .map_err(|source| CounterError::Io {
            attempt: "waiting for its answer",
            source,
        })?;
        if have == HEADER_BYTES
            && let Some(header) = answer.first_chunk()
        {
            let length = tpm::announced(header).map_err(|source| CounterError::Answer {
                command: "its answer",
                source,
            })?;
            answer.resize(length, 0);
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    fn ask(path: &Path, time: Duration) -> Result<Vec<u8>, CounterError> {
        exchange(path, &tpm::read(1), Instant::now() + time)
    }

    #[test]
    fn what_is_no_tpm_is_an_error_in_bounded_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert!(matches!(ask(&file, TIMEOUT), Err(CounterError::Io { .. })));
        fs::write(&file, "content").unwrap();
        assert!(matches!(ask(&file, TIMEOUT), Err(CounterError::NoTpm)));
        assert_eq!(fs::read(&file).unwrap(), b"content");
        // A device that answers with nothing, which no command takes for an answer.
        assert_eq!(ask(Path::new("/dev/null"), TIMEOUT).unwrap(), b"");
        let error = Tpm::new("/dev/null".into(), 1).read().unwrap_err();
        assert!(crate::drive::chain(&error).contains("too short"), "{error:?}");

        let path = dir.path().join("silent");
        let _silent = UnixListener::bind(&path).unwrap();
        let error = ask(&path, Duration::from_millis(20)).unwrap_err();
        let CounterError::Io { source, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_answer_comes_in_pieces_and_never_without_end() {
        let whole = [0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8];
        for (pieces, expected) in [
            (vec![&whole[..3], &whole[3..11], &whole[11..]], Some(&whole[..])),
            // More than announced is not read.
            (vec![&whole[..], &[9][..]], Some(&whole[..])),
            (vec![&whole[..11]], None),
            (vec![&[0x80, 1, 0xFF, 0, 0, 0, 0, 0, 0, 0][..]], None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("tpm");
            let listener = UnixListener::bind(&path).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.read_exact(&mut vec![0; tpm::read(1).len()]).unwrap();
                    for piece in &pieces {
                        stream.write_all(piece).unwrap();
                    }
                });
                assert_eq!(ask(&path, TIMEOUT).ok().as_deref(), expected);
            });
        }
    }

    /// A TPM that puts a command off did nothing, so that it is sent again.
    #[test]
    fn a_tpm_that_asks_for_it_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tpm");
        let listener = UnixListener::bind(&path).unwrap();
        let later = [0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22];
        let done = [0x80, 2, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for answer in [&later[..], &done] {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.read_exact(&mut vec![0; tpm::increment(1).len()]).unwrap();
                    stream.write_all(answer).unwrap();
                }
            });
            Tpm::new(path.clone(), 1).increment().unwrap();
        });
    }
}
