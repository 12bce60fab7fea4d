//! One DAG on its way into the store: what the sink asks for is wanted, what arrives is handed to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::actor::{Command, Event};
use super::client::{Arrived, Digest, SessionId, Wanted};
use super::{ExchangeError, FetchRequest, Fetched, Inner, MAX_TRANSFERS, Session, lock, server};
use crate::block;
use crate::fetch::{Accepted, FetchError, FetchLimits, Progress, Sink, UNKNOWN_SIZE_BYTES, Want};

/// Bytes of one transfer that are asked for or not yet written: two full windows of a peer.
const TRANSFER_BYTES: u64 = 32 << 20;

/// The same for all transfers together; each has its share, and never less than [`MIN_TRANSFER_BYTES`].
const TOTAL_BYTES: u64 = 128 << 20;

/// One largest block.
const MIN_TRANSFER_BYTES: u64 = 2 << 20;

/// Blocks of one transfer that are asked for or not yet written.
const TRANSFER_BLOCKS: usize = 4096;

/// Blocks of one transfer that are written at once. Writes to one file take turns in the kernel: a
/// second one hides the hand-over between threads, more only spin on the file's lock.
const WRITTEN_AT_ONCE: usize = 2;

type Outcome = Result<Fetched, ExchangeError>;

/// A transfer under way, kept alive by the fetches that wait for it.
pub(super) struct Transfer {
    pub session: SessionId,
    limits: FetchLimits,
    progress: watch::Receiver<Progress>,
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Fetches what a request names, alone or together with others.
pub(super) async fn fetch(inner: &Arc<Inner>, mut request: FetchRequest) -> Outcome {
    let (root, deadline) = (request.root, request.deadline);
    let mut progress = Progress::default();
    let fetching = async {
        let root = super::reader::resolve(inner, &request).await?;
        let out = request.progress.take();
        loop {
            let transfer = join(inner, root, &request);
            let outcome = follow(&transfer, out.as_ref(), &mut progress).await;
            // Whoever joined one that was allowed less tries by itself, once that has ended.
            if !(is_refused(&outcome) && transfer.limits.allow_less_than(&request.limits)) {
                return within(&request.limits, outcome?);
            }
        }
    };
    match deadline {
        None => fetching.await,
        Some(limit) => match tokio::time::timeout(limit, fetching).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ExchangeError::Deadline { root, limit, progress }),
        },
    }
}

fn is_refused(outcome: &Outcome) -> bool {
    let Err(ExchangeError::Content { source, .. }) = outcome else { return false };
    matches!(**source, FetchError::Limit { .. })
}

/// Refuses what is here by a transfer that was allowed more than this fetch is.
fn within(limits: &FetchLimits, fetched: Fetched) -> Outcome {
    let (root, bytes, limit) = (fetched.root, fetched.progress.bytes, limits.max_bytes);
    if bytes <= limit {
        return Ok(fetched);
    }
    let what = format!("it has {bytes} bytes where {limit} are allowed");
    Err(ExchangeError::Content { root, source: Arc::new(FetchError::Limit { root, what }) })
}

/// Joins the transfer of a root, or starts it.
fn join(inner: &Arc<Inner>, root: Cid, request: &FetchRequest) -> Arc<Transfer> {
    let mut transfers = lock(&inner.transfers);
    if let Some(transfer) = transfers.get(&root).and_then(Weak::upgrade)
        && transfer.outcome.borrow().is_none()
    {
        let peers = request.hints.clone();
        inner.tell(Command::Client(super::client::Input::Hinted { session: transfer.session, peers }));
        return transfer;
    }
    transfers.retain(|_, transfer| transfer.strong_count() > 0);
    let transfer = Arc::new(start(inner, root, request));
    transfers.insert(root, Arc::downgrade(&transfer));
    transfer
}

