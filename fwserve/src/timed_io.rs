//! A connection that ends itself when it is silent for too long, or when its peer takes no bytes.
//!
//! Silence counts only while the peer has something to do: judging a large publication may take longer than any client
//! may be silent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// What the server is doing for a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work(Arc<AtomicUsize>);

impl Work {
    /// Something begins that lasts until the guard is dropped.
    pub(crate) fn begin(&self) -> Working {
        self.0.fetch_add(1, Ordering::Relaxed);
        Working(Arc::clone(&self.0))
    }

    fn in_progress(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// Something that the server is doing for a connection.
#[derive(Debug)]
pub(crate) struct Working(Arc<AtomicUsize>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connection with its two clocks.
#[derive(Debug)]
pub(crate) struct TimedIo<T> {
    inner: T,
    work: Work,
    idle: Duration,
    stall: Duration,
    last_activity: Instant,
    idle_timer: Pin<Box<Sleep>>,
    /// Set while a write waits for the peer.
    stall_timer: Option<Pin<Box<Sleep>>>,
}

impl<T> TimedIo<T> {
    pub(crate) fn new(inner: T, work: Work, idle: Duration, stall: Duration) -> Self {
        let now = Instant::now();
        Self {
            inner,
            work,
            idle,
            stall,
            last_activity: now,
            idle_timer: Box::pin(sleep_until(now + idle)),
            stall_timer: None,
        }
    }

    fn written<R>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if result.is_ready() {
            self.last_activity = Instant::now();
            self.stall_timer = None;
            return result;
        }
        let deadline = Instant::now() + self.stall;
        let timer = self.stall_timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer
            .as_mut()
            .poll(context)
            .map(|()| Err(timed_out("the peer took no bytes")))
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<T: AsyncRead + Unpin> AsyncRead for TimedIo<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = Pin::new(&mut this.inner).poll_read(context, buffer) {
            this.last_activity = Instant::now();
            return Poll::Ready(result);
        }
        // The timer is moved only when it fires, not at every byte.
        while this.idle_timer.as_mut().poll(context).is_ready() {
            if this.work.in_progress() {
                this.last_activity = Instant::now();
            }
            let deadline = this.last_activity + this.idle;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(timed_out("the connection was silent")));
            }
            this.idle_timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TimedIo<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.written(context, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(context, slices);
        this.written(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(context);
        this.written(context, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_shutdown(context);
        this.written(context, result)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    const IDLE: Duration = Duration::from_secs(75);

    fn runtime() -> tokio::runtime::Runtime {
        // Time stands still, and jumps when everybody waits for it.
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    }

    #[test]
    fn silence_ends_a_connection_unless_the_server_works() {
        runtime().block_on(async {
            let (stream, _peer) = tokio::io::duplex(64);
            let mut stream = TimedIo::new(stream, Work::default(), IDLE, IDLE);
            let begun = Instant::now();
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, 75));

            let (stream, _peer) = tokio::io::duplex(64);
            let work = Work::default();
            let mut stream = TimedIo::new(stream, work.clone(), IDLE, IDLE);
            let begun = Instant::now();
            let working = work.begin();
            let hour = Duration::from_secs(3600);
            assert!(
                tokio::time::timeout(hour, stream.read_u8()).await.is_err(),
                "still open"
            );
            drop(working);
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(begun.elapsed() <= hour + IDLE);
        });
    }

    #[test]
    fn a_peer_that_takes_nothing_ends_its_connection() {
        use tokio::io::AsyncWriteExt;
        runtime().block_on(async {
            let (stream, _peer) = tokio::io::duplex(64);
            let mut stream = TimedIo::new(stream, Work::default(), IDLE, Duration::from_secs(30));
            let begun = Instant::now();
            let error = stream.write_all(&[0; 65]).await.unwrap_err();
            assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
        });
    }
}
