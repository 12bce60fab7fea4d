//! What one seed means: the swarm, its weather, its jobs and its faults.
//!
//! Each seed switches on a few kinds of trouble only ("swarm testing"): a history with everything in it at once
//! mostly tests the first thing that breaks.

use super::clock::{MILLI, SECOND};
use super::net::Weather;
use super::rng::Rng;

/// The lease of batch jobs, which the spans of faults are measured by.
pub(crate) const LEASE: u64 = 60 * SECOND;
/// Fault lengths and long delays: shorter ones than these find nothing.
pub(crate) const SPANS: [u64; 3] = [LEASE / 4, LEASE, 4 * LEASE];
/// Workers' slots are drawn up to this.
const MOST_CPU: u64 = 4;

/// One seed's swarm, jobs and faults.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub nodes: Vec<NodePlan>,
    pub weather: Weather,
    pub jobs: Vec<JobPlan>,
    pub faults: Vec<Fault>,
    /// Chance that a batch of a shell is cut short by a crash, in ten-thousandths.
    pub crash_points: u64,
    /// Chance that a transaction fails, in ten-thousandths.
    pub disk_errors: u64,
    /// When faults end, everything is switched on again and only liveness is left to show.
    pub heal_at: u64,
    /// How long a shell takes to get to its inputs, at most: slow ones see larger batches.
    pub shell_delay: u64,
    /// Subscribers hear of announcements twice now and then, in thousandths.
    pub gossip_echo: u64,
    /// The swarm's size as the owners believe it, when not what they are connected to.
    pub believed_size: Option<u64>,
    /// Processes that die say nothing to their peers, as over UDP: those find out by themselves, or by the next process.
    pub quiet: bool,
    /// A peer that keeps to no rule.
    pub rogue: Option<RoguePlan>,
}

/// A peer with a valid identity that says what it likes, and beside that runs both machines, whose messages it garbles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoguePlan {
    pub node: usize,
    /// Between two messages that it makes up, at most.
    pub pause: u64,
    /// Messages of its machines that are lost, replaced, or sent again later, in thousandths.
    pub garbled: u64,
    /// It goes on when the faults have ended.
    pub for_ever: bool,
}

/// One node.
#[derive(Debug, Clone)]
pub(crate) struct NodePlan {
    pub rate_ppm: i64,
    pub boot: u64,
    pub wall: u64,
    /// CPU units (thousandths of a core) that executions may use; 0: takes no work of others.
    pub cpu: u64,
    /// Its engine is Docker-like: what runs goes on when the node's process dies.
    pub containers: bool,
}

/// When a job is sent and what it is.
#[derive(Debug, Clone)]
pub(crate) struct JobPlan {
    pub owner: usize,
    pub at: u64,
    pub kind: Kind,
    pub count: u32,
    /// CPU units of one execution.
    pub cpu: u64,
    pub retry_never: bool,
    /// The wall time one execution may take, when limited.
    pub run_timeout: Option<u64>,
    /// The time the whole job may take, when limited.
    pub total_timeout: Option<u64>,
    /// It waits for workers for as long as it takes, rather than for the node's default.
    pub patient: bool,
    /// It needs more than any worker has.
    pub impossible: bool,
    /// How long an execution usually takes.
    pub run: (u64, u64),
    pub behaviour: Behaviour,
    /// Size of a result in bytes; up to 64 KiB travel in the receipt.
    pub result_size: u64,
    pub keep_on_worker: bool,
    /// When a user stops it.
    pub stop_at: Option<u64>,
    /// When a user sends the next version of it.
    pub update_at: Option<u64>,
    /// The client's token is sent again at this moment, as a client does that saw no answer.
    pub resend_at: Option<u64>,
}

/// The job type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Batch,
    /// Most executions go on until somebody ends them.
    Service,
}

/// What executions of a job come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Exit 0.
    Fine,
    /// The same non-zero exit code everywhere.
    UserError,
    /// Exits 0 or not, by partition and worker.
    Flaky,
    /// Node faults (a pull that failed) now and then, else exit 0.
    NodeFaults,
    /// Some partitions never end by themselves.
    Hangs,
    /// The module is none: a fault of the job itself.
    Broken,
}

