//! Awards, recalls and stops: whose order it is, whether it is current, and what it changes.

use std::collections::BTreeSet;
use std::time::Duration;

use ::job::{Fence, JobId, PeerId, Time};
use sha2::{Digest, Sha256};

use super::admission::fit;
use super::execution::{Execution, Stage};
use super::job::{Job, Terms};
use super::{Effect, JobKey, Part, SpecRef, Timer, Worker, millis};
use crate::bug::Bug;
use crate::message::{
    Award, AwardOrder, Bytes, DeclineCode, Direct, Recall, Recalled, Reply, Stop, StopOrder, Stopped, cut,
};
use crate::range::{RangeMap, Span, spans};

/// Executions of one job version that may wait here beyond those that run: what keeps a worker busy
/// while the owner's next award is on its way.
const MAX_CREDIT: u64 = 512;

/// Executions of all jobs that this worker holds at most.
const MAX_EXECUTIONS: usize = 16_384;

/// Job versions that this worker works for at most, and of which it holds anything at all.
const MAX_JOBS: usize = 2048;
const MAX_KNOWN_JOBS: usize = 16_384;

/// Job versions whose fences are remembered, and ranges of one of them.
const MAX_FENCED: usize = 4096;
const MAX_FENCE_RANGES: usize = 16_384;

/// What fences of jobs that are not here are kept for: longer than any lease of theirs is likely to be.
const UNKNOWN_LEASE: Duration = Duration::from_secs(300);

/// Longest lease that is honoured.
const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Shortest: renewals, three in each, stay rare whatever an owner asks for.
const MIN_LEASE: Duration = Duration::from_secs(5);

/// A lease within what is honoured.
pub(super) fn honoured(lease_ms: u64) -> Duration {
    Duration::from_millis(lease_ms).clamp(MIN_LEASE, MAX_LEASE)
}

/// The newest fence seen of each partition of a job version.
#[derive(Debug)]
pub(super) struct Fences {
    newest: RangeMap<Fence>,
    until: Time,
}

/// Why one partition is not taken.
type Refused = (Part, DeclineCode);

impl Worker {
    pub(super) fn on_award(&mut self, now: Time, from: PeerId, award: Award, out: &mut Vec<Effect>) {
        let Some(order) = self.open_order(from, &award, out) else { return };
        let job = (order.job, order.version);
        if let Some(code) = self.is_outdated(now, from, &order) {
            self.counters.fenced += 1;
            return self.refuse(now, from, &order, code, "", out);
        }
        self.note_epoch(from, &order, &award, out);
        self.compare_clocks(now, from, award.issued, order.answers, out);
        self.release_hold(job);
        if let Err((code, why)) = self.take_terms(now, from, &order, &award) {
            return self.refuse(now, from, &order, code, &why, out);
        }
        self.take(now, from, &order, &award, out);
    }

    /// Reads an order and makes sure that it is this owner's to give, and for this worker.
    fn open_order(&mut self, from: PeerId, award: &Award, out: &mut Vec<Effect>) -> Option<AwardOrder> {
        let order: AwardOrder = match award.order.read() {
            Ok(order) => order,
            Err(_) => {
                out.push(Effect::Penalise { peer: from, why: "malformed award" });
                return None;
            }
        };
        let own = JobId::derive(&self.identity.swarm, from, &order.nonce) == order.job
            || self.has_bug(|bug| bug == Bug::ObeyAnyone);
        let me = self.identity.me;
        let signed = from == me || award.order.is_by::<AwardOrder>(from, self.identity.crypto.as_ref());
        if !own || !signed || order.worker != me {
            self.counters.foreign += 1;
            out.push(Effect::Penalise { peer: from, why: "award by another than the owner" });
            return None;
        }
        Some(order)
    }

    /// Whether an order has an old epoch, or answers what this worker said too long ago or before its restart.
    fn is_outdated(&self, now: Time, from: PeerId, order: &AwardOrder) -> Option<DeclineCode> {
        if self.has_bug(|bug| bug == Bug::NoFencing) {
            return None;
        }
        if order.epoch < self.owners.get(&from).map_or(0, |owner| owner.epoch) {
            return Some(DeclineCode::OldFence);
        }
        let now_ms = now.boot / 1_000_000;
        let lease_ms = millis(honoured(order.lease_ms));
        let current = order.answers.start == self.start
            && order.answers.at_ms <= now_ms
            && now_ms - order.answers.at_ms <= lease_ms;
        (!current && !self.has_bug(|bug| bug == Bug::LeaseFromReceipt)).then_some(DeclineCode::Stale)
    }

