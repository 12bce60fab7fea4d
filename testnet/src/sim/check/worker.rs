//! What workers obey, start and run.

use std::collections::BTreeSet;

use gossip::message::{AwardOrder, Direct, JobLive, Receipts, Reply, Stamp, StopOrder};
use gossip::worker::Input;
use job::{ExecutionKey, Fence, JobId, PeerId};

use super::owner::execution_key;
use super::{Check, Due, Heard, Order};
use crate::sim::clock::{MILLI, SECOND};
use crate::sim::engine::Stage;
use crate::sim::plan::Trouble;
use crate::sim::words;
use crate::sim::world::{Event, World};

/// Nothing of a stopped job is left this long after its worker heard; the clock may be off by five percent.
pub(crate) const STOPPED_WITHIN: u64 = 10 * SECOND + 600 * MILLI;
/// A program may use its worker for so long past its timeout: until the engine has ended it.
const OVERRUN: u64 = 10 * SECOND;
/// A `Retry: never` program may outlive its lease by so much.
const LEASE_GRACE: u64 = 6 * SECOND;

impl Check {
    /// A new worker machine: it knows what is durable.
    ///
    /// `accepted` are the awards in its record: their answers may be given again, by whatever start.
    pub fn worker_restored(&mut self, node: usize, accepted: &BTreeSet<(JobId, u32, u64)>) {
        let ghost = &mut self.workers[node];
        for ((_, job, version, award), order) in &mut ghost.orders {
            order.accepted |= accepted.contains(&(*job, *version, *award));
        }
        ghost.instance += 1;
        ghost.heard.clear();
        ghost.pending_epochs.clone_from(&ghost.epochs);
    }

    /// A worker's transaction is durable: it has heard what it was told. Gives back what must be true later.
    pub fn worker_committed(&mut self, node: usize) -> Vec<Due> {
        let ghost = &mut self.workers[node];
        ghost.epochs.clone_from(&ghost.pending_epochs);
        let mut dues = Vec::new();
        for heard in ghost.heard.drain(..) {
            match heard {
                Heard::Stop(due) => dues.push(due),
                Heard::Commit { job, version, partition, attempt } => {
                    let newest = ghost.told.entry((job, version, partition)).or_default();
                    *newest = attempt.max(*newest);
                }
            }
        }
        dues
    }
}

impl World {
    /// A worker machine is about to handle an input.
    pub fn check_worker_input(&mut self, node: usize, input: &Input) {
        match input {
            Input::Message { from, message } => self.check_heard(node, *from, message),
            Input::Ended { execution, .. } => self.nodes[node].worker.reported.push(*execution),
            _ => {}
        }
    }

    fn check_heard(&mut self, node: usize, from: PeerId, message: &Direct) {
        if self.is_rogue_peer(from) || self.is_rogue(node) {
            return; // nothing that it says need come true, and nothing binds it
        }
        let ghost = &mut self.check.workers[node];
        match message {
            Direct::Award(award) => {
                let Ok(order) = award.order.read::<AwardOrder>() else { return };
                let newest = ghost.pending_epochs.entry(from).or_default();
                let old_epoch = order.epoch < *newest;
                *newest = order.epoch.max(*newest);
                let old_fence = order.spans.iter().any(|span| {
                    let fence = Fence::new(order.epoch, span.attempt).0;
                    span.partitions().any(|partition| {
                        ghost
                            .fences
                            .get(&(order.job, order.version, partition))
                            .is_some_and(|newest| fence < *newest)
                    })
                });
                let known = Order {
                    epoch: order.epoch,
                    stale: old_epoch || old_fence,
                    accepted: false,
                    answers: (order.answers.start, order.answers.at_ms),
                    lease_ms: order.lease_ms,
                };
                ghost.orders.entry((from, order.job, order.version, order.id)).or_insert(known);
            }
            Direct::Reconcile(question) => {
                let newest = ghost.pending_epochs.entry(from).or_default();
                *newest = question.epoch.max(*newest);
            }
            Direct::Committed(committed) => {
                for told in &committed.jobs {
                    for span in &told.spans {
                        for partition in span.partitions() {
                            let (job, version, attempt) = (told.job, told.version, span.attempt);
                            ghost.heard.push(Heard::Commit { job, version, partition, attempt });
                        }
                    }
                }
            }
            Direct::RenewAck(ack) => self.check_lease_renewed(node, from, ack.stamp),
            Direct::Stop(stop) => {
                let Ok(order) = stop.order.read::<StopOrder>() else { return };
                for span in &order.spans {
                    for partition in span.partitions() {
                        let (job, version, attempt) = (order.job, order.version, span.attempt);
                        let due = Due::Stopped { node, job, version, partition, attempt };
                        ghost.heard.push(Heard::Stop(due));
                    }
                }
            }
            _ => {}
        }
    }

