//! What comes in on a stream: messages are taken off it, their blocks hashed on other threads, and
//! both handed to the exchange's task.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cid::multihash::Multihash;
use sha2::{Digest as _, Sha256, Sha512};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, trace};

use super::actor::{FromPeer, Inbox, Lines};
use super::client::Arrived;
use super::frame::{FrameError, FrameReader};
use super::message::{Block, Message};
use super::network::{Network, Offence, Peer, PeerStream};

/// Blocks that together are smaller than this are hashed on the spot: 20 µs, less than a hand-over.
const HASH_HERE_BYTES: usize = 32 << 10;

/// Reads a stream to its end.
pub(super) async fn read(
    network: Arc<dyn Network>,
    peer: Peer,
    lines: Arc<Lines>,
    inbox: Inbox,
    stream: PeerStream,
) {
    let line = lines.get(&peer);
    let mut frames = FrameReader::new(stream);
    let ended = loop {
        let frame = tokio::select! {
            () = inbox.closed() => return,
            frame = frames.next(&line.budget, || line.heard.store(true, Ordering::Relaxed)) => frame,
        };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => break error,
        };
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(error) => {
                debug!(?peer, %error, "bad message");
                return network.penalise(&peer, Offence::MalformedMessage);
            }
        };
        trace!(?peer, entries = message.entries.len(), blocks = message.blocks.len(), "received");
        if !pass_on(&peer, message, &inbox, &lines.hashing).await {
            return;
        }
    };
    debug!(?peer, error = %ended, "stream ended");
    match ended {
        FrameError::TooLong(_) | FrameError::Malformed => network.penalise(&peer, Offence::MalformedMessage),
        FrameError::Stalled => network.penalise(&peer, Offence::StalledMessage),
        FrameError::Io(_) | FrameError::Truncated => {}
    }
}

/// Hands a message to the exchange's task: what is not blocks at once, blocks when they are hashed.
/// False when the exchange is gone.
async fn pass_on(peer: &Peer, message: Message, inbox: &Inbox, hashing: &Arc<Semaphore>) -> bool {
    let Message { full, entries, blocks, presences, .. } = message;
    let bytes: usize = blocks.iter().map(|block| block.data.len()).sum();
    let mut parcel = FromPeer { peer: peer.clone(), full, entries, presences, blocks: Vec::new() };
    if bytes < HASH_HERE_BYTES {
        parcel.blocks = blocks.into_iter().map(hashed).collect();
        return parcel.is_empty() || inbox.send(parcel).await.is_ok();
    }
    let peer = peer.clone();
    if !parcel.is_empty() && inbox.send(parcel).await.is_err() {
        return false;
    }
    let permit = Arc::clone(hashing).acquire_owned().await.expect("never closed");
    hash_elsewhere(peer, blocks, inbox.clone(), permit);
    true
}

fn hash_elsewhere(peer: Peer, blocks: Vec<Block>, inbox: Inbox, permit: OwnedSemaphorePermit) {
    let hash = move || {
        let blocks = blocks.into_iter().map(hashed).collect();
        let parcel = FromPeer { peer, full: false, entries: Vec::new(), presences: Vec::new(), blocks };
        // An error says that the exchange is gone, and nobody waits for the blocks.
        let _ = inbox.blocking_send(parcel);
        drop(permit);
    };
    drop(tokio::task::spawn_blocking(hash));
}

/// A block under the name that its bytes have. One with a hash function that is not understood
/// gets a name that nobody asks for.
fn hashed(block: Block) -> Arrived {
    let Block { prefix, data } = block;
    let digest = match (prefix.hash, prefix.digest_bytes) {
        (0x12, 32) => Multihash::wrap(0x12, &Sha256::digest(&data)),
        (0x13, 64) => Multihash::wrap(0x13, &Sha512::digest(&data)),
        (code, _) => Multihash::wrap(code, &[]),
    };
    Arrived { digest: digest.expect("a digest of 64 bytes fits"), data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block;
    use crate::exchange::message::Prefix;

    #[test]
    fn a_block_is_named_by_its_bytes_and_not_by_what_the_peer_says() {
        let cid = block::cid_of(block::RAW, b"right");
        let right = hashed(Block::new(&cid, "right".into()));
        assert_eq!(&right.digest, cid.hash());
        assert_ne!(&hashed(Block::new(&cid, "wrong".into())).digest, cid.hash());
        let odd = Prefix { version: 1, codec: 0x55, hash: 0x1234, digest_bytes: 1 << 40 };
        assert_ne!(&hashed(Block { prefix: odd, data: "right".into() }).digest, cid.hash());
    }
}