    /// Makes sure that facts and spec of the job are known and that this worker can and may run it.
    fn take_terms(
        &mut self,
        now: Time,
        from: PeerId,
        order: &AwardOrder,
        award: &Award,
    ) -> Result<(), (DeclineCode, String)> {
        let key = (order.job, order.version);
        if let Some(terms) = self.jobs.get(&key).and_then(|job| job.terms.as_ref()) {
            let facts = terms.facts.clone();
            return self.can_run(from, &facts);
        }
        let facts = award.facts.clone().ok_or((DeclineCode::NoSpec, String::new()))?;
        self.can_run(from, &facts)?;
        if !self.jobs.contains_key(&key) && self.is_full_of_jobs() {
            return Err((DeclineCode::Busy, "it holds too many jobs".to_owned()));
        }
        if award.spec.as_ref().is_some_and(|spec| !is_content(&order.spec, spec)) {
            return Err((DeclineCode::NoSpec, "the spec is not the one its CID names".to_owned()));
        }
        let mut hints = vec![from];
        hints.extend(award.hints.iter().filter(|peer| **peer != from));
        let terms = Terms {
            spec: SpecRef { cid: order.spec, inline: award.spec.clone() },
            facts,
            count: order.count,
            ends: (order.total_ms > 0).then(|| now + Duration::from_millis(order.total_ms)),
            keep: order.keep,
            submitter: self.submitter(from),
            hints,
        };
        self.jobs.entry(key).or_insert_with(|| Job::new(from, None)).terms = Some(terms);
        Ok(())
    }

    /// Jobs that run here are few; those of which owners have yet to hear the end may be many.
    fn is_full_of_jobs(&self) -> bool {
        let at_work = || self.jobs.values().filter(|job| !job.executions.is_empty()).count();
        self.jobs.len() >= MAX_KNOWN_JOBS || self.jobs.len() >= MAX_JOBS && at_work() >= MAX_JOBS
    }

