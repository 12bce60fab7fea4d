//! Awards and their answers, recalls and stops.

use job::{Cid, Fence, JobId, PeerId};
use serde::{Deserialize, Serialize};

use super::announcement::Facts;
use super::bid::{DeclineCode, Stamp};
use super::{MAX_SPANS, Span, check_spans};
use crate::codec::{self, Bytes, DecodeError, is_default, within};
use crate::crypto::{Domain, Signable, Signed};

/// Largest spec that travels inside an award; larger ones are fetched from the owner by CID.
pub const MAX_INLINE_SPEC_BYTES: usize = 16 << 10;

/// Most peers named as holders of inputs.
const MAX_HINTS: usize = 8;

/// The signed part of an award.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AwardOrder {
    /// The owner's number of this award within the job version; answers name it.
    #[serde(rename = "i")]
    pub id: u64,
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// What its id was derived from: only its owner can award it.
    #[serde(rename = "n")]
    pub nonce: Bytes,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// Its spec.
    #[serde(rename = "s", with = "codec::cid")]
    pub spec: Cid,
    /// How many partitions the job has.
    #[serde(rename = "c")]
    pub count: u32,
    /// The owner's epoch; with an attempt it is the fence.
    #[serde(rename = "e")]
    pub epoch: u32,
    /// What to run.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
    /// Who is to run it.
    #[serde(rename = "w")]
    pub worker: PeerId,
    /// The worker's message that this answers.
    #[serde(rename = "a")]
    pub answers: Stamp,
    /// How long the lease is, in milliseconds.
    #[serde(rename = "l")]
    pub lease_ms: u64,
    /// What the job may still take in all, in milliseconds; 0 for no limit.
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    pub total_ms: u64,
    /// Whether the result stays at the worker (`KeepOn: worker`, or the `local` publisher).
    #[serde(rename = "k", default, skip_serializing_if = "is_default")]
    pub keep: bool,
}

impl AwardOrder {
    /// The fence of one of its spans.
    pub fn fence(&self, span: &Span) -> Fence {
        Fence::new(self.epoch, span.attempt)
    }
}

impl Signable for AwardOrder {
    const DOMAIN: Domain = Domain::Award;
    const MAX_BYTES: usize = 128 << 10;

    fn check(&self) -> Result<(), DecodeError> {
        within("nonce", self.nonce.len(), 128)?;
        within("list of spans", self.spans.len(), MAX_SPANS)?;
        within("partition count", self.count as usize, job::spec::MAX_COUNT as usize)?;
        let valid = !self.spans.is_empty() && self.spans.iter().all(|span| span.is_valid(self.count));
        // Each partition once: what is named twice would be started twice.
        let apart =
            self.spans.iter().zip(self.spans.iter().skip(1)).all(|(one, next)| one.end() <= next.first);
        if !(valid && apart) {
            return Err(DecodeError::Bounds("span"));
        }
        let parts: u64 = self.spans.iter().map(|span| u64::from(span.count)).sum();
        within("number of partitions", usize::try_from(parts).unwrap_or(usize::MAX), MAX_SPANS)
    }
}

/// An award: the signed order and, with the first one a worker gets of a job version, what it needs to follow it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Award {
    /// An [`AwardOrder`].
    #[serde(rename = "o")]
    pub order: Signed,
    /// What decides admission; left out when this worker has it from an earlier award.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
    /// The spec's canonical bytes, when small and not sent before.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Bytes>,
    /// Peers that hold inputs.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<PeerId>,
    /// The owner's wall clock in nanoseconds, for the worker to compare its own with: nothing depends on it.
    #[serde(rename = "w", default, skip_serializing_if = "is_default")]
    pub issued: u64,
}

impl Award {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        within("spec", self.spec.as_ref().map_or(0, |spec| spec.len()), MAX_INLINE_SPEC_BYTES)?;
        within("list of hints", self.hints.len(), MAX_HINTS)?;
        self.facts.as_ref().map_or(Ok(()), Facts::check)
    }
}

/// What a worker took of an award.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// Which award.
    #[serde(rename = "i")]
    pub award: u64,
    /// What it took.
    #[serde(rename = "y", default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<Span>,
    /// What it did not take; by this the worker vouches that it never started these and never will.
    #[serde(rename = "n", default, skip_serializing_if = "Vec::is_empty")]
    pub declined: Vec<Span>,
    /// Why not.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub code: Option<DeclineCode>,
    /// The same for a person.
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When the first one is likely to start, in milliseconds from now; 0 for at once.
    #[serde(rename = "q", default, skip_serializing_if = "is_default")]
    pub eta_ms: u64,
    /// The highest epoch of this owner that the worker knows, when an order was refused as old.
    #[serde(rename = "e", default, skip_serializing_if = "is_default")]
    pub epoch: u32,
    /// When it was sent.
    #[serde(rename = "a")]
    pub stamp: Stamp,
}

impl Reply {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        check_spans(&self.accepted)?;
        check_spans(&self.declined)?;
        within("decline reason", self.message.len(), super::MAX_TEXT_BYTES)
    }
}

/// Take back what has not started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// What the owner wants back.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
}

/// What was given back: never started, never will be. The rest of the recall goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recalled {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// What was given back.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
    /// When it was sent.
    #[serde(rename = "a")]
    pub stamp: Stamp,
}

/// The signed part of a stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StopOrder {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// What its id was derived from.
    #[serde(rename = "n")]
    pub nonce: Bytes,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// The owner's epoch.
    #[serde(rename = "e")]
    pub epoch: u32,
    /// What to end; a worker ends older attempts of these partitions too.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
    /// Who is to end it.
    #[serde(rename = "w")]
    pub worker: PeerId,
    /// Why, for a person.
    #[serde(rename = "m")]
    pub reason: String,
}

impl Signable for StopOrder {
    const DOMAIN: Domain = Domain::Stop;
    const MAX_BYTES: usize = 128 << 10;

    fn check(&self) -> Result<(), DecodeError> {
        within("nonce", self.nonce.len(), 128)?;
        within("reason", self.reason.len(), super::MAX_TEXT_BYTES)?;
        check_spans(&self.spans)
    }
}

/// A stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    /// A [`StopOrder`].
    #[serde(rename = "o")]
    pub order: Signed,
}

/// The stop was heard: what ran is being ended, what comes late is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stopped {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// What the stop named.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
}
