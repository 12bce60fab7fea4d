//! Announcements and bids: what this worker hears of open jobs, remembers, and answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ::job::{JobId, PeerId, Time};

use super::admission::HOLD;
use super::{Effect, JobKey, Timer, Verdict, Worker, millis};
use crate::lottery;
use crate::message::{
    Announcement, Announcements, Ask, Bid, Bytes, Decline, DeclineCode, Direct, Pull, Remembered, Stamp,
};
use crate::topic::Class;

/// Open announcements that are remembered; of more, those that end first go.
const MAX_REMEMBERED: usize = 64;

/// Of one owner.
const MAX_OF_ONE_OWNER: usize = 16;

/// (job, seed) pairs whose bid is not repeated.
const MAX_BIDS: usize = 4096;

/// Owners whose announcement rate is followed.
const MAX_BUCKETS: usize = 4096;

/// Announcement messages of one owner: this many at once, then one a second.
const BURST: u32 = 10;

/// Jobs that ended whose owners are remembered, and for how long at least.
const MAX_PAST: usize = 4096;
const PAST_TTL: Duration = Duration::from_secs(600);

/// How far an owner's clock may be off.
const SKEW: Duration = Duration::from_secs(120);

/// What answers something as young shows how late its sender's clock is.
const PROMPT: Duration = Duration::from_secs(5);

/// Between two words about clocks that differ by more, whoever's they are.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// Longest that an announcement is remembered, whatever it says.
const MAX_TTL: Duration = Duration::from_secs(120);

/// Peers that are asked for open announcements.
const PULLED_PEERS: usize = 3;

/// Between two times of asking, when capacity becomes free.
const PULL_EVERY: Duration = Duration::from_secs(30);

/// Most messages in an answer to a pull.
const MAX_PULLED: usize = 16;

/// What is known of open jobs.
#[derive(Debug, Default)]
pub(super) struct Market {
    remembered: BTreeMap<JobKey, Open>,
    /// Bids made, to answer each seed once, and the same in the order in which they are forgotten.
    bids: BTreeSet<(JobKey, u64)>,
    bid_order: VecDeque<(JobKey, u64)>,
    buckets: BTreeMap<PeerId, Bucket>,
    /// Peers that were asked, and when.
    pulls: BTreeMap<PeerId, Time>,
    pulled: Option<Time>,
    /// Owners of jobs that ended here or whose announcements did, for a while.
    past: BTreeMap<JobId, (PeerId, Time)>,
    /// A job was declined for want of capacity since peers were last asked.
    missed: bool,
    /// When it was last said that a clock differs.
    warned: Option<Time>,
}

/// An open job that this worker could run.
#[derive(Debug, Clone)]
struct Open {
    owner: PeerId,
    addresses: Vec<String>,
    announcement: Announcement,
    until: Time,
    /// The message as its owner signed it; none when it was asked directly.
    signed: Option<(Class, Bytes)>,
    /// How far the owner's clock is ahead, in seconds; 0 while it is close enough.
    skew_s: i64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    filled: Time,
}

impl Worker {
    pub(super) fn on_announced(
        &mut self,
        now: Time,
        id: u64,
        relay: PeerId,
        class: Class,
        bytes: &[u8],
        out: &mut Vec<Effect>,
    ) {
        let (verdict, why) = match self.take_message(now, class, bytes, None, out) {
            Ok(()) => (Verdict::Accept, ""),
            Err(refusal) => refusal,
        };
        match verdict {
            Verdict::Accept => {}
            Verdict::Reject => self.counters.rejected += 1,
            Verdict::Ignore => self.counters.ignored += 1,
        }
        out.push(Effect::Verdict { id, relay, verdict, why });
    }

    /// Checks an announcement message and takes note of its jobs.
    fn take_message(
        &mut self,
        now: Time,
        class: Class,
        bytes: &[u8],
        ttl: Option<Duration>,
        out: &mut Vec<Effect>,
    ) -> Result<(), (Verdict, &'static str)> {
        let identity = &self.identity;
        let message = Announcements::open(bytes, &identity.swarm, identity.crypto.as_ref())
            .map_err(|_| (Verdict::Reject, "malformed or wrongly signed announcement"))?;
        if message.jobs.iter().any(|job| job.facts.class() != class) {
            return Err((Verdict::Reject, "announcement on the wrong topic"));
        }
        if message.owner == identity.me {
            return Err((Verdict::Ignore, "own announcement"));
        }
        let skew = message.issued.abs_diff(now.wall);
        // Passed on by a peer that remembered it, it may be older by as long as it is remembered.
        let allowed = if ttl.is_some() { SKEW + MAX_TTL } else { SKEW };
        if u128::from(skew) > allowed.as_nanos() {
            return Err((Verdict::Ignore, "stale announcement"));
        }
        if ttl.is_none() && !self.market.take_token(now, message.owner) {
            return Err((Verdict::Ignore, "too many announcements of one owner"));
        }
        let ttl = ttl.unwrap_or(Duration::from_millis(message.ttl_ms)).min(MAX_TTL);
        let signed = (class, Bytes::from(bytes));
        for job in message.jobs {
            let open = Open {
                owner: message.owner,
                addresses: message.addresses.clone(),
                announcement: job,
                until: now + ttl,
                signed: Some(signed.clone()),
                skew_s: 0,
            };
            self.consider(now, open, out);
        }
        Ok(())
    }

