//! Everything durable about a job version: the facts, applied one by one. The live machine and the views of
//! ended jobs read the same ledger; a restart applies the same facts again.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::job::state::{ExecutionState, JobState};
use ::job::{JobId, PeerId};

use super::record::{Applied, AwardRecord, Fate, FateRecord, JobRecord, ReceiptsRecord, StateRecord};
use crate::codec::Bytes;
use crate::message::{FaultClass, Outcome, Receipt, ReceiptGroup, ResultInfo, Usage};
use crate::range::RangeSet;
use crate::record::{Kind, Record, RecordKey, RestoreError};

/// A partition and an attempt of it.
pub(super) type Part = (u32, u32);

/// Sequence numbers that may be shown without being in a record; after a restart as many are left out.
pub(super) const UNRECORDED_SEQS: u64 = 256;

/// An execution as its owner knows it.
#[derive(Debug, Clone)]
pub(super) struct Execution {
    /// Which of the ledger's workers.
    pub(super) worker: u32,
    pub(super) award: u64,
    pub(super) epoch: u32,
    pub(super) state: ExecutionState,
    pub(super) message: String,
    /// Its worker is silent. Not recorded.
    pub(super) unknown: bool,
    /// Another attempt may run beside it: nothing is expected of it any more.
    pub(super) given_up: bool,
    pub(super) created: u64,
    pub(super) modified: u64,
    pub(super) started: Option<u64>,
    pub(super) ended: Option<u64>,
    pub(super) running_seq: u64,
    pub(super) end_seq: u64,
    pub(super) outcome: Option<Outcome>,
    pub(super) result: Option<ResultInfo>,
    pub(super) usage: Usage,
    pub(super) held: bool,
}

/// What a sequence number is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// The job: which of its state records.
    Job(usize),
    Requested(Part),
    Running(Part),
    End(Part),
}

/// The ledger of a job version.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    pub(super) id: JobId,
    pub(super) version: u32,
    pub(super) job: JobRecord,
    pub(super) spec: Bytes,
    pub(super) state: JobState,
    pub(super) message: String,
    pub(super) modified: u64,
    pub(super) revision: u64,
    pub(super) lines: Vec<StateRecord>,
    /// Each with its name as text: every line of the history has one, and it is dear to make.
    workers: Vec<(PeerId, Box<str>)>,
    worker_index: BTreeMap<PeerId, u32>,
    pub(super) executions: BTreeMap<Part, Execution>,
    pub(super) history: BTreeMap<u64, Line>,
    pub(super) committed: RangeSet,
    pub(super) failed: RangeSet,
    /// Which attempt's end ended its partition for good, where one did.
    ended_by: BTreeMap<u32, u32>,
    /// Executions that have not ended and were not given up.
    pub(super) running: u32,
    next_seq: u64,
    /// Numbers below this may be used; above, a record must say so first.
    reserved_seq: u64,
    next_number: u64,
}

impl Ledger {
    pub(super) fn new(id: JobId, version: u32, job: JobRecord, spec: Bytes) -> Self {
        Ledger {
            id,
            version,
            state: JobState::Pending,
            message: String::new(),
            modified: job.created,
            job,
            spec,
            revision: 1,
            lines: Vec::new(),
            workers: Vec::new(),
            worker_index: BTreeMap::new(),
            executions: BTreeMap::new(),
            history: BTreeMap::new(),
            committed: RangeSet::default(),
            failed: RangeSet::default(),
            ended_by: BTreeMap::new(),
            running: 0,
            next_seq: 1,
            reserved_seq: UNRECORDED_SEQS,
            next_number: 0,
        }
    }

