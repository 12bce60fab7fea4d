//! The one task that owns the swarm.
//!
//! It handles one command, note, timer or swarm event at a time and never waits for anything else. What takes time (writing
//! frames, reading them, answering requests, watching peers, saving the book) runs in helpers that report back.

mod connections;
mod dht;
mod dialling;
mod gossip;
mod offences;
mod stopping;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    gossipsub::{IdentTopic, TopicHash},
    identify,
    multiaddr::Protocol,
    ping,
    swarm::{DialError as SwarmDialError, ListenError, SwarmEvent},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use self::{
    connections::Peer,
    dht::Searches,
    dialling::{Dials, Lost},
    offences::Offences,
};
use crate::{
    Config, Event, Events, HostError, addresses,
    behaviour::{self, Behaviour, BehaviourEvent},
    book::{self, Book},
    event::Sink,
    frames::{Reader, Spawner},
    opener::{Opener, OwnProtocols},
    redial::{Redial, Target},
    request::Server,
    shared::{Command, Ended, Note, Shared},
};

pub(crate) use dht::{MAX_PROVIDERS, MAX_SEARCH};

/// Changes of the peer book are saved together this much later.
const SAVE_AFTER: Duration = Duration::from_secs(5);

pub(crate) struct Task {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    events: Sink,
    opener: Opener,
    commands: mpsc::Receiver<Command>,
    config: Settings,
    listeners: HashMap<ListenerId, Vec<Multiaddr>>,
    /// Connected peers.
    peers: HashMap<PeerId, Peer>,
    watched: HashSet<PeerId>,
    /// Watched peers that were lost and are not back.
    lost: HashMap<PeerId, Lost>,
    readers: HashMap<PeerId, Reader>,
    requests: Server,
    dials: Dials,
    redial: Redial,
    /// When [`Redial`] is to be asked again.
    redial_at: Option<Instant>,
    book: Book,
    save_at: Option<Instant>,
    saving: Option<JoinHandle<()>>,
    offences: Offences,
    searches: Searches,
}

/// What is left of the configuration once the swarm is made.
struct Settings {
    topics: HashSet<TopicHash>,
    announce: Vec<Multiaddr>,
    /// Never forgotten, whoever answers there now.
    bootstrap: Vec<(PeerId, Multiaddr)>,
    peer_book: Option<PathBuf>,
    wanted_peers: usize,
    max_inbound: usize,
    max_outbound: usize,
}

/// Makes the host's task and runs it.
pub(crate) async fn spawn(
    config: Config,
    shared: Arc<Shared>,
    handle: mpsc::WeakSender<Command>,
    commands: mpsc::Receiver<Command>,
) -> Result<(Events, watch::Receiver<Ended>), HostError> {
    let own = OwnProtocols::new(&shared.names)?;
    for protocol in [&own.frames, &own.echo, &own.requests] {
        shared.registry.offer(protocol.clone());
    }
    let mut swarm = behaviour::swarm(&config, &shared.names, &own, &shared.registry)?;
    let listeners = listen(&mut swarm, &config.listen)?;
    let book = read_book(config.peer_book.clone()).await;
    let (events, receiver) = Sink::new();
    let opener = Opener { commands: handle, own };
    shared.links.start(Spawner {
        runtime: Handle::current(),
        opener: opener.clone(),
        shared: Arc::downgrade(&shared),
        events: events.clone(),
    });
    let topics = config.topics.iter().map(|name| Ok(IdentTopic::new(shared.names.topic(name)?).hash()));
    let topics = topics.collect::<Result<_, HostError>>()?;
    let task = Task {
        requests: Server::new(&config.limits, events.clone(), Arc::downgrade(&shared)),
        searches: Searches::default(),
        redial: Redial::new(config.bootstrap.iter().map(target)),
        swarm,
        events,
        opener,
        commands,
        listeners,
        peers: HashMap::new(),
        watched: HashSet::new(),
        lost: HashMap::new(),
        readers: HashMap::new(),
        dials: Dials::default(),
        redial_at: Some(Instant::now()),
        book,
        save_at: None,
        saving: None,
        offences: Offences::default(),
        config: Settings {
            topics,
            announce: config.announce,
            bootstrap: config.bootstrap.into_iter().filter_map(known_bootstrap).collect(),
            peer_book: config.peer_book,
            wanted_peers: config.limits.wanted_peers,
            max_inbound: config.limits.inbound as usize,
            max_outbound: config.limits.outbound as usize,
        },
        shared,
    };
    Ok((receiver, task.run_supervised()))
}

fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Multiaddr],
) -> Result<HashMap<ListenerId, Vec<Multiaddr>>, HostError> {
    let listeners = addresses.iter().map(|address| {
        check_free(address)?;
        let id = swarm
            .listen_on(address.clone())
            .map_err(|error| HostError::Listen { address: address.clone(), reason: chain(&error) })?;
        Ok((id, Vec::new()))
    });
    listeners.collect()
}

/// Refuses a TCP port that somebody listens on. libp2p's listeners share their ports: two nodes on
/// one port would each get a part of the connections of both.
fn check_free(address: &Multiaddr) -> Result<(), HostError> {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) if port != 0 => Some(port),
        _ => None,
    });
    let (Some(ip), Some(port)) = (addresses::ip(address), port) else { return Ok(()) };
    match std::net::TcpListener::bind((ip, port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(HostError::Listen { address: address.clone(), reason: error.to_string() }),
    }
}

async fn read_book(path: Option<PathBuf>) -> Book {
    let Some(path) = path else { return Book::default() };
    let read = tokio::task::spawn_blocking(move || Book::load(&path)).await;
    read.unwrap_or_default()
}

fn known_bootstrap(address: Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let (address, peer) = addresses::split_peer(address);
    Some((peer?, address))
}

fn target(address: &Multiaddr) -> Target {
    match addresses::split_peer(address.clone()) {
        (_, Some(peer)) => Target::Peer(peer),
        (address, None) => Target::Address(address),
    }
}

impl Task {
    /// Runs the task, and a second one that notices how it ends.
    fn run_supervised(self) -> watch::Receiver<Ended> {
        let (ending, ended) = watch::channel(None);
        let (shared, events) = (Arc::clone(&self.shared), self.events.clone());
        let running = tokio::spawn(self.run());
        tokio::spawn(async move {
            let result = running.await.map_err(|error| Arc::from(error.to_string()));
            shared.links.stop();
            shared.links.clear();
            shared.registry.close();
            events.end();
            // Nobody may be left to tell.
            let _ = ending.send(Some(result));
        });
        ended
    }

