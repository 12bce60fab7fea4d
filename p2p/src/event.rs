//! What a host tells its owner.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Unread frames and requests of all peers, in KiB (each counts as at least one).
/// Readers wait when it is used up, and so do the peers behind them.
const INBOUND_ROOM_KIB: usize = 32 * 1024;
/// Unread gossip messages; newer ones are dropped and counted.
const GOSSIP_ROOM: usize = 2048;
/// Unread events of the network task; it waits until the owner has read some.
const TASK_ROOM: usize = 8192;

/// The content-addressed name of a gossip message: SHA-256 of topic and data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GossipId(pub [u8; 32]);

impl fmt::Debug for GossipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "GossipId({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// Something happened.
///
/// For one peer, `Connected` comes before anything else of it. Frames that were read before the
/// connection broke may still come after `Disconnected`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection of the peer is open: the first, or a further one. With a further one the peer may have lost what
    /// was sent before, and so may have we: both sides tell each other again what matters. The same is said
    /// when frames were lost with one of several connections.
    Connected {
        /// The other side.
        peer: PeerId,
    },
    /// The last connection of the peer is closed. Frames sent to it may be lost, those that
    /// were still queued are. When the peer is back before its old connection is found closed, only the
    /// peer says so; this side says `Connected` again.
    Disconnected {
        /// The other side.
        peer: PeerId,
    },
    /// A watched peer was lost, and its machine refuses to be dialled: its process is gone. Said once per loss, and not
    /// for other failures, behind which may be this host's own network; it is dialled on in any case.
    Unreachable {
        /// The other side.
        peer: PeerId,
    },
    /// A watched peer is connected but answers no pings for 3 s. Said once per silence.
    Silent {
        /// The other side.
        peer: PeerId,
    },
    /// A watched peer that was silent answers again. When it opens a new connection instead, `Connected` says so.
    Heard {
        /// The other side.
        peer: PeerId,
    },
    /// A peer sent a frame.
    Frame {
        /// Who sent it, proven by the connection.
        peer: PeerId,
        /// What it sent.
        bytes: Bytes,
    },
    /// Frames were dropped unsent: the peer could not be reached, speaks no frames, or was lost
    /// (then `Disconnected` follows).
    Undelivered {
        /// Who they were for.
        peer: PeerId,
        /// How many.
        frames: usize,
    },
    /// A peer asks something.
    Request {
        /// Who asks, proven by the connection.
        peer: PeerId,
        /// What it asks.
        name: String,
        /// The question.
        bytes: Bytes,
        /// Where the answer goes.
        reply: Reply,
    },
    /// A gossip message that is waiting for [`Host::verdict`](crate::Host::verdict); it goes to
    /// other peers only when accepted.
    Gossip {
        /// Its name.
        id: GossipId,
        /// The peer that passed it on; not its author.
        relay: PeerId,
        /// The topic's short name.
        topic: Arc<str>,
        /// The message.
        data: Bytes,
    },
    /// A connected peer takes a topic now.
    Subscribed {
        /// The other side.
        peer: PeerId,
        /// The topic's short name.
        topic: Arc<str>,
    },
    /// A connected peer takes a topic no longer.
    Unsubscribed {
        /// The other side.
        peer: PeerId,
        /// The topic's short name.
        topic: Arc<str>,
    },
    /// A peer was blocked after repeated offences; its connections are being closed.
    Blocked {
        /// The other side.
        peer: PeerId,
    },
}

/// Where the answer to one request goes. Dropping it refuses the request.
#[derive(Debug)]
pub struct Reply {
    pub(crate) answer: oneshot::Sender<Bytes>,
}

impl Reply {
    /// Answers. Answers above [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES) become refusals.
    pub fn send(self, answer: Bytes) {
        // The asker may have given up: nobody is left to tell.
        let _ = self.answer.send(answer);
    }

