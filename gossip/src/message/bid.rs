//! Asking, bidding, declining, and what workers tell each other about open jobs.

use job::JobId;
use serde::{Deserialize, Serialize};

use super::announcement::{Announcement, MAX_ANNOUNCED, MAX_ANNOUNCEMENT_BYTES, check_addresses};
use crate::codec::{Bytes, DecodeError, is_default, within};
use crate::topic::Class;

/// When a worker sent a message, on its own boot clock: awards carry it back, and the worker refuses
/// those that answer a message older than one lease, or one from before its restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Stamp {
    /// Which start of the worker it was: random.
    pub start: u64,
    /// Milliseconds on its boot clock.
    pub at_ms: u64,
}

impl From<(u64, u64)> for Stamp {
    fn from((start, at_ms): (u64, u64)) -> Self {
        Stamp { start, at_ms }
    }
}

impl From<Stamp> for (u64, u64) {
    fn from(stamp: Stamp) -> Self {
        (stamp.start, stamp.at_ms)
    }
}

/// An announcement for one peer; the connection says whose job it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The job; theta is 1.
    #[serde(rename = "a")]
    pub announcement: Announcement,
    /// Where the owner can be reached.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// How long the job is worth remembering, in milliseconds.
    #[serde(rename = "l")]
    pub ttl_ms: u64,
    /// The owner's wall clock in nanoseconds, for the worker to compare its own with. Nothing depends on it: the
    /// connection proves that it is no replay.
    #[serde(rename = "w", default, skip_serializing_if = "is_default")]
    pub issued: u64,
}

impl Ask {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        check_addresses(&self.addresses)?;
        self.announcement.check()
    }
}

/// A worker would run some partitions. Binds nobody; the worker keeps capacity back for a few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bid {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// The seed of the announcement or ask that it answers.
    #[serde(rename = "e")]
    pub seed: u64,
    /// When it was sent.
    #[serde(rename = "a")]
    pub stamp: Stamp,
    /// When the first partition could start, in milliseconds from now.
    #[serde(rename = "b", default, skip_serializing_if = "is_default")]
    pub start_ms: u64,
    /// How many partitions it would run at once.
    #[serde(rename = "s")]
    pub slots: u32,
    /// Input bytes that it holds.
    #[serde(rename = "l", default, skip_serializing_if = "is_default")]
    pub local_bytes: u64,
    /// Whether module or image are there.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub cached: bool,
    /// For how long it keeps the capacity back, in milliseconds.
    #[serde(rename = "h")]
    pub hold_ms: u64,
    /// As in [`Decline::skew_s`].
    #[serde(rename = "k", default, skip_serializing_if = "is_default")]
    pub skew_s: i64,
}

/// Why a worker does not run a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeclineCode {
    /// It has no such engine.
    #[serde(rename = "e")]
    Engine,
    /// Its labels do not meet the constraints.
    #[serde(rename = "k")]
    Constraints,
    /// The job needs more than the whole worker has.
    #[serde(rename = "r")]
    Resources,
    /// It cannot read that kind of input.
    #[serde(rename = "i")]
    Source,
    /// It cannot publish that way.
    #[serde(rename = "p")]
    Publisher,
    /// Its operator allows no such network.
    #[serde(rename = "w")]
    Network,
    /// Its operator does not run such jobs of such owners.
    #[serde(rename = "o")]
    Policy,
    /// It could run it, but not now.
    #[serde(rename = "b")]
    Busy,
    /// The award has an old epoch or fence.
    #[serde(rename = "f")]
    OldFence,
    /// The award answers a message that is too old.
    #[serde(rename = "t")]
    Stale,
    /// The award needs the spec, which the worker does not have.
    #[serde(rename = "s")]
    NoSpec,
    /// The worker is shutting down.
    #[serde(rename = "d")]
    Leaving,
    /// The partition was stopped there.
    #[serde(rename = "c")]
    Stopped,
}

impl DeclineCode {
    /// What it says after "N peers …", for one peer.
    pub fn words(self, many: bool) -> &'static str {
        match (self, many) {
            (DeclineCode::Engine, false) => "lacks the engine",
            (DeclineCode::Engine, true) => "lack the engine",
            (DeclineCode::Constraints, false) => "does not meet the constraints",
            (DeclineCode::Constraints, true) => "do not meet the constraints",
            (DeclineCode::Resources, false) => "has too few resources",
            (DeclineCode::Resources, true) => "have too few resources",
            (DeclineCode::Source, false) => "cannot read such inputs",
            (DeclineCode::Source, true) => "cannot read such inputs",
            (DeclineCode::Publisher, false) => "lacks the publisher",
            (DeclineCode::Publisher, true) => "lack the publisher",
            (DeclineCode::Network, false) => "allows no such network",
            (DeclineCode::Network, true) => "allow no such network",
            (DeclineCode::Policy, false) => "does not run such jobs for this owner",
            (DeclineCode::Policy, true) => "do not run such jobs for this owner",
            (DeclineCode::Busy, false) => "is busy",
            (DeclineCode::Busy, true) => "are busy",
            (DeclineCode::OldFence | DeclineCode::Stale | DeclineCode::NoSpec | DeclineCode::Stopped, _) => {
                "answered too late"
            }
            (DeclineCode::Leaving, false) => "is shutting down",
            (DeclineCode::Leaving, true) => "are shutting down",
        }
    }

    /// Whether waiting may help: the worker could run such a job at another moment.
    pub fn is_passing(self) -> bool {
        matches!(
            self,
            DeclineCode::Busy
                | DeclineCode::OldFence
                | DeclineCode::Stale
                | DeclineCode::NoSpec
                | DeclineCode::Stopped
        )
    }
}

/// Longest reason in a decline: bids and declines stay below 512 bytes.
const MAX_REASON_BYTES: usize = 320;

/// A worker would not run a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decline {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// The seed of the announcement or ask that it answers.
    #[serde(rename = "e")]
    pub seed: u64,
    /// Why.
    #[serde(rename = "c")]
    pub code: DeclineCode,
    /// The same for a person: which engine, which constraint.
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// By how many seconds the owner's clock was ahead of this worker's when the ask came; 0 while they are close enough
    /// for announcements. An ask that was long on its way makes the owner's look slow.
    #[serde(rename = "k", default, skip_serializing_if = "is_default")]
    pub skew_s: i64,
}

impl Decline {
    /// A decline with its text cut to what fits.
    pub fn new(job: JobId, version: u32, seed: u64, code: DeclineCode, message: &str) -> Self {
        Decline { job, version, seed, code, message: super::cut_to(message, MAX_REASON_BYTES), skew_s: 0 }
    }

    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        within("decline reason", self.message.len(), MAX_REASON_BYTES)
    }
}

/// Nothing is open in this job version any more, or nothing that this worker could get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
}

/// A worker that joined or has room asks for announcements that are still open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pull {
    /// At most this many messages.
    #[serde(rename = "n")]
    pub most: u32,
}

/// Announcement messages as their owners signed them, with the milliseconds that each is still worth remembering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// Class, bytes, and milliseconds left.
    #[serde(rename = "m")]
    pub messages: Vec<(Class, Bytes, u64)>,
}

impl Remembered {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        within("list of remembered announcements", self.messages.len(), 4 * MAX_ANNOUNCED)?;
        self.messages
            .iter()
            .try_for_each(|(_, bytes, _)| within("announcement", bytes.len(), MAX_ANNOUNCEMENT_BYTES))
    }
}
