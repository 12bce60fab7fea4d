//! The asking half of Bitswap, as a state machine: which peer is asked for which block, when to
//! ask another, and when to give up.
//!
//! Wants belong to sessions (a fetch of one DAG, or a reader); a session has candidates, the peers
//! that are known or believed to hold its blocks. A want goes to the candidate with the earliest
//! expected finish, as far as that peer's window, counted in bytes, has room. A peer that says no,
//! goes away or lets a deadline pass is ruled out for that want and the next one is asked. A want
//! without any candidate is stuck: connected peers are asked whether they have it, routing is asked
//! for providers, and when nothing has come of it for a while the session fails with its CID.
//!
//! No clock, no sockets: time comes in with every input, and what is to be sent goes out as effects.

mod assign;
mod event;
mod peer;
mod session;
mod want;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cid::multihash::Multihash;
use job::Time;

pub use self::event::{Arrived, ClientCounters, Effect, Input, SessionId, Wanted};
use self::peer::PeerState;
use self::session::{Session, Standing};
use self::want::{Told, Want};
use super::message::{Entry, Presence};
use super::network::{Agent, Offence, Peer};

/// What a block is looked up by: version and codec of a CID do not change its bytes.
pub type Digest = Multihash<64>;

/// How long a session with a connected hint waits for that hint alone before others are asked as
/// well. Long against a round trip, short against a person's patience; asking 32 peers for every
/// kilobyte that one hint delivers in a millisecond would multiply the swarm's traffic.
const WIDEN_AFTER: Duration = Duration::from_millis(100);

/// How long nothing may come in the midst of a fetch before others are asked as well.
const WIDEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The shortest deadline of an ask: below it, a busy machine looks like a dead one.
const MIN_DEADLINE: Duration = Duration::from_secs(1);

/// A deadline is this many times what the ask is expected to take.
const DEADLINE_FACTOR: u32 = 3;

/// How long bytes that are no block yet speak for a peer: as long as the longest message may take. Whoever sends
/// none of what was asked for in that time is like one that sends nothing.
const PROMISE: Duration = Duration::from_secs(30);

/// How long one ask is waited for at the most while the peer serves others: twice a full window (16 MiB) at 280 kB/s.
const LONGEST_ASK: Duration = Duration::from_secs(120);

/// How long after a want got stuck the peers that let its deadline pass are asked again: they may
/// have been busy, or the want was lost with a stream.
const RETRY_SILENT_AFTER: Duration = Duration::from_secs(2);

/// What dialling a peer may add to a deadline.
const DIAL_ALLOWANCE: Duration = Duration::from_secs(10);

/// Blocks that were not asked for, after which a peer is asked for nothing more.
const MAX_STRIKES: u32 = 3;

/// Broken streams without a block between them, after which a peer counts as unreachable.
const MAX_LOSSES: u32 = 3;

/// Candidates of a session. More peers than this bring no speed, and a provider list has no end.
const MAX_CANDIDATES: usize = 64;

/// Peers that were told of one want: candidates and probes.
const MAX_TOLD: usize = 2 * MAX_CANDIDATES;

/// Decides which peer is asked for which block.
///
/// Invariants: a want that is asked of a peer is in no queue; the bytes in flight at a peer are the
/// sum of its asks.
#[derive(Debug, Default)]
pub struct Client {
    peers: BTreeMap<Peer, PeerState>,
    sessions: BTreeMap<SessionId, Session>,
    wants: BTreeMap<Digest, Want>,
    /// When an ask is overdue.
    deadlines: BTreeSet<(Time, Digest, Peer)>,
    /// Entries of this round, by peer.
    batch: BTreeMap<Peer, Vec<Entry>>,
    /// Order of wants: rises with each.
    next_order: u64,
    /// Sessions take turns at being first.
    turn: u64,
    counters: ClientCounters,
}

impl Client {
    /// A machine that knows nobody and wants nothing.
    pub fn new() -> Client {
        Client::default()
    }

