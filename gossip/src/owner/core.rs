//! What the owner's jobs share: peers, clocks, timers, what is gathered until a batch of inputs ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::job::{JobId, PeerId, Time};

use super::ledger::Part;
use super::retention::Past;
use super::{Counters, Effect, Identity, Settings};
use crate::bug::Bug;
use crate::lottery;
use crate::message::{Committed, Direct, JobSpans, Stamp, pages, weight_of};
use crate::range::spans;
use crate::rng::Rng;
use crate::timers::Timers;
use crate::topic::Class;

/// A job version.
pub(super) type JobKey = (JobId, u32);

/// Peers that are remembered without being connected or at work.
const MAX_PEERS: usize = 8192;

/// Recent bidders of a class.
const MAX_BIDDERS: usize = 512;

/// How long a bidder counts as recent.
const BIDDER_TTL: Duration = Duration::from_secs(300);

/// The wait for an answer to an award doubles this often at most.
const MAX_SILENCES: u32 = 4;

/// The machine asks for a tick at least this often while leases run, so that a longer pause can only be sleep.
pub(super) const STEP: Duration = Duration::from_secs(5);

/// A pause of this much more than [`STEP`] is taken for sleep.
const SLACK: Duration = Duration::from_secs(5);

/// What the machine waits for on the boot clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The window of a round, or the next announcement of a waiting job.
    Round(JobKey),
    /// A job without a worker has a reason to be told.
    Queued(JobKey),
    /// The job's queue timeout.
    QueueLimit(JobKey),
    /// The job's total timeout.
    Total(JobKey),
    /// Stops that were not acknowledged are sent again.
    Stops(JobKey),
    /// Announcements that had to wait for their turn.
    Announce,
    /// Ended jobs are past their retention.
    Retention,
    /// What is expected of this node's own worker, which needs no peers.
    Own(Patience),
}

/// What the machine waits for while it is awake and has a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Patience {
    /// The answer to an award.
    Reply(JobKey, u64),
    /// A worker's lease, and then its time as unknown.
    Lease(PeerId),
    /// The answer to a question about what a worker has.
    Reconcile(PeerId),
}

/// Why nothing is expected of a worker for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// Pings are not answered.
    Silent,
    /// Its connection broke and dialling was refused.
    Unreachable,
}

/// A peer as this owner knows it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) first_seen: Time,
    /// Its newest message that an award can answer.
    pub(super) stamp: Stamp,
    /// How many executions of which jobs are with it.
    pub(super) live: BTreeMap<JobKey, u32>,
    pub(super) suspect: Option<Suspicion>,
    /// Its lease was missed.
    pub(super) unknown: bool,
    /// Local standing: as if it started this much later.
    pub(super) penalty_ms: u64,
    pub(super) watched: bool,
    /// Questions that it has not answered.
    pub(super) asked: BTreeSet<u64>,
    /// Awards in a row that it did not answer in time.
    pub(super) silences: u32,
}

/// Shared by all jobs.
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) rng: Rng,
    pub(super) epoch: u32,
    pub(super) counters: Counters,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    pub(super) connected: BTreeSet<PeerId>,
    pub(super) subscribers: BTreeMap<Class, BTreeSet<PeerId>>,
    pub(super) swarm: u64,
    bidders: BTreeMap<Class, BTreeMap<PeerId, Time>>,
    /// Which share of peers, in 2^-32, bid on jobs of a class.
    able: BTreeMap<Class, u64>,
    pub(super) timers: Timers<Timer>,
    pub(super) patience: Timers<Patience>,
    clock: Time,
    /// Nanoseconds awake with a peer.
    awake: u64,
    pub(super) announce: BTreeMap<Class, BTreeSet<JobKey>>,
    pub(super) tokens: u32,
    pub(super) filled: Time,
    /// The newest issue time of an announcement.
    pub(super) issued: u64,
    /// Jobs to be looked at when the batch of inputs ends.
    pub(super) dirty: BTreeSet<JobKey>,
    acks: BTreeMap<PeerId, BTreeMap<JobKey, BTreeSet<Part>>>,
    pub(super) questions: u64,
    /// What ended and settled.
    pub(super) past: Past,
}

