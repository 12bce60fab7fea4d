//! Receipts, and what follows from them: commits, failures, the end of the job.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::job::state::{ExecutionState, JobState};
use ::job::{PeerId, Time};

use super::core::{Core, JobKey, Timer};
use super::job::{Batch, Job, Round};
use super::ledger::Part;
use super::record::{Applied, Fate, FateRecord, ReceiptsRecord, StateRecord, Topic};
use super::{Effect, Held, Hold, HoldItem, Owner};
use crate::bug::Bug;
use crate::message::{Block, FaultClass, Outcome, Receipt, ReceiptGroup, Receipts, SealedGroup, Span, cut};
use crate::range::spans;
use crate::record::{Kind, Record};

impl Owner {
    pub(super) fn on_receipts(&mut self, now: Time, from: PeerId, receipts: Receipts, out: &mut Vec<Effect>) {
        self.heard(now, from, Some(receipts.stamp), out);
        let blocks: Arc<[Block]> = receipts.blocks.into();
        let mut verified = None;
        for sealed in receipts.groups {
            match self.open_group(from, &sealed, &mut verified) {
                Some(group) => self.take_group(now, from, sealed, group, &blocks, out),
                None => {
                    self.core.counters.bad_receipts += 1;
                    out.push(Effect::Penalise {
                        peer: from,
                        why: "receipt that is malformed or not its own",
                    });
                }
            }
        }
    }

    /// Reads a group and makes sure that its worker signed it. Groups of one message share a signature.
    fn open_group(
        &self,
        from: PeerId,
        sealed: &SealedGroup,
        verified: &mut Option<([u8; 32], [u8; 64])>,
    ) -> Option<ReceiptGroup> {
        let root = sealed.root()?;
        let known = *verified == Some((root, sealed.signature));
        if !known && from != self.core.me() && !sealed.is_by(from, self.core.identity.crypto.as_ref()) {
            return None;
        }
        *verified = Some((root, sealed.signature));
        sealed.read().ok().filter(|group| group.worker == from)
    }

    fn take_group(
        &mut self,
        now: Time,
        from: PeerId,
        sealed: SealedGroup,
        group: ReceiptGroup,
        blocks: &Arc<[Block]>,
        out: &mut Vec<Effect>,
    ) {
        let key = (group.job, group.version);
        let Owner { core, jobs } = self;
        match jobs.get_mut(&key) {
            Some(job) => {
                job.take_group(core, now, from, sealed, group, blocks, out);
                core.dirty.insert(key);
            }
            // It ended and settled, or never was ours: there is nothing to wait for.
            None => group.receipts.iter().for_each(|one| core.ack(from, key, (one.partition, one.attempt))),
        }
    }

    pub(super) fn on_held(&mut self, now: Time, key: JobKey, results: Vec<Held>, out: &mut Vec<Effect>) {
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else { return };
        job.take_held(core, now, results, out);
        core.dirty.insert(key);
    }
}