/// One kind of trouble, from `at` on.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub at: u64,
    pub what: Trouble,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The process is killed; it comes back after this long (None: never). `reboot`: the machine went down with it.
    Kill { node: usize, back_after: Option<u64>, reboot: bool },
    /// The process is told to stop: it takes nothing more and ends what it runs. A kill follows.
    Stop { node: usize },
    /// The process handles nothing for so long (SIGSTOP); clocks and containers go on.
    Pause { node: usize, span: u64 },
    /// The machine sleeps: nothing runs, the boot clock goes on.
    Suspend { node: usize, span: u64 },
    /// These nodes are cut off from the others.
    Split { side: Vec<usize>, span: u64, one_way: bool },
    /// A connection breaks and is dialled again.
    Break { a: usize, b: usize },
    /// Only one side of a connection finds it broken, and is back before the other notices.
    LoseSide { node: usize, peer: usize },
    /// A host says that a peer is connected which was so before.
    Again { node: usize, peer: usize },
    /// A node's whole network is gone; it notices after so long, if it does.
    Uplink { node: usize, span: u64, noticed: Option<u64> },
    /// A wall clock is set.
    StepWall { node: usize, by: i64 },
}

impl JobPlan {
    /// What a rogue peer has others run.
    pub fn of_a_rogue() -> JobPlan {
        JobPlan {
            owner: 0,
            at: 0,
            kind: Kind::Batch,
            count: 1,
            cpu: 0,
            retry_never: false,
            run_timeout: None,
            total_timeout: None,
            patient: true,
            impossible: false,
            run: (SECOND, 10 * SECOND),
            behaviour: Behaviour::Fine,
            result_size: 100,
            keep_on_worker: false,
            stop_at: None,
            update_at: None,
            resend_at: None,
        }
    }

    /// Its executions are ended from outside.
    pub fn lasts(&self) -> bool {
        self.kind == Kind::Service
    }
}

impl Plan {
    /// How long after the faults everything must have ended: every attempt of every partition, one after the other, and
    /// the leases that must run out first.
    pub fn patience(&self) -> u64 {
        let work = |job: &JobPlan| {
            let run = job.run_timeout.map_or(job.run.1, |limit| limit.min(job.run.1.max(limit)));
            u64::from(job.count) * 4 * (run + 30 * SECOND)
        };
        60 * LEASE + self.jobs.iter().map(work).sum::<u64>()
    }

    /// Whether anything goes wrong that can keep an owner and its workers apart.
    pub fn is_troubled(&self) -> bool {
        let weather = &self.weather;
        let lossy = weather.loss + weather.stragglers + weather.gossip_loss > 0;
        !self.faults.is_empty() || self.crash_points + self.disk_errors > 0 || lossy || self.rogue.is_some()
    }

    /// What `seed` means.
    pub fn draw(seed: u64) -> Plan {
        let mut rng = Rng::new(seed).fork(1);
        let heal_at = rng.pick(&[4, 8, 15]) * LEASE;
        let count = rng.pick(&[2, 3, 3, 4, 4, 5, 7]);
        let nodes: Vec<_> = (0..count).map(|index| node(&mut rng, index)).collect();
        let weather = weather(&mut rng);
        let owners = rng.within(1, 2.min(count as u64 - 1));
        let jobs =
            (0..rng.pick(&[1, 1, 2, 2, 3, 4])).map(|_| job(&mut rng, owners, heal_at, &nodes)).collect();
        let faults = faults(&mut rng, &nodes, heal_at);
        let mut plan = Plan {
            crash_points: rng.pick(&[0, 0, 20, 60, 200]),
            disk_errors: rng.pick(&[0, 0, 0, 50, 200]),
            shell_delay: rng.pick(&[0, MILLI, 5 * MILLI, 50 * MILLI]),
            gossip_echo: rng.pick(&[0, 0, 100]),
            believed_size: rng.chance(200).then(|| rng.pick(&[1, 40, 200])),
            nodes,
            weather,
            jobs,
            faults,
            heal_at,
            quiet: false,
            rogue: None,
        };
        plan.add_rarer(&mut Rng::new(seed).fork(5));
        plan
    }

