//! The block exchange: brings content from peers and serves what is here, in Bitswap 1.2.0, with
//! peers of ours and with IPFS.
//!
//! What is decided is decided by two machines without clock or sockets: [`client`] says who is
//! asked for what, [`server`] who is sent what next. [`message`] is the wire form. Around them one
//! task owns the machines, one task for each peer sends, one for each incoming stream receives;
//! blocks are hashed on other threads and written by a [`Sink`] where they belong.
//! Nothing on the way of a block waits for a timer.
//!
//! The exchange trusts no byte that it did not hash, keeps no peers and dials nobody by itself:
//! streams, connections and routing come from a [`Network`]. It does not decide what is kept, or
//! where; that is the store's, behind [`Contents`].
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use storage::exchange::*;
//! # async fn example(contents: Arc<dyn Contents>, network: Arc<dyn Network>, peer: Peer) -> Result<(), ExchangeError> {
//! let exchange = Exchange::start(contents, network, Config::default());
//! exchange.peer_connected(peer.clone()); // and so for every peer that comes, and goes
//! let root = "bafybeih373jk2nmwyzpnmzpqbypvdrpakdrmvohyq7tlfexrwntulfrb5e".parse().expect("a CID");
//! let fetched = exchange.fetch(FetchRequest::new(root).hints([peer])).await?;
//! println!("{} bytes", fetched.progress.bytes);
//! # Ok(())
//! # }
//! ```

mod actor;
pub mod client;
mod contents;
mod frame;
mod inbound;
pub mod message;
mod network;
mod outbox;
mod reader;
pub mod server;
mod transfer;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};

pub use self::network::{Agent, Network, Offence, Peer, PeerStream, Stream};
pub use self::outbox::PROTOCOL;
pub use self::reader::Reader;
use crate::block::{BlockError, Blocks, LocalBlocks};
use crate::fetch::{FetchError, FetchLimits, Progress, Sink};
use crate::read::ReadError;

use self::actor::{Actor, Command, Lines};
use self::client::SessionId;
use self::transfer::Transfer;

/// How long a fetch may stand still before it is said that no peer offers a block.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// Incoming streams of which a message may be read at once. Kubo opens one for every message; they
/// share the memory that messages may take, this bounds the tasks.
const MAX_STREAMS: usize = 16 * 1024;

/// DAGs that are brought in at the same time; others wait for their turn. Each has its share of
/// the memory for blocks on their way.
const MAX_TRANSFERS: usize = 64;

/// What the exchange serves from and brings content to: the store.
#[async_trait]
pub trait Contents: LocalBlocks {
    /// A place for the DAG below `root` to be written to, which goes on where a former one stopped.
    async fn sink(&self, root: Cid, limits: FetchLimits) -> Result<Arc<dyn Sink>, FetchError>;
}

/// Settings of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long a fetch may stand still, when its request does not say.
    pub give_up_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { give_up_after: GIVE_UP_AFTER }
    }
}

/// A fetch of content.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    root: Cid,
    path: String,
    hints: Vec<Peer>,
    limits: FetchLimits,
    deadline: Option<Duration>,
    give_up_after: Option<Duration>,
    progress: Option<watch::Sender<Progress>>,
}

impl FetchRequest {
    /// All blocks of the DAG below `root`.
    pub fn new(root: Cid) -> FetchRequest {
        FetchRequest {
            root,
            path: String::new(),
            hints: Vec::new(),
            limits: FetchLimits::default(),
            deadline: None,
            give_up_after: None,
            progress: None,
        }
    }

    /// Only what lies at this path below the root: the nodes on the way are read, not kept.
    #[must_use]
    pub fn path(mut self, path: &str) -> FetchRequest {
        self.path = path.trim_matches('/').to_owned();
        self
    }

    /// Peers that should have it: they are asked first.
    #[must_use]
    pub fn hints(mut self, hints: impl IntoIterator<Item = Peer>) -> FetchRequest {
        self.hints.extend(hints);
        self
    }

