//! A swarm of machines with a shared clock: every message is encoded and decoded, every record kept,
//! every batch settled by itself. Nothing is lost or late unless a test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use job::state::JobState;
use job::{Cid, ExecutionKey, JobId, PeerId, Resources, Time};
use sha2::{Digest, Sha256};

use crate::crypto::{Crypto, Domain, Signed};
use crate::message::{
    Announcements, AwardOrder, Block, Direct, Facts, FaultClass, Outcome, Phase, ReceiptGroup, ResultInfo,
    SealedGroup, StopOrder, Usage,
};
use crate::owner::{self, Held, JobView, Keep, NewJob, Owner, StoredJob};
use crate::record::{Record, RecordKey};
use crate::topic::Class;
use crate::worker::{self, End, Local, Worker};

pub(crate) const SWARM: &str = "test";

/// Signatures that cost nothing.
struct Cheap(PeerId);

fn seal(signer: PeerId, domain: Domain, payload: &[u8]) -> [u8; 64] {
    let hash =
        Sha256::new().chain_update(signer.0).chain_update(domain.tag()).chain_update(payload).finalize();
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&hash);
    signature
}

impl Crypto for Cheap {
    fn sign(&self, domain: Domain, payload: &[u8]) -> [u8; 64] {
        seal(self.0, domain, payload)
    }

    fn verify(&self, signer: PeerId, domain: Domain, payload: &[u8], signature: &[u8; 64]) -> bool {
        seal(signer, domain, payload) == *signature
    }
}

struct Nothing;

impl Local for Nothing {
    fn held_bytes(&self, _: &Cid) -> u64 {
        0
    }

    fn cached(&self, _: &Cid) -> bool {
        false
    }
}

/// What the engine makes of an execution: how long it takes and how it ends.
pub(crate) type Program = Arc<dyn Fn(PeerId, ExecutionKey) -> (Duration, Outcome)>;

pub(crate) struct Node {
    pub(crate) owner: Option<Owner>,
    pub(crate) worker: Option<Worker>,
    pub(crate) owner_settings: owner::Settings,
    pub(crate) worker_settings: worker::Settings,
    pub(crate) owner_records: BTreeMap<RecordKey, Record>,
    pub(crate) worker_records: BTreeMap<RecordKey, Record>,
    running: BTreeMap<ExecutionKey, Time>,
    starts: u64,
}

#[derive(Debug, Clone)]
enum Event {
    Message(PeerId, PeerId, Vec<u8>),
    Announced(PeerId, PeerId, Class, Vec<u8>),
    Ended(PeerId, ExecutionKey, u64),
    Held(PeerId, JobId, u32, Vec<Held>),
}

