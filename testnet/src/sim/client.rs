//! The users: they submit jobs, send them again when they see no answer, update and stop them, and believe what they
//! were answered.

use std::collections::BTreeMap;
use std::time::Duration;

use gossip::message::{Bytes, Facts, InputHint};
use gossip::owner::{Input, Keep, NewJob, Refusal, StopRefusal};
use job::spec::JobType;
use job::state::JobState;
use job::{JobId, Resources};

use super::clock::{MILLI, SECOND};
use super::engine::{block_cid, spec_cid};
use super::plan::{JobPlan, Kind, LEASE, Plan};
use super::shell::SWARM;
use super::world::{World, peer_id};

/// A client asks again after so long without an answer, or when nobody listens.
const PATIENCE: u64 = 20 * SECOND;

/// Something that a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Sends version `version` of a job; also again, when it saw no answer.
    Submit { job: usize, version: u32 },
    /// Asks for a job's end.
    Stop { job: usize },
    /// Looks whether its request was answered.
    Wonder { token: u64 },
    /// The end of a lasting job, once the network is calm and it was seen to run.
    Finish { job: usize },
}

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Submit { job: usize, version: u32 },
    Stop { job: usize },
}

/// All clients.
#[derive(Debug)]
pub(crate) struct Clients {
    jobs: Vec<Job>,
    tokens: u64,
    waiting: BTreeMap<u64, (usize, Asked)>,
}

/// A job as its client sees it.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub id: Option<JobId>,
    /// The newest version whose acceptance was answered.
    pub accepted: u32,
    /// A stop was answered.
    pub stopped: bool,
    pub stop_wanted: bool,
}

impl Clients {
    pub fn new(plan: &Plan) -> Self {
        let job = Job { id: None, accepted: 0, stopped: false, stop_wanted: false };
        Clients { jobs: vec![job; plan.jobs.len()], tokens: 0, waiting: BTreeMap::new() }
    }

    /// Which planned job has this id.
    pub fn job_of(&self, id: JobId) -> Option<usize> {
        self.jobs.iter().position(|job| job.id == Some(id))
    }

    /// What the client of a planned job knows.
    pub fn job(&self, index: usize) -> &Job {
        &self.jobs[index]
    }

    /// Whether every request was answered.
    pub fn done(&self) -> bool {
        self.waiting.is_empty()
    }

    fn ask(&mut self, node: usize, asked: Asked) -> u64 {
        self.tokens += 1;
        self.waiting.insert(self.tokens, (node, asked));
        self.tokens
    }
}

impl World {
    /// Puts the clients' plans on the agenda.
    pub fn plan_clients(&mut self) {
        use super::world::Event::Client;
        let plan = self.plan.clone();
        for (job, one) in plan.jobs.iter().enumerate() {
            self.clients.jobs[job].id = Some(job_id(self.seed, one.owner, job));
            self.queue.push(one.at, Client(Act::Submit { job, version: 1 }));
            if let Some(at) = one.resend_at {
                self.queue.push(at, Client(Act::Submit { job, version: 1 }));
            }
            if let Some(at) = one.update_at {
                self.queue.push(at, Client(Act::Submit { job, version: 2 }));
            }
            if let Some(at) = one.stop_at {
                self.queue.push(at, Client(Act::Stop { job }));
            }
        }
    }

    /// A client acts.
    pub fn on_client(&mut self, act: Act) {
        use super::world::Event::Client;
        let (Act::Submit { job, .. } | Act::Stop { job } | Act::Finish { job }) = act else {
            let Act::Wonder { token } = act else { return };
            // No answer: ask again, under the same nonce.
            if let Some((_, asked)) = self.clients.waiting.remove(&token) {
                let again = match asked {
                    Asked::Submit { job, version } => Act::Submit { job, version },
                    Asked::Stop { job } => Act::Stop { job },
                };
                self.queue.push(self.now + MILLI, Client(again));
            }
            return;
        };
        let plan = self.plan.clone();
        let owner = plan.jobs[job].owner;
        if !self.nodes[owner].answers() {
            self.queue.push(self.now + SECOND, Client(act));
            return;
        }
        let known = self.clients.jobs[job].clone();
        match act {
            Act::Submit { version, .. } => {
                if version > known.accepted + 1 {
                    // The first version was not accepted yet: the update waits for it.
                    self.queue.push(self.now + SECOND, Client(act));
                    return;
                }
                if version > 1 && self.replaces_live(owner, job, version - 1) {
                    // As the node does: the version before is stopped first.
                    self.queue.push(self.now + SECOND / 10, Client(act));
                    return;
                }
                let new = new_job(self.seed, &plan.jobs[job], job, version);
                if self.answered_from_disk(owner, &new) {
                    // Sent twice, and ended meanwhile: the shell finds it in its records.
                    self.clients.jobs[job].accepted = known.accepted.max(version);
                    return self.job_accepted(owner, job, new.id, version);
                }
                let token = self.clients.ask(owner, Asked::Submit { job, version });
                self.queue.push(self.now + PATIENCE, Client(Act::Wonder { token }));
                self.tell_owner(owner, Input::Submitted { token, job: Box::new(new) });
            }
            Act::Stop { .. } | Act::Finish { .. } => {
                let Some(id) = known.id.filter(|_| known.accepted > 0) else {
                    self.queue.push(self.now + SECOND, Client(act));
                    return;
                };
                self.clients.jobs[job].stop_wanted = true;
                let token = self.clients.ask(owner, Asked::Stop { job });
                self.queue.push(self.now + PATIENCE, Client(Act::Wonder { token }));
                self.tell_owner(owner, Input::StopRequested { token, job: id, reason: "enough".to_owned() });
            }
            Act::Wonder { .. } => {}
        }
    }

