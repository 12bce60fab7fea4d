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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ::job::constraint::Labels;
use ::job::spec::JobType;
use ::job::{Cid, ExecutionId, ExecutionKey, Fence, JobId, PeerId, Resources, Time};

use crate::bug::Bug;
use crate::crypto::Crypto;
use crate::message::{Block, Bytes, Direct, Outcome, Phase, ResultInfo, Stamp, Usage};
use crate::record::{Record, RecordKey};
use crate::rng::Rng;
use crate::timers::Timers;
use crate::topic::Class;

/// What this node already holds; asked synchronously while bidding.
pub trait Local: Send + Sync {
    /// How many bytes of this content are here.
    fn held_bytes(&self, cid: &Cid) -> u64;
    /// Whether this module or image is here and ready to run.
    fn cached(&self, module: &Cid) -> bool;
}

/// Who a job's owner is to this node; decides the policy that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Submitter {
    /// This node itself.
    Own,
    /// On the operator's list.
    Trusted,
    /// A member of this private swarm.
    Member,
    /// Anybody else.
    Anyone,
}

/// What an operator lets one class of submitters do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Engines.
    pub engines: BTreeSet<String>,
    /// Network types besides none, lower case.
    pub networks: BTreeSet<String>,
    /// Job types.
    pub job_types: BTreeSet<JobType>,
    /// Most that one execution may reserve; `None` for the node's whole capacity.
    pub most: Option<Resources>,
    /// Longest run of one execution; `None` for [`Settings::longest_run`].
    pub longest_run: Option<Duration>,
}

impl Policy {
    /// The default for anyone: WASM without network, batch only.
    pub fn strangers() -> Self {
        Policy {
            engines: BTreeSet::from(["wasm".to_owned()]),
            networks: BTreeSet::new(),
            job_types: BTreeSet::from([JobType::Batch]),
            most: None,
            longest_run: None,
        }
    }

    /// Everything that the node can do.
    pub fn everything() -> Self {
        Policy {
            engines: ["wasm", "docker"].map(str::to_owned).into(),
            networks: ["host", "http", "bridge"].map(str::to_owned).into(),
            job_types: [JobType::Batch, JobType::Ops, JobType::Daemon, JobType::Service].into(),
            most: None,
            longest_run: None,
        }
    }

    /// Nothing.
    pub fn nothing() -> Self {
        Policy { engines: BTreeSet::new(), job_types: BTreeSet::new(), ..Policy::strangers() }
    }
}

/// What this worker is and how it behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What all executions together may reserve.
    pub capacity: Resources,
    /// Most executions at once.
    pub slots: u32,
    /// Engines that work here.
    pub engines: BTreeSet<String>,
    /// Kinds of publishers that work here.
    pub publishers: BTreeSet<String>,
    /// Kinds of input sources that work here, lower case.
    pub sources: BTreeSet<String>,
    /// Labels that constraints are matched against.
    pub labels: Labels,
    /// For this node's own jobs.
    pub own: Policy,
    /// For the operator's list.
    pub trusted: Policy,
    /// For members of a private swarm.
    pub member: Policy,
    /// For all others.
    pub anyone: Policy,
    /// The operator's list.
    pub trusted_peers: BTreeSet<PeerId>,
    /// Whether everybody who can connect is a member (a swarm with a key).
    pub private: bool,
    /// Longest run of an execution whose job sets none; also the cap for those whose owner is lost.
    pub longest_run: Duration,
    /// Longest wait for a free slot for which it still bids.
    pub longest_queue: Duration,
    /// For how long receipts and results wait for their owner.
    pub retention: Duration,
    /// Most bytes of results that wait for owners; the oldest go first.
    pub retained_bytes: u64,
    /// A bug to plant, for the simulator's own test.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub bug: Option<crate::bug::Bug>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            capacity: Resources::ZERO,
            slots: 64,
            engines: BTreeSet::from(["wasm".to_owned()]),
            publishers: ["ipfs", "local", "noop"].map(str::to_owned).into(),
            sources: ["inline", "ipfs"].map(str::to_owned).into(),
            labels: Labels::new(),
            own: Policy::everything(),
            trusted: Policy::everything(),
            member: Policy::strangers(),
            anyone: Policy::strangers(),
            trusted_peers: BTreeSet::new(),
            private: false,
            longest_run: Duration::from_secs(24 * 3600),
            longest_queue: Duration::from_secs(10),
            retention: Duration::from_secs(72 * 3600),
            retained_bytes: 10 << 30,
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
    /// What it holds.
    pub local: Arc<dyn Local>,
    /// Fresh randomness, never the same at two starts.
    pub seed: [u8; 32],
}

/// Where the spec of an execution is.
#[derive(Debug, Clone, PartialEq)]
pub struct SpecRef {
    /// Its CID.
    pub cid: Cid,
    /// Its canonical bytes, checked against the CID; else it is to be fetched, from the owner first.
    pub inline: Option<Bytes>,
}