impl Job {
    #[expect(clippy::too_many_arguments, reason = "one message's parts, in one place")]
    fn take_group(
        &mut self,
        core: &mut Core,
        now: Time,
        from: PeerId,
        sealed: SealedGroup,
        group: ReceiptGroup,
        blocks: &Arc<[Block]>,
        out: &mut Vec<Effect>,
    ) {
        let (mut apply, mut hold, mut items) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for (index, receipt) in (0u32..).zip(&group.receipts) {
            let part = (receipt.partition, receipt.attempt);
            if !seen.insert(part) {
                continue;
            }
            match self.sort_receipt(core, from, &group, receipt) {
                Sorted::Apply => apply.push(index),
                Sorted::Hold => drop(hold.insert(index)),
                Sorted::Waits => {}
                Sorted::Known => core.ack(from, self.key(), part),
                Sorted::Bad => {
                    core.ack(from, self.key(), part);
                    core.counters.bad_receipts += 1;
                    out.push(Effect::Penalise { peer: from, why: "receipt for what it was not awarded" });
                }
            }
            // The results of failures are worth having too; nothing waits for them.
            let wanted =
                hold.contains(&index) || apply.last() == Some(&index) && !receipt.outcome.is_success();
            if let Some(result) = receipt.result.clone().filter(|_| wanted && !self.ledger.job.keep_on_worker)
            {
                items.push((index, HoldItem { partition: part.0, attempt: part.1, result }));
            }
        }
        if apply.is_empty() && hold.is_empty() {
            return;
        }
        let number = self.ledger.number();
        let record = ReceiptsRecord {
            group: sealed,
            applied: Vec::new(),
            raced: Vec::new(),
            last: Vec::new(),
            ran: Vec::new(),
            held: Vec::new(),
        };
        let left = items.iter().map(|(index, _)| *index).collect();
        self.batches.insert(number, Batch { record, group, left });
        for (index, item) in &items {
            self.holding.insert((item.partition, item.attempt), (number, *index));
        }
        if !items.is_empty() {
            let items = items.into_iter().map(|(_, item)| item).collect();
            let (job, version) = self.key();
            let (disk, blocks) = (self.ledger.job.facts.resources.disk, blocks.clone());
            out.push(Effect::Hold(Box::new(Hold { job, version, from, items, disk, blocks })));
        }
        self.apply(core, now, number, &apply, out);
    }

    fn sort_receipt(&self, core: &Core, from: PeerId, group: &ReceiptGroup, receipt: &Receipt) -> Sorted {
        let part = (receipt.partition, receipt.attempt);
        let Some(execution) = self.ledger.executions.get(&part) else { return Sorted::Bad };
        let its_own = self.ledger.worker_of(execution) == from || core.has_bug(Bug::BelieveAnyone);
        if !its_own || execution.epoch != receipt.epoch || group.spec != self.ledger.job.spec_cid {
            return Sorted::Bad;
        }
        let done = self.ended() || self.ledger.is_done(part.0);
        if self.holding.contains_key(&part) {
            return Sorted::Waits;
        }
        if execution.state.is_terminal() {
            return Sorted::Known;
        }
        let needs_copy = receipt.outcome.is_success()
            && receipt.result.is_some()
            && !self.ledger.job.keep_on_worker
            && !core.has_bug(Bug::CommitBeforeHeld);
        if done && !core.has_bug(Bug::DoubleCommit) || !needs_copy { Sorted::Apply } else { Sorted::Hold }
    }

    fn take_held(&mut self, core: &mut Core, now: Time, results: Vec<Held>, out: &mut Vec<Effect>) {
        let mut ready: Vec<(u64, u32)> = Vec::new();
        let mut gone: Vec<(Part, String)> = Vec::new();
        for held in results {
            let part = (held.partition, held.attempt);
            let Some((number, index)) = self.holding.remove(&part) else { continue };
            let Some(batch) = self.batches.get_mut(&number) else { continue };
            batch.left.remove(&index);
            match held.result {
                Ok(()) => ready.push((number, index)),
                Err(why) => gone.push((part, why)),
            }
        }
        ready.sort_unstable();
        for numbers in ready.chunk_by(|one, other| one.0 == other.0) {
            let Some(&(number, _)) = numbers.first() else { continue };
            let indices: Vec<u32> = numbers.iter().map(|(_, index)| *index).collect();
            self.apply(core, now, number, &indices, out);
        }
        for (part, why) in gone {
            self.lost_result(core, now, part, &why, out);
        }
        self.batches.retain(|_, batch| !batch.left.is_empty());
    }

    /// A result could not be copied: its worker is as good as lost.
    fn lost_result(&mut self, core: &mut Core, now: Time, part: Part, why: &str, out: &mut Vec<Effect>) {
        let Some(execution) = self.ledger.executions.get(&part) else { return };
        if execution.state.is_terminal() {
            return;
        }
        let worker = self.ledger.worker_of(execution);
        let message = cut(&format!("its result could not be copied: {why}"));
        // Its receipt is not acknowledged: the worker offers it again when it is back, and it may still win.
        self.lose(core, now, worker, BTreeSet::from([part]), Fate::GivenUp, &message, out);
    }

