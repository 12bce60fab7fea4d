//! The invariants of the design, checked after every step against what the simulator itself saw: not what machines say
//! of themselves, but what was on disk, on the wire and in the engines.

use std::collections::{BTreeMap, BTreeSet};

use gossip::message::Direct;
use job::state::{ExecutionState, JobState};
use job::{ExecutionKey, JobId, PeerId};

use super::Seen;
use super::clock::SECOND;
use super::plan::Plan;

mod end;
mod owner;
pub(crate) mod worker;

/// A broken rule.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub rule: &'static str,
    pub found: String,
}

/// Something that must be true by a moment.
#[derive(Debug, Clone)]
pub(crate) enum Due {
    /// A worker heard a stop: nothing of these runs any more.
    Stopped { node: usize, job: JobId, version: u32, partition: u32, attempt: u32 },
    /// A program has run for as long as it may.
    Overrun { node: usize, key: ExecutionKey, since: u64 },
    /// A `Retry: never` program's lease may have ended.
    Lease { node: usize, key: ExecutionKey },
    /// A job that was accepted and does not run says why.
    Reason { owner: usize, job: JobId, version: u32 },
    /// Lasting jobs run everywhere they should.
    Lasting,
}

/// What the simulator knows of a job version.
#[derive(Debug, Default)]
pub(crate) struct Version {
    pub owner: usize,
    pub job: usize,
    /// Its acceptance was answered.
    pub accepted: bool,
    /// Its stop was answered.
    pub stopped: bool,
    /// As the records have it.
    pub state: Option<JobState>,
    /// As clients were told.
    pub told: Option<JobState>,
    pub told_seq: u64,
    /// Sequence numbers of the history on disk, and of the history that clients could see.
    pub on_disk: BTreeSet<u64>,
    pub watched: BTreeSet<u64>,
    /// As the records have them.
    pub executions: BTreeMap<ExecutionKey, ExecutionState>,
    /// When it came on disk.
    pub recorded_at: Option<u64>,
    /// When its record said that it had ended.
    pub ended_at: Option<u64>,
    /// The attempt whose receipt was committed, by partition.
    pub committed: BTreeMap<u32, u32>,
    /// Whose award it was, by partition and attempt.
    pub awarded: BTreeMap<(u32, u32), PeerId>,
    /// Where the program itself began to run, by partition.
    pub ran: BTreeMap<u32, Vec<(usize, u32)>>,
}

/// What the simulator knows of an owner machine.
#[derive(Debug, Default)]
pub(crate) struct OwnerGhost {
    /// The highest epoch that machines of this node used before the present one.
    floor: u32,
    epoch: u32,
    /// When the present machine was made from its records.
    restored_at: u64,
    /// Awards that it sent.
    awards: BTreeSet<(JobId, u32, u64)>,
    /// Announcement messages it may still publish, and when that was so, in thousandths.
    budget: (u64, u64),
}

/// What the simulator knows of a worker machine.
#[derive(Debug, Default)]
pub(crate) struct WorkerGhost {
    /// Counts machines made from this disk.
    instance: u32,
    /// Which machine sends stamps of which start.
    starts: BTreeMap<u64, u32>,
    /// The newest epoch of an owner that it has durably seen, and that it has seen at all.
    epochs: BTreeMap<PeerId, u32>,
    pending_epochs: BTreeMap<PeerId, u32>,
    /// Awards that reached it, by owner, job version and number.
    orders: BTreeMap<(PeerId, JobId, u32, u64), Order>,
    /// The newest fence that it accepted, by partition.
    fences: BTreeMap<(JobId, u32, u32), u64>,
    /// Partitions whose commit it was told, and the attempt.
    told: BTreeMap<(JobId, u32, u32), u32>,
    /// When the renewal or bid was sent that its leases from an owner run from, in milliseconds of its boot clock.
    leases: BTreeMap<PeerId, u64>,
    /// Executions whose receipts it sent.
    receipts: BTreeSet<ExecutionKey>,
    /// What it was told in the batch at hand: counts once the batch is durable.
    heard: Vec<Heard>,
}

#[derive(Debug, Clone)]
enum Heard {
    Stop(Due),
    Commit { job: JobId, version: u32, partition: u32, attempt: u32 },
}

#[derive(Debug, Clone)]
struct Order {
    epoch: u32,
    stale: bool,
    accepted: bool,
    answers: (u64, u64),
    lease_ms: u64,
}

/// All that is checked.
#[derive(Debug)]
pub(crate) struct Check {
    pub violation: Option<Violation>,
    pub seen: Seen,
    pub versions: BTreeMap<(JobId, u32), Version>,
    pub owners: Vec<OwnerGhost>,
    pub workers: Vec<WorkerGhost>,
    /// When everything accepted had ended.
    pub done_at: Option<u64>,
    /// Job versions that a rogue peer claimed to have failed.
    pub spoiled: BTreeSet<(JobId, u32)>,
}

impl Check {
    pub fn new(plan: &Plan) -> Self {
        Check {
            violation: None,
            seen: Seen::default(),
            versions: BTreeMap::new(),
            owners: plan.nodes.iter().map(|_| OwnerGhost::default()).collect(),
            workers: plan.nodes.iter().map(|_| WorkerGhost::default()).collect(),
            done_at: None,
            spoiled: BTreeSet::new(),
        }
    }

    /// A rule does not hold; the first one counts.
    pub fn broken(&mut self, rule: &'static str, found: String) {
        self.violation.get_or_insert(Violation { rule, found });
    }

    /// A rogue peer says something: what may come of it is noted.
    pub fn rogue_said(&mut self, rogue: PeerId, message: &Direct) {
        self.seen.lies += 1;
        let Direct::Receipts(receipts) = message else { return };
        for group in receipts.groups.iter().filter_map(|group| group.read().ok()) {
            if group.worker == rogue && group.receipts.iter().any(|one| !one.outcome.is_success()) {
                self.spoiled.insert((group.job, group.version));
            }
        }
    }

    /// A message was sent.
    pub fn sent(&mut self, node: usize, message: &Direct, size: usize) {
        self.seen.messages += 1;
        if size > gossip::message::MAX_MESSAGE_BYTES {
            self.broken(
                "messages are bounded",
                format!("n{node} sends a {} of {size} bytes", message.name()),
            );
        }
        let small = matches!(message, Direct::Bid(_) | Direct::Decline(_));
        if small && size > 512 {
            self.broken("bids and declines are small", format!("n{node}: {size} bytes"));
        }
    }

    /// An announcement was published: small, and at the owner's pace.
    pub fn announced(&mut self, node: usize, now: u64, bytes: &[u8]) {
        if bytes.len() > gossip::message::MAX_ANNOUNCEMENT_BYTES {
            self.broken("announcements are small", format!("n{node} publishes {} bytes", bytes.len()));
        }
        // One a second, ten at once; five percent more for a clock that is fast.
        let (left, at) = self.owners[node].budget;
        let left = (left + (now - at) / 1_000_000 * 1_060 / 1000).min(11_000);
        match left.checked_sub(1000) {
            Some(left) => self.owners[node].budget = (left, now),
            None => self.broken("owners pace their announcements", format!("n{node} at {} s", now / SECOND)),
        }
    }
}
