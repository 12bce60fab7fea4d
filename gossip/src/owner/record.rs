//! What the owner records: the facts from which everything about a job follows.

use std::time::Duration;

use ::job::state::JobState;
use ::job::{Cid, JobId, PeerId};
use serde::{Deserialize, Serialize};

use super::{Keep, NewJob};
use crate::codec::{self, Bytes, is_default};
use crate::message::{Facts, SealedGroup, Span};

/// A job version as it was submitted, without its spec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobRecord {
    #[serde(rename = "n")]
    pub(super) nonce: Bytes,
    #[serde(rename = "N")]
    pub(super) name: String,
    #[serde(rename = "S")]
    pub(super) namespace: String,
    #[serde(rename = "s", with = "codec::cid")]
    pub(super) spec_cid: Cid,
    #[serde(rename = "f")]
    pub(super) facts: Facts,
    #[serde(rename = "c")]
    pub(super) count: u32,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub(super) total: Option<Duration>,
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<Duration>,
    #[serde(rename = "a")]
    pub(super) attempts: u32,
    #[serde(rename = "k", default, skip_serializing_if = "is_default")]
    pub(super) keep_on_worker: bool,
    /// Wall clock, nanoseconds.
    #[serde(rename = "w")]
    pub(super) created: u64,
}

impl JobRecord {
    pub(super) fn new(job: &NewJob, created: u64) -> Self {
        JobRecord {
            nonce: job.nonce.clone(),
            name: job.name.clone(),
            namespace: job.namespace.clone(),
            spec_cid: job.spec_cid,
            facts: job.facts.clone(),
            count: job.count,
            total: job.total_timeout,
            queue: job.queue_timeout,
            attempts: job.max_attempts.max(1),
            keep_on_worker: job.keep == Keep::Worker,
            created,
        }
    }
}

/// What a line of the job's own history is about. The words are Bacalhau's topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Topic {
    #[serde(rename = "s")]
    Submission,
    #[serde(rename = "u")]
    StateUpdate,
    #[serde(rename = "c")]
    Scheduling,
    #[serde(rename = "q")]
    Queueing,
    #[serde(rename = "t")]
    JobTimeout,
}

impl Topic {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Topic::Submission => "Submission",
            Topic::StateUpdate => "State Update",
            Topic::Scheduling => "Scheduling",
            Topic::Queueing => "Queueing",
            Topic::JobTimeout => "Job Timeout",
        }
    }
}

/// A line of the job's own history; with a state, the job is in it from here on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StateRecord {
    #[serde(rename = "s")]
    pub(super) seq: u64,
    #[serde(rename = "w")]
    pub(super) time: u64,
    #[serde(rename = "o")]
    pub(super) topic: Topic,
    #[serde(rename = "m")]
    pub(super) message: String,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<JobState>,
    /// The state's message, when it is not the line's.
    #[serde(rename = "M", default, skip_serializing_if = "String::is_empty")]
    pub(super) state_message: String,
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) details: Vec<(String, String)>,
    /// Partitions committed and failed by then.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub(super) committed: u32,
    #[serde(rename = "f", default, skip_serializing_if = "is_default")]
    pub(super) failed: u32,
}

/// An award: its executions take consecutive sequence numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AwardRecord {
    #[serde(rename = "p")]
    pub(super) worker: PeerId,
    #[serde(rename = "e")]
    pub(super) epoch: u32,
    #[serde(rename = "r")]
    pub(super) spans: Vec<Span>,
    #[serde(rename = "w")]
    pub(super) time: u64,
    #[serde(rename = "s")]
    pub(super) seq: u64,
}

/// What became of executions without a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fate {
    /// The worker declined, gave back, or vouches that it never started it.
    #[serde(rename = "d")]
    Declined,
    /// Its worker did not answer the award. It may still win; another attempt may run beside it.
    #[serde(rename = "s")]
    Silent,
    /// Nothing is known: its worker is silent. It may still win; another attempt may run beside it.
    #[serde(rename = "g")]
    GivenUp,
    /// Its worker says that it is lost.
    #[serde(rename = "l")]
    Lost,
    /// The owner does not want it any more.
    #[serde(rename = "c")]
    Cancelled,
    /// The owner ended it as failed: its time was over, or its worker was lost for good.
    #[serde(rename = "f")]
    Failed,
}

/// Executions that share a fate: they take consecutive sequence numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FateRecord {
    #[serde(rename = "r")]
    pub(super) spans: Vec<Span>,
    #[serde(rename = "f")]
    pub(super) fate: Fate,
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    #[serde(rename = "w")]
    pub(super) time: u64,
    #[serde(rename = "s")]
    pub(super) seq: u64,
    /// The partitions end as failed with it.
    #[serde(rename = "x", default, skip_serializing_if = "is_default")]
    pub(super) last: bool,
}

/// Receipts that were applied together: from this one, so many, at this time, with numbers from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u64, u64)", into = "(u32, u32, u64, u64)")]
pub(super) struct Applied {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) time: u64,
    pub(super) seq: u64,
}

impl From<(u32, u32, u64, u64)> for Applied {
    fn from((first, count, time, seq): (u32, u32, u64, u64)) -> Self {
        Applied { first, count, time, seq }
    }
}

impl From<Applied> for (u32, u32, u64, u64) {
    fn from(applied: Applied) -> Self {
        (applied.first, applied.count, applied.time, applied.seq)
    }
}

/// A group of receipts: the proof, and the source of the commits in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReceiptsRecord {
    #[serde(rename = "g")]
    pub(super) group: SealedGroup,
    #[serde(rename = "a")]
    pub(super) applied: Vec<Applied>,
    /// Applied ones that another attempt had beaten.
    #[serde(rename = "r", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) raced: Vec<u32>,
    /// Failures that ended their partition.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) last: Vec<u32>,
    /// Sequence numbers of `Running` lines that were shown before.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ran: Vec<(u32, u64)>,
    /// Failures whose result is held here all the same.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) held: Vec<u32>,
}

/// Nothing is left to tell any worker about the job version: what its retention needs, so that the other records need
/// not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SettledRecord {
    /// When it last changed; wall clock, nanoseconds.
    #[serde(rename = "w")]
    pub(super) ended: u64,
    #[serde(rename = "n")]
    pub(super) executions: u32,
}

/// The epoch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct EpochRecord {
    #[serde(rename = "e")]
    pub(super) epoch: u32,
}

/// The job of records that belong to the node.
pub(super) const NODE: JobId = JobId([0; 16]);
