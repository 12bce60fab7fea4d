//! Reading through: blocks from the store where they are here, and else from peers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::actor::{Command, Event};
use super::client::{self, Arrived, Digest, SessionId, Wanted};
use super::{ExchangeError, FetchRequest, Inner, Peer, Session, lock};
use crate::block::{self, BlockError, Blocks};
use crate::read;

/// Blocks that are fetched ahead and not asked for yet: at most 32 MiB for each reader.
const MAX_AHEAD: usize = 16;

/// What a block is expected to be when nothing is said about its size.
const GUESSED_BYTES: u64 = 256 << 10;

/// A source of blocks: this store, and the peers where it has gaps. Nothing is stored. Clones are the same reader.
#[derive(Clone)]
pub struct Reader {
    open: Arc<Open>,
}

/// A reader's session, until its last clone is dropped.
struct Open {
    inner: Arc<Inner>,
    session: SessionId,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

#[derive(Default)]
struct State {
    /// Who waits for a block; nobody, when it is fetched ahead.
    waiting: BTreeMap<Digest, Waiting>,
    /// Blocks that came ahead of their time, oldest first.
    ahead: VecDeque<(Digest, Bytes)>,
}

struct Waiting {
    callers: Vec<oneshot::Sender<Bytes>>,
    ahead: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    pub(super) fn new(inner: Arc<Inner>, hints: Vec<Peer>) -> Reader {
        let session = inner.open_session(hints, inner.config.give_up_after);
        let (id, state) = (session.id, Arc::new(Mutex::new(State::default())));
        let task = tokio::spawn(receive(session, Arc::clone(&state))).abort_handle();
        Reader { open: Arc::new(Open { inner, session: id, state, task }) }
    }
}

impl Open {
    fn want(&self, cids: &[Cid]) {
        let wants = cids.iter().map(|cid| Wanted { cid: *cid, size_bytes: GUESSED_BYTES }).collect();
        self.inner.tell(Command::Client(client::Input::Wanted { session: self.session, wants, last: true }));
    }

    /// A block that came ahead, or a place in the line for it, and whether it has to be asked for.
    fn line_up(&self, cid: &Cid) -> Result<Bytes, (oneshot::Receiver<Bytes>, bool)> {
        let mut state = lock(&self.state);
        if let Some(at) = state.ahead.iter().position(|(digest, _)| digest == cid.hash())
            && let Some((_, data)) = state.ahead.remove(at)
        {
            return Ok(data);
        }
        let (caller, answer) = oneshot::channel();
        let fresh = !state.waiting.contains_key(cid.hash());
        let waiting = state.waiting.entry(*cid.hash());
        let waiting = waiting.or_insert_with(|| Waiting { callers: Vec::new(), ahead: false });
        waiting.callers.retain(|caller| !caller.is_closed());
        waiting.callers.push(caller);
        Err((answer, fresh))
    }
}

#[async_trait]
impl Blocks for Reader {
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockError> {
        block::check_name(cid)?;
        if let Some(data) = block::inline(cid) {
            return Ok(data);
        }
        if let Some(data) = self.open.inner.contents.local_block(cid).await? {
            return Ok(data);
        }
        let (answer, fresh) = match self.open.line_up(cid) {
            Ok(data) => return Ok(data),
            Err(line) => line,
        };
        let mut place = Place { reader: &self.open, cid, answer };
        if fresh {
            self.open.want(&[*cid]);
        }
        (&mut place.answer).await.map_err(|_| BlockError::NotFound(*cid))
    }

    fn soon(&self, cids: &[Cid]) {
        let missing = |cid: &&Cid| {
            block::check_name(cid).is_ok()
                && block::inline(cid).is_none()
                && matches!(self.open.inner.contents.block_size(cid), Ok(None))
        };
        let cids = &cids[..cids.len().min(MAX_AHEAD)];
        let cids: Vec<Cid> = cids.iter().filter(missing).copied().collect();
        let fresh = lock(&self.open.state).look_ahead(&cids);
        if !fresh.is_empty() {
            self.open.want(&fresh);
        }
    }
}

impl State {
    /// Makes a place for each of these; those that are new.
    fn look_ahead(&mut self, cids: &[Cid]) -> Vec<Cid> {
        let mut room =
            MAX_AHEAD.saturating_sub(self.waiting.values().filter(|waiting| waiting.ahead).count());
        if self.ahead.len() >= room {
            // What was fetched ahead and is no longer in sight makes way.
            self.ahead.retain(|(digest, _)| cids.iter().any(|cid| cid.hash() == digest));
        }
        room = room.saturating_sub(self.ahead.len());
        let here = |cid: &&Cid| self.ahead.iter().any(|(digest, _)| digest == cid.hash());
        let known = |cid: &&Cid| here(cid) || self.waiting.contains_key(cid.hash());
        let fresh: Vec<Cid> = cids.iter().filter(|cid| !known(cid)).take(room).copied().collect();
        for cid in &fresh {
            self.waiting.insert(*cid.hash(), Waiting { callers: Vec::new(), ahead: true });
        }
        fresh
    }
}

/// A caller's place in the line: when the last one leaves it, the block is no longer wanted.
struct Place<'a> {
    reader: &'a Open,
    cid: &'a Cid,
    answer: oneshot::Receiver<Bytes>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let mut state = lock(&self.reader.state);
        let Some(waiting) = state.waiting.get_mut(self.cid.hash()) else { return };
        waiting.callers.retain(|caller| !caller.is_closed());
        if waiting.callers.is_empty() && !waiting.ahead {
            state.waiting.remove(self.cid.hash());
            let unwanted = client::Input::Unwanted { session: self.reader.session, cid: *self.cid };
            self.reader.inner.tell(Command::Client(unwanted));
        }
    }
}

/// Hands what comes to who waits for it.
async fn receive(mut session: Session, state: Arc<Mutex<State>>) {
    while let Some(event) = session.events.recv().await {
        match event {
            Event::Block(block) => deliver(&mut lock(&state), block),
            Event::Nobody { cid, .. } => {
                // Dropping the callers' senders tells them.
                lock(&state).waiting.remove(cid.hash());
                let unwanted = client::Input::Unwanted { session: session.id, cid };
                let _ = session.commands.send(Command::Client(unwanted));
            }
        }
    }
}

fn deliver(state: &mut State, block: Arrived) {
    let Some(waiting) = state.waiting.remove(&block.digest) else { return };
    // A reader may keep a block for long: it must not keep the message that it came in.
    let data = Bytes::copy_from_slice(&block.data);
    if waiting.callers.is_empty() {
        state.ahead.push_back((block.digest, data));
        return;
    }
    for caller in waiting.callers {
        let _ = caller.send(data.clone()); // an error: it no longer waits
    }
}

/// What the path of a request leads to: its root, when there is none.
pub(super) async fn resolve(inner: &Arc<Inner>, request: &FetchRequest) -> Result<Cid, ExchangeError> {
    if request.path.is_empty() {
        return Ok(request.root);
    }
    let reader = Reader::new(Arc::clone(inner), request.hints.clone());
    read::resolve(&reader, request.root, &request.path).await.map_err(|source| ExchangeError::Path {
        root: request.root,
        path: request.path.clone(),
        source: Arc::new(source),
    })
}
