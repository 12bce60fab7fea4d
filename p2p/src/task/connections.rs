//! Connected peers: what is known of them, what they open, and what happens when they go.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, identify, ping, swarm::ConnectionId};
use tokio::{task::JoinHandle, time::Instant};
use tracing::debug;

use super::Task;
use crate::{
    Direction, Event, PeerInfo, Transport, addresses, behaviour,
    frames::Reader,
    liveness::{self, Watcher},
    redial::Target,
    shared::Note,
    streams::{Activity, Inbound, Stream},
};

/// Streams on which one peer may ask whether we live: one a connection, and one that is being replaced.
const MAX_ECHOES: usize = 4;
/// A connection is not closed for others while it may just have become useful.
const SETTLED: Duration = Duration::from_secs(10);
/// A connection whose pings fail is closed when nothing else has been read over it for this long either: bulk that
/// is on its way may hold up a ping.
const QUIET: Duration = Duration::from_secs(20);
/// Readers of peers that are gone end by themselves; their places are cleared above this.
const MANY_READERS: usize = 256;
/// Peers are watched by the owner of the host, one for each peer it works with.
const MAX_WATCHED: usize = 4096;

/// A connected peer.
pub(super) struct Peer {
    pub(super) connections: Vec<Connection>,
    pub(super) member: bool,
    pub(super) rtt: Option<Duration>,
    agent: String,
    watcher: Option<Watcher>,
    echoes: Vec<JoinHandle<()>>,
}

pub(super) struct Connection {
    id: ConnectionId,
    remote: Multiaddr,
    direction: Direction,
    since: SystemTime,
    opened: Instant,
    activity: Arc<Activity>,
}

impl Peer {
    fn new() -> Self {
        Self {
            connections: Vec::new(),
            member: false,
            rtt: None,
            agent: String::new(),
            watcher: None,
            echoes: Vec::new(),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.echoes.iter().for_each(JoinHandle::abort);
    }
}

impl Connection {
    /// The address that we dialled, without the peer.
    fn dialled(&self) -> Option<Multiaddr> {
        let dialled = self.direction == Direction::Outbound;
        dialled.then(|| addresses::split_peer(self.remote.clone()).0)
    }
}

impl Task {
    pub(super) fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let direction = if endpoint.is_dialer() { Direction::Outbound } else { Direction::Inbound };
        let remote = endpoint.get_remote_address().clone();
        debug!(%peer, ?direction, %remote, "connected");
        let streams = &mut self.swarm.behaviour_mut().streams;
        let activity = streams.connection_activity(peer, id).unwrap_or_else(|| streams.activity(peer));
        let known = self.peers.entry(peer).or_insert_with(Peer::new);
        known.connections.push(Connection {
            id,
            remote,
            direction,
            since: SystemTime::now(),
            opened: Instant::now(),
            activity,
        });
        let count = known.connections.len();
        if let Some(dialled) = known.connections.last().and_then(Connection::dialled) {
            // It led to this peer: the handshake has proven it.
            self.book.add(peer, dialled);
        }
        self.shared.set_connections(peer, count);
        self.count_connections();
        self.shared.metrics.connections_opened.add(1);
        if count > 1 {
            self.leave_older(peer, id);
        }
        self.lost.remove(&peer);
        self.emit(Event::Connected { peer });
        self.start_watcher(peer);
        self.on_dialled(peer, id);
        self.redial.reached(&Target::Peer(peer), peer);
        self.make_room(direction);
        self.redial();
    }

    /// A further connection of the peer is open: most likely it lost the others. What is sent goes over the new one
    /// at once, and the others have to show that they still lead somewhere.
    fn leave_older(&mut self, peer: PeerId, newer: ConnectionId) {
        let doubted = self.swarm.behaviour_mut().streams.supersede(peer, newer);
        self.shared.links.moved(peer);
        for id in doubted {
            let (opener, shared) = (self.opener.clone(), Arc::downgrade(&self.shared));
            tokio::spawn(async move {
                let alive = liveness::probe(peer, id, &opener).await;
                if let Some(shared) = shared.upgrade() {
                    shared.note(Note::Probed(peer, id, alive));
                }
            });
        }
    }

    pub(super) fn on_probed(&mut self, peer: PeerId, id: ConnectionId, alive: bool) {
        if alive {
            return self.swarm.behaviour_mut().streams.proven(peer, id);
        }
        debug!(%peer, "an older connection is dead");
        self.give_up(peer, id);
    }

