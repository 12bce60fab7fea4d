//! The fake host: connections that open, break and are dialled again, pings that fall silent, announcements that spread.
//!
//! It does what the node's host does for the machines and nothing more: it tells them who is connected, refused, silent
//! or heard again, and carries bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use gossip::topic::Class;
use gossip::{owner, worker};

use super::clock::{MILLI, SECOND};
use super::net::{Frame, Sent};
use super::world::{Event, World};

/// Pings on a watched connection are silent for so long before the machines are told.
const SILENT_AFTER: u64 = 3 * SECOND;
/// Redials wait no longer than this.
const SLOWEST_REDIAL: u64 = 30 * SECOND;
/// Frames that wait for one dial.
const WAITING_FRAMES: usize = 64;

/// A node's host.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Peers whose connection somebody watches: the owner machine (0), the worker machine (1).
    watched: BTreeSet<(usize, usize)>,
    /// Watched peers that were reported silent.
    silent: BTreeSet<usize>,
    /// Frames that wait for a connection to be dialled.
    waiting: BTreeMap<usize, VecDeque<Rc<[u8]>>>,
}

impl Host {
    /// Whether either machine watches the connection to a peer.
    pub fn watches(&self, peer: usize) -> bool {
        self.watched.contains(&(peer, 0)) || self.watched.contains(&(peer, 1))
    }
}

impl World {
    /// Whether a node believes that it has a connection to a peer.
    pub fn sees(&self, node: usize, peer: usize) -> bool {
        self.net.up(node, peer) && !self.lost.contains(&(node, peer))
    }

    /// Opens a connection if the way is free and both processes live; tells both sides.
    pub fn connect(&mut self, a: usize, b: usize) -> bool {
        let both = self.nodes[a].answers() && self.nodes[b].answers();
        if !both || !self.net.connect(a, b) {
            return false;
        }
        for (node, peer) in [(a, b), (b, a)] {
            self.lost.remove(&(node, peer));
            self.becomes_connected(node, peer);
        }
        if self.trace.on() {
            let (a, b) = (self.name(a), self.name(b));
            self.trace.say(self.now, format_args!("{a} and {b} are connected"));
        }
        true
    }

    fn becomes_connected(&mut self, node: usize, peer: usize) {
        self.nodes[node].host.silent.remove(&peer);
        self.tell_connected(node, peer);
        let waiting = self.nodes[node].host.waiting.remove(&peer).unwrap_or_default();
        for bytes in waiting {
            self.transmit(node, peer, bytes);
        }
    }

    /// One side finds its connection broken; the other notices later, or when this one is back.
    pub fn lose_side(&mut self, node: usize, peer: usize) {
        if !self.sees(node, peer) || !self.nodes[node].answers() {
            return;
        }
        if self.lost.contains(&(peer, node)) {
            return self.disconnect(node, peer);
        }
        self.lost.insert((node, peer));
        if self.trace.on() {
            let (node, peer) = (self.name(node), self.name(peer));
            self.trace.say(self.now, format_args!("{node} alone loses its connection to {peer}"));
        }
        self.tell_disconnected(node, peer);
        let first = self.rng.within(20 * MILLI, 500 * MILLI);
        self.redial(node, peer, first);
    }

    /// A side that had lost its connection is back before the other noticed: that one is told of a further connection.
    fn come_back(&mut self, node: usize, peer: usize) -> bool {
        let both = self.nodes[node].answers() && self.nodes[peer].answers();
        if !both || !self.net.replace(node, peer) {
            return false;
        }
        if self.trace.on() {
            let (node, peer) = (self.name(node), self.name(peer));
            self.trace.say(self.now, format_args!("{node} is back at {peer}, which had not missed it"));
        }
        self.lost.remove(&(node, peer));
        self.becomes_connected(node, peer);
        self.tell_again(peer, node);
        true
    }

    /// A host says `Connected` of a peer that is connected: by a further connection, or since frames were lost.
    pub fn tell_again(&mut self, node: usize, peer: usize) {
        if self.sees(node, peer) && self.nodes[node].answers() {
            self.nodes[node].host.silent.remove(&peer);
            let id = self.nodes[peer].id;
            self.tell_owner(node, owner::Input::Connected(id));
            self.tell_worker(node, worker::Input::Connected(id));
        }
    }

