//! What owners write, tell and send.

use std::collections::BTreeSet;

use gossip::message::{AwardOrder, Direct};
use gossip::owner::{JobView, StoredJob};
use gossip::record::{Kind, Record, RecordKey};
use job::state::{ExecutionState, JobState};
use job::{ExecutionKey, JobId, PeerId};

use super::{Check, Due, OwnerGhost, Version};
use crate::sim::clock::SECOND;
use crate::sim::engine::{block_cid, output};
use crate::sim::words;
use crate::sim::world::{Event, World};

/// What owners say of a job whose queue timeout ended it.
pub(super) const QUEUE_TIMEOUT: &str = "Job timed out waiting for a worker";
/// The default queue timeout by a clock that is fast.
const QUEUE_AT_LEAST: u64 = 56 * SECOND;

/// A job that waits says why within this long; a little more for slow shells.
const REASON_WITHIN: u64 = 2 * SECOND + SECOND / 4;

impl OwnerGhost {
    /// The newest epoch that it used.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}

impl Check {
    /// A new owner machine: its epoch is above all that were used before.
    pub fn owner_restored(&mut self, node: usize, now: u64) {
        let ghost = &mut self.owners[node];
        ghost.restored_at = now;
        ghost.floor = ghost.floor.max(ghost.epoch);
        ghost.budget = (11_000, ghost.budget.1);
    }

    /// A job version left the disk because its retention is over: it had ended.
    pub fn forgotten(&mut self, node: usize, job: JobId, version: u32) {
        let ended = self
            .versions
            .get(&(job, version))
            .and_then(|known| known.state)
            .is_some_and(JobState::is_terminal);
        if !ended {
            self.broken("only what ended is forgotten", format!("n{node}: {} v{version}", job.short()));
        }
    }
}

impl World {
    /// A client was answered: from now on the job is never lost.
    pub fn job_accepted(&mut self, node: usize, job: usize, id: JobId, version: u32) {
        self.check.seen.jobs += 1;
        let known = self.check.versions.entry((id, version)).or_default();
        (known.owner, known.job, known.accepted) = (node, job, true);
        if known.state.is_none() {
            self.check.broken("an accepted job is on disk", format!("{} v{version}", id.short()));
        }
        self.queue.push(self.now + REASON_WITHIN, Event::Due(Due::Reason { owner: node, job: id, version }));
    }

    /// A client was answered that its job is stopped.
    pub fn job_stopped(&mut self, node: usize, job: usize) {
        let Some(id) = self.clients.job(job).id else { return };
        let newest =
            self.check.versions.iter().filter(|((of, _), _)| *of == id).map(|(key, _)| *key).next_back();
        let Some(known) = newest.and_then(|key| self.check.versions.get_mut(&key)) else { return };
        known.stopped = true;
        if !known.state.is_some_and(JobState::is_terminal) {
            let state = known.state;
            self.check.broken(
                "a stop is durable before it is answered",
                format!("n{node}: {} is {state:?}", id.short()),
            );
        }
    }

    /// The machine does not know a job that is to be stopped: then it has ended.
    pub fn job_unknown_at_stop(&mut self, node: usize, job: usize) {
        let Some(id) = self.clients.job(job).id else { return };
        let open = self.check.versions.iter().any(|((of, _), known)| {
            *of == id && known.accepted && !known.state.is_some_and(JobState::is_terminal)
        });
        if open {
            self.check
                .broken("an accepted job is never lost", format!("n{node} knows no {} to stop", id.short()));
        }
    }

