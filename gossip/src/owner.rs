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
mod round;
mod stop;
mod view;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::job::state::JobState;
use ::job::{Cid, JobId, PeerId, Time};

use self::core::{Patience, Suspicion, Timer};
use crate::crypto::Crypto;
use crate::message::{Block, Bytes, Direct, Facts, ResultInfo};
use crate::record::{Kind, Record, RecordKey};
use crate::topic::Class;
pub use view::{ExecutionView, Fault, HistoryEvent, JobSummary, JobView, Level};

/// Longest nonce of a job.
const MAX_NONCE: usize = 64;

/// How the owner behaves. The defaults are the design's.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether this node runs jobs itself: it is then asked first, without network.
    pub own_worker: bool,
    /// Where this node can be reached, for announcements; at most three are used.
    pub addresses: Vec<String>,
    /// How long peers that were asked directly may take.
    pub ask_window: Duration,
    /// How long an announced round lasts.
    pub round_window: Duration,
    /// How long a worker may take to answer an award.
    pub award_reply: Duration,
    /// How long an announcement is worth remembering; a waiting job is announced again within it.
    pub announce_ttl: Duration,
    /// The lease of batch executions.
    pub lease: Duration,
    /// How long an execution stays unknown after its lease before it is given up for lost.
    pub unknown_for: Duration,
    /// How long a job may wait that no worker matches, when it does not say.
    pub queue_timeout: Duration,
    /// Executions of one partition that may be lost before it ends as poison.
    pub lost_workers: u32,
    /// Longest that a stop waits for a worker that is away: nothing runs longer there without its owner.
    pub stop_retention: Duration,
    /// Most jobs that have not ended.
    pub max_jobs: usize,
    /// A bug to plant, for the simulator's own test.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub bug: Option<crate::bug::Bug>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            own_worker: true,
            addresses: Vec::new(),
            ask_window: Duration::from_millis(500),
            round_window: Duration::from_millis(1200),
            award_reply: Duration::from_secs(1),
            announce_ttl: Duration::from_secs(40),
            lease: Duration::from_secs(60),
            unknown_for: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(60),
            lost_workers: 5,
            stop_retention: Duration::from_secs(48 * 3600),
            max_jobs: 100_000,
            #[cfg(any(test, feature = "planted-bugs"))]
            bug: None,
        }
    }
}

/// Who this machine is and what it needs of its node.
#[derive(Clone)]
pub struct Identity {
    /// This node.
    pub me: PeerId,
    /// Its swarm.
    pub swarm: String,
    /// Its signatures.
    pub crypto: Arc<dyn Crypto>,
    /// Fresh randomness, never the same at two starts.
    pub seed: [u8; 32],
}

/// Who must hold a result before its partition is committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// The owner: it fetches the result first.
    #[default]
    Owner,
    /// Its worker or its publisher: nothing is fetched.
    Worker,
}

/// A job version to be owned, already parsed, normalised and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Its id, derived from this node and the nonce.
    pub id: JobId,
    /// Its version, one more than the last one of this id.
    pub version: u32,
    /// What the id was derived from, at most 64 bytes.
    pub nonce: Bytes,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The CID of its spec.
    pub spec_cid: Cid,
    /// Its spec, canonical bytes.
    pub spec: Bytes,
    /// What workers must know of it.
    pub facts: Facts,
    /// How many partitions it has.
    pub count: u32,
    /// How long it may take in all.
    pub total_timeout: Option<Duration>,
    /// How long it may wait for a worker; `None` for the node's default.
    pub queue_timeout: Option<Duration>,
    /// Most attempts of a partition that failed by themselves, from 1.
    pub max_attempts: u32,
    /// Where results must be.
    pub keep: Keep,
}

