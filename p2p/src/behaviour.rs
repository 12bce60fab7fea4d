//! The swarm: transports and the protocols that run on every connection.

mod gossip;
mod memory;
mod one_peer;
mod store;
mod tcp_first;

use std::{num::NonZeroUsize, time::Duration};

use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder,
    allow_block_list::{self, BlockedPeers},
    connection_limits::{self, ConnectionLimits},
    gossipsub, identify, kad, noise, ping,
    swarm::NetworkBehaviour,
    tcp, yamux,
};

use crate::{
    Config, HostError, Limits,
    names::Names,
    opener::OwnProtocols,
    streams::{self, Registry},
};

pub(crate) use gossip::{MAX_MESSAGE_BYTES, Subscriptions};
pub(crate) use one_peer::OnePeer;
pub(crate) use store::{MAX_OWN_KEYS, Store};
pub(crate) use tcp_first::TcpFirst;

/// A connection on which nobody does anything is closed after this.
const IDLE: Duration = Duration::from_secs(60);
/// Dialling and handshake together.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams whose protocol is being agreed on; more wait in the muxer. Kubo opens one per Bitswap message.
const NEGOTIATING: usize = 256;
/// Streams of libp2p's own protocols, and those not yet acknowledged, beside the counted ones.
const OTHER_STREAMS: usize = 512;
/// Round trips of all connections; liveness of watched peers is measured apart.
const PING_EVERY: Duration = Duration::from_secs(15);
/// A connection on which two pings in a row take longer is dead (`Task::on_ping_failed`).
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A DHT message: 20 peers with their addresses fit.
const DHT_PACKET_BYTES: usize = 16 << 10;
/// A search of the DHT gives up after this.
const DHT_QUERY: Duration = Duration::from_secs(30);
/// Peers are asked at the same time in one search.
const DHT_PARALLEL: NonZeroUsize = NonZeroUsize::new(10).expect("10 is not 0");

/// Gossip of this swarm's topics.
pub(crate) type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, Subscriptions>;

/// Everything that runs on a connection. Refusals come first, in this order.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(crate) struct Behaviour {
    pub(crate) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(crate) limits: connection_limits::Behaviour,
    memory: memory::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) gossip: OnePeer<Gossip>,
    pub(crate) dht: TcpFirst<kad::Behaviour<Store>>,
    pub(crate) streams: streams::Behaviour,
}

/// Makes the swarm of a host; nothing listens or dials yet.
pub(crate) fn swarm(
    config: &Config,
    names: &Names,
    own: &OwnProtocols,
    registry: &Registry,
) -> Result<Swarm<Behaviour>, HostError> {
    let transport = |error: &dyn std::fmt::Display| HostError::Transport(error.to_string());
    let make = || {
        let tcp = tcp::Config::default().nodelay(true);
        let streams = config.limits.streams;
        SwarmBuilder::with_existing_identity(config.identity.keypair())
            .with_tokio()
            .with_tcp(tcp, noise::Config::new, move || muxer(streams))
            .map(move |builder| {
                builder.with_quic_config(move |mut quic| {
                    quic.max_concurrent_stream_limit = 2 * streams as u32 + OTHER_STREAMS as u32;
                    quic
                })
            })
    };
    let behaviour = Behaviour::new(config, names, own, registry)?;
    let tune = |swarm: libp2p::swarm::Config| {
        swarm.with_idle_connection_timeout(IDLE).with_max_negotiating_inbound_streams(NEGOTIATING)
    };
    // Without a resolver on the system, names cannot be dialled; addresses can.
    let with_names = make().map_err(|error| transport(&error))?.with_dns();
    let swarm = match with_names {
        Ok(builder) => builder
            .with_behaviour(|_| behaviour)
            .map_err(|error| transport(&error))?
            .with_swarm_config(tune)
            .with_connection_timeout(HANDSHAKE)
            .build(),
        Err(error) => {
            tracing::warn!(%error, "no resolver: DNS addresses cannot be dialled");
            make()
                .map_err(|error| transport(&error))?
                .with_behaviour(|_| behaviour)
                .map_err(|error| transport(&error))?
                .with_swarm_config(tune)
                .with_connection_timeout(HANDSHAKE)
                .build()
        }
    };
    Ok(swarm)
}

fn muxer(streams: usize) -> yamux::Config {
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(2 * streams + OTHER_STREAMS);
    muxer
}

impl Behaviour {
    fn new(
        config: &Config,
        names: &Names,
        own: &OwnProtocols,
        registry: &Registry,
    ) -> Result<Self, HostError> {
        let public = config.identity.keypair().public();
        let exempt = [own.frames.clone(), own.echo.clone()];
        let about = identify::Config::new(names.family(), public)
            .with_agent_version(config.agent.clone())
            .with_push_listen_addr_updates(true)
            // The peer book keeps addresses.
            .with_cache_size(0);
        Ok(Self {
            blocked: allow_block_list::Behaviour::default(),
            limits: connection_limits::Behaviour::new(connection_limits(&config.limits)),
            memory: memory::Behaviour::new(config.limits.memory_bytes),
            identify: identify::Behaviour::new(about),
            ping: ping::Behaviour::new(
                ping::Config::new().with_interval(PING_EVERY).with_timeout(PING_TIMEOUT),
            ),
            gossip: OnePeer::new(gossip::behaviour(config, names)?, config.local_peers_whitelisted),
            dht: TcpFirst(dht(config, names)?),
            streams: streams::Behaviour::new(registry.clone(), &exempt, config.limits.streams),
        })
    }
}

fn connection_limits(limits: &Limits) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending_inbound))
        .with_max_pending_outgoing(Some(limits.pending_outbound))
        .with_max_established_incoming(Some(limits.inbound))
        .with_max_established_outgoing(Some(limits.outbound))
        .with_max_established(Some(limits.connections))
        .with_max_established_per_peer(Some(limits.per_peer))
}

fn dht(config: &Config, names: &Names) -> Result<kad::Behaviour<Store>, HostError> {
    let peer = config.identity.peer_id();
    let mut settings = kad::Config::new(dht_protocol(names)?);
    settings
        .disjoint_query_paths(true)
        .set_parallelism(DHT_PARALLEL)
        .set_query_timeout(DHT_QUERY)
        .set_max_packet_size(DHT_PACKET_BYTES)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        // Values are not kept, only providers.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled);
    let mut dht = kad::Behaviour::with_config(peer, Store::new(peer), settings);
    let mode = if config.dht_server { kad::Mode::Server } else { kad::Mode::Client };
    dht.set_mode(Some(mode));
    Ok(dht)
}

/// The protocol of this swarm's DHT.
pub(crate) fn dht_protocol(names: &Names) -> Result<StreamProtocol, HostError> {
    Ok(names.protocol("kad/1")?)
}
