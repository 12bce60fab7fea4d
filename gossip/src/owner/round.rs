//! Looking for workers: own worker, recent bidders, announcements that widen until everybody was asked.

use std::time::Duration;

use ::job::{PeerId, Time};

use super::core::{Core, JobKey, Timer};
use super::job::{Given, InHand, Job, MAX_BIDS, Round};
use super::{Effect, Owner};
use crate::bug::Bug;
use crate::lottery;
use crate::message::{Ask, Bid, Closed, Decline, Direct};
use crate::topic::Class;

/// Peers that are asked directly at most.
const MAX_ASKED: usize = 32;

/// First and longest wait between sweeps of a waiting job.
const SWEEP_FIRST: Duration = Duration::from_secs(5);
const SWEEP_LONGEST: Duration = Duration::from_secs(28);

/// Least time between two searches of which the first brought nobody; doubles each time.
const AGAIN: Duration = Duration::from_millis(50);

/// Longest that a bid is kept in hand, whatever it says.
const MAX_HOLD: Duration = Duration::from_secs(10);

impl Job {
    /// The share of peers that its current announcement is for.
    pub(super) fn theta(&self) -> Option<u64> {
        match self.round {
            Round::Announced { theta, .. } => Some(theta),
            _ => None,
        }
    }

    fn class(&self) -> Class {
        self.ledger.job.facts.class()
    }

    /// Looks for workers while partitions are open; stops when none is.
    pub(super) fn seek(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        if self.open.is_empty() || self.ended() {
            if self.round != Round::Idle {
                self.round = Round::Idle;
                core.timers.clear(Timer::Round(self.key()));
            }
            return;
        }
        loop {
            let before = self.round.clone();
            match &self.round {
                Round::Idle => self.begin(core, now, out),
                // Who was asked about other partitions was not asked about these.
                Round::Waiting if self.fresh_open => self.begin(core, now, out),
                Round::Own if self.has_answered(core.me()) => self.ask_peers(core, now, out),
                Round::Asking { left, .. } if left.is_empty() => self.announce(core, now),
                Round::Announced { theta: lottery::ALL, .. } if self.all_answered(core) => {
                    self.end_sweep(core, now, out)
                }
                _ => {}
            }
            // Bids that came while the round was open may be used now that it is closed.
            self.use_bids(core, now, out);
            if self.open.is_empty() || self.round == before || self.ended() {
                break;
            }
        }
        if self.open.is_empty() && self.round != Round::Idle {
            self.round = Round::Idle;
            core.timers.clear(Timer::Round(self.key()));
        }
    }

    fn has_answered(&self, peer: PeerId) -> bool {
        self.bidders.contains(&peer) || self.declines.contains_key(&peer)
    }

    /// Everybody who could run it has answered: all peers are connected (this node counts as one of the swarm),
    /// and those that take jobs of this class have spoken.
    pub(super) fn all_answered(&self, core: &Core) -> bool {
        let none = std::collections::BTreeSet::new();
        let able = core.subscribers.get(&self.class()).unwrap_or(&none);
        core.size() <= core.connected.len() as u64 + 1 && able.iter().all(|peer| self.has_answered(*peer))
    }

    fn begin(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        self.asked_all = false;
        // Workers that bid and then decline must not make us ask round and round.
        let pause = AGAIN.saturating_mul(1 << self.fruitless.min(8)).min(SWEEP_FIRST);
        if let Some(next) = self.begun.filter(|_| self.fruitless > 0).map(|at| at + pause)
            && next > now
        {
            self.round = Round::Waiting;
            core.timers.set(Timer::Round(self.key()), next);
            return;
        }
        self.begun = Some(now);
        self.fruitless = self.fruitless.saturating_add(1);
        self.fresh_open = false;
        self.forget_answers();
        self.open_round();
        if core.settings.own_worker {
            self.round = Round::Own;
            core.timers.set(Timer::Round(self.key()), now + core.settings.ask_window);
            let ask = self.ask(core, now);
            core.counters.asks += 1;
            out.push(Effect::Send { to: core.me(), message: Direct::Ask(Box::new(ask)) });
        } else {
            self.ask_peers(core, now, out);
        }
    }

    /// How many peers will be asked or are subscribed: what the share of one bidder is reckoned from.
    fn audience(&self, core: &Core) -> u64 {
        let subscribed = core.subscribers.get(&self.class()).map_or(0, |peers| peers.len());
        let asked = if subscribed == 0 { core.connected.len() } else { subscribed };
        (asked.min(MAX_ASKED - 1) + usize::from(core.settings.own_worker)).max(1) as u64
    }

    fn cap(&self, audience: u64) -> u32 {
        u32::try_from(self.open.len().div_ceil(audience.clamp(1, MAX_ASKED as u64)))
            .unwrap_or(u32::MAX)
            .max(1)
    }

