//! What clients see of a job: the same from the live machine and from records.

use std::collections::BTreeMap;

use ::job::state::{DesiredState, ExecutionState, JobState};
use ::job::{Cid, ExecutionId, ExecutionKey, JobId, PeerId};

use super::NewJob;
use super::ledger::{Execution, Ledger, Line, Part};
use super::record::{JobRecord, StateRecord};
use crate::message::{Bytes, Facts, FaultClass, Outcome, ResultInfo, Usage};
use crate::record::{Kind, Record, RestoreError};

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
    /// How many of them wait for a worker.
    pub open: u32,
    /// How many are with a worker.
    pub running: u32,
    /// How many are committed.
    pub committed: u32,
    /// How many failed for good.
    pub failed: u32,
}

impl JobSummary {
    /// What a job is right after it was accepted.
    pub fn submitted(job: &NewJob, wall: u64) -> Self {
        let record = JobRecord::new(job, wall);
        summary(
            job.id,
            job.version,
            &record,
            Standing { modified: wall, open: job.count, ..Standing::default() },
        )
    }

    /// The summary of a job version from its records of the kinds [`Kind::Job`] and [`Kind::State`]; others are
    /// not looked at. While a job runs, its live machine knows more. `None` when the record of the job itself is missing.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Option<Self>, RestoreError> {
        let mut job = None;
        let mut standing = Standing::default();
        for record in records {
            match record.key.kind {
                Kind::Job => job = Some((record.key, record.read::<JobRecord>()?)),
                Kind::State => {
                    let line: StateRecord = record.read()?;
                    standing.modified = standing.modified.max(line.time);
                    (standing.committed, standing.failed) = (line.committed, line.failed);
                    if let Some(state) = line.state {
                        standing.state = state;
                        standing.message = line.state_message;
                    }
                }
                _ => {}
            }
        }
        let Some((key, job)) = job else { return Ok(None) };
        standing.modified = standing.modified.max(job.created);
        if !standing.state.is_terminal() {
            standing.open = job.count.saturating_sub(standing.committed).saturating_sub(standing.failed);
        }
        Ok(Some(summary(key.job, key.version, &job, standing)))
    }
}

/// What changes of a summary.
#[derive(Default)]
struct Standing {
    state: JobState,
    message: String,
    modified: u64,
    open: u32,
    running: u32,
    committed: u32,
    failed: u32,
}

fn summary(id: JobId, version: u32, job: &JobRecord, standing: Standing) -> JobSummary {
    JobSummary {
        id,
        version,
        name: job.name.clone(),
        namespace: job.namespace.clone(),
        state: standing.state,
        message: standing.message,
        created: job.created,
        modified: standing.modified,
        count: job.count,
        open: standing.open,
        running: standing.running,
        committed: standing.committed,
        failed: standing.failed,
    }
}

/// Everything about a job version.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The short form.
    pub summary: JobSummary,
    /// What its id was derived from.
    pub nonce: Bytes,
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
    /// The view of a job from all of its records: of its newest version, where they are of several. `None` when
    /// the record of the job itself is missing.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Option<Self>, RestoreError> {
        let mut records: Vec<Record> = records.into_iter().collect();
        records.sort_by_key(|record| record.key);
        let Some(newest) = records.iter().rfind(|record| record.key.kind == Kind::Job) else {
            return Ok(None);
        };
        let (id, version) = (newest.key.job, newest.key.version);
        let records: Vec<Record> = records.into_iter().filter(|one| one.key.version == version).collect();
        Ok(Ledger::from_records(id, version, &records)?.map(|ledger| view(&ledger, 0, None)))
    }
}

pub(super) fn summarise(ledger: &Ledger, open: u32) -> JobSummary {
    let (committed, failed) = ledger.counts();
    let standing = Standing {
        state: ledger.state,
        message: ledger.message.clone(),
        modified: ledger.modified,
        open: if ledger.state.is_terminal() { 0 } else { open },
        running: ledger.running,
        committed,
        failed,
    };
    summary(ledger.id, ledger.version, &ledger.job, standing)
}

/// The whole view; `owner` is named as holder of results that are here.
pub(super) fn view(ledger: &Ledger, open: u32, owner: Option<PeerId>) -> JobView {
    JobView {
        summary: summarise(ledger, open),
        nonce: ledger.job.nonce.clone(),
        spec_cid: ledger.job.spec_cid,
        spec: ledger.spec.clone(),
        facts: ledger.job.facts.clone(),
        revision: ledger.revision,
        executions: executions(ledger, 0, usize::MAX, owner),
        history: history(ledger, 0, usize::MAX),
    }
}

