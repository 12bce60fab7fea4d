//! One stream, and the sign of life that reading from it is.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Instants are kept as milliseconds since this one, to fit an atomic number.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When something was last read from a peer.
#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicU64);

impl Activity {
    pub(crate) fn touch(&self) {
        let now = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.store(now, Ordering::Relaxed);
    }

    pub(crate) fn last(&self) -> Instant {
        *START + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A two-way byte stream to one peer. Dropping it resets what was not closed.
///
/// It implements the traits of `futures`; `tokio_util::compat` turns it into one for tokio.
pub struct Stream {
    inner: libp2p::Stream,
    activity: Arc<Activity>,
    /// Its place on the connection, given back when dropped.
    _place: Option<OwnedSemaphorePermit>,
}

impl Stream {
    pub(crate) fn new(
        inner: libp2p::Stream,
        activity: Arc<Activity>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { inner, activity, _place: place }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if matches!(read, Poll::Ready(Ok(1..))) {
            self.activity.touch();
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
