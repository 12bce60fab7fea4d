//! What clients see of a job: the same from the live machine and from records.

use std::collections::BTreeMap;
use std::ops::Range;

use ::job::state::{DesiredState, ExecutionState, JobState};
use ::job::{Cid, ExecutionId, ExecutionKey, JobId, PeerId};

use super::NewJob;
use super::core::Core;
use super::job::Job;
use super::ledger::{Execution, Ledger, Line, Part};
use super::record::{JobRecord, StateRecord};
use crate::message::{Bytes, Facts, FaultClass, Outcome, ResultInfo, Usage};
use crate::record::{Kind, Record, RestoreError};

/// What is said of work that is with others while no peer is connected. Nothing follows from it: for all that this node
/// can know, it is its own link that is down.
const ALONE: &str = "its workers are out of reach: no peer is connected";

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

/// A job version without its executions and its history.
#[derive(Debug, Clone, PartialEq)]
pub struct JobHead {
    /// The short form.
    pub summary: JobSummary,
    /// What its id was derived from.
    pub nonce: Bytes,
    /// The CID of its spec.
    pub spec_cid: Cid,
    /// Its spec, canonical bytes.
    pub spec: Bytes,
    /// How often its state changed, and 1.
    pub revision: u64,
}

impl JobHead {
    /// The head of a job version from its records of the kinds [`Kind::Job`], [`Kind::Spec`] and [`Kind::State`]; others
    /// are not looked at. Of one that has not ended, [`JobReader::head`] knows more. `None` when the record of the job
    /// itself is missing.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Option<Self>, RestoreError> {
        let (mut job, mut spec) = (None, Bytes::default());
        let mut standing = Standing::default();
        let mut revision = 1;
        for record in records {
            match record.key.kind {
                Kind::Job => job = Some((record.key, record.read::<JobRecord>()?)),
                Kind::Spec => spec = record.read()?,
                Kind::State => {
                    let line: StateRecord = record.read()?;
                    revision += 1;
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
        let summary = summary(key.job, key.version, &job, standing);
        Ok(Some(JobHead { summary, nonce: job.nonce, spec_cid: job.spec_cid, spec, revision }))
    }
}

/// Everything about a job version.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The short form.
    pub summary: JobSummary,
    /// What workers know of it.
    pub facts: Facts,
    /// Its executions by partition and attempt.
    pub executions: Vec<ExecutionView>,
    /// What happened, in the order of the sequence numbers.
    pub history: Vec<HistoryEvent>,
}

/// A job version out of its records: one that has left the machine's memory.
#[derive(Debug)]
pub struct StoredJob {
    ledger: Ledger,
    owner: PeerId,
}

impl StoredJob {
    /// The job of `owner` that these are all the records of: its newest version, where they are of several. `None` when
    /// the record of the job itself is missing.
    pub fn from_records(
        records: impl IntoIterator<Item = Record>,
        owner: PeerId,
    ) -> Result<Option<Self>, RestoreError> {
        let mut records: Vec<Record> = records.into_iter().collect();
        records.sort_by_key(|record| record.key);
        let Some(newest) = records.iter().rfind(|record| record.key.kind == Kind::Job) else {
            return Ok(None);
        };
        let (id, version) = (newest.key.job, newest.key.version);
        records.retain(|one| one.key.version == version);
        Ok(Ledger::from_records(id, version, &records)?.map(|ledger| StoredJob { ledger, owner }))
    }

    /// To read from it.
    pub fn reader(&self) -> JobReader<'_> {
        JobReader { ledger: &self.ledger, live: None, alone: false, owner: self.owner }
    }
}

/// A job version, live or stored, to read from. A job may have a million executions: what is not asked for is not made.
#[derive(Debug, Clone, Copy)]
pub struct JobReader<'a> {
    ledger: &'a Ledger,
    live: Option<&'a Job>,
    /// No peer is connected.
    alone: bool,
    /// Named as holder of results that are with it.
    owner: PeerId,
}

impl<'a> JobReader<'a> {
    pub(super) fn live(job: &'a Job, core: &Core) -> Self {
        let (owner, alone) = (core.me(), core.connected.is_empty());
        JobReader { ledger: &job.ledger, live: Some(job), alone, owner }
    }

    /// The job in short.
    pub fn summary(&self) -> JobSummary {
        let (committed, failed) = self.ledger.counts();
        let open = self.live.filter(|job| !job.ended()).map_or(0, Job::open_count);
        let standing = Standing {
            state: self.ledger.state,
            message: self.message().to_owned(),
            modified: self.ledger.modified,
            open,
            running: self.ledger.running,
            committed,
            failed,
        };
        summary(self.ledger.id, self.ledger.version, &self.ledger.job, standing)
    }

