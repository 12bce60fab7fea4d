//! The async side of the owner: performs what the owner machine decides, and tells who waits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use gossip::message::Block;
use gossip::owner::{Effect, Held, Hold, HoldItem, Input, Owner, Refusal, StopRefusal};
use job::{Cid, JobId, PeerId};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::content::{Content, FetchFault};
use crate::index::Line;
use crate::net::{Net, Role};
use crate::shell::{Handle, Perform};

/// Between attempts to bring a result whose holder is there but did not give it.
const HOLD_AGAIN: Duration = Duration::from_secs(1);
/// Attempts before the machine is told that the result cannot be had.
const HOLD_ATTEMPTS: u32 = 3;
/// Results of one job that are fetched at once.
const HOLDS_AT_ONCE: usize = 16;
/// Small results that come together are published one by one in the DHT up to this many: thousands of them
/// are found by asking the owner, and would only fill other peers' tables.
const PROVIDED: usize = 16;

/// The answer to a submitted job: its id and version.
pub type Submitted = Result<(JobId, u32), Refusal>;

/// Requests of clients that wait for the machine, and watchers of jobs.
#[derive(Default)]
pub struct Desk {
    inner: Mutex<DeskInner>,
}

#[derive(Default)]
struct DeskInner {
    next_token: u64,
    submits: HashMap<u64, oneshot::Sender<Submitted>>,
    stops: HashMap<u64, oneshot::Sender<Result<(), StopRefusal>>>,
    watched: BTreeMap<JobId, watch::Sender<u64>>,
}

impl Desk {
    /// A place for the answer to a submission.
    pub fn submit(&self) -> (u64, oneshot::Receiver<Submitted>) {
        let (sender, receiver) = oneshot::channel();
        let mut desk = self.lock();
        let token = desk.token();
        desk.submits.insert(token, sender);
        (token, receiver)
    }

    /// A place for the answer to a stop.
    pub fn stop(&self) -> (u64, oneshot::Receiver<Result<(), StopRefusal>>) {
        let (sender, receiver) = oneshot::channel();
        let mut desk = self.lock();
        let token = desk.token();
        desk.stops.insert(token, sender);
        (token, receiver)
    }

