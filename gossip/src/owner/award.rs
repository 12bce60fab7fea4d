//! Awards: who gets which partitions, how far ahead, and what becomes of those that are not answered.

use std::collections::BTreeSet;

use ::job::state::{ExecutionState, JobState};
use ::job::{PeerId, Time};

use super::core::{Core, JobKey, Patience, Timer};
use super::job::{Given, Job, Round, Share};
use super::ledger::Part;
use super::record::{AwardRecord, Fate, Topic};
use super::{Effect, Owner, millis};
use crate::bug::Bug;
use crate::crypto::Signed;
use crate::message::{
    Award, AwardOrder, DeclineCode, Direct, MAX_INLINE_SPEC_BYTES, Recall, Recalled, Reply,
};
use crate::range::spans;
use crate::record::{Kind, Record};

/// Partitions that are looked at for some that suit a worker.
const MAX_LOOKED_AT: usize = 4096;

/// Bytes a second at which missing inputs are likely to come, for the comparison of bids.
const BANDWIDTH: u64 = 50_000_000;

/// What a broken promise costs a worker: it ranks as if it started so much later.
const PENALTY_MS: u64 = 1000;
const MAX_PENALTY_MS: u64 = 60_000;

/// Work that is worth taking back from a worker: what it would do in this many nanoseconds.
const WORTH_RECALLING: u64 = 50_000_000;

impl Job {
    /// Gives a worker up to so many open partitions. How many it got.
    pub(super) fn give(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        most: u64,
        out: &mut Vec<Effect>,
    ) -> u32 {
        let last_resort = self.asked_all && self.round == Round::Waiting;
        let parts = self.pick(worker, usize::try_from(most).unwrap_or(usize::MAX), last_resort);
        if parts.is_empty() {
            return 0;
        }
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let spans = spans(parts.iter().copied());
        let number = self.ledger.number();
        let record = AwardRecord {
            worker,
            epoch: core.epoch,
            spans: spans.clone(),
            time: now.wall,
            seq: self.ledger.seqs(count.into()),
        };
        if !core.has_bug(Bug::AwardNotRecorded) {
            out.push(Effect::Persist(Record::new(self.ledger.key(Kind::Award, number), &record)));
        }
        let backups =
            parts.iter().filter(|part| self.ledger.attempts(part.0).any(|(_, one)| !one.state.is_terminal()));
        core.counters.backups += backups.count() as u64;
        core.counters.awarded += u64::from(count);
        self.ledger.apply_award(number, &record);
        for part in &parts {
            self.open.remove(part.0, part.0 + 1);
        }
        let share = self.shares.entry(worker).or_default();
        if share.live.is_empty() {
            share.last = now;
        }
        share.live.extend(parts);
        share.given += count;
        let live = share.live.len();
        core.count_live(worker, self.key(), now, live, out);
        if self.ledger.state != JobState::Running {
            self.line(now, Topic::StateUpdate, "Running", Some(JobState::Running), "", out);
        }
        self.changed = true;
        let message = self.award_message(core, now, number, worker, spans);
        self.unanswered.insert(number, (worker, message.clone()));
        let wait = core.award_reply(worker, now);
        core.be_patient_with(worker, now, Patience::Reply(self.key(), number), wait);
        out.push(Effect::Send { to: worker, message: Direct::Award(Box::new(message)) });
        count
    }

    /// Open partitions that may go to a worker, each with its next attempt. Those that were lost with it go to others
    /// first, and back to it only as a last resort.
    fn pick(&self, worker: PeerId, most: usize, last_resort: bool) -> Vec<Part> {
        let fresh = |partition: u32| {
            self.suits(worker, partition)
                && (last_resort || !self.was_lost_on(worker, partition))
                && !self
                    .ledger
                    .attempts(partition)
                    .any(|(_, one)| !one.state.is_terminal() && self.ledger.worker_of(one) == worker)
        };
        let open = self.open.iter().take(MAX_LOOKED_AT.max(most)).filter(|partition| fresh(*partition));
        open.take(most.min(crate::message::MAX_SPANS))
            .map(|partition| (partition, self.ledger.next_attempt(partition)))
            .collect()
    }

