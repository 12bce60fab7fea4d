//! The handle in front of the network task.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use crate::{
    Config, Events, Incoming, Metrics, Stream,
    error::{
        AcceptError, DhtError, DialError, HostError, OpenError, PublishError, RequestError, SendError,
        TopicError,
    },
    event::GossipId,
    request,
    shared::{Command, Ended, Note, Shared, Verdict, ended},
    task,
};

/// Commands waiting for the network task. Callers wait when it is full.
pub(crate) const COMMAND_CAPACITY: usize = 256;
/// How long one stream may take to be opened, dialling included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// SHA-256 multihashes have 34 bytes; the DHT's store allows no longer keys than this.
pub(crate) const MAX_KEY_BYTES: usize = 64;

/// A cloneable handle on one running network host.
///
/// The host runs until [`Host::stop`], or until the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Host {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    ended: watch::Receiver<Ended>,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Who it is.
    pub peer: PeerId,
    /// Addresses it can be dialled at, best first.
    pub addrs: Vec<Multiaddr>,
    /// Since when it has been connected.
    pub connected_since: std::time::SystemTime,
    /// Who dialled.
    pub direction: Direction,
    /// What carries the connection.
    pub transport: Transport,
    /// The remote end of the connection.
    pub remote: Multiaddr,
    /// Program name and version, as it says; empty until it has said so.
    pub agent: String,
    /// Whether it has said that it belongs to this swarm.
    pub member: bool,
    /// Topics of this swarm that it takes, by short name.
    pub topics: Vec<Arc<str>>,
    /// The last measured round trip.
    pub rtt: Option<Duration>,
    /// Whether it is [watched](Host::watch).
    pub watched: bool,
}

/// Who dialled a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The peer did.
    Inbound,
    /// This host did.
    Outbound,
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP with Noise and Yamux.
    Tcp,
    /// QUIC.
    Quic,
}

/// Connected peers that take one topic.
#[derive(Debug, Clone, Default)]
pub struct TopicPeers {
    /// All that have said so.
    pub subscribed: Vec<PeerId>,
    /// Those that messages are passed on to at once.
    pub mesh: Vec<PeerId>,
}

/// A peer that holds what a DHT key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Who it is.
    pub peer: PeerId,
    /// Where it can be dialled, as far as known.
    pub addrs: Vec<Multiaddr>,
}

/// The providers of one key, as they are found. Dropping it ends the search.
#[derive(Debug)]
pub struct Providers {
    found: mpsc::Receiver<Provider>,
}

impl Providers {
    /// The next provider, each peer once; `None` when the search is over.
    pub async fn next(&mut self) -> Option<Provider> {
        self.found.recv().await
    }
}

impl Host {
    /// Starts a host: binds its listeners, reads its peer book and dials its bootstrap peers.
    ///
    /// Addresses on ports chosen by the system are known after [`Host::wait_until_listening`].
    ///
    /// # Errors
    ///
    /// When the configuration cannot be used or a listener cannot be bound; nothing is left running then.
    pub async fn start(config: Config) -> Result<(Self, Events), HostError> {
        let names = config.check()?;
        let (commands, queue) = mpsc::channel(COMMAND_CAPACITY);
        let shared = Arc::new(Shared::new(names, config.identity.clone(), config.listen.len()));
        let (events, ended) = task::spawn(config, Arc::clone(&shared), commands.downgrade(), queue).await?;
        Ok((Self { shared, commands, ended }, events))
    }

    /// Who this host is.
    pub fn peer_id(&self) -> PeerId {
        self.shared.identity.peer_id()
    }

    /// Stops: flushes queued frames for a moment, closes all connections and ends the network task.
    /// Stopping twice is fine. Dropping the future does not keep the host from stopping.
    ///
    /// # Errors
    ///
    /// When the network task had panicked.
    pub async fn stop(&self) -> Result<(), HostError> {
        // A closed channel means that the task is ending already.
        let _ = self.commands.send(Command::Stop).await;
        self.closed().await
    }

    /// Waits until the network task has ended, by [`Host::stop`] or by a bug.
    ///
    /// # Errors
    ///
    /// When it panicked.
    pub async fn closed(&self) -> Result<(), HostError> {
        ended(self.ended.clone()).await
    }