    /// The records of a job version changed: what they say now follows from what they said before.
    pub fn check_records(&mut self, node: usize, job: JobId, version: u32) {
        let Some(index) = self.clients.job_of(job) else { return };
        let view = match self.view_on_disk(node, job, version) {
            Ok(Some(view)) => view,
            Ok(None) => {
                if self.check.versions.get(&(job, version)).is_some_and(|known| known.accepted) {
                    self.check.broken(
                        "an accepted job is never lost",
                        format!("{} v{version} left the disk", job.short()),
                    );
                }
                return;
            }
            Err(error) => return self.check.broken("records can be read", format!("n{node}: {error}")),
        };
        let now = self.now;
        let known = self.check.versions.entry((job, version)).or_default();
        (known.owner, known.job) = (node, index);
        known.recorded_at.get_or_insert(now);
        let mut broken =
            follow_state(known, &view).or(follow_executions(known, &view)).or(follow_history(known, &view));
        let completed = known.state == Some(JobState::Completed);
        if completed {
            let missing = (0..view.summary.count).find(|partition| !known.committed.contains_key(partition));
            if let Some(partition) = missing {
                broken = broken.or(Some((
                    "a Completed job has every partition committed",
                    format!("{partition} is not"),
                )));
            }
        }
        let committed = known.committed.len() as u64;
        self.check.seen.commits = self.check.seen.commits.max(committed);
        let ends = known.ended_at.is_none() && known.state.is_some_and(JobState::is_terminal);
        if ends {
            known.ended_at = Some(self.now);
        }
        if let Some((rule, found)) = broken {
            return self.check.broken(rule, format!("{} v{version}: {found}", job.short()));
        }
        if ends {
            self.check_patience(node, &view);
        }
        self.check_held(node, &view);
    }

    /// A job whose queue timeout ended it had a node that was awake and looking for so long.
    fn check_patience(&mut self, node: usize, view: &JobView) {
        if !view.summary.message.contains(QUEUE_TIMEOUT) {
            return;
        }
        let key = (view.summary.id, view.summary.version);
        let accepted = self.check.versions.get(&key).map_or(0, |known| known.recorded_at.unwrap_or(0));
        let restored = self.check.owners[node].restored_at;
        let since = self.nodes[node].slept_until.max(restored).max(accepted);
        let looked = self.now.saturating_sub(since);
        if looked < QUEUE_AT_LEAST {
            let found = format!("n{node} {} after {} s", key.0.short(), looked / SECOND);
            self.check.broken("a queue timeout counts time awake", found);
        }
    }

    /// A committed result is held by its owner, unless it is to stay with its worker.
    fn check_held(&mut self, node: usize, view: &JobView) {
        let Some(index) = self.clients.job_of(view.summary.id) else { return };
        if self.plan.jobs[index].keep_on_worker {
            return;
        }
        for one in view.executions.iter().filter(|one| one.state == ExecutionState::Completed) {
            let cid = one.result.as_ref().map(|result| result.cid);
            if !self.is_rogue_peer(one.worker) && cid != Some(block_cid(&output(&one.key, self.seed))) {
                let found = format!("n{node} committed {} as {cid:?}", words::key(&one.key));
                return self.check.broken("what an honest worker ran is what is committed", found);
            }
            let Some(result) = &one.result else { continue };
            if !self.nodes[node].content.contains(&result.cid) {
                let found =
                    format!("n{node} committed {} and does not hold {}", words::key(&one.key), result.cid);
                return self.check.broken("a committed result is held", found);
            }
        }
    }

    /// A job version as its records have it.
    pub fn view_on_disk(
        &self,
        node: usize,
        job: JobId,
        version: u32,
    ) -> Result<Option<JobView>, gossip::record::RestoreError> {
        let first = RecordKey { job, version, kind: Kind::Epoch, number: 0 };
        let last = RecordKey { job, version, kind: Kind::Kept, number: u64::MAX };
        let disk = &self.nodes[node].owner.disk;
        let records = disk.range(first..=last).map(|(key, value)| Record { key: *key, value: value.clone() });
        let stored = StoredJob::from_records(records, self.nodes[node].id)?;
        Ok(stored.map(|stored| stored.reader().view()))
    }

