//! The owner machine: finds workers for the jobs submitted to this node, awards partitions, follows
//! leases, commits results.
//!
//! Invariants: a job version has at most one commit per partition, and none after it ended; an award is
//! in a record before it is sent, a commit before it is told; a `Retry: never` partition is awarded
//! again only when its worker vouches that it never started it.

mod announce;
mod award;
mod commit;
mod core;
mod job;
mod lease;
mod ledger;
mod reconcile;
mod record;
mod retention;
mod round;
mod stop;
mod types;
mod view;
mod waiting;

use std::collections::BTreeMap;
use std::time::Duration;

use ::job::{JobId, PeerId, Time};

use self::core::{Patience, Suspicion, Timer};
use crate::message::Direct;
use crate::record::{Kind, Record};
pub use types::{
    Counters, Effect, Held, Hold, HoldItem, Identity, Input, Keep, NewJob, Refusal, Settings, StopRefusal,
};
pub use view::{
    ExecutionView, Fault, HistoryEvent, HistoryLine, JobHead, JobReader, JobSummary, JobView, Level,
    StoredJob,
};

/// Longest nonce of a job.
const MAX_NONCE: usize = 64;

/// The owner machine.
pub struct Owner {
    core: core::Core,
    jobs: BTreeMap<core::JobKey, job::Job>,
}

