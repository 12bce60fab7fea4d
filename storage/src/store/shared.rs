//! What all parts of the store share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cid::Cid;

use super::checkout::Checkouts;
use super::commit::{Commits, Work};
use super::files::{DataFile, Files};
use super::gc::{self, Goal};
use super::index::{Container, Index, Location};
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
    /// One collection at a time; holds the count of releases at which it was futile to try, and for how many bytes.
    pub(super) collector: Mutex<Option<(u64, u64)>>,
    pub(super) checkouts: Checkouts,
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
    ///
    /// What does not fit is counted for nobody, so that others' smaller wishes go on being granted meanwhile.
    pub(super) fn make_room(self: &Arc<Self>, bytes: u64) -> Result<(), StoreError> {
        if self.take_room(bytes) {
            return Ok(());
        }
        // What no collection could make room for gives nothing up either.
        if bytes > self.settings.limit_bytes {
            return Err(self.full(bytes));
        }
        let collected = gc::collect(self, Goal::Room(bytes));
        if self.take_room(bytes) {
            return Ok(());
        }
        match collected {
            Err(error) if !matches!(error, StoreError::Busy) => Err(error),
            _ => Err(self.full(bytes)),
        }
    }

    fn take_room(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.settings.limit_bytes);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Whether there is no room for so many bytes now.
    pub(super) fn lacks_room(&self, bytes: u64) -> bool {
        self.used.load(Ordering::Acquire).saturating_add(bytes) > self.settings.limit_bytes
    }

    /// The error of who cannot have so many bytes.
    pub(super) fn full(&self, wanted: u64) -> StoreError {
        let used = self.used.load(Ordering::Acquire);
        StoreError::Full { wanted, used, limit: self.settings.limit_bytes }
    }

    /// Appends to the current segment; answers with the segment and the offset.
    pub(super) fn append(self: &Arc<Self>, bytes: &[u8]) -> Result<(Arc<DataFile>, u64), StoreError> {
        self.make_room(bytes.len() as u64)?;
        self.append_promised(bytes)
    }

    /// The same where the room was promised before; after a failure it is no longer.
    pub(super) fn append_promised(&self, bytes: &[u8]) -> Result<(Arc<DataFile>, u64), StoreError> {
        self.files.append(bytes).map_err(|failed| {
            if failed.is_undone {
                self.give_room(bytes.len() as u64);
            }
            failed.error
        })
    }

    /// Takes a promise back, or notes that bytes were removed.
    pub(super) fn give_room(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // The closure never refuses.
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Notes that all of a container counts from now on: it is no longer a file that is fetched.
    pub(super) fn charge_whole(&self, container: &Container) {
        self.charge(container.length().saturating_sub(container.charge()));
    }

    /// Counts bytes that are there already, room or not.
    pub(super) fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Notes that something may have become removable.
    pub(super) fn released(&self) {
        self.releases.fetch_add(1, Ordering::AcqRel);
    }
}