/// The answer to [`Effect::Hold`] for one execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The partition.
    pub partition: u32,
    /// The attempt.
    pub attempt: u32,
    /// Held, pinned and durable; or why not. A failure that may pass is tried again by the shell, not reported.
    pub result: Result<(), String>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A client submitted a job; answered by [`Effect::Submitted`] or [`Effect::Refused`].
    Submitted {
        /// Names the client's request.
        token: u64,
        /// The job.
        job: Box<NewJob>,
    },
    /// A client wants a job stopped; answered by [`Effect::StopAnswered`].
    StopRequested {
        /// Names the client's request.
        token: u64,
        /// The job.
        job: JobId,
        /// Why, for its history.
        reason: String,
    },
    /// A direct message arrived that [`Direct::is_for_owner`] is true for.
    Message {
        /// Its authenticated sender.
        from: PeerId,
        /// The message.
        message: Direct,
    },
    /// A connection to this peer is there.
    Connected(PeerId),
    /// The last connection to this peer is gone.
    Disconnected(PeerId),
    /// The connection is gone and dialling it again was refused or failed.
    Unreachable(PeerId),
    /// Pings to a watched peer have been silent for 3 s.
    Silent(PeerId),
    /// A silent peer was heard again.
    Heard(PeerId),
    /// A peer subscribed to the topic of a class.
    Subscribed {
        /// Who.
        peer: PeerId,
        /// To what.
        class: Class,
    },
    /// A peer left the topic of a class.
    Unsubscribed {
        /// Who.
        peer: PeerId,
        /// From what.
        class: Class,
    },
    /// How many peers the swarm is likely to have.
    Swarm {
        /// The estimate.
        size: u64,
    },
    /// Results are here, or cannot be.
    Held {
        /// The job.
        job: JobId,
        /// Its version.
        version: u32,
        /// Which results.
        results: Vec<Held>,
    },
    /// [`Owner::next_wakeup`] has come.
    Tick,
}

/// A result to be copied here before it is committed.
#[derive(Debug, Clone, PartialEq)]
pub struct HoldItem {
    /// The partition.
    pub partition: u32,
    /// The attempt.
    pub attempt: u32,
    /// The result.
    pub result: ResultInfo,
}

/// Results to be copied here, pinned and durable; answered by [`Input::Held`], in any number of parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// The job.
    pub job: JobId,
    /// Its version.
    pub version: u32,
    /// Who has them.
    pub from: PeerId,
    /// Which.
    pub items: Vec<HoldItem>,
    /// Blocks that came along: all of those of small results. Others are fetched.
    pub blocks: Arc<[Block]>,
}

/// Why a job was not accepted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Too many jobs have not ended.
    #[error("this node owns {0} jobs that have not ended, as many as it may")]
    TooManyJobs(usize),
    /// The announcement would be larger than gossip allows.
    #[error("the job's constraints and inputs are too large to be announced")]
    AnnouncementTooLarge,
    /// There is no partition to run.
    #[error("the job has no partitions")]
    NoPartitions,
    /// This version exists already, or a newer one does.
    #[error("version {0} of the job exists already")]
    VersionExists(u32),
    /// The id is not the one this node derives from the nonce.
    #[error("the job id does not belong to this node and nonce")]
    ForeignId,
}

/// Why a job was not stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopRefusal {
    /// No such job is in memory: it ended long ago, or never was.
    #[error("no such job")]
    Unknown,
    /// It has ended.
    #[error("the job has ended: {0}")]
    Ended(JobState),
}

/// What the shell is to do, in order; records first, in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Store a record.
    Persist(Record),
    /// Remove a record.
    Forget(RecordKey),
    /// Send a message; dials the peer if need be. To this node itself: hand it to the worker machine.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Direct,
    },
    /// Publish by gossip.
    Announce {
        /// The class, and so the topic.
        class: Class,
        /// The signed message.
        bytes: Vec<u8>,
    },
    /// Copy results here; answered by [`Input::Held`].
    Hold(Box<Hold>),
    /// The job is durable: tell the client its id.
    Submitted {
        /// The client's request.
        token: u64,
        /// The job.
        job: JobId,
        /// Its version.
        version: u32,
    },
    /// The job is not accepted: tell the client why.
    Refused {
        /// The client's request.
        token: u64,
        /// Why.
        why: Refusal,
    },
    /// The stop is durable, or refused: tell the client.
    StopAnswered {
        /// The client's request.
        token: u64,
        /// What came of it.
        result: Result<(), StopRefusal>,
    },
    /// Something that clients may follow changed: read what is new from [`Owner::view`].
    Changed {
        /// The job.
        job: JobId,
        /// Its version.
        version: u32,
        /// Its state.
        state: JobState,
        /// The state's message.
        message: String,
        /// The newest sequence number of its history.
        seq: u64,
    },
    /// The job version ended and no worker needs to hear of it any more: it leaves the machine's memory and
    /// is served from its records from now on.
    Settled {
        /// The job.
        job: JobId,
        /// Its version.
        version: u32,
    },
    /// Whether live work depends on the connection to this peer: pings, and an early word when it breaks.
    Watch {
        /// Which.
        peer: PeerId,
        /// Whether it does.
        live: bool,
    },
    /// Try to connect; [`Input::Connected`] or [`Input::Unreachable`] follows.
    Dial {
        /// Whom.
        peer: PeerId,
        /// Known addresses.
        addresses: Vec<String>,
    },
    /// The peer did what no honest peer does.
    Penalise {
        /// Who.
        peer: PeerId,
        /// What.
        why: &'static str,
    },
}