impl Owner {
    /// Applies one input and appends what the shell must do about it, in order.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        let overslept = self.core.overslept(now);
        if self.core.advance_clock(now) {
            self.after_sleep(now, out);
        }
        if overslept {
            self.wait_anew(now);
        }
        match input {
            Input::Submitted { token, job } => match self.accept(now, &job, out) {
                Ok(()) => out.push(Effect::Submitted { token, job: job.id, version: job.version }),
                Err(why) => out.push(Effect::Refused { token, why }),
            },
            Input::StopRequested { token, job, reason } => {
                self.on_stop_requested(now, token, job, &reason, out)
            }
            Input::Message { from, message } => self.on_message(now, from, message, out),
            Input::Connected(peer) => self.on_connected(now, peer, out),
            Input::Disconnected(peer) => self.on_disconnected(now, peer, out),
            Input::Unreachable(peer) => self.on_suspect(now, peer, Suspicion::Unreachable, out),
            Input::Silent(peer) => self.on_suspect(now, peer, Suspicion::Silent, out),
            Input::Heard(peer) => self.heard(now, peer, None, out),
            Input::Subscribed { peer, class } => self.on_subscribed(now, peer, class, out),
            Input::Unsubscribed { peer, class } => {
                if let Some(subscribers) = self.core.subscribers.get_mut(&class) {
                    subscribers.remove(&peer);
                }
            }
            Input::Swarm { size } => self.core.swarm = size,
            Input::Held { job, version, results } => self.on_held(now, (job, version), results, out),
            Input::Tick => {}
        }
        self.on_time(now, out);
    }

    /// Ends a batch of inputs: awards, announcements and acknowledgements go out in few messages.
    pub fn settle(&mut self, now: Time, out: &mut Vec<Effect>) {
        for key in std::mem::take(&mut self.core.dirty) {
            let Owner { core, jobs } = self;
            let Some(job) = jobs.get_mut(&key) else { continue };
            job.award_again(core, out);
            if !job.ended() {
                job.use_bids(core, now, out);
                job.feed(core, now, out);
                job.seek(core, now, out);
                job.note_waiting(core, now);
            }
            job.tell(core, out);
            if let Some(settled) = job.settle(out) {
                core.timers.clear(Timer::Stops(key));
                jobs.remove(&key);
                core.past.insert(now, key, settled, &core.settings);
            }
        }
        self.forget_past(now, out);
        self.publish(now, out);
        self.core.send_acks(out);
    }

    /// When [`Input::Tick`] is next due, or `None` while nothing waits for time.
    pub fn next_wakeup(&self) -> Option<Time> {
        self.core.next_wakeup()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.core.counters
    }

    /// The epoch that new awards carry.
    pub fn epoch(&self) -> u32 {
        self.core.epoch
    }

    /// Where this node can be reached from now on.
    pub fn set_addresses(&mut self, addresses: Vec<String>) {
        self.core.settings.addresses = addresses;
    }

    /// The job versions in memory: all that have not ended or not settled.
    pub fn jobs(&self) -> impl Iterator<Item = JobSummary> + '_ {
        self.jobs.values().map(|job| JobReader::live(job, &self.core).summary())
    }

    /// A job version in memory, to read from; the newest without a version.
    pub fn reader(&self, id: JobId, version: Option<u32>) -> Option<JobReader<'_>> {
        self.find(id, version).map(|job| JobReader::live(job, &self.core))
    }

    /// The whole of a job version in memory; the newest without a version.
    pub fn view(&self, id: JobId, version: Option<u32>) -> Option<JobView> {
        self.reader(id, version).map(|reader| reader.view())
    }

    fn find(&self, id: JobId, version: Option<u32>) -> Option<&job::Job> {
        match version {
            Some(version) => self.jobs.get(&(id, version)),
            None => self.jobs.range((id, 0)..=(id, u32::MAX)).next_back().map(|(_, job)| job),
        }
    }

    /// Takes a job in, durably, or changes nothing.
    fn accept(&mut self, now: Time, new: &NewJob, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let newest = self.newest(new.id);
        let Owner { core, jobs } = self;
        if JobId::derive(&core.identity.swarm, core.me(), &new.nonce) != new.id || new.nonce.len() > MAX_NONCE
        {
            return Err(Refusal::ForeignId);
        }
        if new.facts.check().is_err() {
            return Err(Refusal::AnnouncementTooLarge);
        }
        if new.count == 0 || new.count > ::job::spec::MAX_COUNT {
            return Err(Refusal::NoPartitions);
        }
        if let Some(version) = newest.filter(|version| *version >= new.version) {
            return Err(Refusal::VersionExists(version));
        }
        if jobs.len() >= core.settings.max_jobs {
            return Err(Refusal::TooManyJobs(jobs.len()));
        }
        let key = (new.id, new.version);
        let record = record::JobRecord::new(new, now.wall);
        let ledger = ledger::Ledger::new(new.id, new.version, record, new.spec.clone());
        let mut job = job::Job::new(ledger);
        if !core.can_announce(&mut job, now) {
            return Err(Refusal::AnnouncementTooLarge);
        }
        if let Some(older) = newest.and_then(|version| jobs.get_mut(&(new.id, version)))
            && !older.ended()
        {
            older.stop_all(core, now, "job was updated", "job was updated", out);
            core.dirty.insert(older.key());
        }
        out.push(Effect::Persist(Record::new(job.ledger.key(Kind::Job, 0), &job.ledger.job)));
        out.push(Effect::Persist(Record::new(job.ledger.key(Kind::Spec, 0), &new.spec)));
        let words = if new.version > 1 { "Job updated" } else { "Job submitted" };
        job.line(now, record::Topic::Submission, words, None, "", out);
        if let Some(total) = new.total_timeout {
            core.timers.set(Timer::Total(key), now + total);
        }
        core.counters.submitted += 1;
        core.dirty.insert(key);
        jobs.insert(key, job);
        Ok(())
    }

    fn on_message(&mut self, now: Time, from: PeerId, message: Direct, out: &mut Vec<Effect>) {
        match message {
            Direct::Bid(bid) => self.on_bid(now, from, bid, out),
            Direct::Decline(decline) => self.on_decline(now, from, decline, out),
            Direct::Reply(reply) => self.on_reply(now, from, reply, out),
            Direct::Recalled(recalled) => self.on_recalled(now, from, recalled, out),
            Direct::Renew(renew) => self.on_renew(now, from, renew, out),
            Direct::Receipts(receipts) => self.on_receipts(now, from, receipts, out),
            Direct::Stopped(stopped) => self.on_stopped(now, from, stopped, out),
            Direct::Live(live) => self.on_live(now, from, live, out),
            _ => {}
        }
    }

    /// Everything whose time has come.
    fn on_time(&mut self, now: Time, out: &mut Vec<Effect>) {
        while let Some(timer) = self.core.timers.pop(now) {
            if let Timer::Own(patience) = timer {
                self.on_patience(now, patience, out);
                continue;
            }
            let Owner { core, jobs } = self;
            let (Timer::Round(key)
            | Timer::Queued(key)
            | Timer::QueueLimit(key)
            | Timer::Total(key)
            | Timer::Stops(key)) = timer
            else {
                // What waits is published, and what is past forgotten, when the batch of inputs ends.
                continue;
            };
            let Some(job) = jobs.get_mut(&key) else { continue };
            match timer {
                Timer::Round(_) => job.on_round(core, now, out),
                Timer::Queued(_) => job.explain_wait(core, now, out),
                Timer::QueueLimit(_) => job.on_queue_limit(core, now, out),
                Timer::Total(_) => job.on_total(core, now, out),
                Timer::Stops(_) => job.on_stops_due(core, now, out),
                Timer::Announce | Timer::Retention | Timer::Own(_) => {}
            }
            core.dirty.insert(key);
        }
        while let Some(patience) = self.core.pop_patience() {
            self.on_patience(now, patience, out);
        }
    }

    fn on_patience(&mut self, now: Time, patience: Patience, out: &mut Vec<Effect>) {
        match patience {
            Patience::Reply(key, award) => self.on_silence(now, key, award, out),
            Patience::Lease(worker) => self.on_lease_end(now, worker, out),
            Patience::Reconcile(worker) => self.on_no_answer(now, worker, out),
        }
    }

    /// The node slept: what its workers have comes before anything else.
    fn after_sleep(&mut self, now: Time, out: &mut Vec<Effect>) {
        let at_work = self.core.peers.iter().filter(|(_, peer)| !peer.live.is_empty());
        let workers: Vec<PeerId> = at_work.map(|(peer, _)| *peer).collect();
        for worker in workers {
            self.reconcile(now, worker, out);
        }
    }
}

impl job::Job {
    /// Tells those who follow it that there is something new.
    fn tell(&mut self, core: &core::Core, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.changed) {
            let message = JobReader::live(self, core).message().to_owned();
            let ledger = &self.ledger;
            out.push(Effect::Changed {
                job: ledger.id,
                version: ledger.version,
                state: ledger.state,
                message,
                seq: ledger.last_seq(),
            });
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