    /// Clients were told of a change.
    pub fn check_changed(
        &mut self,
        node: usize,
        job: JobId,
        version: u32,
        state: JobState,
        message: &str,
        seq: u64,
    ) {
        let known = self.check.versions.entry((job, version)).or_default();
        let mut broken = None;
        if let Some(before) = known.told.filter(|before| *before != state && !before.can_become(state)) {
            broken = Some(("states move along the graph", format!("clients see {before} become {state}")));
        } else if matches!(state, JobState::Queued | JobState::Failed) && message.is_empty() {
            broken = Some(("a pending or failed state has a reason", format!("{state} without one")));
        } else if state.is_terminal() && known.state != Some(state) {
            broken = Some((
                "an end is durable before it is told",
                format!("told {state}, on disk {:?}", known.state),
            ));
        }
        // Whoever reads on from the number told last misses nothing.
        let news = if seq > known.told_seq { self.nodes[node].owner.machine.as_ref() } else { None };
        for event in
            news.and_then(|machine| machine.view(job, Some(version))).iter().flat_map(|view| &view.history)
        {
            if known.watched.insert(event.seq) && event.seq <= known.told_seq {
                let found = format!(
                    "number {} appears after {} was told: {}",
                    event.seq, known.told_seq, event.message
                );
                broken = broken.or(Some(("a watcher misses nothing", found)));
            }
        }
        (known.told, known.told_seq) = (Some(state), known.told_seq.max(seq));
        if let Some((rule, found)) = broken {
            self.check.broken(rule, format!("n{node} {} v{version}: {found}", job.short()));
        }
    }

