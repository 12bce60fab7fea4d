//! Leases and suspicion: what is expected of workers, and what follows when they fall silent.

use std::collections::BTreeSet;

use ::job::state::ExecutionState;
use ::job::{PeerId, Time};

use super::core::{Core, JobKey, Patience, Suspicion};
use super::job::{Job, Trouble};
use super::ledger::Part;
use super::record::Fate;
use super::{Effect, Owner};
use crate::bug::Bug;
use crate::message::{Direct, JobLive, Phase, Renew, RenewAck, Stamp};

/// Longest that a job's own timeout may be overdrawn at a worker before the owner ends it: renewals are
/// a third of a lease apart, and the worker enforces the timeout itself.
const OVERDRAWN_MS: u64 = 60_000;

impl Owner {
    /// A worker said something: its leases run from here, and what it was suspected of is over.
    pub(super) fn heard(&mut self, now: Time, from: PeerId, stamp: Option<Stamp>, out: &mut Vec<Effect>) {
        let lease = self.core.settings.lease;
        let me = self.core.me();
        let peer = self.core.peer(from, now);
        let live = !peer.live.is_empty();
        let was_suspect = peer.suspect.take().is_some() || peer.unknown;
        peer.unknown = false;
        let restarted = stamp.is_some_and(|stamp| stamp.start != peer.stamp.start && peer.stamp.start != 0);
        if let Some(stamp) = stamp
            && (restarted || stamp >= peer.stamp || peer.stamp.start == 0)
        {
            peer.stamp = stamp;
        }
        if live && from != me {
            self.core.be_patient(Patience::Lease(from), lease);
        }
        if was_suspect {
            self.trust(now, from);
        }
        if live && (restarted || was_suspect) {
            self.reconcile(now, from, out);
        }
    }

    /// A suspect is back: backups that were not awarded yet are not needed.
    fn trust(&mut self, now: Time, worker: PeerId) {
        let Owner { core, jobs } = self;
        let keys: Vec<JobKey> = core.peer(worker, now).live.keys().copied().collect();
        for key in keys {
            let Some(job) = jobs.get_mut(&key) else { continue };
            let Some(share) = job.shares.get(&worker) else { continue };
            for part in share.live.clone() {
                if let Some(execution) = job.ledger.executions.get_mut(&part) {
                    execution.unknown = false;
                    execution.message.clear();
                }
                job.open.remove(part.0, part.0 + 1);
            }
            job.changed = true;
            job.hungry.insert(worker);
            core.dirty.insert(key);
        }
    }

    pub(super) fn on_connected(&mut self, now: Time, peer: PeerId, out: &mut Vec<Effect>) {
        let was_alone = self.core.connected.is_empty();
        self.core.connected.insert(peer);
        if was_alone {
            self.tell_all();
        }
        let known = self.core.peer(peer, now);
        if known.live.is_empty() {
            (known.suspect, known.unknown) = (None, false);
        } else {
            // It is trusted again once it has said what it has: until then its backups are wanted.
            self.reconcile(now, peer, out);
        }
        self.send_stops(now, peer, out);
        // At the start of a swarm nobody is subscribed to anything yet.
        self.ask_newcomer(now, peer, None, out);
    }

    /// Whether anybody is connected is part of what is said of every job.
    fn tell_all(&mut self) {
        for (key, job) in self.jobs.iter_mut().filter(|(_, job)| !job.shares.is_empty()) {
            job.changed = true;
            self.core.dirty.insert(*key);
        }
    }

    pub(super) fn on_disconnected(&mut self, now: Time, peer: PeerId, out: &mut Vec<Effect>) {
        if self.core.connected.remove(&peer) && self.core.connected.is_empty() {
            self.tell_all();
        }
        for subscribers in self.core.subscribers.values_mut() {
            subscribers.remove(&peer);
        }
        self.core.calm(Patience::Reconcile(peer));
        let known = self.core.peer(peer, now);
        known.asked.clear();
        if !known.live.is_empty() {
            out.push(Effect::Dial { peer, addresses: Vec::new() });
        }
    }

