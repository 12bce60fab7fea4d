//! Jobs that wait: why, in words with counts, and for how long.

use std::collections::BTreeMap;
use std::time::Duration;

use ::job::Time;
use ::job::state::JobState;

use super::core::{Core, Timer};
use super::job::{Job, Round};
use super::record::{Fate, Topic};
use super::{Effect, Owner};
use crate::message::{DeclineCode, cut};

/// A job without a worker says why after this long at the latest.
const EXPLAIN_AFTER: Duration = Duration::from_millis(1800);

/// Different reasons that are spelled out for one code.
const MAX_REASONS: usize = 3;

/// Lines of a job's own history; of later ones only its end is recorded.
pub(super) const MAX_LINES: usize = 512;

/// Why nobody works on a job, and whether that may pass by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) text: String,
    pub(super) passing: bool,
}

impl Job {
    /// Why nobody takes its open partitions, from what peers said in this sweep.
    pub(super) fn reason(&self, core: &Core) -> Reason {
        let heard = self.declines.len()
            + self.bidders.iter().filter(|peer| !self.declines.contains_key(peer)).count();
        if heard == 0 {
            let text = match core.connected.len() {
                0 if !core.settings.own_worker => "no worker can run it: no peer is connected".to_owned(),
                0 => "no worker can run it: no other peer is connected".to_owned(),
                1 => "no worker can run it: the one connected peer did not answer".to_owned(),
                peers => format!("no worker can run it: none of {peers} connected peers answered"),
            };
            return Reason { text, passing: false };
        }
        let mut codes: BTreeMap<DeclineCode, (usize, Vec<&str>)> = BTreeMap::new();
        for (code, message) in self.declines.values() {
            let (count, texts) = codes.entry(*code).or_default();
            *count += 1;
            if !message.is_empty() && texts.len() < MAX_REASONS && !texts.contains(&message.as_str()) {
                texts.push(message);
            }
        }
        let passing = heard > self.declines.len() || codes.keys().any(|code| code.is_passing());
        let mut by_count: Vec<_> = codes.into_iter().collect();
        by_count.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        let mut parts = Vec::new();
        for (code, (count, texts)) in by_count {
            let words = code.words(count != 1);
            let detail = if texts.is_empty() { String::new() } else { format!(" ({})", texts.join("; ")) };
            parts.push(if parts.is_empty() {
                format!("{count} of {heard} {} {words}{detail}", if heard == 1 { "peer" } else { "peers" })
            } else {
                format!("{count} {words}{detail}")
            });
        }
        if heard > self.declines.len() {
            parts.push(format!("{} bid and did not take it yet", heard - self.declines.len()));
        }
        let head = if passing { "all workers that could run it are busy" } else { "no worker can run it" };
        Reason { text: cut(&format!("{head}: {}{}", parts.join(", "), self.clocks())), passing }
    }

    /// What peers said of their clocks, when some are far from ours.
    fn clocks(&self) -> String {
        let Some(most) = self.skews.values().max() else { return String::new() };
        match self.skews.len() {
            1 => format!("; the clock of one of them differs from this node's by {most} s"),
            many => format!("; the clocks of {many} of them differ from this node's by up to {most} s"),
        }
    }

