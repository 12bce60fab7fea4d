//! The jobs of this owner in one line each, for lists and for finding them by name or by the beginning of
//! their id. Everything here can be made again from the records.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use gossip::owner::JobSummary;
use job::JobId;
use job::state::JobState;
use tokio::sync::watch;

/// Jobs that the index keeps; the oldest that ended leave first. About 400 bytes each.
const KEPT: usize = 200_000;
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

/// All jobs of this owner, newest version each.
pub struct Index {
    lines: RwLock<BTreeMap<JobId, Line>>,
    bell: watch::Sender<u64>,
}

impl Default for Index {
    fn default() -> Self {
        Index { lines: RwLock::default(), bell: watch::channel(0).0 }
    }
}

impl Index {
    /// Adds a job version, or replaces an older one.
    pub fn add(&self, line: Line) {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= KEPT {
            let oldest = lines
                .iter()
                .filter(|(_, line)| line.summary.state.is_terminal())
                .min_by_key(|(_, line)| line.summary.created)
                .map(|(id, _)| *id);
            oldest.map(|id| lines.remove(&id));
        }
        match lines.get(&line.summary.id) {
            Some(known) if known.summary.version > line.summary.version => {}
            _ => drop(lines.insert(line.summary.id, line)),
        }
    }

    /// A job's state changed.
    pub fn changed(&self, job: JobId, version: u32, state: JobState, message: String) {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get_mut(&job)
            && line.summary.version == version
        {
            line.summary.state = state;
            line.summary.message = message;
            line.summary.modified = crate::clock::now().wall;
        }
        drop(lines);
        self.bell.send_modify(|count| *count += 1);
    }

    /// Takes back a job version that was not accepted after all.
    pub fn remove(&self, job: JobId, version: u32) {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        if lines.get(&job).is_some_and(|line| line.summary.version == version) {
            lines.remove(&job);
        }
    }

    /// Rings when a job's state changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// The newest version of a job.
    pub fn get(&self, job: JobId) -> Option<Line> {
        self.lines.read().unwrap_or_else(PoisonError::into_inner).get(&job).cloned()
    }

    /// The job with this name in this namespace.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Line> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.values().find(|line| line.summary.name == name && line.summary.namespace == namespace).cloned()
    }

    /// Finds a job by its id, a beginning of its id, or its name.
    pub fn find(&self, text: &str, namespace: Option<&str>) -> Named {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        if let Ok(id) = text.parse::<JobId>() {
            return if lines.contains_key(&id) { Named::One(id) } else { Named::None };
        }
        let wanted = namespace.unwrap_or("default");
        let named = lines.values().find(|line| line.summary.name == text && line.summary.namespace == wanted);
        if let Some(line) = named {
            return Named::One(line.summary.id);
        }
        if !is_prefix(text) {
            return Named::None;
        }
        let mut found = lines.keys().filter(|id| id.to_string().starts_with(text));
        match (found.next(), found.count()) {
            (None, _) => Named::None,
            (Some(id), 0) => Named::One(*id),
            (Some(_), more) => Named::Many(more + 1),
        }
    }

    /// All lines, newest job first.
    pub fn list(&self) -> Vec<Line> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Line> = lines.values().cloned().collect();
        list.sort_by_key(|line| (std::cmp::Reverse(line.summary.created), line.summary.id));
        list
    }

    /// How many jobs have not ended.
    pub fn live(&self) -> usize {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.values().filter(|line| !line.summary.state.is_terminal()).count()
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