    /// Changes whenever the job does; the value is its newest sequence number.
    pub fn watch(&self, job: JobId) -> watch::Receiver<u64> {
        let mut desk = self.lock();
        desk.watched.retain(|_, sender| sender.receiver_count() > 0);
        desk.watched.entry(job).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    fn changed(&self, job: JobId, seq: u64) {
        if let Some(sender) = self.lock().watched.get(&job) {
            sender.send_replace(seq);
        }
    }

    fn submitted(&self, token: u64, answer: Submitted) {
        if let Some(sender) = self.lock().submits.remove(&token) {
            // A client that went away finds its job by its idempotency token.
            let _ = sender.send(answer);
        }
    }

    fn stopped(&self, token: u64, answer: Result<(), StopRefusal>) {
        if let Some(sender) = self.lock().stops.remove(&token) {
            let _ = sender.send(answer);
        }
    }

    /// The answer to a request is not given: whether it was done is not known yet. Who waits finds the
    /// sender gone.
    fn unanswered(&self, token: u64) {
        let mut desk = self.lock();
        desk.submits.remove(&token);
        desk.stops.remove(&token);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, DeskInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeskInner {
    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

/// Performs owner effects.
pub struct OwnerEffects {
    /// For messages.
    pub net: Net,
    /// For results.
    pub content: Content,
    /// For answers.
    pub desk: Arc<Desk>,
    /// Told of jobs' states, for lists.
    pub index: Arc<crate::index::Index>,
    /// The way back.
    pub owner: Handle<Owner>,
    /// Counts what runs.
    pub tracker: TaskTracker,
    /// The node stops.
    pub cancel: CancellationToken,
}

impl Perform<Owner> for OwnerEffects {
    fn perform(&mut self, effects: Vec<Effect>) {
        let mut holds = Vec::new();
        for effect in effects {
            match effect {
                Effect::Hold(hold) => holds.push(*hold),
                other => self.one(other),
            }
        }
        if !holds.is_empty() {
            self.hold(holds);
        }
    }

    async fn failed(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Submitted { token, .. }
            | Effect::Refused { token, .. }
            | Effect::StopAnswered { token, .. } = effect
            {
                self.desk.unanswered(token);
            }
        }
        self.net.forget(Role::Owner);
    }

    /// A job whose transaction failed may be on disk all the same: then it runs, and is to be seen.
    fn revived(&mut self, machine: &Owner) {
        for summary in machine.jobs() {
            let known = self.index.get(summary.id).map(|line| line.summary.version);
            if known.is_none_or(|version| version < summary.version) {
                let view = machine.view(summary.id, Some(summary.version));
                let spec = view.and_then(|view| crate::view::spec(&view).ok());
                self.index.add(Line { summary, labels: spec.map(|spec| spec.labels).unwrap_or_default() });
            }
        }
        self.net.retell(Role::Owner);
    }
}

impl OwnerEffects {
    fn one(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(_) | Effect::Forget(_) | Effect::Hold(_) => {} // durable, or gathered above
            Effect::Send { to, message } => self.net.send(to, message),
            Effect::Announce { class, bytes } => self.net.announce(class, bytes),
            Effect::Submitted { token, job, version } => self.desk.submitted(token, Ok((job, version))),
            Effect::Refused { token, why } => self.desk.submitted(token, Err(why)),
            Effect::StopAnswered { token, result } => self.desk.stopped(token, result),
            Effect::Changed { job, version, state, message, seq } => {
                self.index.changed(job, version, state, message);
                self.desk.changed(job, seq);
            }
            Effect::Settled { job, version } => debug!(%job, version, "settled"),
            Effect::Watch { peer, live } => self.net.watch(peer, live, Role::Owner),
            Effect::Dial { peer, addresses } => self.net.dial(peer, &addresses),
            Effect::Penalise { peer, why } => self.net.penalise(peer, why),
        }
    }

    /// Small results of all holds of a batch are stored in one go; the others are fetched.
    fn hold(&self, holds: Vec<Hold>) {
        let (content, owner, cancel) = (self.content.clone(), self.owner.clone(), self.cancel.clone());
        self.tracker.spawn(async move {
            tokio::select! {
                () = hold_all(&content, &owner, holds) => {}
                // After a restart the machine asks again.
                () = cancel.cancelled() => {}
            }
        });
    }
}

async fn hold_all(content: &Content, owner: &Handle<Owner>, holds: Vec<Hold>) {
    for hold in holds {
        hold_one(content, owner, hold).await;
    }
}

async fn hold_one(content: &Content, owner: &Handle<Owner>, hold: Hold) {
    let (job, version, from) = (hold.job, hold.version, hold.from);
    let given: HashSet<Cid> = hold.blocks.iter().map(|block| block.cid).collect();
    let (here, away): (Vec<HoldItem>, Vec<HoldItem>) =
        hold.items.into_iter().partition(|item| given.contains(&item.result.cid));
    if !here.is_empty() {
        let roots: Vec<Cid> = here.iter().map(|item| item.result.cid).collect();
        let blocks = hold.blocks.iter().map(stored_block).collect();
        let held_all = content.hold_blocks(job, blocks, &roots).await.map_err(|error| error.to_string());
        if roots.len() <= PROVIDED {
            roots.iter().for_each(|root| content.provide(*root));
        }
        let results = here.into_iter().map(|item| held(&item, held_all.clone())).collect();
        report(owner, job, version, results).await;
    }
    let fetches = away.into_iter().map(|item| async move {
        let result = fetch(content, job, &item, from).await.map_err(|error| error.to_string());
        held(&item, result)
    });
    let mut fetched = futures::stream::iter(fetches).buffer_unordered(HOLDS_AT_ONCE);
    while let Some(held) = fetched.next().await {
        report(owner, job, version, vec![held]).await;
    }
}

fn stored_block(block: &Block) -> storage::Block {
    storage::Block { cid: block.cid, data: bytes::Bytes::copy_from_slice(&block.bytes) }
}

fn held(item: &HoldItem, result: Result<(), String>) -> Held {
    Held { partition: item.partition, attempt: item.attempt, result }
}

async fn report(owner: &Handle<Owner>, job: JobId, version: u32, results: Vec<Held>) {
    if results.is_empty() {
        return;
    }
    if owner.input(Input::Held { job, version, results }).await.is_err() {
        debug!("the node stops; the results are asked for again");
    }
}

/// Brings a result that did not travel along. What may pass (a peer that is just coming back) is tried
/// again a few times.
async fn fetch(content: &Content, job: JobId, item: &HoldItem, from: PeerId) -> Result<(), FetchFault> {
    let mut attempt = 1;
    loop {
        match content.hold(job, item.result.cid, &[from]).await {
            Ok(()) => return Ok(()),
            Err(error) if attempt >= HOLD_ATTEMPTS => return Err(error),
            Err(error) => debug!(%job, cid = %item.result.cid, %error, "result not here yet"),
        }
        attempt += 1;
        tokio::time::sleep(HOLD_AGAIN).await;
    }
}
