//! The worker machine: bids on what this node can and may run, runs what it is awarded, keeps its receipts.
//!
//! Invariants: the resources of all executions that were started and have not ended never exceed the
//! capacity; nothing with an epoch or fence older than the newest seen is obeyed; whatever was promised
//! to an owner is in a record first.

mod admission;
mod award;
mod execution;
mod job;
mod lease;
mod market;
mod receipt;
mod reconcile;
mod restore;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::job::{ExecutionKey, JobId, PeerId, Resources, Time};

use crate::bug::Bug;
use crate::message::{Direct, Phase, Stamp};
use crate::rng::Rng;
use crate::timers::Timers;
pub use types::{
    Counters, Effect, End, Identity, Input, Load, Local, Policy, Settings, SpecRef, Start, Submitter, Verdict,
};

/// A job version.
type JobKey = (JobId, u32);

/// A partition and an attempt of it.
type Part = (u32, u32);

/// What the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The execution's timeout.
    Deadline(ExecutionKey),
    /// The next renewal to an owner.
    Renew(PeerId),
    /// Phases that changed are worth an early renewal.
    Report(PeerId),
    /// The end of what an owner leased.
    Lease(PeerId),
    /// An owner was away for as long as its executions may go on without it.
    Orphan(PeerId),
    /// The next try to reach an owner.
    Dial(PeerId),
    /// Receipts that an owner has not answered are offered again.
    Offer(PeerId),
    /// Soft holds end.
    Hold,
    /// Remembered announcements end.
    Remembered,
    /// Fences that no award in flight can need any more are forgotten.
    Fences,
    /// Receipts and results end.
    Retention,
}

/// The worker machine.
pub struct Worker {
    settings: Settings,
    identity: Identity,
    /// Tells this start from others in stamps.
    start: u64,
    rng: Rng,
    counters: Counters,
    leaving: bool,
    peers: BTreeSet<PeerId>,
    market: market::Market,
    holds: Vec<admission::Hold>,
    owners: BTreeMap<PeerId, lease::Owner>,
    jobs: BTreeMap<JobKey, job::Job>,
    fences: BTreeMap<JobKey, award::Fences>,
    queue: BTreeSet<execution::Queued>,
    used: Resources,
    running: u32,
    offers: BTreeMap<u64, receipt::Offer>,
    /// Bytes of memory in results that only the offers carry.
    carried: usize,
    kept: BTreeMap<u64, receipt::Kept>,
    /// Bytes of results that stay here because their jobs say so.
    kept_bytes: u64,
    timers: Timers<Timer>,
    /// Numbers queue entries and records.
    next_number: u64,
    /// Jobs with receipts to be sealed when the batch ends.
    ended: BTreeSet<JobKey>,
    /// Jobs whose record of started executions changed.
    marked: BTreeSet<JobKey>,
    /// Owners that are told what was lost or given back when the batch ends.
    reports: BTreeSet<PeerId>,
    /// Capacity became free: remembered jobs may be bid on.
    freed: bool,
}