pub(crate) struct Swarm {
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<PeerId, Node>,
    pub(crate) cut: BTreeSet<(PeerId, PeerId)>,
    events: BTreeMap<(u64, u64), Event>,
    queue: VecDeque<Event>,
    next_event: u64,
    pub(crate) program: Program,
    pub(crate) holds: bool,
    pub(crate) started: Vec<(Time, PeerId, ExecutionKey)>,
    pub(crate) sent: BTreeMap<&'static str, u64>,
    pub(crate) announced: u64,
    pub(crate) answers: Vec<owner::Effect>,
    pub(crate) penalised: Vec<(PeerId, &'static str)>,
    /// Messages of these kinds are lost.
    pub(crate) lose: BTreeSet<&'static str>,
    pub(crate) released: Vec<ExecutionKey>,
    pub(crate) forgotten: Vec<(JobId, u32)>,
    /// Messages to nodes that do not exist are expected: the test plays them.
    pub(crate) quiet: bool,
    /// Whether messages are printed: for finding out what a failing test did.
    pub(crate) trace: bool,
}

/// Signs what a node that the test plays would sign.
pub(crate) fn seal_order(signer: PeerId, order: &AwardOrder) -> Signed {
    Signed::seal(order, &Cheap(signer))
}

pub(crate) fn seal_stop(signer: PeerId, order: &StopOrder) -> Signed {
    Signed::seal(order, &Cheap(signer))
}

pub(crate) fn seal_announcements(signer: PeerId, message: &Announcements) -> Vec<u8> {
    message.seal(&Cheap(signer)).expect("small")
}

pub(crate) fn seal_receipts(signer: PeerId, groups: &[ReceiptGroup]) -> Vec<SealedGroup> {
    SealedGroup::seal(groups, &Cheap(signer))
}

pub(crate) fn open_announcements(reader: PeerId, bytes: &[u8]) -> Announcements {
    Announcements::open(bytes, SWARM, &Cheap(reader)).expect("an announcement")
}

pub(crate) fn peer(number: u8) -> PeerId {
    PeerId([number; 32])
}

pub(crate) fn cid(bytes: &[u8]) -> Cid {
    let hash = cid_hash(bytes);
    Cid::try_from([&[1u8, 0x55, 0x12, 32][..], &hash[..]].concat().as_slice()).expect("a raw CID of SHA-256")
}

fn cid_hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn small() -> Resources {
    Resources { cpu_milli: 500, memory: 1 << 20, disk: 0, gpu: 0 }
}

/// A job of one owner.
pub(crate) fn job(owner: PeerId, number: u8, count: u32) -> NewJob {
    let nonce = vec![number];
    let spec = format!("spec {number}").into_bytes();
    NewJob {
        id: JobId::derive(SWARM, owner, &nonce),
        version: 1,
        nonce: nonce.into(),
        name: format!("job-{number}"),
        namespace: "default".into(),
        spec_cid: cid(&spec),
        spec: spec.into(),
        facts: Facts::plain("wasm", small()),
        count,
        total_timeout: None,
        queue_timeout: None,
        max_attempts: 3,
        keep: Keep::Owner,
    }
}

impl Swarm {
    /// Nodes 1 to `count`, all connected and subscribed, each with room for `slots` small executions.
    pub(crate) fn new(count: u8, slots: u32) -> Self {
        let mut swarm = Swarm {
            now: Time { boot: 1_000_000_000_000, wall: 1_800_000_000_000_000_000 },
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            events: BTreeMap::new(),
            queue: VecDeque::new(),
            next_event: 0,
            program: Arc::new(|_, _| (Duration::from_millis(100), Outcome::Exit(0))),
            holds: true,
            started: Vec::new(),
            sent: BTreeMap::new(),
            announced: 0,
            answers: Vec::new(),
            penalised: Vec::new(),
            lose: BTreeSet::new(),
            released: Vec::new(),
            forgotten: Vec::new(),
            quiet: false,
            trace: false,
        };
        for number in 1..=count {
            swarm.add(number, slots);
        }
        swarm
    }

    pub(crate) fn add(&mut self, number: u8, slots: u32) {
        let me = peer(number);
        let capacity = small().checked_mul(slots.into()).expect("small");
        let node = Node {
            owner: None,
            worker: None,
            owner_settings: owner::Settings { own_worker: slots > 0, ..owner::Settings::default() },
            worker_settings: worker::Settings { capacity, slots, ..worker::Settings::default() },
            owner_records: BTreeMap::new(),
            worker_records: BTreeMap::new(),
            running: BTreeMap::new(),
            starts: 0,
        };
        self.nodes.insert(me, node);
        self.boot(me);
    }

    /// Starts a node's machines from their records and connects it with everybody it can reach.
    pub(crate) fn boot(&mut self, me: PeerId) {
        self.start_owner(me);
        self.start_worker(me);
        self.connect(me);
    }

    pub(crate) fn start_owner(&mut self, me: PeerId) {
        let now = self.now;
        let node = self.nodes.get_mut(&me).expect("a node");
        node.starts += 1;
        let identity = owner::Identity {
            me,
            swarm: SWARM.into(),
            crypto: Arc::new(Cheap(me)),
            seed: [node.starts as u8; 32],
        };
        let records: Vec<Record> = node.owner_records.values().cloned().collect();
        let mut out = Vec::new();
        node.owner = Some(
            Owner::restore(node.owner_settings.clone(), identity, records, now, &mut out).expect("sound"),
        );
        self.perform_owner(me, out);
    }

    pub(crate) fn start_worker(&mut self, me: PeerId) {
        let now = self.now;
        let node = self.nodes.get_mut(&me).expect("a node");
        node.starts += 1;
        let seed = [node.starts as u8 ^ me.0[0].wrapping_mul(31); 32];
        let identity = worker::Identity {
            me,
            swarm: SWARM.into(),
            crypto: Arc::new(Cheap(me)),
            local: Arc::new(Nothing),
            seed,
        };
        let records: Vec<Record> = node.worker_records.values().cloned().collect();
        let mut out = Vec::new();
        node.worker = Some(
            Worker::restore(node.worker_settings.clone(), identity, records, now, &mut out).expect("sound"),
        );
        self.perform_worker(me, out);
    }

