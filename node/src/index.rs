//! The jobs of this owner in one line each, for lists and for finding them by name or by the beginning of
//! their id. Everything here can be made again from the records.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use gossip::owner::JobSummary;
use job::JobId;
use job::state::JobState;
use tokio::sync::{Notify, watch};

use crate::locate::Heard;
use crate::read::recent::Recent;
use crate::submit::naming::Claims;

/// Hex digits that are enough to name a job by the beginning of its id, as in Bacalhau.
const PREFIX_DIGITS: usize = 8;

/// One version of a job, as lists have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What the machine knows.
    pub summary: JobSummary,
    /// The job's labels, for the list's filter.
    pub labels: BTreeMap<String, String>,
}

/// What a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// This job.
    One(JobId),
    /// More than one.
    Many(usize),
    /// None of this owner's.
    None,
}

/// All jobs of this owner, newest version each. There are as many as the owner machine has or keeps, and it bounds
/// both; about 400 bytes each.
pub struct Index {
    /// Names and tokens that submissions are busy with.
    pub claims: Claims,
    /// What users called jobs of other peers.
    pub heard: Heard,
    /// Ended jobs that somebody reads.
    pub recent: Recent,
    jobs: RwLock<BTreeMap<JobId, Entry>>,
    bell: watch::Sender<u64>,
    forgotten: Notify,
}

struct Entry {
    line: Line,
    /// The version that stands again if the newest is not accepted.
    before: Option<Box<Line>>,
}

impl Entry {
    /// The line of a version, if it is one of the two.
    fn of_version(&mut self, version: u32) -> Option<&mut Line> {
        let older = self.before.as_deref_mut();
        [Some(&mut self.line), older].into_iter().flatten().find(|line| line.summary.version == version)
    }
}

impl Default for Index {
    fn default() -> Self {
        Index {
            claims: Claims::default(),
            heard: Heard::default(),
            recent: Recent::default(),
            jobs: RwLock::default(),
            bell: watch::channel(0).0,
            forgotten: Notify::new(),
        }
    }
}

impl Index {
    /// Adds a job version, or replaces an older one.
    pub fn add(&self, line: Line) {
        self.insert(line, false);
    }

    /// Adds a job version that is about to be accepted or refused: [`Index::accepted`] or [`Index::refused`]
    /// says which. Changes of the version before it are taken note of until then.
    pub fn propose(&self, line: Line) {
        self.insert(line, true);
    }

    fn insert(&self, line: Line, keep_older: bool) {
        let mut jobs = self.write();
        let id = line.summary.id;
        let known = jobs.get(&id).map(|entry| &entry.line);
        if known.is_some_and(|known| known.summary.version > line.summary.version) {
            return;
        }
        let before = known.filter(|_| keep_older).cloned().map(Box::new);
        jobs.insert(id, Entry { line, before });
    }

    /// A job's state changed.
    pub fn changed(&self, job: JobId, version: u32, state: JobState, message: String) {
        let mut jobs = self.write();
        if let Some(line) = jobs.get_mut(&job).and_then(|entry| entry.of_version(version)) {
            line.summary.state = state;
            line.summary.message = message;
            line.summary.modified = crate::clock::now().wall;
        }
        drop(jobs);
        self.ring();
    }

    /// A proposed job version is the job's newest from now on.
    pub fn accepted(&self, job: JobId, version: u32) {
        let mut jobs = self.write();
        if let Some(entry) = jobs.get_mut(&job).filter(|entry| entry.line.summary.version == version) {
            entry.before = None;
        }
    }

    /// A proposed job version is none after all: the one before it stands, if there was one.
    pub fn refused(&self, job: JobId, version: u32) {
        let mut jobs = self.write();
        let Some(entry) = jobs.get_mut(&job).filter(|entry| entry.line.summary.version == version) else {
            return;
        };
        match entry.before.take() {
            Some(before) => entry.line = *before,
            None => drop(jobs.remove(&job)),
        }
        drop(jobs);
        self.ring();
    }

    /// A job version is not kept any more, and no older one is.
    pub fn forget(&self, job: JobId, version: u32) {
        let mut jobs = self.write();
        if let Some(entry) = jobs.get_mut(&job) {
            entry.before = entry.before.take().filter(|line| line.summary.version > version);
            if entry.line.summary.version <= version {
                jobs.remove(&job);
            }
        }
        drop(jobs);
        self.recent.forget(job, version);
        self.ring();
        self.forgotten.notify_one();
    }

    /// Waits until a job version was forgotten, since the last time that this was waited for.
    pub async fn forgotten(&self) {
        self.forgotten.notified().await;
    }

