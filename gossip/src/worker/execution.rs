//! Executions: waiting for capacity, starting, ending.

use std::cmp::Reverse;
use std::time::Duration;

use ::job::{ExecutionKey, Fence, PeerId, Resources, Time};

use super::job::{Job, Pending, UNSEALED};
use super::receipt::MAX_CARRIED_BYTES;
use super::{Effect, End, JobKey, Part, Start, Timer, Worker, execution_key, job_key, millis, part};
use crate::bug::Bug;
use crate::message::{FaultClass, Outcome, Phase, Receipt, cut};

/// How many waiting executions are looked at for one that fits, behind one that does not.
const LOOK_AHEAD: usize = 64;

/// An execution that has waited this long is not overtaken by smaller ones any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a phase must have lasted to be worth an early word to the owner.
pub(super) const REPORT_AFTER: Duration = Duration::from_millis(200);

/// Where an execution is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stage {
    /// Waits for capacity, under this number in the queue.
    Queued { number: u64 },
    /// Was started.
    Started { at: Time, phase: Phase, since: Time, told: bool },
    /// Is being ended, and what is to become of it.
    Ending { at: Time, fate: Fate },
}

/// What becomes of an execution that this worker ends.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fate {
    /// Its owner stopped it: nothing is told of it.
    Stopped,
    /// It is reported as lost: its lease or its owner ended.
    Lost,
    /// It ran past its timeout: it fails with this message.
    TimedOut(String),
}

/// An accepted execution that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Execution {
    pub(super) award: u64,
    pub(super) epoch: u32,
    pub(super) stage: Stage,
    pub(super) timeout: Duration,
    pub(super) message: String,
    pub(super) logged: (u64, u64),
}

/// An entry of the queue: higher priority first, then first come, first served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Queued {
    priority: Reverse<i32>,
    number: u64,
    job: JobKey,
    part: Part,
    /// When it came, in nanoseconds of boot time; 0 until it was looked at.
    waits: u64,
}

impl Queued {
    pub(super) fn new(priority: i32, number: u64, job: JobKey, part: Part) -> Self {
        Queued { priority: Reverse(priority), number, job, part, waits: 0 }
    }
}

impl Execution {
    pub(super) fn queued(award: u64, epoch: u32, number: u64) -> Self {
        Execution {
            award,
            epoch,
            stage: Stage::Queued { number },
            timeout: Duration::ZERO,
            message: String::new(),
            logged: (0, 0),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Queued { .. } => Phase::Queued,
            Stage::Started { phase, .. } => *phase,
            Stage::Ending { .. } => Phase::Publishing,
        }
    }

    pub(super) fn started(&self) -> Option<Time> {
        match &self.stage {
            Stage::Queued { .. } => None,
            Stage::Started { at, .. } | Stage::Ending { at, .. } => Some(*at),
        }
    }
}

impl Worker {
    /// Starts what fits, in the order of the queue.
    pub(super) fn start_ready(&mut self, now: Time, out: &mut Vec<Effect>) {
        loop {
            let mut ready = None;
            for queued in self.queue.iter().take(LOOK_AHEAD) {
                let need = self.need(queued.job);
                let slot = self.running < self.settings.slots;
                if (slot && need.fits(&self.free())) || self.overcommits() {
                    ready = Some(*queued);
                    break;
                }
                let waited = now.since(Time { boot: queued.waits, wall: 0 });
                if !slot || (queued.waits > 0 && waited > PATIENCE) {
                    break;
                }
            }
            let Some(queued) = ready else { break };
            self.queue.remove(&queued);
            self.start(now, queued, out);
        }
        self.note_wait(now);
    }

    /// Remembers since when the first of the queue waits.
    fn note_wait(&mut self, now: Time) {
        if let Some(first) = self.queue.first().copied()
            && first.waits == 0
        {
            self.queue.pop_first();
            self.queue.insert(Queued { waits: now.boot.max(1), ..first });
        }
    }

    fn need(&self, key: JobKey) -> Resources {
        let terms = self.jobs.get(&key).and_then(|job| job.terms.as_ref());
        terms.map_or(Resources::ZERO, |terms| terms.facts.resources)
    }

