//! Dials: TCP first, QUIC when that fails or takes long, and everybody who waits for the connection.

use std::{collections::HashMap, mem, time::Duration};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{sync::oneshot, time::Instant};
use tracing::debug;

use super::{SwarmDialError, Task, chain, reply};
use crate::{
    DialError, Event, OpenError, Stream, addresses,
    redial::{Situation, Target},
};

/// QUIC is tried beside a TCP dial that has not answered for this long.
const FALLBACK: Duration = Duration::from_secs(1);
/// Dials under way, of all kinds. The limits on connections are far below.
const MAX_DIALS: usize = 1024;
/// Streams and callers that wait for the same dial.
const MAX_WAITERS: usize = 4096;

type Opening = (StreamProtocol, oneshot::Sender<Result<Stream, OpenError>>);

/// Dials under way.
#[derive(Default)]
pub(super) struct Dials {
    peers: HashMap<PeerId, Dial>,
    /// Dials of addresses whose peer is not known.
    addresses: HashMap<ConnectionId, AddressDial>,
}

#[derive(Default)]
struct Dial {
    attempts: Vec<ConnectionId>,
    fallback: Option<(Instant, Vec<Multiaddr>)>,
    errors: Vec<String>,
    callers: Vec<oneshot::Sender<Result<PeerId, DialError>>>,
    openings: Vec<Opening>,
    /// The peer is watched and was just lost.
    was_lost: bool,
}

struct AddressDial {
    address: Multiaddr,
    caller: Option<oneshot::Sender<Result<PeerId, DialError>>>,
}

impl Dials {
    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        self.peers.values().filter_map(|dial| dial.fallback.as_ref()).map(|(at, _)| *at).min()
    }
}

impl Task {
    /// Opens a stream, after a dial when there is no connection.
    pub(super) fn open(
        &mut self,
        peer: PeerId,
        protocol: StreamProtocol,
        answer: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        self.shared.metrics.streams_opened.add(1);
        if self.peers.contains_key(&peer) {
            return self.swarm.behaviour_mut().streams.open(peer, protocol, answer);
        }
        match self.dial_peer(peer, Vec::new()) {
            Ok(dial) if dial.openings.len() < MAX_WAITERS => dial.openings.push((protocol, answer)),
            Ok(_) => reply(answer, Err(OpenError::Busy)),
            Err(error) => reply(answer, Err(error.into())),
        }
        self.settle(peer);
    }

    /// Dials an address for somebody.
    pub(super) fn dial_address(
        &mut self,
        address: Multiaddr,
        caller: oneshot::Sender<Result<PeerId, DialError>>,
    ) {
        let (address, peer) = addresses::split_peer(address);
        let Some(peer) = peer else { return self.dial_unknown(address, Some(caller)) };
        if self.peers.contains_key(&peer) {
            return reply(caller, Ok(peer));
        }
        match self.dial_peer(peer, vec![address]) {
            Ok(dial) if dial.callers.len() < MAX_WAITERS => dial.callers.push(caller),
            Ok(_) => reply(caller, Err(DialError::Failed("too many callers wait".into()))),
            Err(error) => reply(caller, Err(error)),
        }
        self.settle(peer);
    }

