//! A fake engine: executions as things that prepare, run and publish for drawn times, and that outlive the node's
//! process when they are containers.

use std::collections::BTreeMap;

use gossip::message::{Block, Bytes, FaultClass, MAX_INLINE_RESULT_BYTES, Outcome, Phase, ResultInfo, Usage};
use gossip::worker::{self, Start};
use job::{Cid, ExecutionKey};
use sha2::{Digest, Sha256};

use super::clock::{MILLI, SECOND};
use super::plan::{Behaviour, JobPlan};
use super::rng::{Rng, fold, mix};
use super::world::{Event, Life, World};

/// How an execution comes out, drawn when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The program ends with this exit code.
    Exit(i32),
    /// The node could not prepare it.
    NodeFault,
    /// The job itself is at fault: its module is none.
    JobFault,
    /// The program never ends by itself.
    Never,
}

/// Where an execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Preparing,
    Running,
    Publishing,
    Stopping,
    Ended,
}

/// One execution as the engine has it.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub stage: Stage,
    /// The moment of the simulation at which the stage ends; none for what never ends by itself.
    pub next_at: Option<u64>,
    pub run_for: Option<u64>,
    pub publish_for: u64,
    pub fate: Fate,
    pub timed_out: bool,
    /// Outlives the process that started it.
    pub container: bool,
    pub cpu: u64,
    /// When the program itself began to run.
    pub running_since: Option<u64>,
    pub created_at: u64,
    /// The wall time it may run for on the worker's clocks, as its start said.
    pub may_run: Option<u64>,
    pub result: Option<Cid>,
    pub result_size: u64,
    /// A small result is only in its receipt.
    pub inline: bool,
}

impl Container {
    /// Whether it uses the worker's resources.
    pub fn live(&self) -> bool {
        self.stage != Stage::Ended
    }
}

/// All executions of one node.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    pub containers: BTreeMap<ExecutionKey, Container>,
}

impl Engine {
    /// CPU units in use.
    pub fn used(&self) -> u64 {
        self.containers.values().filter(|one| one.live()).map(|one| one.cpu).sum()
    }

    /// The node's process died: runners die with it, containers go on until the node is back.
    pub fn process_died(&mut self, machine_too: bool) {
        self.containers.retain(|_, one| one.container && !machine_too);
    }

    /// A node ends everything of an earlier process before it restores its machine.
    pub fn end_all(&mut self) {
        self.containers.clear();
    }

    /// The machine slept: what was to end, ends later by that span.
    pub fn slept(&mut self, span: u64) {
        for one in self.containers.values_mut() {
            one.next_at = one.next_at.map(|at| at + span);
        }
    }
}

/// What a program writes: the same wherever the partition runs, so that receipts of several attempts agree.
pub(crate) fn output(key: &ExecutionKey, salt: u64) -> [u8; 8] {
    mix(u64::from(key.partition) ^ u64::from(key.version) << 32 ^ fold(salt, &key.job.0)).to_be_bytes()
}

/// The CID of a block of raw bytes.
pub(crate) fn block_cid(bytes: &[u8]) -> Cid {
    cid_of(0x55, bytes)
}

/// The CID of a spec, which is DAG-CBOR.
pub(crate) fn spec_cid(bytes: &[u8]) -> Cid {
    cid_of(0x71, bytes)
}

fn cid_of(codec: u8, content: &[u8]) -> Cid {
    let mut bytes = vec![0x01, codec, 0x12, 0x20];
    bytes.extend_from_slice(&Sha256::digest(content));
    Cid::try_from(bytes.as_slice()).expect("a CIDv1 of a SHA-256 is well formed")
}

/// The engine ends within this long what it was told to end.
const LONGEST_STOP: u64 = 4 * SECOND;

