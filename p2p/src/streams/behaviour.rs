//! The part that lives in the swarm: which connection a stream is opened on.

use std::{
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
    /// Open connections, best first: TCP before QUIC, old before new.
    connections: HashMap<PeerId, Vec<(bool, ConnectionId)>>,
    activities: HashMap<PeerId, Weak<Activity>>,
    queue: VecDeque<ToSwarm<Inbound, Opening>>,
}

impl Behaviour {
    pub(crate) fn new(registry: Registry, exempt: &[StreamProtocol], streams: usize) -> Self {
        Self {
            registry,
            exempt: exempt.into(),
            streams,
            connections: HashMap::new(),
            activities: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    /// Opens a stream to a connected peer.
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        protocol: StreamProtocol,
        answer: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        let best = self.connections.get(&peer).and_then(|open| open.first());
        let Some(&(_, connection)) = best else {
            // Who asked may have given up.
            let _ = answer.send(Err(OpenError::Disconnected));
            return;
        };
        let exempt = self.exempt.contains(&protocol);
        self.queue.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Opening { protocol, exempt, answer },
        });
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

    fn handler(&mut self, peer: PeerId) -> Handler {
        let activity = self.activity(peer);
        Handler::new(self.registry.clone(), Arc::clone(&self.exempt), self.streams, activity)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => {
                let quic = addresses::is_quic(opened.endpoint.get_remote_address());
                let open = self.connections.entry(opened.peer_id).or_default();
                open.push((quic, opened.connection_id));
                open.sort_unstable();
            }
            FromSwarm::ConnectionClosed(closed) => {
                if let Some(open) = self.connections.get_mut(&closed.peer_id) {
                    open.retain(|(_, id)| *id != closed.connection_id);
                    if open.is_empty() {
                        self.connections.remove(&closed.peer_id);
                    }
                }
            }
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