    async fn run(mut self) {
        loop {
            let wakeup = self.next_wakeup();
            let timer = sleep_until(wakeup.unwrap_or_else(Instant::now));
            let room = self.events.has_room();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.on_command(command),
                },
                () = self.shared.noted() => self.on_notes(),
                () = timer, if wakeup.is_some() => self.on_wakeup(),
                () = self.events.room(), if !room => {}
                event = self.swarm.select_next_some(), if room => self.on_swarm_event(event),
            }
        }
        self.shut_down().await;
    }

    fn on_command(&mut self, command: Command) {
        // What was noted before, by the same caller perhaps, comes first.
        self.on_notes();
        match command {
            Command::Open { peer, protocol, on, answer } => self.open(peer, protocol, on, answer),
            Command::Dial { address, answer } => self.dial_address(address, answer),
            Command::Peers { answer } => reply(answer, self.describe_peers()),
            Command::Subscribe { topic, on, answer } => {
                let done = self.subscription(topic, on);
                reply(answer, done);
            }
            Command::Publish { topic, data, answer } => {
                let done = self.publish(topic, &data);
                reply(answer, done);
            }
            Command::TopicPeers { topic, answer } => reply(answer, self.topic_peers(topic)),
            Command::Provide { key, answer } => {
                let done = self.provide(key);
                reply(answer, done);
            }
            Command::StopProviding { key } => self.stop_providing(&key),
            Command::FindProviders { key, limit, found, deadline, answer } => {
                let done = self.find_providers(key, limit, found, deadline);
                reply(answer, done);
            }
            Command::Stop => {} // ends the loop before it gets here
        }
    }

    fn on_notes(&mut self) {
        for note in self.shared.take_notes() {
            match note {
                Note::Watch(peer, on) => self.watch(peer, on),
                Note::Verdict(id, relay, verdict) => self.on_verdict(id, relay, verdict),
                Note::Penalise(peer, why) => self.penalise(peer, why),
                Note::AddAddress(peer, address) => self.add_address(peer, address),
                Note::Disconnect(peer) => self.disconnect(peer),
                Note::SessionLost(peer, connection) => self.session_lost(peer, connection),
                Note::Probed(peer, connection, alive) => self.on_probed(peer, connection, alive),
                Note::Cut(peer, why) => self.cut(peer, why),
            }
        }
    }

    /// When the task has to look at its clocks again.
    fn next_wakeup(&self) -> Option<Instant> {
        let times = [
            self.redial_at,
            self.save_at,
            self.dials.next_wakeup(),
            self.offences.next_wakeup(),
            self.searches.next_wakeup(),
        ];
        times.into_iter().flatten().min()
    }

    fn on_wakeup(&mut self) {
        let now = Instant::now();
        self.start_fallbacks(now);
        self.end_searches(now);
        self.forgive(now);
        if self.redial_at.is_some_and(|at| at <= now) {
            self.redial();
        }
        if self.save_at.is_some_and(|at| at <= now) {
            self.save_book();
        }
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                debug!(peer = %peer_id, ?cause, "connection closed");
                self.on_closed(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                debug!(%error, "inbound connection failed");
                if matches!(error, ListenError::Denied { .. }) {
                    self.shared.metrics.connections_refused.add(1);
                }
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.listeners.entry(listener_id).or_default().push(address);
                self.update_listening(None);
            }
            SwarmEvent::ExpiredListenAddr { listener_id, address } => {
                if let Some(known) = self.listeners.get_mut(&listener_id) {
                    known.retain(|known| *known != address);
                }
                self.update_listening(None);
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                let reason = reason.err().map_or("closed".to_owned(), |error| error.to_string());
                warn!(reason, "a listener closed");
                self.listeners.remove(&listener_id);
                self.update_listening(Some(reason));
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "a listener has trouble"),
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(inbound) => self.on_inbound(inbound),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Dht(event) => self.on_dht(event),
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(peer_id, connection_id, info);
            }
            BehaviourEvent::Identify(_) => {}
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.rtt = Some(rtt);
                }
            }
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(failure) }) => {
                self.on_ping_failed(peer, connection, &failure);
            }
            BehaviourEvent::Blocked(never) => match never {},
            BehaviourEvent::Limits(never) | BehaviourEvent::Memory(never) => match never {},
        }
    }

    /// Tells everybody what is listened on now, and the DHT what to tell others.
    fn update_listening(&mut self, closed: Option<String>) {
        let known = || self.listeners.values().flatten();
        let announced = match &self.config.announce[..] {
            [] => addresses::announced(known()),
            given => given.iter().take(addresses::MAX_ANNOUNCED).cloned().collect(),
        };
        let announced: Vec<_> =
            announced.into_iter().map(|address| addresses::split_peer(address).0).collect();
        let old: Vec<_> = self.swarm.external_addresses().cloned().collect();
        let known: Vec<_> = known().cloned().collect();
        for gone in old.iter().filter(|old| !announced.contains(old)) {
            self.swarm.remove_external_address(gone);
        }
        for new in announced.iter().filter(|new| !old.contains(new)) {
            self.swarm.add_external_address(new.clone());
        }
        let own = *self.swarm.local_peer_id();
        let waiting = self.listeners.values().filter(|addresses| addresses.is_empty()).count();
        self.shared.listening.send_modify(|listening| {
            listening.waiting = waiting;
            listening.addresses = known;
            let announced = announced.into_iter().filter_map(|a| a.with_p2p(own).ok());
            listening.announced = announced.collect();
            if closed.is_some() {
                listening.closed = closed;
            }
        });
    }

    fn note_book_change(&mut self) {
        if self.config.peer_book.is_some() && self.save_at.is_none() && self.book.has_changed() {
            self.save_at = Some(Instant::now() + SAVE_AFTER);
        }
    }

    fn save_book(&mut self) {
        self.save_at = None;
        let Some(path) = self.config.peer_book.clone() else { return };
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            self.save_at = Some(Instant::now() + SAVE_AFTER);
            return;
        }
        let Some(content) = self.book.take_changes() else { return };
        self.saving = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = book::write(&path, &content) {
                warn!(path = %path.display(), %error, "could not save the peer book");
            }
        }));
    }

    fn emit(&self, event: Event) {
        self.events.put_task(event);
    }
}

/// Answers; who asked may have given up.
fn reply<T>(to: tokio::sync::oneshot::Sender<T>, answer: T) {
    let _ = to.send(answer);
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let said = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !said.is_empty() && !parts.iter().any(|part| part.contains(&said)) {
            parts.push(said);
        }
        next = error.source();
    }
    parts.join(": ")
}