    /// Nothing can be expected of a worker for now: everything with it gets a backup at once.
    pub(super) fn on_suspect(
        &mut self,
        now: Time,
        worker: PeerId,
        suspicion: Suspicion,
        out: &mut Vec<Effect>,
    ) {
        let Owner { core, jobs } = self;
        let peer = core.peer(worker, now);
        if peer.live.is_empty() || peer.suspect.is_some() {
            return;
        }
        peer.suspect = Some(suspicion);
        let keys: Vec<JobKey> = peer.live.keys().copied().collect();
        for key in keys {
            if let Some(job) = jobs.get_mut(&key) {
                job.back_up(core, now, worker, suspicion, out);
                core.dirty.insert(key);
            }
        }
    }

    /// A worker's lease, or its time as unknown, is over.
    pub(super) fn on_lease_end(&mut self, now: Time, worker: PeerId, out: &mut Vec<Effect>) {
        let unknown_for = self.core.settings.unknown_for;
        let peer = self.core.peer(worker, now);
        let keys: Vec<JobKey> = peer.live.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let first = !std::mem::replace(&mut peer.unknown, true);
        if first {
            self.core.be_patient(Patience::Lease(worker), unknown_for);
            let seconds = unknown_for.as_secs();
            for key in &keys {
                if let Some(job) = self.jobs.get_mut(key) {
                    job.mark_unknown(
                        worker,
                        &format!("its worker has not renewed its lease; given up in {seconds} s"),
                    );
                    self.core.dirty.insert(*key);
                }
            }
            if self.core.is_connected(worker) {
                self.reconcile(now, worker, out);
            } else {
                out.push(Effect::Dial { peer: worker, addresses: Vec::new() });
            }
            return;
        }
        let Owner { core, jobs } = self;
        for key in keys {
            let Some(job) = jobs.get_mut(&key) else { continue };
            let parts = job.shares.get(&worker).map(|share| share.live.clone()).unwrap_or_default();
            job.lose(
                core,
                now,
                worker,
                parts,
                Fate::GivenUp,
                "its lease ended and its worker is silent",
                out,
            );
            core.dirty.insert(key);
        }
    }

    pub(super) fn on_renew(&mut self, now: Time, from: PeerId, renew: Renew, out: &mut Vec<Effect>) {
        self.heard(now, from, Some(renew.stamp), out);
        out.push(Effect::Send { to: from, message: Direct::RenewAck(RenewAck { stamp: renew.stamp }) });
        for job in renew.jobs {
            self.take_live(now, from, &job, out);
        }
    }

    /// What a worker says of a job: what moves on, what was lost, what it should not be doing.
    pub(super) fn take_live(&mut self, now: Time, from: PeerId, live: &JobLive, out: &mut Vec<Effect>) {
        let key = (live.job, live.version);
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else {
            // It settled long ago, or never was ours.
            for part in super::award::parts_of(&live.lost).chain(super::award::parts_of(&live.unstarted)) {
                core.ack(from, key, part);
            }
            return;
        };
        job.take_lost(core, now, from, live, out);
        job.take_progress(core, now, from, live, out);
        job.stop_unwanted(core, now, from, live, out);
        core.dirty.insert(key);
    }
}

impl Job {
    /// Opens the partitions that a suspect has, so that others run them beside it.
    fn back_up(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        suspicion: Suspicion,
        out: &mut Vec<Effect>,
    ) {
        let message = match suspicion {
            Suspicion::Silent => "its worker is silent",
            Suspicion::Unreachable => "its worker cannot be reached",
        };
        self.mark_unknown(worker, message);
        self.bids.remove(&worker);
        if self.never() && !core.has_bug(Bug::NeverRetried) {
            return;
        }
        let parts = self.shares.get(&worker).map(|share| share.live.clone()).unwrap_or_default();
        let mut poison = BTreeSet::new();
        for part in parts {
            let silent =
                |one: &super::ledger::Execution| !one.state.is_terminal() && one.unknown && !one.given_up;
            let suspects = self.ledger.attempts(part.0).filter(|(_, one)| silent(one));
            let suspects: Vec<PeerId> = suspects.map(|(_, one)| self.ledger.worker_of(one)).collect();
            let mut doubtful = self.trouble.get(&part.0).cloned().unwrap_or_default();
            doubtful.lost_on.extend(suspects);
            if doubtful.is_poison(core.settings.lost_workers) && suspicion == Suspicion::Unreachable {
                // Each of them counts as lost, although some may yet come back.
                self.trouble.insert(part.0, doubtful);
                poison.insert(part);
                continue;
            }
            let healthy = self.ledger.attempts(part.0).any(|(_, one)| {
                !one.state.is_terminal() && !one.given_up && !core.is_suspect(self.ledger.worker_of(one))
            });
            if !healthy && !self.ledger.is_done(part.0) && !self.holding.contains_key(&part) {
                self.open.insert(part.0, part.0 + 1);
                self.fresh_open = true;
            }
        }
        self.lose(core, now, worker, poison, Fate::GivenUp, message, out);
    }

