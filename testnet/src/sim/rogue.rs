//! A peer that keeps to no rule. Its identity is valid and it runs both machines like everybody, but it garbles what
//! they send, and makes up messages: bids that no lottery admits, receipts that are forged, late or contradict each
//! other, orders about jobs that are not its own, awards of its own jobs that make no sense, lists that name anything,
//! huge numbers. It knows everything about everybody, but cannot sign for others.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use gossip::message::{Announcements, Award, AwardOrder, Direct, Stamp};
use job::{JobId, PeerId};

use super::clock::{MILLI, SECOND};
use super::crypto::Cheap;
use super::plan::RoguePlan;
use super::rng::Rng;
use super::world::{Event, World};
use forge::{Forger, Target};

mod forge;

/// What it remembers of each kind.
const MEMORY: usize = 24;
/// Jobs of its own.
const OWN_JOBS: u64 = 3;
/// Once the faults have ended it says something new this rarely at least.
const CALM_PAUSE: u64 = 60 * SECOND;

/// What the rogue has heard and said.
#[derive(Debug, Default)]
pub(crate) struct Rogue {
    /// Asks and announcements that it heard.
    seeds: VecDeque<(JobId, u32, u64)>,
    /// Awards that it was given.
    awards: VecDeque<AwardOrder>,
    /// What its machines sent, to be sent again.
    sent: VecDeque<(usize, Rc<[u8]>)>,
    /// The newest stamp of each worker that it heard.
    stamps: BTreeMap<usize, Stamp>,
}

impl World {
    /// Whether a node keeps to no rule.
    pub fn is_rogue(&self, node: usize) -> bool {
        self.rogue_plan(node).is_some()
    }

    /// Whether a peer keeps to no rule.
    pub fn is_rogue_peer(&self, peer: PeerId) -> bool {
        self.index_of(peer).is_some_and(|node| self.is_rogue(node))
    }

    fn rogue_plan(&self, node: usize) -> Option<RoguePlan> {
        self.plan.rogue.filter(|rogue| rogue.node == node)
    }

    /// Puts its first act on the agenda.
    pub fn plan_rogue(&mut self) {
        if let Some(rogue) = self.plan.rogue {
            self.queue.push(self.now + rogue.pause, Event::Rogue { node: rogue.node });
        }
    }

    /// It makes something up.
    pub fn on_rogue(&mut self, node: usize) {
        let Some(plan) = self.rogue_plan(node).filter(|plan| !self.calm || plan.for_ever) else { return };
        if self.nodes[node].answers() {
            for _ in 0..self.rng.within(1, 3) {
                self.make_up(node);
            }
        }
        let most = if self.calm { CALM_PAUSE } else { plan.pause };
        let next = self.now + self.rng.within(MILLI, most);
        self.queue.push(next, Event::Rogue { node });
    }

    fn make_up(&mut self, node: usize) {
        if self.rng.chance(150)
            && let Some((to, bytes)) = self.rogue.sent.get(self.rng.below(MEMORY as u64) as usize).cloned()
        {
            return self.transmit(node, to, bytes);
        }
        let Some(target) = self.target(node) else { return };
        let own = target.owner == node;
        let peer = self.rng.below(self.nodes.len() as u64) as usize;
        let mut forger = self.forger(node, peer, &target);
        if self.rng.chance(100) {
            let bytes = forger.announcements();
            return self.whisper(node, bytes);
        }
        // Orders go to workers, answers to owners; now and then it mixes them up.
        let message = if own || self.rng.chance(400) { forger.order() } else { forger.answer() };
        let for_owner = message.is_for_owner() && !own;
        self.utter(node, if for_owner { target.owner } else { peer }, &message);
    }

    fn utter(&mut self, node: usize, to: usize, message: &Direct) {
        if node == to {
            return;
        }
        if self.trace.on() {
            let words = super::words::direct(message);
            self.trace.say(self.now, format_args!("n{node} rogue  > to n{to}: {words}"));
        }
        self.check.rogue_said(self.nodes[node].id, message);
        let bytes = message.encode();
        self.trace.bytes(&bytes);
        self.transmit(node, to, Rc::from(bytes));
    }

    /// Gossip to its neighbours; they pass on only what is right.
    fn whisper(&mut self, node: usize, bytes: Vec<u8>) {
        let bytes: Rc<[u8]> = Rc::from(bytes);
        for to in (0..self.nodes.len()).filter(|&to| to != node) {
            if self.sees(to, node) && self.net.open(node, to) {
                let class = gossip::topic::Class::Wasm;
                let at = self.now + self.rng.within(MILLI, 20 * MILLI);
                self.queue.push(at, Event::Announced { to, relay: node, class, bytes: bytes.clone() });
            }
        }
    }