    /// A result is not waited for any more.
    pub(super) fn let_go(&mut self, part: Part) {
        let Some((number, index)) = self.holding.remove(&part) else { return };
        let Some(batch) = self.batches.get_mut(&number) else { return };
        batch.left.remove(&index);
        if batch.left.is_empty() {
            self.batches.remove(&number);
        }
    }

    /// Applies receipts of a batch: one record, then everything that follows.
    fn apply(&mut self, core: &mut Core, now: Time, number: u64, indices: &[u32], out: &mut Vec<Effect>) {
        if indices.is_empty() {
            return;
        }
        let Some(mut batch) = self.batches.remove(&number) else { return };
        let mut ended: Vec<(PeerId, Part, Outcome, bool)> = Vec::new();
        let mut fresh = Vec::new();
        for &index in indices {
            let Some(receipt) = batch.group.receipts.get(index as usize) else { continue };
            let part = (receipt.partition, receipt.attempt);
            let Some(execution) = self.ledger.executions.get(&part) else { continue };
            if execution.state.is_terminal() {
                // A failure whose result is here now.
                if execution.state == ExecutionState::Failed {
                    batch.record.held.push(index);
                    self.mark_held(part);
                }
                continue;
            }
            let beaten = self.ended() || self.ledger.is_done(part.0);
            let taken = ended
                .iter()
                .any(|(_, other, outcome, raced)| other.0 == part.0 && outcome.is_success() && !raced);
            let raced = (beaten || taken) && !core.has_bug(Bug::DoubleCommit);
            if raced {
                batch.record.raced.push(index);
            }
            if execution.running_seq > 0 {
                batch.record.ran.push((index, execution.running_seq));
            }
            ended.push((batch.group.worker, part, receipt.outcome.clone(), raced));
            fresh.push(index);
        }
        let last: Vec<u32> = fresh
            .iter()
            .zip(&ended)
            .filter(|(_, (worker, part, outcome, raced))| {
                !raced && !outcome.is_success() && self.note_failure(core, *worker, *part, outcome)
            })
            .map(|(index, _)| *index)
            .collect();
        batch.record.last.extend(last);
        for run in fresh.chunk_by(|one, other| *one + 1 == *other) {
            let (Some(&first), count) = (run.first(), u32::try_from(run.len()).unwrap_or(u32::MAX)) else {
                continue;
            };
            let applied =
                Applied { first, count, time: now.wall, seq: self.ledger.seqs(2 * u64::from(count)) };
            batch.record.applied.push(applied);
            self.ledger.apply_receipts(&batch.record, &batch.group, applied);
        }
        out.push(Effect::Persist(Record::new(self.ledger.key(Kind::Receipts, number), &batch.record)));
        let worker = batch.group.worker;
        if !batch.left.is_empty() {
            self.batches.insert(number, batch);
        }
        self.follow(core, now, worker, ended, out);
    }

    /// What follows from executions that ended with a receipt.
    fn follow(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        ended: Vec<(PeerId, Part, Outcome, bool)>,
        out: &mut Vec<Effect>,
    ) {
        self.changed = true;
        self.fruitless = 0;
        let left = self.leave(core, now, worker, ended.iter().map(|(_, part, _, _)| *part), out);
        if left > 0
            && let Some(share) = self.shares.get_mut(&worker)
        {
            share.note_ends(now, left);
            share.slots = share.slots.max(1);
        }
        self.hungry.insert(worker);
        let mut losers: Vec<Part> = Vec::new();
        for (worker, part, outcome, raced) in ended {
            core.ack(worker, self.key(), part);
            if raced {
                continue;
            }
            if outcome.is_success() {
                core.counters.committed += 1;
                self.open.remove(part.0, part.0 + 1);
                if let Some(known) = core.peers.get_mut(&worker) {
                    known.penalty_ms /= 2;
                }
            } else {
                core.counters.failed += 1;
                if !self.ledger.is_done(part.0) {
                    self.reopen(core, part.0);
                    self.fresh_open = true;
                    continue;
                }
                self.open.remove(part.0, part.0 + 1);
            }
            let others = self.ledger.attempts(part.0).filter(|(_, one)| !one.state.is_terminal());
            losers.extend(others.map(|(part, _)| part));
        }
        if core.has_bug(Bug::DoubleCommit) {
            losers.clear();
        }
        self.cancel(core, now, losers, "another attempt ended first", out);
        self.check_end(core, now, out);
    }