    fn mark_unknown(&mut self, worker: PeerId, message: &str) {
        let Some(share) = self.shares.get(&worker) else { return };
        for part in &share.live {
            if let Some(execution) = self.ledger.executions.get_mut(part) {
                execution.unknown = true;
                message.clone_into(&mut execution.message);
            }
        }
        self.changed = true;
    }

    /// Executions are lost with their worker: others get them, unless they may not or were lost too often.
    #[expect(clippy::too_many_arguments, reason = "who, what and why of a loss, in one place")]
    pub(super) fn lose(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        parts: BTreeSet<Part>,
        fate: Fate,
        message: &str,
        out: &mut Vec<Effect>,
    ) {
        let mut again = BTreeSet::new();
        let (mut poison, mut never) = (BTreeSet::new(), BTreeSet::new());
        let may_not = self.never() && !core.has_bug(Bug::NeverRetried);
        for part in parts {
            let live = |one: &super::ledger::Execution| !one.state.is_terminal();
            if !self.ledger.executions.get(&part).is_some_and(live) || self.holding.contains_key(&part) {
                continue;
            }
            if self.ledger.executions.get(&part).is_some_and(|one| one.given_up) {
                // It was counted when it was given up; now it is certain.
                if fate == Fate::Lost {
                    again.insert(part);
                }
                continue;
            }
            core.counters.lost += 1;
            let trouble = self.trouble.entry(part.0).or_default();
            trouble.note_lost(worker);
            if may_not {
                never.insert(part);
            } else if trouble.is_poison(core.settings.lost_workers) {
                poison.insert(part);
            } else {
                again.insert(part);
            }
        }
        let all: Vec<Part> = again.iter().chain(&poison).chain(&never).copied().collect();
        if !all.is_empty() {
            core.penalise(worker, now);
        }
        self.fate(now, &again, fate, message, false, out);
        for part in &poison {
            let trouble = self.trouble.get(&part.0);
            let poisoned =
                format!("{}; the last one: {message}", trouble.map(Trouble::losses).unwrap_or_default());
            self.fate(now, &BTreeSet::from([*part]), Fate::Failed, &poisoned, true, out);
        }
        self.fate(
            now,
            &never,
            Fate::Failed,
            &format!("lost: {message}, and it must not run twice"),
            true,
            out,
        );
        self.leave(core, now, worker, all.iter().copied(), out);
        for part in &again {
            self.reopen(core, part.0);
            self.fresh_open = true;
        }
        let ended: Vec<Part> = poison.iter().chain(&never).copied().collect();
        for part in &ended {
            self.open.remove(part.0, part.0 + 1);
        }
        if fate == Fate::GivenUp && !all.is_empty() {
            self.stop(core, now, worker, all.into_iter().collect(), "its lease ended", out);
        }
        let others: Vec<Part> = ended
            .iter()
            .flat_map(|part| self.ledger.attempts(part.0).filter(|(_, one)| !one.state.is_terminal()))
            .map(|(part, _)| part)
            .collect();
        self.cancel(core, now, others, "its partition failed", out);
        self.check_end(core, now, out);
    }