    /// The ledger of all records of one job version; `None` when there is no record of the job itself.
    pub(super) fn from_records(
        id: JobId,
        version: u32,
        records: &[Record],
    ) -> Result<Option<Self>, RestoreError> {
        let find = |kind| records.iter().find(|record| record.key.kind == kind);
        let Some(job) = find(Kind::Job) else { return Ok(None) };
        let spec = find(Kind::Spec).map_or(Ok(Bytes::default()), Record::read)?;
        let mut ledger = Ledger::new(id, version, job.read()?, spec);
        for record in records {
            match record.key.kind {
                Kind::State => ledger.apply_line(record.read()?),
                Kind::Award => ledger.apply_award(record.key.number, &record.read()?),
                _ => {}
            }
        }
        // Ends come after all awards, and in the order in which they happened.
        let mut ends: Vec<(u64, End)> = Vec::new();
        for record in records {
            match record.key.kind {
                Kind::Fate => {
                    let fate: FateRecord = record.read()?;
                    ends.push((fate.seq, End::Fate(fate)));
                }
                Kind::Receipts => {
                    let receipts: ReceiptsRecord = record.read()?;
                    let group = receipts
                        .group
                        .read()
                        .map_err(|source| RestoreError::Damaged { key: record.key, source })?;
                    let shared = Arc::new((receipts, group));
                    for applied in &shared.0.applied {
                        ends.push((applied.seq, End::Receipts(shared.clone(), *applied)));
                    }
                }
                _ => {}
            }
        }
        ends.sort_by_key(|(seq, _)| *seq);
        for (_, end) in ends {
            match end {
                End::Fate(fate) => ledger.apply_fate(&fate),
                End::Receipts(shared, applied) => ledger.apply_receipts(&shared.0, &shared.1, applied),
            }
        }
        ledger.next_number = records.iter().map(|record| record.key.number).max().unwrap_or(0);
        let reserved: u64 = find(Kind::Seq).map_or(Ok(0), Record::read)?;
        ledger.next_seq = ledger.next_seq.saturating_add(UNRECORDED_SEQS).max(reserved);
        ledger.reserved_seq = ledger.next_seq.saturating_add(UNRECORDED_SEQS);
        Ok(Some(ledger))
    }

    pub(super) fn key(&self, kind: Kind, number: u64) -> RecordKey {
        RecordKey { job: self.id, version: self.version, kind, number }
    }

    /// A number for the next record of this job version.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Takes sequence numbers that a record will carry.
    pub(super) fn seqs(&mut self, count: u64) -> u64 {
        let first = self.next_seq;
        self.next_seq += count;
        self.reserved_seq = self.reserved_seq.max(self.next_seq + UNRECORDED_SEQS);
        first
    }

