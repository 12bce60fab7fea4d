//! Peers, owners and what travels between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gossip::lottery::{admits, draw};
use gossip::message::{
    Announcements, AwardOrder, Bid, Bytes, Direct, Facts, Outcome, Receipt, ReceiptGroup, Receipts, Reply,
    SealedGroup, Stamp, Usage,
};
use gossip::topic::Class;
use gossip::{owner, worker};
use job::{JobId, PeerId, Resources, Time};

use super::{Case, REAL_WORKERS, Report};
use crate::sim::clock::{MILLI, SECOND};
use crate::sim::crypto::Cheap;
use crate::sim::engine::spec_cid;
use crate::sim::queue::Queue;
use crate::sim::rng::{Rng, mix};
use crate::sim::shell::SWARM;
use crate::sim::world::peer_id;
use crate::sim::{Options, Tweak};

/// How many peers an owner is connected to: its gossip meshes.
const CONNECTED: u64 = 40;
/// How many peers pass an announcement on from one peer.
const FAN_OUT: u64 = 7;
/// Primes that divide no swarm's size, so that steps of their length visit every peer.
const STRIDES: [u64; 4] = [1_000_003, 1_000_033, 1_000_037, 1_000_039];
/// A job that is not filled by then counts as never filled.
const GIVE_UP: u64 = 60 * SECOND;
/// When all clocks start.
const START: u64 = 1_800_000_000 * SECOND;

#[derive(Debug)]
enum Event {
    ToOwner(u64, Direct),
    ToPeer(u64, Direct),
    Announced(u64, Arc<[u8]>),
    OwnerWakeup,
    PeerWakeup(u64),
    Ended(u64, job::ExecutionKey),
}

/// All peers but the owner of the moment.
pub(super) struct Swarm {
    case: Case,
    rng: Rng,
    seed: u64,
    now: u64,
    queue: Queue<Event>,
    workers: Vec<worker::Worker>,
    by_id: BTreeMap<PeerId, u64>,
    announced: u64,
    tweak: Option<Tweak>,
}

/// The owner of the moment and what is measured of its job.
struct Submitter {
    machine: owner::Owner,
    id: PeerId,
    count: u32,
    accepted: u64,
    bids: u64,
    ended: bool,
    filled_at: Option<u64>,
    /// Seeds and shares of its announcements.
    rounds: Vec<(u64, u64)>,
    asked: BTreeSet<u64>,
}

struct Nothing;

impl worker::Local for Nothing {
    fn held_bytes(&self, _cid: &job::Cid) -> u64 {
        0
    }

    fn cached(&self, _module: &job::Cid) -> bool {
        false
    }
}

impl Swarm {
    pub(super) fn new(case: Case, options: &Options, seed: u64) -> Self {
        let real = if case.peers <= REAL_WORKERS { case.peers } else { 0 };
        let workers = (0..real).map(|index| real_worker(seed, index)).collect();
        let by_id = (0..case.peers).map(|index| (peer_id(seed, index as usize), index)).collect();
        let rng = Rng::new(seed).fork(7);
        Swarm {
            case,
            rng,
            seed,
            now: 0,
            queue: Queue::new(),
            workers,
            by_id,
            announced: 0,
            tweak: options.tweak.clone(),
        }
    }

    fn time(&self) -> Time {
        Time { boot: START / 1000 + self.now, wall: START + self.now }
    }

    /// Submits one job and follows it to its end.
    pub(super) fn run_job(&mut self, number: u64, report: &mut Report) {
        let mut submitter = self.submit(number);
        let started = self.now;
        let mut out = Vec::new();
        let new = new_job(submitter.id, number, self.case.count);
        submitter.machine.handle(
            self.time(),
            owner::Input::Submitted { token: 1, job: Box::new(new) },
            &mut out,
        );
        self.owner_rests(&mut submitter, out, report);
        while !submitter.ended && self.now < started + GIVE_UP {
            let Some((at, event)) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.happen(event, &mut submitter, report);
        }
        report.bids.push(submitter.bids);
        match submitter.filled_at {
            Some(at) => report.fill_ms.push((at - started) / MILLI),
            None => report.unfilled += 1,
        }
        // The next owner is another peer: what is still on its way to this one does not matter to it.
        self.queue = Queue::new();
        self.now += 120 * SECOND;
        for index in 0..self.workers.len() as u64 {
            self.plan_peer(index);
        }
    }