    /// How much there may be of it, here or not.
    #[must_use]
    pub fn limits(mut self, limits: FetchLimits) -> FetchRequest {
        self.limits = limits;
        self
    }

    /// How long it may take in all.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> FetchRequest {
        self.deadline = Some(deadline);
        self
    }

    /// How long it may stand still: from when the last peer that could be asked was ruled out, or
    /// the last byte came.
    #[must_use]
    pub fn give_up_after(mut self, span: Duration) -> FetchRequest {
        self.give_up_after = Some(span);
        self
    }

    /// Where to say how far it is.
    #[must_use]
    pub fn progress(mut self, progress: watch::Sender<Progress>) -> FetchRequest {
        self.progress = Some(progress);
        self
    }
}

/// Content that is here, durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// What was fetched: the root, or what its path led to.
    pub root: Cid,
    /// How much it is.
    pub progress: Progress,
}

/// Why content was not brought in.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// A block of it could not be had.
    #[error("no peer offers {cid}, {} ({asked} peers asked, nothing came for {waited:?})", needed_for(.cid, .root))]
    NoPeer {
        /// What was fetched.
        root: Cid,
        /// The block.
        cid: Cid,
        /// How many peers were asked for the block.
        asked: usize,
        /// How long nothing came.
        waited: Duration,
    },
    /// It took too long.
    #[error("{root} was not here after {limit:?}, with {} bytes of it fetched", .progress.fetched_bytes)]
    Deadline {
        /// What was fetched.
        root: Cid,
        /// How long it was allowed to take.
        limit: Duration,
        /// How far it was.
        progress: Progress,
    },
    /// The store could not take it, or it is not sound.
    #[error("{root} could not be fetched")]
    Content {
        /// What was fetched.
        root: Cid,
        /// What the store says.
        #[source]
        source: Arc<FetchError>,
    },
    /// The path leads nowhere, or a node on its way could not be had.
    #[error("the path {path:?} below {root} could not be followed")]
    Path {
        /// Where the path begins.
        root: Cid,
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: Arc<ReadError>,
    },
    /// The exchange has ended.
    #[error("the exchange has stopped")]
    Stopped,
}

fn needed_for(cid: &Cid, root: &Cid) -> String {
    if cid == root { "the root".into() } else { format!("which {root} needs") }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of asking.
    pub client: client::ClientCounters,
    /// Of serving.
    pub server: server::ServerCounters,
}

/// A handle on the exchange; cheap to clone. The exchange ends when the last is dropped.
#[derive(Clone)]
pub struct Exchange {
    inner: Arc<Inner>,
}

struct Inner {
    contents: Arc<dyn Contents>,
    network: Arc<dyn Network>,
    config: Config,
    runtime: Handle,
    commands: mpsc::UnboundedSender<Command>,
    inbox: actor::Inbox,
    lines: Arc<Lines>,
    counters: Arc<Mutex<Counters>>,
    next_session: AtomicU64,
    /// Incoming streams that may still be opened.
    streams: Arc<Semaphore>,
    /// Transfers that may still be started.
    turns: Arc<Semaphore>,
    /// Transfers under way, by root, so that fetches of the same share one.
    transfers: Mutex<BTreeMap<Cid, Weak<Transfer>>>,
}

impl Exchange {
    /// Starts the exchange on this runtime.
    pub fn start(contents: Arc<dyn Contents>, network: Arc<dyn Network>, config: Config) -> Exchange {
        let (commands, commands_in) = mpsc::unbounded_channel();
        let (inbox, inbox_in) = mpsc::channel(actor::INBOX_CAPACITY);
        let (lines, counters) = (Arc::new(Lines::new()), Arc::default());
        let local: Arc<dyn LocalBlocks> = Arc::clone(&contents) as _;
        let weak = commands.downgrade();
        let actor = Actor::new(local, Arc::clone(&network), Arc::clone(&lines), Arc::clone(&counters), weak);
        tokio::spawn(actor.run(commands_in, inbox_in));
        let exchange = Exchange {
            inner: Arc::new(Inner {
                contents,
                config,
                runtime: Handle::current(),
                commands,
                inbox,
                lines,
                counters,
                next_session: AtomicU64::new(0),
                streams: Arc::new(Semaphore::new(MAX_STREAMS)),
                turns: Arc::new(Semaphore::new(MAX_TRANSFERS)),
                transfers: Mutex::default(),
                network,
            }),
        };
        exchange.inner.network.connected().into_iter().for_each(|peer| exchange.peer_connected(peer));
        exchange
    }