    fn dial_unknown(
        &mut self,
        address: Multiaddr,
        caller: Option<oneshot::Sender<Result<PeerId, DialError>>>,
    ) {
        let options = DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port().build();
        let id = options.connection_id();
        let dial = AddressDial { address, caller };
        if self.dials.addresses.len() >= MAX_DIALS {
            return self.end_address_dial(dial, Err("too many dials are under way".to_owned()));
        }
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.addresses.insert(id, dial);
            }
            Err(error) => self.end_address_dial(dial, Err(describe(&error))),
        }
    }

    fn end_address_dial(&mut self, dial: AddressDial, result: Result<PeerId, String>) {
        let target = Target::Address(dial.address);
        match &result {
            Ok(peer) => self.redial.reached(&target, *peer),
            Err(error) => {
                debug!(?target, error, "dial failed");
                self.shared.metrics.dials_failed.add(1);
                self.redial.failed(&target, Instant::now(), random());
            }
        }
        if let Some(caller) = dial.caller {
            reply(caller, result.map_err(DialError::Failed));
        }
        self.redial_soon();
    }

    /// Starts to dial a peer, or joins the dial that is under way. [`Task::settle`] comes after it.
    fn dial_peer(&mut self, peer: PeerId, told: Vec<Multiaddr>) -> Result<&mut Dial, DialError> {
        if peer == *self.swarm.local_peer_id() {
            return Err(DialError::Failed("that is this host itself".into()));
        }
        if self.offences.is_blocked(&peer) {
            return Err(DialError::Blocked);
        }
        if !self.dials.peers.contains_key(&peer) {
            if self.dials.peers.len() >= MAX_DIALS {
                return Err(DialError::Failed("too many dials are under way".into()));
            }
            let dial = self.begin(peer, told)?;
            self.dials.peers.insert(peer, dial);
        }
        Ok(self.dials.peers.entry(peer).or_default())
    }

    fn begin(&mut self, peer: PeerId, mut all: Vec<Multiaddr>) -> Result<Dial, DialError> {
        all.extend(self.book.addresses(&peer));
        all.extend(self.swarm.behaviour_mut().dht.all_addresses(peer));
        let bootstrap = self.config.bootstrap.iter().filter(|(other, _)| *other == peer);
        all.extend(bootstrap.map(|(_, address)| address.clone()));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for address in all.into_iter().map(|address| addresses::split_peer(address).0) {
            let kind = if addresses::is_quic(&address) { &mut second } else { &mut first };
            if kind.len() < addresses::MAX_PER_PEER && !kind.contains(&address) {
                kind.push(address);
            }
        }
        if first.is_empty() {
            mem::swap(&mut first, &mut second);
        }
        if first.is_empty() {
            return Err(DialError::NoAddress);
        }
        let fallback = (!second.is_empty()).then(|| (Instant::now() + FALLBACK, second));
        let mut dial = Dial { fallback, ..Dial::default() };
        self.attempt(peer, first, &mut dial);
        Ok(dial)
    }

    fn attempt(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, dial: &mut Dial) {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Disconnected)
            .addresses(addresses)
            // See `TcpFirst`: not from the port that is listened on.
            .allocate_new_port()
            .build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => dial.attempts.push(id),
            Err(error) => dial.errors.push(describe(&error)),
        }
    }

    /// Goes on with a dial that has no attempt under way: by its fallback, or to its end.
    fn settle(&mut self, peer: PeerId) {
        let idle = |dial: &&mut Dial| dial.attempts.is_empty();
        let Some(dial) = self.dials.peers.get_mut(&peer).filter(idle) else { return };
        if dial.fallback.is_some() {
            self.fall_back(peer);
        }
        if self.dials.peers.get(&peer).is_some_and(|dial| dial.attempts.is_empty())
            && let Some(dial) = self.dials.peers.remove(&peer)
        {
            self.end_dial(peer, dial);
        }
    }

    fn fall_back(&mut self, peer: PeerId) {
        let Some(mut dial) = self.dials.peers.remove(&peer) else { return };
        if let Some((_, addresses)) = dial.fallback.take() {
            self.attempt(peer, addresses, &mut dial);
        }
        self.dials.peers.insert(peer, dial);
    }

    pub(super) fn start_fallbacks(&mut self, now: Instant) {
        let due = |dial: &Dial| dial.fallback.as_ref().is_some_and(|(at, _)| *at <= now);
        let dials = self.dials.peers.iter().filter(|(_, dial)| due(dial));
        let peers: Vec<_> = dials.map(|(peer, _)| *peer).collect();
        for peer in peers {
            self.fall_back(peer);
            self.settle(peer);
        }
    }

    /// A dial failed for good.
    fn end_dial(&mut self, peer: PeerId, dial: Dial) {
        let reason = dial.errors.join("; ");
        debug!(%peer, reason, "dial failed");
        self.shared.metrics.dials_failed.add(1);
        let error = DialError::Failed(reason);
        for caller in dial.callers {
            reply(caller, Err(error.clone()));
        }
        for (_, answer) in dial.openings {
            reply(answer, Err(error.clone().into()));
        }
        if dial.was_lost {
            self.emit(Event::Unreachable { peer });
        }
        self.redial.failed(&Target::Peer(peer), Instant::now(), random());
        self.redial_soon();
    }

    /// A connection is open: everybody who waited for it goes on.
    pub(super) fn on_dialled(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(dial) = self.dials.addresses.remove(&id) {
            self.end_address_dial(dial, Ok(peer));
        }
        let Some(dial) = self.dials.peers.remove(&peer) else { return };
        for caller in dial.callers {
            reply(caller, Ok(peer));
        }
        for (protocol, answer) in dial.openings {
            self.swarm.behaviour_mut().streams.open(peer, protocol, answer);
        }
    }

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &SwarmDialError) {
        if matches!(error, SwarmDialError::Denied { .. }) {
            self.shared.metrics.connections_refused.add(1);
        }
        if let Some(dial) = self.dials.addresses.remove(&id) {
            return self.end_address_dial(dial, Err(describe(error)));
        }
        let Some(peer) = peer else { return };
        if let SwarmDialError::WrongPeerId { address, .. } = error {
            self.book.forget(&peer, &addresses::split_peer(address.clone()).0);
            self.note_book_change();
        }
        let Some(dial) = self.dials.peers.get_mut(&peer) else { return };
        let before = dial.attempts.len();
        dial.attempts.retain(|attempt| *attempt != id);
        if dial.attempts.len() < before {
            dial.errors.push(describe(error));
            self.settle(peer);
        }
    }

    /// A watched peer's last connection closed: dials it at once.
    pub(super) fn redial_lost(&mut self, peer: PeerId) {
        match self.dial_peer(peer, Vec::new()) {
            Ok(dial) => dial.was_lost = true,
            Err(_) => self.emit(Event::Unreachable { peer }),
        }
        self.settle(peer);
    }

    pub(super) fn redial_soon(&mut self) {
        self.redial_at = Some(Instant::now());
    }

    /// Dials whom it is time to dial.
    pub(super) fn redial(&mut self) {
        let members = self.peers.values().filter(|peer| peer.member).count();
        let (due, later) = self.redial.take_due(Situation {
            now: Instant::now(),
            connected: &|peer| self.peers.contains_key(peer),
            missing: self.config.wanted_peers.saturating_sub(members),
            watched: &mut self.watched.iter().copied(),
            known: &mut self.book.candidates().into_iter(),
        });
        self.redial_at = later;
        for target in due {
            match target {
                Target::Address(address) => self.dial_unknown(address, None),
                Target::Peer(peer) => {
                    if let Err(error) = self.dial_peer(peer, Vec::new()) {
                        debug!(%peer, %error, "no dial");
                        self.redial.failed(&Target::Peer(peer), Instant::now(), random());
                        self.redial_soon();
                    }
                    self.settle(peer);
                }
            }
        }
    }
}

/// A dial's error in one line, with every address and its reason.
fn describe(error: &SwarmDialError) -> String {
    match error {
        SwarmDialError::Transport(errors) => {
            let errors = errors.iter().map(|(address, error)| format!("{address}: {}", chain(error)));
            errors.collect::<Vec<_>>().join(", ")
        }
        SwarmDialError::Denied { cause } => chain(cause),
        other => other.to_string(),
    }
}

/// Chance for pauses; a fixed part is good enough when the system has none.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