    fn submit(&mut self, number: u64) -> Submitter {
        let id = peer_id(mix(self.seed ^ 0x006f_776e_6572), number as usize);
        let identity = owner::Identity {
            me: id,
            swarm: SWARM.to_owned(),
            crypto: Arc::new(Cheap(id)),
            seed: [number as u8 + 1; 32],
        };
        let mut settings = owner::Settings { own_worker: false, ..owner::Settings::default() };
        if let Some(tweak) = &self.tweak {
            tweak(&mut settings, &mut worker::Settings::default());
        }
        let mut out = Vec::new();
        let mut machine = owner::Owner::restore(settings, identity, [], self.time(), &mut out)
            .expect("an owner without records restores");
        for _ in 0..CONNECTED.min(self.case.peers) {
            let peer = peer_id(self.seed, self.rng.below(self.case.peers) as usize);
            machine.handle(self.time(), owner::Input::Connected(peer), &mut out);
            machine.handle(self.time(), owner::Input::Subscribed { peer, class: Class::Wasm }, &mut out);
        }
        machine.handle(self.time(), owner::Input::Swarm { size: self.case.believed }, &mut out);
        machine.settle(self.time(), &mut out);
        Submitter {
            machine,
            id,
            count: self.case.count,
            accepted: 0,
            bids: 0,
            ended: false,
            filled_at: None,
            rounds: Vec::new(),
            asked: BTreeSet::new(),
        }
    }

    fn happen(&mut self, event: Event, submitter: &mut Submitter, report: &mut Report) {
        match event {
            Event::ToOwner(from, message) => {
                self.note(&message, submitter);
                let from = peer_id(self.seed, from as usize);
                let mut out = Vec::new();
                submitter.machine.handle(self.time(), owner::Input::Message { from, message }, &mut out);
                self.owner_rests(submitter, out, report);
            }
            Event::OwnerWakeup => {
                let due = submitter.machine.next_wakeup();
                if due.is_some_and(|due| due <= self.time()) {
                    let mut out = Vec::new();
                    submitter.machine.handle(self.time(), owner::Input::Tick, &mut out);
                    self.owner_rests(submitter, out, report);
                }
            }
            Event::ToPeer(to, message) if self.is_light(to) => {
                self.light_peer_hears(to, message, submitter, report)
            }
            Event::ToPeer(to, message) => {
                self.worker_hears(to, worker::Input::Message { from: submitter.id, message }, report);
            }
            Event::Announced(to, bytes) if self.is_light(to) => self.light_peer_reads(to, &bytes, report),
            Event::Announced(to, bytes) => {
                self.announced += 1;
                let (id, relay) = (self.announced, submitter.id);
                let bytes = bytes.to_vec();
                self.worker_hears(
                    to,
                    worker::Input::Announced { id, relay, class: Class::Wasm, bytes },
                    report,
                );
            }
            Event::PeerWakeup(index) => {
                let due = self.workers.get(index as usize).and_then(worker::Worker::next_wakeup);
                if due.is_some_and(|due| due <= self.time()) {
                    self.worker_hears(index, worker::Input::Tick, report);
                }
            }
            Event::Ended(index, execution) => {
                let end = Box::new(end());
                self.worker_hears(index, worker::Input::Ended { execution, end }, report);
            }
        }
    }

    /// Counts what the owner is told.
    fn note(&self, message: &Direct, submitter: &mut Submitter) {
        match message {
            Direct::Bid(_) => submitter.bids += 1,
            Direct::Reply(reply) => {
                submitter.accepted += reply.accepted.iter().map(|span| u64::from(span.count)).sum::<u64>();
                if submitter.accepted >= u64::from(submitter.count) && submitter.filled_at.is_none() {
                    submitter.filled_at = Some(self.now);
                }
            }
            _ => {}
        }
    }