    fn tell_disconnected(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        self.nodes[node].host.silent.remove(&peer);
        self.tell_owner(node, owner::Input::Disconnected(id));
        self.tell_worker(node, worker::Input::Disconnected(id));
    }

    /// What a machine hears of a connection, when it opens and again after the machine was restored.
    pub fn tell_connected(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        self.tell_owner_connected(node, peer);
        self.tell_worker(node, worker::Input::Connected(id));
        if !self.nodes[node].joined {
            self.nodes[node].joined = true;
            self.tell_worker(node, worker::Input::Joined);
        }
    }

    /// What the owner machine hears of a connection.
    pub fn tell_owner_connected(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        let size = self.believed_size(node);
        self.tell_owner(node, owner::Input::Connected(id));
        for class in self.nodes[peer].classes() {
            self.tell_owner(node, owner::Input::Subscribed { peer: id, class });
        }
        self.tell_owner(node, owner::Input::Swarm { size });
    }

    /// A machine was dropped: what it watched is watched no more.
    pub fn unwatch(&mut self, node: usize, machine: usize) {
        self.nodes[node].host.watched.retain(|(_, by)| *by != machine);
    }

    /// Ends a connection; each side that lives hears of it, and both sides' hosts dial again.
    pub fn disconnect(&mut self, a: usize, b: usize) {
        if !self.net.disconnect(a, b) {
            return;
        }
        if self.trace.on() {
            let (a, b) = (self.name(a), self.name(b));
            self.trace.say(self.now, format_args!("the connection of {a} and {b} breaks"));
        }
        for (node, peer) in [(a, b), (b, a)] {
            if !self.lost.remove(&(node, peer)) {
                self.tell_disconnected(node, peer);
            }
        }
        let first = self.rng.within(20 * MILLI, 500 * MILLI);
        self.redial(a, b, first);
    }

    /// Plans a dial unless one is planned already.
    pub fn redial(&mut self, a: usize, b: usize, delay: u64) {
        let link = (a.min(b), a.max(b));
        if a != b && self.dialling.insert(link) {
            self.queue.push(self.now + delay, Event::Dial { a: link.0, b: link.1, delay });
        }
    }

    /// A planned dial: it opens a connection, is refused, or times out and is tried again.
    pub fn on_dial(&mut self, a: usize, b: usize, delay: u64) {
        self.dialling.remove(&(a, b));
        let connected = self.sees(a, b) && self.sees(b, a);
        if connected || self.nodes[a].gone() || self.nodes[b].gone() {
            return;
        }
        let back = match (self.sees(a, b), self.sees(b, a)) {
            (true, _) => self.come_back(b, a),
            (_, true) => self.come_back(a, b),
            _ => self.connect(a, b),
        };
        if back {
            return;
        }
        for (node, peer) in [(a, b), (b, a)] {
            if self.sees(node, peer) {
                continue;
            }
            let refused = self.nodes[peer].refuses() && self.net.dialable(a, b);
            self.nodes[node].host.waiting.remove(&peer);
            if refused && self.nodes[node].answers() {
                let id = self.nodes[peer].id;
                self.tell_owner(node, owner::Input::Unreachable(id));
            }
        }
        let next = (delay * 2).clamp(200 * MILLI, SLOWEST_REDIAL);
        self.redial(a, b, next);
    }

    /// Sends bytes to a peer, over its connection or by dialling it first.
    pub fn transmit(&mut self, from: usize, to: usize, bytes: Rc<[u8]>) {
        if !self.sees(from, to) {
            let waiting = self.nodes[from].host.waiting.entry(to).or_default();
            if waiting.len() < WAITING_FRAMES {
                waiting.push_back(bytes);
            }
            return self.redial(from, to, 2 * MILLI);
        }
        match self.net.send(&mut self.rng, self.now, from, to, bytes) {
            Sent::Gone(why) => {
                self.check.seen.disturbed += 1;
                if self.trace.on() {
                    self.trace.say(self.now, format_args!("   … {why}"));
                }
            }
            Sent::Arrives(frame, at, again) => {
                if let Some(again) = again {
                    self.check.seen.disturbed += 1;
                    self.queue.push(again, Event::Arrive(frame.clone()));
                }
                self.queue.push(at, Event::Arrive(frame));
            }
        }
    }

