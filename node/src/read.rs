//! Reading jobs: from the machine while they are in its memory, from records after.

use std::ops::Bound;

use gossip::owner::{ExecutionView, HistoryEvent, JobSummary, JobView};
use gossip::record::{Kind, Record, RecordKey};
use job::{JobId, JobSpec};
use storage::records::{Records, RecordsError, Table};

use crate::api::error::ApiError;
use crate::state::App;
use crate::view::{self, Excerpt, OUTPUT_BYTES, Output};

/// Records read from the database at once.
const PAGE: usize = 1024;
/// What the keys of all records of a job version begin with: job and version.
const VERSION_BYTES: usize = 20;
/// What those of one kind begin with.
const KIND_BYTES: usize = VERSION_BYTES + 1;

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
    let mut view = stored.ok_or_else(|| missing(&job.to_string(), version))?;
    for execution in view.executions.iter_mut().filter(|one| one.held && one.result.is_some()) {
        execution.holders = vec![app.me];
    }
    Ok(view)
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

/// 404 for a job: never heard of, or forgotten.
pub fn missing(name: &str, version: Option<u32>) -> ApiError {
    match version {
        None => ApiError::not_found(format!("job not found: {name}")).hint(GONE),
        Some(version) => ApiError::not_found(format!("job {name} has no version {version}")),
    }
}

const GONE: &str = "`cardume job list --all` shows a node's jobs; those that ended long ago are forgotten";

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

/// A job version in the owner's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The job; zeros for what belongs to the node itself.
    pub job: JobId,
    /// Its version.
    pub version: u32,
}

impl Kept {
    /// All its records.
    pub fn all(&self, records: &Records) -> Result<Vec<Record>, RecordsError> {
        let mut found = Vec::new();
        all(records, Table::OWNER, &self.prefix(), &mut |record| found.push(record))?;
        Ok(found)
    }

    /// Its record of this kind, of those that there is one of at most.
    pub fn one(&self, records: &Records, kind: Kind) -> Result<Option<Record>, RecordsError> {
        let key = self.key(kind);
        Ok(records.get(Table::OWNER, &key.to_bytes())?.map(|value| Record { key, value }))
    }

    /// What the keys of all its records begin with.
    pub fn prefix(&self) -> Vec<u8> {
        let mut prefix = self.key(Kind::Job).to_bytes().to_vec();
        prefix.truncate(VERSION_BYTES);
        prefix
    }

    /// Its records of some kinds; the rest of it is not touched.
    pub fn of_kinds(&self, records: &Records, kinds: &[Kind]) -> Result<Vec<Record>, RecordsError> {
        let mut found = Vec::new();
        for kind in kinds {
            let key = self.key(*kind).to_bytes();
            all(records, Table::OWNER, &key[..KIND_BYTES], &mut |record| found.push(record))?;
        }
        Ok(found)
    }

    fn key(&self, kind: Kind) -> RecordKey {
        RecordKey { job: self.job, version: self.version, kind, number: 0 }
    }
}

/// The job versions in the owner's table, by one look-up each, however many records they have.
pub fn versions_kept(records: &Records) -> impl Iterator<Item = Result<Kept, RecordsError>> {
    let mut after: Option<Vec<u8>> = None;
    std::iter::from_fn(move || {
        loop {
            let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let found = records.scan(Table::OWNER, (start, Bound::Unbounded), 1);
            let (key, _) = match found {
                Ok(page) => page.rows.into_iter().next()?,
                Err(error) => return Some(Err(error)),
            };
            let read = RecordKey::from_bytes(&key);
            let mut last = key;
            if let Some(read) = read {
                // Longer than any key, so that it comes after all of this version.
                last.truncate(VERSION_BYTES);
                last.resize(RecordKey::BYTES + 1, u8::MAX);
                after = Some(last);
                return Some(Ok(Kept { job: read.job, version: read.version }));
            }
            after = Some(last);
        }
    })
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

#[cfg(test)]
mod tests {
    use storage::records::Batch;

    use super::*;

    async fn stored(keys: &[RecordKey]) -> (tempfile::TempDir, Records) {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let mut batch = Batch::new();
        keys.iter().for_each(|key| batch.put(Table::OWNER, key.to_bytes(), *b"value"));
        batch.put(Table::OWNER, *b"none of ours", *b"value");
        records.commit(batch).await.unwrap();
        (dir, records)
    }

    fn key(job: u8, version: u32, kind: Kind, number: u64) -> RecordKey {
        RecordKey { job: JobId([job; 16]), version, kind, number }
    }

    #[tokio::test]
    async fn each_version_of_each_job_is_found_once_with_its_own_records() {
        let keys = [
            key(0, 0, Kind::Epoch, 0),
            key(1, 1, Kind::Job, 0),
            key(1, 1, Kind::Receipts, 7),
            key(1, 1, Kind::Receipts, u64::MAX),
            key(1, 1, Kind::Settled, 0),
            key(1, 2, Kind::Job, 0),
            key(255, u32::MAX, Kind::Job, 0),
            key(255, u32::MAX, Kind::Seq, u64::MAX),
        ];
        let (_dir, records) = stored(&keys).await;
        let found: Vec<Kept> = versions_kept(&records).map(Result::unwrap).collect();
        let kept = |job, version| Kept { job: JobId([job; 16]), version };
        assert_eq!(found, [kept(0, 0), kept(1, 1), kept(1, 2), kept(255, u32::MAX)]);
        let settled = |version| kept(1, version).one(&records, Kind::Settled).unwrap();
        assert_eq!((settled(1).map(|record| record.key), settled(2)), (Some(keys[4]), None));
        let keys_of = |read: Vec<Record>| read.into_iter().map(|record| record.key).collect::<Vec<_>>();
        assert_eq!(keys_of(kept(1, 1).all(&records).unwrap()), keys[1..5]);
        assert_eq!(keys_of(kept(1, 1).of_kinds(&records, &[Kind::Receipts]).unwrap()), keys[2..4]);
    }
}
