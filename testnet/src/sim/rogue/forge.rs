//! Messages that no honest machine would send.

use std::collections::BTreeMap;
use std::time::Duration;

use gossip::crypto::Signed;
use gossip::lottery;
use gossip::message::{
    Announcement, Announcements, Ask, Award, AwardOrder, Bid, Block, Bytes, Closed, Committed, Decline,
    DeclineCode, Direct, Facts, FaultClass, JobAsked, JobLive, JobSpans, Live, Outcome, Phase, Progress,
    Pull, Recall, Recalled, Receipt, ReceiptGroup, Receipts, Reconcile, Remembered, Renew, RenewAck, Reply,
    ResultInfo, SealedGroup, Span, Stamp, Stop, StopOrder, Stopped, Usage,
};
use gossip::owner::{Keep, NewJob};
use gossip::topic::Class;
use job::{JobId, PeerId, Resources, Time};

use super::bare;
use crate::sim::crypto::Cheap;
use crate::sim::engine::{block_cid, spec_cid};
use crate::sim::rng::Rng;
use crate::sim::shell::SWARM;

/// Why a peer might not run a job.
const CODES: [DeclineCode; 7] = [
    DeclineCode::Busy,
    DeclineCode::Policy,
    DeclineCode::OldFence,
    DeclineCode::Stale,
    DeclineCode::NoSpec,
    DeclineCode::Leaving,
    DeclineCode::Stopped,
];

/// What a message is about.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub new: NewJob,
    pub owner: usize,
}

impl Target {
    /// Somebody's job.
    pub fn of(new: NewJob, owner: usize) -> Self {
        Target { new, owner }
    }

    /// A job of the rogue itself.
    pub fn own(me: PeerId, node: usize, number: u64) -> Self {
        let nonce = format!("rogue {number}").into_bytes();
        let spec = format!("rogue spec {number}").into_bytes();
        let resources = Resources { cpu_milli: 100 + 450 * number, memory: 1 << 20, disk: 0, gpu: 0 };
        let new = NewJob {
            id: JobId::derive(SWARM, me, &nonce),
            version: 1,
            nonce: nonce.into(),
            name: "rogue".to_owned(),
            namespace: "default".to_owned(),
            spec_cid: spec_cid(&spec),
            spec: spec.into(),
            facts: Facts { never: number == 0, ..Facts::plain("wasm", resources) },
            count: 4,
            total_timeout: None,
            queue_timeout: Some(Duration::from_secs(60)),
            max_attempts: 3,
            keep: Keep::Owner,
        };
        Target { new, owner: node }
    }
}

/// Makes messages up.
pub(super) struct Forger {
    pub me: PeerId,
    pub crypto: Cheap,
    pub rng: Rng,
    pub target: Target,
    /// The owner's epoch.
    pub epoch: u32,
    /// Partitions and attempts that were awarded to the rogue.
    pub mine: Vec<(u32, u32)>,
    /// Those that others have and that have not ended.
    pub others: Vec<(u32, u32)>,
    /// Seeds of the job that it heard, and numbers of awards that it was given.
    pub seeds: Vec<u64>,
    pub awards: Vec<u64>,
    /// Who hears its orders, and the newest stamp of that worker.
    pub to: PeerId,
    pub theirs: Option<Stamp>,
    pub newest: Option<u32>,
    pub now: Time,
    /// It does not pretend to work, which nobody could tell from work.
    pub mild: bool,
}

impl Forger {
    /// What a worker would tell an owner.
    pub fn answer(&mut self) -> Direct {
        match self.rng.below(9) {
            0 => Direct::Bid(self.bid()),
            1 => Direct::Decline(self.decline()),
            2 => Direct::Reply(self.reply()),
            3 => Direct::Recalled(Recalled {
                job: self.target.new.id,
                version: self.target.new.version,
                spans: self.spans(),
                stamp: self.stamp(),
            }),
            4 => Direct::Renew(Renew { stamp: self.stamp(), jobs: vec![self.live()] }),
            5 => Direct::Stopped(Stopped {
                job: self.target.new.id,
                version: self.target.new.version,
                spans: self.spans(),
            }),
            6 => Direct::Live(Live {
                answers: self.number() % 50,
                stamp: self.stamp(),
                jobs: vec![self.live()],
                newest: self.rng.chance(500).then(|| self.order_of().1),
            }),
            _ => Direct::Receipts(self.receipts()),
        }
    }