    /// A job to lie about: one of its own, or anybody's.
    fn target(&mut self, node: usize) -> Option<Target> {
        // Its own jobs would only take the place of others once nothing else may go wrong.
        if self.rng.chance(250) && !self.calm {
            let number = self.rng.below(OWN_JOBS);
            return Some(Target::own(self.nodes[node].id, node, number));
        }
        let plan = self.plan.clone();
        let index = self.rng.below(plan.jobs.len() as u64) as usize;
        let newest = self.clients.job(index).accepted.max(1);
        let version = if self.rng.chance(100) { newest + 1 } else { newest };
        let new = super::client::new_job(self.seed, plan.jobs.get(index)?, index, version);
        Some(Target::of(new, plan.jobs[index].owner))
    }

    fn forger(&mut self, node: usize, to: usize, target: &Target) -> Forger {
        let me = self.nodes[node].id;
        let known = self.check.versions.get(&(target.new.id, target.new.version));
        let mine = known.map(|known| {
            known.awarded.iter().filter(|(_, worker)| **worker == me).map(|(part, _)| *part).collect()
        });
        let others = known.map(|known| {
            let live = known.executions.iter().filter(|(_, state)| !state.is_terminal());
            let parts = live.map(|(key, _)| (key.partition, key.attempt));
            parts.filter(|part| known.awarded.get(part) != Some(&me)).collect()
        });
        let seeds = self.rogue.seeds.iter().filter(|(job, _, _)| *job == target.new.id);
        let seeds = seeds.map(|(_, _, seed)| *seed).collect();
        let orders = self.rogue.awards.iter().filter(|order| order.job == target.new.id);
        Forger {
            me,
            crypto: Cheap(me),
            rng: Rng::new(self.rng.next()),
            target: target.clone(),
            epoch: self.check.owners[target.owner].epoch(),
            mine: mine.unwrap_or_default(),
            others: others.unwrap_or_default(),
            seeds,
            awards: orders.map(|order| order.id).collect(),
            to: self.nodes[to].id,
            theirs: self.rogue.stamps.get(&to).copied(),
            newest: self.rogue.awards.back().map(|order| order.epoch),
            now: self.nodes[node].clock.read(self.now),
            mild: self.calm,
        }
    }

    /// Something reached it: it takes note of what can be used.
    pub fn rogue_hears(&mut self, from: usize, message: &Direct) {
        let rogue = &mut self.rogue;
        match message {
            Direct::Ask(ask) => {
                let job = &ask.announcement;
                remember(&mut rogue.seeds, (job.job, job.version, job.seed));
            }
            Direct::Award(award) => {
                if let Ok(order) = award.order.read::<AwardOrder>() {
                    remember(&mut rogue.awards, order);
                }
            }
            Direct::Bid(bid) => drop(rogue.stamps.insert(from, bid.stamp)),
            Direct::Reply(reply) => drop(rogue.stamps.insert(from, reply.stamp)),
            Direct::Renew(renew) => drop(rogue.stamps.insert(from, renew.stamp)),
            _ => {}
        }
    }

    /// It heard an announcement.
    pub fn rogue_reads(&mut self, bytes: &[u8]) {
        let reader = Cheap(PeerId([0; 32]));
        if let Ok(read) = Announcements::open(bytes, super::shell::SWARM, &reader) {
            for job in read.jobs {
                remember(&mut self.rogue.seeds, (job.job, job.version, job.seed));
            }
        }
    }

    /// One of its machines sends something: whether that is garbled, and so not to be sent as it is.
    pub fn garbles(&mut self, node: usize, to: usize, message: &Direct, bytes: &[u8]) -> bool {
        let Some(plan) = self.rogue_plan(node).filter(|plan| !self.calm || plan.for_ever) else {
            return false;
        };
        if node == to {
            return false;
        }
        remember(&mut self.rogue.sent, (to, Rc::from(bytes)));
        if !self.rng.chance(plan.garbled) {
            return false;
        }
        match self.rng.below(3) {
            0 => true,
            1 => {
                self.make_up(node);
                false
            }
            _ => {
                let job = self.rogue.awards.back().map(|order| order.job);
                let index = job.and_then(|job| self.clients.job_of(job));
                let Some(index) = index else { return false };
                let plan = self.plan.clone();
                let new = super::client::new_job(self.seed, &plan.jobs[index], index, 1);
                let target = Target::of(new, plan.jobs[index].owner);
                let lie = self.forger(node, to, &target).instead_of(message);
                self.utter(node, to, &lie);
                true
            }
        }
    }
}

fn remember<T>(memory: &mut VecDeque<T>, what: T) {
    if memory.len() >= MEMORY {
        memory.pop_front();
    }
    memory.push_back(what);
}

/// An award without anything but its order.
fn bare(order: gossip::crypto::Signed) -> Award {
    Award { order, facts: None, spec: None, hints: Vec::new(), issued: 0 }
}
