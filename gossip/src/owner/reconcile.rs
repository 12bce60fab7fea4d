//! After a reconnect, a restart or a sleep: workers are asked what they have before anything else happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::job::{PeerId, Time};

use super::core::{Core, JobKey, Patience, Timer};
use super::job::{Job, Trouble};
use super::ledger::{Ledger, Part};
use super::record::{EpochRecord, NODE, SettledRecord};
use super::{Effect, Identity, Owner, Settings};
use crate::bug::Bug;
use crate::crypto::Signed;
use crate::message::{AwardOrder, Direct, JobAsked, Live, MAX_SPANS, Reconcile, pages, weight_of};
use crate::range::{RangeSet, spans};
use crate::record::{Kind, Record, RecordKey, RestoreError};

/// How long a worker may take to answer before it is asked again.
const ANSWER: Duration = Duration::from_secs(5);

impl Owner {
    /// Asks a worker about everything that is believed to be with it.
    pub(super) fn reconcile(&mut self, now: Time, worker: PeerId, out: &mut Vec<Effect>) {
        if !self.core.is_connected(worker) {
            return;
        }
        let epoch = self.core.epoch;
        let peer = self.core.peer(worker, now);
        peer.asked.clear();
        let keys: Vec<JobKey> = peer.live.keys().copied().collect();
        let mut asked: Vec<JobAsked> = Vec::new();
        for key in keys {
            let Some(job) = self.jobs.get(&key) else { continue };
            let Some(share) = job.shares.get(&worker) else { continue };
            for page in spans(share.live.iter().copied()).chunks(MAX_SPANS) {
                let nonce = job.ledger.job.nonce.clone();
                asked.push(JobAsked { job: key.0, nonce, version: key.1, spans: page.to_vec() });
            }
        }
        if asked.is_empty() {
            return self.core.calm(Patience::Reconcile(worker));
        }
        for jobs in pages(asked, |one| weight_of(&one.spans)) {
            let id = self.core.question(worker, now);
            out.push(Effect::Send { to: worker, message: Direct::Reconcile(Reconcile { id, epoch, jobs }) });
        }
        self.core.be_patient_with(worker, now, Patience::Reconcile(worker), ANSWER);
    }

    /// A worker did not answer; it is asked again while it is there.
    pub(super) fn on_no_answer(&mut self, now: Time, worker: PeerId, out: &mut Vec<Effect>) {
        if !self.core.peer(worker, now).asked.is_empty() {
            self.reconcile(now, worker, out);
        }
    }

    /// Asks a worker for the newest of our awards that it has seen: it knows a newer epoch than ours.
    pub(super) fn ask_epoch(&mut self, worker: PeerId, out: &mut Vec<Effect>) {
        if self.core.is_connected(worker) {
            // Nothing waits for the answer, so it is not kept: a worker can make us ask as often as it likes.
            self.core.questions += 1;
            let (id, epoch) = (self.core.questions, self.core.epoch);
            let question = Reconcile { id, epoch, jobs: Vec::new() };
            out.push(Effect::Send { to: worker, message: Direct::Reconcile(question) });
        }
    }

    pub(super) fn on_live(&mut self, now: Time, from: PeerId, live: Live, out: &mut Vec<Effect>) {
        self.heard(now, from, Some(live.stamp), out);
        let peer = self.core.peer(from, now);
        if peer.asked.remove(&live.answers) && peer.asked.is_empty() {
            self.core.calm(Patience::Reconcile(from));
        }
        if let Some(newest) = &live.newest {
            self.raise_epoch(now, newest, out);
        }
        for job in &live.jobs {
            self.take_live(now, from, job, out);
        }
    }

