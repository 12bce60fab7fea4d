//! The simulated world: its agenda, its nodes, and one step after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use gossip::topic::Class;
use gossip::{owner, worker};
use job::{ExecutionKey, PeerId};

use super::check::{Check, Violation};
use super::clock::{Clock, MILLI};
use super::engine::Engine;
use super::host::Host;
use super::net::{Frame, Net};
use super::plan::Plan;
use super::queue::Queue;
use super::rng::{Rng, mix};
use super::shell::{OwnerShell, WorkerShell};
use super::trace::Trace;

/// Something that happens at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A frame reaches its receiver.
    Arrive(Frame),
    /// An announcement reaches a subscriber.
    Announced { to: usize, relay: usize, class: Class, bytes: Rc<[u8]> },
    /// A shell gets to its waiting inputs.
    Drain { node: usize, role: Role, life: u32 },
    /// A machine's wakeup is due.
    Wakeup { node: usize, role: Role, life: u32 },
    /// A stage of an execution is over.
    Stage { node: usize, key: ExecutionKey, at: u64 },
    /// A copy of a result has arrived, or has not.
    Held { node: usize, life: u32, copy: u64 },
    /// A planned dial.
    Dial { a: usize, b: usize, delay: u64 },
    /// A connection over which nothing came for long is given up.
    GiveUp { a: usize, b: usize, generation: u32 },
    /// Pings have been out for long enough.
    Silence { node: usize, peer: usize, generation: u32 },
    /// A planned fault begins.
    Trouble(usize),
    /// A killed process starts again.
    Restart { node: usize },
    /// A stopped process or sleeping machine goes on.
    Resume { node: usize, slept: bool, since: u64 },
    /// A node notices that its network is gone.
    NetworkGone { node: usize },
    /// A peer that keeps to no rule says something.
    Rogue { node: usize },
    /// Cut directions are whole again.
    Heal { cuts: Rc<[(usize, usize)]> },
    /// A client does what it planned.
    Client(super::client::Act),
    /// All faults end.
    Calm,
    /// Something must be true by now.
    Due(super::check::Due),
}

/// Which of a node's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Owner,
    Worker,
}

/// What a node's process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Up,
    /// Stopped by a signal, or its machine sleeps.
    Asleep {
        machine: bool,
    },
    /// Its process is dead; a dial is refused unless the whole machine is down.
    Down {
        machine: bool,
    },
    /// It never comes back.
    Gone,
}

/// One simulated node.
pub(crate) struct Node {
    pub id: PeerId,
    pub clock: Clock,
    pub life: Life,
    /// Counts processes, so that timers and answers of an older one are known.
    pub lives: u32,
    pub joined: bool,
    pub host: Host,
    pub owner: OwnerShell,
    pub worker: WorkerShell,
    pub engine: Engine,
    /// Results that it holds as an owner.
    pub content: BTreeSet<job::Cid>,
    /// Results of executions here, until they are released.
    pub kept: BTreeMap<ExecutionKey, job::Cid>,
    /// Since when it has been awake without a break.
    pub awake_since: u64,
    /// When it last woke from a sleep so long that its owner machine must notice.
    pub slept_until: u64,
    /// What reached a process that is asleep; it is handled on waking.
    pub backlog: Vec<Event>,
    pub cpu: u64,
}

impl Node {
    /// The process handles what reaches it.
    pub fn answers(&self) -> bool {
        self.life == Life::Up
    }

    /// The process exists and handles nothing.
    pub fn asleep(&self) -> bool {
        matches!(self.life, Life::Asleep { .. })
    }

    /// A dial is answered with a refusal: the machine is there and the process is not.
    pub fn refuses(&self) -> bool {
        matches!(self.life, Life::Down { machine: false })
    }

    /// It never comes back.
    pub fn gone(&self) -> bool {
        self.life == Life::Gone
    }

    /// The process is dead.
    pub fn down(&self) -> bool {
        matches!(self.life, Life::Down { .. } | Life::Gone)
    }

    /// Whether a result is on its disk.
    pub fn holds(&self, cid: &job::Cid) -> bool {
        self.content.contains(cid) || self.kept.values().any(|kept| kept == cid)
    }

    /// The announcement classes it subscribes to.
    pub fn classes(&self) -> Vec<Class> {
        if self.cpu == 0 { Vec::new() } else { vec![Class::Wasm, Class::Fleet] }
    }
}

/// The whole simulation.
pub(crate) struct World {
    pub now: u64,
    pub queue: Queue<Event>,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub dialling: BTreeSet<(usize, usize)>,
    /// Who has lost a connection that its other side still believes in.
    pub lost: BTreeSet<(usize, usize)>,
    pub rogue: super::rogue::Rogue,
    pub plan: Rc<Plan>,
    pub rng: Rng,
    pub seed: u64,
    pub trace: Trace,
    pub check: Check,
    pub steps: u64,
    /// Faults have ended.
    pub calm: bool,
    pub clients: super::client::Clients,
    pub settings: super::shell::MachineSettings,
}

