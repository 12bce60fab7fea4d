//! The content store: blocks by their hash, files as files, bytes stored once.
//!
//! A file above 64 KiB is one flat file on disk and its leaf blocks are ranges of it; everything else lies in segments
//! that only grow at their end. An index says where each block is. Nothing is synchronised block by block: bytes are
//! written, synchronised once, and the index commit that follows makes them visible. What a call has
//! answered is durable; what an interrupted one left is removed when the store is opened.
//!
//! [`Store`] is for async code; [`Blocking`] does the same on the calling thread.
//!
//! ```
//! use storage::store::{AddOptions, Settings, Store};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("hello.txt"), "hello")?;
//! let store = Store::open(&dir.path().join("content"), Settings::default())?;
//!
//! let added = store.add_path(&dir.path().join("hello.txt"), AddOptions::default()).await?;
//! assert_eq!(added.cid.to_string(), "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq");
//! assert_eq!(store.get_block(&added.cid).await?.as_deref(), Some(&b"hello"[..]));
//!
//! let checkout = store.checkout(&added.cid).await?; // a path to mount
//! assert_eq!(std::fs::read(checkout.path())?, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod add;
mod blocking;
mod bloom;
mod checkout;
mod commit;
mod error;
mod fetching;
mod files;
mod flat;
mod gc;
mod index;
mod live;
mod session;
mod shared;
mod stream;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use tokio::io::AsyncRead;

use crate::block::{Block, BlockError, Blocks, LocalBlocks};
use crate::fetch::FetchLimits;
use crate::read::Limits;

pub use add::{AddOptions, AddProgress, Added, OnProgress};
pub use blocking::{BlockPlace, Blocking, Pin, Usage};
pub use checkout::Checkout;
pub use error::StoreError;
pub use fetching::FetchSession;
pub use flat::FLAT_ABOVE_BYTES;
pub use gc::Collected;
pub use verify::Verified;

use shared::Shared;

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of content that are kept at most. When an addition would exceed it, content that is neither pinned nor
    /// held goes, least recently used first.
    pub limit_bytes: u64,
    /// Memory for pages of the index.
    pub cache_bytes: usize,
    /// Whether every block is hashed again when it is read. What is written was hashed; this finds what a disk did
    /// to it since, at half a nanosecond a byte ([`Store::verify`] does so once for all).
    pub verify_reads: bool,
}

impl Default for Settings {
    /// 50 GiB, 4 MiB of cache, reads trusted.
    fn default() -> Self {
        Settings { limit_bytes: 50 << 30, cache_bytes: 4 * 1024 * 1024, verify_reads: false }
    }
}

/// Keeps content from being collected until it is dropped, whether it is here yet or not.
///
/// Guards are not remembered over a restart: whoever needs content then takes its guards before anything is added.
pub struct Guard {
    shared: Arc<Shared>,
    cid: Cid,
}

impl Guard {
    fn new(shared: &Arc<Shared>, cid: Cid) -> Result<Self, StoreError> {
        shared.live.hold(cid);
        let guard = Guard { shared: Arc::clone(shared), cid };
        // A collection that began before knows nothing of this guard.
        if shared.live.is_collecting() {
            gc::Marker::new(shared).mark(cid)?;
        }
        Ok(guard)
    }

    /// What is held, with everything below it.
    pub fn cid(&self) -> Cid {
        self.cid
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard({})", self.cid)
    }
}

impl Clone for Guard {
    fn clone(&self) -> Self {
        // What one guard holds needs no new marks.
        self.shared.live.hold(self.cid);
        Guard { shared: Arc::clone(&self.shared), cid: self.cid }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.live.release(&self.cid);
        self.shared.released();
    }
}

/// A handle to the content store; clones share it.
///
/// Unless a method says otherwise, dropping its future leaves the work to finish by itself, without an answer.
#[derive(Debug, Clone)]
pub struct Store {
    blocking: Blocking,
}

impl Store {
    /// Opens the store in this directory, creating it if there is none. One process at a time.
    pub fn open(dir: &Path, settings: Settings) -> Result<Self, StoreError> {
        Ok(Store { blocking: Blocking::open(dir, settings)? })
    }

    /// The same store for threads that may wait.
    pub fn blocking(&self) -> &Blocking {
        &self.blocking
    }