    /// What an owner sends stands on its disk.
    pub fn check_owner_sends(&mut self, node: usize, to: PeerId, message: &Direct) {
        match message {
            Direct::Award(award) => match award.order.read::<AwardOrder>() {
                Ok(order) => self.check_award(node, to, &order),
                Err(error) => self.check.broken("what a machine sends can be read", error.to_string()),
            },
            // What a rogue made up is dealt with whatever becomes of its execution.
            Direct::Committed(_) if self.is_rogue_peer(to) => {}
            Direct::Committed(committed) => {
                for told in &committed.jobs {
                    let Some(known) = self.check.versions.get(&(told.job, told.version)) else { continue };
                    for span in &told.spans {
                        for partition in span.partitions() {
                            let key = execution_key(told.job, told.version, partition, span.attempt);
                            let ended = known.executions.get(&key).is_none_or(|state| state.is_terminal());
                            if !ended {
                                let found = format!("n{node} tells that {} is dealt with", words::key(&key));
                                return self.check.broken("a commit is durable before it is told", found);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn check_award(&mut self, node: usize, to: PeerId, order: &AwardOrder) {
        let ghost = &mut self.check.owners[node];
        if order.epoch <= ghost.floor || order.epoch < ghost.epoch {
            let found =
                format!("n{node} awards in epoch {} after {}", order.epoch, ghost.floor.max(ghost.epoch));
            return self.check.broken("epochs rise", found);
        }
        ghost.epoch = order.epoch;
        // The same award again, because its answer was lost, gives nothing that it did not give before.
        let again = !ghost.awards.insert((order.job, order.version, order.id));
        let known = self.check.versions.entry((order.job, order.version)).or_default();
        let mut broken = None;
        for span in &order.spans {
            for partition in span.partitions() {
                let key = execution_key(order.job, order.version, partition, span.attempt);
                if known.committed.contains_key(&partition) && !again {
                    broken = Some(("a committed partition is not awarded again", words::key(&key)));
                } else if known.state.is_some_and(JobState::is_terminal) {
                    broken = Some(("an ended job awards nothing", words::key(&key)));
                } else if !known.executions.contains_key(&key) {
                    broken = Some(("an award is on disk before it is sent", words::key(&key)));
                }
                let before = known.awarded.insert((partition, span.attempt), to);
                if before.is_some_and(|before| before != to) {
                    broken = Some(("an execution has one worker", words::key(&key)));
                }
                if before.is_none() && span.attempt > 1 {
                    self.check.seen.awarded_again += 1;
                }
            }
        }
        if let Some((rule, found)) = broken {
            self.check.broken(rule, format!("n{node}: {found}"));
        }
    }

    /// After a batch: every accepted job that has not ended is in the machine's memory.
    pub fn check_owner(&mut self, node: usize) {
        let Some(machine) = self.nodes[node].owner.machine.as_ref() else { return };
        let open = self.check.versions.iter().filter(|(_, known)| {
            known.owner == node && known.accepted && !known.state.is_some_and(JobState::is_terminal)
        });
        let mut lost = None;
        for ((job, version), known) in open {
            match machine.reader(*job, None).map(|job| job.summary()).filter(|one| one.version == *version) {
                None => lost = Some(format!("n{node} has forgotten {} v{version}", job.short())),
                Some(one) if one.committed != known.committed.len() as u32 => {
                    let (here, on_disk) = (one.committed, known.committed.len());
                    lost =
                        Some(format!("n{node} {}: {here} commits in memory, {on_disk} on disk", job.short()));
                }
                Some(_) => {}
            }
        }
        if let Some(found) = lost {
            self.check.broken("an accepted job is never lost", found);
        }
    }

    /// A job that was accepted two seconds ago and does not run says why.
    pub fn check_reason(&mut self, owner: usize, job: JobId, version: u32) {
        let one = &self.nodes[owner];
        let since = one.awake_since.max(self.check.owners[owner].restored_at);
        if !one.answers() || self.now - since < REASON_WITHIN {
            return self.queue.push(self.now + SECOND, Event::Due(Due::Reason { owner, job, version }));
        }
        let Some(view) = one.owner.machine.as_ref().and_then(|machine| machine.view(job, Some(version)))
        else {
            return;
        };
        let waits = matches!(view.summary.state, JobState::Pending | JobState::Queued);
        if waits && view.summary.message.is_empty() {
            let found =
                format!("n{owner} {} v{version} is {} and says nothing", job.short(), view.summary.state);
            self.check.broken("a pending state has a reason within 2 s", found);
        }
    }
}

type Broken = Option<(&'static str, String)>;

fn follow_state(known: &mut Version, view: &JobView) -> Broken {
    let state = view.summary.state;
    let before = known.state.replace(state);
    let wrong = before.filter(|before| *before != state && !before.can_become(state))?;
    Some(("states move along the graph", format!("{wrong} became {state}")))
}

fn follow_executions(known: &mut Version, view: &JobView) -> Broken {
    for one in &view.executions {
        let before = known.executions.insert(one.key, one.state);
        if let Some(before) = before.filter(|before| *before != one.state && !before.can_become(one.state)) {
            return Some((
                "states move along the graph",
                format!("{} was {before} and is {}", words::key(&one.key), one.state),
            ));
        }
        if one.state == ExecutionState::Completed {
            let attempt = *known.committed.entry(one.key.partition).or_insert(one.key.attempt);
            if attempt != one.key.attempt {
                let found = format!("{} after attempt {attempt}", words::key(&one.key));
                return Some(("a partition is committed at most once", found));
            }
        }
    }
    let gone = known.executions.keys().find(|key| !view.executions.iter().any(|one| one.key == **key));
    gone.map(|key| ("executions stay in the record", format!("{} is gone", words::key(key))))
}

fn follow_history(known: &mut Version, view: &JobView) -> Broken {
    let now: BTreeSet<u64> = view.history.iter().map(|event| event.seq).collect();
    if now.len() != view.history.len() || !view.history.is_sorted_by_key(|event| event.seq) {
        return Some(("sequence numbers never repeat or go back", "in the history on disk".to_owned()));
    }
    let gone = known.on_disk.difference(&now).next().copied();
    known.on_disk = now;
    gone.map(|seq| ("history only grows", format!("number {seq} is gone from disk")))
}

pub(super) fn execution_key(job: JobId, version: u32, partition: u32, attempt: u32) -> ExecutionKey {
    ExecutionKey { job, version, partition, attempt }
}
