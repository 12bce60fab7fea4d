//! Group commit: whoever comes first commits for all who wait behind.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use cid::Cid;

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
    queue: Mutex<Queue>,
    /// Wakes those who wait: their work is done, or one of them may lead.
    changed: Condvar,
    /// Roots used since the last commit, and when.
    touched: Mutex<HashMap<Cid, u64>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(Work, Outcome)>,
    is_led: bool,
}

/// Roots whose use is remembered between commits. It only decides what garbage collection takes first.
const MAX_TOUCHED: usize = 4096;

impl Commits {
    /// Writes everything out and makes it visible; when this returns it is durable.
    pub(super) fn commit(&self, files: &Files, index: &Index, work: Work) -> Result<(), StoreError> {
        let outcome = Outcome::default();
        let mut queue = lock(&self.queue);
        queue.waiting.push((work, Arc::clone(&outcome)));
        loop {
            if let Some(result) = outcome.get() {
                return result.clone().map_err(StoreError::Together);
            }
            if queue.is_led {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.is_led = true;
            let group = std::mem::take(&mut queue.waiting);
            drop(queue);
            self.lead(files, index, group);
            queue = lock(&self.queue);
            queue.is_led = false;
            self.changed.notify_all();
        }
    }

    /// Notes that a root was used; written with the next commit.
    pub(super) fn touch(&self, root: &Cid) {
        let mut touched = lock(&self.touched);
        if touched.len() < MAX_TOUCHED {
            touched.insert(*root, now_secs());
        }
    }

    fn lead(&self, files: &Files, index: &Index, group: Vec<(Work, Outcome)>) {
        let mut all = Work::default();
        let mut outcomes = Vec::with_capacity(group.len());
        for (work, outcome) in group {
            all.append(work);
            outcomes.push(outcome);
        }
        let touched = std::mem::take(&mut *lock(&self.touched));
        // Lengths are read before the bytes are synchronised: rows never speak of more than is on disk.
        for file in &all.sync {
            if let Some(row) = file.segment_row() {
                all.batch.put_container(file.id, &row);
            }
        }
        // Those who wait must hear of it even if the database panics over a damaged page.
        let write = || {
            for (root, used) in touched {
                // The row of what is no root would stay for ever.
                if index.root_bytes(&root)?.is_some() {
                    all.batch.put_used(&root, used);
                }
            }
            files.sync(&all.sync)?;
            index.commit(&all.batch)
        };
        let result =
            catch_unwind(AssertUnwindSafe(write)).unwrap_or(Err(StoreError::Stopped)).map_err(Arc::new);
        for outcome in outcomes {
            // Set here and nowhere else.
            let _ = outcome.set(result.clone());
        }
    }
}