    pub(super) fn on_ping_failed(&mut self, peer: PeerId, id: ConnectionId, failure: &ping::Failure) {
        let Some(known) = self.peers.get(&peer) else { return };
        let Some(open) = known.connections.iter().find(|open| open.id == id) else { return };
        let quiet = open.activity.last().max(open.opened).elapsed() > QUIET;
        if quiet && !matches!(failure, ping::Failure::Unsupported) {
            debug!(%peer, %failure, "a connection is dead");
            self.give_up(peer, id);
        }
    }

    /// Closes a connection that leads nowhere. It counts as closed at once: with bytes left that the other side never
    /// takes, the system would keep it open for many minutes.
    fn give_up(&mut self, peer: PeerId, id: ConnectionId) {
        let open =
            self.peers.get(&peer).is_some_and(|known| known.connections.iter().any(|open| open.id == id));
        if !open {
            return;
        }
        self.shared.metrics.connections_given_up.add(1);
        self.swarm.close_connection(id);
        self.swarm.behaviour_mut().streams.forget(peer, id);
        self.on_closed(peer, id);
    }

    /// A stream broke while frames may have been on their way: its connection is of no more use. When the peer has
    /// another one, what it may have missed is told again over that.
    pub(super) fn session_lost(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(known) = self.peers.get(&peer) else { return };
        if known.connections.iter().all(|open| open.id == id) {
            return self.disconnect(peer);
        }
        self.give_up(peer, id);
        self.emit(Event::Connected { peer });
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(at) = known.connections.iter().position(|connection| connection.id == id) else { return };
        let closed = known.connections.swap_remove(at);
        let left = known.connections.len();
        self.shared.set_connections(peer, left);
        self.shared.metrics.connections_closed.add(1);
        if left > 0 {
            return self.count_connections();
        }
        self.peers.remove(&peer);
        self.count_connections();
        let frames = self.shared.links.lost(peer);
        if frames > 0 {
            self.emit(Event::Undelivered { peer, frames });
        }
        self.emit(Event::Disconnected { peer });
        if self.watched.contains(&peer) {
            self.redial_lost(peer, closed.dialled());
        }
        self.redial();
    }

    fn count_connections(&self) {
        let open = self.peers.values().map(|peer| peer.connections.len()).sum();
        self.shared.metrics.connections.set(open);
    }

    /// With few places left in one direction, closes the connection that was quiet for longest and that nobody needs.
    ///
    /// So a newcomer with one bootstrap peer finds a place to learn of others, and our own next dial finds one too:
    /// gossip's streams keep connections open that libp2p would close as idle.
    fn make_room(&mut self, direction: Direction) {
        let max = match direction {
            Direction::Inbound => self.config.max_inbound,
            Direction::Outbound => self.config.max_outbound,
        };
        let all =
            self.peers.iter().flat_map(|(peer, known)| known.connections.iter().map(move |c| (peer, c)));
        let mut all: Vec<_> = all.filter(|(_, open)| open.direction == direction).collect();
        if all.len() <= max - max / 4 {
            return;
        }
        let mesh: HashSet<_> = self.swarm.behaviour().gossip.inner.all_mesh_peers().collect();
        all.retain(|(peer, open)| {
            let needed = self.watched.contains(peer) || mesh.contains(peer);
            !needed && open.activity.last().max(open.opened).elapsed() > SETTLED
        });
        let quietest = all.into_iter().min_by_key(|(_, open)| open.activity.last().max(open.opened));
        if let Some(id) = quietest.map(|(_, open)| open.id) {
            self.shared.metrics.connections_trimmed.add(1);
            self.swarm.close_connection(id);
        }
    }

    pub(super) fn on_inbound(&mut self, inbound: Inbound) {
        let Inbound { peer, protocol, stream } = inbound;
        let metrics = &self.shared.metrics;
        metrics.streams_accepted.add(1);
        let own = &self.opener.own;
        if protocol == own.frames {
            self.read_frames(peer, stream);
        } else if protocol == own.echo {
            self.echo(peer, stream);
        } else if protocol == own.requests {
            self.requests.serve(peer, stream);
        } else if !self.shared.registry.deliver(&protocol, peer, stream) {
            metrics.streams_refused.add(1);
        }
    }