impl Effect {
    /// The record that this effect stores, if that is what it does.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Effect::Persist(record) => Some(record),
            _ => None,
        }
    }
}

/// What was counted since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Jobs accepted.
    pub submitted: u64,
    /// Asks sent.
    pub asks: u64,
    /// Announcement messages published.
    pub announcements: u64,
    /// Bids that came in.
    pub bids: u64,
    /// Bids from outside the lottery, or a second one for the same seed.
    pub foreign_bids: u64,
    /// Declines that came in.
    pub declines: u64,
    /// Partitions awarded, every attempt counted.
    pub awarded: u64,
    /// Partitions committed.
    pub committed: u64,
    /// Executions that failed.
    pub failed: u64,
    /// Executions given up for lost.
    pub lost: u64,
    /// Executions started beside one that may still be running.
    pub backups: u64,
    /// Receipts that were not valid.
    pub bad_receipts: u64,
}

/// The owner machine.
pub struct Owner {
    core: core::Core,
    jobs: BTreeMap<core::JobKey, job::Job>,
}

impl Owner {
    /// Applies one input and appends what the shell must do about it, in order.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        if self.core.advance_clock(now) {
            self.after_sleep(now, out);
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
            if !job.ended() {
                job.use_bids(core, now, out);
                job.feed(core, now, out);
                job.seek(core, now, out);
                job.note_waiting(core, now);
            }
            job.tell(out);
            if job.settle(out) {
                core.timers.clear(Timer::Stops(key));
                jobs.remove(&key);
            }
        }
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
        self.jobs.values().map(|job| view::summarise(&job.ledger, job.open_count()))
    }

    /// The newest version of a job in memory, in short.
    pub fn summary(&self, id: JobId) -> Option<JobSummary> {
        self.find(id, None).map(|job| view::summarise(&job.ledger, job.open_count()))
    }

    /// A job version in memory; the newest without a version.
    pub fn view(&self, id: JobId, version: Option<u32>) -> Option<JobView> {
        self.find(id, version).map(|job| view::view(&job.ledger, job.open_count(), Some(self.core.me())))
    }

    /// History of the newest version of a job in memory: at most so many events with a number above `seq`.
    pub fn history_since(&self, id: JobId, seq: u64, limit: usize) -> Vec<HistoryEvent> {
        self.find(id, None).map_or_else(Vec::new, |job| view::history(&job.ledger, seq, limit))
    }

    /// Executions of the newest version of a job in memory, from a partition on, at most so many.
    pub fn executions(&self, id: JobId, first_partition: u32, limit: usize) -> Vec<ExecutionView> {
        let me = Some(self.core.me());
        self.find(id, None)
            .map_or_else(Vec::new, |job| view::executions(&job.ledger, first_partition, limit, me))
    }

    fn find(&self, id: JobId, version: Option<u32>) -> Option<&job::Job> {
        match version {
            Some(version) => self.jobs.get(&(id, version)),
            None => self.jobs.range((id, 0)..=(id, u32::MAX)).next_back().map(|(_, job)| job),
        }
    }

    /// Takes a job in, durably, or changes nothing.
    fn accept(&mut self, now: Time, new: &NewJob, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let Owner { core, jobs } = self;
        if JobId::derive(&core.identity.swarm, core.me(), &new.nonce) != new.id || new.nonce.len() > MAX_NONCE
        {
            return Err(Refusal::ForeignId);
        }
        if new.count == 0 || new.count > ::job::spec::MAX_COUNT {
            return Err(Refusal::NoPartitions);
        }
        let newest =
            jobs.range((new.id, 0)..=(new.id, u32::MAX)).next_back().map(|((_, version), _)| *version);
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
                // What waits is published when the batch of inputs ends.
                continue;
            };
            let Some(job) = jobs.get_mut(&key) else { continue };
            match timer {
                Timer::Round(_) => job.on_round(core, now, out),
                Timer::Queued(_) => job.explain_wait(core, now, out),
                Timer::QueueLimit(_) => job.on_queue_limit(core, now, out),
                Timer::Total(_) => job.on_total(core, now, out),
                Timer::Stops(_) => job.on_stops_due(core, now, out),
                Timer::Announce | Timer::Own(_) => {}
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
    fn tell(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.changed) {
            let ledger = &self.ledger;
            out.push(Effect::Changed {
                job: ledger.id,
                version: ledger.version,
                state: ledger.state,
                message: ledger.message.clone(),
                seq: ledger.last_seq(),
            });
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
