//! What all parts of the store share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cid::Cid;

use super::commit::{Commits, Work};
use super::files::Files;
use super::gc::{self, Goal};
use super::index::{Index, Location};
use super::live::Live;
use super::{Settings, StoreError};
use crate::block::{self, BlockError};

/// Looks again when a block moved between the look at the index and the read.
const READ_TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) settings: Settings,
    pub(super) index: Index,
    pub(super) files: Files,
    pub(super) commits: Commits,
    pub(super) live: Arc<Live>,
    /// Bytes of all containers, and of those that are promised to writers.
    pub(super) used: AtomicU64,
    /// Counts what may have made something removable since the last collection that found too little.
    pub(super) releases: AtomicU64,
    /// One collection at a time; holds the count of releases at which it was futile to try.
    pub(super) collector: Mutex<Option<u64>>,
    /// One checkout is made at a time.
    pub(super) checkouts: Mutex<()>,
}

impl Shared {
    pub(super) fn commit(&self, work: Work) -> Result<(), StoreError> {
        self.commits.commit(&self.files, &self.index, work)
    }

    /// The bytes of a block, if it is here.
    pub(super) fn get_block(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if let Some(inline) = block::inline(cid) {
            return Ok(Some(inline));
        }
        for _ in 0..READ_TRIES {
            let Some(location) = self.index.locate(cid.hash())? else { return Ok(None) };
            let Some(stored) = self.files.read(&location)? else { continue };
            let block = location.block(stored);
            if self.settings.verify_reads {
                block::verify(cid, &block)?;
            }
            return Ok(Some(block));
        }
        Err(StoreError::Block(BlockError::Mismatch { cid: *cid, size: 0 }))
    }

    /// Where a block is, if it is here.
    pub(super) fn locate(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        self.index.locate(cid.hash())
    }

    /// Promises room for bytes, and collects garbage if that needs it.
    pub(super) fn make_room(self: &Arc<Self>, bytes: u64) -> Result<(), StoreError> {
        let used = self.used.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        let limit = self.settings.limit_bytes;
        if used <= limit {
            return Ok(());
        }
        let collected = gc::collect(self, Goal::Room(bytes));
        let used = self.used.load(Ordering::Acquire);
        if used <= limit {
            return Ok(());
        }
        self.give_room(bytes);
        match collected {
            Err(error) if !matches!(error, StoreError::Busy) => Err(error),
            _ => Err(StoreError::Full { wanted: bytes, used: used.saturating_sub(bytes), limit }),
        }
    }

    /// Takes a promise back, or notes that bytes were removed.
    pub(super) fn give_room(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // The closure never refuses.
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Notes that something may have become removable.
    pub(super) fn released(&self) {
        self.releases.fetch_add(1, Ordering::AcqRel);
    }
}