    fn award_message(
        &mut self,
        core: &Core,
        now: Time,
        id: u64,
        worker: PeerId,
        spans: Vec<crate::message::Span>,
    ) -> Award {
        let job = &self.ledger.job;
        let order = AwardOrder {
            id,
            job: self.ledger.id,
            nonce: job.nonce.clone(),
            version: self.ledger.version,
            spec: job.spec_cid,
            count: job.count,
            epoch: core.epoch,
            spans,
            worker,
            answers: core.peers.get(&worker).map(|peer| peer.stamp).unwrap_or_default(),
            lease_ms: millis(core.settings.lease),
            total_ms: core.timers.get(Timer::Total(self.key())).map_or(0, |at| millis(at.since(now)).max(1)),
            keep: job.keep_on_worker,
        };
        let first = self.told.insert(worker);
        let small = self.ledger.spec.len() <= MAX_INLINE_SPEC_BYTES && !self.ledger.spec.is_empty();
        Award {
            order: Signed::seal(&order, core.identity.crypto.as_ref()),
            facts: first.then(|| job.facts.clone()),
            spec: (first && small).then(|| self.ledger.spec.clone()),
            hints: Vec::new(),
            issued: now.wall,
        }
    }

    /// Uses the bids in hand, best first, as far as the round allows.
    pub(super) fn use_bids(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        self.bids.retain(|_, in_hand| in_hand.until > now);
        if self.open.is_empty() || self.bids.is_empty() {
            return;
        }
        let wanted = self.input_bytes();
        let mut order: Vec<(bool, u64, PeerId)> = self
            .bids
            .iter()
            .filter(|(peer, _)| !core.is_suspect(**peer))
            .map(|(peer, in_hand)| {
                let bid = &in_hand.bid;
                let transfer = wanted.saturating_sub(bid.local_bytes) / (BANDWIDTH / 1000);
                let penalty = core.peers.get(peer).map_or(0, |peer| peer.penalty_ms);
                (in_hand.stranger, bid.start_ms.saturating_add(transfer).saturating_add(penalty), *peer)
            })
            .collect();
        order.sort_unstable();
        for (_, _, peer) in order {
            if self.open.is_empty() {
                break;
            }
            let Some(most) = self.allowance(core, peer) else { continue };
            let given = self.give(core, now, peer, most, out);
            self.note_given(peer, given);
        }
    }

    /// How many partitions a bidder may have now; `None` for none.
    fn allowance(&self, core: &Core, peer: PeerId) -> Option<u64> {
        let in_hand = self.bids.get(&peer)?;
        let slots = u64::from(in_hand.bid.slots);
        let (cap, theta, given) = match &self.round {
            Round::Idle | Round::Waiting => return (slots > 0).then_some(slots),
            Round::Own => (self.own_cap(core), crate::lottery::ALL, Given::default()),
            Round::Asking { cap, .. } => (*cap, crate::lottery::ALL, Given::default()),
            Round::Announced { theta, cap, given, .. } => (*cap, *theta, *given),
        };
        // Who could only start later waits until everybody has spoken.
        if in_hand.bid.start_ms > 0 {
            return None;
        }
        let given_before = self.shares.get(&peer).map_or(0, |share| share.given);
        let share = u64::from(cap.saturating_sub(given_before));
        let mut most = slots.min(share);
        if in_hand.by_weight && theta < crate::lottery::ALL {
            let plain = self.bids.iter().any(|(peer, bid)| !bid.by_weight && !core.is_suspect(*peer));
            // At most half of the round's awards: given.by_weight + most <= (given.all + most) / 2.
            if plain {
                most = most.min(given.all.saturating_sub(2 * given.by_weight));
            }
        }
        (most > 0).then_some(most)
    }