    /// Why it is where it is. A job whose workers are all out of reach runs on for all that its owner can know.
    pub(super) fn message(&self) -> &'a str {
        let Some(job) = self.live.filter(|job| self.alone && job.ledger.state == JobState::Running) else {
            return &self.ledger.message;
        };
        let mut working =
            job.shares.iter().filter(|(_, share)| !share.live.is_empty()).map(|(peer, _)| *peer);
        match working.next() {
            Some(first) if first != self.owner && working.all(|peer| peer != self.owner) => ALONE,
            _ => &self.ledger.message,
        }
    }

    /// The job without its executions and its history.
    pub fn head(&self) -> JobHead {
        JobHead {
            summary: self.summary(),
            nonce: self.ledger.job.nonce.clone(),
            spec_cid: self.ledger.job.spec_cid,
            spec: self.ledger.spec.clone(),
            revision: self.ledger.revision,
        }
    }

    /// Who offers to run partitions, and how many at once; nobody once the job has left the machine's memory.
    pub fn bidders(&self) -> Vec<(PeerId, u32)> {
        self.live.map_or_else(Vec::new, Job::bidders)
    }

    /// Those of the executions that have these places, by partition and attempt; those that there are.
    pub fn executions(&self, places: Range<usize>) -> impl Iterator<Item = ExecutionView> + use<'a> {
        let reader = *self;
        let chosen = self.ledger.executions.iter().skip(places.start).take(places.len());
        chosen.map(move |(part, execution)| reader.execution(*part, execution))
    }

    fn execution(&self, part: Part, execution: &Execution) -> ExecutionView {
        let (ledger, owner) = (self.ledger, self.owner);
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
            holders.push(if execution.held { owner } else { worker });
        }
        let is_out_of_reach = self.alone && worker != owner && !execution.state.is_terminal();
        let message =
            if is_out_of_reach && execution.message.is_empty() { ALONE } else { &execution.message };
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
            message: message.to_owned(),
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

    /// The lines of its history with a number above `after`, in their order.
    pub fn history(&self, after: u64) -> impl Iterator<Item = HistoryLine<'a>> + use<'a> {
        let ledger = self.ledger;
        let lines = ledger.history.range(after.saturating_add(1)..);
        lines.filter_map(move |(seq, line)| HistoryLine::new(ledger, *seq, *line))
    }

    /// Everything.
    pub fn view(&self) -> JobView {
        JobView {
            summary: self.summary(),
            facts: self.ledger.job.facts.clone(),
            executions: self.executions(0..usize::MAX).collect(),
            history: self.history(0).map(|line| line.event()).collect(),
        }
    }
}

fn key(ledger: &Ledger, (partition, attempt): Part) -> ExecutionKey {
    ExecutionKey { job: ledger.id, version: ledger.version, partition, attempt }
}

/// A line of a job's history, to look at before it is put into words.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLine<'a> {
    ledger: &'a Ledger,
    seq: u64,
    about: About<'a>,
}

#[derive(Debug, Clone, Copy)]
enum About<'a> {
    Job(&'a StateRecord),
    Requested(Part, &'a Execution),
    Running(Part, &'a Execution),
    End(Part, &'a Execution),
}

impl<'a> HistoryLine<'a> {
    fn new(ledger: &'a Ledger, seq: u64, line: Line) -> Option<Self> {
        let execution = |part| ledger.executions.get(&part);
        let about = match line {
            Line::Job(index) => About::Job(ledger.lines.get(index)?),
            Line::Requested(part) => About::Requested(part, execution(part)?),
            Line::Running(part) => About::Running(part, execution(part)?),
            Line::End(part) => About::End(part, execution(part)?),
        };
        Some(HistoryLine { ledger, seq, about })
    }

    /// Its number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// When, wall clock in nanoseconds.
    pub fn time(&self) -> u64 {
        match self.about {
            About::Job(line) => line.time,
            About::Requested(_, one) => one.created,
            About::Running(_, one) => one.started.unwrap_or(one.modified),
            About::End(_, one) => one.ended.unwrap_or(one.modified),
        }
    }

    /// The execution that it is about, where it is about one.
    pub fn execution(&self) -> Option<ExecutionKey> {
        match self.about {
            About::Job(_) => None,
            About::Requested(part, _) | About::Running(part, _) | About::End(part, _) => {
                Some(key(self.ledger, part))
            }
        }
    }

    /// Whether it says that a partition goes its usual way, which the job's counts of partitions say too: it was given
    /// to a worker for the first time, it runs, it is done, or it need not be done any more.
    pub fn is_routine(&self) -> bool {
        match self.about {
            About::Job(_) => false,
            About::Requested((_, attempt), _) => attempt <= 1,
            About::Running(..) => true,
            About::End(_, one) => {
                matches!(one.state, ExecutionState::Completed | ExecutionState::Cancelled)
            }
        }
    }

    /// It in words.
    pub fn event(&self) -> HistoryEvent {
        let (topic, message, one) = match self.about {
            About::Job(line) => {
                return HistoryEvent {
                    seq: self.seq,
                    time: line.time,
                    level: Level::Job,
                    execution: None,
                    topic: line.topic.as_str(),
                    message: line.message.clone(),
                    details: line.details.iter().cloned().collect(),
                };
            }
            About::Requested(_, one) => {
                ("Scheduling", format!("Requested execution on {}", self.ledger.worker_name(one)), one)
            }
            About::Running(_, one) => ("Execution", "Running".to_owned(), one),
            About::End(_, one) => {
                let (topic, message) = end_words(one);
                (topic, message, one)
            }
        };
        HistoryEvent {
            seq: self.seq,
            time: self.time(),
            level: Level::Execution,
            execution: self.execution(),
            topic,
            message,
            details: BTreeMap::from([("NodeID".to_owned(), self.ledger.worker_name(one).to_owned())]),
        }
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