    pub(super) fn on_ask(&mut self, now: Time, from: PeerId, ask: Ask, out: &mut Vec<Effect>) {
        if !ask.announcement.is_of(from, &self.identity.swarm) {
            self.counters.foreign += 1;
            return out.push(Effect::Penalise { peer: from, why: "asked about another owner's job" });
        }
        let open = Open {
            owner: from,
            addresses: ask.addresses,
            announcement: ask.announcement,
            until: now + Duration::from_millis(ask.ttl_ms).min(MAX_TTL),
            signed: None,
            skew_s: skew(now, ask.issued),
        };
        self.consider(now, open, out);
    }

    /// Says that an owner's clock differs, when its award shows it: it was on its way for no longer than since this worker
    /// said what it answers. Nobody can say which of the two clocks is wrong, so both sides are told.
    pub(super) fn compare_clocks(
        &mut self,
        now: Time,
        owner: PeerId,
        issued: u64,
        answers: Stamp,
        out: &mut Vec<Effect>,
    ) {
        let ahead_s = skew(now, issued);
        let due = self.market.warned.is_none_or(|at| now.since(at) >= WARN_EVERY);
        let age = Duration::from_millis((now.boot / 1_000_000).saturating_sub(answers.at_ms));
        if ahead_s != 0 && answers.start == self.start && age < PROMPT && due {
            self.market.warned = Some(now);
            out.push(Effect::ClockDiffers { peer: owner, ahead_s });
        }
    }

    /// Bids, declines, or leaves the answer to others; remembers what it could run later.
    fn consider(&mut self, now: Time, open: Open, out: &mut Vec<Effect>) {
        let announcement = &open.announcement;
        let job = (announcement.job, announcement.version);
        if self.market.has_bid(job, announcement.seed) {
            return;
        }
        self.counters.announced += 1;
        self.market.note_past(now, announcement.job, open.owner);
        let asked = open.signed.is_none();
        let weight = self.weight(announcement);
        let draw = lottery::draw(announcement.seed, announcement.job, self.identity.me);
        let admitted = asked || lottery::admits(announcement.theta, weight, draw);
        match self.can_run(open.owner, &announcement.facts) {
            Err(no) if admitted => self.decline(&open, asked, no, out),
            Err(_) => {}
            Ok(()) => {
                if admitted {
                    match self.offer(now, open.owner, &announcement.facts) {
                        Ok(_) => self.bid(now, &open, out),
                        Err(no) => {
                            self.market.missed = true;
                            self.decline(&open, asked, no, out);
                        }
                    }
                }
                self.remember(now, job, open);
            }
        }
    }

    fn weight(&self, announcement: &Announcement) -> u64 {
        let (local, total) = self.local_bytes(announcement);
        lottery::weight(local, total, self.is_cached(announcement))
    }

    /// Input bytes that are here, and all of them.
    fn local_bytes(&self, announcement: &Announcement) -> (u64, u64) {
        let inputs = &announcement.facts.inputs;
        let held = |cid| self.identity.local.held_bytes(cid);
        let local =
            inputs.iter().fold(0u64, |sum, input| sum.saturating_add(held(&input.cid).min(input.size)));
        (local, inputs.iter().fold(0u64, |sum, input| sum.saturating_add(input.size)))
    }

    fn is_cached(&self, announcement: &Announcement) -> bool {
        announcement.facts.module.as_ref().is_some_and(|module| self.identity.local.cached(module))
    }