fn start(inner: &Arc<Inner>, root: Cid, request: &FetchRequest) -> Transfer {
    let give_up_after = request.give_up_after.unwrap_or(inner.config.give_up_after);
    let session = inner.open_session(request.hints.clone(), give_up_after);
    let id = session.id;
    let (progress_out, progress) = watch::channel(Progress::default());
    let (outcome_out, outcome) = watch::channel(None);
    let (inner, limits) = (Arc::clone(inner), request.limits);
    let task = tokio::spawn(async move {
        let outcome = run(&inner, root, limits, session, give_up_after, &progress_out).await;
        if outcome.is_ok() {
            inner.tell(Command::Server(server::Input::Stored));
        }
        outcome_out.send_replace(Some(outcome));
    });
    Transfer { session: id, limits, progress, outcome, task: task.abort_handle() }
}

/// Waits for the end of a transfer and passes its progress on.
async fn follow(transfer: &Transfer, out: Option<&watch::Sender<Progress>>, last: &mut Progress) -> Outcome {
    let (mut progress, mut outcome) = (transfer.progress.clone(), transfer.outcome.clone());
    let ended = outcome.wait_for(Option::is_some);
    let mut ended = std::pin::pin!(ended);
    loop {
        tokio::select! {
            biased;
            ended = &mut ended => {
                let outcome = ended.map_err(|_| ExchangeError::Stopped)?.clone();
                if let (Some(out), Some(Ok(fetched))) = (out, &outcome) {
                    out.send_replace(fetched.progress);
                }
                return outcome.unwrap_or(Err(ExchangeError::Stopped));
            }
            Ok(()) = progress.changed() => {
                *last = *progress.borrow_and_update();
                if let Some(out) = out {
                    out.send_replace(*last);
                }
            }
        }
    }
}

async fn run(
    inner: &Inner,
    root: Cid,
    limits: FetchLimits,
    session: Session,
    give_up_after: Duration,
    progress: &watch::Sender<Progress>,
) -> Outcome {
    let turn = inner.turns.acquire().await.map_err(|_| ExchangeError::Stopped)?;
    let content = |source| ExchangeError::Content { root, source: Arc::new(source) };
    let sink = inner.contents.sink(root, limits).await.map_err(content)?;
    let share = || share(MAX_TRANSFERS - inner.turns.available_permits());
    Flow::new(&*sink, session, progress).run(share).await.map_err(|stopped| match stopped {
        Stopped::Nobody { cid, asked } => ExchangeError::NoPeer { root, cid, asked, waited: give_up_after },
        Stopped::Content(source) => content(*source),
        Stopped::Exchange => ExchangeError::Stopped,
    })?;
    sink.finish().await.map_err(content)?;
    drop(turn);
    Ok(Fetched { root, progress: sink.progress() })
}

/// What one of `active` transfers may have on its way.
fn share(active: usize) -> u64 {
    (TOTAL_BYTES / active.max(1) as u64).clamp(MIN_TRANSFER_BYTES, TRANSFER_BYTES)
}

/// Why blocks no longer flow.
enum Stopped {
    Nobody { cid: Cid, asked: usize },
    Content(Box<FetchError>),
    Exchange,
}

/// Blocks from the session into the sink.
struct Flow<'a> {
    sink: &'a dyn Sink,
    session: Session,
    progress: &'a watch::Sender<Progress>,
    /// Asked for and not here, by digest: one block may be wanted under two names.
    wanted: BTreeMap<Digest, Vec<Want>>,
    asking: Option<BoxFuture<'a, Result<Vec<Want>, FetchError>>>,
    /// Here, and to be written.
    arrived: VecDeque<(Want, Bytes)>,
    writing: FuturesUnordered<BoxFuture<'a, (Want, Result<Accepted, FetchError>)>>,
    /// Asked for or not yet written.
    bytes: u64,
    blocks: usize,
    /// The sink had no more to ask for, and nothing was written since that may change that.
    exhausted: bool,
    /// Something was written since the sink was asked that may change what it answers.
    grown: bool,
    /// How much the sink was asked for.
    room: (usize, u64),
}

