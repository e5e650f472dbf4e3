//! Bodies of answers: bytes in memory, or a range of a file in constant memory; each ends its access log entry.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::access_log::Entry;

/// Bytes of a file that one answer holds in memory.
const CHUNK: u64 = 128 * 1024;

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    source: Source,
    entry: Option<Entry>,
}

#[derive(Debug)]
enum Source {
    Memory(Bytes),
    File {
        file: Arc<File>,
        offset: u64,
        left: u64,
        reading: Option<JoinHandle<io::Result<Bytes>>>,
    },
}

impl AnswerBody {
    pub(crate) fn memory(bytes: impl Into<Bytes>) -> Self {
        Self {
            source: Source::Memory(bytes.into()),
            entry: None,
        }
    }

    pub(crate) fn file(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self {
            source: Source::File {
                file,
                offset,
                left: length,
                reading: None,
            },
            entry: None,
        }
    }

    pub(crate) fn logged(mut self, entry: Option<Entry>) -> Self {
        self.entry = entry;
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let bytes = match &mut this.source {
            Source::Memory(bytes) => std::mem::take(bytes),
            Source::File { left: 0, .. } => return Poll::Ready(None),
            Source::File {
                file,
                offset,
                left,
                reading,
            } => {
                let task = reading.get_or_insert_with(|| {
                    let (file, offset, length) = (Arc::clone(file), *offset, (*left).min(CHUNK));
                    spawn_blocking(move || read_chunk(&file, offset, length))
                });
                let Poll::Ready(read) = Pin::new(task).poll(context) else {
                    return Poll::Pending;
                };
                *reading = None;
                let bytes = match read.map_err(io::Error::other).flatten() {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        *left = 0;
                        return Poll::Ready(Some(Err(error)));
                    }
                };
                *offset += bytes.len() as u64;
                *left -= bytes.len() as u64;
                bytes
            }
        };
        if bytes.is_empty() {
            return Poll::Ready(None);
        }
        if let Some(entry) = &mut this.entry {
            entry.bytes += bytes.len() as u64;
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Memory(bytes) => bytes.is_empty(),
            Source::File { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.source {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::File { left, .. } => *left,
        })
    }
}

/// A file that has become shorter is an error, which breaks the connection: the length was announced.
fn read_chunk(file: &File, offset: u64, length: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(Bytes::from(bytes))
}