    fn read_frames(&mut self, peer: PeerId, stream: Stream) {
        if self.readers.len() >= MANY_READERS {
            self.readers.retain(|_, reader| !reader.is_finished());
        }
        let old = self.readers.remove(&peer);
        let shared = Arc::downgrade(&self.shared);
        let reader = Reader::start(peer, stream, old, self.events.clone(), shared);
        self.readers.insert(peer, reader);
    }

    fn echo(&mut self, peer: PeerId, stream: Stream) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.echoes.retain(|echo| !echo.is_finished());
        if known.echoes.len() < MAX_ECHOES {
            known.echoes.push(tokio::spawn(liveness::echo(stream)));
        } else {
            self.shared.metrics.streams_refused.add(1);
        }
    }

    pub(super) fn watch(&mut self, peer: PeerId, on: bool) {
        let limits = &mut self.swarm.behaviour_mut().limits;
        if !on {
            limits.remove_peer_id(&peer);
            self.watched.remove(&peer);
            self.lost.remove(&peer);
            if let Some(known) = self.peers.get_mut(&peer) {
                known.watcher = None;
            }
            return;
        }
        if self.watched.len() >= MAX_WATCHED || !self.watched.insert(peer) {
            return;
        }
        limits.bypass_peer_id(&peer);
        self.start_watcher(peer);
        self.redial();
    }

    fn start_watcher(&mut self, peer: PeerId) {
        if !self.watched.contains(&peer) {
            return;
        }
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let activity = self.swarm.behaviour_mut().streams.activity(peer);
        let metrics = Arc::clone(&self.shared.metrics);
        let (opener, events) = (self.opener.clone(), self.events.clone());
        known.watcher = Some(Watcher::start(peer, opener, activity, events, metrics));
    }

    pub(super) fn on_identified(&mut self, peer: PeerId, id: ConnectionId, info: identify::Info) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.agent = info.agent_version.chars().filter(|c| !c.is_control()).take(128).collect();
        known.member = info.protocol_version == self.shared.names.family();
        let connection = known.connections.iter().find(|connection| connection.id == id);
        let Some(connection) = connection.filter(|_| known.member) else { return };
        let (remote, dialled) = (connection.remote.clone(), connection.dialled());
        let in_dht =
            behaviour::dht_protocol(&self.shared.names).is_ok_and(|dht| info.protocols.contains(&dht));
        self.book.met(peer, dialled.clone());
        let told = info.listen_addrs.into_iter().map(|told| addresses::split_peer(told).0);
        let told = told.filter(|told| addresses::is_believable(told, &remote));
        for address in dialled.into_iter().chain(told.take(addresses::MAX_PER_PEER)) {
            if in_dht {
                self.swarm.behaviour_mut().dht.0.add_address(&peer, address.clone());
            }
            self.book.add(peer, address);
        }
        self.note_book_change();
    }

    pub(super) fn add_address(&mut self, peer: PeerId, address: Multiaddr) {
        match addresses::split_peer(address) {
            (_, Some(other)) if other != peer => {}
            _ if peer == *self.swarm.local_peer_id() => {}
            (address, _) => self.book.add(peer, address),
        }
        if self.watched.contains(&peer) && !self.peers.contains_key(&peer) {
            self.redial.retry(&Target::Peer(peer));
            self.redial_soon();
        }
        self.note_book_change();
    }

    pub(super) fn disconnect(&mut self, peer: PeerId) {
        // Not connected any more: that was the aim.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    pub(super) fn describe_peers(&self) -> Vec<PeerInfo> {
        let gossip = &self.swarm.behaviour().gossip.inner;
        let topics = |peer: &PeerId| {
            let taken = gossip.all_peers().find(|(other, _)| *other == peer);
            let topics = taken.into_iter().flat_map(|(_, topics)| topics);
            topics.filter_map(|topic| self.shared.names.short_topic(topic)).collect()
        };
        let described = self.peers.iter().filter_map(|(peer, known)| {
            let best = known.connections.iter();
            let best = best.min_by_key(|c| (addresses::is_quic(&c.remote), std::cmp::Reverse(c.opened)))?;
            let quic = addresses::is_quic(&best.remote);
            Some(PeerInfo {
                peer: *peer,
                addrs: self.book.addresses(peer),
                connected_since: best.since,
                direction: best.direction,
                transport: if quic { Transport::Quic } else { Transport::Tcp },
                remote: addresses::split_peer(best.remote.clone()).0,
                agent: known.agent.clone(),
                member: known.member,
                topics: topics(peer),
                rtt: known.rtt,
                watched: self.watched.contains(peer),
            })
        });
        described.collect()
    }
}