pub(super) fn executions(
    ledger: &Ledger,
    first: u32,
    limit: usize,
    owner: Option<PeerId>,
) -> Vec<ExecutionView> {
    let from = ledger.executions.range((first, 0)..).take(limit);
    from.map(|(part, execution)| execution_view(ledger, *part, execution, owner)).collect()
}

fn execution_view(
    ledger: &Ledger,
    part: Part,
    execution: &Execution,
    owner: Option<PeerId>,
) -> ExecutionView {
    let key = key(ledger, part);
    let worker = ledger.worker_of(execution);
    let (exit_code, fault) = match &execution.outcome {
        Some(Outcome::Exit(code)) => (Some(*code), None),
        Some(Outcome::Fault(class, message)) => {
            (None, Some(Fault { class: *class, message: message.clone() }))
        }
        None => (None, None),
    };
    let mut holders = Vec::new();
    if execution.result.is_some() {
        // Once its owner holds it, a worker keeps a result no longer than it has room for it.
        holders.push(owner.filter(|_| execution.held).unwrap_or(worker));
    }
    ExecutionView {
        key,
        id: key.id(),
        worker,
        desired: match execution.state {
            state if state.is_terminal() => DesiredState::Stopped,
            ExecutionState::New => DesiredState::Pending,
            _ => DesiredState::Running,
        },
        state: execution.state,
        message: execution.message.clone(),
        unknown: execution.unknown,
        created: execution.created,
        modified: execution.modified,
        started: execution.started,
        ended: execution.ended,
        exit_code,
        fault,
        result: execution.result.clone(),
        holders,
        held: execution.held,
        usage: execution.usage,
    }
}

fn key(ledger: &Ledger, (partition, attempt): Part) -> ExecutionKey {
    ExecutionKey { job: ledger.id, version: ledger.version, partition, attempt }
}

/// Events with a number above `after`.
pub(super) fn history(ledger: &Ledger, after: u64, limit: usize) -> Vec<HistoryEvent> {
    let lines = ledger.history.range(after.saturating_add(1)..).take(limit);
    lines.filter_map(|(seq, line)| event(ledger, *seq, *line)).collect()
}

fn event(ledger: &Ledger, seq: u64, line: Line) -> Option<HistoryEvent> {
    let details = |pairs: &[(&str, String)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    let of = |part: Part, time: u64, topic, message: String, details| HistoryEvent {
        seq,
        time,
        level: Level::Execution,
        execution: Some(key(ledger, part)),
        topic,
        message,
        details,
    };
    match line {
        Line::Job(index) => ledger.lines.get(index).map(|line| HistoryEvent {
            seq,
            time: line.time,
            level: Level::Job,
            execution: None,
            topic: line.topic.as_str(),
            message: line.message.clone(),
            details: line.details.iter().cloned().collect(),
        }),
        Line::Requested(part) => ledger.executions.get(&part).map(|one| {
            let worker = ledger.worker_of(one).to_string();
            let message = format!("Requested execution on {worker}");
            of(part, one.created, "Scheduling", message, details(&[("NodeID", worker)]))
        }),
        Line::Running(part) => ledger.executions.get(&part).map(|one| {
            let time = one.started.unwrap_or(one.modified);
            let worker = ledger.worker_of(one).to_string();
            of(part, time, "Execution", "Running".to_owned(), details(&[("NodeID", worker)]))
        }),
        Line::End(part) => ledger.executions.get(&part).map(|one| {
            let (topic, message) = end_words(one);
            let worker = ledger.worker_of(one).to_string();
            of(part, one.ended.unwrap_or(one.modified), topic, message, details(&[("NodeID", worker)]))
        }),
    }
}

fn end_words(execution: &Execution) -> (&'static str, String) {
    match execution.state {
        ExecutionState::Completed => ("Execution", "Completed successfully".to_owned()),
        ExecutionState::Failed => {
            let timeout = matches!(execution.outcome, Some(Outcome::Fault(FaultClass::Timeout, _)));
            (if timeout { "Exec Timeout" } else { "Execution" }, format!("Failed: {}", execution.message))
        }
        ExecutionState::BidRejected => ("Scheduling", format!("Declined: {}", execution.message)),
        _ => ("Scheduling", format!("Execution stop requested because {}", execution.message)),
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
    /// Who is known to hold the result, besides this node where [`ExecutionView::held`] says so.
    pub holders: Vec<PeerId>,
    /// This node, the owner, holds the result.
    pub held: bool,
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