impl Core {
    pub(super) fn new(settings: Settings, identity: Identity, now: Time) -> Self {
        Core {
            rng: Rng::new("owner", identity.seed),
            settings,
            identity,
            epoch: 0,
            counters: Counters::default(),
            peers: BTreeMap::new(),
            connected: BTreeSet::new(),
            subscribers: BTreeMap::new(),
            swarm: 0,
            bidders: BTreeMap::new(),
            able: BTreeMap::new(),
            timers: Timers::default(),
            patience: Timers::default(),
            clock: now,
            awake: 0,
            announce: BTreeMap::new(),
            tokens: super::announce::BURST,
            filled: now,
            issued: 0,
            dirty: BTreeSet::new(),
            acks: BTreeMap::new(),
            questions: 0,
            past: Past::default(),
        }
    }

    pub(super) fn me(&self) -> PeerId {
        self.identity.me
    }

    pub(super) fn is_connected(&self, peer: PeerId) -> bool {
        peer == self.me() || self.connected.contains(&peer)
    }

    /// How many peers there are likely to be; never fewer than are connected.
    pub(super) fn size(&self) -> u64 {
        self.swarm.max(u64::try_from(self.connected.len()).unwrap_or(u64::MAX))
    }

    /// Whether nothing was handled for long after the machine wanted to be ticked: the node slept, or was stopped.
    pub(super) fn overslept(&self, now: Time) -> bool {
        self.next_wakeup().is_some_and(|due| now.since(due) > SLACK)
    }

    /// Moves the clock on. Whether the node seems to have slept.
    pub(super) fn advance_clock(&mut self, now: Time) -> bool {
        let passed = now.since(self.clock);
        self.clock = self.clock.max(now);
        let slept = passed > STEP + SLACK && self.patience.next().is_some() && !self.connected.is_empty();
        if !self.connected.is_empty() {
            let counted = if slept { STEP } else { passed };
            self.awake = self.awake.saturating_add(u64::try_from(counted.as_nanos()).unwrap_or(u64::MAX));
        }
        slept
    }

    /// Sets a timer that runs only while the node is awake and has a peer.
    pub(super) fn be_patient(&mut self, key: Patience, span: Duration) {
        self.patience.set(key, Time { boot: self.awake, wall: 0 } + span);
    }

    /// The same for a timer about one worker; for this node's own it runs always.
    pub(super) fn be_patient_with(&mut self, worker: PeerId, now: Time, key: Patience, span: Duration) {
        if worker == self.me() {
            self.timers.set(Timer::Own(key), now + span);
        } else {
            self.be_patient(key, span);
        }
    }

    /// What was waited for has come.
    pub(super) fn calm(&mut self, key: Patience) {
        self.patience.clear(key);
        self.timers.clear(Timer::Own(key));
    }

    pub(super) fn pop_patience(&mut self) -> Option<Patience> {
        self.patience.pop(Time { boot: self.awake, wall: 0 })
    }

    pub(super) fn next_wakeup(&self) -> Option<Time> {
        let impatient = self.patience.next().filter(|_| !self.connected.is_empty()).map(|at| {
            let left = at.since(Time { boot: self.awake, wall: 0 }).min(STEP);
            self.clock + left.max(Duration::from_nanos(1))
        });
        [impatient, self.timers.next()].into_iter().flatten().min()
    }