    /// A worker shows an award of ours with a higher epoch than ours: our record is older than it was.
    fn raise_epoch(&mut self, _now: Time, newest: &Signed, out: &mut Vec<Effect>) {
        let core = &mut self.core;
        let Ok(order) = newest.open::<AwardOrder>(core.me(), core.identity.crypto.as_ref()) else { return };
        if order.epoch >= core.epoch {
            core.epoch = order.epoch.saturating_add(1);
            core.record_epoch(out);
        }
    }

    /// An owner from its records; with none it is a new one. Of a job version that has settled, the record that says so
    /// is enough. Takes a new epoch and makes it durable through
    /// `out`, and asks every worker about awards in doubt.
    pub fn restore(
        settings: Settings,
        identity: Identity,
        records: impl IntoIterator<Item = Record>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Result<Self, RestoreError> {
        let mut core = Core::new(settings, identity, now);
        let mut stored = 0;
        let mut by_job: BTreeMap<JobKey, Vec<Record>> = BTreeMap::new();
        for record in records {
            match record.key.kind {
                Kind::Epoch => stored = record.read::<EpochRecord>()?.epoch,
                _ => by_job.entry((record.key.job, record.key.version)).or_default().push(record),
            }
        }
        let fresh = u32::try_from(now.unix_seconds()).unwrap_or(u32::MAX);
        core.epoch = fresh.max(stored.saturating_add(1)).max(1);
        if core.has_bug(Bug::EpochNotRecorded) {
            core.epoch = 1;
        } else {
            core.record_epoch(out);
        }
        let mut owner = Owner { core, jobs: BTreeMap::new() };
        for (key, mut records) in by_job {
            if let Some(record) = records.iter().find(|record| record.key.kind == Kind::Settled) {
                let settled = read_settled(now, record, out)?;
                owner.core.past.insert(now, key, settled, &owner.core.settings);
                continue;
            }
            records.sort_by_key(|record| record.key);
            if let Some(ledger) = Ledger::from_records(key.0, key.1, &records)? {
                owner.resume(now, key, ledger, out);
            }
        }
        let me = owner.core.me();
        owner.reconcile(now, me, out);
        owner.settle(now, out);
        Ok(owner)
    }

    /// A job goes on after a restart.
    fn resume(&mut self, now: Time, key: JobKey, ledger: Ledger, out: &mut Vec<Effect>) {
        let core = &mut self.core;
        let mut job = Job::new(ledger);
        job.restore_work(core, now, out);
        if !job.ended()
            && let Some(total) = job.ledger.job.total
        {
            let ends =
                job.ledger.job.created.saturating_add(u64::try_from(total.as_nanos()).unwrap_or(u64::MAX));
            core.timers.set(Timer::Total(key), now.at_wall(ends));
        }
        if !job.stops.is_empty() {
            core.timers.set(Timer::Stops(key), now);
        }
        core.dirty.insert(key);
        self.jobs.insert(key, job);
    }
}

/// A version that settled before records said when it ended is kept as if it had ended now.
fn read_settled(now: Time, record: &Record, out: &mut Vec<Effect>) -> Result<SettledRecord, RestoreError> {
    if record.read::<bool>().is_err() {
        return record.read();
    }
    let settled = SettledRecord { ended: now.wall, executions: 1 };
    out.push(Effect::Persist(Record::new(record.key, &settled)));
    Ok(settled)
}

impl Core {
    pub(super) fn record_epoch(&self, out: &mut Vec<Effect>) {
        let key = RecordKey { job: NODE, version: 0, kind: Kind::Epoch, number: 0 };
        out.push(Effect::Persist(Record::new(key, &EpochRecord { epoch: self.epoch })));
    }
}

impl Job {
    /// Who has what, what is open and what must be stopped, from the ledger.
    fn restore_work(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        self.restore_trouble();
        let mut open = RangeSet::full(self.ledger.job.count);
        for set in [&self.ledger.committed, &self.ledger.failed] {
            for (first, end) in set.ranges() {
                open.remove(first, end);
            }
        }
        let mut stops: BTreeMap<PeerId, BTreeSet<Part>> = BTreeMap::new();
        let mut live: BTreeMap<PeerId, BTreeSet<Part>> = BTreeMap::new();
        for (part, execution) in &self.ledger.executions {
            let worker = self.ledger.worker_of(execution);
            let silent = execution.state.is_terminal() && execution.outcome.is_none();
            if !execution.state.is_terminal() && !execution.given_up {
                open.remove(part.0, part.0 + 1);
                live.entry(worker).or_default().insert(*part);
            } else if execution.given_up && !execution.state.is_terminal()
                || silent && execution.state != ::job::state::ExecutionState::BidRejected
            {
                stops.entry(worker).or_default().insert(*part);
            }
        }
        self.open = if self.ended() { RangeSet::default() } else { open };
        self.stops = if core.has_bug(Bug::ForgetStop) { BTreeMap::new() } else { stops };
        if core.has_bug(Bug::NoReconcile) {
            for part in live.values().flatten() {
                self.open.insert(part.0, part.0 + 1);
            }
            return;
        }
        for (worker, parts) in live {
            let share = self.shares.entry(worker).or_default();
            share.live = parts;
            share.last = now;
            let count = share.live.len();
            core.count_live(worker, self.key(), now, count, out);
            if worker != core.me() {
                out.push(Effect::Dial { peer: worker, addresses: Vec::new() });
            }
        }
    }