    fn check_lease_renewed(&mut self, node: usize, owner: PeerId, stamp: Stamp) {
        let ghost = &mut self.check.workers[node];
        if ghost.starts.get(&stamp.start) != Some(&ghost.instance) {
            return;
        }
        let until = ghost.leases.entry(owner).or_default();
        *until = (*until).max(stamp.at_ms);
    }

    /// A worker machine answers, bids or renews.
    pub fn check_worker_sends(&mut self, node: usize, to: PeerId, message: &Direct) {
        if self.is_rogue_peer(to) || self.is_rogue(node) {
            return;
        }
        let stamp = match message {
            Direct::Bid(bid) => Some(bid.stamp),
            Direct::Reply(reply) => Some(reply.stamp),
            Direct::Recalled(recalled) => Some(recalled.stamp),
            Direct::Renew(renew) => Some(renew.stamp),
            Direct::Receipts(receipts) => Some(receipts.stamp),
            Direct::Live(live) => Some(live.stamp),
            _ => None,
        };
        if let Some(stamp) = stamp {
            let ghost = &mut self.check.workers[node];
            let instance = *ghost.starts.entry(stamp.start).or_insert(ghost.instance);
            if instance != ghost.instance {
                self.check.broken("each start of a worker has its own stamps", format!("n{node}: {stamp:?}"));
            }
        }
        match message {
            Direct::Receipts(receipts) => self.note_receipts(node, receipts),
            Direct::Renew(renew) => self.check_lost(node, &renew.jobs),
            Direct::Live(live) => self.check_lost(node, &live.jobs),
            Direct::Reply(reply) => self.check_accepted(node, to, reply),
            _ => {}
        }
    }

    fn note_receipts(&mut self, node: usize, receipts: &Receipts) {
        for group in receipts.groups.iter().filter_map(|group| group.read().ok()) {
            for receipt in &group.receipts {
                let key = execution_key(group.job, group.version, receipt.partition, receipt.attempt);
                self.check.workers[node].receipts.insert(key);
            }
        }
    }

    /// What had a receipt is never called lost: receipts are durable before they are sent.
    fn check_lost(&mut self, node: usize, jobs: &[JobLive]) {
        for job in jobs {
            for span in &job.lost {
                for partition in span.partitions() {
                    let key = execution_key(job.job, job.version, partition, span.attempt);
                    if self.check.workers[node].receipts.contains(&key) {
                        let found = format!("n{node} calls {} lost", words::key(&key));
                        return self.check.broken("a receipt that was sent is not lost", found);
                    }
                }
            }
        }
    }

    /// An award is accepted only when it is current.
    fn check_accepted(&mut self, node: usize, to: PeerId, reply: &Reply) {
        if reply.accepted.is_empty() {
            return;
        }
        let now_ms = self.nodes[node].clock.read(self.now).boot / MILLI;
        let ghost = &mut self.check.workers[node];
        let Some(order) = ghost.orders.get_mut(&(to, reply.job, reply.version, reply.award)) else {
            let found = format!("n{node} accepts award {} that never came", reply.award);
            return self.check.broken("only awards are accepted", found);
        };
        if std::mem::replace(&mut order.accepted, true) {
            return;
        }
        let order = order.clone();
        for span in &reply.accepted {
            let fence = Fence::new(order.epoch, span.attempt).0;
            for partition in span.partitions() {
                let newest = ghost.fences.entry((reply.job, reply.version, partition)).or_default();
                *newest = fence.max(*newest);
            }
        }
        let leases = ghost.leases.entry(to).or_default();
        *leases = (*leases).max(order.answers.1);
        let of_this_start = ghost.starts.get(&order.answers.0) == Some(&ghost.instance);
        let what =
            format!("n{node} accepts award {} of {} v{}", reply.award, reply.job.short(), reply.version);
        if order.stale {
            self.check.broken("no command older than the newest fence or epoch is obeyed", what);
        } else if !of_this_start {
            self.check.broken("an award answers a message of this start", what);
        } else if now_ms > order.answers.1 + order.lease_ms + 1 {
            let late = now_ms - order.answers.1;
            self.check.broken(
                "an award answers a message no older than a lease",
                format!("{what}, {late} ms late"),
            );
        }
    }

    /// A program itself begins to run.
    pub fn program_runs(&mut self, node: usize, key: ExecutionKey) {
        if self.is_rogue(node) {
            return;
        }
        let Some(index) = self.clients.job_of(key.job) else { return };
        let plan = self.plan.jobs[index].clone();
        let known = self.check.versions.entry((key.job, key.version)).or_default();
        let ran = known.ran.entry(key.partition).or_default();
        ran.push((node, key.attempt));
        self.check.seen.starts += 1;
        if plan.retry_never && ran.len() > 1 {
            let found = format!("{} ran as (node, attempt) {ran:?}", words::key(&key));
            return self.check.broken("a Retry: never partition is started once", found);
        }
        let told = self.check.workers[node].told.get(&(key.job, key.version, key.partition));
        if told.is_some_and(|told| key.attempt <= *told) {
            let found = format!("n{node} starts {}", words::key(&key));
            return self.check.broken("what a worker knows to be committed does not start", found);
        }
        if let Some(limit) = plan.run_timeout {
            let at = self.now + limit * 106 / 100 + OVERRUN;
            self.queue.push(at, Event::Due(Due::Overrun { node, key, since: self.now }));
        }
        if plan.retry_never {
            self.queue.push(self.now + SECOND, Event::Due(Due::Lease { node, key }));
        }
    }

