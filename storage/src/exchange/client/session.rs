//! One session: what it wants, who may have it, and whether it gets anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use job::Time;

use super::want::{Told, Want};
use super::{Digest, MAX_CANDIDATES};
use crate::exchange::network::Peer;

#[derive(Debug)]
pub(super) struct Session {
    /// Everything it waits for, in order.
    pub wants: BTreeSet<(u64, Digest)>,
    /// Of these, what can be asked for as soon as a peer has room.
    pub queue: BTreeSet<(u64, Digest)>,
    /// Of these, what no candidate is left for.
    pub stuck: BTreeSet<(u64, Digest)>,
    /// Of these, how many are asked of somebody.
    pub asked: usize,
    pub candidates: BTreeMap<Peer, Candidate>,
    /// The session knows of nothing else to want for now.
    pub last: bool,
    /// Others than the hints were asked.
    pub widened: bool,
    /// Routing was asked.
    pub searched: bool,
    /// When others than the hints are to be asked.
    pub widen_at: Option<Time>,
    /// When peers that let deadlines pass are to be asked again for what is stuck.
    pub retry_at: Option<Time>,
    /// Since when nothing has come of it.
    pub quiet_since: Time,
    /// The session was told that it stands still.
    pub gave_up: bool,
    give_up_after: Duration,
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub standing: Standing,
    /// Wants in a row that it could not serve.
    pub misses: u32,
    /// It was ruled out once: that held the session's clock back, and does not again.
    spent: bool,
}

/// What is believed of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds the session's blocks, until it says otherwise.
    Holder,
    /// It was asked whether it does.
    Probed,
    /// It cannot be reached, or is not to be trusted.
    Gone,
}

impl Session {
    pub fn new(now: Time, give_up_after: Duration) -> Session {
        Session {
            wants: BTreeSet::new(),
            queue: BTreeSet::new(),
            stuck: BTreeSet::new(),
            asked: 0,
            candidates: BTreeMap::new(),
            last: false,
            widened: false,
            searched: false,
            widen_at: None,
            retry_at: None,
            quiet_since: now,
            gave_up: false,
            give_up_after,
        }
    }

    /// When it fails unless something happens before.
    pub fn fails_at(&self) -> Option<Time> {
        let idle = self.asked == 0 && self.queue.is_empty() && !self.wants.is_empty();
        (idle && !self.gave_up).then(|| self.quiet_since + self.give_up_after)
    }

    pub fn next_wakeup(&self) -> Option<Time> {
        let widen = self.widen_at.filter(|_| !self.widened && !self.wants.is_empty());
        widen.into_iter().chain(self.retry_at).chain(self.fails_at()).min()
    }

    pub fn standing(&self, peer: &Peer) -> Option<Standing> {
        self.candidates.get(peer).map(|candidate| candidate.standing)
    }

    pub fn holders(&self) -> impl Iterator<Item = &Peer> {
        let holds = |candidate: &Candidate| candidate.standing == Standing::Holder;
        self.candidates.iter().filter(move |(_, candidate)| holds(candidate)).map(|(peer, _)| peer)
    }

    /// Believes that a peer holds the session's blocks; false when it is not to be a candidate.
    pub fn add_holder(&mut self, now: Time, peer: &Peer) -> bool {
        if let Some(candidate) = self.candidates.get_mut(peer) {
            if candidate.standing == Standing::Gone {
                return false;
            }
            candidate.standing = Standing::Holder;
            return true;
        }
        if self.candidates.len() >= MAX_CANDIDATES && !self.forget_useless() {
            return false;
        }
        let fresh = Candidate { standing: Standing::Holder, misses: 0, spent: false };
        self.candidates.insert(peer.clone(), fresh);
        self.quiet_since = self.quiet_since.max(now); // somebody new: it gets its chance
        true
    }

    /// Notes that a peer was asked whether it has something; false when there is no place for it.
    pub fn add_probed(&mut self, peer: &Peer) -> bool {
        if self.candidates.contains_key(peer) {
            return true;
        }
        if self.candidates.len() >= MAX_CANDIDATES {
            return false;
        }
        let probed = Candidate { standing: Standing::Probed, misses: 0, spent: false };
        self.candidates.insert(peer.clone(), probed);
        true
    }

    fn forget_useless(&mut self) -> bool {
        let useless = self.candidates.iter().find(|(_, candidate)| candidate.standing != Standing::Holder);
        let Some(peer) = useless.map(|(peer, _)| peer.clone()) else { return false };
        self.candidates.remove(&peer);
        true
    }

    pub fn probe_failed(&mut self, peer: &Peer) {
        if self.standing(peer) == Some(Standing::Probed) {
            self.candidates.remove(peer);
        }
    }

    /// Wants come after a time without any: whoever is to be asked beside the holders is asked anew.
    pub fn start_asking(&mut self, widen_at: Time) {
        self.widened = false;
        self.searched = false;
        self.widen_at = Some(widen_at);
    }

    /// A peer delivered a block. Others are asked when the next one takes longer than `widen_at`.
    pub fn progressed(&mut self, now: Time, peer: &Peer, widen_at: Time) {
        self.quiet_since = now;
        self.gave_up = false;
        self.widen_at = Some(widen_at);
        if let Some(candidate) = self.candidates.get_mut(peer) {
            candidate.misses = 0;
        }
    }

    /// A candidate could not serve a want.
    pub fn missed(&mut self, now: Time, peer: &Peer) {
        let Some(candidate) = self.candidates.get_mut(peer) else { return };
        candidate.misses = candidate.misses.saturating_add(1);
        if !std::mem::replace(&mut candidate.spent, true) {
            self.quiet_since = now;
        }
    }

    /// The stream to a peer broke: a holder may be asked again, a probe is void.
    pub fn lost(&mut self, peer: &Peer, disconnected: bool) {
        let Some(candidate) = self.candidates.get_mut(peer) else { return };
        match candidate.standing {
            Standing::Probed => drop(self.candidates.remove(peer)),
            Standing::Holder if disconnected => candidate.misses = candidate.misses.saturating_add(1),
            _ => {}
        }
    }

    pub fn gone(&mut self, now: Time, peer: &Peer) {
        self.missed(now, peer);
        if let Some(candidate) = self.candidates.get_mut(peer) {
            candidate.standing = Standing::Gone;
        }
    }

    /// Somebody may have what nobody had: look again.
    pub fn unstick(&mut self) {
        self.queue.append(&mut self.stuck);
        self.gave_up = false;
        self.retry_at = None;
    }

    /// Asks peers that let a deadline pass again for what is stuck.
    pub fn ask_again(&mut self, wants: &mut BTreeMap<Digest, Want>, who: impl Fn(&Peer) -> bool) {
        for (_, digest) in &self.stuck {
            if let Some(want) = wants.get_mut(digest) {
                want.told.retain(|(peer, how)| !(matches!(how, Told::Silent) && who(peer)));
            }
        }
        let gave_up = self.gave_up;
        self.unstick();
        self.gave_up = gave_up;
    }

    /// The first want that nobody is known to have: the one to ask around for.
    pub fn first_unanswered(&self) -> Option<(u64, Digest)> {
        self.stuck.first().or(self.wants.first()).copied()
    }

    pub fn remove(&mut self, order: u64, digest: &Digest, asked: bool) {
        let key = (order, *digest);
        if self.wants.remove(&key) && asked {
            self.asked -= 1;
        }
        self.queue.remove(&key);
        self.stuck.remove(&key);
        if self.stuck.is_empty() {
            self.retry_at = None;
        }
    }
}