    fn start(&mut self, now: Time, queued: Queued, out: &mut Vec<Effect>) {
        let (key, part) = (queued.job, queued.part);
        let timeout = self.timeout(now, key);
        let has_room = self.carried < MAX_CARRIED_BYTES;
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let (Some(terms), Some(execution)) = (&job.terms, job.executions.get_mut(&part)) else { return };
        if !matches!(execution.stage, Stage::Queued { number } if number == queued.number) {
            return;
        }
        execution.stage = Stage::Started { at: now, phase: Phase::Preparing, since: now, told: false };
        execution.timeout = timeout;
        job.queued -= 1;
        job.starts.insert((now, part));
        let id = execution_key(key, part);
        let start = Start {
            execution: id,
            id: id.id(),
            fence: Fence::new(execution.epoch, part.1),
            owner: job.owner,
            submitter: terms.submitter,
            spec: terms.spec.clone(),
            partition_count: terms.count,
            resources: terms.facts.resources,
            timeout,
            hints: terms.hints.clone(),
            // What stays on its worker must be where peers can fetch it.
            inline: has_room && !terms.keep,
        };
        let owner = job.owner;
        self.used = self.used.checked_add(&start.resources).unwrap_or(self.used);
        self.running += 1;
        self.counters.started += 1;
        self.marked.insert(key);
        if !self.has_bug(|bug| bug == Bug::NoTimeout) {
            self.timers.set(Timer::Deadline(id), now + timeout);
        }
        self.timers.set_earlier(Timer::Report(owner), now + REPORT_AFTER);
        out.push(Effect::Start(Box::new(start)));
    }

    /// How long an execution of this job may run: its own timeout, what is left of the job's, the operator's limit.
    fn timeout(&self, now: Time, key: JobKey) -> Duration {
        let Some(terms) = self.jobs.get(&key).and_then(|job| job.terms.as_ref()) else {
            return Duration::ZERO;
        };
        let longest = self.policy(terms.submitter).longest_run.unwrap_or(self.settings.longest_run);
        let own = match terms.facts.run_ms {
            0 => longest,
            run_ms => Duration::from_millis(run_ms).min(longest),
        };
        terms.ends.map_or(own, |ends| own.min(ends.since(now)))
    }

    pub(super) fn on_phase(
        &mut self,
        now: Time,
        id: ExecutionKey,
        phase: Phase,
        message: String,
        logged: (u64, u64),
    ) {
        let Some(job) = self.jobs.get_mut(&job_key(&id)) else { return };
        let owner = job.owner;
        let Some(execution) = job.executions.get_mut(&part(&id)) else { return };
        let news = execution.message != message;
        execution.message = cut(&message);
        execution.logged = logged;
        if let Stage::Started { phase: was, since, told, .. } = &mut execution.stage
            && (*was != phase || news)
        {
            (*was, *since, *told) = (phase, now, false);
            self.timers.set_earlier(Timer::Report(owner), now + REPORT_AFTER);
        }
    }

    /// An execution ended and nothing of it runs any more: its capacity is free.
    pub(super) fn on_ended(&mut self, now: Time, id: ExecutionKey, end: End, out: &mut Vec<Effect>) {
        let (key, part) = (job_key(&id), part(&id));
        let need = self.need(key);
        let leaving = self.leaving;
        if !self.jobs.get(&key).is_some_and(|job| job.knows(part)) {
            // Its record was lost after it started: nobody waits for what it leaves.
            return out.push(Effect::Release { execution: id, result: end.result.map(|result| result.cid) });
        }
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(execution) = job.executions.get(&part) else { return };
        let Some(started) = execution.started() else { return };
        let Some(execution) = job.executions.remove(&part) else { return };
        job.starts.remove(&(started, part));
        self.used = self.used.checked_sub(&need).unwrap_or(Resources::ZERO);
        self.running = self.running.saturating_sub(1);
        self.counters.ended += 1;
        self.freed = true;
        self.timers.clear(Timer::Deadline(id));
        self.marked.insert(key);
        match execution.stage {
            Stage::Ending { fate: Fate::Stopped, .. } => {
                out.push(Effect::Release { execution: id, result: end.result.map(|result| result.cid) });
                self.settle_award(key, execution.award, out);
                self.forget_empty(key, out);
            }
            // Its lease or owner ended; or the node stops, which is no failure of the job.
            Stage::Ending { fate: Fate::Lost, .. } => self.lost(id, &execution, end, out),
            Stage::Started { .. } if leaving && is_nodes(&end.outcome) => self.lost(id, &execution, end, out),
            Stage::Ending { fate: Fate::TimedOut(ref message), .. } => {
                let outcome = Outcome::Fault(FaultClass::Timeout, message.clone());
                job.finish(part, &execution, End { outcome, ..end }, millis(now.since(started)));
                self.ended.insert(key);
            }
            Stage::Queued { .. } | Stage::Started { .. } => {
                job.finish(part, &execution, end, millis(now.since(started)));
                self.ended.insert(key);
            }
        }
    }

    /// An execution that started ended without a receipt.
    fn lost(&mut self, id: ExecutionKey, execution: &Execution, end: End, out: &mut Vec<Effect>) {
        if let Some(job) = self.jobs.get_mut(&job_key(&id)) {
            job.lost.insert(part(&id), execution.award);
            self.reports.insert(job.owner);
        }
        out.push(Effect::Release { execution: id, result: end.result.map(|result| result.cid) });
    }