    /// A peer is connected. Say it again when its agent name becomes known.
    pub fn peer_connected(&self, peer: Peer) {
        self.inner.tell(Command::Connected(peer));
    }

    /// The last connection to a peer is gone.
    pub fn peer_disconnected(&self, peer: Peer) {
        self.inner.tell(Command::Disconnected(peer));
    }

    /// Takes over a stream that a peer opened for [`PROTOCOL`]. Never waits; may be called from any thread.
    pub fn inbound(&self, peer: Peer, stream: PeerStream) {
        let Ok(permit) = Arc::clone(&self.inner.streams).try_acquire_owned() else {
            tracing::warn!(?peer, "too many streams: one is refused");
            return;
        };
        let (network, lines) = (Arc::clone(&self.inner.network), Arc::clone(&self.inner.lines));
        let reading = inbound::read(network, peer, lines, self.inner.inbox.clone(), stream);
        self.inner.runtime.spawn(async move {
            reading.await;
            drop(permit);
        });
    }

    /// Content came into the store by another way than a fetch: peers that wait for it are served.
    pub fn content_added(&self) {
        self.inner.tell(Command::Server(server::Input::Stored));
    }

    /// Brings content in; it is durable at return. Fetches of the same root share one transfer.
    ///
    /// Dropping the future gives it up, unless another fetch waits for the same root. What was
    /// written stays, and a later fetch goes on from there.
    pub async fn fetch(&self, request: FetchRequest) -> Result<Fetched, ExchangeError> {
        transfer::fetch(&self.inner, request).await
    }

    /// Tells a fetch under way of peers that should have its content. Nothing happens when there is none.
    pub fn add_hints(&self, root: &Cid, peers: Vec<Peer>) {
        if let Some(transfer) = self.inner.transfer(root) {
            self.inner.tell(Command::Client(client::Input::Hinted { session: transfer.session, peers }));
        }
    }

    /// One block, from here or from a peer. It is not stored.
    ///
    /// Dropping the future gives it up.
    pub async fn get_block(
        &self,
        cid: &Cid,
        hints: impl IntoIterator<Item = Peer>,
    ) -> Result<Bytes, BlockError> {
        self.reader(hints).block(cid).await
    }

    /// Reads blocks from here where they are here, and else from peers, without storing them.
    pub fn reader(&self, hints: impl IntoIterator<Item = Peer>) -> Reader {
        Reader::new(Arc::clone(&self.inner), hints.into_iter().collect())
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        *lock(&self.inner.counters)
    }
}

impl Inner {
    fn tell(&self, command: Command) {
        // An error says that the task has ended: with the last handle, or by a panic that was logged.
        let _ = self.commands.send(command);
    }

    fn transfer(&self, root: &Cid) -> Option<Arc<Transfer>> {
        lock(&self.transfers).get(root).and_then(Weak::upgrade)
    }

    fn open_session(&self, hints: Vec<Peer>, give_up_after: Duration) -> Session {
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (events_out, events) = mpsc::unbounded_channel();
        self.tell(Command::Open { session: id, hints, give_up_after, events: events_out });
        Session { id, events, commands: self.commands.clone() }
    }
}

/// A session of the client, closed when dropped. Its events are bounded by what it asks for.
struct Session {
    id: SessionId,
    events: mpsc::UnboundedReceiver<actor::Event>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Session {
    fn want(&self, wants: Vec<client::Wanted>, last: bool) {
        let _ = self.commands.send(Command::Client(client::Input::Wanted { session: self.id, wants, last }));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Client(client::Input::Closed(self.id)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
