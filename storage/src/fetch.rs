//! Bringing a DAG into the store: what to ask for next, and where what arrives is put.
//!
//! The network's side (an exchange) and the disk's side meet in [`Sink`]. The sink walks the DAG depth first, skips
//! what is here, writes the leaves of large files straight at their offset in one flat file, keeps progress over
//! restarts, and holds a bounded window of nodes in memory. The exchange asks peers and hands blocks over:
//!
//! ```text
//! loop {
//!     wants = sink.next_wants(room.blocks, room.bytes)     // empty: nothing more until a block is accepted, or done
//!     ask peers for wants; for each block that arrives:
//!         tokio::spawn(sink.accept(cid, data))             // in parallel: hashes and writes on blocking threads
//!     if sink.progress().complete { break }
//! }
//! sink.finish().await                                      // durable from here
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;

/// A block to ask peers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Its name.
    pub cid: Cid,
    /// Its size where the parent says it (leaves of files), else `None`: count such a want as
    /// [`UNKNOWN_SIZE_BYTES`]. A parent may lie; the window is only a guess until the block is here.
    pub size_bytes: Option<u64>,
}

/// What a want of unknown size is counted as: most nodes of files and directories are smaller than this.
pub const UNKNOWN_SIZE_BYTES: u64 = 64 * 1024;

/// What became of a block that was handed to [`Sink::accept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It was asked for, it is right, it is written. There may be new wants now.
    Stored,
    /// Nobody waits for it: a duplicate, or never wanted. It was dropped unhashed.
    NotWanted,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Blocks of the DAG that are here, counting those found locally.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, how many bytes came in through [`Sink::accept`].
    pub fetched_bytes: u64,
    /// Bytes of the whole DAG as its root claims, once the root is here.
    pub total_bytes: Option<u64>,
    /// Everything is here: call [`Sink::finish`].
    pub complete: bool,
}

/// How much a fetch may bring in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// Bytes of all blocks together, and of every file as its node claims it.
    pub max_bytes: u64,
    /// Links followed, each time one is followed: bounds DAGs that repeat a node.
    pub max_links: u64,
    /// Links between the root and the deepest block.
    pub max_depth: u32,
}

impl FetchLimits {
    /// At most so many bytes.
    pub fn bytes(max_bytes: u64) -> Self {
        FetchLimits { max_bytes, ..FetchLimits::default() }
    }

    /// Whether something within the other limits may be beyond these.
    pub(crate) fn allow_less_than(&self, other: &FetchLimits) -> bool {
        self.max_bytes < other.max_bytes
            || self.max_links < other.max_links
            || self.max_depth < other.max_depth
    }
}

impl Default for FetchLimits {
    /// 1 TiB, 16 million links, 128 deep: more than an input or a result should ever be.
    fn default() -> Self {
        FetchLimits { max_bytes: 1 << 40, max_links: 1 << 24, max_depth: 128 }
    }
}

/// Why a fetch cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The bytes are not the block: the peer that sent them misbehaves. The want stays open.
    #[error("a peer sent a wrong block")]
    Block(#[from] crate::block::BlockError),
    /// The DAG is larger or deeper than allowed.
    #[error("content {root} is refused: {what}")]
    Limit {
        /// What was fetched.
        root: Cid,
        /// Which limit, with both figures.
        what: String,
    },
    /// A verified node makes no sense, so that no peer can help.
    #[error("content {root} is malformed at {at}: {what}")]
    Malformed {
        /// What was fetched.
        root: Cid,
        /// The node.
        at: Cid,
        /// What is wrong with it.
        what: String,
    },
    /// [`Sink::finish`] was called too early.
    #[error("content {0} is not complete yet")]
    Incomplete(Cid),
    /// The local store failed; what is durable stays.
    #[error("content {0} could not be stored")]
    Store(Cid, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where a fetched DAG goes.
///
/// Dropping the sink keeps what is durable (at most the last 64 MiB are fetched again) and a later sink for the same
/// root goes on from there. While the sink lives, garbage collection leaves the DAG alone.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// What is fetched.
    fn root(&self) -> Cid;

    /// The next blocks that are not here, in file order, each handed out once: at most `max_blocks`, and at most
    /// `max_bytes` by their claimed sizes (but always at least one, if there is one to ask for).
    ///
    /// Empty when every known gap has been handed out: wait for an `accept` to answer [`Accepted::Stored`], then
    /// call again; or stop when [`Progress::complete`]. Skips local blocks on a blocking thread, and may take long
    /// when much is here.
    ///
    /// Dropping the future loses nothing that was handed out, but the wants it was about to return are
    /// only found again after [`Sink::hand_back`] or by a new sink; drop it only together with the sink.
    async fn next_wants(&self, max_blocks: usize, max_bytes: u64) -> Result<Vec<Want>, FetchError>;

    /// Puts a want that was handed out back to the front, for instance because its session was stopped.
    fn hand_back(&self, cid: &Cid);

    /// Verifies a block and writes it where it belongs. Many may run at once; the work is done on blocking threads.
    ///
    /// A future that is dropped still finishes its write.
    async fn accept(&self, cid: Cid, data: Bytes) -> Result<Accepted, FetchError>;

    /// The same for bytes that the caller has hashed: an exchange learns what a block is only by hashing it,
    /// and need not do so twice.
    async fn accept_hashed(&self, cid: Cid, data: Bytes) -> Result<Accepted, FetchError> {
        self.accept(cid, data).await
    }

    /// How far it is.
    fn progress(&self) -> Progress;

    /// Makes everything durable and the root visible as complete.
    async fn finish(&self) -> Result<(), FetchError>;
}