    /// Trouble that was thought of later: drawn by itself, so that a seed's other trouble stays what it was.
    fn add_rarer(&mut self, rng: &mut Rng) {
        let nodes = self.nodes.len();
        self.quiet = rng.chance(250);
        for job in &mut self.jobs {
            job.patient = rng.chance(700);
            if job.kind == Kind::Batch && rng.chance(30) {
                (job.impossible, job.patient, job.cpu) = (true, false, 1000 * (MOST_CPU + 1));
            }
        }
        if rng.chance(150) {
            for node in &mut self.nodes {
                let off = rng.pick(&[0, 100, 150, 1_000, 100_000]) * SECOND;
                node.wall = if rng.chance(500) { node.wall + off } else { node.wall - off };
            }
        }
        if nodes > 2 && rng.chance(150) {
            let node = rng.within(2, nodes as u64 - 1) as usize;
            let pause = rng.pick(&[SECOND, 5 * SECOND, 20 * SECOND]);
            let garbled = rng.pick(&[0, 50, 300]);
            self.rogue = Some(RoguePlan { node, pause, garbled, for_ever: rng.chance(500) });
        }
        self.faults.extend(connection_faults(rng, nodes, self.heal_at));
        self.faults.sort_by_key(|fault| fault.at);
    }
}

fn connection_faults(rng: &mut Rng, nodes: usize, heal_at: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    let (uplinks, sides, again, steps) = (rng.chance(250), rng.chance(200), rng.chance(200), rng.chance(50));
    let some = |on: bool, most: u64, rng: &mut Rng| if on { rng.within(1, most) } else { 0 };
    let any = |rng: &mut Rng| rng.below(nodes as u64) as usize;
    let when = |rng: &mut Rng| rng.within(200 * MILLI, heal_at * 9 / 10);
    for _ in 0..some(uplinks, 3, rng) {
        let noticed = rng.pick(&[None, Some(0), Some(SECOND), Some(20 * SECOND)]);
        let what = Trouble::Uplink { node: any(rng), span: rng.pick(&SPANS), noticed };
        faults.push(Fault { at: when(rng), what });
    }
    for _ in 0..some(sides, 8, rng) {
        let (node, peer) = (any(rng), any(rng));
        faults.push(Fault { at: when(rng), what: Trouble::LoseSide { node, peer } });
    }
    for _ in 0..some(again, 8, rng) {
        let (node, peer) = (any(rng), any(rng));
        faults.push(Fault { at: when(rng), what: Trouble::Again { node, peer } });
    }
    for _ in 0..some(steps, 2, rng) {
        let by = rng.pick(&[-5_000, -130, 130, 5_000]) * SECOND as i64;
        faults.push(Fault { at: when(rng), what: Trouble::StepWall { node: any(rng), by } });
    }
    faults.retain(|fault| match fault.what {
        Trouble::LoseSide { node, peer } | Trouble::Again { node, peer } => node != peer,
        _ => true,
    });
    faults
}

fn node(rng: &mut Rng, index: usize) -> NodePlan {
    let cpu = match index {
        0 => rng.pick(&[0, 0, 1000, 2000]), // node 0 always owns; often it only owns
        1 => rng.within(2, MOST_CPU) * 1000, // somebody can always run every job
        _ => rng.within(1, MOST_CPU) * 1000,
    };
    NodePlan {
        rate_ppm: rng.pick(&[0, 0, 50_000, -50_000, 20_000, -20_000]),
        boot: rng.within(30, 4_000) * SECOND,
        wall: 1_800_000_000 * SECOND + rng.within(0, 60 * SECOND),
        cpu,
        containers: rng.chance(400),
    }
}

fn weather(rng: &mut Rng) -> Weather {
    let mut weather = Weather::calm();
    weather.delay = rng.pick(&[(MILLI / 2, 4 * MILLI), (5 * MILLI, 60 * MILLI), (MILLI, 900 * MILLI)]);
    if rng.chance(400) {
        weather.loss = rng.pick(&[10, 50, 200]);
    }
    if rng.chance(400) {
        weather.duplicates = rng.pick(&[20, 100, 300]);
        weather.long_delays = SPANS.to_vec();
    }
    if rng.chance(400) {
        weather.stragglers = rng.pick(&[5, 30, 120]);
        weather.long_delays = SPANS.to_vec();
    }
    weather.ordered = rng.chance(500);
    weather.leftovers = rng.pick(&[0, 0, 300]);
    weather.gossip_loss = rng.pick(&[0, 0, 100, 400]);
    weather
}

