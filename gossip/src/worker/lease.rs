//! What this worker owes its owners: renewals while it works for them, and patience while they are away.

use std::time::Duration;

use ::job::{PeerId, Time};

use super::award::honoured;
use super::execution::{Execution, REPORT_AFTER, Stage};
use super::job::Job;
use super::{Effect, JobKey, Part, Timer, Worker, millis};
use crate::bug::Bug;
use crate::crypto::Signed;
use crate::message::{Award, AwardOrder, Direct, JobLive, Phase, Progress, Renew, Stamp, pages};
use crate::record::{Kind, Record, RecordKey};

/// Renewals are sent this often within one lease.
const RENEWALS: u32 = 3;

/// Longest that executions go on without their owner.
const ORPHAN_CAP: Duration = Duration::from_secs(24 * 3600);

/// First and longest wait between tries to reach an owner.
const DIAL_FIRST: Duration = Duration::from_secs(5);
const DIAL_LONGEST: Duration = Duration::from_secs(300);

/// Owners that are remembered.
const MAX_OWNERS: usize = 4096;

/// Executions whose progress one renewal spells out.
const MAX_PROGRESS: usize = 1024;

/// An owner that this worker works for, or did.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// The newest epoch seen.
    pub(super) epoch: u32,
    /// The award that showed it.
    pub(super) newest: Option<Signed>,
    /// The lease that it gives.
    pub(super) lease: Duration,
    /// From when the current lease runs: when this worker last said something that the owner answered.
    pub(super) leased_from: Time,
    /// Tries to reach it since it was last connected.
    pub(super) dials: u32,
    /// Times that its receipts were offered since it last answered any.
    pub(super) offers: u32,
    /// Whether its connection is watched.
    pub(super) watched: bool,
}

impl Default for Owner {
    fn default() -> Self {
        Owner {
            epoch: 0,
            newest: None,
            lease: Duration::from_secs(60),
            leased_from: Time::ZERO,
            dials: 0,
            offers: 0,
            watched: false,
        }
    }
}

impl Worker {
    /// Takes note of a newer epoch, durably.
    pub(super) fn note_epoch(
        &mut self,
        from: PeerId,
        order: &AwardOrder,
        award: &Award,
        out: &mut Vec<Effect>,
    ) {
        self.make_room_for_owner(from, out);
        let owner = self.owners.entry(from).or_default();
        if order.epoch > owner.epoch {
            owner.epoch = order.epoch;
            owner.newest = Some(award.order.clone());
            out.push(Effect::Persist(super::restore::owner_record(from, owner)));
        }
    }

    /// The epoch of an owner that asked, when it is newer; durably.
    pub(super) fn raise_epoch(&mut self, from: PeerId, epoch: u32, out: &mut Vec<Effect>) {
        self.make_room_for_owner(from, out);
        let owner = self.owners.entry(from).or_default();
        if epoch > owner.epoch {
            owner.epoch = epoch;
            out.push(Effect::Persist(super::restore::owner_record(from, owner)));
        }
    }

    fn make_room_for_owner(&mut self, peer: PeerId, out: &mut Vec<Effect>) {
        if self.owners.len() < MAX_OWNERS || self.owners.contains_key(&peer) {
            return;
        }
        let busy: std::collections::BTreeSet<PeerId> = self.jobs.values().map(|job| job.owner).collect();
        // What bounds the others: there are fewer job versions than owners here.
        self.owners.retain(|owner, known| {
            let stays = busy.contains(owner);
            if !stays && known.epoch > 0 {
                out.push(Effect::Forget(super::restore::owner_key(*owner)));
            }
            stays
        });
    }

    /// An award was accepted: the lease runs from the moment that this worker asked.
    pub(super) fn lease_from(&mut self, now: Time, from: PeerId, order: &AwardOrder, out: &mut Vec<Effect>) {
        let asked = Time { boot: order.answers.at_ms.saturating_mul(1_000_000), wall: now.wall };
        let asked = if self.has_bug(|bug| bug == Bug::LeaseFromReceipt) { now } else { asked };
        let owner = self.owners.entry(from).or_default();
        owner.lease = honoured(order.lease_ms);
        owner.leased_from = owner.leased_from.max(asked);
        let renew = now + owner.lease / RENEWALS;
        let end = owner.leased_from + owner.lease;
        self.timers.set_earlier(Timer::Renew(from), renew);
        self.timers.set(Timer::Lease(from), end);
        self.watch(from, out);
    }

