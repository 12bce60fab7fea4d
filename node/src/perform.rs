//! The async side of the worker: performs what the worker machine decides.

pub mod context;
pub mod execution;
pub mod logs;
pub mod result;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gossip::worker::{Effect, Start, Worker};
use job::{ExecutionKey, PeerId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::content::Content;
use crate::net::{Net, Role};
use crate::shell::{Handle, Perform};
use context::Contexts;
use logs::Live;

/// What executions need of their node; one for all of them.
pub struct Bench {
    /// Files and blocks.
    pub content: Content,
    /// Runs WASM; a node that runs nothing has none.
    pub engine: Option<Arc<dyn engines::Engine>>,
    /// What partitions of one job share.
    pub contexts: Contexts,
    /// What runs now, and its output.
    pub live: Live,
    /// Below it each execution that needs one has a directory.
    pub work_dir: PathBuf,
    /// How long a CID may be without any peer that offers it.
    pub input_timeout: Duration,
    /// The way back to the machine.
    pub worker: Handle<Worker>,
}

impl Bench {
    /// The engine, which the machine knows to be here when it starts anything.
    fn engine(&self) -> Result<&Arc<dyn engines::Engine>, execution::Fault> {
        let none = || execution::Fault::new(gossip::message::FaultClass::Node, "this node runs nothing");
        self.engine.as_ref().ok_or_else(none)
    }
}

/// Performs worker effects.
pub struct WorkerEffects {
    /// For executions.
    pub bench: Arc<Bench>,
    /// For messages.
    pub net: Net,
    /// Executions in progress, by how they are told to end.
    pub stops: HashMap<ExecutionKey, Arc<Stop>>,
    /// Counts executions, so that a stop of the node can wait for them.
    pub tracker: TaskTracker,
    /// What belongs to the machine as it is; another one comes from records.
    pub life: Life,
    /// The node stops.
    pub cancel: CancellationToken,
}

/// The executions of one life of the machine, from a restoration to the next.
#[derive(Debug, Default)]
pub struct Life {
    /// Those of which something may still run.
    running: TaskTracker,
    /// Set when the machine is gone: what ends from then on is nobody's.
    over: Arc<AtomicBool>,
}

/// Tells one execution to end.
#[derive(Debug, Default)]
pub struct Stop {
    asked: std::sync::OnceLock<String>,
    told: Notify,
}

impl Stop {
    /// Asks; the first reason counts.
    pub fn ask(&self, reason: String) {
        if self.asked.set(reason).is_ok() {
            self.told.notify_one();
        }
    }

    /// The reason, once somebody asked. Dropping the future changes nothing; one waits at a time.
    pub async fn asked(&self) -> &str {
        loop {
            if let Some(reason) = self.asked.get() {
                return reason;
            }
            self.told.notified().await;
        }
    }

    /// The reason, if somebody asked.
    pub fn reason(&self) -> Option<&str> {
        self.asked.get().map(String::as_str)
    }
}

impl Perform<Worker> for WorkerEffects {
    fn perform(&mut self, effects: Vec<Effect>) {
        let mut released = Vec::new();
        for effect in effects {
            match effect {
                Effect::Release { execution, result: Some(result) } => released.push((execution, result)),
                other => self.one(other),
            }
        }
        if !released.is_empty() {
            let content = self.bench.content.clone();
            self.tracker.spawn(async move { content.unpin_executions(released).await });
        }
        // An execution that ended has dropped its side.
        if self.stops.len() > 64 {
            self.stops.retain(|_, stop| Arc::strong_count(stop) > 1);
        }
    }

    /// A machine that comes back from its records takes for lost whatever ran: so nothing may run on.
    async fn failed(&mut self, _effects: Vec<Effect>) {
        let life = std::mem::take(&mut self.life);
        life.over.store(true, Ordering::Relaxed);
        for (_, stop) in self.stops.drain() {
            stop.ask("the node could not write its record".to_owned());
        }
        life.running.close();
        life.running.wait().await;
        self.net.forget(Role::Worker);
    }

    fn revived(&mut self, _machine: &Worker) {
        self.net.retell(Role::Worker);
    }
}

impl WorkerEffects {
    fn one(&mut self, effect: Effect) {
        match effect {
            // Durable by now, or gathered above.
            Effect::Persist(_) | Effect::Forget(_) | Effect::Release { .. } => {}
            Effect::Send { to, message } => self.net.send(to, message),
            Effect::Verdict { id, relay, verdict, why } => self.net.verdict(id, relay, verdict, why),
            Effect::Start(order) => self.start(*order),
            Effect::End { execution, reason } => match self.stops.get(&execution) {
                Some(stop) => stop.ask(reason),
                None => debug!(id = %execution.id(), "told to end what does not run"),
            },
            Effect::Watch { peer, live } => self.net.watch(peer, live, Role::Worker),
            Effect::Dial { peer, addresses } => self.net.dial(peer, &addresses),
            Effect::Penalise { peer, why } => self.net.penalise(peer, why),
            Effect::ClockDiffers { peer, ahead_s } => {
                warn!(
                    %peer, ahead_s,
                    "the clocks of this node and a peer differ: announcements between them are ignored, jobs start later"
                );
            }
        }
    }

    fn start(&mut self, order: Start) {
        let stop = Arc::new(Stop::default());
        self.stops.insert(order.execution, Arc::clone(&stop));
        let (bench, cancel) = (Arc::clone(&self.bench), self.cancel.clone());
        let (running, over) = (self.life.running.token(), Arc::clone(&self.life.over));
        self.tracker.spawn(async move {
            let key = order.execution;
            let end = execution::run(&bench, order, &stop, &cancel).await;
            drop(running);
            if over.load(Ordering::Relaxed) {
                if let Some(result) = end.result {
                    bench.content.unpin_executions([(key, result.cid)]).await;
                }
                return;
            }
            if bench
                .worker
                .input(gossip::worker::Input::Ended { execution: key, end: Box::new(end) })
                .await
                .is_err()
            {
                info!(id = %key.id(), "an execution ended after the node stopped");
            }
        });
    }
}

/// Peers to ask first for a job's content: those the owner named, and the owner.
pub fn hints(owner: PeerId, named: &[PeerId]) -> Vec<PeerId> {
    let mut hints = named.to_vec();
    if !hints.contains(&owner) {
        hints.push(owner);
    }
    hints
}
