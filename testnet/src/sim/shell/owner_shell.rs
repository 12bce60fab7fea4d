//! The owner machine's shell.

use std::rc::Rc;
use std::sync::Arc;

use gossip::message::Direct;
use gossip::{owner, worker};

use super::{Cut, SWARM, records, write};
use crate::sim::clock::MILLI;
use crate::sim::crypto::Cheap;
use crate::sim::rng::mix;
use crate::sim::words;
use crate::sim::world::{Role, World};

impl World {
    /// Makes the machine from its records.
    pub fn restore_owner(&mut self, node: usize) {
        let seed = self.machine_seed(node);
        let one = &mut self.nodes[node];
        let mut settings = owner::Settings { own_worker: one.cpu > 0, ..owner::Settings::default() };
        settings.addresses = vec![format!("/memory/{node}")];
        if let Some(tweak) = &self.settings.tweak {
            tweak(&mut settings, &mut worker::Settings::default());
        }
        let identity =
            owner::Identity { me: one.id, swarm: SWARM.to_owned(), crypto: Arc::new(Cheap(one.id)), seed };
        let now = one.clock.read(self.now);
        let mut out = Vec::new();
        match owner::Owner::restore(settings, identity, records(&one.owner.disk), now, &mut out) {
            Ok(mut machine) => {
                machine.settle(now, &mut out);
                one.owner.machine = Some(machine);
                self.check.seen.restores += 1;
                self.check.owner_restored(node, self.now);
                self.perform_owner(node, out);
            }
            Err(error) => {
                self.check.broken("machines restore from their records", format!("owner of n{node}: {error}"))
            }
        }
    }

    /// Handles everything that waits.
    pub fn drain_owner(&mut self, node: usize) {
        let now = self.nodes[node].clock.read(self.now);
        let shell = &mut self.nodes[node].owner;
        shell.draining = false;
        let inputs = std::mem::take(&mut shell.inputs);
        let Some(machine) = shell.machine.as_mut() else { return };
        let mut out = Vec::new();
        for input in inputs {
            if self.trace.on() {
                self.trace.say(self.now, format_args!("n{node} owner  < {}", words::owner_input(&input)));
            }
            machine.handle(now, input, &mut out);
        }
        machine.settle(now, &mut out);
        self.perform_owner(node, out);
    }

    fn perform_owner(&mut self, node: usize, out: Vec<owner::Effect>) {
        match self.cut(out.len()) {
            Cut::BeforeTransaction => return self.crash(node, "before a transaction of its owner"),
            Cut::DiskError
                if out.iter().any(|effect| {
                    use owner::Effect::{Forget, ForgetJob, Persist};
                    matches!(effect, Persist(_) | Forget(_) | ForgetJob { .. })
                }) =>
            {
                return self.owner_disk_failed(node);
            }
            Cut::BeforeEffect(index) => {
                self.write_owner(node, &out);
                for effect in out.into_iter().take(index) {
                    self.run_owner(node, effect);
                }
                return self.crash(node, "between effects of its owner");
            }
            Cut::None | Cut::DiskError => {}
        }
        self.write_owner(node, &out);
        for effect in out {
            self.run_owner(node, effect);
        }
        self.check_owner(node);
        self.count_spin(node, Role::Owner);
        self.plan_wakeup(node, Role::Owner);
    }

    fn owner_disk_failed(&mut self, node: usize) {
        if self.trace.on() {
            self.trace.say(self.now, format_args!("### a transaction of n{node}'s owner fails"));
        }
        self.check.seen.disk_errors += 1;
        self.nodes[node].owner.machine = None;
        self.nodes[node].owner.copies.clear();
        self.unwatch(node, 0);
        self.restore_owner(node);
        for peer in 0..self.nodes.len() {
            if self.sees(node, peer) && !self.nodes[node].down() {
                self.tell_owner_connected(node, peer);
            }
        }
    }

