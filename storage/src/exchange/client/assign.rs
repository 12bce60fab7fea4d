//! Who is asked for what: the part of the client that looks at all sessions and peers together.

use std::time::Duration;

use job::Time;

use super::session::Standing;
use super::want::{Told, Want};
use super::{
    Client, DEADLINE_FACTOR, DIAL_ALLOWANCE, Digest, Effect, MAX_STRIKES, MAX_TOLD, MIN_DEADLINE,
    RETRY_SILENT_AFTER, SessionId,
};
use crate::exchange::message::Entry;
use crate::exchange::network::Peer;

/// Connected peers that are asked at once whether they have a block.
const MAX_PROBES: usize = 32;

/// Wants that are looked at beyond the first that has to wait for room: they may have other
/// candidates than that one.
const MAX_LOOKAHEAD: usize = 16;

/// So few wants left that asking a second peer for each is cheaper than waiting for a slow one.
const ENDGAME_WANTS: usize = 16;

/// Who a want goes to.
enum Choice {
    /// This peer has room and would be done first.
    Ask(Peer),
    /// The peer that would be done first has no room yet.
    Wait(Peer),
    /// Nobody is left.
    Nobody,
}

impl Client {
    /// Gives wants to peers as far as there is room, and looks for peers where there are none.
    pub(super) fn assign(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.turn = self.turn.wrapping_add(1);
        let mut ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        if !ids.is_empty() {
            let first = (self.turn % ids.len() as u64) as usize;
            ids.rotate_left(first);
        }
        for id in ids {
            self.assign_session(now, id);
            self.widen_if_due(now, id, out);
            self.endgame(now, id);
        }
    }

    fn assign_session(&mut self, now: Time, id: SessionId) {
        let mut waiting = 0;
        let mut after = None;
        while let Some((order, digest)) = self.next_queued(id, after) {
            after = Some((order, digest));
            match self.choose(&digest) {
                Choice::Ask(peer) => self.ask(now, &digest, &peer),
                Choice::Nobody => self.stick(now, id, order, &digest),
                Choice::Wait(peer) => {
                    if let Some(state) = self.peers.get_mut(&peer) {
                        state.held_back();
                    }
                    waiting += 1;
                    if waiting > MAX_LOOKAHEAD {
                        return;
                    }
                }
            }
        }
    }

    fn next_queued(&self, id: SessionId, after: Option<(u64, Digest)>) -> Option<(u64, Digest)> {
        use std::ops::Bound;
        let queue = &self.sessions.get(&id)?.queue;
        match after {
            None => queue.first().copied(),
            Some(key) => queue.range((Bound::Excluded(key), Bound::Unbounded)).next().copied(),
        }
    }

    fn choose(&self, digest: &Digest) -> Choice {
        let Some(want) = self.wants.get(digest) else { return Choice::Nobody };
        let mut best: Option<(Duration, &Peer)> = None;
        for (peer, misses) in self.holders(want) {
            let told = want.told_to(peer);
            if matches!(told, Some(Told::Asked { .. } | Told::DontHave | Told::Silent)) {
                continue;
            }
            let Some(state) = self.peers.get(peer) else { continue };
            if state.strikes >= MAX_STRIKES {
                continue;
            }
            // A peer that had to say no lately is likely to again: that costs a round trip each.
            let expected = state.expected(want.size_bytes) * (1 + misses.min(8));
            if best.is_none_or(|(shortest, _)| expected < shortest) {
                best = Some((expected, peer));
            }
        }
        match best {
            None => Choice::Nobody,
            Some((_, peer)) => {
                match self.peers.get(peer).is_some_and(|state| state.has_room(want.size_bytes)) {
                    true => Choice::Ask(peer.clone()),
                    false => Choice::Wait(peer.clone()),
                }
            }
        }
    }