    fn ring(&self) {
        self.bell.send_modify(|count| *count += 1);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<JobId, Entry>> {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<JobId, Entry>> {
        self.jobs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings when a job's state changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// The newest version of a job.
    pub fn get(&self, job: JobId) -> Option<Line> {
        self.read().get(&job).map(|entry| entry.line.clone())
    }

    /// The job with this name in this namespace.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Line> {
        let jobs = self.read();
        let mut lines = jobs.values().map(|entry| &entry.line);
        lines.find(|line| line.summary.name == name && line.summary.namespace == namespace).cloned()
    }

    /// Finds a job by its id, a beginning of its id, or its name: in one namespace, or in all of them.
    pub fn find(&self, text: &str, namespace: Option<&str>) -> Named {
        let jobs = self.read();
        if let Ok(id) = text.parse::<JobId>() {
            return if jobs.contains_key(&id) { Named::One(id) } else { Named::None };
        }
        let may_begin = is_prefix(text);
        let is_meant = |job: &JobSummary| {
            let is_called = job.name == text && namespace.is_none_or(|wanted| job.namespace == wanted);
            // A name that looks like an id hides no job of that id.
            is_called || may_begin && job.id.to_string().starts_with(text)
        };
        let summaries = jobs.values().map(|entry| &entry.line.summary);
        Named::of(summaries.filter(|job| is_meant(job)).map(|job| job.id))
    }

    /// All lines, newest job first.
    pub fn list(&self) -> Vec<Line> {
        let mut list: Vec<Line> = self.read().values().map(|entry| entry.line.clone()).collect();
        list.sort_by_key(|line| (std::cmp::Reverse(line.summary.created), line.summary.id));
        list
    }

    /// How many jobs have not ended.
    pub fn live(&self) -> usize {
        self.read().values().filter(|entry| !entry.line.summary.state.is_terminal()).count()
    }
}

impl Named {
    /// What these jobs, all that a text may mean, come down to.
    pub fn of(found: impl IntoIterator<Item = JobId>) -> Self {
        let mut found = found.into_iter();
        match (found.next(), found.count()) {
            (None, _) => Named::None,
            (Some(id), 0) => Named::One(id),
            (Some(_), more) => Named::Many(more + 1),
        }
    }
}

/// Whether a text may be the beginning of a job id: `j-` and at least eight hex digits of a UUID.
pub fn is_prefix(text: &str) -> bool {
    text.strip_prefix("j-").is_some_and(|digits| {
        digits.len() >= PREFIX_DIGITS
            && digits.len() <= 36
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: u8, version: u32, namespace: &str, name: &str) -> Line {
        let summary = JobSummary {
            id: JobId([id; 16]),
            version,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            state: JobState::Pending,
            message: String::new(),
            created: 1,
            modified: 1,
            count: 1,
            open: 1,
            running: 0,
            committed: 0,
            failed: 0,
        };
        Line { summary, labels: BTreeMap::new() }
    }

    #[test]
    fn a_refused_version_gives_way_to_the_one_before_as_that_is_by_now() {
        let index = Index::default();
        let job = JobId([1; 16]);
        index.add(line(1, 1, "default", "words"));
        index.propose(line(1, 2, "default", "words"));
        index.changed(job, 1, JobState::Completed, "done".to_owned());
        index.refused(job, 2);
        let stands = index.get(job).unwrap().summary;
        assert_eq!((stands.version, stands.state), (1, JobState::Completed));
        assert_eq!(index.live(), 0);
    }

    #[test]
    fn an_accepted_version_is_not_taken_back_by_a_late_refusal_of_another() {
        let index = Index::default();
        let job = JobId([1; 16]);
        index.propose(line(1, 1, "default", "words"));
        index.accepted(job, 1);
        index.refused(job, 2);
        assert_eq!(index.get(job).unwrap().summary.version, 1);
        index.propose(line(2, 1, "default", "other"));
        index.refused(JobId([2; 16]), 1);
        assert_eq!(index.list().len(), 1);
    }

    #[test]
    fn a_forgotten_job_is_gone_and_a_version_that_is_being_made_is_not() {
        let index = Index::default();
        let job = JobId([1; 16]);
        index.add(line(1, 2, "default", "words"));
        index.forget(job, 1);
        assert_eq!(index.get(job).unwrap().summary.version, 2);
        index.propose(line(1, 3, "default", "words"));
        index.forget(job, 2);
        assert_eq!(index.get(job).unwrap().summary.version, 3);
        index.refused(job, 3);
        assert_eq!((index.get(job), index.find("words", None)), (None, Named::None));
        index.add(line(1, 1, "default", "words"));
        index.forget(job, 1);
        assert_eq!(index.list().len(), 0);
    }

    #[test]
    fn names_are_found_in_every_namespace_unless_one_is_given() {
        let index = Index::default();
        index.add(line(1, 1, "default", "words"));
        index.add(line(2, 1, "lab", "words"));
        index.add(line(3, 1, "lab", "alone"));
        assert_eq!(index.find("alone", None), Named::One(JobId([3; 16])));
        assert_eq!(index.find("alone", Some("default")), Named::None);
        assert_eq!(index.find("words", None), Named::Many(2));
        assert_eq!(index.find("words", Some("lab")), Named::One(JobId([2; 16])));
    }

    #[test]
    fn beginnings_of_ids_are_found_when_they_are_unique() {
        let index = Index::default();
        index.add(line(1, 1, "default", "a"));
        let id = JobId([1; 16]).to_string();
        assert_eq!(index.find(&id[..10], None), Named::One(JobId([1; 16])));
        assert_eq!(index.find(&id[..9], None), Named::None);
        // Whoever calls a job so hides no other.
        index.add(line(2, 1, "default", &id[..10]));
        assert_eq!(index.find(&id[..10], None), Named::Many(2));
        assert_eq!(index.find(&id[..12], None), Named::One(JobId([1; 16])));
    }
}
