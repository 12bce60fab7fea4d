//! Reads the frames of one peer.

use std::{sync::Weak, time::Duration};

use bytes::BytesMut;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::PeerId;
use tokio::{task::JoinHandle, time::timeout};
use tracing::debug;

use super::codec::{Oversized, take_frame};
use crate::{
    Event, Stream,
    event::Sink,
    shared::{Note, Shared},
};

/// Read at once; many small frames, or a part of a large one.
const CHUNK: usize = 16 << 10;
/// How long a peer's new stream waits for what is left in its old one.
const HAND_OVER: Duration = Duration::from_secs(1);

/// The task that reads one stream of frames. Dropped, it reads on what has arrived, and ends with its stream.
#[derive(Debug)]
pub(crate) struct Reader(JoinHandle<()>);

impl Reader {
    /// Reads a peer's new stream, after what is left in its old one.
    pub(crate) fn start(
        peer: PeerId,
        stream: Stream,
        old: Option<Reader>,
        events: Sink,
        shared: Weak<Shared>,
    ) -> Self {
        Self(tokio::spawn(async move {
            if let Some(mut old) = old {
                // Either it ends, or its connection hangs and the peer has given it up.
                if timeout(HAND_OVER, &mut old.0).await.is_err() {
                    old.0.abort();
                }
            }
            read_all(peer, stream, &events, &shared).await;
        }))
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

async fn read_all(peer: PeerId, mut stream: Stream, events: &Sink, shared: &Weak<Shared>) {
    let mut read = BytesMut::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk).await {
            // All was read: closing our side says so.
            Ok(0) => return drop(stream.close().await),
            Ok(size) => read.extend_from_slice(&chunk[..size]),
            Err(error) => return debug!(%peer, %error, "a stream of frames ended"),
        }
        let Some(shared) = shared.upgrade() else { return };
        if let Err(Oversized(size)) = pass_on(peer, &mut read, events, &shared).await {
            debug!(%peer, size, "oversized frame");
            return shared.note(Note::Cut(peer, "oversized frame"));
        }
    }
}

async fn pass_on(peer: PeerId, read: &mut BytesMut, events: &Sink, shared: &Shared) -> Result<(), Oversized> {
    while let Some(bytes) = take_frame(read)? {
        shared.metrics.frames_received.add(1);
        shared.metrics.frame_bytes_received.add(bytes.len());
        let size = bytes.len();
        events.put_inbound(Event::Frame { peer, bytes }, size).await;
    }
    Ok(())
}
