//! The async side of the owner: performs what the owner machine decides, and tells who waits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use gossip::message::Block;
use gossip::owner::{Effect, Held, Hold, HoldItem, Input, Owner, Refusal, StopRefusal};
use job::{Cid, JobId};
use storage::records::Batch;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::content::{Content, FEW, FetchFault, Keeper, Staged};
use crate::index::{Index, Line};
use crate::net::{Net, Role};
use crate::shell::{Handle, Perform};

/// Between attempts to bring a result here: at first, and at most.
const HOLD_AGAIN: Duration = Duration::from_secs(1);
const HOLD_AGAIN_MOST: Duration = Duration::from_secs(5);
/// How long a result is waited for whose worker does not give it: as long as a lost lease takes to be given up (DESIGN
/// section 4: a lease and then unknown).
const HOLD_PATIENCE: Duration = Duration::from_secs(90);
/// More than any worker lets one execution print.
const MOST_PRINTED: u64 = 1 << 30;
/// Attempts for the result of a job that has ended.
const HOLD_ATTEMPTS: u32 = 3;
/// Results that are fetched at once.
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
    /// Results in the transaction that is being written.
    pub staged: Vec<Staged>,
    /// For answers.
    pub desk: Arc<Desk>,
    /// Told of jobs' states, for lists.
    pub index: Arc<Index>,
    /// The way back.
    pub owner: Handle<Owner>,
    /// Counts what runs.
    pub tracker: TaskTracker,
    /// The node stops.
    pub cancel: CancellationToken,
}

impl Perform<Owner> for OwnerEffects {
    /// A few small results become part of the transaction that commits their partitions.
    fn absorb(&mut self, effects: &mut Vec<Effect>, batch: &mut Batch) -> Vec<Input> {
        let items = |effect: &Effect| if let Effect::Hold(hold) = effect { hold.items.len() } else { 0 };
        if effects.iter().map(items).sum::<usize>() + self.staged.len() > FEW {
            return Vec::new();
        }
        let mut inputs = Vec::new();
        effects.retain(|effect| {
            let Effect::Hold(hold) = effect else { return true };
            let roots: Vec<Cid> = hold.items.iter().map(|item| item.result.cid).collect();
            let keeper = Keeper::Job(hold.job, hold.version);
            let Some(staged) = self.content.stage(keeper, &roots, &hold.blocks, batch) else { return true };
            self.staged.push(staged);
            let results = hold.items.iter().map(|item| held(item, Ok(()))).collect();
            inputs.push(Input::Held { job: hold.job, version: hold.version, results });
            false
        });
        inputs
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        self.staged.drain(..).for_each(|staged| self.content.park(staged));
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
        self.staged.clear();
        self.net.forget(Role::Owner);
    }

