//! What goes into the worker machine and what comes out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::job::constraint::Labels;
use ::job::spec::JobType;
use ::job::{Cid, ExecutionId, ExecutionKey, Fence, PeerId, Resources};

use crate::crypto::Crypto;
use crate::message::{Block, Bytes, Direct, Outcome, Phase, ResultInfo, Usage};
use crate::record::{Record, RecordKey};
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
    /// The result is in this node's content, pinned for the execution; else `blocks` are all there is of it, and
    /// the receipt's record keeps them.
    pub stored: bool,
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
    /// [`Worker::next_wakeup`](super::Worker::next_wakeup) has come.
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
    /// A small result need not be stored here: its receipt may carry all of it.
    pub inline: bool,
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
    /// The clocks of this node and of a peer differ by so much that announcements between them are taken for replays:
    /// the operator should know.
    ClockDiffers {
        /// Whose.
        peer: PeerId,
        /// By how many seconds it is ahead.
        ahead_s: i64,
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