    pub(crate) fn connect(&mut self, me: PeerId) {
        let others: Vec<PeerId> = self.nodes.keys().copied().filter(|other| *other != me).collect();
        for other in others {
            if !self.cut.contains(&(me, other)) && self.is_up(other) && self.is_up(me) {
                for (one, two) in [(me, other), (other, me)] {
                    self.owner(one, owner::Input::Connected(two));
                    self.owner(one, owner::Input::Subscribed { peer: two, class: Class::Wasm });
                    self.worker(one, worker::Input::Connected(two));
                }
            }
        }
    }

    fn is_up(&self, me: PeerId) -> bool {
        self.nodes.get(&me).is_some_and(|node| node.worker.is_some() || node.owner.is_some())
    }

    /// Ends a node without warning.
    pub(crate) fn kill(&mut self, me: PeerId) {
        let node = self.nodes.get_mut(&me).expect("a node");
        node.owner = None;
        node.worker = None;
        node.running.clear();
        let others: Vec<PeerId> = self.nodes.keys().copied().filter(|other| *other != me).collect();
        for other in others {
            self.owner(other, owner::Input::Disconnected(me));
            self.owner(other, owner::Input::Unreachable(me));
            self.worker(other, worker::Input::Disconnected(me));
        }
    }

    /// Ends a node as its user does: executions are ended first, and the worker hears of that.
    pub(crate) fn stop(&mut self, me: PeerId) {
        self.worker(me, worker::Input::Leaving);
        for execution in self.running(me) {
            self.nodes.get_mut(&me).expect("a node").running.remove(&execution);
            self.ended(me, execution, Outcome::Fault(FaultClass::Node, "stopped: the node stopped".into()));
        }
        self.deliver();
        self.kill(me);
    }

    /// Cuts the connection between two nodes, or heals it.
    pub(crate) fn cut(&mut self, one: PeerId, two: PeerId) {
        for (me, other) in [(one, two), (two, one)] {
            self.cut.insert((me, other));
            self.owner(me, owner::Input::Disconnected(other));
            self.worker(me, worker::Input::Disconnected(other));
        }
    }

    pub(crate) fn heal(&mut self, one: PeerId, two: PeerId) {
        for (me, other) in [(one, two), (two, one)] {
            self.cut.remove(&(me, other));
        }
        for (me, other) in [(one, two), (two, one)] {
            self.owner(me, owner::Input::Connected(other));
            self.owner(me, owner::Input::Subscribed { peer: other, class: Class::Wasm });
            self.worker(me, worker::Input::Connected(other));
        }
        self.deliver();
    }

    pub(crate) fn submit(&mut self, owner: PeerId, job: NewJob) -> JobId {
        let id = job.id;
        self.owner(owner, owner::Input::Submitted { token: 7, job: Box::new(job) });
        self.deliver();
        id
    }

    pub(crate) fn view(&self, owner: PeerId, id: JobId) -> JobView {
        let node = &self.nodes[&owner];
        let live = node.owner.as_ref().and_then(|machine| machine.view(id, None));
        let records = node.owner_records.values().filter(|record| record.key.job == id).cloned();
        live.unwrap_or_else(|| {
            StoredJob::from_records(records, owner).expect("sound").expect("a job").reader().view()
        })
    }

    pub(crate) fn state(&self, owner: PeerId, id: JobId) -> (JobState, String) {
        let summary = self.view(owner, id).summary;
        (summary.state, summary.message)
    }