    /// Watches the connection while something depends on it.
    pub(super) fn watch(&mut self, peer: PeerId, out: &mut Vec<Effect>) {
        let live = self.owes(peer);
        let Some(owner) = self.owners.get_mut(&peer) else { return };
        if owner.watched != live && peer != self.identity.me {
            owner.watched = live;
            out.push(Effect::Watch { peer, live });
        }
        if !live {
            for timer in [Timer::Renew(peer), Timer::Report(peer), Timer::Lease(peer), Timer::Orphan(peer)] {
                self.timers.clear(timer);
            }
            self.timers.clear(Timer::Dial(peer));
            self.timers.clear(Timer::Offer(peer));
        }
    }

    /// Whether this worker has anything of that owner.
    fn owes(&self, peer: PeerId) -> bool {
        self.jobs.values().any(|job| job.owner == peer && !job.is_empty())
    }

    pub(super) fn is_connected(&self, peer: PeerId) -> bool {
        peer == self.identity.me || self.peers.contains(&peer)
    }

    pub(super) fn renew(&mut self, now: Time, to: PeerId, out: &mut Vec<Effect>) {
        if !self.owes(to) {
            return;
        }
        let Some(owner) = self.owners.get(&to) else { return };
        let next = now + owner.lease / RENEWALS;
        self.timers.set(Timer::Renew(to), next);
        if !self.is_connected(to) {
            return;
        }
        let stamp = self.stamp(now);
        let jobs = self.live_jobs(now, to, true);
        self.tell_phases(to);
        for jobs in pages(jobs, JobLive::weight) {
            out.push(Effect::Send { to, message: Direct::Renew(Renew { stamp, jobs }) });
        }
    }

    /// What there is for an owner, with or without what its executions are doing.
    pub(super) fn live_jobs(&self, now: Time, owner: PeerId, progress: bool) -> Vec<JobLive> {
        let mut left = if progress { MAX_PROGRESS } else { 0 };
        let jobs = self.jobs.iter().filter(|(_, job)| job.owner == owner && !job.is_empty());
        jobs.map(|(key, job)| live_job(now, *key, job, &mut left)).collect()
    }

    /// Nothing that a renewal says is news any more.
    fn tell_phases(&mut self, owner: PeerId) {
        for job in self.jobs.values_mut().filter(|job| job.owner == owner) {
            let running: Vec<Part> = job.starts.iter().map(|(_, part)| *part).collect();
            for part in running {
                if let Some(Execution { stage: Stage::Started { told, .. }, .. }) =
                    job.executions.get_mut(&part)
                {
                    *told = true;
                }
            }
        }
    }

    /// Executions moved on a moment ago: those that are still there are worth an early renewal.
    pub(super) fn on_report_due(&mut self, now: Time, owner: PeerId, out: &mut Vec<Effect>) {
        let untold = self.jobs.values().filter(|job| job.owner == owner).flat_map(|job| {
            job.starts.iter().filter_map(|(_, part)| match job.executions.get(part)?.stage {
                Stage::Started { since, told: false, .. } => Some(since + REPORT_AFTER),
                _ => None,
            })
        });
        match untold.min() {
            Some(due) if due <= now => self.renew(now, owner, out),
            Some(due) => self.timers.set(Timer::Report(owner), due),
            None => {}
        }
    }

    pub(super) fn on_renew_ack(&mut self, now: Time, from: PeerId, stamp: Stamp, _out: &mut Vec<Effect>) {
        if stamp.start != self.start || !self.owes(from) {
            return;
        }
        let Some(owner) = self.owners.get_mut(&from) else { return };
        let asked = Time { boot: stamp.at_ms.saturating_mul(1_000_000), wall: now.wall };
        owner.leased_from = owner.leased_from.max(asked.min(now));
        let end = owner.leased_from + owner.lease;
        self.timers.set(Timer::Lease(from), end);
        self.timers.clear(Timer::Orphan(from));
    }