    fn write_owner(&mut self, node: usize, out: &[owner::Effect]) {
        let disk = &mut self.nodes[node].owner.disk;
        let mut touched = Vec::new();
        for effect in out {
            let key = match effect {
                owner::Effect::Persist(record) => write(disk, record, &mut self.trace, &mut self.check),
                owner::Effect::Forget(key) => {
                    disk.remove(key);
                    *key
                }
                owner::Effect::ForgetJob { job, version } => {
                    disk.retain(|key, _| (key.job, key.version) != (*job, *version));
                    self.check.forgotten(node, *job, *version);
                    continue;
                }
                _ => continue,
            };
            if touched.last() != Some(&(key.job, key.version)) {
                touched.push((key.job, key.version));
            }
        }
        touched.sort();
        touched.dedup();
        for (job, version) in touched {
            self.check_records(node, job, version);
        }
    }

    fn run_owner(&mut self, node: usize, effect: owner::Effect) {
        use owner::Effect;
        if matches!(effect, Effect::Persist(_) | Effect::Forget(_)) {
            return;
        }
        if self.trace.on() {
            self.trace.say(self.now, format_args!("n{node} owner  > {}", words::owner_effect(&effect)));
        }
        match effect {
            Effect::Persist(_) | Effect::Forget(_) | Effect::ForgetJob { .. } | Effect::Settled { .. } => {}
            Effect::Send { to, message } => {
                self.check_owner_sends(node, to, &message);
                self.send(node, to, &message);
            }
            Effect::Announce { class, bytes } => {
                self.check.announced(node, self.now, &bytes);
                self.trace.bytes(&bytes);
                self.spread(node, class, bytes);
            }
            Effect::Hold(hold) => self.copy(node, *hold),
            Effect::Submitted { token, job, version } => self.client_accepted(node, token, job, version),
            Effect::Refused { token, why } => self.client_refused(node, token, &why),
            Effect::StopAnswered { token, result } => self.client_stop_answered(node, token, &result),
            Effect::Changed { job, version, state, message, seq } => {
                self.trace.fact(mix(seq) ^ u64::from(version));
                self.check_changed(node, job, version, state, &message, seq);
            }
            Effect::Watch { peer, live } => {
                if let Some(peer) = self.index_of(peer) {
                    self.watch(node, peer, 0, live);
                }
            }
            Effect::Dial { peer, .. } => {
                if let Some(peer) = self.index_of(peer) {
                    self.redial(node, peer, MILLI);
                }
            }
            Effect::Penalise { peer, why } => self.penalised(node, peer, why),
        }
    }

    pub fn penalised(&mut self, node: usize, peer: job::PeerId, why: &str) {
        if self.is_rogue_peer(peer) || self.is_rogue(node) {
            return;
        }
        let peer = self.index_of(peer);
        self.check.broken("honest peers are not penalised", format!("n{node} penalises {peer:?}: {why}"));
    }

    /// Encodes a message and puts it on its way; to the node itself it takes the short one.
    pub fn send(&mut self, node: usize, to: job::PeerId, message: &Direct) {
        let bytes = message.encode();
        self.check.sent(node, message, bytes.len());
        self.trace.bytes(&bytes);
        if self.is_rogue(node) {
            self.check.rogue_said(self.nodes[node].id, message);
        }
        let Some(to) = self.index_of(to) else {
            return self.check.broken("messages go to peers that exist", format!("n{node} sends to {to}"));
        };
        if to == node {
            self.receive(node, node, &bytes);
        } else if self.garbles(node, to, message, &bytes) {
            self.trace.fact(to as u64);
        } else {
            self.transmit(node, to, Rc::from(bytes));
        }
    }

    /// Decodes what arrived and hands it to the machine that it is for.
    pub fn receive(&mut self, from: usize, to: usize, bytes: &[u8]) {
        if self.nodes[to].down() {
            return;
        }
        let id = self.nodes[from].id;
        if self.is_rogue(to)
            && let Ok(message) = Direct::decode(bytes)
        {
            self.rogue_hears(from, &message);
        }
        match Direct::decode(bytes) {
            Ok(message) if message.is_for_owner() => {
                self.tell_owner(to, owner::Input::Message { from: id, message })
            }
            Ok(message) => self.tell_worker(to, worker::Input::Message { from: id, message }),
            // The host drops it, and holds it against its sender.
            Err(_) if self.is_rogue(from) => {}
            Err(error) => {
                self.check.broken("what a machine sends can be read", format!("n{from} to n{to}: {error}"))
            }
        }
    }
}
