//! The state database: named tables of bytes, changed by durable transactions.
//!
//! Owns one redb file and the one thread that writes to it. A [`Batch`] is applied whole or not at all and is on
//! disk when [`Records::commit`] returns; batches that wait together share one transaction. It never interprets
//! what it stores.
//!
//! ```
//! use storage::records::{Batch, Records, Table};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let dir = tempfile::tempdir()?;
//! let records = Records::open(dir.path())?;
//! let mut batch = Batch::new();
//! batch.put(Table::OWNER, b"job/1", b"queued");
//! batch.put(Table::NODE, b"epoch", b"7");
//! records.commit(batch).await?;
//! assert_eq!(records.get(Table::OWNER, b"job/1")?.as_deref(), Some(&b"queued"[..]));
//! assert_eq!(records.scan_prefix(Table::OWNER, b"job/", None, 10)?.rows.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
pub(crate) mod db;
mod error;
mod writer;

#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

pub use batch::{Batch, MAX_KEY_BYTES, MAX_VALUE_BYTES};
pub use error::RecordsError;

use db::{Db, Kind};
use writer::Writer;

/// The file inside the data directory.
pub const FILE_NAME: &str = "state.redb";

/// The name of a table. Tables come into being when something is put into them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub(crate) &'static str);

impl Table {
    /// What this node keeps as the owner of jobs.
    pub const OWNER: Table = Table("owner");
    /// What this node keeps as a worker: executions, receipts, fences.
    pub const WORKER: Table = Table("worker");
    /// What this node knows of itself: epoch, settings that outlive a run.
    pub const NODE: Table = Table("node");
    /// What it knows of other peers.
    pub const PEERS: Table = Table("peers");
    /// Facts about content that belong to jobs rather than to the store: who holds which result.
    pub const CONTENT: Table = Table("content");

    /// Another table. Names are lower-case words; one that starts with `_` is the database's own.
    pub const fn new(name: &'static str) -> Self {
        Table(name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({})", self.0)
    }
}

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Part of a table, in the order of its keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The rows.
    pub rows: Vec<Row>,
    /// There are more rows after this key, or none when it is `None`.
    pub next: Option<Vec<u8>>,
}

/// How a database is opened.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Memory for pages that were read or are about to be written.
    pub cache_bytes: usize,
}

impl Default for Settings {
    /// 4 MiB: an idle node shall stay below 24 MiB in all, and the owner's machine holds its records in memory anyway.
    fn default() -> Self {
        Settings { cache_bytes: 4 * 1024 * 1024 }
    }
}

/// A handle to the state database; clones share it. The file is closed when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Records {
    writer: Arc<Writer>,
}

impl Records {
    /// Opens the database in this directory, creating it if there is none.
    ///
    /// A file of another kind or a newer schema is refused, and what it holds stays as it is.
    pub fn open(dir: &Path) -> Result<Self, RecordsError> {
        Self::open_with(dir, Settings::default())
    }

    /// [`Records::open`] with other settings.
    pub fn open_with(dir: &Path, settings: Settings) -> Result<Self, RecordsError> {
        Self::start(Db::open(&dir.join(FILE_NAME), Kind::STATE, settings)?)
    }

    pub(crate) fn start(db: Db) -> Result<Self, RecordsError> {
        Ok(Records { writer: Arc::new(Writer::start(db)?) })
    }

    /// Applies the batch in one durable transaction, in the order in which it was filled.
    ///
    /// On an error nothing of it may be relied on: after [`RecordsError::needs_reopen`] it may or may not be on disk,
    /// and every later commit, and any read, may fail until [`Records::reopen`]. Dropping the future forgets the answer; the batch may
    /// still be applied.
    pub async fn commit(&self, batch: Batch) -> Result<(), RecordsError> {
        self.writer.commit(batch).await
    }

    /// [`Records::commit`] for threads outside the async runtime.
    pub fn commit_blocking(&self, batch: Batch) -> Result<(), RecordsError> {
        self.writer.commit_blocking(batch)
    }

    /// The value under a key. A read of microseconds that may be called from async tasks.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, RecordsError> {
        self.writer.db().get(table, key)
    }

    /// Rows whose keys lie in a range, at most `limit` of them and about 4 MiB at once.
    ///
    /// Continue with a range that starts after [`Page::next`].
    pub fn scan<'a>(
        &self,
        table: Table,
        range: impl RangeBounds<&'a [u8]>,
        limit: usize,
    ) -> Result<Page, RecordsError> {
        self.writer.db().scan(table, range, limit)
    }

    /// Rows whose keys start with `prefix`, from after the key `after` on.
    pub fn scan_prefix(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, RecordsError> {
        self.writer.db().scan_prefix(table, prefix, after, limit)
    }

    /// Closes the file and opens it again, which repairs what a failed commit left.
    ///
    /// Works while the disk is still full. What was committed is there; the batch that failed is there
    /// whole or not at all. Dropping the future leaves it to finish by itself.
    pub async fn reopen(&self) -> Result<(), RecordsError> {
        self.writer.reopen().await
    }

    /// How many bytes the file takes.
    pub fn size_bytes(&self) -> Result<u64, RecordsError> {
        self.writer.db().size_bytes()
    }
}