    /// The owner has not answered for a lease: what must not run twice ends, the rest goes on for a while.
    pub(super) fn on_lease_end(&mut self, now: Time, owner: PeerId, out: &mut Vec<Effect>) {
        if !self.owes(owner) {
            return;
        }
        if !self.has_bug(|bug| bug == Bug::NeverOutlivesLease) {
            self.abandon(owner, Job::never, "its lease ended", out);
        }
        self.timers.set_earlier(Timer::Orphan(owner), now + ORPHAN_CAP);
        if !self.is_connected(owner) {
            self.timers.set_earlier(Timer::Dial(owner), now);
        }
    }

    pub(super) fn on_orphan_cap(&mut self, owner: PeerId, out: &mut Vec<Effect>) {
        let reason = format!("its owner was away for {} h", ORPHAN_CAP.as_secs() / 3600);
        self.abandon(owner, |_| true, &reason, out);
    }

    pub(super) fn on_connected(&mut self, now: Time, peer: PeerId, out: &mut Vec<Effect>) {
        self.peers.insert(peer);
        self.timers.clear(Timer::Dial(peer));
        if let Some(owner) = self.owners.get_mut(&peer) {
            (owner.dials, owner.offers) = (0, 0);
        }
        if self.owes(peer) {
            self.tell_all(now, peer, out);
        }
    }

    /// Everything that an owner should know after a reconnect or restart.
    pub(super) fn tell_all(&mut self, now: Time, owner: PeerId, out: &mut Vec<Effect>) {
        self.send_live(now, owner, 0, self.live_jobs(now, owner, true), None, out);
        self.offer_again(now, owner, out);
        self.renew(now, owner, out);
        self.watch(owner, out);
    }

    pub(super) fn on_disconnected(&mut self, now: Time, peer: PeerId) {
        self.peers.remove(&peer);
        if self.owes(peer) && peer != self.identity.me {
            self.timers.set_earlier(Timer::Dial(peer), now + DIAL_FIRST);
        }
    }

    /// Tries to reach an owner, ever more rarely.
    pub(super) fn dial(&mut self, now: Time, peer: PeerId, out: &mut Vec<Effect>) {
        if self.is_connected(peer) || !self.owes(peer) {
            return;
        }
        let owner = self.owners.entry(peer).or_default();
        let wait = DIAL_FIRST.saturating_mul(1 << owner.dials.min(10)).min(DIAL_LONGEST);
        owner.dials = owner.dials.saturating_add(1);
        // Up to a third more, so that workers do not all come back at the same moment.
        let jitter = Duration::from_millis(self.rng.below(millis(wait) / 3 + 1));
        self.timers.set(Timer::Dial(peer), now + wait + jitter);
        out.push(Effect::Dial { peer, addresses: Vec::new() });
    }

    /// Records which executions have started, for all jobs where that changed, before they start.
    pub(super) fn mark_started(&mut self, out: &mut Vec<Effect>) {
        for key in std::mem::take(&mut self.marked) {
            let record = RecordKey { job: key.0, version: key.1, kind: Kind::Started, number: 0 };
            match self.jobs.get(&key) {
                Some(job) => out.push(Effect::Persist(Record::new(record, &job.started_spans()))),
                None => out.push(Effect::Forget(record)),
            }
        }
    }
}

fn live_job(now: Time, key: JobKey, job: &Job, left: &mut usize) -> JobLive {
    let mut live = JobLive::empty(key.0, key.1);
    live.live = job.live_spans();
    live.lost = crate::range::spans(job.lost.keys().copied());
    live.unstarted = crate::range::spans(job.unstarted.keys().copied());
    for (at, part) in job.starts.iter().take(*left) {
        let Some(execution) = job.executions.get(part) else { continue };
        live.progress.push(Progress {
            partition: part.0,
            attempt: part.1,
            phase: execution.phase(),
            ran_ms: millis(now.since(*at)),
            message: execution.message.clone(),
            stdout: execution.logged.0,
            stderr: execution.logged.1,
        });
    }
    *left -= live.progress.len().min(*left);
    live.live.truncate(crate::message::MAX_SPANS);
    live.lost.truncate(crate::message::MAX_SPANS);
    live.unstarted.truncate(crate::message::MAX_SPANS);
    debug_assert!(live.progress.iter().all(|one| one.phase != Phase::Queued));
    live
}