impl Worker {
    /// Applies one input and appends what the shell must do about it, in order.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Announced { id, relay, class, bytes } => {
                self.on_announced(now, id, relay, class, &bytes, out)
            }
            Input::Message { from, message } => self.on_message(now, from, message, out),
            Input::Connected(peer) => self.on_connected(now, peer, out),
            Input::Disconnected(peer) => self.on_disconnected(now, peer),
            Input::Joined => self.pull(now, out),
            Input::Phase { execution, phase, message, logged } => {
                self.on_phase(now, execution, phase, message, logged);
            }
            Input::Ended { execution, end } => self.on_ended(now, execution, *end, out),
            Input::Leaving => self.leaving = true,
            Input::Tick => self.on_tick(now, out),
        }
        debug_assert!(self.overcommits() || self.used.fits(&self.settings.capacity));
    }

    /// Ends a batch of inputs: starts what fits, and what was gathered goes out in few messages.
    pub fn settle(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.start_ready(now, out);
        if std::mem::take(&mut self.freed) {
            self.bid_on_remembered(now, out);
        }
        self.mark_started(out);
        self.offer_ended(now, out);
        self.report_changes(now, out);
    }

    /// When [`Input::Tick`] is next due, or `None` while nothing waits for time.
    pub fn next_wakeup(&self) -> Option<Time> {
        self.timers.next()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What it is doing.
    pub fn load(&self) -> Load {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        Load {
            used: self.used,
            running: self.running,
            queued: count(self.queue.len()),
            offered: count(self.offers.values().map(receipt::Offer::left).sum()),
        }
    }

    /// Executions that are accepted and not dealt with by their owner, and where they are.
    pub fn executions(&self) -> impl Iterator<Item = (ExecutionKey, Phase)> + '_ {
        self.jobs
            .iter()
            .flat_map(|(key, job)| job.phases().map(|(part, phase)| (execution_key(*key, part), phase)))
    }

    /// Executions whose results this node may have to give: those that are accepted and not dealt with by their owner,
    /// and those whose job says that their results stay here.
    pub fn holds(&self) -> impl Iterator<Item = ExecutionKey> + '_ {
        let kept = self.kept.values().flat_map(receipt::Kept::executions);
        self.executions().map(|(execution, _)| execution).chain(kept)
    }

    /// Who owns a job, as far as this worker has heard: from what it runs or ran lately, its receipts, and
    /// announcements that it remembers.
    pub fn owner_of(&self, job: JobId) -> Option<PeerId> {
        let here = self.jobs.range((job, 0)..=(job, u32::MAX)).next().map(|(_, job)| job.owner);
        here.or_else(|| self.market.owner_of(job))
    }

    /// The jobs of which [`Worker::owner_of`] knows the owner, and that owner; some more than once.
    pub fn known_jobs(&self) -> impl Iterator<Item = (JobId, PeerId)> + '_ {
        self.jobs.iter().map(|((id, _), job)| (*id, job.owner)).chain(self.market.known_jobs())
    }

    fn on_message(&mut self, now: Time, from: PeerId, message: Direct, out: &mut Vec<Effect>) {
        match message {
            Direct::Ask(ask) => self.on_ask(now, from, *ask, out),
            Direct::Closed(closed) => self.on_closed(now, from, (closed.job, closed.version)),
            Direct::Award(award) => self.on_award(now, from, *award, out),
            Direct::Recall(recall) => self.on_recall(now, from, recall, out),
            Direct::RenewAck(ack) => self.on_renew_ack(now, from, ack.stamp, out),
            Direct::Committed(committed) => self.on_committed(now, from, committed, out),
            Direct::Stop(stop) => self.on_stop(now, from, &stop, out),
            Direct::Reconcile(reconcile) => self.on_reconcile(now, from, reconcile, out),
            Direct::Pull(pull) => self.on_pull(now, from, pull.most, out),
            Direct::Remembered(remembered) => self.on_remembered(now, from, remembered, out),
            _ => {}
        }
    }

    fn on_tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Deadline(execution) => self.on_deadline(execution, out),
                Timer::Renew(owner) => self.renew(now, owner, out),
                Timer::Report(owner) => self.on_report_due(now, owner, out),
                Timer::Lease(owner) => self.on_lease_end(now, owner, out),
                Timer::Orphan(owner) => self.on_orphan_cap(owner, out),
                Timer::Dial(owner) => self.dial(now, owner, out),
                Timer::Offer(owner) => self.offer_again(now, owner, out),
                Timer::Hold => self.expire_holds(now),
                Timer::Remembered => self.expire_remembered(now),
                Timer::Fences => self.expire_fences(now),
                Timer::Retention => self.expire_offers(now, out),
            }
        }
    }

    /// What this machine stamps its messages with.
    fn stamp(&self, now: Time) -> Stamp {
        Stamp { start: self.start, at_ms: now.boot / 1_000_000 }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn overcommits(&self) -> bool {
        self.has_bug(|bug| bug == Bug::Overcommit)
    }

    #[cfg(any(test, feature = "planted-bugs"))]
    fn has_bug(&self, is: impl Fn(Bug) -> bool) -> bool {
        self.settings.bug.is_some_and(is)
    }

    #[cfg(not(any(test, feature = "planted-bugs")))]
    fn has_bug(&self, _is: impl Fn(Bug) -> bool) -> bool {
        false
    }
}

fn execution_key((job, version): JobKey, (partition, attempt): Part) -> ExecutionKey {
    ExecutionKey { job, version, partition, attempt }
}

fn job_key(execution: &ExecutionKey) -> JobKey {
    (execution.job, execution.version)
}

fn part(execution: &ExecutionKey) -> Part {
    (execution.partition, execution.attempt)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
