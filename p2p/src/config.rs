//! What a host is told at its start.

use std::path::PathBuf;

use libp2p::Multiaddr;

use crate::{Identity, error::HostError, names::Names};

/// Addresses of one list; more cannot be meant.
const MAX_ADDRESSES: usize = 256;
/// Topics of one swarm; every peer may subscribe to each.
const MAX_TOPICS: usize = 64;
/// What identify tells others about the program.
const MAX_AGENT_BYTES: usize = 128;

/// Everything a [`Host`](crate::Host) needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who the node is.
    pub identity: Identity,
    /// The swarm's name: 1 to 63 of `a-z`, `0-9` and `-`. Peers of other swarms share no protocol with this one.
    pub swarm: String,
    /// Where to listen. Empty: this host only dials.
    pub listen: Vec<Multiaddr>,
    /// What other peers are told to dial. Empty: the addresses that are listened on.
    pub announce: Vec<Multiaddr>,
    /// Peers to join by, with or without `/p2p/<peer>` at the end.
    pub bootstrap: Vec<Multiaddr>,
    /// Where known peers are kept over restarts.
    pub peer_book: Option<PathBuf>,
    /// Short names of the topics of this swarm. Others cannot be subscribed to, by anybody.
    pub topics: Vec<String>,
    /// What peers may take.
    pub limits: Limits,
    /// Whether many peers behind one private address are fine, as they are behind one of loopback.
    ///
    /// Gossip scoring takes more than ten peers on any other address for one peer with many faces.
    pub local_peers_whitelisted: bool,
    /// Whether this host keeps DHT records for others. Hosts that cannot be dialled should not.
    pub dht_server: bool,
    /// Program name and version, as others see it.
    pub agent: String,
}

impl Config {
    /// A configuration with defaults: any free TCP and UDP port on all IPv4 interfaces, nobody to join.
    pub fn new(identity: Identity, swarm: impl Into<String>) -> Self {
        let any = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
        Self {
            identity,
            swarm: swarm.into(),
            listen: any.iter().filter_map(|address| address.parse().ok()).collect(),
            announce: Vec::new(),
            bootstrap: Vec::new(),
            peer_book: None,
            topics: Vec::new(),
            limits: Limits::default(),
            local_peers_whitelisted: false,
            dht_server: true,
            agent: concat!("cardume/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// A configuration for swarms on one machine: any free TCP and UDP port of the loopback device.
    pub fn loopback(identity: Identity, swarm: impl Into<String>) -> Self {
        let any = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];
        Self {
            listen: any.iter().filter_map(|address| address.parse().ok()).collect(),
            local_peers_whitelisted: true,
            ..Self::new(identity, swarm)
        }
    }

    pub(crate) fn check(&self) -> Result<Names, HostError> {
        let names = Names::new(&self.swarm)?;
        for topic in &self.topics {
            names.topic(topic)?;
        }
        at_most("topics", self.topics.len(), MAX_TOPICS)?;
        at_most("listen", self.listen.len(), MAX_ADDRESSES)?;
        at_most("announce", self.announce.len(), MAX_ADDRESSES)?;
        at_most("bootstrap", self.bootstrap.len(), MAX_ADDRESSES)?;
        at_most("agent", self.agent.len(), MAX_AGENT_BYTES)?;
        self.limits.check()?;
        Ok(names)
    }
}

fn at_most(setting: &'static str, found: usize, max: usize) -> Result<(), HostError> {
    if found > max {
        return Err(HostError::Setting { setting, reason: format!("{found} is more than {max}") });
    }
    Ok(())
}

/// How much peers may take of this host.
///
/// Peers that are [watched](crate::Host::watch) are exempt from the limits on connections. When three quarters of the
/// places of one direction are taken, the connections that were quiet for longest make room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Inbound connections in their handshake. Lighthouse takes 5; a whole local swarm that
    /// joins by one peer at the same moment needs more, and a handshake is cheap.
    pub pending_inbound: u32,
    /// Outbound connections in their handshake. They are our own doing, and an owner may ask many peers at once.
    pub pending_outbound: u32,
    /// Open inbound connections. Apart from outbound ones, so that strangers cannot take all places.
    pub inbound: u32,
    /// Open outbound connections: the mesh, searches of the DHT, and up to 32 peers that an owner asks directly.
    pub outbound: u32,
    /// Open connections in all.
    pub connections: u32,
    /// Connections of one peer. With one, two peers that dial each other at the same
    /// moment would each refuse the other's call and end with none; and a peer that changes its network comes
    /// back before its old connections are found dead.
    pub per_peer: u32,
    /// Above this many bytes of anonymous memory in the process new inbound connections are refused. 0: no limit.
    pub memory_bytes: u64,
    /// How many peers this host wants: below it known peers are dialled.
    pub wanted_peers: usize,
    /// Streams that one connection may hold in each direction; more wait for a place.
    pub streams: usize,
    /// Requests of all peers that are being answered at the same time.
    pub requests: usize,
    /// Requests of one peer that are being answered at the same time.
    pub requests_per_peer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_inbound: 64,
            pending_outbound: 128,
            inbound: 64,
            outbound: 64,
            connections: 128,
            per_peer: 4,
            memory_bytes: 512 << 20,
            wanted_peers: 12,
            streams: 256,
            requests: 256,
            requests_per_peer: 32,
        }
    }
}

impl Limits {
    /// The largest value of [`Limits::streams`]: each stream may hold 256 KiB of unread data.
    pub const MAX_STREAMS: usize = 1536;

    fn check(&self) -> Result<(), HostError> {
        let none = self.streams == 0 || self.requests == 0 || self.requests_per_peer == 0;
        if none || self.per_peer == 0 || self.connections == 0 {
            let reason = "a limit of 0 would stop everything".to_owned();
            return Err(HostError::Setting { setting: "limits", reason });
        }
        at_most("limits.streams", self.streams, Self::MAX_STREAMS)
    }
}