    pub(super) fn on_deadline(&mut self, id: ExecutionKey, out: &mut Vec<Effect>) {
        let (key, part) = (job_key(&id), part(&id));
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(execution) = job.executions.get_mut(&part) else { return };
        let seconds = execution.timeout.as_secs_f64();
        let message = if execution.message.is_empty() {
            format!("Execution timed out after {seconds} s")
        } else {
            format!("Execution timed out after {seconds} s: {}", execution.message)
        };
        if let Stage::Started { at, .. } = execution.stage {
            execution.stage = Stage::Ending { at, fate: Fate::TimedOut(message.clone()) };
            out.push(Effect::End { execution: id, reason: message });
        }
    }

    /// Ends an execution on its owner's word: at once when it only waits, else when its engine has let go.
    pub(super) fn end(&mut self, key: JobKey, part: Part, reason: &str, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(execution) = job.executions.get_mut(&part) else { return };
        match execution.stage {
            Stage::Queued { .. } => {
                let award = execution.award;
                self.take_out(key, part);
                self.settle_award(key, award, out);
            }
            Stage::Started { at, .. } => {
                execution.stage = Stage::Ending { at, fate: Fate::Stopped };
                out.push(Effect::End { execution: execution_key(key, part), reason: reason.to_owned() });
            }
            Stage::Ending { at, .. } => execution.stage = Stage::Ending { at, fate: Fate::Stopped },
        }
    }

    /// Gives a waiting execution back: it never started and never will.
    pub(super) fn unqueue(&mut self, key: JobKey, part: Part, out: &mut Vec<Effect>) -> bool {
        let Some(award) = self.take_out(key, part) else { return false };
        self.settle_award(key, award, out);
        true
    }

    /// Takes a waiting execution out of the queue; its award.
    pub(super) fn take_out(&mut self, key: JobKey, part: Part) -> Option<u64> {
        let job = self.jobs.get_mut(&key)?;
        let execution = job.executions.get(&part)?;
        let Stage::Queued { number } = execution.stage else { return None };
        let award = execution.award;
        job.executions.remove(&part);
        job.queued -= 1;
        let priority = job.terms.as_ref().map_or(0, |terms| terms.facts.priority);
        let entry = Queued::new(priority, number, key, part);
        if !self.queue.remove(&entry) {
            // It had been the first of the queue and carries since when.
            self.queue.retain(|queued| queued.number != number);
        }
        Some(award)
    }

    /// Ends all executions of an owner that `is` names; they are reported as lost, or as never started.
    pub(super) fn abandon(
        &mut self,
        owner: PeerId,
        is: impl Fn(&Job) -> bool,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        let keys: Vec<JobKey> =
            self.jobs.iter().filter(|(_, job)| job.owner == owner && is(job)).map(|(key, _)| *key).collect();
        for key in keys {
            let parts: Vec<Part> =
                self.jobs.get(&key).map_or_else(Vec::new, |job| job.executions.keys().copied().collect());
            for part in parts {
                self.lose(key, part, reason, out);
            }
        }
    }

    fn lose(&mut self, key: JobKey, part: Part, reason: &str, out: &mut Vec<Effect>) {
        if let Some(award) = self.take_out(key, part) {
            if let Some(job) = self.jobs.get_mut(&key) {
                job.unstarted.insert(part, award);
                self.reports.insert(job.owner);
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(execution) = job.executions.get_mut(&part) else { return };
        if let Stage::Started { at, .. } = execution.stage {
            execution.stage = Stage::Ending { at, fate: Fate::Lost };
            out.push(Effect::End { execution: execution_key(key, part), reason: reason.to_owned() });
        }
    }
}

impl Job {
    /// Turns an end into a receipt, to be sealed when the batch ends.
    fn finish(&mut self, part: Part, execution: &Execution, end: End, ran_ms: u64) {
        self.note_span(ran_ms);
        let outcome = match end.outcome {
            Outcome::Fault(class, message) => Outcome::Fault(class, cut(&message)),
            exit => exit,
        };
        let receipt = Receipt {
            partition: part.0,
            attempt: part.1,
            epoch: execution.epoch,
            outcome,
            result: end.result,
            usage: end.usage,
            started_ms: end.started_ms,
            ran_ms: end.ran_ms,
        };
        self.offered.insert(part, UNSEALED);
        self.pending.push(Pending {
            receipt,
            award: execution.award,
            blocks: end.blocks,
            stored: end.stored,
            engine: cut(&end.engine),
            inputs: end.inputs,
        });
    }
}

fn is_nodes(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Fault(FaultClass::Node, _))
}