    /// Bids as much as it can offer at this moment.
    fn bid(&mut self, now: Time, open: &Open, out: &mut Vec<Effect>) {
        let announcement = &open.announcement;
        let job = (announcement.job, announcement.version);
        let Ok(offer) = self.offer(now, open.owner, &announcement.facts) else { return };
        let slots = offer.slots.min(announcement.open.max(1));
        let bid = Bid {
            job: announcement.job,
            version: announcement.version,
            seed: announcement.seed,
            stamp: self.stamp(now),
            start_ms: offer.start_ms,
            slots,
            local_bytes: self.local_bytes(announcement).0,
            cached: self.is_cached(announcement),
            hold_ms: millis(HOLD),
            skew_s: open.skew_s,
        };
        self.market.note_bid(job, announcement.seed);
        self.counters.bids += 1;
        if offer.start_ms == 0 {
            self.hold(now, open.owner, job, &announcement.facts.resources, slots);
        }
        self.reach(open.owner, &open.addresses, out);
        out.push(Effect::Send { to: open.owner, message: Direct::Bid(bid) });
    }

    /// Says why not: always when asked directly, else with the probability that the announcement carries.
    fn decline(
        &mut self,
        open: &Open,
        asked: bool,
        (code, message): (DeclineCode, String),
        out: &mut Vec<Effect>,
    ) {
        let announcement = &open.announcement;
        if !asked && self.rng.below(lottery::ALL) >= announcement.decline {
            return;
        }
        self.counters.declines += 1;
        let mut decline =
            Decline::new(announcement.job, announcement.version, announcement.seed, code, &message);
        decline.skew_s = open.skew_s;
        self.reach(open.owner, &open.addresses, out);
        out.push(Effect::Send { to: open.owner, message: Direct::Decline(decline) });
    }

    /// Dials an owner that is not connected, by the addresses it gave.
    fn reach(&self, owner: PeerId, addresses: &[String], out: &mut Vec<Effect>) {
        if owner != self.identity.me && !self.peers.contains(&owner) {
            out.push(Effect::Dial { peer: owner, addresses: addresses.to_vec() });
        }
    }

    fn remember(&mut self, now: Time, job: JobKey, open: Open) {
        if open.until <= now {
            return;
        }
        let market = &mut self.market;
        let same = market.remembered.iter().filter(|(key, other)| other.owner == open.owner && **key != job);
        if same.clone().count() >= MAX_OF_ONE_OWNER {
            let first = same.min_by_key(|(_, open)| open.until).map(|(key, _)| *key);
            first.map(|key| market.remembered.remove(&key));
        }
        if market.remembered.len() >= MAX_REMEMBERED && !market.remembered.contains_key(&job) {
            let first = market.remembered.iter().min_by_key(|(_, open)| open.until).map(|(key, _)| *key);
            first.map(|key| market.remembered.remove(&key));
        }
        self.timers.set_earlier(Timer::Remembered, open.until);
        market.remembered.insert(job, open);
    }

    /// Capacity is free: bids on what it remembers and has not bid on, and now and then asks for what it missed.
    pub(super) fn bid_on_remembered(&mut self, now: Time, out: &mut Vec<Effect>) {
        let jobs: Vec<JobKey> = self.market.remembered.keys().copied().collect();
        for job in jobs {
            let Some(open) = self.market.remembered.get(&job).cloned() else { continue };
            let announcement = &open.announcement;
            let draw = lottery::draw(announcement.seed, announcement.job, self.identity.me);
            let admitted =
                open.signed.is_none() || lottery::admits(announcement.theta, self.weight(announcement), draw);
            if admitted
                && open.until > now
                && !self.market.has_bid(job, announcement.seed)
                && self.can_run(open.owner, &announcement.facts).is_ok()
            {
                self.bid(now, &open, out);
            }
        }
        let due = self.market.pulled.is_none_or(|at| now.since(at) >= PULL_EVERY);
        if self.market.missed && due && self.market.remembered.is_empty() {
            self.pull(now, out);
        }
    }

    /// The owner has nothing open there any more.
    pub(super) fn on_closed(&mut self, _now: Time, from: PeerId, job: JobKey) {
        if self.market.remembered.get(&job).is_some_and(|open| open.owner == from) {
            self.market.remembered.remove(&job);
            self.release_hold(job);
            self.freed = true;
        }
    }

    pub(super) fn expire_remembered(&mut self, now: Time) {
        self.market.remembered.retain(|_, open| open.until > now);
        if let Some(first) = self.market.remembered.values().map(|open| open.until).min() {
            self.timers.set(Timer::Remembered, first);
        }
    }

    /// Asks a few peers for announcements that are still open.
    pub(super) fn pull(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut peers: Vec<PeerId> = self.peers.iter().copied().collect();
        self.market.pulls.clear();
        for _ in 0..PULLED_PEERS.min(peers.len()) {
            let index = usize::try_from(self.rng.below(peers.len() as u64)).unwrap_or(0);
            let peer = peers.swap_remove(index);
            self.market.pulls.insert(peer, now);
            let message = Direct::Pull(Pull { most: u32::try_from(MAX_PULLED).unwrap_or(u32::MAX) });
            out.push(Effect::Send { to: peer, message });
        }
        self.market.pulled = Some(now);
        self.market.missed = false;
    }