    /// A frame is there: what an older connection carried is mostly lost with it.
    pub fn on_arrive(&mut self, frame: Frame) {
        let current =
            self.sees(frame.to, frame.from) && self.net.generation(frame.from, frame.to) == frame.generation;
        let leftovers = self.net.weather.leftovers;
        if !current && !self.rng.chance(leftovers) {
            return;
        }
        if self.nodes[frame.to].asleep() {
            let to = frame.to;
            return self.nodes[to].backlog.push(Event::Arrive(frame));
        }
        self.receive(frame.from, frame.to, &frame.bytes);
    }

    /// A machine wants to know when a peer falls silent, or no longer.
    pub fn watch(&mut self, node: usize, peer: usize, machine: usize, live: bool) {
        let host = &mut self.nodes[node].host;
        if !live {
            host.watched.remove(&(peer, machine));
            if !host.watches(peer) {
                host.silent.remove(&peer);
            }
        } else if host.watched.insert((peer, machine)) && self.mute(node, peer) {
            self.expect_silence(node, peer);
        }
    }

    /// Something fell mute: whoever watches it will notice.
    pub fn maybe_silent(&mut self) {
        for node in 0..self.nodes.len() {
            for peer in 0..self.nodes.len() {
                if node != peer && self.nodes[node].host.watches(peer) && self.mute(node, peer) {
                    self.expect_silence(node, peer);
                }
            }
        }
    }

    fn expect_silence(&mut self, node: usize, peer: usize) {
        let generation = self.net.generation(node, peer);
        let at = self.now + SILENT_AFTER + self.rng.below(SECOND);
        self.queue.push(at, Event::Silence { node, peer, generation });
    }

    /// Pings have been out for long enough: is the peer still mute?
    pub fn on_silence(&mut self, node: usize, peer: usize, generation: u32) {
        let same = self.sees(node, peer) && self.net.generation(node, peer) == generation;
        let watched = self.nodes[node].host.watches(peer) && self.nodes[node].answers();
        if same && watched && self.mute(node, peer) && self.nodes[node].host.silent.insert(peer) {
            let id = self.nodes[peer].id;
            self.tell_owner(node, owner::Input::Silent(id));
        }
    }

    /// Something can be heard again: tell those that were told of its silence.
    pub fn maybe_heard(&mut self) {
        for node in 0..self.nodes.len() {
            let silent: Vec<usize> = self.nodes[node].host.silent.iter().copied().collect();
            for peer in silent {
                if self.sees(node, peer) && !self.mute(node, peer) {
                    self.nodes[node].host.silent.remove(&peer);
                    let id = self.nodes[peer].id;
                    self.tell_owner(node, owner::Input::Heard(id));
                }
            }
        }
    }

    /// Pings of `node` to `peer` are not answered.
    fn mute(&self, node: usize, peer: usize) -> bool {
        !self.net.dialable(node, peer) || !self.nodes[peer].answers()
    }

    /// An announcement spreads over the connections that carry anything, hop by hop.
    pub fn spread(&mut self, origin: usize, class: Class, bytes: Vec<u8>) {
        let bytes: Rc<[u8]> = Rc::from(bytes);
        let mut reached: BTreeMap<usize, u64> = BTreeMap::from([(origin, 0)]);
        let mut front = VecDeque::from([origin]);
        let (loss, delay) = (self.net.weather.gossip_loss, self.net.weather.delay);
        while let Some(relay) = front.pop_front() {
            for node in 0..self.nodes.len() {
                let open = self.sees(relay, node) && self.sees(node, relay) && self.net.open(relay, node);
                if reached.contains_key(&node) || !open || !self.nodes[node].classes().contains(&class) {
                    continue;
                }
                if self.rng.chance(loss) {
                    continue;
                }
                let after = reached.get(&relay).copied().unwrap_or(0) + self.rng.within(delay.0, delay.1);
                reached.insert(node, after);
                front.push_back(node);
                let heard = Event::Announced { to: node, relay, class, bytes: bytes.clone() };
                if self.rng.chance(self.plan.gossip_echo) {
                    let echo = self.now + after + self.rng.within(MILLI, 90 * SECOND);
                    self.queue.push(echo, heard.clone());
                }
                self.queue.push(self.now + after, heard);
            }
        }
    }
}
