//! Faults as they happen: kills, pauses, sleeps, splits, and the end of all of them.

use super::clock::{MILLI, SECOND};
use super::host::Host;
use super::net::Weather;
use super::plan::Trouble;
use super::world::{Event, Life, World};

/// An owner machine with jobs that wait is ticked every 28 s at least: a longer sleep than this it notices.
const LONG_SLEEP: u64 = 36 * SECOND;

impl World {
    pub fn on_trouble(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let plan = self.plan.clone();
        let trouble = &plan.faults[index].what;
        if self.trace.on() {
            self.trace.say(self.now, format_args!("### {trouble:?}"));
        }
        match trouble {
            Trouble::Kill { node, back_after, reboot } => self.kill(*node, *back_after, *reboot),
            Trouble::Stop { node } => self.stop(*node),
            Trouble::Pause { node, span } => self.sleep(*node, false, *span),
            Trouble::Suspend { node, span } => self.sleep(*node, true, *span),
            Trouble::Split { side, span, one_way } => self.split(side, *span, *one_way),
            Trouble::Break { a, b } => self.disconnect(*a, *b),
            Trouble::LoseSide { node, peer } => self.lose_side(*node, *peer),
            Trouble::Again { node, peer } => self.tell_again(*node, *peer),
            Trouble::Uplink { node, span, noticed } => self.cut_off(*node, *span, *noticed),
            Trouble::StepWall { node, by } => {
                let now = self.now;
                self.nodes[*node].clock.step_wall(now, *by);
            }
        }
    }

    /// Kills a node's process, or its whole machine; plans its return.
    pub fn kill(&mut self, node: usize, back_after: Option<u64>, machine: bool) {
        if self.nodes[node].down() {
            return;
        }
        let one = &mut self.nodes[node];
        one.life = if back_after.is_none() { Life::Gone } else { Life::Down { machine } };
        one.lives += 1;
        one.joined = false;
        one.host = Host::default();
        one.owner.stop();
        one.worker.stop();
        one.backlog.clear();
        one.engine.process_died(machine);
        self.check.seen.crashes += 1;
        for peer in 0..self.nodes.len() {
            if peer == node || !self.net.up(node, peer) {
                continue;
            }
            if machine || self.plan.quiet || !self.net.dialable(node, peer) {
                // Nothing is sent any more: the peer finds out by itself.
                self.give_up_later(node, peer);
            } else {
                self.disconnect(node, peer);
            }
        }
        self.maybe_silent();
        if let Some(after) = back_after {
            self.queue.push(self.now + after, Event::Restart { node });
        }
    }

    /// A process is told to stop.
    fn stop(&mut self, node: usize) {
        if self.nodes[node].life == Life::Up {
            self.tell_worker(node, gossip::worker::Input::Leaving);
            self.end_everything(node);
        }
    }

    /// A killed process starts: it restores its machines from its records.
    pub fn restart(&mut self, node: usize) {
        let Life::Down { machine } = self.nodes[node].life else { return };
        if self.trace.on() {
            let name = self.name(node);
            self.trace.say(self.now, format_args!("### {name} starts again"));
        }
        for peer in 0..self.nodes.len() {
            // Connections of the dead process are no more. A peer that has not noticed may find out now, or only when
            // the new process is there.
            if self.plan.quiet && self.sees(peer, node) && self.rng.chance(700) {
                self.lost.insert((node, peer));
            } else {
                self.disconnect(node, peer);
            }
        }
        let now = self.now;
        if machine {
            self.nodes[node].clock.reboot(now);
        }
        self.nodes[node].life = Life::Up;
        self.nodes[node].awake_since = now;
        self.start_machines(node);
        for peer in 0..self.nodes.len() {
            let delay = self.rng.within(5 * MILLI, 200 * MILLI);
            self.redial(node, peer, delay);
        }
    }

    /// Stops a process for a while; `machine`: the machine sleeps with all that runs on it.
    fn sleep(&mut self, node: usize, machine: bool, span: u64) {
        if self.nodes[node].life != Life::Up {
            return;
        }
        self.nodes[node].life = Life::Asleep { machine };
        for peer in 0..self.nodes.len() {
            if self.net.up(node, peer) {
                self.give_up_later(node, peer);
            }
        }
        self.maybe_silent();
        self.queue.push(self.now + span, Event::Resume { node, slept: machine, since: self.now });
    }

