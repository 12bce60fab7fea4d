//! A job's output, gathered: from the workers while its executions run, from their results after.
//!
//! Each partition has one source at a time. What was already passed on of an execution is not passed on
//! again when its stored output takes over; another attempt of the partition begins from its start. Where
//! several write, lines are kept whole. Output that cannot be had ends the stream as broken, after all that can.

mod gather;
mod piece;
mod source;
mod tail;

use gossip::owner::{ExecutionView, JobSummary};
use job::JobId;

use crate::api::error::ApiError;
use crate::read;
use crate::state::App;
pub use gather::gather;
pub use piece::{Broken, Piece, Pieces, encode};
#[cfg(test)]
pub use piece::{Chunk, Stream};
pub use source::of_execution;

/// Chunks waiting for a client that reads slowly; sources wait when it is full.
pub const WAITING: usize = 16;

/// What a client wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Go on until the job ends.
    pub follow: bool,
    /// Of what is there, only this many last lines.
    pub tail: Option<usize>,
    /// Only this partition.
    pub partition: Option<u32>,
    /// Only this execution: the beginning of its id.
    pub execution: Option<String>,
    /// This version of the job; the newest without one.
    pub version: Option<u32>,
}

impl Wanted {
    /// Whether an execution's output is wanted.
    fn wants(&self, execution: &ExecutionView) -> bool {
        self.partition.is_none_or(|partition| partition == execution.key.partition)
            && self.execution.as_deref().is_none_or(|prefix| execution.id.to_string().starts_with(prefix))
    }
}

/// Checks that there is what a client wants to see; gives the version of the job that it is about.
pub async fn check(app: &App, job: JobId, wanted: &Wanted) -> Result<u32, ApiError> {
    let named = wanted.execution.is_some().then(|| wanted.clone());
    let (summary, is_there) = read::with(app, job, wanted.version, move |job| {
        let is_wanted = |named: Wanted| job.executions(0..usize::MAX).any(|one| named.wants(&one));
        (job.summary(), named.is_none_or(is_wanted))
    })
    .await?;
    check_found(&summary, wanted, is_there)?;
    Ok(summary.version)
}

fn check_found(summary: &JobSummary, wanted: &Wanted, is_there: bool) -> Result<(), ApiError> {
    let (job, count) = (summary.id, summary.count);
    if let Some(partition) = wanted.partition.filter(|partition| count > 0 && *partition >= count) {
        return Err(ApiError::not_found(format!("partition not found: {partition} of job {job}"))
            .hint(format!("it has the partitions 0 to {}", count - 1)));
    }
    if let Some(execution) = &wanted.execution
        && !is_there
    {
        let of = wanted.partition.map_or(String::new(), |partition| format!("partition {partition} of "));
        return Err(ApiError::not_found(format!("execution not found: {execution} of {of}job {job}"))
            .hint(format!("see `cardume job executions {job}`")));
    }
    Ok(())
}