    /// The version before has not ended: its stop is asked for, once at a time.
    fn replaces_live(&mut self, owner: usize, job: usize, version: u32) -> bool {
        let Some(id) = self.clients.jobs[job].id else { return false };
        let live = self
            .check
            .versions
            .get(&(id, version))
            .is_some_and(|known| !known.state.is_some_and(JobState::is_terminal));
        if live && !self.clients.waiting.values().any(|(_, asked)| *asked == Asked::Stop { job }) {
            let token = self.clients.ask(owner, Asked::Stop { job });
            self.queue.push(self.now + PATIENCE, super::world::Event::Client(Act::Wonder { token }));
            self.tell_owner(
                owner,
                Input::StopRequested { token, job: id, reason: "a new version".to_owned() },
            );
        }
        live
    }

    /// The version is on disk and no longer in the machine's memory.
    fn answered_from_disk(&self, node: usize, new: &NewJob) -> bool {
        let shell = &self.nodes[node].owner;
        let in_memory =
            shell.machine.as_ref().is_some_and(|machine| machine.reader(new.id, Some(new.version)).is_some());
        !in_memory && shell.disk.keys().any(|key| key.job == new.id && key.version == new.version)
    }

    /// The node answered with the job's id: from here on it must never be lost.
    pub fn client_accepted(&mut self, node: usize, token: u64, id: JobId, version: u32) {
        let Some((asked_of, Asked::Submit { job, version: wanted })) = self.clients.waiting.remove(&token)
        else {
            return;
        };
        if asked_of != node || version != wanted || self.clients.jobs[job].id != Some(id) {
            self.check.broken("an answer belongs to its request", format!("n{node}: {id} version {version}"));
        }
        self.clients.jobs[job].accepted = self.clients.jobs[job].accepted.max(version);
        self.job_accepted(node, job, id, version);
    }

    /// The node refused a job.
    pub fn client_refused(&mut self, node: usize, token: u64, why: &Refusal) {
        let Some((_, Asked::Submit { job, version })) = self.clients.waiting.remove(&token) else { return };
        let Some(id) = self.clients.jobs[job].id else { return };
        // Sent twice: the shell finds the version in its records and answers as it did before.
        if matches!(why, Refusal::VersionExists(_)) {
            self.clients.jobs[job].accepted = self.clients.jobs[job].accepted.max(version);
            return self.job_accepted(node, job, id, version);
        }
        self.check.broken("a proper job is accepted", format!("n{node}: {why}"));
    }

    /// The node answered a stop.
    pub fn client_stop_answered(&mut self, node: usize, token: u64, result: &Result<(), StopRefusal>) {
        let Some((_, Asked::Stop { job })) = self.clients.waiting.remove(&token) else { return };
        match result {
            Ok(()) => {
                self.clients.jobs[job].stopped = true;
                self.job_stopped(node, job);
            }
            Err(StopRefusal::Ended(_)) => {}
            // It ended and left the machine's memory; the shell answers that from its records.
            Err(_) => self.job_unknown_at_stop(node, job),
        }
    }
}

/// The id that a planned job gets.
fn job_id(seed: u64, owner: usize, job: usize) -> JobId {
    JobId::derive(SWARM, peer_id(seed, owner), &nonce(job))
}

fn nonce(job: usize) -> Vec<u8> {
    format!("job {job}").into_bytes()
}

/// A version of a planned job as it is submitted.
pub(super) fn new_job(seed: u64, plan: &JobPlan, job: usize, version: u32) -> NewJob {
    let spec = format!("spec of job {job} version {version}").into_bytes();
    let resources = Resources { cpu_milli: plan.cpu, memory: 1 << 20, disk: 0, gpu: 0 };
    let facts = Facts {
        job_type: match plan.kind {
            Kind::Batch => JobType::Batch,
            Kind::Service => JobType::Service,
        },
        publisher: "ipfs".to_owned(),
        run_ms: plan.run_timeout.map_or(0, |span| span / MILLI),
        inputs: vec![InputHint { cid: block_cid(&mix_bytes(seed, job)), size: 1_000_000 }],
        module: Some(block_cid(&mix_bytes(seed, job + 1000))),
        never: plan.retry_never,
        ..Facts::plain("wasm", resources)
    };
    NewJob {
        id: job_id(seed, plan.owner, job),
        version,
        nonce: Bytes::from(nonce(job)),
        name: format!("job-{job}"),
        namespace: "default".to_owned(),
        spec_cid: spec_cid(&spec),
        spec: Bytes::from(spec),
        facts,
        count: plan.count,
        total_timeout: plan.total_timeout.map(Duration::from_nanos),
        // Long enough that no fault of the plan ends a job that could run: liveness is then that it completes.
        queue_timeout: plan.patient.then_some(Duration::from_nanos(200 * LEASE)),
        max_attempts: if plan.retry_never { 1 } else { 3 },
        keep: if plan.keep_on_worker { Keep::Worker } else { Keep::Owner },
    }
}

fn mix_bytes(seed: u64, number: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}