    /// Whether it waits without anybody working on it; sets or clears what follows from that.
    pub(super) fn note_waiting(&mut self, core: &mut Core, now: Time) {
        let key = self.key();
        if self.open.is_empty() || self.is_worked_on() || self.ended() {
            self.unmatched_since = None;
            if self.waiting_since.take().is_some() {
                core.timers.clear(Timer::Queued(key));
                core.timers.clear(Timer::QueueLimit(key));
            }
            return;
        }
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now);
            self.unmatched_since = Some(now);
            core.timers.set(Timer::Queued(key), now + EXPLAIN_AFTER);
            if let Some(limit) = self.ledger.job.queue {
                core.timers.set(Timer::QueueLimit(key), now + limit);
            }
        }
    }

    /// Says why it waits, and sets the time by which that must have changed.
    pub(super) fn explain_wait(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        self.note_waiting(core, now);
        if self.waiting_since.is_none() {
            return;
        }
        let reason = self.reason(core);
        if self.ledger.state != JobState::Queued || self.ledger.message != reason.text {
            let line = format!("Job queued. {}", reason.text);
            let state = (self.ledger.lines.len() < MAX_LINES).then_some(JobState::Queued);
            if state.is_some() {
                self.line(now, Topic::Queueing, &line, state, &reason.text, out);
            }
        }
        let key = self.key();
        if self.ledger.job.queue.is_none() {
            if reason.passing {
                self.unmatched_since = None;
                core.timers.clear(Timer::QueueLimit(key));
            } else {
                // Counted from when nobody matched: it may have waited long for some that were busy.
                let since = *self.unmatched_since.get_or_insert(now);
                core.timers.set_earlier(Timer::QueueLimit(key), since + core.settings.queue_timeout);
            }
        }
    }

    /// Its queue timeout is over.
    pub(super) fn on_queue_limit(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        if self.waiting_since.is_none() || self.ended() {
            return;
        }
        let limit = self.ledger.job.queue.unwrap_or(core.settings.queue_timeout);
        let reason = self.reason(core);
        if self.ledger.job.queue.is_none() && reason.passing {
            self.unmatched_since = None;
            return;
        }
        let reason = reason.text;
        let message =
            format!("Job timed out waiting for a worker. It waited longer than {}: {reason}", seconds(limit));
        self.finish(core, now, JobState::Failed, Topic::JobTimeout, &message, "job timed out", out);
    }

    /// Its total timeout is over.
    pub(super) fn on_total(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        if self.ended() {
            return;
        }
        let limit = self.ledger.job.total.unwrap_or_default();
        let (committed, failed) = self.ledger.counts();
        let last = self.ledger.executions.values().rev().find(|one| !one.message.is_empty());
        let reason = if self.waiting_since.is_some() {
            self.reason(core).text
        } else if let Some(execution) = last {
            execution.message.clone()
        } else if self.ledger.job.count == 1 {
            "it was running".to_owned()
        } else {
            format!("{committed} of {} partitions were done, {failed} had failed", self.ledger.job.count)
        };
        let message = format!("Job timed out. Job took longer than {}: {reason}", seconds(limit));
        self.finish(core, now, JobState::Failed, Topic::JobTimeout, &message, "job timed out", out);
    }

    /// Partitions that failed, and that nobody else bid on in a full sweep, have failed for good.
    pub(super) fn give_up_hopeless(&mut self, core: &mut Core, now: Time, out: &mut Vec<Effect>) {
        debug_assert_eq!(self.round, Round::Waiting);
        // One whose answer is still on its way must not be taken for nobody.
        let enough = if self.all_answered(core) { 1 } else { 2 };
        for (_, trouble) in self.trouble.iter_mut().filter(|(partition, _)| self.open.contains(**partition)) {
            trouble.swept = trouble.swept.saturating_add(1);
        }
        let hopeless: Vec<u32> = self
            .trouble
            .iter()
            .filter(|(partition, trouble)| {
                trouble.failures > 0 && trouble.swept >= enough && self.open.contains(**partition)
            })
            // Of one that runs something may still come.
            .filter(|(partition, _)| {
                self.ledger.attempts(**partition).all(|(_, one)| one.state.is_terminal() || one.given_up)
            })
            .filter(|(_, trouble)| {
                let other = |peer: &::job::PeerId| !trouble.failed_on.contains_key(peer);
                let busy = self.declines.iter().any(|(peer, (code, _))| other(peer) && code.is_passing());
                let working = self.shares.iter().any(|(peer, share)| other(peer) && !share.live.is_empty());
                !busy && !working && !self.bidders.iter().any(other)
            })
            .map(|(partition, _)| *partition)
            .collect();
        for partition in hopeless {
            self.open.remove(partition, partition + 1);
            self.fail_open(now, partition, out);
        }
        self.check_end(core, now, out);
    }

    /// A partition whose attempts have all ended fails for good.
    fn fail_open(&mut self, now: Time, partition: u32, out: &mut Vec<Effect>) {
        // The mark hangs on the record of no execution: the attempts have their own ends already.
        self.fate_of_partition(now, partition, Fate::Failed, out);
    }
}

impl Owner {
    /// The node slept: jobs that wait have not been looked for meanwhile, and their queue timeouts begin anew, as after
    /// a restart.
    pub(super) fn wait_anew(&mut self, now: Time) {
        for (key, job) in self.jobs.iter_mut().filter(|(_, job)| job.waiting_since.is_some()) {
            job.waiting_since = Some(now);
            job.unmatched_since = job.unmatched_since.map(|_| now);
            let limit = job.ledger.job.queue.unwrap_or(self.core.settings.queue_timeout);
            if self.core.timers.get(Timer::QueueLimit(*key)).is_some() {
                self.core.timers.set(Timer::QueueLimit(*key), now + limit);
            }
        }
    }
}

/// A span of time as the messages show it.
pub(super) fn seconds(span: Duration) -> String {
    if span.subsec_nanos() == 0 {
        format!("{} s", span.as_secs())
    } else {
        format!("{} s", span.as_secs_f64())
    }
}