impl<'a> Flow<'a> {
    fn new(sink: &'a dyn Sink, session: Session, progress: &'a watch::Sender<Progress>) -> Flow<'a> {
        Flow {
            sink,
            session,
            progress,
            wanted: BTreeMap::new(),
            asking: None,
            arrived: VecDeque::new(),
            writing: FuturesUnordered::new(),
            bytes: 0,
            blocks: 0,
            exhausted: false,
            grown: false,
            room: (0, 0),
        }
    }

    /// Until everything is here. `share` is how many bytes may be on their way.
    async fn run(mut self, share: impl Fn() -> u64) -> Result<(), Stopped> {
        loop {
            let progress = self.sink.progress();
            if *self.progress.borrow() != progress {
                self.progress.send_replace(progress);
            }
            if progress.complete && self.writing.is_empty() {
                return Ok(());
            }
            self.ask_if_room(share());
            if self.asking.is_none() && self.blocks == 0 {
                return Ok(()); // nothing left to do: the sink will say what it lacks
            }
            tokio::select! {
                Some(wants) = async { Some(self.asking.as_mut()?.await) } => {
                    self.asking = None;
                    self.want(wants.map_err(content)?);
                }
                Some((want, accepted)) = self.writing.next() => self.written(want, accepted)?,
                event = self.session.events.recv() => match event {
                    Some(Event::Block(block)) => self.write(block),
                    Some(Event::Nobody { cid, asked }) => return Err(Stopped::Nobody { cid, asked }),
                    None => return Err(Stopped::Exchange),
                },
            }
        }
    }

    /// Asks the sink what to want next, not for every block but when a good part of the room is free.
    fn ask_if_room(&mut self, share: u64) {
        let free = (TRANSFER_BLOCKS.saturating_sub(self.blocks), share.saturating_sub(self.bytes));
        let worth = free.0 >= TRANSFER_BLOCKS / 4 && free.1 >= share / 4;
        if self.asking.is_some() || self.exhausted || (self.blocks > 0 && !worth) {
            return;
        }
        self.room = (free.0.max(1), free.1.max(1));
        self.grown = false;
        self.asking = Some(self.sink.next_wants(self.room.0, self.room.1).boxed());
    }

    fn want(&mut self, wants: Vec<Want>) {
        let bytes: u64 = wants.iter().map(size).sum();
        // Less than there was room for is all there is, unless a node came while the sink looked.
        self.exhausted = !self.grown && wants.len() < self.room.0 && bytes + UNKNOWN_SIZE_BYTES < self.room.1;
        self.bytes += bytes;
        self.blocks += wants.len();
        if wants.is_empty() {
            return;
        }
        for want in &wants {
            self.wanted.entry(*want.cid.hash()).or_default().push(*want);
        }
        let wanted = wants.iter().map(|want| Wanted { cid: want.cid, size_bytes: size(want) }).collect();
        self.session.want(wanted, self.exhausted);
    }

    fn write(&mut self, block: Arrived) {
        for want in self.wanted.remove(&block.digest).unwrap_or_default() {
            // A node may be kept for long, and must not keep the message that it came in.
            let node = want.cid.codec() != block::RAW;
            let data = if node { Bytes::copy_from_slice(&block.data) } else { block.data.clone() };
            self.arrived.push_back((want, data));
        }
        self.write_next();
    }

    fn write_next(&mut self) {
        let sink = self.sink;
        while self.writing.len() < WRITTEN_AT_ONCE
            && let Some((want, data)) = self.arrived.pop_front()
        {
            self.writing.push(async move { (want, sink.accept_hashed(want.cid, data).await) }.boxed());
        }
    }

    fn written(&mut self, want: Want, accepted: Result<Accepted, FetchError>) -> Result<(), Stopped> {
        accepted.map_err(content)?;
        self.write_next();
        self.bytes -= size(&want);
        self.blocks -= 1;
        // A node has children to ask for, and a sink that held nodes back goes on as leaves are written.
        if want.cid.codec() != block::RAW || self.blocks <= TRANSFER_BLOCKS / 64 {
            self.exhausted = false;
            self.grown = true;
        }
        Ok(())
    }
}

fn content(error: FetchError) -> Stopped {
    Stopped::Content(Box::new(error))
}

/// What a want counts as. A block is never larger than the protocol allows, whatever its parent says.
fn size(want: &Want) -> u64 {
    want.size_bytes.unwrap_or(UNKNOWN_SIZE_BYTES).clamp(1, block::MAX_BLOCK_BYTES as u64)
}
