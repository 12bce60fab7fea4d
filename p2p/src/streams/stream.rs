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
use libp2p::swarm::ConnectionId;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Instants are kept as milliseconds since this one, to fit an atomic number.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When something was last read from a peer, or over one of its connections.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    last_ms: AtomicU64,
    /// What is read over a connection is read from its peer.
    of_peer: Option<Arc<Activity>>,
}

impl Activity {
    /// The activity of one connection, which counts for its peer too.
    pub(super) fn of_connection(peer: Arc<Activity>) -> Self {
        Self { last_ms: AtomicU64::default(), of_peer: Some(peer) }
    }

    pub(crate) fn touch(&self) {
        let now = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
        if let Some(peer) = &self.of_peer {
            peer.last_ms.store(now, Ordering::Relaxed);
        }
    }

    pub(crate) fn last(&self) -> Instant {
        *START + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// A two-way byte stream to one peer. Dropping it resets what was not closed.
///
/// It implements the traits of `futures`; `tokio_util::compat` turns it into one for tokio.
pub struct Stream {
    inner: libp2p::Stream,
    connection: ConnectionId,
    activity: Arc<Activity>,
    /// Its place on the connection, given back when dropped.
    _place: Option<OwnedSemaphorePermit>,
}

impl Stream {
    pub(crate) fn new(
        inner: libp2p::Stream,
        connection: ConnectionId,
        activity: Arc<Activity>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { inner, connection, activity, _place: place }
    }

    /// The connection that it belongs to.
    pub(crate) fn connection(&self) -> ConnectionId {
        self.connection
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
