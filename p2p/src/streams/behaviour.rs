//! The part that lives in the swarm: which connection a stream is opened on.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};
use tokio::sync::oneshot;

use super::{
    Activity, Registry, Stream,
    handler::{Handler, Opening},
};
use crate::{addresses, error::OpenError};

/// A stream that a peer opened.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) peer: PeerId,
    pub(crate) protocol: StreamProtocol,
    pub(crate) stream: Stream,
}

pub(crate) struct Behaviour {
    registry: Registry,
    /// Protocols that need no place.
    exempt: Arc<[StreamProtocol]>,
    /// Places on each connection, in each direction.
    streams: usize,
    /// Open connections, best first.
    connections: HashMap<PeerId, Vec<Open>>,
    /// Of connections whose handler is made but which are not open yet.
    opening: HashMap<ConnectionId, Arc<Activity>>,
    activities: HashMap<PeerId, Weak<Activity>>,
    queue: VecDeque<ToSwarm<Inbound, Opening>>,
}

struct Open {
    id: ConnectionId,
    quic: bool,
    /// The peer has opened a newer one since, and this one has not shown that it still leads anywhere: a peer
    /// that moved to another network, or lost its power, leaves connections behind that look open here.
    superseded: bool,
    activity: Arc<Activity>,
}

impl Open {
    /// What has proven itself before what has not, TCP before QUIC, new before old.
    fn rank(&self) -> (bool, bool, Reverse<ConnectionId>) {
        (self.superseded, self.quic, Reverse(self.id))
    }
}

impl Behaviour {
    pub(crate) fn new(registry: Registry, exempt: &[StreamProtocol], streams: usize) -> Self {
        Self {
            registry,
            exempt: exempt.into(),
            streams,
            connections: HashMap::new(),
            opening: HashMap::new(),
            activities: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    /// Opens a stream to a connected peer: over the given connection, or the best.
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        protocol: StreamProtocol,
        on: Option<ConnectionId>,
        answer: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        let mut open = self.connections.get(&peer).into_iter().flatten();
        let Some(open) = open.find(|open| on.is_none_or(|id| id == open.id)) else {
            // Who asked may have given up.
            let _ = answer.send(Err(OpenError::Disconnected));
            return;
        };
        let exempt = self.exempt.contains(&protocol);
        self.queue.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(open.id),
            event: Opening { protocol, exempt, answer },
        });
    }

    /// A newer connection of the peer is open: the others are used no more until [`Behaviour::proven`]. Gives
    /// those that were not doubted before.
    pub(crate) fn supersede(&mut self, peer: PeerId, by: ConnectionId) -> Vec<ConnectionId> {
        let Some(open) = self.connections.get_mut(&peer) else { return Vec::new() };
        let older = open.iter_mut().filter(|open| open.id < by);
        let doubted =
            older.filter_map(|open| (!std::mem::replace(&mut open.superseded, true)).then_some(open.id));
        let doubted = doubted.collect();
        open.sort_unstable_by_key(Open::rank);
        doubted
    }

    /// A connection has shown that it still leads to the peer.
    pub(crate) fn proven(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(open) = self.connections.get_mut(&peer) else { return };
        open.iter_mut().filter(|open| open.id == id).for_each(|open| open.superseded = false);
        open.sort_unstable_by_key(Open::rank);
    }

    /// A connection is used no more, though it may take long to close.
    pub(crate) fn forget(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(open) = self.connections.get_mut(&peer) {
            open.retain(|open| open.id != id);
            if open.is_empty() {
                self.connections.remove(&peer);
            }
        }
    }

    /// When something was last read over a connection.
    pub(crate) fn connection_activity(&self, peer: PeerId, id: ConnectionId) -> Option<Arc<Activity>> {
        let open = self.connections.get(&peer)?.iter().find(|open| open.id == id)?;
        Some(Arc::clone(&open.activity))
    }

    /// When the peer was last heard; all its connections share this.
    pub(crate) fn activity(&mut self, peer: PeerId) -> Arc<Activity> {
        if let Some(activity) = self.activities.get(&peer).and_then(Weak::upgrade) {
            return activity;
        }
        self.activities.retain(|_, activity| activity.strong_count() > 0);
        let activity = Arc::new(Activity::default());
        activity.touch();
        self.activities.insert(peer, Arc::downgrade(&activity));
        activity
    }

    fn handler(&mut self, peer: PeerId, id: ConnectionId) -> Handler {
        let activity = Arc::new(Activity::of_connection(self.activity(peer)));
        self.opening.insert(id, Arc::clone(&activity));
        Handler::new(id, self.registry.clone(), Arc::clone(&self.exempt), self.streams, activity)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, id))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, id))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                let (peer, id) = (opened.peer_id, opened.connection_id);
                let quic = addresses::is_quic(opened.endpoint.get_remote_address());
                let activity = self.opening.remove(&id).unwrap_or_else(|| self.activity(peer));
                let open = self.connections.entry(peer).or_default();
                open.push(Open { id, quic, superseded: false, activity });
                open.sort_unstable_by_key(Open::rank);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.forget(closed.peer_id, closed.connection_id);
            }
            FromSwarm::DialFailure(failed) => drop(self.opening.remove(&failed.connection_id)),
            FromSwarm::ListenFailure(failed) => drop(self.opening.remove(&failed.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        (protocol, stream): THandlerOutEvent<Self>,
    ) {
        self.queue.push_back(ToSwarm::GenerateEvent(Inbound { peer, protocol, stream }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.queue.pop_front() {
            Some(next) => Poll::Ready(next),
            None => Poll::Pending,
        }
    }
}
