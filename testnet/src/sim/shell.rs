//! The shells around a node's two machines, as the node's are: drain what waits, handle it all, settle, one
//! transaction, then the effects in order. A crash can come before the transaction, after it, or between effects; a
//! failed transaction sends nothing, drops the machine and restores it from its records.

use std::collections::BTreeMap;

use gossip::record::{Record, RecordKey};
use gossip::{owner, worker};
use job::ExecutionKey;

use super::Tweak;
use super::check::Check;
use super::clock::{MILLI, SECOND};
use super::plan::SPANS;
use super::rng::mix;
use super::trace::Trace;
use super::world::{Event, Role, World};
use copy::Copy;

mod copy;
mod owner_shell;
mod worker_shell;

/// The swarm's name in simulations.
pub(crate) const SWARM: &str = "sim";
/// Batches without time passing that a machine may cause by itself.
const MOST_SPINS: u32 = 2_000;

/// How machines are made.
#[derive(Clone, Default)]
pub(crate) struct MachineSettings {
    pub tweak: Option<Tweak>,
}

/// What a disk keeps of one machine.
pub(crate) type Disk = BTreeMap<RecordKey, Vec<u8>>;

/// The owner machine and what is around it.
#[derive(Default)]
pub(crate) struct OwnerShell {
    pub machine: Option<owner::Owner>,
    pub inputs: Vec<owner::Input>,
    pub draining: bool,
    wakeup: Option<u64>,
    spins: (u64, u32),
    pub disk: Disk,
    /// Results that are being copied here, by number.
    copies: BTreeMap<u64, Copy>,
    copied: u64,
}

/// The worker machine and what is around it.
#[derive(Default)]
pub(crate) struct WorkerShell {
    pub machine: Option<worker::Worker>,
    pub inputs: Vec<worker::Input>,
    pub draining: bool,
    wakeup: Option<u64>,
    spins: (u64, u32),
    pub disk: Disk,
    announced: u64,
    /// Ended executions that the machine was told of; removed from the engine once it has made that durable.
    pub reported: Vec<ExecutionKey>,
}

impl OwnerShell {
    /// The process died: only the disk is left.
    pub fn stop(&mut self) {
        *self =
            OwnerShell { disk: std::mem::take(&mut self.disk), copied: self.copied, ..OwnerShell::default() };
    }
}

impl WorkerShell {
    /// The process died: only the disk is left.
    pub fn stop(&mut self) {
        *self = WorkerShell {
            disk: std::mem::take(&mut self.disk),
            announced: self.announced,
            ..WorkerShell::default()
        };
    }
}

/// Where a batch is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    None,
    BeforeTransaction,
    DiskError,
    /// Before this effect of those that follow the transaction.
    BeforeEffect(usize),
}

impl World {
    /// Makes both machines from what is on disk, once nothing of an earlier process runs any more.
    pub fn start_machines(&mut self, node: usize) {
        self.nodes[node].engine.end_all();
        self.restore_worker(node);
        if !self.nodes[node].down() {
            self.restore_owner(node);
        }
    }

    /// A shell gets to its inputs.
    pub fn on_drain(&mut self, node: usize, role: Role, life: u32) {
        if self.nodes[node].lives != life || self.nodes[node].down() {
            return;
        }
        if self.nodes[node].asleep() {
            return self.nodes[node].backlog.push(Event::Drain { node, role, life });
        }
        match role {
            Role::Owner => self.drain_owner(node),
            Role::Worker => self.drain_worker(node),
        }
    }