    /// The peers that are believed to hold a want, with the misses of each.
    fn holders<'a>(&'a self, want: &'a Want) -> impl Iterator<Item = (&'a Peer, u32)> {
        let sessions = want.sessions.iter().filter_map(|id| self.sessions.get(id));
        sessions.flat_map(|session| {
            let all = session.candidates.iter();
            all.filter(|(_, candidate)| candidate.standing == Standing::Holder)
                .map(|(peer, candidate)| (peer, candidate.misses))
        })
    }

    /// Whether somebody else could be asked for a want that is asked already.
    pub(super) fn has_alternative(&self, digest: &Digest) -> bool {
        !matches!(self.choose(digest), Choice::Nobody)
    }

    fn ask(&mut self, now: Time, digest: &Digest, peer: &Peer) {
        let Some(want) = self.wants.get_mut(digest) else { return };
        let Some(state) = self.peers.get_mut(peer) else { return };
        let bytes = want.size_bytes;
        let expected = state.expected(bytes);
        let dial = if state.connected { Duration::ZERO } else { DIAL_ALLOWANCE };
        let deadline = now + (expected * DEADLINE_FACTOR).max(MIN_DEADLINE) + dial;
        state.asked(now, bytes);
        let first = want.asked_count() == 0;
        if matches!(want.told_to(peer), Some(Told::Probed)) {
            // A small block is sent in place of the news that it is there: then it comes twice.
            state.expect_late(*digest);
        }
        want.set_told(peer, Told::Asked { at: now, expected, deadline, bytes });
        self.deadlines.insert((deadline, *digest, peer.clone()));
        if first {
            for id in &want.sessions {
                let Some(session) = self.sessions.get_mut(id) else { continue };
                session.queue.remove(&(want.order, *digest));
                session.stuck.remove(&(want.order, *digest));
                session.asked += 1;
            }
        }
        let entry = Entry::want_block(want.cid, priority(want.order));
        self.batch.entry(peer.clone()).or_default().push(entry);
    }

    fn stick(&mut self, now: Time, id: SessionId, order: u64, digest: &Digest) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.queue.remove(&(order, *digest));
        session.stuck.insert((order, *digest));
        let silent = |want: &Want| want.told.iter().any(|(_, told)| matches!(told, Told::Silent));
        if self.wants.get(digest).is_some_and(silent) {
            session.retry_at.get_or_insert(now + RETRY_SILENT_AFTER);
        }
    }

    /// Asks around when nobody is left to ask, when the hints take long, or when they are all busy
    /// and there is more to fetch than they can have on their way.
    fn widen_if_due(&mut self, now: Time, id: SessionId, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let late = session.widen_at.is_some_and(|at| at <= now);
        let stuck = !session.stuck.is_empty();
        let busy = !session.queue.is_empty();
        if session.wants.is_empty() || !(stuck || (!session.widened && (late || busy))) {
            return;
        }
        session.widened = true;
        let search = (stuck || late) && !session.searched;
        session.searched |= search;
        let Some((_, digest)) = session.first_unanswered() else { return };
        if search && let Some(want) = self.wants.get(&digest) {
            out.push(Effect::FindProviders { session: id, cid: want.cid });
        }
        let connected = self.peers.iter().filter(|(_, state)| state.connected && state.strikes < MAX_STRIKES);
        let known = |peer: &&Peer| self.wants.get(&digest).is_some_and(|want| want.told_to(peer).is_none());
        let peers: Vec<Peer> =
            connected.map(|(peer, _)| peer).filter(known).take(MAX_PROBES).cloned().collect();
        for peer in peers {
            self.probe(id, &digest, &peer);
        }
    }

    /// Asks a peer whether it has a block, unless it was told of it before.
    pub(super) fn probe(&mut self, id: SessionId, digest: &Digest, peer: &Peer) {
        let Some(want) = self.wants.get_mut(digest) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if want.told.len() >= MAX_TOLD || want.told_to(peer).is_some() {
            return;
        }
        if session.standing(peer) == Some(Standing::Holder) || !session.add_probed(peer) {
            return;
        }
        want.set_told(peer, Told::Probed);
        self.batch.entry(peer.clone()).or_default().push(Entry::want_have(want.cid, priority(want.order)));
    }

    /// Near the end, asks a second peer for what the first is slow with.
    fn endgame(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let near_end = session.last && session.queue.is_empty() && session.wants.len() <= ENDGAME_WANTS;
        if !near_end || session.holders().nth(1).is_none() {
            return;
        }
        let digests: Vec<Digest> = session.wants.iter().map(|(_, digest)| *digest).collect();
        for digest in digests {
            let Some(want) = self.wants.get(&digest) else { continue };
            if want.asked_count() != 1 {
                continue;
            }
            let Some(left) = want.told.iter().find_map(|(_, told)| remaining(now, told)) else { continue };
            let Choice::Ask(peer) = self.choose(&digest) else { continue };
            let sooner = self.peers.get(&peer).is_some_and(|state| {
                state.entries() == 0 && state.connected && state.expected(want.size_bytes) * 2 < left
            });
            if sooner {
                self.ask(now, &digest, &peer);
            }
        }
    }
}

/// How long an ask is expected to take from now: when it is over its time, as long again as it took.
fn remaining(now: Time, told: &Told) -> Option<Duration> {
    let Told::Asked { at, expected, .. } = told else { return None };
    let taken = now.since(*at);
    Some(expected.checked_sub(taken).unwrap_or(taken))
}

/// Falls with the order: what is wanted first is served first.
fn priority(order: u64) -> i32 {
    i32::MAX - (order % (1 << 30)) as i32
}