    pub(super) fn on_pull(&mut self, now: Time, from: PeerId, most: u32, out: &mut Vec<Effect>) {
        let most = MAX_PULLED.min(usize::try_from(most).unwrap_or(MAX_PULLED));
        let mut messages: Vec<(Class, Bytes, u64)> = Vec::new();
        for open in self.market.remembered.values().filter(|open| open.until > now) {
            if let Some((class, bytes)) = &open.signed
                && messages.len() < most
                && !messages.iter().any(|(_, sent, _)| sent == bytes)
            {
                messages.push((*class, bytes.clone(), millis(open.until.since(now))));
            }
        }
        if !messages.is_empty() {
            out.push(Effect::Send { to: from, message: Direct::Remembered(Remembered { messages }) });
        }
    }

    pub(super) fn on_remembered(
        &mut self,
        now: Time,
        from: PeerId,
        remembered: Remembered,
        out: &mut Vec<Effect>,
    ) {
        // Only what was asked for: once, and soon.
        if self.market.pulls.remove(&from).is_none_or(|at| now.since(at) > PULL_EVERY) {
            return;
        }
        for (class, bytes, ttl_ms) in remembered.messages {
            match self.take_message(now, class, &bytes, Some(Duration::from_millis(ttl_ms)), out) {
                Ok(()) | Err((Verdict::Ignore | Verdict::Accept, _)) => {}
                Err((Verdict::Reject, why)) => {
                    self.counters.rejected += 1;
                    return out.push(Effect::Penalise { peer: from, why });
                }
            }
        }
    }
}

/// How many seconds an owner's clock is ahead of ours, when that keeps its announcements from being heard here.
fn skew(now: Time, issued: u64) -> i64 {
    if issued == 0 || u128::from(issued.abs_diff(now.wall)) <= SKEW.as_nanos() {
        return 0;
    }
    let ahead = (i128::from(issued) - i128::from(now.wall)) / 1_000_000_000;
    i64::try_from(ahead).unwrap_or(i64::MAX)
}

impl Market {
    pub(super) fn owner_of(&self, job: JobId) -> Option<PeerId> {
        let mut open = self.remembered.range((job, 0)..=(job, u32::MAX));
        open.next().map(|(_, open)| open.owner).or_else(|| self.past.get(&job).map(|(owner, _)| *owner))
    }

    pub(super) fn known_jobs(&self) -> impl Iterator<Item = (JobId, PeerId)> + '_ {
        let open = self.remembered.iter().map(|((id, _), open)| (*id, open.owner));
        open.chain(self.past.iter().map(|(id, (owner, _))| (*id, *owner)))
    }

    /// Remembers for a while whose a job was.
    pub(super) fn note_past(&mut self, now: Time, job: JobId, owner: PeerId) {
        if self.past.len() >= MAX_PAST {
            self.past.retain(|_, (_, at)| now.since(*at) < PAST_TTL);
        }
        if self.past.len() < MAX_PAST {
            self.past.insert(job, (owner, now));
        }
    }

    fn has_bid(&self, job: JobKey, seed: u64) -> bool {
        self.bids.contains(&(job, seed))
    }

    fn note_bid(&mut self, job: JobKey, seed: u64) {
        if self.bid_order.len() >= MAX_BIDS
            && let Some(oldest) = self.bid_order.pop_front()
        {
            self.bids.remove(&oldest);
        }
        if self.bids.insert((job, seed)) {
            self.bid_order.push_back((job, seed));
        }
    }

    fn take_token(&mut self, now: Time, owner: PeerId) -> bool {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&owner) {
            let full = Duration::from_secs(BURST.into());
            self.buckets.retain(|_, bucket| now.since(bucket.filled) < full);
            if self.buckets.len() >= MAX_BUCKETS {
                return false;
            }
        }
        let bucket = self.buckets.entry(owner).or_insert(Bucket { tokens: BURST, filled: now });
        let earned = now.since(bucket.filled).as_secs();
        if earned > 0 {
            let tokens = u64::from(bucket.tokens).saturating_add(earned).min(BURST.into());
            bucket.tokens = u32::try_from(tokens).unwrap_or(BURST);
            bucket.filled = bucket.filled + Duration::from_secs(earned);
        }
        let taken = bucket.tokens.checked_sub(1);
        bucket.tokens = taken.unwrap_or(0);
        taken.is_some()
    }
}