    /// Clocks that are said to differ do.
    pub fn check_clocks(&mut self, node: usize, peer: PeerId, ahead_s: i64) {
        let Some(peer) = self.index_of(peer).filter(|peer| !self.is_rogue(*peer)) else { return };
        let wall = |node: usize| self.nodes[node].clock.read(self.now).wall / SECOND;
        let really = wall(peer) as i64 - wall(node) as i64;
        // A wall clock may have been set while the message was on its way.
        if really.abs() < 100
            && !self.plan.faults.iter().any(|fault| matches!(fault.what, Trouble::StepWall { .. }))
        {
            let found = format!("n{node} says that n{peer} is ahead by {ahead_s} s, not {really} s");
            self.check.broken("clocks that are said to differ do", found);
        }
    }

    /// All executions together fit into the worker.
    pub fn check_capacity(&mut self, node: usize) {
        let (used, cpu) = (self.nodes[node].engine.used(), self.nodes[node].cpu);
        if used > cpu {
            self.check.broken("capacity is never exceeded", format!("n{node} uses {used} of {cpu}"));
        }
    }

    /// After a batch: what the machine says is in use is at least what runs, and fits.
    pub fn check_worker(&mut self, node: usize) {
        self.check_capacity(node);
        let one = &self.nodes[node];
        let Some(machine) = one.worker.machine.as_ref() else { return };
        let (load, cpu) = (machine.load(), one.cpu);
        if load.used.cpu_milli > cpu {
            self.check.broken(
                "capacity is never exceeded",
                format!("n{node} reserves {} of {cpu}", load.used.cpu_milli),
            );
        }
    }

    /// Something must be true by now.
    pub fn on_due(&mut self, due: Due) {
        match due {
            Due::Stopped { node, job, version, partition, attempt } => {
                let one = &self.nodes[node];
                let live = one.engine.containers.iter().find(|(key, there)| {
                    (key.job, key.version, key.partition) == (job, version, partition)
                        && key.attempt <= attempt
                        && there.live()
                });
                let Some((key, _)) = live else { return };
                if one.gone() {
                    return;
                }
                if !one.answers() || self.now - one.awake_since < STOPPED_WITHIN {
                    return self.queue.push(self.now + STOPPED_WITHIN, Event::Due(due));
                }
                let found = format!("n{node} still has {}", words::key(key));
                self.check.broken("a stopped job leaves nothing running after 10 s", found);
            }
            Due::Overrun { node, key, since } => {
                let one = &self.nodes[node];
                let Some(there) = one.engine.containers.get(&key) else { return };
                let same = there.running_since == Some(since) && matches!(there.stage, Stage::Running);
                if same && one.answers() && self.now - one.awake_since > OVERRUN {
                    let found =
                        format!("n{node} runs {} since {} s", words::key(&key), (self.now - since) / SECOND);
                    self.check.broken("nothing runs past its timeout", found);
                }
            }
            Due::Lease { node, key } => self.check_lease(node, key),
            Due::Reason { owner, job, version } => self.check_reason(owner, job, version),
            Due::Lasting => self.check_lasting(),
        }
    }

    /// A `Retry: never` program does not outlive its lease.
    fn check_lease(&mut self, node: usize, key: ExecutionKey) {
        let one = &self.nodes[node];
        let running = one.engine.containers.get(&key).is_some_and(|there| there.stage == Stage::Running);
        if !running || one.down() {
            return;
        }
        let owner = self.check.versions.get(&(key.job, key.version)).map(|known| self.nodes[known.owner].id);
        let until = owner.and_then(|owner| self.check.workers[node].leases.get(&owner)).copied().unwrap_or(0);
        let end = until * MILLI + crate::sim::plan::LEASE + LEASE_GRACE;
        let now = one.clock.read(self.now).boot;
        if now > end && one.answers() && self.now - one.awake_since > LEASE_GRACE {
            let late = (now - end) / SECOND;
            let found = format!("n{node} runs {} {late} s after its lease", words::key(&key));
            return self.check.broken("a Retry: never program ends with its lease", found);
        }
        let again = self.now + end.saturating_sub(now).max(SECOND);
        self.queue.push(again, Event::Due(Due::Lease { node, key }));
    }
}
