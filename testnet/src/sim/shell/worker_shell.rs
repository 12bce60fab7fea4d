//! The worker machine's shell.

use std::rc::Rc;
use std::sync::Arc;

use gossip::record::Kind;
use gossip::{owner, worker};
use job::{Cid, Resources};

use super::{Cut, SWARM, records, write};
use crate::sim::clock::MILLI;
use crate::sim::crypto::Cheap;
use crate::sim::rng::{fold, mix};
use crate::sim::words;
use crate::sim::world::{Event, Role, World};

impl World {
    /// Makes the machine from its records.
    pub fn restore_worker(&mut self, node: usize) {
        let seed = self.machine_seed(node);
        let salt = mix(self.seed ^ node as u64);
        let one = &mut self.nodes[node];
        let capacity = Resources { cpu_milli: one.cpu, memory: 64 << 30, disk: 1 << 40, gpu: 0 };
        let mut settings = worker::Settings {
            capacity,
            anyone: worker::Policy::everything(),
            member: worker::Policy::everything(),
            ..worker::Settings::default()
        };
        if let Some(tweak) = &self.settings.tweak {
            tweak(&mut owner::Settings::default(), &mut settings);
        }
        let local: Arc<dyn worker::Local> = Arc::new(Holdings(salt));
        let identity = worker::Identity {
            me: one.id,
            swarm: SWARM.to_owned(),
            crypto: Arc::new(Cheap(one.id)),
            local,
            seed,
        };
        let now = one.clock.read(self.now);
        let mut out = Vec::new();
        match worker::Worker::restore(settings, identity, records(&one.worker.disk), now, &mut out) {
            Ok(mut machine) => {
                machine.settle(now, &mut out);
                one.worker.machine = Some(machine);
                self.check.seen.restores += 1;
                let disk = &self.nodes[node].worker.disk;
                let accepted = disk.keys().filter(|key| key.kind == Kind::Accepted);
                let accepted = accepted.map(|key| (key.job, key.version, key.number)).collect();
                self.check.worker_restored(node, &accepted);
                self.perform_worker(node, out);
            }
            Err(error) => self
                .check
                .broken("machines restore from their records", format!("worker of n{node}: {error}")),
        }
    }

    /// Handles everything that waits.
    pub fn drain_worker(&mut self, node: usize) {
        let now = self.nodes[node].clock.read(self.now);
        let mut inputs = std::mem::take(&mut self.nodes[node].worker.inputs);
        self.nodes[node].worker.draining = false;
        let mut out = Vec::new();
        let announced =
            inputs.iter().filter(|input| matches!(input, worker::Input::Announced { .. })).count();
        for input in inputs.drain(..) {
            if self.trace.on() {
                self.trace.say(self.now, format_args!("n{node} worker < {}", words::worker_input(&input)));
            }
            self.check_worker_input(node, &input);
            let Some(machine) = self.nodes[node].worker.machine.as_mut() else { return };
            machine.handle(now, input, &mut out);
        }
        let Some(machine) = self.nodes[node].worker.machine.as_mut() else { return };
        machine.settle(now, &mut out);
        let verdicts = out.iter().filter(|effect| matches!(effect, worker::Effect::Verdict { .. })).count();
        if verdicts != announced {
            let found = format!("n{node} answers {announced} announcements with {verdicts} verdicts");
            self.check.broken("each announcement gets one verdict", found);
        }
        self.perform_worker(node, out);
    }

    fn perform_worker(&mut self, node: usize, out: Vec<worker::Effect>) {
        match self.cut(out.len()) {
            Cut::BeforeTransaction => return self.crash(node, "before a transaction of its worker"),
            Cut::DiskError
                if out.iter().any(|effect| {
                    matches!(effect, worker::Effect::Persist(_) | worker::Effect::Forget(_))
                }) =>
            {
                return self.worker_disk_failed(node);
            }
            Cut::BeforeEffect(index) => {
                self.write_worker(node, &out);
                for effect in out.into_iter().take(index) {
                    self.run_worker(node, effect);
                }
                return self.crash(node, "between effects of its worker");
            }
            Cut::None | Cut::DiskError => {}
        }
        self.write_worker(node, &out);
        for effect in out {
            self.run_worker(node, effect);
        }
        self.check_worker(node);
        self.count_spin(node, Role::Worker);
        self.plan_wakeup(node, Role::Worker);
    }

