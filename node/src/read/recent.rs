//! Jobs that were read from their records a moment ago. Lists come in pages, and every page is of the same job.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gossip::owner::StoredJob;
use job::JobId;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Kept;

/// So many jobs are kept.
const MOST: usize = 4;
/// For so long after they were last read.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// The jobs. What is stored of a version that has left the machine's memory changes no more, so what is here is as good
/// as the record until [`Recent::forget`].
#[derive(Debug, Default)]
pub struct Recent {
    jobs: Mutex<Vec<One>>,
    come: Notify,
}

#[derive(Debug)]
struct One {
    kept: Kept,
    job: Arc<StoredJob>,
    read: Instant,
}

impl Recent {
    /// A job version, if it was read a moment ago.
    pub fn find(&self, kept: Kept) -> Option<Arc<StoredJob>> {
        let mut jobs = self.lock();
        let found = jobs.iter_mut().find(|one| one.kept == kept)?;
        found.read = Instant::now();
        Some(Arc::clone(&found.job))
    }

    /// Keeps a job version for a while.
    pub fn keep(&self, kept: Kept, job: StoredJob) -> Arc<StoredJob> {
        let job = Arc::new(job);
        let mut jobs = self.lock();
        jobs.retain(|one| one.kept != kept);
        if jobs.len() >= MOST
            && let Some(oldest) = jobs.iter().enumerate().min_by_key(|(_, one)| one.read).map(|(at, _)| at)
        {
            jobs.swap_remove(oldest);
        }
        jobs.push(One { kept, job: Arc::clone(&job), read: Instant::now() });
        drop(jobs);
        self.come.notify_one();
        job
    }

    /// Lets go of a job's versions up to this one.
    pub fn forget(&self, job: JobId, version: u32) {
        self.lock().retain(|one| one.kept.job != job || one.kept.version > version);
    }

    /// Keeps nothing for longer than is said, until it is dropped.
    pub async fn tidy(&self) {
        loop {
            self.come.notified().await;
            while let Some(rest) = self.drop_old() {
                sleep(rest).await;
            }
        }
    }

    /// Lets go of what nobody has read for a while; when to come back, as long as there is more.
    fn drop_old(&self) -> Option<Duration> {
        let mut jobs = self.lock();
        jobs.retain(|one| one.read.elapsed() < KEPT_FOR);
        jobs.iter().map(|one| KEPT_FOR.saturating_sub(one.read.elapsed())).min()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<One>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
