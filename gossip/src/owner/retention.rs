//! Retention: what ended is kept for its users for so long, and so much of it; then it is forgotten.
//!
//! Of a job version that has settled only its records are left, and a line here. Once it is forgotten, it is as if it
//! never was: questions, stops and receipts for it are answered like those for any unknown job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::job::{JobId, Time};

use super::core::{Core, JobKey, Timer};
use super::record::SettledRecord;
use super::{Effect, Owner, Settings};

/// Job versions that are forgotten together, and the executions after which no further one is: a few milliseconds of
/// one transaction. A version is forgotten whole, however many executions it had.
const VERSIONS_AT_ONCE: usize = 256;
const EXECUTIONS_AT_ONCE: u64 = 4096;

/// Between two such rounds: whoever submits a job meanwhile waits for none of them, and more are forgotten in a second
/// than one owner can end.
const PAUSE: Duration = Duration::from_millis(100);

/// Job versions of which only records are left. About 100 bytes each; [`Settings::retained_jobs`] bounds them.
#[derive(Debug, Default)]
pub(super) struct Past {
    versions: BTreeMap<JobKey, Kept>,
    /// The same by when their time is over, on the boot clock.
    order: BTreeSet<(u64, JobKey)>,
    /// Executions of all of them.
    executions: u64,
    /// Nothing is forgotten before.
    rests_until: Time,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    /// Boot clock: a wall clock that is set right ends nothing early while the node runs.
    until: u64,
    executions: u32,
}

impl Past {
    /// Takes a version in that has settled.
    pub(super) fn insert(&mut self, now: Time, key: JobKey, settled: SettledRecord, settings: &Settings) {
        let span = u64::try_from(settings.retention.as_nanos()).unwrap_or(u64::MAX);
        let until = now.at_wall(settled.ended.saturating_add(span)).boot;
        self.remove(key);
        self.versions.insert(key, Kept { until, executions: settled.executions });
        self.order.insert((until, key));
        self.executions += u64::from(settled.executions);
    }

    fn remove(&mut self, key: JobKey) -> Option<Kept> {
        let kept = self.versions.remove(&key)?;
        self.order.remove(&(kept.until, key));
        self.executions -= u64::from(kept.executions);
        Some(kept)
    }

    /// The newest version of a job that is kept.
    pub(super) fn newest(&self, id: JobId) -> Option<u32> {
        self.versions.range((id, 0)..=(id, u32::MAX)).next_back().map(|((_, version), _)| *version)
    }

    pub(super) fn knows(&self, key: JobKey) -> bool {
        self.versions.contains_key(&key)
    }

    /// When the next one is to be forgotten: the one whose time is over first.
    fn next(&self, now: Time, settings: &Settings) -> Option<Time> {
        let (until, _) = self.order.first()?;
        let too_many = self.versions.len() > settings.retained_jobs;
        let too_large = self.executions > settings.retained_executions;
        // What ended last stays for its time, however large it is: its user has not seen it yet.
        let at = if (too_many || too_large) && self.versions.len() > 1 { now.boot } else { *until };
        Some(Time { boot: at, ..now }.max(self.rests_until))
    }

    /// Takes the first one out, and with it older versions of its job: the newest that is kept is the job.
    fn take_first(&mut self) -> Vec<(JobKey, Kept)> {
        let Some(&(_, key)) = self.order.first() else { return Vec::new() };
        let keys: Vec<JobKey> = self.versions.range((key.0, 0)..=key).map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| Some((key, self.remove(key)?))).collect()
    }
}

impl Owner {
    /// Forgets what is past its retention, a bounded part of it, and sets the time for the rest.
    pub(super) fn forget_past(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Core { past, settings, timers, counters, .. } = &mut self.core;
        let (mut versions, mut executions) = (0, 0);
        while versions < VERSIONS_AT_ONCE
            && executions < EXECUTIONS_AT_ONCE
            && past.next(now, settings).is_some_and(|at| at <= now)
        {
            for ((job, version), kept) in past.take_first() {
                versions += 1;
                executions += u64::from(kept.executions);
                counters.forgotten += 1;
                out.push(Effect::ForgetJob { job, version });
            }
        }
        if versions > 0 {
            past.rests_until = now + PAUSE;
        }
        match past.next(now, settings) {
            Some(at) => timers.set(Timer::Retention, at),
            None => timers.clear(Timer::Retention),
        }
    }

    /// Whether a job version is owned here, running or ended: whatever was kept for one that is not may go.
    pub fn knows(&self, id: JobId, version: u32) -> bool {
        self.jobs.contains_key(&(id, version)) || self.core.past.knows((id, version))
    }

    /// The newest version of a job, running or ended.
    pub(super) fn newest(&self, id: JobId) -> Option<u32> {
        let live = self.jobs.range((id, 0)..=(id, u32::MAX)).next_back().map(|((_, version), _)| *version);
        live.max(self.core.past.newest(id))
    }
}