    fn restore_trouble(&mut self) {
        for (part, execution) in &self.ledger.executions {
            let failed = execution.state == ::job::state::ExecutionState::Failed;
            let worker = self.ledger.worker_of(execution);
            match &execution.outcome {
                Some(outcome) if failed => {
                    let trouble: &mut Trouble = self.trouble.entry(part.0).or_default();
                    trouble.failures += 1;
                    trouble.failed_on.insert(worker, outcome.clone());
                }
                None if failed || execution.unknown => {
                    self.trouble.entry(part.0).or_default().note_lost(worker)
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crypto::Ed25519;
    use crate::owner::{Input, Keep, NewJob};

    #[test]
    fn a_worker_that_speaks_of_newer_epochs_makes_us_keep_nothing() {
        let crypto = Ed25519::new([1; 32], "test");
        let (me, worker) = (crypto.peer(), PeerId([2; 32]));
        let identity = Identity { me, swarm: "test".to_owned(), crypto: Arc::new(crypto), seed: [1; 32] };
        let (now, mut out) = (Time::ZERO, Vec::new());
        let mut owner = Owner::restore(Settings::default(), identity, [], now, &mut out).expect("nothing");
        let nonce = b"n".to_vec();
        let spec = ::job::Cid::try_from([&[1u8, 0x55, 0x12, 32][..], &[0; 32]].concat().as_slice());
        let new = NewJob {
            id: ::job::JobId::derive("test", me, &nonce),
            version: 1,
            nonce: nonce.into(),
            name: String::new(),
            namespace: String::new(),
            spec_cid: spec.expect("a CID"),
            spec: Vec::new().into(),
            facts: crate::message::Facts::plain("wasm", ::job::Resources::ZERO),
            count: 1,
            total_timeout: None,
            queue_timeout: None,
            max_attempts: 1,
            keep: Keep::Owner,
        };
        let id = new.id;
        owner.handle(now, Input::Submitted { token: 1, job: Box::new(new) }, &mut out);
        owner.handle(now, Input::Connected(worker), &mut out);
        for award in 0..100 {
            let reply = crate::message::Reply {
                job: id,
                version: 1,
                award,
                accepted: Vec::new(),
                declined: Vec::new(),
                code: None,
                message: String::new(),
                eta_ms: 0,
                epoch: u32::MAX,
                stamp: crate::message::Stamp::default(),
            };
            let message = Direct::Reply(reply);
            owner.handle(now, Input::Message { from: worker, message }, &mut out);
        }
        assert!(owner.core.peer(worker, now).asked.is_empty());
    }
}
