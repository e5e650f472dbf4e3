//! A connection that ends itself when it is silent for too long, or when its peer takes no bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// The connection with its two clocks.
#[derive(Debug)]
pub(crate) struct TimedIo<T> {
    inner: T,
    idle: Duration,
    stall: Duration,
    last_activity: Instant,
    idle_timer: Pin<Box<Sleep>>,
    /// Set while a write waits for the peer.
    stall_timer: Option<Pin<Box<Sleep>>>,
}

impl<T> TimedIo<T> {
    pub(crate) fn new(inner: T, idle: Duration, stall: Duration) -> Self {
        let now = Instant::now();
        Self {
            inner,
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
