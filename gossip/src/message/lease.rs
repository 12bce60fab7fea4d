//! Renewals, acknowledgements and reconciling.

use job::JobId;
use serde::{Deserialize, Serialize};

use super::bid::Stamp;
use super::{MAX_JOBS_PER_MESSAGE, Span, check_named, check_spans, weight_of};
use crate::codec::{Bytes, DecodeError, is_default, within};
use crate::crypto::Signed;

/// Most executions whose progress one renewal spells out; the rest are only named.
const MAX_PROGRESS: usize = 1024;

/// Where an execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for capacity.
    #[serde(rename = "q")]
    Queued,
    /// Fetches inputs, compiles, pulls.
    #[serde(rename = "p")]
    Preparing,
    /// The guest runs.
    #[serde(rename = "r")]
    Running,
    /// The guest has ended and its result is being stored or uploaded.
    #[serde(rename = "u")]
    Publishing,
    /// Its receipt waits for the owner.
    #[serde(rename = "e")]
    Ended,
}

/// What one execution is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The partition.
    #[serde(rename = "i")]
    pub partition: u32,
    /// The attempt.
    #[serde(rename = "a")]
    pub attempt: u32,
    /// Where it is.
    #[serde(rename = "p")]
    pub phase: Phase,
    /// For how long it has run, in milliseconds.
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    pub ran_ms: u64,
    /// What a person wants to know of it.
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Bytes of standard output so far.
    #[serde(rename = "o", default, skip_serializing_if = "is_default")]
    pub stdout: u64,
    /// Bytes of standard error so far.
    #[serde(rename = "e", default, skip_serializing_if = "is_default")]
    pub stderr: u64,
}

/// What a worker has of one job version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobLive {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// Accepted and not ended, or ended with a receipt that the owner has not dealt with.
    #[serde(rename = "l", default, skip_serializing_if = "Vec::is_empty")]
    pub live: Vec<Span>,
    /// Those of them that have started.
    #[serde(rename = "p", default, skip_serializing_if = "Vec::is_empty")]
    pub progress: Vec<Progress>,
    /// Ended without a receipt: what ran when the worker crashed, what its lease took down.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Span>,
    /// Never started there, and the worker vouches that they never will be.
    #[serde(rename = "n", default, skip_serializing_if = "Vec::is_empty")]
    pub unstarted: Vec<Span>,
}

impl JobLive {
    pub(crate) fn empty(job: JobId, version: u32) -> Self {
        JobLive {
            job,
            version,
            live: Vec::new(),
            progress: Vec::new(),
            lost: Vec::new(),
            unstarted: Vec::new(),
        }
    }

    /// How much it says.
    pub(crate) fn weight(&self) -> (usize, u64) {
        let lists = [&self.live, &self.lost, &self.unstarted].map(|spans| weight_of(spans));
        lists.into_iter().fold((0, 0), |(spans, parts), (more, many)| (spans + more, parts + many))
    }

    fn check(&self) -> Result<(), DecodeError> {
        within("list of executions", self.progress.len(), MAX_PROGRESS)?;
        check_spans(&self.live)?;
        check_spans(&self.lost)?;
        check_spans(&self.unstarted)?;
        self.progress.iter().try_for_each(|one| within("progress", one.message.len(), super::MAX_TEXT_BYTES))
    }
}

fn check_jobs(jobs: &[JobLive]) -> Result<(), DecodeError> {
    within("list of jobs", jobs.len(), MAX_JOBS_PER_MESSAGE)?;
    jobs.iter().try_for_each(JobLive::check)?;
    check_named(jobs.iter().flat_map(|job| [&job.live, &job.lost, &job.unstarted]))
}

/// A worker renews its leases: one message for everything it runs for this owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Renew {
    /// When it was sent: the renewed leases run from here.
    #[serde(rename = "a")]
    pub stamp: Stamp,
    /// What it runs.
    #[serde(rename = "j")]
    pub jobs: Vec<JobLive>,
}

impl Renew {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        check_jobs(&self.jobs)
    }
}

/// The owner heard a renewal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RenewAck {
    /// Which.
    #[serde(rename = "a")]
    pub stamp: Stamp,
}

/// What the owner believes a worker has of one job version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobAsked {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// What its id was derived from: only its owner may ask.
    #[serde(rename = "n")]
    pub nonce: Bytes,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// The spans.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
}

/// Spans of one job version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpans {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// The spans.
    #[serde(rename = "r")]
    pub spans: Vec<Span>,
}

/// The owner has dealt with these receipts: whatever came of them, the worker need not offer them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Which.
    #[serde(rename = "j")]
    pub jobs: Vec<JobSpans>,
}

impl Committed {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        check_job_spans(&self.jobs)
    }
}

fn check_job_spans(jobs: &[JobSpans]) -> Result<(), DecodeError> {
    within("list of jobs", jobs.len(), MAX_JOBS_PER_MESSAGE)?;
    jobs.iter().try_for_each(|job| check_spans(&job.spans))?;
    check_named(jobs.iter().map(|job| &job.spans))
}

/// The owner asks about awards that it believes are with this worker, one page at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reconcile {
    /// Names the question.
    #[serde(rename = "i")]
    pub id: u64,
    /// The owner's epoch.
    #[serde(rename = "e")]
    pub epoch: u32,
    /// What it believes.
    #[serde(rename = "j")]
    pub jobs: Vec<JobAsked>,
}

impl Reconcile {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        within("list of jobs", self.jobs.len(), MAX_JOBS_PER_MESSAGE)?;
        for job in &self.jobs {
            within("nonce", job.nonce.len(), 128)?;
            check_spans(&job.spans)?;
        }
        check_named(self.jobs.iter().map(|job| &job.spans))
    }
}

/// What a worker has for an owner: the answer to [`Reconcile`] for the spans it names, or unasked for all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// The question that it answers; 0 when it was not asked.
    #[serde(rename = "i", default, skip_serializing_if = "is_default")]
    pub answers: u64,
    /// When it was sent.
    #[serde(rename = "a")]
    pub stamp: Stamp,
    /// What is there, was lost, or is unknown and from now on refused.
    #[serde(rename = "j")]
    pub jobs: Vec<JobLive>,
    /// The award of this owner with the highest epoch that the worker has seen, when that is above the question's.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Signed>,
}

impl Live {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        check_jobs(&self.jobs)
    }
}