    /// Runs for a span of virtual time.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        for step in 0.. {
            assert!(step < 20_000, "time does not pass: {:?}", self.due());
            self.deliver();
            let wakeups = self.nodes.values().flat_map(|node| {
                let owner = node.owner.as_ref().and_then(Owner::next_wakeup);
                let worker = node.worker.as_ref().and_then(Worker::next_wakeup);
                [owner, worker].into_iter().flatten().map(|at| at.boot)
            });
            let events = self.events.keys().next().map(|(at, _)| *at);
            let Some(next) = wakeups.chain(events).min().filter(|next| *next <= end.boot) else {
                break;
            };
            let passed = next.saturating_sub(self.now.boot);
            self.now = self.now + Duration::from_nanos(passed);
            self.tick();
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now.boot) {
                let event = entry.remove();
                self.queue.push_back(event);
            }
        }
        assert!(self.now <= end);
        self.now = end;
        self.deliver();
    }

    fn due(&self) -> Vec<(PeerId, Option<Time>, Option<Time>)> {
        let due = |(me, node): (&PeerId, &Node)| {
            (
                *me,
                node.owner.as_ref().and_then(Owner::next_wakeup),
                node.worker.as_ref().and_then(Worker::next_wakeup),
            )
        };
        self.nodes.iter().map(due).collect()
    }

    fn tick(&mut self) {
        let now = self.now;
        for me in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = &self.nodes[&me];
            let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
            if due(node.owner.as_ref().and_then(Owner::next_wakeup)) {
                self.owner(me, owner::Input::Tick);
            }
            if due(self.nodes[&me].worker.as_ref().and_then(Worker::next_wakeup)) {
                self.worker(me, worker::Input::Tick);
            }
        }
    }

    /// Delivers what is on its way until nothing is.
    pub(crate) fn deliver(&mut self) {
        let mut steps = 0;
        while let Some(event) = self.queue.pop_front() {
            steps += 1;
            assert!(steps < 100_000, "messages go round in circles: {event:?}");
            match event {
                Event::Message(from, to, bytes) => {
                    let message = Direct::decode(&bytes).expect("what was encoded decodes");
                    if self.trace {
                        let text = format!("{message:?}");
                        eprintln!(
                            "{:.3} {} -> {} {}",
                            (self.now.boot as f64 - 1e12) / 1e9,
                            from.0[0],
                            to.0[0],
                            &text[..text.len().min(330)]
                        );
                    }
                    if self.cut.contains(&(from, to)) || self.lose.contains(message.name()) {
                        continue;
                    }
                    if message.is_for_owner() {
                        self.owner(to, owner::Input::Message { from, message });
                    } else {
                        self.worker(to, worker::Input::Message { from, message });
                    }
                }
                Event::Announced(from, to, class, bytes) => {
                    if !self.cut.contains(&(from, to)) {
                        self.worker(to, worker::Input::Announced { id: 1, relay: from, class, bytes });
                    }
                }
                Event::Ended(me, execution, starts) => self.end(me, execution, starts),
                Event::Held(me, job, version, results) => {
                    self.owner(me, owner::Input::Held { job, version, results });
                }
            }
        }
    }

    fn end(&mut self, me: PeerId, execution: ExecutionKey, starts: u64) {
        let node = self.nodes.get_mut(&me).expect("a node");
        if node.starts != starts || node.running.remove(&execution).is_none() {
            return;
        }
        let (_, outcome) = (self.program)(me, execution);
        self.ended(me, execution, outcome);
    }

    fn ended(&mut self, me: PeerId, execution: ExecutionKey, outcome: Outcome) {
        // A small result, of which the receipt carries all there is.
        let bytes = format!("result {}", execution.partition).into_bytes();
        let block = Block { cid: cid(&bytes), bytes: bytes.into() };
        let blocks: Vec<Block> = matches!(outcome, Outcome::Exit(_)).then_some(block).into_iter().collect();
        let result = blocks.first().map(|block| ResultInfo {
            cid: block.cid,
            size: block.bytes.len() as u64,
            published: String::new(),
        });
        let end = End {
            outcome,
            result,
            blocks,
            stored: false,
            usage: Usage::default(),
            started_ms: self.now.wall / 1_000_000,
            ran_ms: 1,
            engine: "test".into(),
            inputs: Vec::new(),
        };
        self.worker(me, worker::Input::Ended { execution, end: Box::new(end) });
    }

    pub(crate) fn owner(&mut self, me: PeerId, input: owner::Input) {
        let now = self.now;
        let Some(machine) = self.nodes.get_mut(&me).and_then(|node| node.owner.as_mut()) else { return };
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        machine.settle(now, &mut out);
        assert!(machine.next_wakeup().is_none_or(|at| at > now || at.boot + 1 > now.boot));
        self.perform_owner(me, out);
    }

    /// Hands an input to a worker; what it does about it, which is also performed.
    pub(crate) fn worker_effects(&mut self, me: PeerId, input: worker::Input) -> Vec<worker::Effect> {
        let now = self.now;
        let machine = self.nodes.get_mut(&me).and_then(|node| node.worker.as_mut()).expect("a worker");
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        machine.settle(now, &mut out);
        self.perform_worker(me, out.clone());
        out
    }

    /// Hands an input to an owner; what it does about it, which is also performed.
    pub(crate) fn owner_effects(&mut self, me: PeerId, input: owner::Input) -> Vec<owner::Effect> {
        let now = self.now;
        let machine = self.nodes.get_mut(&me).and_then(|node| node.owner.as_mut()).expect("an owner");
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        machine.settle(now, &mut out);
        self.perform_owner(me, out.clone());
        out
    }

    pub(crate) fn worker(&mut self, me: PeerId, input: worker::Input) {
        let now = self.now;
        let Some(machine) = self.nodes.get_mut(&me).and_then(|node| node.worker.as_mut()) else { return };
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        machine.settle(now, &mut out);
        self.perform_worker(me, out);
    }

    fn perform_owner(&mut self, me: PeerId, effects: Vec<owner::Effect>) {
        for effect in effects {
            let node = self.nodes.get_mut(&me).expect("a node");
            match effect {
                owner::Effect::Persist(record) => drop(node.owner_records.insert(record.key, record)),
                owner::Effect::Forget(key) => drop(node.owner_records.remove(&key)),
                owner::Effect::ForgetJob { job, version } => {
                    node.owner_records.retain(|key, _| (key.job, key.version) != (job, version));
                    self.forgotten.push((job, version));
                }
                owner::Effect::Send { to, message } => self.send(me, to, &message),
                owner::Effect::Announce { class, bytes } => {
                    self.announced += 1;
                    assert!(bytes.len() <= crate::message::MAX_ANNOUNCEMENT_BYTES);
                    for to in self.nodes.keys().copied().filter(|to| *to != me).collect::<Vec<_>>() {
                        self.queue.push_back(Event::Announced(me, to, class, bytes.clone()));
                    }
                }
                owner::Effect::Hold(hold) if self.holds => {
                    let came = |cid: &Cid| hold.blocks.iter().any(|block| block.cid == *cid);
                    let held = |item: &owner::HoldItem| Held {
                        partition: item.partition,
                        attempt: item.attempt,
                        result: if came(&item.result.cid) { Ok(()) } else { Err("nobody has it".into()) },
                    };
                    let results = hold.items.iter().map(held).collect();
                    self.queue.push_back(Event::Held(me, hold.job, hold.version, results));
                }
                owner::Effect::Penalise { peer, why } => self.penalised.push((peer, why)),
                answer @ (owner::Effect::Submitted { .. }
                | owner::Effect::Refused { .. }
                | owner::Effect::Changed { .. }
                | owner::Effect::Hold(_)
                | owner::Effect::StopAnswered { .. }) => self.answers.push(answer),
                _ => {}
            }
        }
    }

    fn perform_worker(&mut self, me: PeerId, effects: Vec<worker::Effect>) {
        for effect in effects {
            let now = self.now;
            let node = self.nodes.get_mut(&me).expect("a node");
            match effect {
                worker::Effect::Persist(record) => drop(node.worker_records.insert(record.key, record)),
                worker::Effect::Forget(key) => drop(node.worker_records.remove(&key)),
                worker::Effect::Send { to, message } => self.send(me, to, &message),
                worker::Effect::Start(start) => {
                    node.running.insert(start.execution, now);
                    let starts = node.starts;
                    let (span, _) = (self.program)(me, start.execution);
                    self.started.push((now, me, start.execution));
                    self.next_event += 1;
                    let event = Event::Ended(me, start.execution, starts);
                    self.events.insert(((now + span).boot, self.next_event), event);
                    let phase = Phase::Running;
                    let input = worker::Input::Phase {
                        execution: start.execution,
                        phase,
                        message: String::new(),
                        logged: (0, 0),
                    };
                    self.worker(me, input);
                }
                worker::Effect::End { execution, .. } if node.running.remove(&execution).is_some() => {
                    let outcome = Outcome::Fault(FaultClass::Node, "stopped".into());
                    self.ended(me, execution, outcome);
                }
                worker::Effect::Penalise { peer, why } => self.penalised.push((peer, why)),
                worker::Effect::Release { execution, .. } => self.released.push(execution),
                _ => {}
            }
        }
    }

    fn send(&mut self, from: PeerId, to: PeerId, message: &Direct) {
        if from != to {
            *self.sent.entry(message.name()).or_default() += 1;
        }
        if !self.quiet {
            self.queue.push_back(Event::Message(from, to, message.encode()));
        }
    }

    pub(crate) fn running(&self, me: PeerId) -> Vec<ExecutionKey> {
        self.nodes[&me].running.keys().copied().collect()
    }
}
