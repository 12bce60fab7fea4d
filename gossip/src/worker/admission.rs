//! Whether this worker can and may run a job, now or soon, and the capacity it keeps back for its bids.

use std::collections::BTreeMap;
use std::time::Duration;

use ::job::constraint::{self, Constraint};
use ::job::{PeerId, Resources, Time};

use super::{JobKey, Policy, Submitter, Timer, Worker, millis};
use crate::message::{DeclineCode, Facts};

/// How long capacity is kept back for a bid: awards come within a second or two.
pub(super) const HOLD: Duration = Duration::from_secs(5);

/// Bids may promise the free capacity this often: one in three is usually won.
const OVERCOMMIT: u64 = 3;

/// Most soft holds; more bids are made without one.
const MAX_HOLDS: usize = 256;

/// Of one owner: nobody can keep a worker idle by asking.
const MAX_HOLDS_OF_ONE_OWNER: usize = 16;

/// Capacity kept back for a bid. It binds nobody; it keeps this worker from bidding without end.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    owner: PeerId,
    job: JobKey,
    until: Time,
    resources: Resources,
}

/// What a worker would offer for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// How many partitions at once.
    pub(super) slots: u32,
    /// When the first could start, in milliseconds.
    pub(super) start_ms: u64,
}

/// A refusal: code and words.
pub(super) type No = (DeclineCode, String);

impl Worker {
    /// What the owner of a job is to this node.
    pub(super) fn submitter(&self, owner: PeerId) -> Submitter {
        if owner == self.identity.me {
            Submitter::Own
        } else if self.settings.trusted_peers.contains(&owner) {
            Submitter::Trusted
        } else if self.settings.private {
            Submitter::Member
        } else {
            Submitter::Anyone
        }
    }

    pub(super) fn policy(&self, submitter: Submitter) -> &Policy {
        match submitter {
            Submitter::Own => &self.settings.own,
            Submitter::Trusted => &self.settings.trusted,
            Submitter::Member => &self.settings.member,
            Submitter::Anyone => &self.settings.anyone,
        }
    }

    /// Whether this node could ever run such jobs of this owner.
    pub(super) fn can_run(&self, owner: PeerId, facts: &Facts) -> Result<(), No> {
        if self.leaving {
            return Err((DeclineCode::Leaving, String::new()));
        }
        let settings = &self.settings;
        if !settings.engines.contains(&facts.engine) {
            return Err((DeclineCode::Engine, facts.engine.clone()));
        }
        if let Some(reason) = unmet(&facts.constraints, settings) {
            return Err((DeclineCode::Constraints, reason));
        }
        if let Some(source) = facts.sources.iter().find(|source| !settings.sources.contains(*source)) {
            return Err((DeclineCode::Source, source.clone()));
        }
        if !facts.publisher.is_empty() && !settings.publishers.contains(&facts.publisher) {
            return Err((DeclineCode::Publisher, facts.publisher.clone()));
        }
        if let Some((name, need, have)) = facts.resources.lacking(&settings.capacity) {
            return Err((DeclineCode::Resources, format!("{name} {need} (here: {have})")));
        }
        if settings.slots == 0 {
            return Err((DeclineCode::Policy, "it runs no jobs".to_owned()));
        }
        self.may_run(self.policy(self.submitter(owner)), facts)
    }

    /// Whether the operator allows it.
    fn may_run(&self, policy: &Policy, facts: &Facts) -> Result<(), No> {
        if !policy.job_types.contains(&facts.job_type) {
            return Err((DeclineCode::Policy, format!("{} jobs", facts.job_type)));
        }
        if !policy.engines.contains(&facts.engine) {
            return Err((DeclineCode::Policy, format!("engine {}", facts.engine)));
        }
        if !facts.network.is_empty() && !policy.networks.contains(&facts.network) {
            return Err((DeclineCode::Network, facts.network.clone()));
        }
        if let Some((name, need, most)) = policy.most.and_then(|most| facts.resources.lacking(&most)) {
            return Err((DeclineCode::Policy, format!("{name} {need} (at most {most})")));
        }
        let longest = millis(policy.longest_run.unwrap_or(self.settings.longest_run));
        if facts.run_ms > longest {
            return Err((DeclineCode::Policy, format!("runs of more than {} s", longest / 1000)));
        }
        Ok(())
    }