    pub(super) fn own_cap(&self, core: &Core) -> u32 {
        self.cap(self.audience(core))
    }

    /// Asks peers that bid on such jobs lately; at the start of a swarm, those that are connected.
    fn ask_peers(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        let class = self.class();
        let most = usize::try_from(2 * self.open.len() + 2).unwrap_or(MAX_ASKED).min(MAX_ASKED);
        let mut peers = core.recent_bidders(class, now, most);
        if core.subscribers.get(&class).is_none_or(|peers| peers.is_empty()) {
            let more = core.connected.iter().filter(|peer| !core.is_suspect(**peer) && !peers.contains(peer));
            let more: Vec<PeerId> = more.copied().take(MAX_ASKED - peers.len()).collect();
            peers.extend(more);
        }
        let cap = self.cap(peers.len() as u64 + u64::from(core.settings.own_worker));
        if !peers.is_empty() {
            let ask = self.ask(core, now);
            self.ask_all(core, &peers, &ask, out);
            core.timers.set(Timer::Round(self.key()), now + core.settings.ask_window);
        }
        self.open_round();
        self.round = Round::Asking { left: peers.into_iter().collect(), cap };
    }

    fn ask_all(&self, core: &mut Core, peers: &[PeerId], ask: &Ask, out: &mut Vec<Effect>) {
        for peer in peers {
            core.counters.asks += 1;
            out.push(Effect::Send { to: *peer, message: Direct::Ask(Box::new(ask.clone())) });
        }
    }

    fn open_round(&mut self) {
        for share in self.shares.values_mut() {
            share.given = 0;
        }
    }

    /// Announces to a share of the swarm.
    fn announce(&mut self, core: &mut Core, now: Time) {
        let class = self.class();
        let theta = lottery::start(self.open.len(), core.size(), core.able(class));
        self.announce_at(core, now, theta);
    }

    fn announce_at(&mut self, core: &mut Core, now: Time, theta: u64) {
        let subscribed = core.subscribers.get(&self.class()).map_or(0, |peers| peers.len());
        self.open_round();
        let cap = self.cap(self.audience(core));
        self.round = Round::Announced { theta, bids: 0, cap, given: Given::default() };
        if subscribed == 0 {
            // Nobody is there to hear it.
            self.round = Round::Announced { theta: lottery::ALL, bids: 0, cap, given: Given::default() };
            core.timers.set(Timer::Round(self.key()), now);
            return;
        }
        core.announce.entry(self.class()).or_default().insert(self.key());
        core.timers.set(Timer::Round(self.key()), now + core.settings.round_window);
    }

    /// The window of the round is over.
    pub(super) fn on_round(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        match self.round.clone() {
            Round::Idle => {}
            Round::Own => self.ask_peers(core, now, out),
            Round::Asking { .. } => self.announce(core, now),
            Round::Announced { theta, bids, .. } => {
                // Still waiting for its turn to be published: the window begins then.
                if core.announce.get(&self.class()).is_some_and(|waiting| waiting.contains(&self.key())) {
                    core.timers.set(Timer::Round(self.key()), now + core.settings.round_window);
                    return;
                }
                core.note_round(self.class(), theta, bids);
                if theta >= lottery::ALL {
                    self.end_sweep(core, now, out);
                } else {
                    self.announce_at(core, now, lottery::widen(theta, bids, self.open.len()));
                }
            }
            Round::Waiting => self.begin(core, now, out),
        }
    }

    /// Everybody was asked and partitions are still open.
    fn end_sweep(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        self.round = Round::Waiting;
        self.asked_all = true;
        self.use_bids(core, now, out);
        if self.open.is_empty() {
            return;
        }
        self.sweeps = self.sweeps.saturating_add(1);
        self.give_up_hopeless(core, now, out);
        let wait = if self.is_worked_on() {
            SWEEP_LONGEST
        } else {
            SWEEP_FIRST.saturating_mul(1 << self.sweeps.saturating_sub(1).min(4)).min(SWEEP_LONGEST)
        };
        // Up to 30 % sooner, so that owners do not all come back at the same moment.
        let jitter = core.rng.below(super::millis(wait) * 3 / 10 + 1);
        core.timers.set(Timer::Round(self.key()), now + wait - Duration::from_millis(jitter));
        if self.ask_silent(core, now, out) {
            // Why it waits is told when they have had their time.
            core.timers.set_earlier(Timer::Queued(self.key()), now + core.settings.round_window);
        } else {
            self.explain_wait(core, now, out);
        }
    }

    /// Asks peers that said nothing to what was announced: it may not have reached them, or their clocks are so far from
    /// ours that they take it for a replay. Once a sweep, and few of them however large the swarm is. Whether any was.
    fn ask_silent(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) -> bool {
        let able = core.subscribers.get(&self.class());
        let Some(able) = able.filter(|_| !core.has_bug(Bug::SilentNotAsked)) else { return false };
        let silent = able.iter().filter(|peer| !self.has_answered(**peer) && !core.is_suspect(**peer));
        let mut silent: Vec<PeerId> = silent.copied().collect();
        let some = core.rng.some_of(&mut silent, MAX_ASKED);
        if !some.is_empty() {
            let ask = self.ask(core, now);
            self.ask_all(core, &some, &ask, out);
        }
        !some.is_empty()
    }

