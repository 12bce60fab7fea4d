//! Announcing: what is said of a job, and the pace at which this owner publishes.

use std::time::Duration;

use ::job::Time;

use super::core::{Core, JobKey, Timer};
use super::job::{Call, Job};
use super::{Effect, Owner, millis};
use crate::lottery;
use crate::message::{Announcement, Announcements, Ask, MAX_ANNOUNCED};
use crate::topic::Class;

/// Messages at once; below what peers allow (10), since their clocks and buckets are not ours.
pub(super) const BURST: u32 = 8;

/// Between messages beyond the burst; above what peers allow (1 s).
const PACE: Duration = Duration::from_millis(1100);

/// Addresses in an announcement.
const MAX_ADDRESSES: usize = 3;

impl Job {
    /// What is said of this job now, with a new seed.
    fn announcement(&mut self, core: &mut Core, now: Time, theta: u64, announced: bool) -> Announcement {
        let seed = core.rng.draw();
        self.call(Call { seed, theta, announced, at: now });
        let job = &self.ledger.job;
        Announcement {
            job: self.ledger.id,
            nonce: job.nonce.clone(),
            version: self.ledger.version,
            spec: job.spec_cid,
            facts: job.facts.clone(),
            open: self.open_count().max(1),
            round: self.sweeps,
            theta,
            decline: lottery::decline_share(theta, core.size()),
            seed,
        }
    }

    /// The same for one peer.
    pub(super) fn ask(&mut self, core: &mut Core, now: Time) -> Ask {
        Ask {
            announcement: self.announcement(core, now, lottery::ALL, false),
            addresses: core.addresses(),
            ttl_ms: millis(core.settings.announce_ttl),
            issued: now.wall,
        }
    }
}

impl Core {
    fn addresses(&self) -> Vec<String> {
        self.settings.addresses.iter().take(MAX_ADDRESSES).cloned().collect()
    }

    /// Whether a job's announcement fits into a message of its own.
    pub(super) fn can_announce(&mut self, job: &mut Job, now: Time) -> bool {
        let announcement = job.announcement(self, now, lottery::ALL, true);
        job.calls.clear();
        // As long as addresses may become.
        let addresses = vec!["x".repeat(128); MAX_ADDRESSES];
        let message = Announcements {
            owner: self.me(),
            addresses,
            issued: u64::MAX,
            ttl_ms: u64::MAX,
            jobs: vec![Announcement { seed: u64::MAX, theta: lottery::ALL, open: u32::MAX, ..announcement }],
        };
        message.seal(self.identity.crypto.as_ref()).is_some()
    }

    fn refill(&mut self, now: Time) {
        let pace = millis(PACE);
        let earned = millis(now.since(self.filled)) / pace;
        if earned > 0 {
            self.tokens =
                u32::try_from(u64::from(self.tokens).saturating_add(earned)).unwrap_or(BURST).min(BURST);
            self.filled = self.filled + Duration::from_millis(earned * pace);
        }
    }
}

impl Owner {
    /// Publishes what waits for it, as far as the pace allows.
    pub(super) fn publish(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.core.refill(now);
        let classes: Vec<Class> = self.core.announce.keys().copied().collect();
        for class in classes {
            while self.core.tokens > 0 {
                let Some(waiting) = self.core.announce.get_mut(&class) else { break };
                let some: Vec<JobKey> = waiting.iter().take(MAX_ANNOUNCED).copied().collect();
                if some.is_empty() {
                    self.core.announce.remove(&class);
                    break;
                }
                self.publish_some(now, class, &some, out);
            }
        }
        if self.core.announce.values().any(|waiting| !waiting.is_empty()) {
            let next = self.core.filled + PACE;
            self.core.timers.set_earlier(Timer::Announce, next);
        }
    }

    /// One message with as many of these jobs as fit.
    fn publish_some(&mut self, now: Time, class: Class, keys: &[JobKey], out: &mut Vec<Effect>) {
        let Owner { core, jobs } = self;
        let mut message = Announcements {
            owner: core.me(),
            addresses: core.addresses(),
            // Never the same twice, also when the clock stands still or jumps back.
            issued: now.wall.max(core.issued + 1),
            ttl_ms: millis(core.settings.announce_ttl),
            jobs: Vec::new(),
        };
        core.issued = message.issued;
        let mut sealed = None;
        for key in keys {
            let theta = jobs.get(key).and_then(Job::theta);
            let Some((job, theta)) = jobs.get_mut(key).zip(theta) else {
                core.dequeue(class, *key);
                continue;
            };
            let announcement = job.announcement(core, now, theta, true);
            message.jobs.push(announcement);
            match message.seal(core.identity.crypto.as_ref()) {
                Some(bytes) => {
                    sealed = Some(bytes);
                    core.dequeue(class, *key);
                    // Its window begins now.
                    core.timers.set(Timer::Round(*key), now + core.settings.round_window);
                }
                None => {
                    message.jobs.pop();
                    job.calls.pop_back();
                    break;
                }
            }
        }
        if let Some(bytes) = sealed {
            core.tokens = core.tokens.saturating_sub(1);
            core.counters.announcements += 1;
            out.push(Effect::Announce { class, bytes });
        } else if let Some(first) = keys.first() {
            // It was checked when it was submitted, so this cannot be; it must not hold up the others.
            core.dequeue(class, *first);
        }
    }
}

impl Core {
    fn dequeue(&mut self, class: Class, key: JobKey) {
        if let Some(waiting) = self.announce.get_mut(&class) {
            waiting.remove(&key);
        }
    }
}