    /// What it could offer for a job that it can run: now, or soon.
    pub(super) fn offer(&self, now: Time, owner: PeerId, facts: &Facts) -> Result<Offer, No> {
        let busy = || (DeclineCode::Busy, String::new());
        let free = self.free();
        let now_fit =
            fit(&facts.resources, &free).min(self.settings.slots.saturating_sub(self.running).into());
        if self.queue.is_empty() && now_fit > 0 {
            let held = self.held(now, owner, &free);
            let promised = free.checked_mul(OVERCOMMIT).and_then(|promise| promise.checked_sub(&held));
            let slots = promised.map_or(0, |left| fit(&facts.resources, &left)).min(now_fit);
            return match u32::try_from(slots).unwrap_or(u32::MAX) {
                0 => Err(busy()),
                slots => Ok(Offer { slots, start_ms: 0 }),
            };
        }
        let start_ms = self.start_estimate(now).ok_or_else(busy)?;
        let most = millis(self.settings.longest_queue);
        let limit = if facts.queue_ms == 0 { most } else { most.min(facts.queue_ms) };
        if start_ms > limit {
            return Err(busy());
        }
        let whole = fit(&facts.resources, &self.settings.capacity).min(self.settings.slots.into());
        Ok(Offer { slots: u32::try_from((whole / 2).max(1)).unwrap_or(1), start_ms: start_ms.max(1) })
    }

    /// What is not reserved by what runs.
    pub(super) fn free(&self) -> Resources {
        self.settings.capacity.checked_sub(&self.used).unwrap_or(Resources::ZERO)
    }

    /// When the next slot is likely to be free for something new, in milliseconds; `None` when nobody can say.
    pub(super) fn start_estimate(&self, now: Time) -> Option<u64> {
        let (mut waiting, mut remaining) = (0u64, u64::MAX);
        for job in self.jobs.values() {
            let (queued, running) = job.busy();
            if queued + running == 0 {
                continue;
            }
            let span = job.span_ms?;
            waiting = waiting.saturating_add(u64::from(queued).saturating_mul(span));
            if let Some(first) = job.oldest_start() {
                remaining = remaining.min(span.saturating_sub(millis(now.since(first))));
            }
        }
        let parallel = u64::from(self.running.max(1));
        Some((waiting / parallel).saturating_add(if remaining == u64::MAX { 0 } else { remaining }))
    }

    /// Keeps capacity back for a bid.
    pub(super) fn hold(&mut self, now: Time, owner: PeerId, job: JobKey, each: &Resources, slots: u32) {
        self.release_hold(job);
        let own = self.holds.iter().filter(|hold| hold.owner == owner && hold.until > now).count();
        if self.holds.len() < MAX_HOLDS
            && own < MAX_HOLDS_OF_ONE_OWNER
            && let Some(resources) = each.checked_mul(slots.into())
        {
            let until = now + HOLD;
            self.holds.push(Hold { owner, job, until, resources });
            self.timers.set_earlier(Timer::Hold, until);
        }
    }

    /// The bid was answered: nothing is kept back for it any more.
    pub(super) fn release_hold(&mut self, job: JobKey) {
        self.holds.retain(|hold| hold.job != job);
    }

    pub(super) fn expire_holds(&mut self, now: Time) {
        let before = self.holds.len();
        self.holds.retain(|hold| hold.until > now);
        self.freed |= self.holds.len() < before;
        if let Some(first) = self.holds.iter().map(|hold| hold.until).min() {
            self.timers.set(Timer::Hold, first);
        }
    }

    /// What is promised, as it counts for a bid to this owner: of each other one no more than is free, so that whoever
    /// asks again and again keeps nobody else from being served.
    fn held(&self, now: Time, owner: PeerId, free: &Resources) -> Resources {
        let mut by_owner: BTreeMap<PeerId, Resources> = BTreeMap::new();
        for hold in self.holds.iter().filter(|hold| hold.until > now) {
            let sum = by_owner.entry(hold.owner).or_insert(Resources::ZERO);
            *sum = sum.checked_add(&hold.resources).unwrap_or(*sum);
        }
        let counts = |(of, sum): (PeerId, Resources)| if of == owner { sum } else { least(&sum, free) };
        by_owner
            .into_iter()
            .map(counts)
            .fold(Resources::ZERO, |all, one| all.checked_add(&one).unwrap_or(all))
    }
}

fn least(one: &Resources, other: &Resources) -> Resources {
    Resources {
        cpu_milli: one.cpu_milli.min(other.cpu_milli),
        memory: one.memory.min(other.memory),
        disk: one.disk.min(other.disk),
        gpu: one.gpu.min(other.gpu),
    }
}

/// How many of `each` there is room for.
pub(super) fn fit(each: &Resources, room: &Resources) -> u64 {
    let times = |need: u64, have: u64| have.checked_div(need).unwrap_or(u64::MAX);
    [
        times(each.cpu_milli, room.cpu_milli),
        times(each.memory, room.memory),
        times(each.disk, room.disk),
        times(each.gpu, room.gpu),
    ]
    .into_iter()
    .min()
    .unwrap_or(0)
}

/// The first constraint that this node's labels do not meet, in words.
fn unmet(constraints: &[Constraint], settings: &super::Settings) -> Option<String> {
    constraint::reason(constraints, &settings.labels)
}