    fn owner_rests(&mut self, submitter: &mut Submitter, mut out: Vec<owner::Effect>, report: &mut Report) {
        submitter.machine.settle(self.time(), &mut out);
        for effect in out {
            match effect {
                owner::Effect::Send { to, message } => {
                    if let Some(&to) = self.by_id.get(&to) {
                        report.outsiders += u64::from(self.is_outsider(submitter, to, &message));
                        let message = self.count(message, report);
                        let delay = self.rng.lognormal(50 * MILLI, 0.4);
                        self.queue.push(self.now + delay, Event::ToPeer(to, message));
                    }
                }
                owner::Effect::Announce { bytes, .. } => {
                    report.announcements += 1;
                    if let Ok(read) = Announcements::open(&bytes, SWARM, &Cheap(submitter.id)) {
                        submitter.rounds.extend(read.jobs.iter().map(|one| (one.seed, one.theta)));
                    }
                    self.spread(bytes.into());
                }
                owner::Effect::Changed { state, .. } if state.is_terminal() => submitter.ended = true,
                _ => {}
            }
        }
        if let Some(due) = submitter.machine.next_wakeup() {
            let at = due.boot.saturating_sub(START / 1000).max(self.now);
            self.queue.push(at, Event::OwnerWakeup);
        }
    }

    /// Whether an award goes to a peer that neither was asked nor won a round.
    fn is_outsider(&self, submitter: &mut Submitter, to: u64, message: &Direct) -> bool {
        let Direct::Award(award) = message else {
            if matches!(message, Direct::Ask(_)) {
                submitter.asked.insert(to);
            }
            return false;
        };
        let Ok(order) = award.order.read::<AwardOrder>() else { return false };
        let id = peer_id(self.seed, to as usize);
        let admitted =
            submitter.rounds.iter().any(|&(seed, theta)| admits(theta, 1, draw(seed, order.job, id)));
        !admitted && !submitter.asked.contains(&to)
    }

    fn is_light(&self, peer: u64) -> bool {
        peer < self.case.greedy || self.workers.is_empty()
    }

    /// Down a tree in which each peer tells seven others; who stands where in it changes from message to message.
    fn spread(&mut self, bytes: Arc<[u8]>) {
        let peers = self.case.peers;
        let (stride, shift) = (self.rng.pick(&STRIDES), self.rng.below(peers));
        let mut after = Vec::with_capacity(peers as usize);
        for place in 0..peers {
            let parent = if place < FAN_OUT { 0 } else { after[(place / FAN_OUT - 1) as usize] };
            let delay = parent + self.rng.lognormal(70 * MILLI, 0.6);
            after.push(delay);
            let peer = (place * stride % peers + shift) % peers;
            self.queue.push(self.now + delay, Event::Announced(peer, bytes.clone()));
        }
    }

    /// Encodes, counts and decodes a message.
    fn count(&mut self, message: Direct, report: &mut Report) -> Direct {
        let bytes = message.encode();
        report.messages += 1;
        report.bytes += bytes.len() as u64;
        Direct::decode(&bytes).unwrap_or(message)
    }

    fn deliver_to_owner(&mut self, from: u64, message: Direct, after: u64, report: &mut Report) {
        let message = self.count(message, report);
        let delay = after + self.rng.lognormal(50 * MILLI, 0.4);
        self.queue.push(self.now + delay, Event::ToOwner(from, message));
    }
}

// Real workers.
impl Swarm {
    fn worker_hears(&mut self, index: u64, input: worker::Input, report: &mut Report) {
        let now = self.time();
        let Some(machine) = self.workers.get_mut(index as usize) else { return };
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        machine.settle(now, &mut out);
        for effect in out {
            match effect {
                worker::Effect::Send { to, message } if !self.by_id.contains_key(&to) => {
                    self.deliver_to_owner(index, message, 0, report)
                }
                worker::Effect::Start(start) => {
                    let runs = self.rng.within(SECOND, 2 * SECOND);
                    self.queue.push(self.now + runs, Event::Ended(index, start.execution));
                }
                _ => {}
            }
        }
        self.plan_peer(index);
    }

    fn plan_peer(&mut self, index: u64) {
        let due = self.workers.get(index as usize).and_then(worker::Worker::next_wakeup);
        if let Some(due) = due {
            let at = due.boot.saturating_sub(START / 1000).max(self.now);
            self.queue.push(at, Event::PeerWakeup(index));
        }
    }
}

