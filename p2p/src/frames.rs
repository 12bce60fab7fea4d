//! Frames: many small messages to a peer over one long-lived stream.
//!
//! [`Links::send`] puts a frame in the queue of its peer; the writer of that peer takes everything that waits, writes it and
//! flushes once. So a lone frame waits for nothing, and under load batches form by themselves.

mod codec;
mod reader;
mod writer;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, OnceLock},
};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle};

use crate::{
    Metrics, SendError,
    event::Sink,
    opener::Opener,
    shared::{Shared, lock},
};

pub use codec::MAX_FRAME_BYTES;
pub(crate) use reader::Reader;

/// Frames waiting for one peer: about a second of the fastest senders.
const MAX_QUEUED_FRAMES: usize = 8192;
/// Bytes waiting for one peer.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// Peers with a queue. Above the limit on connections, for those that are being dialled.
const MAX_LINKS: usize = 1024;
/// What one flush covers at most: bounds the copy that is made of small frames.
const MAX_BATCH_BYTES: usize = 256 << 10;

/// The queues of all peers.
#[derive(Debug)]
pub(crate) struct Links {
    open: Mutex<State>,
    spawner: OnceLock<Spawner>,
    metrics: Arc<Metrics>,
    /// Told when a writer ends.
    retired: Notify,
}

#[derive(Debug, Default)]
struct State {
    links: HashMap<PeerId, Link>,
    next_id: u64,
    stopped: bool,
}

/// What a writer needs; known once the network task runs.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    pub(crate) runtime: Handle,
    pub(crate) opener: Opener,
    pub(crate) shared: std::sync::Weak<Shared>,
    pub(crate) events: Sink,
}

/// What a writer does next.
enum Next {
    /// Write the batch.
    Write,
    /// Wait for frames.
    Wait,
    /// Go on over a newer connection.
    Move,
    /// Make sure that all was read, and end.
    Finish,
    /// End: the link is no more.
    Gone,
}

#[derive(Debug)]
struct Link {
    /// Tells this link from a later one to the same peer.
    id: u64,
    frames: VecDeque<Bytes>,
    bytes: usize,
    ready: Arc<Notify>,
    /// The peer has a newer connection than the one that the writer writes to.
    moved: bool,
    writer: Option<AbortHandle>,
}

impl Links {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { open: Mutex::default(), spawner: OnceLock::new(), metrics, retired: Notify::new() }
    }

    pub(crate) fn start(&self, spawner: Spawner) {
        // Set once, by the network task, before any handle is out.
        let _ = self.spawner.set(spawner);
    }

    /// Queues one frame, and starts a writer when the peer has none.
    pub(crate) fn send(&self, peer: PeerId, frame: Bytes) -> Result<(), SendError> {
        let size = frame.len();
        if size > MAX_FRAME_BYTES {
            return Err(SendError::TooLarge { size, max: MAX_FRAME_BYTES });
        }
        let spawner = self.spawner.get().ok_or(SendError::Stopped)?;
        let mut state = lock(&self.open);
        if state.stopped {
            return Err(SendError::Stopped);
        }
        if state.links.len() >= MAX_LINKS && !state.links.contains_key(&peer) {
            self.metrics.frames_refused.add(1);
            return Err(SendError::Full);
        }
        let State { links, next_id, .. } = &mut *state;
        let link = links.entry(peer).or_insert_with(|| {
            *next_id += 1;
            Link::new(*next_id)
        });
        let full = link.frames.len() >= MAX_QUEUED_FRAMES || link.bytes + size > MAX_QUEUED_BYTES;
        if full && !link.frames.is_empty() {
            self.metrics.frames_refused.add(1);
            return Err(SendError::Full);
        }
        link.frames.push_back(frame);
        link.bytes += size;
        link.ready.notify_one();
        if link.writer.is_none() {
            let writer = writer::run(peer, link.id, Arc::clone(&link.ready), spawner.clone());
            link.writer = Some(spawner.runtime.spawn(writer).abort_handle());
        }
        Ok(())
    }

    /// A further connection of the peer is open: what waits goes over it, since the old one may be dead.
    pub(crate) fn moved(&self, peer: PeerId) {
        if let Some(link) = lock(&self.open).links.get_mut(&peer) {
            link.moved = true;
            link.ready.notify_one();
        }
    }

    /// Drops the queue of a peer whose last connection closed; says how many frames were lost.
    pub(crate) fn lost(&self, peer: PeerId) -> usize {
        let link = lock(&self.open).links.remove(&peer);
        self.drop_link(link)
    }

    /// The same, by a writer; `None` when the link was dropped before.
    fn failed(&self, peer: PeerId, id: u64) -> Option<usize> {
        let mut state = lock(&self.open);
        state.links.get(&peer).filter(|link| link.id == id)?;
        let link = state.links.remove(&peer);
        drop(state);
        self.retired.notify_one();
        Some(self.drop_link(link))
    }

    fn drop_link(&self, link: Option<Link>) -> usize {
        let Some(link) = link else { return 0 };
        if let Some(writer) = link.writer {
            writer.abort();
        }
        self.metrics.frames_dropped.add(link.frames.len());
        link.frames.len()
    }

    /// Moves what waits into `batch`, up to a batch's size.
    fn take(&self, peer: PeerId, id: u64, batch: &mut Vec<Bytes>) -> Next {
        let mut state = lock(&self.open);
        let stopped = state.stopped;
        let Some(link) = state.links.get_mut(&peer).filter(|link| link.id == id) else {
            return Next::Gone;
        };
        if std::mem::take(&mut link.moved) && !stopped {
            return Next::Move;
        }
        let mut bytes = 0;
        while bytes < MAX_BATCH_BYTES
            && let Some(frame) = link.frames.pop_front()
        {
            bytes += frame.len();
            batch.push(frame);
        }
        link.bytes -= bytes;
        match (batch.is_empty(), stopped) {
            (false, _) => Next::Write,
            (true, false) => Next::Wait,
            (true, true) => Next::Finish,
        }
    }

    /// Ends a link that has nothing to write; false when something came meanwhile.
    fn retire(&self, peer: PeerId, id: u64) -> bool {
        let mut state = lock(&self.open);
        match state.links.get(&peer) {
            Some(link) if link.id == id && !link.frames.is_empty() => return false,
            Some(link) if link.id == id => state.links.remove(&peer),
            _ => None,
        };
        drop(state);
        self.retired.notify_one();
        true
    }

    /// Takes no more frames; writers end once they have written theirs.
    pub(crate) fn stop(&self) {
        let mut state = lock(&self.open);
        state.stopped = true;
        state.links.values().for_each(|link| link.ready.notify_one());
    }

    /// After [`Links::stop`]: whether all connected peers have read what was written to them.
    pub(crate) fn is_finished(&self, connected: impl Fn(&PeerId) -> bool) -> bool {
        !lock(&self.open).links.keys().any(connected)
    }

    /// Waits until another writer has ended.
    pub(crate) async fn retired(&self) {
        self.retired.notified().await;
    }

    /// Ends all writers.
    pub(crate) fn clear(&self) {
        let links = std::mem::take(&mut lock(&self.open).links);
        for link in links.into_values() {
            self.drop_link(Some(link));
        }
    }
}

impl Link {
    fn new(id: u64) -> Self {
        Self {
            id,
            frames: VecDeque::new(),
            bytes: 0,
            ready: Arc::new(Notify::new()),
            moved: false,
            writer: None,
        }
    }
}
