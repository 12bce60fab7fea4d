//! Answering owners that ask what is here, and telling them what was lost.

use std::collections::BTreeSet;

use ::job::{Fence, JobId, PeerId, Time};

use super::{Effect, JobKey, Part, Timer, Worker};
use crate::crypto::Signed;
use crate::message::{Direct, JobAsked, JobLive, Live, Reconcile, pages};
use crate::range::spans;

impl Worker {
    pub(super) fn on_reconcile(&mut self, now: Time, from: PeerId, ask: Reconcile, out: &mut Vec<Effect>) {
        if ask.jobs.iter().any(|job| JobId::derive(&self.identity.swarm, from, &job.nonce) != job.job) {
            self.counters.foreign += 1;
            return out.push(Effect::Penalise { peer: from, why: "asked about another owner's awards" });
        }
        let known = self.owners.get(&from).map_or(0, |owner| owner.epoch);
        let newest = (known > ask.epoch)
            .then(|| self.owners.get(&from).and_then(|owner| owner.newest.clone()))
            .flatten();
        if newest.is_none() {
            self.raise_epoch(from, ask.epoch, out);
        }
        let mut jobs = Vec::new();
        for job in &ask.jobs {
            jobs.push(self.answer(now, from, ask.epoch, job));
        }
        self.send_live(now, from, ask.id, jobs, newest, out);
        self.offer_again(now, from, out);
    }

    /// What is here of what an owner believes to be here. What is unknown is refused from now on.
    fn answer(&mut self, now: Time, from: PeerId, epoch: u32, asked: &JobAsked) -> JobLive {
        let key = (asked.job, asked.version);
        let mut answer = JobLive::empty(asked.job, asked.version);
        let (mut live, mut lost, mut unstarted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for span in &asked.spans {
            for partition in span.partitions() {
                let part = (partition, span.attempt);
                match self.jobs.get(&key).filter(|job| job.owner == from) {
                    Some(job) if job.executions.contains_key(&part) || job.offered.contains_key(&part) => {
                        live.insert(part);
                    }
                    Some(job) if job.lost.contains_key(&part) => drop(lost.insert(part)),
                    _ => drop(unstarted.insert(part)),
                }
            }
        }
        for part in &unstarted {
            self.fence(now, key, *part, Fence::new(epoch, part.1));
        }
        answer.progress = self.progress_of(now, key, &live);
        answer.live = spans(live);
        answer.lost = spans(lost);
        answer.unstarted = spans(unstarted);
        answer
    }

    fn progress_of(&self, now: Time, key: JobKey, live: &BTreeSet<Part>) -> Vec<crate::message::Progress> {
        let Some(job) = self.jobs.get(&key) else { return Vec::new() };
        let all = self.live_jobs(now, job.owner, true).into_iter().find(|one| (one.job, one.version) == key);
        let progress = all.map(|all| all.progress).unwrap_or_default();
        progress.into_iter().filter(|one| live.contains(&(one.partition, one.attempt))).collect()
    }

    pub(super) fn send_live(
        &self,
        now: Time,
        to: PeerId,
        answers: u64,
        jobs: Vec<JobLive>,
        newest: Option<Signed>,
        out: &mut Vec<Effect>,
    ) {
        let mut pages = pages(jobs, JobLive::weight);
        if pages.is_empty() && answers != 0 {
            pages.push(Vec::new()); // a question gets an answer
        }
        for jobs in pages {
            let live = Live { answers, stamp: self.stamp(now), jobs, newest: newest.clone() };
            out.push(Effect::Send { to, message: Direct::Live(live) });
        }
    }

    /// Tells owners at once what was lost or will never start; renewals repeat it until they have heard.
    pub(super) fn report_changes(&mut self, now: Time, out: &mut Vec<Effect>) {
        for owner in std::mem::take(&mut self.reports) {
            self.timers.set_earlier(Timer::Retention, now + self.settings.retention);
            if self.is_connected(owner) {
                self.send_live(now, owner, 0, self.live_jobs(now, owner, false), None, out);
            }
        }
    }
}