// Peers of swarms too large for real machines: reading, checking and admission are real, the rest is what an idle worker
// answers.
impl Swarm {
    fn light_peer_reads(&mut self, peer: u64, bytes: &[u8], report: &mut Report) {
        let id = peer_id(self.seed, peer as usize);
        let Ok(announcements) = Announcements::open(bytes, SWARM, &Cheap(id)) else { return };
        for one in &announcements.jobs {
            if peer < self.case.greedy || admits(one.theta, 1, draw(one.seed, one.job, id)) {
                let bid = Bid {
                    job: one.job,
                    version: one.version,
                    seed: one.seed,
                    stamp: self.stamp(),
                    start_ms: 0,
                    slots: 1,
                    local_bytes: 0,
                    cached: false,
                    hold_ms: 5000,
                    skew_s: 0,
                };
                let jitter = self.rng.below(200 * MILLI);
                self.deliver_to_owner(peer, Direct::Bid(bid), jitter, report);
            }
        }
    }

    fn light_peer_hears(&mut self, peer: u64, message: Direct, submitter: &Submitter, report: &mut Report) {
        let Direct::Award(award) = message else { return };
        let id = peer_id(self.seed, peer as usize);
        let Ok(order) = award.order.open::<AwardOrder>(submitter.id, &Cheap(id)) else { return };
        let stamp = self.stamp();
        let reply = Reply {
            job: order.job,
            version: order.version,
            award: order.id,
            accepted: order.spans.clone(),
            declined: Vec::new(),
            code: None,
            message: String::new(),
            eta_ms: 0,
            epoch: order.epoch,
            stamp,
        };
        self.deliver_to_owner(peer, Direct::Reply(reply), 0, report);
        let receipt = |(partition, attempt)| Receipt {
            partition,
            attempt,
            epoch: order.epoch,
            outcome: Outcome::Exit(0),
            result: None,
            usage: Usage::default(),
            started_ms: 1,
            ran_ms: 1000,
        };
        let spans =
            order.spans.iter().flat_map(|span| span.partitions().map(|partition| (partition, span.attempt)));
        let group = ReceiptGroup {
            job: order.job,
            version: order.version,
            spec: order.spec,
            worker: id,
            inputs: Vec::new(),
            engine: String::new(),
            receipts: spans.map(receipt).collect(),
        };
        let groups = SealedGroup::seal(&[group], &Cheap(id));
        let runs = self.rng.within(SECOND, 2 * SECOND);
        self.deliver_to_owner(
            peer,
            Direct::Receipts(Receipts { stamp, groups, blocks: Vec::new() }),
            runs,
            report,
        );
    }

    fn stamp(&self) -> Stamp {
        Stamp { start: 1, at_ms: self.now / MILLI }
    }
}

fn real_worker(seed: u64, index: u64) -> worker::Worker {
    let id = peer_id(seed, index as usize);
    let identity = worker::Identity {
        me: id,
        swarm: SWARM.to_owned(),
        crypto: Arc::new(Cheap(id)),
        local: Arc::new(Nothing),
        seed: [index as u8; 32],
    };
    let settings = worker::Settings {
        capacity: Resources { cpu_milli: 1000, memory: 8 << 30, disk: 0, gpu: 0 },
        ..worker::Settings::default()
    };
    let time = Time { boot: START / 1000, wall: START };
    worker::Worker::restore(settings, identity, [], time, &mut Vec::new())
        .expect("a worker without records restores")
}

fn new_job(owner: PeerId, number: u64, count: u32) -> owner::NewJob {
    let nonce = number.to_be_bytes();
    let spec = b"a spec".to_vec();
    owner::NewJob {
        id: JobId::derive(SWARM, owner, &nonce),
        version: 1,
        nonce: Bytes::from(&nonce[..]),
        name: format!("job-{number}"),
        namespace: "default".to_owned(),
        spec_cid: spec_cid(&spec),
        spec: Bytes::from(spec),
        facts: Facts::plain("wasm", Resources { cpu_milli: 1000, memory: 1 << 20, disk: 0, gpu: 0 }),
        count,
        total_timeout: None,
        queue_timeout: Some(Duration::from_secs(600)),
        max_attempts: 3,
        keep: owner::Keep::Owner,
    }
}

fn end() -> worker::End {
    worker::End {
        outcome: Outcome::Exit(0),
        result: None,
        blocks: Vec::new(),
        stored: true,
        usage: Usage::default(),
        started_ms: 1,
        ran_ms: 1000,
        engine: String::new(),
        inputs: Vec::new(),
    }
}