    fn note_given(&mut self, peer: PeerId, given: u32) {
        let Some(in_hand) = self.bids.get_mut(&peer) else { return };
        if let Some(share) = self.shares.get_mut(&peer) {
            share.slots = share.slots.max(in_hand.bid.slots);
        }
        in_hand.bid.slots = in_hand.bid.slots.saturating_sub(given);
        if let Round::Announced { given: all, .. } = &mut self.round {
            all.all += u64::from(given);
            all.by_weight += if in_hand.by_weight { u64::from(given) } else { 0 };
        }
        if in_hand.bid.slots == 0 {
            self.bids.remove(&peer);
        }
    }

    /// Gives workers that ended something the next partitions.
    pub(super) fn feed(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        for worker in std::mem::take(&mut self.hungry) {
            let Some(share) = self.shares.get(&worker) else { continue };
            if self.open.is_empty() || share.full || core.is_suspect(worker) || share.slots == 0 {
                continue;
            }
            let (target, live) = (self.target(share), share.live.len() as u64);
            let missing = target.saturating_sub(live).min(self.round_leaves(core, share));
            // Few large awards rather than many small ones, as long as it has something to do.
            if missing > 0 && (live < u64::from(share.slots) || missing >= target / 4) {
                self.give(core, now, worker, missing, out);
            }
        }
        self.level(core, now, out);
    }

    /// How many more a worker may get before the round closes; one that ended something gets more at once.
    fn round_leaves(&self, core: &Core, share: &Share) -> u64 {
        let cap = match &self.round {
            _ if share.gap.is_some() => return u64::MAX,
            Round::Idle | Round::Waiting => return u64::MAX,
            Round::Own => self.own_cap(core),
            Round::Asking { cap, .. } | Round::Announced { cap, .. } => *cap,
        };
        cap.saturating_sub(share.given).into()
    }

    /// Takes unstarted partitions back from the fullest worker when another has nothing left.
    fn level(&mut self, core: &Core, _now: Time, out: &mut Vec<Effect>) {
        if !self.open.is_empty() || self.ended() {
            return;
        }
        let idle = self.shares.iter().any(|(worker, share)| {
            share.live.is_empty()
                && share.gap.is_some()
                && share.slots > 0
                && !share.full
                && !core.is_suspect(*worker)
        });
        if !idle {
            return;
        }
        let surplus = |share: &Share| (share.live.len() as u64).saturating_sub(share.slots.into());
        let Some((worker, share)) = self.shares.iter_mut().max_by_key(|(_, share)| surplus(share)) else {
            return;
        };
        let worth = surplus(share).saturating_mul(share.gap.unwrap_or(0)) >= WORTH_RECALLING;
        if share.recalled || !worth {
            return;
        }
        share.recalled = true;
        let half = usize::try_from(surplus(share).div_ceil(2)).unwrap_or(0);
        let parts: BTreeSet<Part> = share.live.iter().rev().take(half).copied().collect();
        let recall = Recall { job: self.ledger.id, version: self.ledger.version, spans: spans(parts) };
        out.push(Effect::Send { to: *worker, message: Direct::Recall(recall) });
    }

    /// These executions have nothing to do with their worker any more.
    pub(super) fn leave(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        parts: impl IntoIterator<Item = Part>,
        out: &mut Vec<Effect>,
    ) -> u64 {
        let parts: Vec<Part> = parts.into_iter().collect();
        self.told_to_stop(worker, parts.iter().copied());
        let Some(share) = self.shares.get_mut(&worker) else { return 0 };
        let left = parts.into_iter().filter(|part| share.live.remove(part)).count() as u64;
        let live = share.live.len();
        if live == 0 {
            // It forgets a job of which it has nothing: the next award tells it again.
            self.told.remove(&worker);
        }
        if left > 0 {
            core.count_live(worker, self.key(), now, live, out);
        }
        left
    }

