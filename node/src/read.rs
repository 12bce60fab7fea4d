//! Reading jobs: from the machine while they are in its memory, from records after.

use gossip::owner::{ExecutionView, HistoryEvent, JobSummary, JobView};
use gossip::record::{Record, RecordKey};
use job::{JobId, JobSpec};
use storage::records::{Records, RecordsError, Table};

use crate::api::error::ApiError;
use crate::state::App;
use crate::view::{self, Excerpt, OUTPUT_BYTES, Output};

/// Records read from the database at once.
const PAGE: usize = 1024;

/// A job version; the newest without a version.
pub async fn view(app: &App, job: JobId, version: Option<u32>) -> Result<JobView, ApiError> {
    let live = app.owner.ask(move |owner| owner.view(job, version)).await.map_err(|_| stopping())?;
    if let Some(view) = live {
        return Ok(view);
    }
    let records = app.records.clone();
    let stored = tokio::task::spawn_blocking(move || stored(&records, job, version))
        .await
        .map_err(|error| ApiError::internal("reading the job's record", &error))??;
    stored.ok_or_else(|| missing(&job.to_string(), version))
}

/// The versions of a job that are known, oldest first.
pub async fn versions(app: &App, job: JobId) -> Result<Vec<JobView>, ApiError> {
    let newest = view(app, job, None).await?.summary.version;
    let mut versions = Vec::new();
    for version in 1..=newest {
        match view(app, job, Some(version)).await {
            Ok(view) => versions.push(view),
            Err(error) if error.code == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(versions)
}

/// 404 for a job.
pub fn missing(name: &str, version: Option<u32>) -> ApiError {
    match version {
        None => ApiError::not_found(format!("job not found: {name}")),
        Some(version) => ApiError::not_found(format!("job {name} has no version {version}")),
    }
}

/// 503 while the node stops.
pub fn stopping() -> ApiError {
    ApiError::unavailable("the node is stopping")
}

fn stored(records: &Records, job: JobId, version: Option<u32>) -> Result<Option<JobView>, ApiError> {
    let all = of_job(records, job).map_err(|error| ApiError::internal("reading the job's record", &error))?;
    let wanted = version.or_else(|| all.iter().map(|record| record.key.version).max());
    let of_version = all.into_iter().filter(|record| Some(record.key.version) == wanted);
    JobView::from_records(of_version).map_err(|error| ApiError::internal("reading the job's record", &error))
}

/// All records of one job.
pub fn of_job(records: &Records, job: JobId) -> Result<Vec<Record>, RecordsError> {
    let mut found = Vec::new();
    all(records, Table::OWNER, &job.0, &mut |record| found.push(record))?;
    Ok(found)
}

/// Reads every record of a table whose key begins so, page by page. Keys that are none of ours are skipped.
pub fn all(
    records: &Records,
    table: Table,
    prefix: &[u8],
    found: &mut impl FnMut(Record),
) -> Result<(), RecordsError> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = records.scan_prefix(table, prefix, after.as_deref(), PAGE)?;
        for (key, value) in &page.rows {
            if let Some(key) = RecordKey::from_bytes(key) {
                found(Record { key, value: value.clone() });
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// The spec of a job in a view.
pub fn spec(view: &JobView) -> Result<JobSpec, ApiError> {
    view::spec(view).map_err(|error| ApiError::internal("reading the job's spec", &error))
}

/// The beginning of what an execution printed, as far as its result is on this node.
pub async fn output(app: &App, execution: &ExecutionView) -> Output {
    let Some(result) = &execution.result else { return Output::default() };
    let stdout = app.content.excerpt(&result.cid, "stdout", OUTPUT_BYTES).await;
    let stderr = app.content.excerpt(&result.cid, "stderr", OUTPUT_BYTES).await;
    let excerpt = |read: Option<(bytes::Bytes, u64)>| {
        read.map(|(bytes, length)| Excerpt::new(&bytes, length)).unwrap_or_default()
    };
    Output { stdout: excerpt(stdout), stderr: excerpt(stderr) }
}

/// What is new about a job since a sequence number: its summary, and at most `limit` lines of history.
pub async fn since(
    app: &App,
    job: JobId,
    seq: u64,
    limit: usize,
) -> Result<(JobSummary, Vec<HistoryEvent>), ApiError> {
    let live = app
        .owner
        .ask(move |owner| Some((owner.summary(job)?, owner.history_since(job, seq, limit))))
        .await
        .map_err(|_| stopping())?;
    if let Some(news) = live {
        return Ok(news);
    }
    let view = view(app, job, None).await?;
    let lines = view.history.into_iter().filter(|line| line.seq > seq).take(limit).collect();
    Ok((view.summary, lines))
}

/// A job version without its executions and history, as far as that is cheaper.
pub async fn head(app: &App, job: JobId, version: Option<u32>) -> Result<JobView, ApiError> {
    view(app, job, version).await
}
