//! Dials: TCP first, QUIC when that fails or takes long, and everybody who waits for the connection.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    time::Duration,
};

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

/// The next addresses are tried beside those that have not answered for this long: QUIC after TCP.
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

/// A watched peer that was lost.
pub(super) struct Lost {
    /// Where we had dialled it.
    at: Option<Multiaddr>,
    /// Its owner has been told that it cannot be reached.
    reported: bool,
}

struct Dial {
    attempts: Vec<ConnectionId>,
    /// What is tried next, and when at the latest.
    next: VecDeque<Vec<Multiaddr>>,
    next_at: Instant,
    errors: Vec<String>,
    refusals: Refusals,
    callers: Vec<oneshot::Sender<Result<PeerId, DialError>>>,
    openings: Vec<Opening>,
}

/// Whether the peer's machine says that nobody listens there. Only TCP can tell: a QUIC peer that is gone is silent,
/// and so is one that we cannot reach because our own network is down.
#[derive(Default)]
struct Refusals {
    /// TCP addresses of which nothing is known yet.
    open: usize,
    refused: usize,
    /// Something failed in another way.
    otherwise: bool,
    /// It was refused where we had been connected to it.
    at_last_place: bool,
}

impl Refusals {
    fn add(&mut self, error: &SwarmDialError, last_place: Option<&Multiaddr>) {
        let SwarmDialError::Transport(errors) = error else {
            self.otherwise = true;
            return;
        };
        for (address, error) in errors {
            let address = addresses::split_peer(address.clone()).0;
            if addresses::is_quic(&address) {
                continue;
            }
            self.open = self.open.saturating_sub(1);
            if is_refused(error) {
                self.refused += 1;
                self.at_last_place |= last_place == Some(&address);
            } else {
                self.otherwise = true;
            }
        }
    }

    fn everywhere(&self) -> bool {
        self.refused > 0 && self.open == 0 && !self.otherwise
    }

    /// The process of the peer is gone.
    fn decisive(&self) -> bool {
        self.at_last_place || self.everywhere()
    }
}

struct AddressDial {
    address: Multiaddr,
    caller: Option<oneshot::Sender<Result<PeerId, DialError>>>,
}

impl Dials {
    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        self.peers.values().filter(|dial| !dial.next.is_empty()).map(|dial| dial.next_at).min()
    }
}

impl Task {
    /// Opens a stream, after a dial when there is no connection.
    pub(super) fn open(
        &mut self,
        peer: PeerId,
        protocol: StreamProtocol,
        on: Option<ConnectionId>,
        answer: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        self.shared.metrics.streams_opened.add(1);
        if on.is_some() || self.peers.contains_key(&peer) {
            return self.swarm.behaviour_mut().streams.open(peer, protocol, on, answer);
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
        self.dials.peers.get_mut(&peer).ok_or(DialError::NoAddress)
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
        let refusals = Refusals { open: first.len(), ..Refusals::default() };
        let last_place = self.lost.get(&peer).and_then(|lost| lost.at.as_ref());
        // Where it was a moment ago tells most: alone, so that no other address has to be waited for.
        let last_place = last_place.and_then(|at| first.iter().position(|address| address == at));
        let alone = last_place.map(|at| vec![first.remove(at)]);
        let stages = alone.into_iter().chain([first, second]).filter(|stage| !stage.is_empty());
        let mut dial = Dial {
            attempts: Vec::new(),
            next: stages.collect(),
            next_at: Instant::now(),
            errors: Vec::new(),
            refusals,
            callers: Vec::new(),
            openings: Vec::new(),
        };
        if dial.next.is_empty() {
            return Err(DialError::NoAddress);
        }
        self.go_on(peer, &mut dial);
        Ok(dial)
    }

    /// Tries the next addresses of a dial.
    fn go_on(&mut self, peer: PeerId, dial: &mut Dial) {
        if let Some(addresses) = dial.next.pop_front() {
            dial.next_at = Instant::now() + FALLBACK;
            self.attempt(peer, addresses, dial);
        }
    }

    fn attempt(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, dial: &mut Dial) {
        let options = DialOpts::peer_id(peer)
            // We know who is connected; libp2p counts dead connections that do not get closed.
            .condition(PeerCondition::Always)
            .addresses(addresses)
            // See `TcpFirst`: not from the port that is listened on.
            .allocate_new_port()
            .build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => dial.attempts.push(id),
            Err(error) => {
                dial.refusals.otherwise = true;
                dial.errors.push(describe(&error));
            }
        }
    }

    /// Goes on with a dial that has no attempt under way: to its next addresses, or to its end.
    fn settle(&mut self, peer: PeerId) {
        let Some(mut dial) = self.dials.peers.remove(&peer) else { return };
        while dial.attempts.is_empty() && !dial.next.is_empty() {
            self.go_on(peer, &mut dial);
        }
        if dial.attempts.is_empty() {
            self.end_dial(peer, dial);
        } else {
            self.dials.peers.insert(peer, dial);
        }
    }

    fn fall_back(&mut self, peer: PeerId) {
        let Some(mut dial) = self.dials.peers.remove(&peer) else { return };
        self.go_on(peer, &mut dial);
        self.dials.peers.insert(peer, dial);
    }

    pub(super) fn start_fallbacks(&mut self, now: Instant) {
        let due = |dial: &Dial| !dial.next.is_empty() && dial.next_at <= now;
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
        let refused = dial.refusals.everywhere();
        let error = if refused { DialError::Refused(reason) } else { DialError::Failed(reason) };
        for caller in dial.callers {
            reply(caller, Err(error.clone()));
        }
        for (_, answer) in dial.openings {
            reply(answer, Err(error.clone().into()));
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
            self.swarm.behaviour_mut().streams.open(peer, protocol, None, answer);
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
        if dial.attempts.len() == before {
            return;
        }
        dial.errors.push(describe(error));
        let lost = self.lost.get_mut(&peer);
        dial.refusals.add(error, lost.as_ref().and_then(|lost| lost.at.as_ref()));
        if dial.refusals.decisive() && lost.is_some_and(|lost| !mem::replace(&mut lost.reported, true)) {
            self.emit(Event::Unreachable { peer });
        }
        self.settle(peer);
    }

    /// A watched peer's last connection closed: dials it at once. `at`: where we had dialled it.
    ///
    /// Whether it is gone or we are cut off shows only when its machine refuses us; until then it is dialled on.
    pub(super) fn redial_lost(&mut self, peer: PeerId, at: Option<Multiaddr>) {
        self.lost.insert(peer, Lost { at, reported: false });
        if let Err(error) = self.dial_peer(peer, Vec::new()) {
            debug!(%peer, %error, "a lost peer cannot be dialled");
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

/// Whether a machine answered that nobody listens there. The transports' layers give the system's error out as text only.
fn is_refused(error: &dyn std::error::Error) -> bool {
    let refused = std::io::ErrorKind::ConnectionRefused.to_string();
    chain(error).to_lowercase().contains(&refused)
}

/// Chance for pauses; a fixed part is good enough when the system has none.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
