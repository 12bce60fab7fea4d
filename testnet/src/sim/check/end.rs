//! Liveness: once the faults end, every accepted job ends, and then nothing is left over.

use job::state::JobState;

use super::Due;
use super::owner::QUEUE_TIMEOUT;
use crate::sim::client::Act;
use crate::sim::clock::SECOND;
use crate::sim::plan::{Behaviour, LEASE};
use crate::sim::words;
use crate::sim::world::{Event, World};

/// Lasting jobs must run everywhere they should this long after the faults ended; then their users stop them. It is
/// the last long delay of a frame, a lease, and a round of waiting jobs.
const LASTING_WITHIN: u64 = 10 * LEASE;
/// What owners say of a partition that too many workers were lost with.
const POISON: [&str; 2] = ["workers were lost while they ran it", "attempts were lost with"];
/// Once the faults have ended, whoever can run a job is found within a queue timeout, a round, and what a node that
/// still sleeps needs to wake up.
const MATCHED_WITHIN: u64 = 6 * LEASE;
/// What ended is forgotten by everybody this long later.
const SETTLED_WITHIN: u64 = 10 * LEASE;

impl World {
    /// Plans what liveness asks for; called when the faults end.
    pub fn plan_end(&mut self) {
        self.queue.push(self.now + LASTING_WITHIN, Event::Due(Due::Lasting));
    }

    /// Whether the run is over; judges it when it is.
    pub fn finished(&mut self) -> bool {
        if !self.calm {
            return false;
        }
        if let Some(done_at) = self.check.done_at {
            if self.now < done_at + SETTLED_WITHIN {
                return false;
            }
            self.check_left_over();
            return true;
        }
        if self.everything_ended() {
            self.check.done_at = Some(self.now);
            return false;
        }
        if self.now > self.plan.heal_at + self.plan.patience() {
            let open = self.open_jobs();
            let minutes = self.plan.patience() / SECOND / 60;
            self.check.broken("every accepted job ends", format!("{minutes} min after the faults: {open}"));
            return true;
        }
        false
    }

    fn everything_ended(&self) -> bool {
        let accepted = self.check.versions.values().filter(|known| known.accepted);
        self.clients.done()
            && self.jobs_sent()
            && accepted.clone().all(|known| known.state.is_some_and(JobState::is_terminal))
    }

    /// Whether every planned job was accepted, and every planned stop and update has had its moment.
    fn jobs_sent(&self) -> bool {
        self.plan.jobs.iter().enumerate().all(|(index, job)| {
            let accepted = self.clients.job(index).accepted;
            accepted >= if job.update_at.is_some() { 2 } else { 1 }
        })
    }

    fn open_jobs(&self) -> String {
        let open = self
            .check
            .versions
            .iter()
            .filter(|(_, known)| known.accepted && !known.state.is_some_and(JobState::is_terminal));
        let mut words: Vec<String> = Vec::new();
        for ((job, version), known) in open {
            let view = self.nodes[known.owner]
                .owner
                .machine
                .as_ref()
                .and_then(|machine| machine.view(*job, Some(*version)));
            let executions = view.as_ref().map(|view| {
                let live = view.executions.iter().filter(|one| !one.state.is_terminal());
                live.map(|one| format!("{} {} {:?}", words::key(&one.key), one.state, one.message))
                    .collect::<Vec<_>>()
            });
            let summary = view.map(|view| format!("{} {:?}", view.summary.state, view.summary.message));
            words.push(format!(
                "{} v{version} of n{}: {summary:?}, {executions:?}",
                job.short(),
                known.owner
            ));
        }
        if words.is_empty() { "a client waits for an answer".to_owned() } else { words.join("; ") }
    }