    /// What an owner would tell a worker, or a worker another.
    pub fn order(&mut self) -> Direct {
        let (job, version) = (self.target.new.id, self.target.new.version);
        match self.rng.below(12) {
            0 => Direct::Ask(Box::new(self.ask())),
            1 => Direct::Closed(Closed { job, version }),
            2..=4 => Direct::Award(Box::new(self.award())),
            5 => Direct::Recall(Recall { job, version, spans: self.spans() }),
            6 => Direct::RenewAck(RenewAck { stamp: self.others_stamp() }),
            7 => Direct::Committed(Committed { jobs: vec![JobSpans { job, version, spans: self.spans() }] }),
            8 => Direct::Stop(self.stop()),
            9 => {
                let nonce = self.target.new.nonce.clone();
                let jobs = vec![JobAsked { job, nonce, version, spans: self.spans() }];
                Direct::Reconcile(Reconcile { id: self.number(), epoch: self.any_epoch(), jobs })
            }
            10 => Direct::Pull(Pull { most: self.number() as u32 }),
            _ => {
                let ttl = self.number();
                let bytes = Bytes::from(self.announcements());
                Direct::Remembered(Remembered { messages: vec![(Class::Wasm, bytes, ttl)] })
            }
        }
    }

    /// A message of the same kind about the same job that says something else.
    pub fn instead_of(&mut self, message: &Direct) -> Direct {
        match message {
            Direct::Bid(_) => Direct::Bid(self.bid()),
            Direct::Reply(_) => Direct::Reply(self.reply()),
            Direct::Receipts(_) => Direct::Receipts(self.receipts()),
            Direct::Renew(_) => Direct::Renew(Renew { stamp: self.stamp(), jobs: vec![self.live()] }),
            Direct::Live(live) => {
                Direct::Live(Live { jobs: vec![self.live()], stamp: self.stamp(), ..live.clone() })
            }
            _ => self.answer(),
        }
    }

    /// Gossip: of its own jobs, or of others' under its own signature or name.
    pub fn announcements(&mut self) -> Vec<u8> {
        let jobs = (0..self.rng.within(1, 3)).map(|_| self.announcement()).collect();
        let message = Announcements {
            owner: self.me,
            addresses: Vec::new(),
            issued: self.rng.pick(&[self.now.wall, self.now.wall, 0, u64::MAX]),
            ttl_ms: self.number(),
            jobs,
        };
        message.seal(&self.crypto).unwrap_or_else(|| vec![0xff; 9])
    }

    fn number(&mut self) -> u64 {
        let small = self.rng.below(100);
        self.rng.pick(&[0, 1, 2, small, small, 5_000, 60_000, u64::from(u32::MAX), u64::MAX / 2, u64::MAX])
    }

    fn any_epoch(&mut self) -> u32 {
        let (real, random) = (self.epoch, self.number() as u32);
        self.rng.pick(&[real, real, real, real.saturating_add(1), self.newest.unwrap_or(0), random, u32::MAX])
    }

    fn stamp(&mut self) -> Stamp {
        let start = self.rng.pick(&[7, 7, 8, 9]);
        let now_ms = self.now.boot / 1_000_000;
        Stamp { start, at_ms: self.rng.pick(&[now_ms, now_ms, 0, u64::MAX]) }
    }

    fn others_stamp(&mut self) -> Stamp {
        let made_up = Stamp { start: self.number(), at_ms: self.number() };
        self.theirs.filter(|_| self.rng.chance(800)).unwrap_or(made_up)
    }