    /// A sleeping process goes on with what waited for it.
    pub fn resume(&mut self, node: usize, slept: bool, since: u64) {
        if !self.nodes[node].asleep() {
            return;
        }
        self.nodes[node].life = Life::Up;
        self.nodes[node].awake_since = self.now;
        if self.now - since > LONG_SLEEP {
            self.nodes[node].slept_until = self.now;
        }
        if slept {
            let span = self.now - since;
            self.nodes[node].engine.slept(span);
        }
        if self.trace.on() {
            let name = self.name(node);
            self.trace.say(self.now, format_args!("### {name} goes on"));
        }
        for event in std::mem::take(&mut self.nodes[node].backlog) {
            self.queue.push(self.now, event);
        }
        self.maybe_heard();
    }

    /// A node's whole network is gone for a while: its own sockets fail when it notices, its peers hear nothing.
    fn cut_off(&mut self, node: usize, span: u64, noticed: Option<u64>) {
        self.split(&[node], span, false);
        if let Some(after) = noticed.filter(|after| *after < span) {
            self.queue.push(self.now + after, Event::NetworkGone { node });
        }
    }

    /// A node notices that its network is gone.
    pub fn on_network_gone(&mut self, node: usize) {
        if !self.nodes[node].answers() {
            return;
        }
        for peer in 0..self.nodes.len() {
            if peer != node && !self.net.dialable(node, peer) {
                self.lose_side(node, peer);
            }
        }
    }

    fn split(&mut self, side: &[usize], span: u64, one_way: bool) {
        let mut cuts = Vec::new();
        for &inner in side {
            for outer in (0..self.nodes.len()).filter(|node| !side.contains(node)) {
                cuts.push((inner, outer));
                if !one_way {
                    cuts.push((outer, inner));
                }
            }
        }
        for &(from, to) in &cuts {
            self.net.cut(from, to);
            if self.net.up(from, to) {
                self.give_up_later(from, to);
            }
        }
        self.maybe_silent();
        self.queue.push(self.now + span, Event::Heal { cuts: cuts.into() });
    }

    pub fn heal(&mut self, cuts: &[(usize, usize)]) {
        for &(from, to) in cuts {
            for frame in self.net.heal(from, to) {
                let delay = self.rng.within(MILLI, 50 * MILLI);
                self.queue.push(self.now + delay, Event::Arrive(frame));
            }
        }
        if self.trace.on() {
            self.trace.say(self.now, format_args!("### a split heals"));
        }
        self.maybe_heard();
    }

    /// A connection that carries nothing any more is given up in a while, unless it carries something again by then.
    fn give_up_later(&mut self, a: usize, b: usize) {
        let generation = self.net.generation(a, b);
        let patience = self.rng.pick(&[4 * SECOND, 12 * SECOND, 30 * SECOND, 100 * SECOND]);
        self.queue.push(self.now + patience, Event::GiveUp { a, b, generation });
    }

    pub fn on_give_up(&mut self, a: usize, b: usize, generation: u32) {
        let dead = !self.net.dialable(a, b) || !self.nodes[a].answers() || !self.nodes[b].answers();
        if dead && self.net.generation(a, b) == generation {
            self.disconnect(a, b);
        }
    }

    /// The end of all faults: whoever can come back, does, and the network is whole and calm.
    pub fn become_calm(&mut self) {
        self.calm = true;
        if self.trace.on() {
            self.trace.say(self.now, format_args!("### all faults end"));
        }
        self.net.weather = Weather::calm();
        self.plan_end();
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                while a != b && !self.net.open(a, b) {
                    self.heal(&[(a, b)]);
                }
            }
        }
        for node in 0..self.nodes.len() {
            match self.nodes[node].life {
                Life::Down { .. } => self.restart(node),
                Life::Asleep { .. } => {} // its resume is planned, and comes within four leases
                Life::Up | Life::Gone => {}
            }
        }
        // What a rogue pretended to do until now would never end.
        if let Some(rogue) = self.plan.rogue {
            self.kill(rogue.node, Some(SECOND), false);
        }
    }
}
