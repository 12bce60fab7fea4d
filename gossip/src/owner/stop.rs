//! Stops: durable until their workers have heard them. And the last moments of a job in memory.

use std::collections::BTreeSet;
use std::time::Duration;

use ::job::state::JobState;
use ::job::{JobId, PeerId, Time};

use super::core::{Core, JobKey, Timer};
use super::job::Job;
use super::ledger::Part;
use super::record::{Fate, SettledRecord, Topic};
use super::{Effect, Owner, StopRefusal};
use crate::bug::Bug;
use crate::crypto::Signed;
use crate::message::{Direct, MAX_SPANS, Stop, StopOrder, Stopped, cut};
use crate::range::spans;
use crate::record::{Kind, Record};

/// Between two sends of a stop that was not acknowledged.
const STOP_AGAIN: Duration = Duration::from_secs(5);

impl Job {
    /// Tells a worker to end executions, now or when it is back.
    pub(super) fn stop(
        &mut self,
        core: &mut Core,
        now: Time,
        worker: PeerId,
        parts: BTreeSet<Part>,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        if parts.is_empty() {
            return;
        }
        if core.is_connected(worker) {
            self.send_stop(core, worker, &parts, reason, out);
        } else if core.has_bug(Bug::ForgetStop) {
            return;
        }
        self.stops.entry(worker).or_default().extend(parts);
        core.timers.set_earlier(Timer::Stops(self.key()), now + STOP_AGAIN);
    }

    /// A worker knows, or has ended by itself: it need not be told to stop these.
    pub(super) fn told_to_stop(&mut self, worker: PeerId, parts: impl IntoIterator<Item = Part>) {
        if let Some(left) = self.stops.get_mut(&worker) {
            for part in parts {
                left.remove(&part);
            }
            if left.is_empty() {
                self.stops.remove(&worker);
            }
        }
    }

    pub(super) fn send_stop(
        &self,
        core: &Core,
        worker: PeerId,
        parts: &BTreeSet<Part>,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        for page in spans(parts.iter().copied()).chunks(MAX_SPANS) {
            let order = StopOrder {
                job: self.ledger.id,
                nonce: self.ledger.job.nonce.clone(),
                version: self.ledger.version,
                epoch: core.epoch,
                spans: page.to_vec(),
                worker,
                reason: cut(reason),
            };
            let stop = Stop { order: Signed::seal(&order, core.identity.crypto.as_ref()) };
            out.push(Effect::Send { to: worker, message: Direct::Stop(stop) });
        }
    }

    /// Sends the stops that a worker has not acknowledged, if it is there.
    pub(super) fn stop_again(&self, core: &Core, worker: PeerId, out: &mut Vec<Effect>) {
        if let Some(parts) = self.stops.get(&worker)
            && core.is_connected(worker)
        {
            self.send_stop(core, worker, parts, "it is not wanted any more", out);
        }
    }

    pub(super) fn on_stops_due(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        let age = Duration::from_nanos(now.wall.saturating_sub(self.ledger.modified));
        if self.ended() && age >= core.settings.stop_retention {
            // Nothing runs for so long without its owner.
            self.stops.clear();
        }
        for worker in self.stops.keys() {
            self.stop_again(core, *worker, out);
        }
        if !self.stops.is_empty() {
            let any = self.stops.keys().any(|worker| core.is_connected(*worker));
            let wait = if any {
                STOP_AGAIN
            } else {
                core.settings.stop_retention.saturating_sub(age).max(STOP_AGAIN)
            };
            core.timers.set(Timer::Stops(self.key()), now + wait);
        }
    }

    /// Nothing is left to tell anybody: the job leaves the machine's memory.
    pub(super) fn settle(&self, out: &mut Vec<Effect>) -> Option<SettledRecord> {
        if !self.ended() || !self.stops.is_empty() || !self.holding.is_empty() {
            return None;
        }
        let executions = u32::try_from(self.ledger.executions.len()).unwrap_or(u32::MAX);
        let settled = SettledRecord { ended: self.ledger.modified, executions };
        out.push(Effect::Persist(Record::new(self.ledger.key(Kind::Settled, 0), &settled)));
        out.push(Effect::Settled { job: self.ledger.id, version: self.ledger.version });
        Some(settled)
    }

    /// Ends it on its user's word.
    pub(super) fn stop_all(
        &mut self,
        core: &mut Core,
        now: Time,
        reason: &str,
        cancelled_for: &str,
        out: &mut Vec<Effect>,
    ) {
        self.finish(core, now, JobState::Stopped, Topic::Scheduling, reason, cancelled_for, out);
    }
}

impl Owner {
    pub(super) fn on_stop_requested(
        &mut self,
        now: Time,
        token: u64,
        id: JobId,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        let Owner { core, jobs } = self;
        let newest = jobs.range_mut((id, 0)..=(id, u32::MAX)).next_back();
        let result = match newest {
            None => Err(StopRefusal::Unknown),
            Some((_, job)) if job.ended() => Err(StopRefusal::Ended(job.ledger.state)),
            Some((key, job)) => {
                job.stop_all(core, now, reason, "job has been stopped", out);
                core.dirty.insert(*key);
                Ok(())
            }
        };
        out.push(Effect::StopAnswered { token, result });
    }

    pub(super) fn on_stopped(&mut self, now: Time, from: PeerId, stopped: Stopped, out: &mut Vec<Effect>) {
        self.heard(now, from, None, out);
        let key: JobKey = (stopped.job, stopped.version);
        let Owner { core, jobs } = self;
        let Some(job) = jobs.get_mut(&key) else { return };
        let heard: BTreeSet<Part> = super::award::parts_of(&stopped.spans)
            .filter(|part| job.stops.get(&from).is_some_and(|stops| stops.contains(part)))
            .collect();
        // Nothing can come of those any more that may still have won until now.
        let over: BTreeSet<Part> = heard
            .iter()
            .filter(|part| job.ledger.executions.get(part).is_some_and(|one| !one.state.is_terminal()))
            .filter(|part| !job.holding.contains_key(part))
            .copied()
            .collect();
        job.fate(now, &over, Fate::Cancelled, "another attempt took its place", false, out);
        job.leave(core, now, from, over.iter().copied(), out);
        for part in &over {
            job.reopen(core, part.0);
        }
        job.told_to_stop(from, heard);
        core.dirty.insert(key);
    }

    /// A worker is back: it hears the stops that wait for it.
    pub(super) fn send_stops(&mut self, now: Time, peer: PeerId, out: &mut Vec<Effect>) {
        for job in self.jobs.values().filter(|job| job.stops.contains_key(&peer)) {
            job.stop_again(&self.core, peer, out);
            self.core.timers.set_earlier(Timer::Stops(job.key()), now + STOP_AGAIN);
        }
    }
}