impl World {
    /// A swarm at its start: every node is up and dials every other.
    pub fn new(seed: u64, plan: Plan, settings: super::shell::MachineSettings, trace: Trace) -> World {
        let plan = Rc::new(plan);
        let mut world = World {
            now: 0,
            queue: Queue::new(),
            nodes: Vec::new(),
            net: Net::new(plan.weather.clone()),
            dialling: BTreeSet::new(),
            lost: BTreeSet::new(),
            rogue: super::rogue::Rogue::default(),
            rng: Rng::new(seed).fork(2),
            seed,
            trace,
            check: Check::new(&plan),
            steps: 0,
            calm: false,
            clients: super::client::Clients::new(&plan),
            settings,
            plan: plan.clone(),
        };
        for (index, node) in plan.nodes.iter().enumerate() {
            world.nodes.push(Node {
                id: peer_id(seed, index),
                clock: Clock::new(node.boot, node.wall, node.rate_ppm),
                life: Life::Up,
                lives: 0,
                joined: false,
                host: Host::default(),
                owner: OwnerShell::default(),
                worker: WorkerShell::default(),
                engine: Engine::default(),
                content: BTreeSet::new(),
                kept: BTreeMap::new(),
                awake_since: 0,
                slept_until: 0,
                backlog: Vec::new(),
                cpu: node.cpu,
            });
        }
        if world.trace.on() {
            for (index, node) in world.nodes.iter().enumerate() {
                world.trace.name(node.id.to_string(), format!("n{index}"));
                world.trace.name(node.id.short(), format!("n{index}"));
            }
            let plan = format!("{:?}\n{:?}", plan.nodes, plan.weather);
            world.trace.say(0, format_args!("{plan}"));
        }
        for node in 0..world.nodes.len() {
            world.start_machines(node);
        }
        for a in 0..world.nodes.len() {
            for b in a + 1..world.nodes.len() {
                let delay = world.rng.within(MILLI, 80 * MILLI);
                world.redial(a, b, delay);
            }
        }
        for (index, fault) in plan.faults.iter().enumerate() {
            world.queue.push(fault.at, Event::Trouble(index));
        }
        world.plan_clients();
        world.plan_rogue();
        world.queue.push(plan.heal_at, Event::Calm);
        world
    }

    /// Handles the next event; false when there is none.
    pub fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.steps += 1;
        self.trace.fact(self.now);
        self.happen(event);
        true
    }

    /// What broke, if anything has.
    pub fn violation(&self) -> Option<&Violation> {
        self.check.violation.as_ref()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(frame) => self.on_arrive(frame),
            Event::Announced { to, relay, class, bytes } => self.on_announced(to, relay, class, bytes),
            Event::Drain { node, role, life } => self.on_drain(node, role, life),
            Event::Wakeup { node, role, life } => self.on_wakeup(node, role, life),
            Event::Stage { node, key, at } => self.on_stage(node, key, at),
            Event::Held { node, life, copy } => self.on_copied(node, life, copy),
            Event::Dial { a, b, delay } => self.on_dial(a, b, delay),
            Event::GiveUp { a, b, generation } => self.on_give_up(a, b, generation),
            Event::Silence { node, peer, generation } => self.on_silence(node, peer, generation),
            Event::Trouble(index) => self.on_trouble(index),
            Event::Restart { node } => self.restart(node),
            Event::Resume { node, slept, since } => self.resume(node, slept, since),
            Event::NetworkGone { node } => self.on_network_gone(node),
            Event::Rogue { node } => self.on_rogue(node),
            Event::Heal { cuts } => self.heal(&cuts),
            Event::Client(act) => self.on_client(act),
            Event::Calm => self.become_calm(),
            Event::Due(due) => self.on_due(due),
        }
    }

    /// Which node has this id.
    pub fn index_of(&self, peer: PeerId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == peer)
    }

    /// A node's name in the trace.
    pub fn name(&self, node: usize) -> String {
        format!("n{node}")
    }

    /// How many peers a node believes the swarm to have.
    pub fn believed_size(&self, node: usize) -> u64 {
        let connected = (0..self.nodes.len()).filter(|&peer| self.sees(node, peer)).count() as u64 + 1;
        self.plan.believed_size.map_or(connected, |size| size.max(connected))
    }

    /// Hands an input to a node's owner machine, or keeps it while the process sleeps.
    pub fn tell_owner(&mut self, node: usize, input: owner::Input) {
        if !self.nodes[node].down() {
            self.nodes[node].owner.inputs.push(input);
            self.plan_drain(node, Role::Owner);
        }
    }

    /// Hands an input to a node's worker machine, or keeps it while the process sleeps.
    pub fn tell_worker(&mut self, node: usize, input: worker::Input) {
        if !self.nodes[node].down() {
            self.nodes[node].worker.inputs.push(input);
            self.plan_drain(node, Role::Worker);
        }
    }

    /// A shell gets to its inputs in a moment: what arrives until then is handled in one batch.
    pub fn plan_drain(&mut self, node: usize, role: Role) {
        let planned = match role {
            Role::Owner => &mut self.nodes[node].owner.draining,
            Role::Worker => &mut self.nodes[node].worker.draining,
        };
        if !std::mem::replace(planned, true) {
            let life = self.nodes[node].lives;
            let delay = self.rng.below(self.plan.shell_delay + 1);
            self.queue.push(self.now + delay, Event::Drain { node, role, life });
        }
    }
}

/// A peer id that looks drawn, and is the same for the same seed.
pub(crate) fn peer_id(seed: u64, index: usize) -> PeerId {
    let mut rng = Rng::new(mix(seed) ^ index as u64);
    let mut id = [0; 32];
    for chunk in id.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next().to_le_bytes());
    }
    PeerId(id)
}