fn job(rng: &mut Rng, owners: u64, heal_at: u64, nodes: &[NodePlan]) -> JobPlan {
    let most = nodes[1].cpu;
    let kind = if rng.chance(100) { Kind::Service } else { Kind::Batch };
    let retry_never = kind == Kind::Batch && rng.chance(250);
    let latest = if rng.chance(500) { 2 * SECOND } else { heal_at / 2 };
    let at = rng.within(100 * MILLI, latest);
    let run = rng.pick(&[
        (10 * MILLI, 100 * MILLI),
        (SECOND, 10 * SECOND),
        (20 * SECOND, LEASE),
        (LEASE, 4 * LEASE),
    ]);
    let run_timeout = rng.chance(300).then(|| rng.pick(&[5 * SECOND, LEASE, 3 * LEASE, 10 * LEASE]));
    let behaviour = match rng.below(10) {
        0 => Behaviour::UserError,
        1 => Behaviour::Flaky,
        2 => Behaviour::NodeFaults,
        3 if run_timeout.is_some() => Behaviour::Hangs,
        4 if rng.chance(300) => Behaviour::Broken,
        _ => Behaviour::Fine,
    };
    JobPlan {
        owner: rng.below(owners) as usize,
        at,
        kind,
        count: rng.pick(&[1, 1, 2, 3, 5, 8, 20]),
        cpu: rng.pick(&[100, 500, 1000, most]).min(most),
        retry_never,
        run_timeout,
        total_timeout: rng.chance(150).then(|| rng.pick(&[LEASE, 5 * LEASE, 20 * LEASE])),
        run,
        behaviour,
        result_size: rng.pick(&[0, 100, 60_000, 3_000_000]),
        keep_on_worker: rng.chance(100),
        patient: true,
        impossible: false,
        stop_at: rng.chance(200).then(|| at + rng.within(10 * MILLI, heal_at)),
        update_at: rng.chance(80).then(|| at + rng.within(10 * MILLI, heal_at)),
        resend_at: rng.chance(150).then(|| at + rng.within(10 * MILLI, heal_at / 4)),
    }
}

fn faults(rng: &mut Rng, nodes: &[NodePlan], heal_at: u64) -> Vec<Fault> {
    let (kills, stops, splits, breaks) = (rng.chance(500), rng.chance(350), rng.chance(450), rng.chance(350));
    let mut faults = Vec::new();
    let some = |on: bool, rng: &mut Rng| if on { rng.within(1, 4) } else { 0 };
    let any = |rng: &mut Rng| rng.below(nodes.len() as u64) as usize;
    let when = |rng: &mut Rng| rng.within(200 * MILLI, heal_at * 9 / 10);
    for _ in 0..some(kills, rng) {
        let back_after = rng.pick(&[50 * MILLI, SECOND, SPANS[0], SPANS[1], SPANS[2]]);
        let what = Trouble::Kill { node: any(rng), back_after: Some(back_after), reboot: rng.chance(300) };
        faults.push(Fault { at: when(rng), what });
    }
    if rng.chance(250) {
        let (node, at) = (any(rng), when(rng));
        faults.push(Fault { at, what: Trouble::Stop { node } });
        let back_after = Some(rng.pick(&[SECOND, SPANS[0], SPANS[1]]));
        let what = Trouble::Kill { node, back_after, reboot: false };
        faults.push(Fault { at: at + 500 * MILLI, what });
    }
    // One worker may be lost for good, never the owners nor the one that can run everything.
    if nodes.len() > 3 && rng.chance(150) {
        let node = rng.within(2, nodes.len() as u64 - 1) as usize;
        faults.push(Fault { at: when(rng), what: Trouble::Kill { node, back_after: None, reboot: true } });
    }
    for _ in 0..some(stops, rng) {
        let (node, span) = (any(rng), rng.pick(&SPANS));
        let what =
            if rng.chance(500) { Trouble::Pause { node, span } } else { Trouble::Suspend { node, span } };
        faults.push(Fault { at: when(rng), what });
    }
    for _ in 0..some(splits, rng) {
        let side: Vec<usize> = (0..nodes.len()).filter(|_| rng.chance(500)).collect();
        let what = Trouble::Split { side, span: rng.pick(&SPANS), one_way: rng.chance(250) };
        faults.push(Fault { at: when(rng), what });
    }
    for _ in 0..some(breaks, rng) * 3 {
        let (a, b) = (any(rng), any(rng));
        faults.push(Fault { at: when(rng), what: Trouble::Break { a, b } });
    }
    if rng.chance(100) {
        let by = (rng.within(0, 80 * SECOND) as i64) - 40 * SECOND as i64;
        faults.push(Fault { at: when(rng), what: Trouble::StepWall { node: any(rng), by } });
    }
    faults.retain(|fault| !matches!(fault.what, Trouble::Break { a, b } if a == b));
    faults.sort_by_key(|fault| fault.at);
    faults
}
