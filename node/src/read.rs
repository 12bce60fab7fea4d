//! Reading jobs: from the machine while they are in its memory, from records after.

pub mod recent;

use std::ops::Bound;
use std::sync::Arc;

use gossip::owner::{ExecutionView, JobHead, JobReader, StoredJob};
use gossip::record::{Kind, Record, RecordKey, RestoreError};
use job::{JobId, JobSpec};
use storage::records::{Records, RecordsError, Table};

use crate::api::error::ApiError;
use crate::state::App;
use crate::view::{Excerpt, OUTPUT_BYTES, Output};

/// Records read from the database at once.
const PAGE: usize = 1024;
/// What the keys of all records of a job version begin with: job and version.
const VERSION_BYTES: usize = 20;
/// The kinds of records that the head of a job version is in.
pub const HEAD: &[Kind] = &[Kind::Job, Kind::State, Kind::Spec];
/// What those of one kind begin with.
const KIND_BYTES: usize = VERSION_BYTES + 1;

/// Reads a job version where it is, in the machine or from its record; the newest without a version.
///
/// `read` must be quick: while it looks at a job that goes on, the machine stands still.
pub async fn with<T: Send + 'static>(
    app: &App,
    job: JobId,
    version: Option<u32>,
    read: impl FnOnce(JobReader<'_>) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let asked = app.owner.ask(move |owner| match owner.reader(job, version) {
        Some(live) => Ok(read(live)),
        None => Err(read),
    });
    let read = match asked.await.map_err(|_| stopping())? {
        Ok(done) => return Ok(done),
        Err(read) => read,
    };
    let (records, index, me) = (app.records.clone(), Arc::clone(&app.index), app.me);
    let stored = tokio::task::spawn_blocking(move || {
        let Some(kept) = version_kept(&records, job, version)? else { return Ok(None) };
        let stored = match index.recent.find(kept) {
            Some(stored) => stored,
            None => match StoredJob::from_records(kept.all(&records)?, me).map_err(Unreadable::Damaged)? {
                Some(stored) => index.recent.keep(kept, stored),
                None => return Ok(None),
            },
        };
        Ok(Some(read(stored.reader())))
    });
    match stored.await.map_err(|error| unreadable(&error))? {
        Ok(found) => found.ok_or_else(|| missing(&job.to_string(), version)),
        Err(error) => Err(unreadable::<Unreadable>(&error)),
    }
}

/// A job version without its executions and its history; the newest without a version.
pub async fn head(app: &App, job: JobId, version: Option<u32>) -> Result<JobHead, ApiError> {
    let live = app.owner.ask(move |owner| owner.reader(job, version).map(|job| job.head()));
    if let Some(live) = live.await.map_err(|_| stopping())? {
        return Ok(live);
    }
    let records = app.records.clone();
    let stored = tokio::task::spawn_blocking(move || {
        let Some(kept) = version_kept(&records, job, version)? else { return Ok(None) };
        JobHead::from_records(kept.of_kinds(&records, HEAD)?).map_err(Unreadable::Damaged)
    });
    match stored.await.map_err(|error| unreadable(&error))? {
        Ok(found) => found.ok_or_else(|| missing(&job.to_string(), version)),
        Err(error) => Err(unreadable::<Unreadable>(&error)),
    }
}

/// The versions of a job that are known, oldest first.
pub async fn versions(app: &App, job: JobId) -> Result<Vec<JobHead>, ApiError> {
    let newest = head(app, job, None).await?.summary.version;
    let mut versions = Vec::new();
    for version in 1..=newest {
        match head(app, job, Some(version)).await {
            Ok(head) => versions.push(head),
            Err(error) if error.code == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(versions)
}

/// Why a record says nothing.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("the database cannot be read")]
    Records(#[from] RecordsError),
    #[error("the record is damaged")]
    Damaged(#[source] RestoreError),
}

fn unreadable<E: std::error::Error>(error: &E) -> ApiError {
    ApiError::internal("reading the job's record", error)
}

/// The version of a job that is meant, as far as there is a record of it.
fn version_kept(records: &Records, job: JobId, version: Option<u32>) -> Result<Option<Kept>, RecordsError> {
    if let Some(version) = version {
        return Ok(Some(Kept { job, version }));
    }
    let of_job = versions_from(records, Some(job.0.to_vec()));
    of_job.take_while(|kept| kept.as_ref().map_or(true, |kept| kept.job == job)).last().transpose()
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
    versions_from(records, None)
}

/// The same from a key on.
fn versions_from(
    records: &Records,
    mut after: Option<Vec<u8>>,
) -> impl Iterator<Item = Result<Kept, RecordsError>> {
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

/// The spec of a job. It was checked before it became a job, so an error means a damaged record.
pub fn spec(job: &JobHead) -> Result<JobSpec, ApiError> {
    JobSpec::from_canonical(&job.spec).map_err(|error| ApiError::internal("reading the job's spec", &error))
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