impl World {
    /// The machine wants an execution: what exists under this name goes on, else it is created.
    pub fn start_execution(&mut self, node: usize, start: Start) {
        let key = start.execution;
        let job = self.clients.job_of(key.job);
        if job.is_none() && !self.is_rogue_peer(start.owner) {
            return self.check.broken("only submitted jobs are started", format!("n{node} starts {key:?}"));
        }
        if self.nodes[node].engine.containers.contains_key(&key) {
            return self.check.broken("an execution is started once", format!("n{node}: {key:?}"));
        }
        if let Some(owner) = job.map(|job| self.plan.jobs[job].owner)
            && self.nodes[owner].id != start.owner
        {
            let found = format!("n{node} starts {} for {}", super::words::key(&key), start.owner);
            return self.check.broken("only a job's owner gives orders about it", found);
        }
        let plan = job.map_or_else(JobPlan::of_a_rogue, |job| self.plan.jobs[job].clone());
        let mut rng = Rng::new(self.seed).fork(mix(fold(node as u64, &key.id().0)));
        let fate = fate(&mut rng, &plan, &key, node);
        let timeout = u64::try_from(start.timeout.as_nanos()).unwrap_or(u64::MAX);
        let prepare =
            if rng.chance(100) { rng.within(SECOND, 20 * SECOND) } else { rng.within(MILLI, 300 * MILLI) };
        let slow = rng.chance(100);
        let container = Container {
            stage: Stage::Preparing,
            next_at: Some(self.now + prepare),
            run_for: (fate != Fate::Never).then(|| rng.within(plan.run.0, plan.run.1)),
            publish_for: rng.within(MILLI, if slow { 20 * SECOND } else { 50 * MILLI }),
            fate,
            timed_out: false,
            container: self.plan.nodes[node].containers,
            cpu: start.resources.cpu_milli,
            running_since: None,
            created_at: self.now,
            may_run: Some(timeout),
            result: None,
            result_size: plan.result_size,
            inline: start.inline && plan.result_size <= MAX_INLINE_RESULT_BYTES as u64,
        };
        self.nodes[node].engine.containers.insert(key, container);
        let at = self.now + prepare;
        self.queue.push(at, Event::Stage { node, key, at });
        self.phase(node, key, Phase::Preparing);
        self.check_capacity(node);
    }

    /// The machine wants an execution to end.
    pub fn end_execution(&mut self, node: usize, key: ExecutionKey) {
        let delay = self.rng.within(MILLI, LONGEST_STOP);
        let at = self.now + delay;
        let Some(one) = self.nodes[node].engine.containers.get_mut(&key) else { return };
        if one.live() && one.stage != Stage::Stopping {
            (one.stage, one.next_at) = (Stage::Stopping, Some(at));
            self.queue.push(at, Event::Stage { node, key, at });
        }
    }

    /// A stage of an execution may be over.
    pub fn on_stage(&mut self, node: usize, key: ExecutionKey, planned: u64) {
        if matches!(self.nodes[node].life, Life::Asleep { machine: true }) {
            return self.nodes[node].backlog.push(Event::Stage { node, key, at: planned });
        }
        let now = self.now;
        let rate = self.nodes[node].clock.local_span(1_000_000);
        let Some(one) = self.nodes[node].engine.containers.get_mut(&key) else { return };
        match one.next_at {
            Some(at) if at > now => {
                // It was planned anew, or the machine slept meanwhile.
                return self.queue.push(at, Event::Stage { node, key, at });
            }
            Some(_) => {}
            None => return,
        }
        match one.stage {
            Stage::Preparing if one.fate == Fate::NodeFault || one.fate == Fate::JobFault => {
                self.finish(node, key)
            }
            Stage::Preparing => {
                one.stage = Stage::Running;
                one.running_since = Some(now);
                let true_limit = one.may_run.map(|span| span.saturating_mul(1_000_000) / rate.max(1));
                let deadline = true_limit.map(|span| one.created_at.saturating_add(span));
                let ends = one.run_for.map(|span| now + span);
                one.timed_out = deadline.is_some_and(|deadline| ends.is_none_or(|ends| ends > deadline));
                one.next_at = if one.timed_out { deadline.map(|at| at.max(now)) } else { ends };
                if let Some(at) = one.next_at {
                    self.queue.push(at, Event::Stage { node, key, at });
                }
                self.program_runs(node, key);
                self.phase(node, key, Phase::Running);
            }
            Stage::Running if one.timed_out => self.finish(node, key),
            Stage::Running => {
                one.stage = Stage::Publishing;
                let at = now + one.publish_for;
                one.next_at = Some(at);
                self.queue.push(at, Event::Stage { node, key, at });
                self.phase(node, key, Phase::Publishing);
            }
            Stage::Publishing => {
                let cid = block_cid(&output(&key, self.seed));
                one.result = Some(cid);
                if !one.inline {
                    self.nodes[node].kept.insert(key, cid);
                }
                self.finish(node, key);
            }
            Stage::Stopping => self.finish(node, key),
            Stage::Ended => {}
        }
    }