    /// What a worker says that it lost or never started.
    fn take_lost(&mut self, core: &mut Core, now: Time, from: PeerId, live: &JobLive, out: &mut Vec<Effect>) {
        let mine = |job: &Job, part: &Part| {
            let execution = job.ledger.executions.get(part);
            execution.is_some_and(|one| job.ledger.worker_of(one) == from)
        };
        let lost: BTreeSet<Part> =
            super::award::parts_of(&live.lost).filter(|part| mine(self, part)).collect();
        // After so long a worker may have forgotten what it ran.
        let old = u64::try_from(core.settings.stop_retention.as_nanos()).unwrap_or(u64::MAX);
        let forgotten = |part: &Part| {
            let created = self.ledger.executions.get(part).map_or(0, |one| one.created);
            self.never() && now.wall.saturating_sub(created) > old
        };
        let (unsure, unstarted): (BTreeSet<Part>, BTreeSet<Part>) =
            super::award::parts_of(&live.unstarted).filter(|part| mine(self, part)).partition(forgotten);
        let lost = &lost | &unsure;
        let key = self.key();
        for part in lost.iter().chain(&unstarted) {
            core.ack(from, key, *part);
        }
        // With its worker gone, a result that was being copied will not come.
        for part in &lost {
            self.let_go(*part);
        }
        if !lost.is_empty() {
            self.lose(core, now, from, lost, Fate::Lost, "it was lost when its worker stopped", out);
        }
        if !unstarted.is_empty() {
            let message = "its worker never started it";
            self.declined(core, now, from, unstarted, message, out);
        }
        if !live.lost.is_empty() || !live.unstarted.is_empty() {
            self.hungry.insert(from);
        }
    }

    fn take_progress(
        &mut self,
        core: &mut Core,
        now: Time,
        from: PeerId,
        live: &JobLive,
        out: &mut Vec<Effect>,
    ) {
        let run_ms = self.ledger.job.facts.run_ms;
        let mut overdrawn = BTreeSet::new();
        for progress in &live.progress {
            let part = (progress.partition, progress.attempt);
            let Some(execution) = self.ledger.executions.get(&part) else { continue };
            if execution.state.is_terminal() || self.ledger.worker_of(execution) != from {
                continue;
            }
            if run_ms > 0 && progress.ran_ms > run_ms.saturating_add(OVERDRAWN_MS) && !execution.given_up {
                overdrawn.insert(part);
                continue;
            }
            if matches!(progress.phase, Phase::Running | Phase::Publishing) {
                let started = now.wall.saturating_sub(progress.ran_ms.saturating_mul(1_000_000));
                out.extend(self.ledger.note_running(part, now.wall, started).map(Effect::Persist));
            }
            self.note_phase(part, progress.phase, &progress.message);
        }
        self.changed |= !live.progress.is_empty();
        if !overdrawn.is_empty() {
            let message = format!("Execution timed out. Execution took longer than {} s", run_ms / 1000);
            self.fate(now, &overdrawn, Fate::Failed, &message, true, out);
            self.leave(core, now, from, overdrawn.iter().copied(), out);
            self.stop(core, now, from, overdrawn, "execution timed out", out);
            self.check_end(core, now, out);
        }
    }

    fn note_phase(&mut self, part: Part, phase: Phase, message: &str) {
        use ::job::state::ExecutionState;
        let Some(execution) = self.ledger.executions.get_mut(&part) else { return };
        let state = match phase {
            Phase::Queued | Phase::Preparing => ExecutionState::BidAccepted,
            Phase::Running => ExecutionState::Running,
            Phase::Publishing | Phase::Ended => ExecutionState::Publishing,
        };
        if execution.state.can_become(state) {
            execution.state = state;
        }
        if message.is_empty() && phase == Phase::Preparing {
            execution.message = "preparing".to_owned();
        } else {
            message.clone_into(&mut execution.message);
        }
    }

    /// Ends what a worker runs that nobody wants (any more).
    fn stop_unwanted(
        &mut self,
        core: &mut Core,
        now: Time,
        from: PeerId,
        live: &JobLive,
        out: &mut Vec<Effect>,
    ) {
        let (mut unwanted, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        for part in super::award::parts_of(&live.live) {
            let Some(execution) = self.ledger.executions.get(&part) else {
                unknown.insert(part);
                continue;
            };
            if self.ledger.worker_of(execution) != from {
                continue;
            }
            // One that was committed is told so when its receipt is offered again.
            if execution.state.is_terminal() && execution.state != ExecutionState::Completed {
                unwanted.insert(part);
            } else if execution.state == ExecutionState::New
                && let Some(execution) = self.ledger.executions.get_mut(&part)
            {
                execution.state = ExecutionState::BidAccepted;
            }
        }
        if !unwanted.is_empty() {
            self.stop(core, now, from, unwanted, "it is not wanted any more", out);
        }
        // A record that lost awards knows nothing of these, and anybody can name what was never awarded: they are
        // told once each time they are named, and nothing of them is kept.
        if !unknown.is_empty() && core.is_connected(from) {
            self.send_stop(core, from, &unknown, "its owner has no record of it", out);
        }
    }
}