    /// Whether a block is here. Microseconds.
    pub fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        self.blocking.has(cid)
    }

    /// The size of a root that is one raw block and is here, which counts as a use of it: there is nothing that would
    /// have to be fetched. Microseconds.
    pub fn raw_root(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        self.blocking.raw_root(cid)
    }

    /// Where a block is on disk. Microseconds; the place is good until garbage is collected.
    pub fn block_location(&self, cid: &Cid) -> Result<Option<BlockPlace>, StoreError> {
        self.blocking.block_location(cid)
    }

    /// The bytes of a block, if it is here.
    pub async fn get_block(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let cid = *cid;
        self.run(move |store| store.get_block(&cid)).await
    }

    /// Verifies blocks and makes them durable together. What no root, pin or guard reaches may go at the next
    /// collection: hold a [`Guard`] over the call, or use [`Store::put_pinned`].
    pub async fn put_blocks(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        self.run(move |store| store.put_blocks(&blocks)).await
    }

    /// Verifies blocks and makes them durable together with pins, all at once.
    pub async fn put_pinned(&self, blocks: Vec<Block>, pins: Vec<Pin>) -> Result<(), StoreError> {
        self.run(move |store| store.put_pinned(&blocks, &pins)).await
    }

    /// Adds the file, directory or symbolic link at a path; durable at return.
    ///
    /// Special files are refused. Links are added as links; nothing is read through one.
    pub async fn add_path(&self, path: &Path, options: AddOptions) -> Result<Added, StoreError> {
        let path = path.to_owned();
        self.run(move |store| store.add_path(&path, &options)).await
    }

    /// Adds one file from a stream; `name` is used if it is wrapped in a directory.
    ///
    /// Dropping the future ends the addition, and nothing of it stays.
    pub async fn add_reader(
        &self,
        reader: impl AsyncRead + Send,
        name: Option<&str>,
        options: AddOptions,
    ) -> Result<Added, StoreError> {
        stream::add(self, reader, name, options).await
    }

    /// Keeps content, with everything below it, until it is unpinned under each name that it was pinned under.
    ///
    /// Only the first block of each must be here. Durable at return, all at once.
    pub async fn pin(&self, pins: Vec<Pin>) -> Result<(), StoreError> {
        self.run(move |store| store.pin(&pins)).await
    }

    /// Takes pins back; those that are not there are ignored.
    pub async fn unpin(&self, pins: Vec<Pin>) -> Result<(), StoreError> {
        self.run(move |store| store.unpin(&pins)).await
    }

    /// At most so many pins, in a fixed order, from after one on; none when there are no more.
    pub async fn pins(&self, after: Option<Pin>, limit: usize) -> Result<Vec<Pin>, StoreError> {
        self.run(move |store| store.pins(after.as_ref(), limit)).await
    }

    /// Whether something is pinned itself, under any name.
    pub fn is_pinned(&self, cid: &Cid) -> Result<bool, StoreError> {
        self.blocking.is_pinned(cid)
    }

    /// Keeps content from being collected until the guard is dropped.
    pub async fn guard(&self, cid: &Cid) -> Result<Guard, StoreError> {
        let cid = *cid;
        self.run(move |store| store.guard(&cid)).await
    }

    /// Removes everything that is neither pinned nor held.
    pub async fn collect_garbage(&self) -> Result<Collected, StoreError> {
        self.run(|store| store.collect_garbage()).await
    }

    /// Hashes every block again; with `forget`, damaged ones are forgotten so that they can be fetched again.
    pub async fn verify(&self, forget: bool) -> Result<Verified, StoreError> {
        self.run(move |store| store.verify(forget)).await
    }

    /// Content that is here as a read-only path to mount: a large file as it lies in the store, a directory made
    /// once, with links to large files. Fails if a block is missing, or if more than half of the store's limit would
    /// have to be written for it.
    ///
    /// Dropping the future ends the work, and nothing of it stays.
    pub async fn checkout(&self, cid: &Cid) -> Result<Checkout, StoreError> {
        self.checkout_within(cid, u64::MAX).await
    }

    /// The same with a limit on the bytes that may have to be written for it.
    ///
    /// Dropping the future ends the work, and nothing of it stays.
    pub async fn checkout_within(&self, cid: &Cid, max_bytes: u64) -> Result<Checkout, StoreError> {
        let (cid, cancel) = (*cid, checkout::Cancel::default());
        let _cancels = cancel.on_drop();
        self.run(move |store| {
            let limits = store.checkout_limits();
            let limits = Limits { max_bytes: max_bytes.min(limits.max_bytes), ..limits };
            store.checkout_within(&cid, limits, &cancel)
        })
        .await
    }

    /// Begins to bring content here, or goes on where an earlier session stopped.
    pub async fn fetch(&self, root: &Cid, limits: FetchLimits) -> Result<FetchSession, StoreError> {
        let root = *root;
        self.run(move |store| store.fetch(&root, limits)).await
    }

    /// Notes that content was used, for the order in which it is given up.
    pub fn touch(&self, root: &Cid) {
        self.blocking.touch(root);
    }

    /// How much is here.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        self.blocking.usage()
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Blocking) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let blocking = self.blocking.clone();
        tokio::task::spawn_blocking(move || work(&blocking)).await.map_err(|_| StoreError::Stopped)?
    }
}

/// Reads on the calling thread: for a thread that may wait, where many small reads are not worth a hop each.
#[async_trait]
impl Blocks for Blocking {
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockError> {
        let found = self.get_block(cid).map_err(|error| error.into_block_error(*cid))?;
        found.ok_or(BlockError::NotFound(*cid))
    }
}

#[async_trait]
impl Blocks for Store {
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockError> {
        self.local_block(cid).await?.ok_or(BlockError::NotFound(*cid))
    }
}

#[async_trait]
impl LocalBlocks for Store {
    fn block_size(&self, cid: &Cid) -> Result<Option<u32>, BlockError> {
        self.blocking.block_size(cid).map_err(|error| error.into_block_error(*cid))
    }

    async fn local_block(&self, cid: &Cid) -> Result<Option<Bytes>, BlockError> {
        self.get_block(cid).await.map_err(|error| error.into_block_error(*cid))
    }
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