/// How an execution ended, as the shell reports it.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Exit code or fault.
    pub outcome: Outcome,
    /// What was published.
    pub result: Option<ResultInfo>,
    /// All blocks of the result when they are at most
    /// [`MAX_INLINE_RESULT_BYTES`](crate::message::MAX_INLINE_RESULT_BYTES), else none.
    pub blocks: Vec<Block>,
    /// What it used.
    pub usage: Usage,
    /// When it started, wall clock in milliseconds.
    pub started_ms: u64,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// What ran it: engine and version, image digest or module CID.
    pub engine: String,
    /// The content of inputs that the spec does not name by CID.
    pub inputs: Vec<Cid>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A gossip message arrived; answered by exactly one [`Effect::Verdict`].
    Announced {
        /// The message, for the verdict.
        id: u64,
        /// Who passed it on.
        relay: PeerId,
        /// The topic's class.
        class: Class,
        /// The message, unverified.
        bytes: Vec<u8>,
    },
    /// A direct message arrived that [`Direct::is_for_owner`] is false for.
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
    /// The node has its first peers: time to ask some for open announcements.
    Joined,
    /// A started execution moved on.
    Phase {
        /// Which.
        execution: ExecutionKey,
        /// Preparing, running or publishing.
        phase: Phase,
        /// For a person; empty when there is nothing to say.
        message: String,
        /// Bytes of standard output and standard error so far.
        logged: (u64, u64),
    },
    /// A started execution ended and nothing of it runs any more; exactly once for every [`Effect::Start`].
    Ended {
        /// Which.
        execution: ExecutionKey,
        /// How.
        end: Box<End>,
    },
    /// The node shuts down: no more bids.
    Leaving,
    /// [`Worker::next_wakeup`] has come.
    Tick,
}

/// What the shell does about a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Do not pass it on, and hold it against the relay.
    Reject,
    /// Do not pass it on.
    Ignore,
}

/// An execution to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// Which.
    pub execution: ExecutionKey,
    /// Its public name.
    pub id: ExecutionId,
    /// Its fence, for the job's own use.
    pub fence: Fence,
    /// Whose job it is.
    pub owner: PeerId,
    /// What its owner is to this node.
    pub submitter: Submitter,
    /// Its spec.
    pub spec: SpecRef,
    /// How many partitions the job has.
    pub partition_count: u32,
    /// What is reserved for it; the shell checks that the spec asks for no more.
    pub resources: Resources,
    /// It must have ended after this long.
    pub timeout: Duration,
    /// Peers that may hold its inputs, the owner among them.
    pub hints: Vec<PeerId>,
}

/// What the shell is to do, in order; records first, in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Store a record.
    Persist(Record),
    /// Remove a record.
    Forget(RecordKey),
    /// Send a message; dials the peer if need be. To this node itself: hand it to the owner machine.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Direct,
    },
    /// The answer to [`Input::Announced`].
    Verdict {
        /// Which message.
        id: u64,
        /// Who passed it on.
        relay: PeerId,
        /// What to do.
        verdict: Verdict,
        /// Why, for logs; empty for accepted ones.
        why: &'static str,
    },
    /// Start an execution; its resources are reserved until [`Input::Ended`].
    Start(Box<Start>),
    /// End a started execution; [`Input::Ended`] follows in any case.
    End {
        /// Which.
        execution: ExecutionKey,
        /// Why, for its log.
        reason: String,
    },
    /// The owner has the result, or nobody wants it any more: it need not stay.
    Release {
        /// Which execution.
        execution: ExecutionKey,
        /// Its result.
        result: Option<Cid>,
    },
    /// Whether live work depends on the connection to this peer: pings, and an early word when it breaks.
    Watch {
        /// Which.
        peer: PeerId,
        /// Whether it does.
        live: bool,
    },
    /// Try to connect; [`Input::Connected`] follows if it works.
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
    /// Announcements of jobs seen for the first time.
    pub announced: u64,
    /// Gossip messages that were malformed, oversized or wrongly signed.
    pub rejected: u64,
    /// Gossip messages that were stale, repeated or too many.
    pub ignored: u64,
    /// Bids sent.
    pub bids: u64,
    /// Declines sent.
    pub declines: u64,
    /// Executions accepted.
    pub accepted: u64,
    /// Executions started.
    pub started: u64,
    /// Executions ended.
    pub ended: u64,
    /// Awards refused for an old epoch, an old fence, or a stale answer.
    pub fenced: u64,
    /// Messages by others than the owner.
    pub foreign: u64,
}

/// A summary of what the worker is doing, for the node's own view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// What is reserved.
    pub used: Resources,
    /// Executions that were started and have not ended.
    pub running: u32,
    /// Executions that wait for capacity.
    pub queued: u32,
    /// Receipts that wait for their owner.
    pub offered: u32,
}

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
    kept: BTreeMap<u64, receipt::Kept>,
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

    /// Who owns a job, as far as this worker has heard: from what it runs or ran lately, its receipts, and
    /// announcements that it remembers.
    pub fn owner_of(&self, job: JobId) -> Option<PeerId> {
        let here = self.jobs.range((job, 0)..=(job, u32::MAX)).next().map(|(_, job)| job.owner);
        here.or_else(|| self.market.owner_of(job))
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