    /// Takes one sequence number that no record carries; the record that must be stored first, if one must.
    pub(super) fn unrecorded_seq(&mut self) -> (u64, Option<Record>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        if self.next_seq <= self.reserved_seq {
            return (seq, None);
        }
        self.reserved_seq = self.next_seq + 16 * UNRECORDED_SEQS;
        (seq, Some(Record::new(self.key(Kind::Seq, 0), &self.reserved_seq)))
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.history.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    /// The number of a worker in this ledger.
    fn worker(&mut self, peer: PeerId) -> u32 {
        if let Some(index) = self.worker_index.get(&peer) {
            return *index;
        }
        let index = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        self.workers.push((peer, peer.to_string().into()));
        self.worker_index.insert(peer, index);
        index
    }

    pub(super) fn worker_of(&self, execution: &Execution) -> PeerId {
        self.workers.get(execution.worker as usize).map_or(PeerId([0; 32]), |(peer, _)| *peer)
    }

    pub(super) fn worker_name(&self, execution: &Execution) -> &str {
        self.workers.get(execution.worker as usize).map_or("", |(_, name)| name)
    }

    /// Attempts of a partition, in order.
    pub(super) fn attempts(&self, partition: u32) -> impl DoubleEndedIterator<Item = (Part, &Execution)> {
        self.executions.range((partition, 0)..=(partition, u32::MAX)).map(|(part, one)| (*part, one))
    }

    pub(super) fn next_attempt(&self, partition: u32) -> u32 {
        self.attempts(partition).next_back().map_or(1, |((_, attempt), _)| attempt.saturating_add(1))
    }

    /// Whether nothing more can come of a partition.
    pub(super) fn is_done(&self, partition: u32) -> bool {
        self.committed.contains(partition) || self.failed.contains(partition)
    }

    pub(super) fn counts(&self) -> (u32, u32) {
        let count = |set: &RangeSet| u32::try_from(set.len()).unwrap_or(u32::MAX);
        (count(&self.committed), count(&self.failed))
    }

    fn touch(&mut self, time: u64, last_seq: u64) {
        self.modified = self.modified.max(time);
        self.next_seq = self.next_seq.max(last_seq + 1);
    }

    pub(super) fn apply_line(&mut self, line: StateRecord) {
        self.touch(line.time, line.seq);
        self.revision += 1;
        self.history.insert(line.seq, Line::Job(self.lines.len()));
        if let Some(state) = line.state {
            self.state = state;
            self.message.clone_from(&line.state_message);
        }
        self.lines.push(line);
    }

    pub(super) fn apply_award(&mut self, number: u64, award: &AwardRecord) {
        let worker = self.worker(award.worker);
        let mut seq = award.seq;
        for span in &award.spans {
            for partition in span.partitions() {
                let part = (partition, span.attempt);
                let execution = Execution {
                    worker,
                    award: number,
                    epoch: award.epoch,
                    state: ExecutionState::New,
                    message: String::new(),
                    unknown: false,
                    given_up: false,
                    created: award.time,
                    modified: award.time,
                    started: None,
                    ended: None,
                    running_seq: 0,
                    end_seq: 0,
                    outcome: None,
                    result: None,
                    usage: Usage::default(),
                    held: false,
                };
                self.history.insert(seq, Line::Requested(part));
                if self.executions.insert(part, execution).is_none() {
                    self.running += 1;
                }
                seq += 1;
            }
        }
        self.touch(award.time, seq.saturating_sub(1));
    }

    pub(super) fn apply_fate(&mut self, fate: &FateRecord) {
        let mut seq = fate.seq;
        for span in &fate.spans {
            for partition in span.partitions() {
                let ended = self.apply_one_fate((partition, span.attempt), fate, seq);
                seq += 1;
                if fate.last && !self.committed.contains(partition) {
                    self.failed.insert(partition, partition + 1);
                    // The mark of a partition that nobody else would run has no words of its own.
                    if ended && !fate.message.is_empty() {
                        self.ended_by.insert(partition, span.attempt);
                    }
                }
            }
        }
        self.touch(fate.time, seq.saturating_sub(1));
    }

    /// Whether the execution had not ended before.
    fn apply_one_fate(&mut self, part: Part, fate: &FateRecord, seq: u64) -> bool {
        let Some(execution) = self.executions.get_mut(&part) else { return false };
        if execution.state.is_terminal() {
            return false;
        }
        let was_running = !execution.given_up;
        execution.message.clone_from(&fate.message);
        execution.modified = fate.time;
        execution.unknown = fate.fate == Fate::GivenUp;
        let state = match fate.fate {
            Fate::GivenUp | Fate::Silent => None,
            Fate::Declined if execution.state.can_become(ExecutionState::BidRejected) => {
                Some(ExecutionState::BidRejected)
            }
            Fate::Declined | Fate::Cancelled => Some(ExecutionState::Cancelled),
            Fate::Lost | Fate::Failed => Some(ExecutionState::Failed),
        };
        execution.given_up = true;
        if let Some(state) = state {
            execution.state = state;
            execution.ended = Some(fate.time);
            execution.end_seq = seq;
            self.history.insert(seq, Line::End(part));
        }
        if was_running {
            self.running = self.running.saturating_sub(1);
        }
        true
    }

    /// Takes note, in memory, that an execution was seen running; the record that must be stored first, if one must.
    pub(super) fn note_running(&mut self, part: Part, time: u64, started: u64) -> Option<Record> {
        let execution = self.executions.get(&part)?;
        if execution.running_seq > 0 || !execution.state.can_become(ExecutionState::Running) {
            return None;
        }
        let (seq, record) = self.unrecorded_seq();
        let execution = self.executions.get_mut(&part)?;
        execution.running_seq = seq;
        execution.state = ExecutionState::Running;
        execution.started = Some(started);
        execution.modified = time;
        self.history.insert(seq, Line::Running(part));
        self.modified = self.modified.max(time);
        record
    }

    /// Applies some receipts of a group.
    pub(super) fn apply_receipts(&mut self, record: &ReceiptsRecord, group: &ReceiptGroup, applied: Applied) {
        let mut seq = applied.seq;
        for index in applied.first..applied.first.saturating_add(applied.count) {
            let Some(receipt) = group.receipts.get(index as usize) else { break };
            let shown = record.ran.iter().find(|(shown, _)| *shown == index).map(|(_, seq)| *seq);
            self.apply_receipt(record, index, receipt, applied.time, shown, seq);
            seq += 2;
        }
        self.touch(applied.time, seq.saturating_sub(1));
    }

    fn apply_receipt(
        &mut self,
        record: &ReceiptsRecord,
        index: u32,
        receipt: &Receipt,
        time: u64,
        shown: Option<u64>,
        seq: u64,
    ) {
        let part = (receipt.partition, receipt.attempt);
        let keep = self.job.keep_on_worker;
        let Some(execution) = self.executions.get_mut(&part) else { return };
        if execution.state.is_terminal() {
            return;
        }
        if !execution.given_up {
            self.running = self.running.saturating_sub(1);
        }
        let raced = record.raced.contains(&index);
        let success = receipt.outcome.is_success();
        execution.state = match (raced, success) {
            (true, _) => ExecutionState::Cancelled,
            (false, true) => ExecutionState::Completed,
            (false, false) => ExecutionState::Failed,
        };
        execution.message = match (&receipt.outcome, raced) {
            (_, true) => "another attempt was committed first".to_owned(),
            (Outcome::Exit(0), false) => String::new(),
            (Outcome::Exit(code), false) => format!("exit code {code}"),
            (Outcome::Fault(_, message), false) => message.clone(),
        };
        execution.given_up = true;
        execution.unknown = false;
        execution.outcome = Some(receipt.outcome.clone());
        execution.result.clone_from(&receipt.result);
        execution.usage = receipt.usage;
        execution.started = Some(receipt.started_ms.saturating_mul(1_000_000));
        execution.ended = Some(time);
        execution.modified = time;
        execution.held = if success { !keep && !raced } else { record.held.contains(&index) };
        execution.running_seq = shown.unwrap_or(seq);
        execution.end_seq = seq + 1;
        self.history.insert(execution.running_seq, Line::Running(part));
        self.history.insert(seq + 1, Line::End(part));
        if !raced && success {
            self.committed.insert(part.0, part.0 + 1);
        }
        if record.last.contains(&index) && !self.committed.contains(part.0) {
            self.failed.insert(part.0, part.0 + 1);
            self.ended_by.insert(part.0, part.1);
        }
    }

    /// What made a partition fail, in words; with the fault's class where there was one.
    pub(super) fn failure_of(&self, partition: u32) -> Option<(Option<FaultClass>, String)> {
        let last = self.ended_by.get(&partition).map(|attempt| (partition, *attempt));
        let last = last.and_then(|part| Some((part, self.executions.get(&part)?)));
        // What failed by itself says more than what was lost or cancelled after it.
        let own = self
            .attempts(partition)
            .rfind(|(_, one)| one.state == ExecutionState::Failed && one.outcome.is_some());
        let failed = || self.attempts(partition).rfind(|(_, one)| one.state == ExecutionState::Failed);
        let (_, execution) = last.or(own).or_else(failed).or_else(|| self.attempts(partition).next_back())?;
        let class = match &execution.outcome {
            Some(Outcome::Fault(class, _)) => Some(*class),
            _ => None,
        };
        Some((class, execution.message.clone()))
    }
}

enum End {
    Fate(FateRecord),
    Receipts(Arc<(ReceiptsRecord, ReceiptGroup)>, Applied),
}
