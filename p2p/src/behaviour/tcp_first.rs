//! Dials of the DHT go over TCP where they can, and from a port of their own.
//!
//! A killed process resets its TCP connections at once, while a QUIC peer that is gone is only noticed by
//! silence. All addresses of a dial race, and QUIC's shorter handshake would win nearly always.
//! libp2p dials from its listening port by default: two peers that do so at the same moment get one TCP connection
//! that both have dialled, and its handshake fails on both sides.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use crate::addresses;

/// A behaviour whose addresses are cut to TCP ones when there are any.
pub(crate) struct TcpFirst<B>(pub(crate) B);

impl<B: NetworkBehaviour> TcpFirst<B> {
    /// All addresses that the behaviour knows of a peer.
    pub(crate) fn all_addresses(&mut self, peer: PeerId) -> Vec<Multiaddr> {
        let nowhere = ConnectionId::new_unchecked(0);
        let inner = &mut self.0;
        let asked = inner.handle_pending_outbound_connection(nowhere, Some(peer), &[], Endpoint::Dialer);
        asked.unwrap_or_default()
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for TcpFirst<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.0.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if !addresses.is_empty() {
            // Our own dial: it has chosen its addresses.
            return Ok(Vec::new());
        }
        let mut found = self.0.handle_pending_outbound_connection(id, peer, addresses, role)?;
        if found.iter().any(|address| !addresses::is_quic(address)) {
            found.retain(|address| !addresses::is_quic(address));
        }
        Ok(found)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.0.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.0.poll(cx).map(|next| match next {
            ToSwarm::Dial { opts } => ToSwarm::Dial { opts: from_new_port(opts) },
            other => other,
        })
    }
}

fn from_new_port(dial: DialOpts) -> DialOpts {
    match dial.get_peer_id() {
        // The DHT names a peer and leaves its addresses to be looked up.
        Some(peer) => DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .allocate_new_port()
            .build(),
        None => dial,
    }
}