    /// Takes a bid into hand.
    fn take_bid(&mut self, core: &mut Core, now: Time, from: PeerId, bid: Bid, out: &mut Vec<Effect>) {
        let Some(call) = self.called(bid.seed) else {
            core.counters.foreign_bids += 1;
            return;
        };
        self.note_skew(from, bid.skew_s, now.since(call.at));
        let inputs = self.input_bytes();
        let draw = lottery::draw(bid.seed, self.ledger.id, from);
        let weight = lottery::weight(bid.local_bytes, inputs, bid.cached);
        if call.announced && !lottery::admits(call.theta, weight, draw) && !core.has_bug(Bug::ForeignBids) {
            core.counters.foreign_bids += 1;
            return out.push(Effect::Penalise { peer: from, why: "bid from outside the lottery" });
        }
        if let Round::Announced { bids, .. } = &mut self.round {
            *bids += 1;
        }
        if let Round::Asking { left, .. } = &mut self.round {
            left.remove(&from);
        }
        // Somebody else is there for what failed elsewhere, however late the bid comes.
        for trouble in self.trouble.values_mut().filter(|trouble| !trouble.failed_on.contains_key(&from)) {
            trouble.swept = 0;
        }
        self.declines.remove(&from);
        if self.bidders.len() < MAX_BIDS {
            self.bidders.insert(from);
        }
        if from != core.me() {
            core.note_bidder(self.class(), from, now);
        }
        let first_seen = core.peer(from, now).first_seen;
        if let Some(share) = self.shares.get_mut(&from) {
            share.full = false;
        }
        if self.bids.len() >= MAX_BIDS && !self.bids.contains_key(&from) {
            return;
        }
        let in_hand = InHand {
            until: now + Duration::from_millis(bid.hold_ms).min(MAX_HOLD),
            by_weight: call.announced && !lottery::admits(call.theta, 1, draw),
            stranger: from != core.me() && first_seen > call.at,
            bid,
        };
        self.bids.insert(from, in_hand);
    }
}

impl Owner {
    pub(super) fn on_bid(&mut self, now: Time, from: PeerId, bid: Bid, out: &mut Vec<Effect>) {
        self.core.counters.bids += 1;
        self.heard(now, from, Some(bid.stamp), out);
        let key = (bid.job, bid.version);
        let Owner { core, jobs } = self;
        match jobs.get_mut(&key) {
            Some(job) if !job.ended() => {
                job.take_bid(core, now, from, bid, out);
                core.dirty.insert(key);
            }
            _ => {
                let message = Direct::Closed(Closed { job: bid.job, version: bid.version });
                out.push(Effect::Send { to: from, message });
            }
        }
    }

    pub(super) fn on_decline(&mut self, now: Time, from: PeerId, decline: Decline, out: &mut Vec<Effect>) {
        self.core.counters.declines += 1;
        self.heard(now, from, None, out);
        let key = (decline.job, decline.version);
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else { return };
        let Some(call) = job.called(decline.seed).filter(|_| !job.ended()) else { return };
        if let Round::Asking { left, .. } = &mut job.round {
            left.remove(&from);
        }
        job.note_skew(from, decline.skew_s, now.since(call.at));
        job.note_decline(from, decline.code, decline.message);
        core.dirty.insert(key);
    }

    /// A peer that can hear announcements of a class is new: waiting jobs are put to it at once.
    pub(super) fn on_subscribed(&mut self, now: Time, peer: PeerId, class: Class, out: &mut Vec<Effect>) {
        self.core.peer(peer, now);
        if !self.core.subscribers.entry(class).or_default().insert(peer) {
            return;
        }
        self.ask_newcomer(now, peer, Some(class), out);
    }

    /// Asks a peer about jobs that wait for a worker.
    pub(super) fn ask_newcomer(
        &mut self,
        now: Time,
        peer: PeerId,
        class: Option<Class>,
        out: &mut Vec<Effect>,
    ) {
        let Owner { core, jobs } = self;
        let keys: Vec<JobKey> = jobs
            .iter()
            .filter(|(_, job)| job.round == Round::Waiting && !job.open.is_empty())
            .filter(|(_, job)| class.is_none_or(|class| job.class() == class))
            .map(|(key, _)| *key)
            .take(MAX_ASKED)
            .collect();
        for key in keys {
            let Some(job) = jobs.get_mut(&key) else { continue };
            let ask = job.ask(core, now);
            job.ask_all(core, &[peer], &ask, out);
        }
    }
}
