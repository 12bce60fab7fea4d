//! Gossip with peers that have several connections, and with many peers behind one local address.
//!
//! Gossipsub tells a peer what we take over its first connection only. A peer that lost that one, and is back before we
//! found out, would never hear it: so each further connection counts as a first one, and so does what is left when
//! one of several closes, since what was said may have gone to the dead one. To say it twice does no harm.
//!
//! Its scoring takes many peers on one address for one peer with many faces. On this machine and in
//! private networks they are honest ones; those addresses are shown to it as loopback, which it is told to let be.

use std::{
    collections::HashMap,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
    },
};

use crate::addresses::{self, Reach};

/// A gossip behaviour that is told of connections as the module says.
pub(crate) struct OnePeer<B> {
    pub(crate) inner: B,
    /// Whether many peers behind one private address are fine.
    local_is_trusted: bool,
    /// Open connections and their ends, as the behaviour was told.
    open: HashMap<PeerId, Vec<(ConnectionId, ConnectedPoint)>>,
}

impl<B: NetworkBehaviour> OnePeer<B> {
    pub(super) fn new(inner: B, local_is_trusted: bool) -> Self {
        Self { inner, local_is_trusted, open: HashMap::new() }
    }

    fn on_established(&mut self, opened: ConnectionEstablished<'_>) {
        let endpoint = self.shown(opened.endpoint);
        self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            endpoint: &endpoint,
            other_established: 0,
            ..opened
        }));
        self.open.entry(opened.peer_id).or_default().push((opened.connection_id, endpoint));
    }

    fn on_closed(&mut self, closed: ConnectionClosed<'_>) {
        let open = self.open.entry(closed.peer_id).or_default();
        let at = open.iter().position(|(id, _)| *id == closed.connection_id);
        let endpoint = at.map_or_else(|| closed.endpoint.clone(), |at| open.swap_remove(at).1);
        let left = open.last().cloned();
        if left.is_none() {
            self.open.remove(&closed.peer_id);
        }
        self.inner
            .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed { endpoint: &endpoint, ..closed }));
        if let Some((connection_id, endpoint)) = left {
            self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: closed.peer_id,
                connection_id,
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
        }
    }

    /// The ends of a connection as scoring sees them.
    fn shown(&self, endpoint: &ConnectedPoint) -> ConnectedPoint {
        let mut shown = endpoint.clone();
        let remote = match &mut shown {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        if self.local_is_trusted && addresses::reach(remote) < Reach::Global {
            *remote = as_loopback(remote);
        }
        shown
    }
}

fn as_loopback(address: &Multiaddr) -> Multiaddr {
    let shown = address.iter().map(|part| match part {
        Protocol::Ip4(_) | Protocol::Ip6(_) => Protocol::from(IpAddr::from([127, 0, 0, 1])),
        other => other,
    });
    shown.collect()
}

impl<B: NetworkBehaviour> NetworkBehaviour for OnePeer<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(opened) => self.on_established(opened),
            FromSwarm::ConnectionClosed(closed) => self.on_closed(closed),
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_addresses_are_shown_as_loopback() {
        let gossip = OnePeer::new(libp2p::swarm::dummy::Behaviour, true);
        let shown = |address: &str| {
            let end = ConnectedPoint::Listener {
                local_addr: Multiaddr::empty(),
                send_back_addr: address.parse().unwrap(),
            };
            gossip.shown(&end).get_remote_address().to_string()
        };
        assert_eq!(shown("/ip4/192.168.1.7/tcp/9"), "/ip4/127.0.0.1/tcp/9");
        assert_eq!(shown("/ip6/fd00::1/udp/9/quic-v1"), "/ip4/127.0.0.1/udp/9/quic-v1");
        assert_eq!(shown("/ip4/8.8.8.8/tcp/9"), "/ip4/8.8.8.8/tcp/9");
    }
}
