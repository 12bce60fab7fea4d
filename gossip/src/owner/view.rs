//! What clients see of a job: the same from the live machine and from records.

use std::collections::BTreeMap;

use job::state::{DesiredState, ExecutionState, JobState};
use job::{Cid, ExecutionId, ExecutionKey, JobId, PeerId};

use crate::message::{Bytes, Facts, FaultClass, ResultInfo, Usage};
use crate::record::{Record, RestoreError};

/// A job version in one line.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// Its version.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Where it stands.
    pub state: JobState,
    /// Why.
    pub message: String,
    /// When it was accepted, wall clock in nanoseconds.
    pub created: u64,
    /// When it last changed, wall clock in nanoseconds.
    pub modified: u64,
    /// How many partitions it has.
    pub count: u32,
    /// How many of them are committed.
    pub committed: u32,
}

/// Everything about a job version.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The short form.
    pub summary: JobSummary,
    /// The CID of its spec.
    pub spec_cid: Cid,
    /// Its spec, canonical bytes.
    pub spec: Bytes,
    /// What workers know of it.
    pub facts: Facts,
    /// How often it changed.
    pub revision: u64,
    /// Its executions by partition and attempt.
    pub executions: Vec<ExecutionView>,
    /// What happened, in the order of the sequence numbers.
    pub history: Vec<HistoryEvent>,
}

impl JobView {
    /// The view of a job version from all of its records. `None` when the record of the job itself is missing.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Option<Self>, RestoreError> {
        let _ = records.into_iter().count();
        Ok(None)
    }
}

/// How an execution failed without an exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Whose fault.
    pub class: FaultClass,
    /// What happened.
    pub message: String,
}

/// One execution as the owner knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutionView {
    /// Its key.
    pub key: ExecutionKey,
    /// Its public name.
    pub id: ExecutionId,
    /// Who runs it.
    pub worker: PeerId,
    /// What the owner wants of it.
    pub desired: DesiredState,
    /// Where it stands.
    pub state: ExecutionState,
    /// Why, or since when its worker is silent.
    pub message: String,
    /// Its lease was missed and its worker has not said more.
    pub unknown: bool,
    /// When it was awarded, wall clock in nanoseconds.
    pub created: u64,
    /// When it last changed.
    pub modified: u64,
    /// When it started, as far as that is known, in nanoseconds.
    pub started: Option<u64>,
    /// When its end became known here.
    pub ended: Option<u64>,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// Its fault.
    pub fault: Option<Fault>,
    /// Its result.
    pub result: Option<ResultInfo>,
    /// Who is known to hold the result.
    pub holders: Vec<PeerId>,
    /// What it used.
    pub usage: Usage,
}

/// Whether an event is about the job or one of its executions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `JobLevel`.
    Job,
    /// `ExecutionLevel`.
    Execution,
}

/// One line of a job's history.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryEvent {
    /// Its number: never repeats, never goes back.
    pub seq: u64,
    /// When, wall clock in nanoseconds.
    pub time: u64,
    /// Job or execution.
    pub level: Level,
    /// The execution, for those.
    pub execution: Option<ExecutionKey>,
    /// Bacalhau's topic: `Submission`, `Scheduling`, `State Update`, `Queueing`, `Execution`, …
    pub topic: &'static str,
    /// What happened.
    pub message: String,
    /// More of it.
    pub details: BTreeMap<String, String>,
}