    /// A partition wants an award, unless something of it may still come.
    pub(super) fn reopen(&mut self, core: &Core, partition: u32) {
        let suspected = !self.never() || core.has_bug(Bug::NeverRetried);
        let alive = self.ledger.attempts(partition).any(|(part, one)| {
            // Nothing is expected of a suspect, so another may have what it has; but a result on its way is one.
            let despaired = one.given_up || suspected && core.is_suspect(self.ledger.worker_of(one));
            !one.state.is_terminal() && (!despaired || self.holding.contains_key(&part))
        });
        if !alive && !self.ledger.is_done(partition) && !self.ended() {
            self.open.insert(partition, partition + 1);
        }
    }

    /// Executions that their worker did not take or gave back: others get them.
    pub(super) fn declined(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        parts: BTreeSet<Part>,
        message: &str,
        out: &mut Vec<Effect>,
    ) {
        let parts: BTreeSet<Part> = parts
            .into_iter()
            .filter(|part| {
                self.ledger.executions.get(part).is_some_and(|one| {
                    !one.state.is_terminal()
                        && self.ledger.worker_of(one) == worker
                        && !self.holding.contains_key(part)
                })
            })
            .collect();
        self.fate(now, &parts, Fate::Declined, message, false, out);
        self.leave(core, now, worker, parts.iter().copied(), out);
        for part in parts {
            self.reopen(core, part.0);
        }
    }
}

impl Owner {
    pub(super) fn on_reply(&mut self, now: Time, from: PeerId, reply: Reply, out: &mut Vec<Effect>) {
        self.heard(now, from, Some(reply.stamp), out);
        let key = (reply.job, reply.version);
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else { return };
        if job.unanswered.get(&reply.award).is_some_and(|(worker, _)| *worker == from) {
            job.unanswered.remove(&reply.award);
            let known = core.peer(from, now);
            known.silences = known.silences.saturating_sub(1);
            core.calm(Patience::Reply(key, reply.award));
        }
        let mine = |job: &Job, part: &Part| {
            let execution = job.ledger.executions.get(part);
            execution.is_some_and(|one| one.award == reply.award && job.ledger.worker_of(one) == from)
        };
        for part in parts_of(&reply.accepted).filter(|part| mine(job, part)).collect::<Vec<_>>() {
            job.accepted(part, now, reply.eta_ms);
        }
        let declined: BTreeSet<Part> = parts_of(&reply.declined).filter(|part| mine(job, part)).collect();
        if !declined.is_empty() {
            let code = reply.code.unwrap_or(DeclineCode::Busy);
            let words =
                if reply.message.is_empty() { code.words(false).to_owned() } else { reply.message.clone() };
            job.declined(core, now, from, declined, &format!("the worker {words}"), out);
            job.note_decline(from, code, reply.message);
            job.bids.remove(&from);
            match code {
                DeclineCode::NoSpec => drop(job.told.remove(&from)),
                _ => {
                    if let Some(share) = job.shares.get_mut(&from) {
                        share.full = true;
                    }
                    core.penalise(from, now);
                }
            }
        }
        job.hungry.insert(from);
        core.dirty.insert(key);
        if reply.epoch > core.epoch {
            // It knows a newer epoch of ours: it can prove that, then ours must rise.
            self.ask_epoch(from, out);
        }
    }

    pub(super) fn on_recalled(&mut self, now: Time, from: PeerId, recalled: Recalled, out: &mut Vec<Effect>) {
        self.heard(now, from, Some(recalled.stamp), out);
        let key = (recalled.job, recalled.version);
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else { return };
        let parts: BTreeSet<Part> = parts_of(&recalled.spans).collect();
        job.declined(core, now, from, parts, "it was taken back before it started", out);
        if let Some(share) = job.shares.get_mut(&from) {
            // Not again until it ends something: what has started stays, and what came back may be awarded to
            // it once more when nobody else bids.
            share.recalled = true;
        }
        let workers: Vec<PeerId> = job.shares.keys().copied().filter(|worker| *worker != from).collect();
        job.hungry.extend(workers);
        core.dirty.insert(key);
    }

