//! What goes into the owner machine and what comes out.

use std::sync::Arc;
use std::time::Duration;

use ::job::state::JobState;
use ::job::{Cid, JobId, PeerId};

use crate::crypto::Crypto;
use crate::message::{Block, Bytes, Direct, Facts, ResultInfo};
use crate::record::{Record, RecordKey};
use crate::topic::Class;

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
    /// How long a job version is kept after it ended, for its users.
    pub retention: Duration,
    /// Most job versions that are kept after they ended, and most executions that they may have had together; what
    /// ended first goes first. What ended last stays for its time.
    pub retained_jobs: usize,
    /// See [`Settings::retained_jobs`].
    pub retained_executions: u64,
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
            retention: Duration::from_secs(30 * 24 * 3600),
            retained_jobs: 100_000,
            retained_executions: 1_000_000,
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
    /// [`Owner::next_wakeup`](super::Owner::next_wakeup) has come.
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
    /// Bytes that the job reserves for the results of one execution; 0 for the workers' default.
    pub disk: u64,
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
    /// No such job is in memory: it ended, or never was.
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
    /// Remove all records of a job version, with those that the shell has of it; then let go of whatever else is there
    /// because of it: its line in lists, and its content. Should the process end in between, the shell finds out at the
    /// next start what is kept for versions that [`Owner::knows`](super::Owner::knows) no more.
    ForgetJob {
        /// The job.
        job: JobId,
        /// Its version.
        version: u32,
    },
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
    /// Something that clients may follow changed: read what is new from [`Owner::view`](super::Owner::view).
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
    /// is served from its records from now on, until its retention ends.
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
    /// Ended job versions forgotten.
    pub forgotten: u64,
}