    /// What is counted.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.metrics)
    }

    // --- addresses and peers ---

    /// The addresses that are listened on now, without `/p2p/…`.
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        self.shared.listening.borrow().addresses.clone()
    }

    /// At most three addresses that others should dial, best first, each ending in `/p2p/<this peer>`.
    pub fn announce_addrs(&self) -> Vec<Multiaddr> {
        self.shared.listening.borrow().announced.clone()
    }

    /// Waits until every listener has an address, and gives [`Host::announce_addrs`].
    ///
    /// # Errors
    ///
    /// When a listener closed before, or the host stopped.
    pub async fn wait_until_listening(&self) -> Result<Vec<Multiaddr>, HostError> {
        let mut listening = self.shared.listening.subscribe();
        let ready = listening.wait_for(|now| now.waiting == 0 || now.closed.is_some());
        tokio::select! {
            ready = ready => {
                let now = ready.map_err(|_| HostError::Stopped)?;
                match &now.closed {
                    Some(reason) => Err(HostError::NotListening(reason.clone())),
                    None => Ok(now.announced.clone()),
                }
            }
            ended = self.closed() => Err(ended.err().unwrap_or(HostError::Stopped)),
        }
    }

    /// Connects to the peer at an address. Dropping the future does not stop the dial.
    ///
    /// # Errors
    ///
    /// When nobody answers there, or somebody else than the address says.
    pub async fn dial(&self, address: Multiaddr) -> Result<PeerId, DialError> {
        self.ask(|answer| Command::Dial { address, answer }).await.ok_or(DialError::Stopped)?
    }

    /// Remembers an address of a peer. At once; wrong addresses cost a failed dial and are forgotten.
    pub fn add_address(&self, peer: PeerId, address: Multiaddr) {
        self.shared.note(Note::AddAddress(peer, address));
    }

    /// Closes all connections of a peer. It may dial again.
    pub fn disconnect(&self, peer: PeerId) {
        self.shared.note(Note::Disconnect(peer));
    }

    /// The connected peers.
    ///
    /// # Errors
    ///
    /// When the host has stopped.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, HostError> {
        self.ask(|answer| Command::Peers { answer }).await.ok_or(HostError::Stopped)
    }

    /// Whether the peer is connected now.
    pub fn connected(&self, peer: &PeerId) -> bool {
        self.shared.is_connected(peer)
    }

    /// The peers that are connected now, in no order.
    pub fn connected_peers(&self) -> Vec<PeerId> {
        self.shared.connected_peers()
    }

    /// Marks a peer as carrying live work, or no longer. At once.
    ///
    /// A watched peer's connection is kept open, exempt from limits and checked every second; when it is lost it
    /// is dialled again at once, and again with growing pauses. See [`Event`](crate::Event) for what is reported.
    pub fn watch(&self, peer: PeerId, on: bool) {
        self.shared.note(Note::Watch(peer, on));
    }

    // --- frames, requests, streams ---

    /// Queues a frame for a peer, and dials it when it is not connected. At once.
    ///
    /// Frames of one peer arrive in order and at most once; all that were queued or on their way when its
    /// connection broke are lost, which [`Event::Disconnected`](crate::Event::Disconnected) and
    /// [`Event::Undelivered`](crate::Event::Undelivered) report.
    ///
    /// # Errors
    ///
    /// When the frame is too large or the peer's queue full; nothing is queued then.
    pub fn send(&self, peer: PeerId, frame: Bytes) -> Result<(), SendError> {
        if peer == self.peer_id() {
            return Err(SendError::Own);
        }
        self.shared.links.send(peer, frame)
    }

    /// Sends one request and waits for the answer; dials the peer when it is not connected.
    ///
    /// Dropping the future forgets the answer; the peer may still act on the request.
    ///
    /// # Errors
    ///
    /// When no answer came, whatever the reason; the peer may have acted on the request.
    pub async fn request(
        &self,
        peer: PeerId,
        name: &str,
        question: Bytes,
        within: Duration,
    ) -> Result<Bytes, RequestError> {
        timeout(within, request::ask(self, peer, name, question)).await.unwrap_or(Err(RequestError::Timeout))
    }

    /// Opens a stream to a peer, and dials it when it is not connected.
    ///
    /// A short protocol name is put below this swarm's prefix, one that starts with a slash is taken as it is.
    /// With too many streams to the peer open, this waits for one to end.
    ///
    /// # Errors
    ///
    /// When the peer cannot be reached or does not speak the protocol.
    pub async fn open_stream(&self, peer: PeerId, protocol: &str) -> Result<Stream, OpenError> {
        let protocol = self.shared.names.protocol(protocol)?;
        timeout(OPEN_TIMEOUT, self.ask(|answer| Command::Open { peer, protocol, on: None, answer }))
            .await
            .map_err(|_| OpenError::Timeout)?
            .ok_or(OpenError::Stopped)?
    }

    /// Accepts streams of a protocol from now on, until the returned receiver is dropped. None is lost while it lives: peers
    /// wait when too many streams are open.
    ///
    /// Names are as in [`Host::open_stream`].
    ///
    /// # Errors
    ///
    /// When the name is not allowed or accepted elsewhere already.
    pub fn accept(&self, protocol: &str) -> Result<Incoming, AcceptError> {
        let protocol = self.shared.names.protocol(protocol)?;
        self.shared.registry.accept(protocol)
    }

    // --- gossip ---

    /// Takes messages of a topic from now on.
    ///
    /// # Errors
    ///
    /// When the topic is not one of [`Config::topics`].
    pub async fn subscribe(&self, topic: &str) -> Result<(), TopicError> {
        self.subscription(topic, true).await
    }

    /// Takes no messages of a topic any more.
    ///
    /// # Errors
    ///
    /// When the topic is not one of [`Config::topics`].
    pub async fn unsubscribe(&self, topic: &str) -> Result<(), TopicError> {
        self.subscription(topic, false).await
    }

    async fn subscription(&self, topic: &str, on: bool) -> Result<(), TopicError> {
        let topic = topic.to_owned();
        self.ask(|answer| Command::Subscribe { topic, on, answer }).await.ok_or(TopicError::Stopped)?
    }

    /// Publishes a message to all peers that take the topic. No subscription is needed.
    ///
    /// # Errors
    ///
    /// When nothing was sent, and why.
    pub async fn publish(&self, topic: &str, data: Bytes) -> Result<(), PublishError> {
        let topic = topic.to_owned();
        self.ask(|answer| Command::Publish { topic, data, answer }).await.ok_or(PublishError::Stopped)?
    }

    /// Who takes a topic.
    ///
    /// # Errors
    ///
    /// When the topic is not one of [`Config::topics`].
    pub async fn topic_peers(&self, topic: &str) -> Result<TopicPeers, TopicError> {
        let topic = topic.to_owned();
        self.ask(|answer| Command::TopicPeers { topic, answer }).await.ok_or(TopicError::Stopped)?
    }

    /// Decides about a gossip message. At once. Without a verdict the message is not passed on.
    pub fn verdict(&self, id: GossipId, relay: PeerId, verdict: Verdict) {
        self.shared.note(Note::Verdict(id, relay, verdict));
    }

    /// Lowers the standing of a peer that broke a rule; after a few offences it is blocked for a while. At once.
    pub fn penalise(&self, peer: PeerId, why: &'static str) {
        self.shared.note(Note::Penalise(peer, why));
    }

    // --- DHT ---

    /// Tells the DHT that this host provides a key, now and again until [`Host::stop_providing`].
    ///
    /// Returns once the key is noted; peers learn of it soon after.
    ///
    /// # Errors
    ///
    /// When the key has a wrong size or too many are provided.
    pub async fn provide(&self, key: &[u8]) -> Result<(), DhtError> {
        let key = check_key(key)?;
        self.ask(|answer| Command::Provide { key, answer }).await.ok_or(DhtError::Stopped)?
    }

    /// Provides a key no longer. Others may still be told of it for up to two days.
    ///
    /// # Errors
    ///
    /// When the key has a wrong size or the host has stopped.
    pub async fn stop_providing(&self, key: &[u8]) -> Result<(), DhtError> {
        let key = check_key(key)?;
        let command = Command::StopProviding { key };
        self.commands.send(command).await.map_err(|_| DhtError::Stopped)
    }

    /// Searches the DHT for other peers that provide a key: at most `limit`, for at most `within`.
    ///
    /// # Errors
    ///
    /// When the key has a wrong size or too many searches are under way.
    pub async fn find_providers(
        &self,
        key: &[u8],
        limit: usize,
        within: Duration,
    ) -> Result<Providers, DhtError> {
        let key = check_key(key)?;
        let limit = limit.clamp(1, task::MAX_PROVIDERS);
        let (sender, found) = mpsc::channel(limit);
        let deadline = Instant::now() + within.min(task::MAX_SEARCH);
        self.ask(|answer| Command::FindProviders { key, limit, found: sender, deadline, answer })
            .await
            .ok_or(DhtError::Stopped)??;
        Ok(Providers { found })
    }

    /// About how many peers the swarm has, this one included; never fewer than are connected.
    pub fn network_size(&self) -> u64 {
        self.shared.network_size()
    }

    /// Puts a question to the task; `None` when it has stopped.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.ok()?;
        answered.await.ok()
    }
}

fn check_key(key: &[u8]) -> Result<Vec<u8>, DhtError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(DhtError::Key { size: key.len(), max: MAX_KEY_BYTES });
    }
    Ok(key.to_vec())
}