    fn worker_disk_failed(&mut self, node: usize) {
        if self.trace.on() {
            self.trace.say(self.now, format_args!("### a transaction of n{node}'s worker fails"));
        }
        self.check.seen.disk_errors += 1;
        let shell = &mut self.nodes[node].worker;
        shell.machine = None;
        shell.reported.clear();
        self.nodes[node].engine.end_all();
        self.unwatch(node, 1);
        self.restore_worker(node);
        for peer in 0..self.nodes.len() {
            if self.sees(node, peer) && !self.nodes[node].down() {
                let id = self.nodes[peer].id;
                self.tell_worker(node, worker::Input::Connected(id));
            }
        }
    }

    fn write_worker(&mut self, node: usize, out: &[worker::Effect]) {
        let one = &mut self.nodes[node];
        for effect in out {
            match effect {
                worker::Effect::Persist(record) => {
                    write(&mut one.worker.disk, record, &mut self.trace, &mut self.check);
                }
                worker::Effect::Forget(key) => {
                    one.worker.disk.remove(key);
                }
                _ => {}
            }
        }
        // Their ends are durable now: what is left of them can be removed.
        for key in std::mem::take(&mut one.worker.reported) {
            one.engine.containers.remove(&key);
        }
        for due in self.check.worker_committed(node) {
            self.queue.push(self.now + crate::sim::check::worker::STOPPED_WITHIN, Event::Due(due));
        }
    }

    fn run_worker(&mut self, node: usize, effect: worker::Effect) {
        use worker::Effect;
        if matches!(effect, Effect::Persist(_) | Effect::Forget(_)) {
            return;
        }
        if self.trace.on() {
            self.trace.say(self.now, format_args!("n{node} worker > {}", words::worker_effect(&effect)));
        }
        match effect {
            Effect::Persist(_) | Effect::Forget(_) => {}
            Effect::Send { to, message } => {
                self.check_worker_sends(node, to, &message);
                self.send(node, to, &message);
            }
            Effect::Verdict { verdict, relay, why, .. } => {
                if verdict == worker::Verdict::Reject && !self.is_rogue_peer(relay) {
                    self.check.broken("honest announcements are not rejected", format!("n{node}: {why}"));
                }
            }
            Effect::Start(start) => self.start_execution(node, *start),
            Effect::End { execution, .. } => self.end_execution(node, execution),
            Effect::Release { execution, .. } => {
                self.nodes[node].kept.remove(&execution);
            }
            Effect::Watch { peer, live } => {
                if let Some(peer) = self.index_of(peer) {
                    self.watch(node, peer, 1, live);
                }
            }
            Effect::Dial { peer, .. } => {
                if let Some(peer) = self.index_of(peer) {
                    self.redial(node, peer, MILLI);
                }
            }
            Effect::Penalise { peer, why } => self.penalised(node, peer, why),
            Effect::ClockDiffers { peer, ahead_s } => self.check_clocks(node, peer, ahead_s),
        }
    }

    /// An announcement reaches a subscriber.
    pub fn on_announced(&mut self, to: usize, relay: usize, class: gossip::topic::Class, bytes: Rc<[u8]>) {
        if self.nodes[to].down() {
            return;
        }
        if self.nodes[to].asleep() {
            return self.nodes[to].backlog.push(Event::Announced { to, relay, class, bytes });
        }
        if self.is_rogue(to) {
            self.rogue_reads(&bytes);
        }
        let relay = self.nodes[relay].id;
        let shell = &mut self.nodes[to].worker;
        shell.announced += 1;
        let id = shell.announced;
        self.tell_worker(to, worker::Input::Announced { id, relay, class, bytes: bytes.to_vec() });
    }
}

/// What a node already holds: drawn, so that all three weights of the lottery occur.
struct Holdings(u64);

impl worker::Local for Holdings {
    fn held_bytes(&self, cid: &Cid) -> u64 {
        if fold(self.0, &cid.to_bytes()).is_multiple_of(4) { 1_000_000 } else { 0 }
    }

    fn cached(&self, module: &Cid) -> bool {
        fold(self.0, &module.to_bytes()).is_multiple_of(3)
    }
}