    /// Takes what is current and fits; answers for all of it.
    fn take(&mut self, now: Time, from: PeerId, order: &AwardOrder, award: &Award, out: &mut Vec<Effect>) {
        let key = (order.job, order.version);
        let (mut again, mut fresh, mut refused) = (BTreeSet::new(), Vec::new(), Vec::new());
        for span in &order.spans {
            for partition in span.partitions() {
                match self.sort(key, order.epoch, (partition, span.attempt)) {
                    Ok(true) => fresh.push((partition, span.attempt)),
                    Ok(false) => drop(again.insert((partition, span.attempt))),
                    Err(refusal) => refused.push(refusal),
                }
            }
        }
        // What came earlier in this batch has the first claim on what is free.
        self.start_ready(now, out);
        let room = self.room(now, key);
        let (taken, left) = fresh.split_at(fresh.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        // What is declined here is vouched for: this fence never starts.
        for part in &fresh {
            self.fence(now, key, *part, Fence::new(order.epoch, part.1));
        }
        refused.extend(left.iter().map(|part| (*part, DeclineCode::Busy)));
        for part in taken {
            self.enqueue(key, *part, order, out);
        }
        if !taken.is_empty() {
            self.record_award(key, from, order, award, taken, out);
            self.lease_from(now, from, order, out);
        }
        again.extend(taken.iter().copied());
        self.forget_empty(key, out);
        self.reply(now, from, order, again, &refused, out);
    }

    /// Whether a partition of an award is new (`true`), a repetition (`false`), or refused.
    fn sort(&self, key: JobKey, epoch: u32, part: Part) -> Result<bool, Refused> {
        let job = self.jobs.get(&key);
        // What was lost had started too: declining it would vouch that it never did.
        let here = job.is_some_and(|job| {
            job.executions.contains_key(&part)
                || job.offered.contains_key(&part)
                || job.lost.contains_key(&part)
        });
        if here {
            return Ok(false);
        }
        let fence = Fence::new(epoch, part.1);
        let newest = self.fences.get(&key).and_then(|fences| fences.newest.get(part.0));
        match newest {
            _ if self.has_bug(|bug| bug == Bug::NoFencing) => Ok(true),
            Some(newest) if newest > fence => Err((part, DeclineCode::OldFence)),
            Some(newest) if newest == fence => Err((part, DeclineCode::Stopped)),
            _ => Ok(true),
        }
    }

    /// How many more executions of a job are taken now.
    fn room(&self, now: Time, key: JobKey) -> u64 {
        let Some(job) = self.jobs.get(&key) else { return 0 };
        let Some(terms) = &job.terms else { return 0 };
        let held: usize = self.jobs.values().map(|job| job.executions.len()).sum();
        let most = u64::try_from(MAX_EXECUTIONS.saturating_sub(held)).unwrap_or(0);
        let slots = u64::from(self.settings.slots.saturating_sub(self.running));
        let free =
            if self.queue.is_empty() { fit(&terms.facts.resources, &self.free()).min(slots) } else { 0 };
        // Waiting behind others is only promised where somebody can say for how long; as in bids.
        let soon = self.start_estimate(now).is_some_and(|wait| wait <= millis(self.settings.longest_queue));
        let whole = fit(&terms.facts.resources, &self.settings.capacity).min(self.settings.slots.into());
        let credit = match job.span_ms {
            _ if !soon => 0,
            Some(_) => MAX_CREDIT.saturating_sub(job.queued.into()),
            None if free > 0 => 0,
            None => (whole / 2).max(1).saturating_sub(job.queued.into()),
        };
        (free + credit).min(most)
    }

    fn enqueue(&mut self, key: JobKey, part: Part, order: &AwardOrder, out: &mut Vec<Effect>) {
        // A newer award of the same partition ends the older attempt.
        let older: Vec<Part> = self.jobs.get(&key).map_or_else(Vec::new, |job| {
            job.executions.range((part.0, 0)..part).map(|(part, _)| *part).collect()
        });
        for part in older {
            self.end(key, part, "a newer award replaces it", out);
        }
        let number = self.number();
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let priority = job.terms.as_ref().map_or(0, |terms| terms.facts.priority);
        let execution = Execution::queued(order.id, order.epoch, number);
        self.queue.insert(super::execution::Queued::new(priority, number, key, part));
        job.executions.insert(part, execution);
        job.queued += 1;
        *job.awards.entry(order.id).or_default() += 1;
        self.counters.accepted += 1;
    }

    /// Raises the newest fence of a partition.
    pub(super) fn fence(&mut self, now: Time, key: JobKey, part: Part, fence: Fence) {
        if self.fences.len() >= MAX_FENCED && !self.fences.contains_key(&key) {
            self.expire_fences(now);
            let oldest = self.fences.iter().min_by_key(|(_, fences)| fences.until).map(|(key, _)| *key);
            oldest.filter(|_| self.fences.len() >= MAX_FENCED).map(|key| self.fences.remove(&key));
        }
        // No award that was sent before now is obeyed after one lease; two for good measure.
        let owner = self.jobs.get(&key).and_then(|job| self.owners.get(&job.owner));
        let until = now + 2 * owner.map_or(UNKNOWN_LEASE, |owner| owner.lease);
        let fences = self.fences.entry(key).or_insert(Fences { newest: RangeMap::default(), until });
        fences.until = until;
        if fences.newest.ranges() < MAX_FENCE_RANGES
            && fences.newest.get(part.0).is_none_or(|newest| newest < fence)
        {
            fences.newest.set(part.0, part.0 + 1, fence);
        }
        self.timers.set_earlier(Timer::Fences, until);
    }

    pub(super) fn expire_fences(&mut self, now: Time) {
        let jobs = &self.jobs;
        self.fences.retain(|key, fences| fences.until > now || jobs.contains_key(key));
        if let Some(first) =
            self.fences.values().map(|fences| fences.until.max(now + Duration::from_secs(60))).min()
        {
            self.timers.set(Timer::Fences, first);
        }
    }

    fn refuse(
        &mut self,
        now: Time,
        to: PeerId,
        order: &AwardOrder,
        code: DeclineCode,
        why: &str,
        out: &mut Vec<Effect>,
    ) {
        let mut again = BTreeSet::new();
        let mut refused = Vec::new();
        let key = (order.job, order.version);
        for span in &order.spans {
            for partition in span.partitions() {
                let part = (partition, span.attempt);
                match self.sort(key, order.epoch, part) {
                    // Our answer was lost: the same again, whatever became of the order since.
                    Ok(false) => drop(again.insert(part)),
                    _ => {
                        self.fence(now, key, part, Fence::new(order.epoch, span.attempt));
                        refused.push((part, code));
                    }
                }
            }
        }
        let epoch = self.owners.get(&to).map_or(0, |owner| owner.epoch);
        let reply = self.reply_to(now, order, again, &refused, cut(why), epoch);
        out.push(Effect::Send { to, message: Direct::Reply(reply) });
    }

    fn reply(
        &mut self,
        now: Time,
        to: PeerId,
        order: &AwardOrder,
        accepted: BTreeSet<Part>,
        refused: &[Refused],
        out: &mut Vec<Effect>,
    ) {
        let reply = self.reply_to(now, order, accepted, refused, String::new(), 0);
        out.push(Effect::Send { to, message: Direct::Reply(reply) });
    }

    fn reply_to(
        &self,
        now: Time,
        order: &AwardOrder,
        accepted: BTreeSet<Part>,
        refused: &[Refused],
        message: String,
        epoch: u32,
    ) -> Reply {
        let waits = self.free().checked_sub(&self.terms_of(order)).is_none();
        Reply {
            job: order.job,
            version: order.version,
            award: order.id,
            accepted: spans(accepted),
            declined: spans(refused.iter().map(|(part, _)| *part).collect::<BTreeSet<_>>()),
            code: refused.first().map(|(_, code)| *code),
            message,
            eta_ms: if waits { self.start_estimate(now).unwrap_or(0) } else { 0 },
            epoch,
            stamp: self.stamp(now),
        }
    }

    fn terms_of(&self, order: &AwardOrder) -> ::job::Resources {
        let terms = self.jobs.get(&(order.job, order.version)).and_then(|job| job.terms.as_ref());
        terms.map_or(::job::Resources::ZERO, |terms| terms.facts.resources)
    }

    /// Gives back what has not started.
    pub(super) fn on_recall(&mut self, now: Time, from: PeerId, recall: Recall, out: &mut Vec<Effect>) {
        let key = (recall.job, recall.version);
        if self.jobs.get(&key).is_none_or(|job| job.owner != from) {
            return;
        }
        let mut given = BTreeSet::new();
        for span in &recall.spans {
            for part in self.parts_in(key, span, |stage| matches!(stage, Stage::Queued { .. })) {
                if part.1 == span.attempt && self.unqueue(key, part, out) {
                    given.insert(part);
                }
            }
        }
        let recalled = Recalled {
            job: recall.job,
            version: recall.version,
            spans: spans(given),
            stamp: self.stamp(now),
        };
        self.forget_empty(key, out);
        out.push(Effect::Send { to: from, message: Direct::Recalled(recalled) });
    }

    /// Ends what the owner does not want any more, and makes sure that what comes late does not start.
    pub(super) fn on_stop(&mut self, now: Time, from: PeerId, stop: &Stop, out: &mut Vec<Effect>) {
        let me = self.identity.me;
        let crypto = self.identity.crypto.as_ref();
        let order =
            match if from == me { stop.order.read() } else { stop.order.open::<StopOrder>(from, crypto) } {
                Ok(order) => order,
                Err(_) => {
                    return out
                        .push(Effect::Penalise { peer: from, why: "malformed or wrongly signed stop" });
                }
            };
        if JobId::derive(&self.identity.swarm, from, &order.nonce) != order.job || order.worker != me {
            self.counters.foreign += 1;
            return out.push(Effect::Penalise { peer: from, why: "stop by another than the owner" });
        }
        let known = self.owners.get(&from).map_or(0, |owner| owner.epoch);
        if order.epoch < known && !self.has_bug(|bug| bug == Bug::NoFencing) {
            self.counters.fenced += 1;
            return;
        }
        let key = (order.job, order.version);
        for span in &order.spans {
            for part in self.parts_in(key, span, |_| true) {
                if part.1 <= span.attempt {
                    self.end(key, part, &order.reason, out);
                }
            }
            for partition in span.partitions() {
                self.fence(now, key, (partition, span.attempt), Fence::new(order.epoch, span.attempt));
            }
        }
        self.forget_empty(key, out);
        // What has ended is told by its receipt, which may still be the first.
        let ended = self.jobs.get(&key).map(|job| &job.offered);
        let parts =
            order.spans.iter().flat_map(|span| span.partitions().map(|partition| (partition, span.attempt)));
        let heard = parts.filter(|part| ended.is_none_or(|ended| !ended.contains_key(part)));
        let stopped = Stopped { job: order.job, version: order.version, spans: spans(heard) };
        out.push(Effect::Send { to: from, message: Direct::Stopped(stopped) });
    }

    /// Executions of a job within a span's partitions, of any attempt.
    fn parts_in(&self, key: JobKey, span: &Span, is: impl Fn(&Stage) -> bool) -> Vec<Part> {
        let Some(job) = self.jobs.get(&key) else { return Vec::new() };
        let range = job.executions.range((span.first, 0)..(span.end(), 0));
        range.filter(|(_, execution)| is(&execution.stage)).map(|(part, _)| *part).collect()
    }
}

/// Whether these bytes are the ones that a SHA-256 CID names.
fn is_content(cid: &::job::Cid, bytes: &Bytes) -> bool {
    /// The multihash code of SHA-256.
    const SHA2_256: u64 = 0x12;
    cid.hash().code() == SHA2_256 && cid.hash().digest() == Sha256::digest(&bytes[..]).as_slice()
}