    fn mark_held(&mut self, part: Part) {
        if let Some(execution) = self.ledger.executions.get_mut(&part) {
            execution.held = true;
            self.changed = true;
        }
    }

    /// Counts a failure. Whether it is the partition's last.
    fn note_failure(&mut self, core: &Core, worker: PeerId, part: Part, outcome: &Outcome) -> bool {
        if let Outcome::Fault(FaultClass::Job, message) = outcome {
            self.doom = Some(message.clone());
        }
        let never = self.never();
        let most = self.ledger.job.attempts;
        let trouble = self.trouble.entry(part.0).or_default();
        trouble.failures += 1;
        trouble.swept = 0;
        let same = trouble.failed_on.iter().any(|(other, before)| *other != worker && alike(before, outcome));
        trouble.failed_on.insert(worker, outcome.clone());
        let class = match outcome {
            Outcome::Exit(_) => None,
            Outcome::Fault(class, _) => Some(*class),
        };
        never && !core.has_bug(Bug::NeverRetried)
            || same
            || trouble.failures >= most
            || matches!(class, Some(FaultClass::Job | FaultClass::Timeout))
    }

    /// Executions end without a receipt, all for the same reason.
    pub(super) fn fate(
        &mut self,
        now: Time,
        parts: &BTreeSet<Part>,
        fate: Fate,
        message: &str,
        last: bool,
        out: &mut Vec<Effect>,
    ) {
        if parts.is_empty() {
            return;
        }
        self.record_fate(now, spans(parts.iter().copied()), fate, message, last, out);
    }

    /// A partition fails for good although none of its attempts ends now.
    pub(super) fn fate_of_partition(&mut self, now: Time, partition: u32, fate: Fate, out: &mut Vec<Effect>) {
        let attempt = self.ledger.next_attempt(partition).saturating_sub(1).max(1);
        self.record_fate(now, vec![Span::one(partition, attempt)], fate, "", true, out);
    }

    fn record_fate(
        &mut self,
        now: Time,
        spans: Vec<Span>,
        fate: Fate,
        message: &str,
        last: bool,
        out: &mut Vec<Effect>,
    ) {
        let count = spans.iter().map(|span| u64::from(span.count)).sum();
        let record = FateRecord {
            spans,
            fate,
            message: cut(message),
            time: now.wall,
            seq: self.ledger.seqs(count),
            last,
        };
        let number = self.ledger.number();
        self.ledger.apply_fate(&record);
        self.changed = true;
        out.push(Effect::Persist(Record::new(self.ledger.key(Kind::Fate, number), &record)));
    }

    /// Executions that nobody wants any more: they end as cancelled, and their workers are told.
    pub(super) fn cancel(
        &mut self,
        core: &mut Core,
        now: Time,
        parts: Vec<Part>,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        let mut by_worker: std::collections::BTreeMap<PeerId, BTreeSet<Part>> =
            std::collections::BTreeMap::new();
        for part in parts {
            if let Some(execution) = self.ledger.executions.get(&part).filter(|one| !one.state.is_terminal())
            {
                by_worker.entry(self.ledger.worker_of(execution)).or_default().insert(part);
            }
        }
        let all: BTreeSet<Part> = by_worker.values().flatten().copied().collect();
        self.fate(now, &all, Fate::Cancelled, reason, false, out);
        for (worker, parts) in by_worker {
            self.leave(core, now, worker, parts.iter().copied(), out);
            self.stop(core, now, worker, parts, reason, out);
        }
    }