    /// Applies one input and appends what the caller must do about it, in order.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Connected { peer, agent } => self.on_connected(peer, agent),
            Input::Disconnected(peer) => self.on_disconnected(now, &peer),
            Input::Opened { session, hints, give_up_after } => {
                self.sessions.entry(session).or_insert_with(|| Session::new(now, give_up_after));
                self.on_hinted(now, session, hints);
            }
            Input::Hinted { session, peers } => self.on_hinted(now, session, peers),
            Input::Provider { session, peer } => self.on_hinted(now, session, vec![peer]),
            Input::Wanted { session, wants, last } => self.on_wanted(now, session, wants, last),
            Input::Unwanted { session, cid } => self.forget(session, cid.hash()),
            Input::Closed(session) => self.on_closed(session),
            Input::Received { peer, blocks, presences } => {
                self.on_received(now, peer, blocks, presences, out)
            }
            Input::Heard(peer) => self.on_heard(now, &peer),
            Input::Lost(peer) => self.on_lost(now, &peer),
            Input::Unreachable(peer) => self.on_unreachable(now, &peer),
            Input::Tick => self.on_tick(now, out),
        }
        self.assign(now, out);
        for (peer, entries) in std::mem::take(&mut self.batch) {
            out.push(Effect::Send { peer, entries });
        }
    }

    /// When [`Input::Tick`] is next due, or `None` while nothing waits for time.
    pub fn next_wakeup(&self) -> Option<Time> {
        let overdue = self.deadlines.first().map(|(at, ..)| *at);
        let sessions = self.sessions.values().filter_map(Session::next_wakeup).min();
        overdue.into_iter().chain(sessions).min()
    }

    /// What happened so far.
    pub fn counters(&self) -> ClientCounters {
        self.counters
    }

    /// Whether anything is asked of this peer: only then is it worth knowing that part of a message came.
    pub fn awaits(&self, peer: &Peer) -> bool {
        self.peers.get(peer).is_some_and(|state| state.entries() > 0)
    }

    fn on_connected(&mut self, peer: Peer, agent: Agent) {
        let state = self.peers.entry(peer.clone()).or_default();
        let known = std::mem::replace(&mut state.connected, true);
        state.set_agent(agent);
        if known {
            return;
        }
        state.losses = 0;
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if session.standing(&peer) == Some(Standing::Gone) {
                session.candidates.remove(&peer);
            }
            // A session that already asks around asks the newcomer as well.
            if let (true, Some((_, digest))) = (session.widened, session.first_unanswered()) {
                self.probe(id, &digest, &peer);
            }
        }
    }

    fn on_disconnected(&mut self, now: Time, peer: &Peer) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.connected = false;
        }
        self.on_lost(now, peer);
        self.drop_idle_peers();
    }

    fn on_hinted(&mut self, now: Time, id: SessionId, peers: Vec<Peer>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        for peer in peers {
            if session.add_holder(now, &peer) {
                self.peers.entry(peer).or_default();
            }
        }
        session.unstick();
    }

    fn on_wanted(&mut self, now: Time, id: SessionId, wants: Vec<Wanted>, last: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.last = last;
        session.quiet_since = now;
        if session.wants.is_empty() {
            session.start_asking(now + WIDEN_AFTER);
        }
        for wanted in wants {
            let digest = *wanted.cid.hash();
            let order = self.next_order;
            self.next_order += 1;
            let want = self.wants.entry(digest).or_insert_with(|| Want::new(wanted, order));
            if want.sessions.contains(&id) {
                continue;
            }
            want.sessions.push(id);
            session.wants.insert((want.order, digest));
            if want.asked_count() > 0 {
                session.asked += 1;
            } else {
                session.queue.insert((want.order, digest));
            }
        }
        let hinted = session.holders().any(|peer| self.peers.get(peer).is_some_and(|state| state.connected));
        if !hinted && !session.widened {
            session.widen_at = Some(now); // nobody is at hand: ask around at once
        }
    }

    fn on_closed(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let digests: Vec<Digest> = session.wants.iter().map(|(_, digest)| *digest).collect();
        for digest in digests {
            self.forget(id, &digest);
        }
        self.sessions.remove(&id);
        self.drop_idle_peers();
    }

    /// Takes a want from one session; when no other has it, cancels it everywhere.
    fn forget(&mut self, id: SessionId, digest: &Digest) {
        let Some(want) = self.wants.get_mut(digest) else { return };
        let before = want.sessions.len();
        want.sessions.retain(|session| *session != id);
        if want.sessions.len() == before {
            return;
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.remove(want.order, digest, want.asked_count() > 0);
            session.gave_up = false; // the next one may fail in its turn
        }
        if want.sessions.is_empty()
            && let Some(want) = self.wants.remove(digest)
        {
            self.withdraw(digest, &want, None);
        }
    }

    /// Cancels a want at every peer that was told of it, but for the one that answered.
    fn withdraw(&mut self, digest: &Digest, want: &Want, answered: Option<&Peer>) {
        for (peer, told) in &want.told {
            if let Told::Asked { deadline, bytes, .. } = told {
                self.deadlines.remove(&(*deadline, *digest, peer.clone()));
                if answered != Some(peer)
                    && let Some(state) = self.peers.get_mut(peer)
                {
                    state.released(*bytes);
                }
            }
            let Some(state) = self.peers.get_mut(peer) else { continue };
            if answered != Some(peer) && state.connected {
                state.expect_late(*digest);
                self.batch.entry(peer.clone()).or_default().push(Entry::cancel(want.cid));
            }
        }
    }

    fn on_received(
        &mut self,
        now: Time,
        peer: Peer,
        blocks: Vec<Arrived>,
        presences: Vec<Presence>,
        out: &mut Vec<Effect>,
    ) {
        self.on_heard(now, &peer);
        let any = !blocks.is_empty();
        for block in blocks {
            self.on_block(now, &peer, block, out);
        }
        if any {
            self.revive_silent(&peer);
        }
        for presence in presences {
            self.on_presence(now, &peer, &presence);
        }
    }

    fn on_block(&mut self, now: Time, peer: &Peer, block: Arrived, out: &mut Vec<Effect>) {
        let Some(want) = self.wants.remove(&block.digest) else {
            return self.on_unasked(now, peer, &block.digest, out);
        };
        let length = block.data.len() as u64;
        self.counters.blocks += 1;
        self.counters.bytes += length;
        if let Some(state) = self.peers.get_mut(peer) {
            state.losses = 0;
            state.served_at = Some(now);
            if let Some(Told::Asked { at, bytes, .. }) = want.told_to(peer) {
                state.delivered(now, *at, *bytes, length);
            }
        }
        self.withdraw(&block.digest, &want, Some(peer));
        for id in &want.sessions {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            session.remove(want.order, &block.digest, want.asked_count() > 0);
            session.progressed(now, peer, now + WIDEN_AGAIN_AFTER);
            out.push(Effect::Deliver { session: *id, block: block.clone() });
        }
    }

    fn on_unasked(&mut self, now: Time, peer: &Peer, digest: &Digest, out: &mut Vec<Effect>) {
        let Some(state) = self.peers.get_mut(peer) else {
            self.counters.unasked += 1;
            return out.push(Effect::Penalise { peer: peer.clone(), offence: Offence::UnaskedBlock });
        };
        if state.was_late(digest) {
            self.counters.duplicates += 1;
            return;
        }
        self.counters.unasked += 1;
        state.strikes += 1;
        let out_of_trust = state.strikes == MAX_STRIKES;
        out.push(Effect::Penalise { peer: peer.clone(), offence: Offence::UnaskedBlock });
        if out_of_trust {
            self.on_unreachable(now, peer);
        }
    }

    /// A peer that was given up for some wants sends blocks again: it may be asked for those again.
    fn revive_silent(&mut self, peer: &Peer) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if !std::mem::take(&mut state.silent) {
            return;
        }
        for session in self.sessions.values_mut() {
            session.ask_again(&mut self.wants, |told| told == peer);
        }
    }

    fn on_presence(&mut self, now: Time, peer: &Peer, presence: &Presence) {
        let digest = presence.cid.hash();
        let Some(want) = self.wants.get_mut(digest) else { return };
        let sessions = want.sessions.clone();
        match (presence.have, want.told_to(peer)) {
            (_, None) => {} // not asked: nothing to learn
            (true, Some(Told::Asked { .. })) => {}
            (true, Some(_)) => {
                want.told.retain(|(told, _)| told != peer);
                for id in sessions {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.add_holder(now, peer);
                        session.unstick();
                    }
                }
            }
            (false, Some(Told::Asked { .. })) => {
                self.counters.dont_haves += 1;
                self.rule_out(now, digest, peer, Some(Told::DontHave));
            }
            (false, Some(_)) => {
                want.set_told(peer, Told::DontHave);
                for id in sessions {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.probe_failed(peer);
                    }
                }
            }
        }
    }

    /// Ends an ask without a block: the want goes back in the queue, and `why` is kept so that the
    /// same peer is not asked again.
    fn rule_out(&mut self, now: Time, digest: &Digest, peer: &Peer, why: Option<Told>) {
        let Some(want) = self.wants.get_mut(digest) else { return };
        let Some(Told::Asked { deadline, bytes, .. }) = want.told_to(peer).cloned() else { return };
        self.deadlines.remove(&(deadline, *digest, peer.clone()));
        if let Some(state) = self.peers.get_mut(peer) {
            state.released(bytes);
        }
        let missed = why.is_some();
        match why {
            Some(why) => want.set_told(peer, why),
            None => want.told.retain(|(told, _)| told != peer),
        }
        let unasked = want.asked_count() == 0;
        for id in &want.sessions {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            if missed {
                session.missed(now, peer);
            }
            if unasked {
                session.asked -= 1;
                session.queue.insert((want.order, *digest));
            }
        }
    }

    fn on_heard(&mut self, now: Time, peer: &Peer) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.heard_at = Some(now);
    }

    fn on_lost(&mut self, now: Time, peer: &Peer) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.losses += 1;
        state.shrink();
        let out_of_patience = state.losses >= MAX_LOSSES;
        let gone = !state.connected;
        self.take_back(now, peer);
        for session in self.sessions.values_mut() {
            session.lost(peer, gone);
        }
        if out_of_patience {
            self.on_unreachable(now, peer);
        }
    }

    fn on_unreachable(&mut self, now: Time, peer: &Peer) {
        self.take_back(now, peer);
        for session in self.sessions.values_mut() {
            session.gone(now, peer);
        }
    }

    /// Forgets everything that a peer was told: it has to be told again, or somebody else.
    fn take_back(&mut self, now: Time, peer: &Peer) {
        let told: Vec<Digest> = self
            .wants
            .iter()
            .filter(|(_, want)| want.told_to(peer).is_some())
            .map(|(digest, _)| *digest)
            .collect();
        for digest in told {
            if let Some(state) = self.peers.get_mut(peer) {
                state.expect_late(digest); // it may have heard of it all the same
            }
            self.rule_out(now, &digest, peer, None);
            if let Some(want) = self.wants.get_mut(&digest) {
                want.told.retain(|(told, _)| told != peer);
            }
        }
    }

    fn on_tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        while let Some((at, digest, peer)) = self.deadlines.first().cloned()
            && at <= now
        {
            self.on_overdue(now, &digest, &peer);
        }
        for (id, session) in &mut self.sessions {
            if session.retry_at.is_some_and(|at| at <= now) {
                session.ask_again(&mut self.wants, |_| true);
            }
            if session.fails_at().is_some_and(|at| at <= now)
                && let Some((_, digest)) = session.wants.first()
                && let Some(want) = self.wants.get(digest)
            {
                session.gave_up = true;
                out.push(Effect::Fail { session: *id, cid: want.cid, asked: want.told.len() });
            }
        }
    }

    /// An ask is overdue: somebody else is asked, or the peer gets more time when there is nobody
    /// else and it is at least sending something. Only blocks that somebody waits for earn it more of that.
    fn on_overdue(&mut self, now: Time, digest: &Digest, peer: &Peer) {
        let alternative = self.has_alternative(digest);
        let Some(want) = self.wants.get_mut(digest) else { return };
        let cid = want.cid;
        let Some(Told::Asked { at, deadline, expected, .. }) = want.told_to_mut(peer) else { return };
        let Some(state) = self.peers.get_mut(peer) else { return };
        let is_heard =
            state.heard_at.is_some_and(|heard| heard + (*expected).max(MIN_DEADLINE) > now && heard > *at);
        let served_at = state.served_at.map_or(*at, |served| served.max(*at));
        let alive = is_heard && !state.silent && now < served_at + PROMISE && now < *at + LONGEST_ASK;
        if alive && !alternative {
            self.deadlines.remove(&(*deadline, *digest, peer.clone()));
            *deadline = now + MIN_DEADLINE.max(*expected);
            self.deadlines.insert((*deadline, *digest, peer.clone()));
            return;
        }
        self.counters.timeouts += 1;
        state.shrink();
        state.silent = true;
        state.expect_late(*digest);
        if alternative && state.connected {
            self.batch.entry(peer.clone()).or_default().push(Entry::cancel(cid));
        }
        self.rule_out(now, digest, peer, Some(Told::Silent));
    }

    fn drop_idle_peers(&mut self) {
        let sessions = &self.sessions;
        self.peers.retain(|peer, state| {
            state.connected || sessions.values().any(|session| session.candidates.contains_key(peer))
        });
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
