//! Group commit: whoever comes first commits for all who wait behind.

use std::sync::{Arc, Mutex, OnceLock};

use super::files::{DataFile, Files, lock};
use super::index::{Changes, Index};
use super::{StoreError, now_secs};
use crate::records::Batch;

/// What must be on disk before an index commit, and the commit.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) sync: Vec<Arc<DataFile>>,
}

impl Work {
    /// Remembers that a container was written to.
    pub(super) fn wrote(&mut self, file: &Arc<DataFile>) {
        if !self.sync.iter().any(|known| known.id == file.id) {
            self.sync.push(Arc::clone(file));
        }
    }

    pub(super) fn append(&mut self, other: Work) {
        self.batch.append(other.batch);
        other.sync.iter().for_each(|file| self.wrote(file));
    }
}

type Outcome = Arc<OnceLock<Result<(), Arc<StoreError>>>>;

/// The queue of what waits for its commit.
#[derive(Debug, Default)]
pub(super) struct Commits {
    waiting: Mutex<Vec<(Work, Outcome)>>,
    leader: Mutex<()>,
    /// Roots used since the last commit, and when.
    touched: Mutex<std::collections::HashMap<cid::Cid, u64>>,
}

/// Roots whose use is remembered between commits. It only decides what garbage collection takes first.
const MAX_TOUCHED: usize = 4096;

impl Commits {
    /// Writes everything out and makes it visible; when this returns it is durable.
    pub(super) fn commit(&self, files: &Files, index: &Index, work: Work) -> Result<(), StoreError> {
        let outcome = Outcome::default();
        lock(&self.waiting).push((work, Arc::clone(&outcome)));
        let leader = lock(&self.leader);
        if outcome.get().is_none() {
            self.lead(files, index);
        }
        drop(leader);
        match outcome.get() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(StoreError::Together(Arc::clone(error))),
            None => Err(StoreError::Stopped),
        }
    }

    /// Notes that a root was used; written with the next commit.
    pub(super) fn touch(&self, root: &cid::Cid) {
        let mut touched = lock(&self.touched);
        if touched.len() < MAX_TOUCHED {
            touched.insert(*root, now_secs());
        }
    }

    fn lead(&self, files: &Files, index: &Index) {
        let group = std::mem::take(&mut *lock(&self.waiting));
        let mut all = Work::default();
        let mut outcomes = Vec::with_capacity(group.len());
        for (work, outcome) in group {
            all.append(work);
            outcomes.push(outcome);
        }
        for (root, used) in lock(&self.touched).drain() {
            all.batch.put_used(&root, used);
        }
        // Lengths are read before the bytes are synchronised: rows never speak of more than is on disk.
        for file in &all.sync {
            if let Some(row) = file.segment_row() {
                all.batch.put_container(file.id, &row);
            }
        }
        let result = files.sync(&all.sync).and_then(|()| index.commit(&all.batch)).map_err(Arc::new);
        for outcome in outcomes {
            let _ = outcome.set(result.clone());
        }
    }
}