    /// Ends the job when nothing more can come of it.
    pub(super) fn check_end(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        if self.ended() {
            return;
        }
        if let Some(message) = self.doom.take() {
            return self.finish(
                core,
                now,
                JobState::Failed,
                Topic::StateUpdate,
                &message,
                "job failure",
                out,
            );
        }
        let (committed, failed) = self.ledger.counts();
        let count = self.ledger.job.count;
        if committed.saturating_add(failed) < count {
            return;
        }
        if failed == 0 {
            let beaten = "another attempt was committed first";
            return self.finish(core, now, JobState::Completed, Topic::StateUpdate, "", beaten, out);
        }
        let first = self.ledger.failed.first().unwrap_or(0);
        let (_, why) = self.ledger.failure_of(first).unwrap_or_default();
        let message = match count {
            1 => why,
            _ => format!("{failed} of {count} partitions failed; partition {first}: {why}"),
        };
        self.finish(core, now, JobState::Failed, Topic::StateUpdate, &message, "job failure", out);
    }

    /// Ends the job; what still runs is cancelled.
    #[expect(clippy::too_many_arguments, reason = "the end of a job, in one place")]
    pub(super) fn finish(
        &mut self,
        core: &mut Core,
        now: Time,
        state: JobState,
        topic: Topic,
        message: &str,
        cancelled_for: &str,
        out: &mut Vec<Effect>,
    ) {
        let live = self.ledger.executions.iter().filter(|(_, one)| !one.state.is_terminal());
        let live: Vec<Part> = live.map(|(part, _)| *part).collect();
        self.cancel(core, now, live, cancelled_for, out);
        self.open = crate::range::RangeSet::default();
        self.bids.clear();
        self.round = Round::Idle;
        self.waiting_since = None;
        for (award, _) in std::mem::take(&mut self.unanswered) {
            core.calm(super::core::Patience::Reply(self.key(), award));
        }
        for timer in [Timer::Round, Timer::Queued, Timer::QueueLimit, Timer::Total] {
            core.timers.clear(timer(self.key()));
        }
        let line = match topic {
            Topic::StateUpdate => state.as_str().to_owned(),
            _ => cut(message),
        };
        self.line(now, topic, &line, Some(state), &cut(message), out);
    }

    /// Writes a line of the job's own history, and its state with it.
    pub(super) fn line(
        &mut self,
        now: Time,
        topic: Topic,
        message: &str,
        state: Option<JobState>,
        state_message: &str,
        out: &mut Vec<Effect>,
    ) {
        let (committed, failed) = self.ledger.counts();
        let mut details = Vec::new();
        if let Some(state) = state
            && topic == Topic::StateUpdate
        {
            details.push(("NewState".to_owned(), state.as_str().to_owned()));
        }
        if topic == Topic::Scheduling && !state_message.is_empty() {
            details.push(("Reason".to_owned(), state_message.to_owned()));
        }
        let line = StateRecord {
            seq: self.ledger.seqs(1),
            time: now.wall,
            topic,
            message: message.to_owned(),
            state,
            state_message: state_message.to_owned(),
            details,
            committed,
            failed,
        };
        let number = self.ledger.number();
        out.push(Effect::Persist(Record::new(self.ledger.key(Kind::State, number), &line)));
        self.ledger.apply_line(line);
        self.changed = true;
    }
}

/// What to do with a receipt.
enum Sorted {
    /// It ends its execution now.
    Apply,
    /// Its result must be here first.
    Hold,
    /// Its result is being copied already.
    Waits,
    /// It was dealt with before.
    Known,
    /// It is for an execution that its worker was not awarded.
    Bad,
}

/// Whether two failures are the same: then the program is to blame.
fn alike(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Outcome::Exit(one), Outcome::Exit(other)) => one == other,
        (Outcome::Fault(FaultClass::User, _), Outcome::Fault(FaultClass::User, _)) => true,
        _ => false,
    }
}