    /// Executions: its own, or any.
    fn parts(&mut self) -> BTreeMap<u32, u32> {
        let mut parts = BTreeMap::new();
        for _ in 0..self.rng.within(1, 4) {
            let any =
                (self.rng.below(u64::from(self.target.new.count) + 2) as u32, self.rng.below(4) as u32 + 1);
            let (partition, attempt) = match self.rng.below(10) {
                0..6 if !self.mine.is_empty() => self.rng.pick(&self.mine),
                6..9 if !self.others.is_empty() => self.rng.pick(&self.others),
                _ => any,
            };
            parts.insert(partition, attempt);
        }
        parts
    }

    fn spans(&mut self) -> Vec<Span> {
        if self.rng.chance(50) {
            return vec![Span { first: 0, count: 100_000, attempt: self.number() as u32 }];
        }
        self.parts().into_iter().map(|(partition, attempt)| Span::one(partition, attempt)).collect()
    }

    fn seed(&mut self) -> u64 {
        let made_up = self.number();
        if self.seeds.is_empty() || self.rng.chance(150) { made_up } else { self.rng.pick(&self.seeds) }
    }

    fn bid(&mut self) -> Bid {
        Bid {
            job: self.target.new.id,
            version: self.target.new.version,
            seed: self.seed(),
            stamp: self.stamp(),
            start_ms: self.rng.pick(&[0, 0, 0, 1, u64::MAX]),
            slots: self.number() as u32,
            local_bytes: self.number(),
            cached: self.rng.chance(500),
            hold_ms: self.number(),
            skew_s: self.rng.pick(&[0, 0, i64::MIN, i64::MAX]),
        }
    }

    fn decline(&mut self) -> Decline {
        let (job, version, seed) = (self.target.new.id, self.target.new.version, self.seed());
        let code = self.rng.pick(&CODES);
        let words = self.rng.pick(&["", "no", "\u{202e}\0\n"]);
        let mut decline = Decline::new(job, version, seed, code, words);
        decline.skew_s = self.rng.pick(&[0, i64::MIN]);
        decline
    }

    fn reply(&mut self) -> Reply {
        let award = self.number();
        let award = if self.awards.is_empty() { award } else { self.rng.pick(&self.awards) };
        // Work that nobody does and everybody waits for cannot be told from work.
        let accepts = !self.mild && self.rng.chance(500);
        Reply {
            job: self.target.new.id,
            version: self.target.new.version,
            award,
            accepted: if accepts { self.spans() } else { Vec::new() },
            declined: if self.rng.chance(500) { self.spans() } else { Vec::new() },
            code: Some(self.rng.pick(&CODES)),
            message: String::new(),
            eta_ms: self.number(),
            epoch: self.any_epoch(),
            stamp: self.stamp(),
        }
    }

    fn live(&mut self) -> JobLive {
        let mut live = JobLive {
            job: self.target.new.id,
            version: self.target.new.version,
            live: if self.mild { Vec::new() } else { self.spans() },
            progress: Vec::new(),
            lost: if self.rng.chance(300) { self.spans() } else { Vec::new() },
            unstarted: if self.rng.chance(200) { self.spans() } else { Vec::new() },
        };
        for (partition, attempt) in self.parts() {
            live.progress.push(Progress {
                partition,
                attempt,
                phase: self.rng.pick(&[Phase::Queued, Phase::Preparing, Phase::Running, Phase::Ended]),
                ran_ms: self.number(),
                message: String::new(),
                stdout: self.number(),
                stderr: self.number(),
            });
        }
        live
    }

    fn receipts(&mut self) -> Receipts {
        let mut blocks = Vec::new();
        let parts = self.parts();
        let receipts: Vec<Receipt> = parts
            .into_iter()
            .map(|(partition, attempt)| self.receipt(partition, attempt, &mut blocks))
            .collect();
        let spec = if self.rng.chance(50) { block_cid(b"another") } else { self.target.new.spec_cid };
        let group = ReceiptGroup {
            job: self.target.new.id,
            version: self.target.new.version,
            spec,
            worker: if self.rng.chance(50) { PeerId([9; 32]) } else { self.me },
            inputs: Vec::new(),
            engine: "rogue".to_owned(),
            receipts,
        };
        let mut groups = SealedGroup::seal(&[group.clone(), group], &self.crypto);
        if self.rng.chance(50)
            && let Some(group) = groups.first_mut()
        {
            group.signature[0] ^= 1;
        }
        Receipts { stamp: self.stamp(), groups, blocks }
    }