    /// A job whose transaction failed may be on disk all the same: then it runs, and is to be seen.
    fn revived(&mut self, machine: &Owner) {
        self.content.find_parked();
        for summary in machine.jobs() {
            let known = self.index.get(summary.id).map(|line| line.summary.version);
            if known.is_none_or(|version| version < summary.version) {
                let job = machine.reader(summary.id, Some(summary.version));
                let spec = job.and_then(|job| crate::read::spec(&job.head()).ok());
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
            Effect::ForgetJob { job, version } => {
                debug!(%job, version, "forgotten");
                self.index.forget(job, version);
            }
            Effect::Watch { peer, live } => self.net.watch(peer, live, Role::Owner),
            Effect::Dial { peer, addresses } => self.net.dial(peer, &addresses),
            Effect::Penalise { peer, why } => self.net.penalise(peer, why),
        }
    }

    /// Small results of all holds of a batch are stored in one go; the others are fetched.
    fn hold(&self, holds: Vec<Hold>) {
        let (content, owner, cancel) = (self.content.clone(), self.owner.clone(), self.cancel.clone());
        let index = Arc::clone(&self.index);
        self.tracker.spawn(async move {
            tokio::select! {
                () = hold_all(&content, &index, &owner, holds) => {}
                // After a restart the machine asks again.
                () = cancel.cancelled() => {}
            }
        });
    }
}

/// What came along is stored first: it waits for no other worker's link.
async fn hold_all(content: &Content, index: &Index, owner: &Handle<Owner>, holds: Vec<Hold>) {
    let mut away = Vec::new();
    for hold in holds {
        let (job, version, from, disk) = (hold.job, hold.version, hold.from, hold.disk);
        let rest = hold_given(content, index, owner, hold).await;
        away.extend(rest.into_iter().map(|item| (job, version, from, disk, item)));
    }
    let fetches = away.into_iter().map(|(job, version, from, disk, item)| async move {
        let hints = [from];
        let most = content.result_limit(item.result.size, most_files(disk));
        let keeper = Keeper::Job(job, version);
        let result = patiently(index, job, || content.hold(keeper, item.result.cid, &hints, most)).await;
        (job, version, held(&item, result.map_err(|error| error.to_string())))
    });
    let mut fetched = futures::stream::iter(fetches).buffer_unordered(HOLDS_AT_ONCE);
    while let Some((job, version, held)) = fetched.next().await {
        report(owner, job, version, vec![held]).await;
    }
}

/// Stores the results whose blocks came with their receipts; gives the others back.
async fn hold_given(content: &Content, index: &Index, owner: &Handle<Owner>, hold: Hold) -> Vec<HoldItem> {
    let (job, version) = (hold.job, hold.version);
    let given: HashSet<Cid> = hold.blocks.iter().map(|block| block.cid).collect();
    let (here, mut away): (Vec<HoldItem>, Vec<HoldItem>) =
        hold.items.into_iter().partition(|item| given.contains(&item.result.cid));
    if here.is_empty() {
        return away;
    }
    let roots: Vec<Cid> = here.iter().map(|item| item.result.cid).collect();
    let blocks: Vec<storage::Block> = hold.blocks.iter().map(stored_block).collect();
    let keeper = Keeper::Job(job, version);
    let stored = patiently(index, job, || content.hold_blocks(keeper, blocks.clone(), &roots)).await;
    // Of these only a part travelled along: they are whole once the rest was fetched.
    let incomplete = stored.as_deref().unwrap_or_default();
    let (partly, here): (Vec<HoldItem>, Vec<HoldItem>) =
        here.into_iter().partition(|item| incomplete.contains(&item.result.cid));
    away.extend(partly);
    if roots.len() <= PROVIDED {
        roots.iter().for_each(|root| content.provide_result(*root));
    }
    let stored = stored.map(drop).map_err(|error| error.to_string());
    let results = here.into_iter().map(|item| held(&item, stored.clone())).collect();
    report(owner, job, version, results).await;
    away
}

/// Tries to bring a result here as long as its worker may be expected back, and while this node itself is at fault (a
/// full disk), without end. A job that has ended waits for no result: then a few tries are enough.
async fn patiently<T, F>(index: &Index, job: JobId, attempt: impl Fn() -> F) -> Result<T, FetchFault>
where
    F: Future<Output = Result<T, FetchFault>>,
{
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        tries += 1;
        let is_wanted = index.get(job).is_some_and(|line| !line.summary.state.is_terminal());
        let is_over = match error {
            _ if !is_wanted => tries >= HOLD_ATTEMPTS,
            FetchFault::Here(_) => false,
            FetchFault::NotFound(_) => began.elapsed() >= HOLD_PATIENCE,
            FetchFault::NoEntry(_) | FetchFault::Malformed(_) | FetchFault::TooLarge(_) => true,
        };
        if is_over {
            return Err(error);
        }
        debug!(%job, %error, "result not here yet");
        tokio::time::sleep(HOLD_AGAIN.saturating_mul(tries).min(HOLD_AGAIN_MOST)).await;
    }
}

/// Bytes that the files of one result may have: what the job reserves for them, and what it may print.
fn most_files(disk: u64) -> u64 {
    let outputs = if disk > 0 { disk } else { engines::Limits::default().output_bytes };
    outputs.saturating_add(MOST_PRINTED)
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