    /// The node stops, and ends what it runs first.
    pub fn end_everything(&mut self, node: usize) {
        let all = &self.nodes[node].engine.containers;
        let keys: Vec<ExecutionKey> = all.iter().filter(|(_, one)| one.live()).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(one) = self.nodes[node].engine.containers.get_mut(&key) {
                one.stage = Stage::Stopping;
            }
            self.finish(node, key);
        }
    }

    fn finish(&mut self, node: usize, key: ExecutionKey) {
        let Some(one) = self.nodes[node].engine.containers.get_mut(&key) else { return };
        if one.stage == Stage::Stopping {
            one.fate = Fate::NodeFault;
        }
        one.stage = Stage::Ended;
        one.next_at = None;
        self.report_end(node, key);
    }

    fn phase(&mut self, node: usize, key: ExecutionKey, phase: Phase) {
        let message = String::new();
        self.tell_worker(node, worker::Input::Phase { execution: key, phase, message, logged: (0, 0) });
    }

    fn report_end(&mut self, node: usize, key: ExecutionKey) {
        let wall = self.nodes[node].clock.read(self.now).wall;
        let Some(one) = self.nodes[node].engine.containers.get(&key) else { return };
        let ran = one.running_since.map_or(0, |since| self.now.saturating_sub(since));
        let outcome = match one.fate {
            _ if one.timed_out => Outcome::Fault(FaultClass::Timeout, "ran past its timeout".to_owned()),
            Fate::Exit(code) => Outcome::Exit(code),
            Fate::NodeFault => Outcome::Fault(FaultClass::Node, "could not be run here".to_owned()),
            Fate::JobFault => Outcome::Fault(FaultClass::Job, "the module is none".to_owned()),
            Fate::Never => Outcome::Fault(FaultClass::Node, "ended from outside".to_owned()),
        };
        let result =
            one.result.map(|cid| ResultInfo { cid, size: one.result_size, published: String::new() });
        let small = one.result_size <= MAX_INLINE_RESULT_BYTES as u64;
        let block = |cid| Block { cid, bytes: Bytes::from(output(&key, self.seed).to_vec()) };
        let blocks = one.result.filter(|_| small).map(block);
        let end = worker::End {
            outcome,
            result,
            blocks: blocks.into_iter().collect(),
            stored: !one.inline,
            usage: Usage { cpu_ms: ran / MILLI, memory: 1 << 20, disk: one.result_size, ..Usage::default() },
            started_ms: wall.saturating_sub(ran) / MILLI,
            ran_ms: ran / MILLI,
            engine: "fake 1".to_owned(),
            inputs: Vec::new(),
        };
        self.tell_worker(node, worker::Input::Ended { execution: key, end: Box::new(end) });
    }
}

/// What an execution comes to: the same for the same partition on the same node, so that retries elsewhere can differ.
fn fate(rng: &mut Rng, plan: &JobPlan, key: &ExecutionKey, node: usize) -> Fate {
    match plan.behaviour {
        Behaviour::Broken => Fate::JobFault,
        Behaviour::UserError if mix(u64::from(key.partition)).is_multiple_of(2) => Fate::Exit(3),
        Behaviour::Flaky if mix(u64::from(key.partition) ^ (node as u64) << 20).is_multiple_of(3) => {
            Fate::Exit(1 + node as i32)
        }
        Behaviour::NodeFaults if rng.chance(300) => Fate::NodeFault,
        Behaviour::Hangs if key.partition.is_multiple_of(2) => Fate::Never,
        _ if plan.lasts() && !rng.chance(200) => Fate::Never,
        _ => Fate::Exit(0),
    }
}