    /// Every partition of a lasting job runs, as far as there is room; then its user has had enough.
    pub fn check_lasting(&mut self) {
        let plan = self.plan.clone();
        for (index, job) in plan.jobs.iter().enumerate().filter(|(_, job)| job.lasts()) {
            let client = self.clients.job(index);
            let key = client.id.map(|id| (id, client.accepted));
            let Some((key, known)) = key.and_then(|key| Some((key, self.check.versions.get(&key)?))) else {
                continue;
            };
            if known.state.is_some_and(JobState::is_terminal) {
                continue;
            }
            let running = self.nodes.iter().flat_map(|node| node.engine.containers.iter());
            let running = running.filter(|(of, one)| (of.job, of.version) == key && one.live()).count();
            let machine = self.nodes[job.owner].owner.machine.as_ref();
            let view = machine.and_then(|machine| machine.view(key.0, Some(key.1)));
            let (open, fits) = (view.map_or(0, |view| view.summary.open), self.room_for(job.cpu));
            // Other jobs share the workers: what must run is checked when this one has them alone.
            let simple = job.behaviour == Behaviour::Fine
                && !job.retry_never
                && plan.jobs.len() == 1
                && plan.rogue.is_none();
            if simple && open > 0 && (running as u64) < fits {
                let found = format!("{open} of {} are open, {running} run, {fits} would fit", job.count);
                return self.check.broken("lasting jobs run once the faults end", found);
            }
            self.queue.push(self.now + SECOND, Event::Client(Act::Finish { job: index }));
        }
    }

    fn room_for(&self, cpu: u64) -> u64 {
        let alive = self.nodes.iter().filter(|node| !node.gone());
        alive.map(|node| (node.cpu / cpu.max(1)).min(64)).sum()
    }

    /// After everything ended and settled, nothing runs, waits or is promised.
    fn check_left_over(&mut self) {
        let gone = self.nodes.iter().any(super::super::world::Node::gone);
        let mut found = None;
        let rogue = self.plan.rogue.is_some();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.gone() || self.is_rogue(index) {
                continue;
            }
            let live = node.engine.containers.iter().find(|(_, one)| one.live());
            if let Some((key, one)) = live {
                found = Some(format!("n{index} still has {} ({:?})", words::key(key), one.stage));
            }
            let load = node.worker.machine.as_ref().map(|machine| machine.load()).unwrap_or_default();
            let machine = node.worker.machine.as_ref();
            let kept = machine.and_then(|machine| {
                machine.executions().find(|(key, _)| self.clients.job_of(key.job).is_some())
            });
            if let Some((key, phase)) = kept {
                found = Some(format!("n{index}'s worker still has {} ({phase:?})", words::key(&key)));
            }
            // Receipts for a rogue owner wait until their time is over.
            let offered = if rogue { 0 } else { load.offered };
            if (load.running, load.queued, offered) != (0, 0, 0) || !load.used.is_zero() {
                found = Some(format!("n{index}'s worker still has {load:?}"));
            }
            let jobs = node.owner.machine.as_ref().map_or(0, |machine| machine.jobs().count());
            if jobs > 0 && !gone {
                found = Some(format!("n{index}'s owner still has {jobs} jobs in memory"));
            }
        }
        if let Some(found) = found {
            return self.check.broken("nothing is left over at the end", found);
        }
        self.check_results();
    }

    /// Jobs with nothing wrong with them Complete, unless worker after worker was lost.
    fn check_results(&mut self) {
        let mut broken = None;
        for ((job, version), known) in &self.check.versions {
            let plan = &self.plan.jobs[known.job];
            let client = self.clients.job(known.job);
            if known.state == Some(JobState::Completed) {
                self.check.seen.completed += 1;
                continue;
            }
            let view = self.view_on_disk(known.owner, *job, *version).ok().flatten();
            let message = view.map(|view| view.summary.message).unwrap_or_default();
            let waited = message.contains(QUEUE_TIMEOUT);
            if waited && plan.patient {
                broken = Some(format!("{} v{version} was to be waited for: {message:?}", job.short()));
            }
            let ended = known.ended_at.unwrap_or(self.now);
            if waited
                && !plan.impossible
                && (!self.plan.is_troubled() || ended > self.plan.heal_at + MATCHED_WITHIN)
            {
                broken = Some(format!("{} v{version} found nobody: {message:?}", job.short()));
            }
            let simple = !plan.lasts()
                && plan.behaviour == Behaviour::Fine
                && !plan.retry_never
                && plan.total_timeout.is_none()
                && plan.run_timeout.is_none()
                && !client.stop_wanted
                && *version == client.accepted
                && !waited
                && !self.check.spoiled.contains(&(*job, *version));
            if !simple {
                continue;
            }
            // Five lost workers end a partition; machines that die or disks that fail can bring that about.
            let disturbed = self.check.seen.crashes + self.check.seen.disk_errors > 0;
            if !(disturbed && POISON.iter().any(|words| message.contains(words))) {
                broken = Some(format!("{} v{version} ended {:?}: {message:?}", job.short(), known.state));
            }
        }
        if let Some(found) = broken {
            self.check.broken("a job with nothing wrong with it completes", found);
        }
    }
}
