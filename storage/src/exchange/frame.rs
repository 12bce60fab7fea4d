//! Messages on a stream: a varint length, then that many bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::message::MAX_MESSAGE_BYTES;
use super::wire;

/// What is read at first: the length, and all of a small message.
const HEAD_BYTES: usize = 4 << 10;

/// How long a message may take from its length to its last byte: 140 kB/s for the longest.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a peer's messages that are being received, hashed or waiting to be written: a full
/// window (16 MiB) and the messages around it.
const PEER_BYTES: usize = 24 << 20;

/// The same for all peers together: what receiving costs in memory.
const TOTAL_BYTES: usize = 256 << 20;

/// Permits count kibibytes, since there are at most 2^32 of a kind that can be taken at once.
const UNIT_BYTES: usize = 1 << 10;

/// Why no further message comes from a stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the stream broke")]
    Io(#[from] io::Error),
    #[error("the stream ended inside a message")]
    Truncated,
    #[error("a message of {0} bytes is announced")]
    TooLong(u64),
    #[error("the length of a message is malformed")]
    Malformed,
    #[error("a message was held back half sent")]
    Stalled,
}

/// Memory for what is received; every message holds its share until its last block is dropped.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    peer: Arc<Semaphore>,
    total: Arc<Semaphore>,
}

/// A share of a [`Budget`].
struct Share {
    bytes: Bytes,
    _peer: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Share {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Budget {
    /// Memory for all peers.
    pub fn total() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(TOTAL_BYTES / UNIT_BYTES))
    }

    /// One more peer's part of it.
    pub fn of_peer(total: Arc<Semaphore>) -> Budget {
        Budget { peer: Arc::new(Semaphore::new(PEER_BYTES / UNIT_BYTES)), total }
    }

    async fn take(&self, bytes: usize) -> (OwnedSemaphorePermit, OwnedSemaphorePermit) {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).expect("a message is at most 4 MiB");
        let peer = Arc::clone(&self.peer).acquire_many_owned(units).await;
        let total = Arc::clone(&self.total).acquire_many_owned(units).await;
        (peer.expect("never closed"), total.expect("never closed"))
    }
}

/// Takes messages off a stream.
pub(super) struct FrameReader<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> FrameReader<S> {
    pub fn new(stream: S) -> Self {
        FrameReader { stream, buffer: BytesMut::new() }
    }

    /// The next message, `None` when the stream ends between two. `heard` is called as parts of it come in.
    ///
    /// Dropping the future loses bytes: the stream is of no use afterwards.
    pub async fn next(&mut self, budget: &Budget, heard: impl Fn()) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.length().await? else { return Ok(None) };
        heard();
        let (peer, total) = budget.take(length).await;
        match tokio::time::timeout(MESSAGE_TIMEOUT, self.fill(length, heard)).await {
            Err(_) => return Err(FrameError::Stalled),
            Ok(filled) => filled?,
        }
        let bytes = self.buffer.split_to(length).freeze();
        Ok(Some(Bytes::from_owner(Share { bytes, _peer: peer, _total: total })))
    }

    async fn length(&mut self) -> Result<Option<usize>, FrameError> {
        loop {
            if let Some((length, used)) =
                wire::read_varint(&self.buffer).map_err(|_| FrameError::Malformed)?
            {
                self.buffer.advance(used);
                let fits = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE_BYTES);
                return fits.map(Some).ok_or(FrameError::TooLong(length));
            }
            self.buffer.reserve(HEAD_BYTES);
            if self.stream.read_buf(&mut (&mut self.buffer).limit(HEAD_BYTES)).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    async fn fill(&mut self, length: usize, heard: impl Fn()) -> Result<(), FrameError> {
        while let Some(missing) = length.checked_sub(self.buffer.len()).filter(|missing| *missing > 0) {
            self.buffer.reserve(missing);
            if self.stream.read_buf(&mut (&mut self.buffer).limit(missing)).await? == 0 {
                return Err(FrameError::Truncated);
            }
            heard();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frames(bytes: &[u8]) -> (Vec<Bytes>, Result<(), FrameError>) {
        let mut reader = FrameReader::new(bytes);
        let budget = Budget::of_peer(Budget::total());
        let mut frames = Vec::new();
        loop {
            match reader.next(&budget, || {}).await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, Ok(())),
                Err(error) => return (frames, Err(error)),
            }
        }
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in() {
        let large = vec![7u8; 100_000];
        let mut bytes = vec![0, 1, 42];
        wire::put_varint(&mut bytes, large.len() as u64);
        bytes.extend(&large);
        bytes.extend([2, 8, 9]);
        let (frames, end) = frames(&bytes).await;
        assert!(end.is_ok());
        assert_eq!(frames, [Bytes::new(), vec![42].into(), large.into(), vec![8, 9].into()]);
    }

    #[tokio::test]
    async fn lengths_that_cannot_be_are_refused_before_anything_is_read() {
        let mut bytes = Vec::new();
        wire::put_varint(&mut bytes, MAX_MESSAGE_BYTES as u64 + 1);
        assert!(matches!(frames(&bytes).await.1, Err(FrameError::TooLong(_))));
        assert!(matches!(frames(&[0xff; 12]).await.1, Err(FrameError::Malformed)));
        assert!(matches!(frames(&[5, 1]).await.1, Err(FrameError::Truncated)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_held_back_ends_its_stream() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut theirs, &[9, 1, 2]).await.unwrap();
        let budget = Budget::of_peer(Budget::total());
        let stalled = FrameReader::new(ours).next(&budget, || {}).await;
        assert!(matches!(stalled, Err(FrameError::Stalled)));
    }

    #[tokio::test]
    async fn a_message_gives_its_memory_back_when_its_last_slice_is_dropped() {
        let budget = Budget::of_peer(Budget::total());
        let mut reader = FrameReader::new(&[3, 1, 2, 3][..]);
        let frame = reader.next(&budget, || {}).await.unwrap().unwrap();
        let slice = frame.slice(1..2);
        drop(frame);
        assert_eq!(budget.peer.available_permits(), PEER_BYTES / UNIT_BYTES - 1);
        drop(slice);
        assert_eq!(budget.peer.available_permits(), PEER_BYTES / UNIT_BYTES);
    }
}