    pub(super) fn peer(&mut self, peer: PeerId, now: Time) -> &mut Peer {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            let connected = &self.connected;
            self.peers.retain(|peer, known| !known.live.is_empty() || connected.contains(peer));
        }
        self.peers.entry(peer).or_insert_with(|| Peer {
            first_seen: now,
            stamp: Stamp::default(),
            live: BTreeMap::new(),
            suspect: None,
            unknown: false,
            penalty_ms: 0,
            watched: false,
            asked: BTreeSet::new(),
            silences: 0,
        })
    }

    /// A number for a question to a worker.
    pub(super) fn question(&mut self, worker: PeerId, now: Time) -> u64 {
        self.questions += 1;
        let id = self.questions;
        self.peer(worker, now).asked.insert(id);
        id
    }

    /// How long this worker may take to answer an award: longer each time that it was too short, so that slow links
    /// are merely slow.
    pub(super) fn award_reply(&mut self, worker: PeerId, now: Time) -> Duration {
        let silences = self.peer(worker, now).silences.min(MAX_SILENCES);
        self.settings.award_reply * (1 << silences)
    }

    pub(super) fn is_suspect(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.suspect.is_some() || peer.unknown)
    }

    /// Executions of a job went to a worker, or came back from it.
    pub(super) fn count_live(
        &mut self,
        worker: PeerId,
        job: JobKey,
        now: Time,
        live: usize,
        out: &mut Vec<Effect>,
    ) {
        let me = self.me();
        let lease = self.settings.lease;
        let peer = self.peer(worker, now);
        let had = !peer.live.is_empty();
        if live == 0 {
            peer.live.remove(&job);
        } else {
            peer.live.insert(job, u32::try_from(live).unwrap_or(u32::MAX));
        }
        let has = !peer.live.is_empty();
        if worker == me || had == has {
            return;
        }
        peer.watched = has;
        if has {
            self.be_patient(Patience::Lease(worker), lease);
        } else {
            peer.unknown = false;
            self.calm(Patience::Lease(worker));
        }
        out.push(Effect::Watch { peer: worker, live: has });
    }

    /// Peers that recently bid on jobs of a class, at most so many: connected ones first, else at random.
    pub(super) fn recent_bidders(&mut self, class: Class, now: Time, most: usize) -> Vec<PeerId> {
        let Some(bidders) = self.bidders.get_mut(&class) else { return Vec::new() };
        bidders.retain(|_, at| now.since(*at) < BIDDER_TTL);
        let all: Vec<PeerId> = bidders.keys().copied().filter(|peer| *peer != self.identity.me).collect();
        let (mut near, mut far): (Vec<_>, Vec<_>) = all
            .into_iter()
            .filter(|peer| !self.is_suspect(*peer))
            .partition(|peer| self.connected.contains(peer));
        let mut chosen = self.rng.some_of(&mut near, most);
        chosen.extend(self.rng.some_of(&mut far, most - chosen.len()));
        chosen
    }

    pub(super) fn note_bidder(&mut self, class: Class, peer: PeerId, now: Time) {
        let bidders = self.bidders.entry(class).or_default();
        if bidders.len() >= MAX_BIDDERS && !bidders.contains_key(&peer) {
            let oldest = bidders.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer);
            oldest.map(|peer| bidders.remove(&peer));
        }
        bidders.insert(peer, now);
    }

    /// The running share of peers that bid on jobs of a class.
    pub(super) fn able(&self, class: Class) -> u64 {
        self.able.get(&class).copied().unwrap_or(lottery::ALL)
    }

    /// Learns from a round which share of peers is able: one part in four is the newest.
    pub(super) fn note_round(&mut self, class: Class, theta: u64, bids: u64) {
        let asked = u128::from(self.size()) * u128::from(theta) / u128::from(lottery::ALL);
        if asked < 8 {
            return;
        }
        let share = u128::from(bids) * u128::from(lottery::ALL) / asked;
        let share = u64::try_from(share).unwrap_or(lottery::ALL).min(lottery::ALL);
        let before = self.able(class);
        self.able.insert(class, (before / 4 * 3 + share / 4).max(1));
    }

    /// A worker need not tell of this execution any more.
    pub(super) fn ack(&mut self, worker: PeerId, job: JobKey, part: Part) {
        self.acks.entry(worker).or_default().entry(job).or_default().insert(part);
    }

    /// Sends the acknowledgements that were gathered, one message a worker.
    pub(super) fn send_acks(&mut self, out: &mut Vec<Effect>) {
        for (to, jobs) in std::mem::take(&mut self.acks) {
            let jobs: Vec<JobSpans> = jobs
                .into_iter()
                .flat_map(|((job, version), parts)| {
                    let all = spans(parts);
                    let pages: Vec<_> = all.chunks(crate::message::MAX_SPANS).map(<[_]>::to_vec).collect();
                    pages.into_iter().map(move |spans| JobSpans { job, version, spans })
                })
                .collect();
            for jobs in pages(jobs, |one| weight_of(&one.spans)) {
                out.push(Effect::Send { to, message: Direct::Committed(Committed { jobs }) });
            }
        }
    }

    #[cfg(any(test, feature = "planted-bugs"))]
    pub(super) fn has_bug(&self, is: Bug) -> bool {
        self.settings.bug == Some(is)
    }

    #[cfg(not(any(test, feature = "planted-bugs")))]
    pub(super) fn has_bug(&self, _is: Bug) -> bool {
        false
    }
}