    /// A machine's wakeup is due: it is ticked, unless its plans have changed.
    pub fn on_wakeup(&mut self, node: usize, role: Role, life: u32) {
        if self.nodes[node].lives != life || self.nodes[node].down() {
            return;
        }
        if self.nodes[node].asleep() {
            return self.nodes[node].backlog.push(Event::Wakeup { node, role, life });
        }
        let now = self.nodes[node].clock.read(self.now);
        match role {
            Role::Owner => {
                let shell = &mut self.nodes[node].owner;
                if shell.wakeup.is_none_or(|at| at > self.now) {
                    return;
                }
                shell.wakeup = None;
                let due = shell.machine.as_ref().and_then(owner::Owner::next_wakeup);
                if due.is_some_and(|due| due <= now) {
                    return self.tell_owner(node, owner::Input::Tick);
                }
            }
            Role::Worker => {
                let shell = &mut self.nodes[node].worker;
                if shell.wakeup.is_none_or(|at| at > self.now) {
                    return;
                }
                shell.wakeup = None;
                let due = shell.machine.as_ref().and_then(worker::Worker::next_wakeup);
                if due.is_some_and(|due| due <= now) {
                    return self.tell_worker(node, worker::Input::Tick);
                }
            }
        }
        self.plan_wakeup(node, role);
    }

    fn plan_wakeup(&mut self, node: usize, role: Role) {
        let one = &mut self.nodes[node];
        let (due, planned) = match role {
            Role::Owner => {
                (one.owner.machine.as_ref().and_then(owner::Owner::next_wakeup), &mut one.owner.wakeup)
            }
            Role::Worker => {
                (one.worker.machine.as_ref().and_then(worker::Worker::next_wakeup), &mut one.worker.wakeup)
            }
        };
        let Some(due) = due else { return };
        let at = one.clock.when(due.boot).max(self.now);
        if planned.is_none_or(|planned| at < planned) {
            *planned = Some(at);
            self.queue.push(at, Event::Wakeup { node, role, life: one.lives });
        }
    }

    /// A machine that asks to be woken again and again while no time passes never rests.
    fn count_spin(&mut self, node: usize, role: Role) {
        let now = self.now;
        let spins = match role {
            Role::Owner => &mut self.nodes[node].owner.spins,
            Role::Worker => &mut self.nodes[node].worker.spins,
        };
        *spins = if spins.0 == now { (now, spins.1 + 1) } else { (now, 0) };
        if spins.1 > MOST_SPINS {
            self.check.broken("machines rest", format!("the {role:?} machine of n{node} spins"));
        }
    }

    fn cut(&mut self, effects: usize) -> Cut {
        if self.calm {
            return Cut::None;
        }
        if self.plan.crash_points > 0 && self.rng.below(10_000) < self.plan.crash_points {
            return match self.rng.below(3) {
                0 => Cut::BeforeTransaction,
                _ => Cut::BeforeEffect(self.rng.below(effects as u64 + 1) as usize),
            };
        }
        if self.plan.disk_errors > 0 && self.rng.below(10_000) < self.plan.disk_errors {
            return Cut::DiskError;
        }
        Cut::None
    }

    /// The process dies at a crash point and comes back some time later.
    fn crash(&mut self, node: usize, where_: &str) {
        if self.trace.on() {
            self.trace.say(self.now, format_args!("### n{node} crashes {where_}"));
        }
        let back = self.rng.pick(&[20 * MILLI, 20 * MILLI, SECOND, 5 * SECOND, SPANS[0], SPANS[1], SPANS[2]]);
        let machine = self.rng.chance(200);
        self.kill(node, Some(back), machine);
    }

    /// A fresh seed for a machine's own randomness.
    fn machine_seed(&mut self, node: usize) -> [u8; 32] {
        let mut seed = [0; 32];
        for chunk in seed.chunks_mut(8) {
            chunk.copy_from_slice(&mix(self.rng.next() ^ node as u64).to_le_bytes());
        }
        seed
    }
}

fn records(disk: &Disk) -> Vec<Record> {
    disk.iter().map(|(key, value)| Record { key: *key, value: value.clone() }).collect()
}

/// Largest record: a spec, or a batch of receipts.
const LARGEST_RECORD: usize = 4 << 20;

fn write(disk: &mut Disk, record: &Record, trace: &mut Trace, check: &mut Check) -> RecordKey {
    trace.bytes(&record.value);
    if RecordKey::from_bytes(&record.key.to_bytes()) != Some(record.key) {
        check.broken("record keys read back", format!("{:?}", record.key));
    }
    if record.value.len() > LARGEST_RECORD {
        check.broken("records are bounded", format!("{:?} has {} bytes", record.key, record.value.len()));
    }
    disk.insert(record.key, record.value.clone());
    record.key
}