    fn receipt(&mut self, partition: u32, attempt: u32, blocks: &mut Vec<Block>) -> Receipt {
        let words = "so it says".to_owned();
        let outcome = match self.rng.below(12) {
            0 => Outcome::Exit(3),
            1 => Outcome::Exit(i32::MIN),
            2 => Outcome::Fault(FaultClass::Node, words),
            3 => Outcome::Fault(FaultClass::User, words),
            4 => Outcome::Fault(FaultClass::Input, words),
            5 => Outcome::Fault(FaultClass::Timeout, words),
            6 => Outcome::Fault(FaultClass::Job, words),
            _ => Outcome::Exit(0),
        };
        let bytes = self.rng.next().to_be_bytes().to_vec();
        let cid = block_cid(&bytes);
        // A wrong result that is there, or one that nobody has.
        if self.rng.chance(300) {
            blocks.push(Block { cid, bytes: Bytes::from(bytes) });
        }
        let result = ResultInfo { cid, size: self.number(), published: String::new() };
        Receipt {
            partition,
            attempt: attempt.max(1),
            epoch: self.any_epoch(),
            outcome,
            result: self.rng.chance(800).then_some(result),
            usage: Usage {
                cpu_ms: self.number(),
                memory: self.number(),
                disk: self.number(),
                unkept: self.number(),
            },
            started_ms: self.number(),
            ran_ms: self.number(),
        }
    }

    fn announcement(&mut self) -> Announcement {
        let new = self.target.new.clone();
        let mut facts = new.facts;
        if self.rng.chance(100) {
            facts.resources.memory = self.number();
        }
        if self.rng.chance(100) {
            facts.priority = i32::MAX;
        }
        Announcement {
            job: new.id,
            nonce: new.nonce,
            version: new.version,
            spec: new.spec_cid,
            facts,
            open: self.number() as u32,
            round: self.number() as u32,
            theta: lottery::ALL,
            decline: self.number(),
            seed: self.rng.next(),
        }
    }

    fn ask(&mut self) -> Ask {
        let issued = self.rng.pick(&[self.now.wall, 0, u64::MAX]);
        Ask { announcement: self.announcement(), addresses: Vec::new(), ttl_ms: self.number(), issued }
    }

    fn order_of(&mut self) -> (AwardOrder, Signed) {
        let new = self.target.new.clone();
        let order = AwardOrder {
            id: self.number() % 8,
            job: new.id,
            nonce: new.nonce,
            version: new.version,
            spec: new.spec_cid,
            count: new.count,
            epoch: self.any_epoch(),
            spans: self.spans(),
            worker: self.to,
            answers: self.others_stamp(),
            lease_ms: self.number(),
            total_ms: self.number(),
            keep: self.rng.chance(200),
        };
        let signed = Signed::seal(&order, &self.crypto);
        (order, signed)
    }

    fn award(&mut self) -> Award {
        let (_, order) = self.order_of();
        let new = self.target.new.clone();
        let facts = self.rng.chance(800).then_some(new.facts);
        let spec = self.rng.chance(700).then_some(new.spec);
        Award { facts, spec, ..bare(order) }
    }

    fn stop(&mut self) -> Stop {
        let new = self.target.new.clone();
        let order = StopOrder {
            job: new.id,
            nonce: new.nonce,
            version: new.version,
            epoch: self.any_epoch(),
            spans: self.spans(),
            worker: self.to,
            reason: "because".to_owned(),
        };
        Stop { order: Signed::seal(&order, &self.crypto) }
    }
}
