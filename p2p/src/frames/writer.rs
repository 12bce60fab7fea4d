//! Writes the queue of one peer to its stream.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, swarm::ConnectionId};
use tokio::{sync::Notify, time::timeout};
use tracing::debug;

use super::{Next, Spawner, codec::put_header};
use crate::{
    Event, Stream,
    shared::{Note, Shared},
};

/// An unused stream is closed, so that an idle connection can be.
const IDLE: Duration = Duration::from_secs(60);
/// Frames above this are written as they are; below, the copy is cheaper than another write.
const WRITE_APART: usize = 16 << 10;

enum Failure {
    /// There was no stream to lose frames on.
    NotOpened,
    /// Frames may have been on their way over this connection.
    Broken(ConnectionId),
}

pub(super) async fn run(peer: PeerId, id: u64, ready: Arc<Notify>, spawner: Spawner) {
    let Err(failure) = write_all(peer, id, &ready, &spawner).await else { return };
    let Some(shared) = spawner.shared.upgrade() else { return };
    let Some(frames) = shared.links.failed(peer, id) else { return };
    if frames > 0 {
        spawner.events.put_task(Event::Undelivered { peer, frames });
    }
    if let Failure::Broken(connection) = failure {
        shared.note(Note::SessionLost(peer, connection));
    }
}

async fn write_all(peer: PeerId, id: u64, ready: &Notify, spawner: &Spawner) -> Result<(), Failure> {
    let mut stream = open(peer, spawner).await?;
    let mut batch = Vec::new();
    let mut buffer = BytesMut::new();
    loop {
        let Some(shared) = spawner.shared.upgrade() else { return Ok(()) };
        match shared.links.take(peer, id, &mut batch) {
            Next::Write => {
                let written = write_batch(&mut stream, &batch, &mut buffer).await;
                written.map_err(|error| broken(peer, &stream, &error))?;
                count(&shared, &batch);
                batch.clear();
            }
            Next::Wait => {
                drop(shared);
                if !wait(&mut stream, ready).await? && retire(peer, id, spawner) {
                    // All was flushed long ago: how the close ends does not matter.
                    let _ = finish(stream).await;
                    return Ok(());
                }
            }
            Next::Move => {
                drop(shared);
                spawner.runtime.spawn(leave(peer, stream, spawner.clone()));
                stream = open(peer, spawner).await?;
            }
            Next::Finish => {
                finish(stream).await?;
                shared.links.retire(peer, id);
                return Ok(());
            }
            Next::Gone => return Ok(()),
        }
    }
}

async fn open(peer: PeerId, spawner: &Spawner) -> Result<Stream, Failure> {
    spawner.opener.frames(peer).await.map_err(|error| {
        debug!(%peer, %error, "no stream for frames");
        Failure::NotOpened
    })
}

/// Ends a stream that another one takes over from; says so when the peer has not read all of it.
async fn leave(peer: PeerId, stream: Stream, spawner: Spawner) {
    if let Err(Failure::Broken(connection)) = finish(stream).await
        && let Some(shared) = spawner.shared.upgrade()
    {
        shared.note(Note::SessionLost(peer, connection));
    }
}

/// Waits for frames; false when none came for long.
async fn wait(stream: &mut Stream, ready: &Notify) -> Result<bool, Failure> {
    let mut nothing = [0; 1];
    tokio::select! {
        biased;
        () = ready.notified() => Ok(true),
        // The other side never writes here: whatever this says, the stream is of no more use.
        _ = stream.read(&mut nothing) => Err(Failure::Broken(stream.connection())),
        () = tokio::time::sleep(IDLE) => Ok(false),
    }
}

/// Ends the link; false when frames came meanwhile.
fn retire(peer: PeerId, id: u64, spawner: &Spawner) -> bool {
    spawner.shared.upgrade().is_none_or(|shared| shared.links.retire(peer, id))
}

/// Closes the stream, and waits until the peer has read it to its end.
async fn finish(mut stream: Stream) -> Result<(), Failure> {
    let connection = stream.connection();
    let read = async {
        stream.close().await?;
        stream.read(&mut [0; 1]).await
    };
    match timeout(IDLE, read).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Failure::Broken(connection)),
    }
}

async fn write_batch(stream: &mut Stream, batch: &[Bytes], buffer: &mut BytesMut) -> io::Result<()> {
    buffer.clear();
    for frame in batch {
        put_header(frame.len(), buffer);
        if frame.len() < WRITE_APART {
            buffer.extend_from_slice(frame);
        } else {
            stream.write_all(buffer).await?;
            buffer.clear();
            stream.write_all(frame).await?;
        }
    }
    stream.write_all(buffer).await?;
    stream.flush().await
}

fn count(shared: &Shared, batch: &[Bytes]) {
    shared.metrics.frames_sent.add(batch.len());
    shared.metrics.frame_bytes_sent.add(batch.iter().map(Bytes::len).sum());
    shared.metrics.frame_flushes.add(1);
}

fn broken(peer: PeerId, stream: &Stream, error: &io::Error) -> Failure {
    debug!(%peer, %error, "the stream of frames broke");
    Failure::Broken(stream.connection())
}
