//! What the handle, the network task and its helpers look at without asking each other.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::{
    DialError, HostError, Identity, Metrics, OpenError, PeerInfo, Provider, Stream, TopicPeers,
    error::{DhtError, PublishError, TopicError},
    event::GossipId,
    frames::Links,
    names::Names,
    streams::Registry,
};

/// Notes waiting for the network task. It takes all of them at every turn; a full queue means that
/// it has been stopped from outside, and the oldest note is the least worth.
const MAX_NOTES: usize = 65_536;

/// What to do with a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Good: pass it on.
    Accept,
    /// Bad, and its relay should have known: do not pass it on, lower the relay's score.
    Reject,
    /// Neither: do not pass it on, blame nobody.
    Ignore,
}

/// Something the network task is told, with no answer.
#[derive(Debug)]
pub(crate) enum Note {
    Watch(PeerId, bool),
    Verdict(GossipId, PeerId, Verdict),
    Penalise(PeerId, &'static str),
    AddAddress(PeerId, Multiaddr),
    Disconnect(PeerId),
    /// A stream of the peer broke while frames may have been on their way; it was of this connection.
    SessionLost(PeerId, ConnectionId),
    /// A connection that was superseded by a newer one was asked for a sign of life, and whether it gave one.
    Probed(PeerId, ConnectionId, bool),
    /// The peer broke a rule that no honest peer breaks.
    Cut(PeerId, &'static str),
}

/// Something the network task is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Open {
        peer: PeerId,
        protocol: libp2p::StreamProtocol,
        /// Over this connection, and no other.
        on: Option<ConnectionId>,
        answer: oneshot::Sender<Result<Stream, OpenError>>,
    },
    Dial {
        address: Multiaddr,
        answer: oneshot::Sender<Result<PeerId, DialError>>,
    },
    Peers {
        answer: oneshot::Sender<Vec<PeerInfo>>,
    },
    Subscribe {
        topic: String,
        on: bool,
        answer: oneshot::Sender<Result<(), TopicError>>,
    },
    Publish {
        topic: String,
        data: Bytes,
        answer: oneshot::Sender<Result<(), PublishError>>,
    },
    TopicPeers {
        topic: String,
        answer: oneshot::Sender<Result<TopicPeers, TopicError>>,
    },
    Provide {
        key: Vec<u8>,
        answer: oneshot::Sender<Result<(), DhtError>>,
    },
    StopProviding {
        key: Vec<u8>,
    },
    FindProviders {
        key: Vec<u8>,
        limit: usize,
        found: mpsc::Sender<Provider>,
        deadline: tokio::time::Instant,
        answer: oneshot::Sender<Result<(), DhtError>>,
    },
    Stop,
}

/// State that everybody may look at.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) names: Names,
    pub(crate) identity: Identity,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) links: Links,
    pub(crate) registry: Registry,
    pub(crate) listening: watch::Sender<Listening>,
    pub(crate) network_size: AtomicU64,
    /// Peers with an open connection, and how many they have.
    connected: Mutex<HashMap<PeerId, usize>>,
    notes: Mutex<VecDeque<Note>>,
    noted: Notify,
}

/// What is being listened on.
#[derive(Debug, Default, Clone)]
pub(crate) struct Listening {
    /// Listeners that have no address yet.
    pub(crate) waiting: usize,
    pub(crate) addresses: Vec<Multiaddr>,
    pub(crate) announced: Vec<Multiaddr>,
    /// Why the last listener closed.
    pub(crate) closed: Option<String>,
}

impl Shared {
    pub(crate) fn new(names: Names, identity: Identity, waiting: usize) -> Self {
        let metrics = Arc::new(Metrics::default());
        Self {
            names,
            identity,
            links: Links::new(Arc::clone(&metrics)),
            metrics,
            registry: Registry::default(),
            listening: watch::Sender::new(Listening { waiting, ..Listening::default() }),
            network_size: AtomicU64::new(1),
            connected: Mutex::default(),
            notes: Mutex::default(),
            noted: Notify::new(),
        }
    }

    pub(crate) fn note(&self, note: Note) {
        let mut notes = lock(&self.notes);
        if notes.len() >= MAX_NOTES {
            notes.pop_front();
            self.metrics.notes_dropped.add(1);
        }
        notes.push_back(note);
        drop(notes);
        self.noted.notify_one();
    }

    /// Waits until there are notes.
    pub(crate) async fn noted(&self) {
        self.noted.notified().await;
    }

    pub(crate) fn take_notes(&self) -> VecDeque<Note> {
        std::mem::take(&mut *lock(&self.notes))
    }

    pub(crate) fn set_connections(&self, peer: PeerId, connections: usize) {
        let mut connected = lock(&self.connected);
        match connections {
            0 => connected.remove(&peer),
            some => connected.insert(peer, some),
        };
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        lock(&self.connected).contains_key(peer)
    }

    pub(crate) fn connected_peers(&self) -> Vec<PeerId> {
        lock(&self.connected).keys().copied().collect()
    }

    pub(crate) fn connected_count(&self) -> usize {
        lock(&self.connected).len()
    }

    pub(crate) fn network_size(&self) -> u64 {
        let estimate = self.network_size.load(Ordering::Relaxed);
        estimate.max(self.connected_count() as u64 + 1)
    }
}

/// How the network task ended; `None` while it runs.
pub(crate) type Ended = Option<Result<(), Arc<str>>>;

pub(crate) async fn ended(mut state: watch::Receiver<Ended>) -> Result<(), HostError> {
    let ended = state.wait_for(Option::is_some).await;
    match ended.as_deref() {
        Ok(Some(Err(reason))) => Err(HostError::Panicked(reason.to_string())),
        _ => Ok(()),
    }
}

/// Locks, also after a panic elsewhere: all guarded states are whole between two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