    /// An award was not answered in time.
    pub(super) fn on_silence(&mut self, now: Time, key: JobKey, award: u64, out: &mut Vec<Effect>) {
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else { return };
        let Some((worker, _)) = job.unanswered.get(&award) else { return };
        let worker = *worker;
        let parts = job.unanswered_parts(worker, award);
        if parts.is_empty() {
            // Its worker has spoken of all of it by other means.
            job.unanswered.remove(&award);
            return;
        }
        if job.never() && !core.has_bug(Bug::NeverRetried) {
            // It may have started: only its worker can say. The same award again starts nothing twice.
            let wait = core.award_reply(worker, now) * 4;
            core.be_patient_with(worker, now, Patience::Reply(key, award), wait);
            job.again.insert(award);
            core.dirty.insert(key);
            return;
        }
        job.unanswered.remove(&award);
        core.penalise(worker, now);
        let known = core.peer(worker, now);
        known.silences = known.silences.saturating_add(1);
        job.bids.remove(&worker);
        job.fate(now, &parts, Fate::Silent, "its worker did not answer the award", false, out);
        job.leave(core, now, worker, parts.iter().copied(), out);
        if let Some(share) = job.shares.get_mut(&worker) {
            share.full = true;
        }
        for part in &parts {
            job.reopen(core, part.0);
        }
        job.stop(core, now, worker, parts, "the award was not answered in time", out);
        core.dirty.insert(key);
    }
}

impl Job {
    /// Sends awards again whose answer is still awaited: in the same batch of inputs it may have come, or the job ended.
    pub(super) fn award_again(&mut self, core: &Core, out: &mut Vec<Effect>) {
        for award in std::mem::take(&mut self.again) {
            let Some((worker, message)) = self.unanswered.get(&award) else { continue };
            if core.is_connected(*worker) && !self.unanswered_parts(*worker, award).is_empty() {
                out.push(Effect::Send { to: *worker, message: Direct::Award(Box::new(message.clone())) });
            }
        }
    }

    /// Executions of an award that its worker has said nothing of.
    fn unanswered_parts(&self, worker: PeerId, award: u64) -> BTreeSet<Part> {
        let Some(share) = self.shares.get(&worker) else { return BTreeSet::new() };
        let silent = |part: &&Part| {
            let execution = self.ledger.executions.get(*part);
            execution.is_some_and(|one| one.award == award && one.state == ExecutionState::New)
        };
        share.live.iter().filter(silent).copied().collect()
    }

    fn accepted(&mut self, part: Part, now: Time, eta_ms: u64) {
        let Some(execution) = self.ledger.executions.get_mut(&part) else { return };
        if execution.state.can_become(ExecutionState::BidAccepted) {
            execution.state = ExecutionState::BidAccepted;
            execution.modified = now.wall;
            if eta_ms > 0 {
                execution.message = format!("queued at its worker, starts in about {eta_ms} ms");
            }
            self.changed = true;
        }
    }
}

impl Core {
    /// A peer broke a promise.
    pub(super) fn penalise(&mut self, peer: PeerId, now: Time) {
        let known = self.peer(peer, now);
        known.penalty_ms = (known.penalty_ms * 2).clamp(PENALTY_MS, MAX_PENALTY_MS);
    }
}

/// The single executions of some spans.
pub(super) fn parts_of(spans: &[crate::message::Span]) -> impl Iterator<Item = Part> + '_ {
    spans.iter().flat_map(|span| span.partitions().map(move |partition| (partition, span.attempt)))
}