    /// Whether the asker has given up.
    pub fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

/// The events of one host, in order.
///
/// They must be read all the time: while nobody reads, the host first stops taking from its peers, and then from the
/// network at all. Dropped, the host runs on and its events are thrown away.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::UnboundedReceiver<Queued>,
    /// The host has stopped and said so; its handles may live on.
    ended: bool,
}

impl Events {
    /// The next event; `None` once the host has stopped. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let queued = self.queue.recv().await;
        self.take(queued)
    }

    /// The next event when one is waiting.
    pub fn try_next(&mut self) -> Option<Event> {
        let queued = self.queue.try_recv().ok();
        if queued.is_none() { None } else { self.take(queued) }
    }

    /// Waits for one event and takes up to `limit` that are waiting; 0 once the host has stopped.
    /// Dropping the future loses nothing.
    pub async fn next_many(&mut self, into: &mut Vec<Event>, limit: usize) -> usize {
        let Some(first) = self.next().await else { return 0 };
        into.push(first);
        let mut taken = 1;
        while taken < limit {
            let Some(event) = self.try_next() else { break };
            into.push(event);
            taken += 1;
        }
        taken
    }

    fn take(&mut self, queued: Option<Queued>) -> Option<Event> {
        let event = queued.and_then(|queued| queued.event);
        self.ended |= event.is_none();
        event
    }
}

#[derive(Debug)]
struct Queued {
    /// `None`: the last one.
    event: Option<Event>,
    /// Given back when the event is read.
    _room: Room,
}

#[derive(Debug)]
enum Room {
    Inbound { _permit: OwnedSemaphorePermit },
    Task { _place: Place },
}

#[derive(Debug)]
struct Place(Arc<TaskRoom>);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.used.fetch_sub(1, Ordering::Relaxed) == TASK_ROOM {
            self.0.freed.notify_one();
        }
    }
}

#[derive(Debug, Default)]
struct TaskRoom {
    used: AtomicUsize,
    freed: Notify,
}

/// Where events are put. One order for all of them, each kind with its own bound.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    queue: mpsc::UnboundedSender<Queued>,
    inbound: Arc<Semaphore>,
    task: Arc<TaskRoom>,
}

impl Sink {
    pub(crate) fn new() -> (Self, Events) {
        let (queue, events) = mpsc::unbounded_channel();
        let inbound = Arc::new(Semaphore::new(INBOUND_ROOM_KIB));
        (Self { queue, inbound, task: Arc::default() }, Events { queue: events, ended: false })
    }

    /// Puts an event that came from one peer's stream, and waits while there is no room.
    pub(crate) async fn put_inbound(&self, event: Event, size: usize) {
        let cost = u32::try_from(1 + size / 1024).unwrap_or(u32::MAX).min(INBOUND_ROOM_KIB as u32);
        let permit = Arc::clone(&self.inbound).acquire_many_owned(cost).await;
        let Ok(permit) = permit else { return }; // never closed
        self.put(Some(event), Room::Inbound { _permit: permit });
    }

    /// Puts an event of the network task or one of its watchers, at once.
    pub(crate) fn put_task(&self, event: Event) {
        self.put_now(Some(event));
    }

    /// Says that nothing comes any more.
    pub(crate) fn end(&self) {
        self.put_now(None);
    }

    fn put_now(&self, event: Option<Event>) {
        self.task.used.fetch_add(1, Ordering::Relaxed);
        self.put(event, Room::Task { _place: Place(Arc::clone(&self.task)) });
    }

    /// Whether another gossip message may be put.
    pub(crate) fn has_gossip_room(&self) -> bool {
        self.task.used.load(Ordering::Relaxed) < GOSSIP_ROOM
    }

    /// Whether the network task may go on.
    pub(crate) fn has_room(&self) -> bool {
        self.task.used.load(Ordering::Relaxed) < TASK_ROOM
    }

    /// Waits until the network task may go on.
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.task.freed.notified().await;
        }
    }

    fn put(&self, event: Option<Event>, room: Room) {
        // The owner may have dropped its end: events are thrown away then.
        let _ = self.queue.send(Queued { event, _room: room });
    }
}
