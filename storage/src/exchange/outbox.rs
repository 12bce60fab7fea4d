//! What is to be sent to one peer, and the task that sends it.
//!
//! Whatever is waiting when the stream is free goes out together: batches form by themselves and a
//! lone want waits for nothing. Wants and answers overtake blocks.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::message::{Block, Entry, MAX_ENTRIES, MAX_PRESENCES, Message, Presence};
use super::network::{Network, Peer, PeerStream};

/// The protocol that is spoken.
pub const PROTOCOL: &str = "/ipfs/bitswap/1.2.0";

/// How long opening a stream may take, dialling included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one message may take to be written: 17 kB/s for a mebibyte. A peer that reads slower
/// than that holds memory for nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Blocks and answers on their way to one peer.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    ready: Notify,
}

/// Bounded by the machines: the client has at most a window of entries at a peer, the server caps
/// answers and bytes in flight.
#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    presences: VecDeque<Presence>,
    served: VecDeque<Served>,
}

/// Blocks that the server gave out together.
#[derive(Debug)]
pub(super) struct Served {
    pub blocks: Vec<Block>,
    /// What the server counts them as.
    pub bytes: u64,
}

/// One message, and what the server is to be told when it is done.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    pub message: Message,
    pub served_bytes: Option<u64>,
}

/// How sending a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Sent,
    /// The stream broke under it, also a fresh one.
    Lost,
    /// There is no stream to be had.
    Unreachable,
}

impl Outbox {
    pub fn push_entries(&self, entries: Vec<Entry>) {
        self.lock().entries.extend(entries);
        self.ready.notify_one();
    }

    pub fn push_presences(&self, presences: Vec<Presence>) {
        self.lock().presences.extend(presences);
        self.ready.notify_one();
    }

    pub fn push_served(&self, served: Served) {
        self.lock().served.push_back(served);
        self.ready.notify_one();
    }

    /// The next message; waits for something to send.
    pub async fn next(&self) -> Parcel {
        loop {
            if let Some(parcel) = self.take() {
                return parcel;
            }
            self.ready.notified().await;
        }
    }

    fn take(&self) -> Option<Parcel> {
        let mut waiting = self.lock();
        let mut parcel = Parcel::default();
        let entries = waiting.entries.len().min(MAX_ENTRIES);
        parcel.message.entries = waiting.entries.drain(..entries).collect();
        let presences = waiting.presences.len().min(MAX_PRESENCES);
        parcel.message.presences = waiting.presences.drain(..presences).collect();
        if parcel.message.is_empty()
            && let Some(served) = waiting.served.pop_front()
        {
            parcel.message.blocks = served.blocks;
            parcel.served_bytes = Some(served.bytes);
        }
        (!parcel.message.is_empty() || parcel.served_bytes.is_some()).then_some(parcel)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Sends a message on the stream at hand, or on a new one when there is none or it broke.
pub(super) async fn send(
    network: &dyn Network,
    peer: &Peer,
    stream: &mut Option<PeerStream>,
    message: &Message,
) -> Sending {
    if let Some(open) = stream.as_mut()
        && write(open, message).await.is_ok()
    {
        return Sending::Sent;
    }
    *stream = None; // a stream that lay idle may have been closed at the other end
    let opened = tokio::time::timeout(OPEN_TIMEOUT, network.open_stream(peer, PROTOCOL)).await;
    let Ok(Ok(mut open)) = opened else { return Sending::Unreachable };
    if write(&mut open, message).await.is_err() {
        return Sending::Lost;
    }
    *stream = Some(open);
    Sending::Sent
}

async fn write(stream: &mut PeerStream, message: &Message) -> std::io::Result<()> {
    let writing = async {
        for segment in message.encode() {
            stream.write_all(&segment).await?;
        }
        stream.flush().await
    };
    tokio::time::timeout(WRITE_TIMEOUT, writing).await?
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::exchange::message::Prefix;

    #[tokio::test]
    async fn wants_that_wait_go_out_together_and_before_blocks() {
        let outbox = Outbox::default();
        let block = Block { prefix: Prefix::V0, data: Bytes::from_static(b"x") };
        outbox.push_served(Served { blocks: vec![block], bytes: 1 });
        outbox.push_entries(vec![Entry::cancel(Default::default())]);
        outbox.push_entries(vec![Entry::cancel(Default::default())]);
        let first = outbox.next().await;
        assert_eq!((first.message.entries.len(), first.message.blocks.len()), (2, 0));
        assert_eq!(outbox.next().await.served_bytes, Some(1));
    }

    #[tokio::test]
    async fn a_long_list_is_split_into_messages_that_a_peer_accepts() {
        let outbox = Outbox::default();
        outbox.push_entries(vec![Entry::cancel(Default::default()); MAX_ENTRIES + 1]);
        assert_eq!(outbox.next().await.message.entries.len(), MAX_ENTRIES);
        assert_eq!(outbox.next().await.message.entries.len(), 1);
    }
}
