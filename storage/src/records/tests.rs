use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::db::{Db, Kind};
use super::faults::Disk;
use super::{Batch, Records, RecordsError, Settings, Table};

fn batch(rows: &[(&str, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in rows {
        batch.put(Table::OWNER, *key, *value);
    }
    batch
}

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let records = Records::open(dir.path()).expect("opens");
    records.commit(batch(&[("a", "1"), ("b", "2")])).await.expect("commits");
    drop(records);
    let records = Records::open(dir.path()).expect("opens again");
    assert_eq!(records.get(Table::OWNER, b"b").expect("reads"), Some(b"2".to_vec()));
    assert_eq!(records.get(Table::WORKER, b"b").expect("reads"), None);
}

#[tokio::test]
async fn changes_of_a_batch_apply_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let records = Records::open(dir.path()).expect("opens");
    let mut changes = batch(&[("job/1", "x"), ("job/2", "x"), ("jo", "x"), ("joc", "x")]);
    changes.delete_prefix(Table::OWNER, "job/");
    changes.put(Table::OWNER, "job/2", "y");
    changes.delete(Table::OWNER, "jo");
    records.commit(changes).await.expect("commits");
    let rows = records.scan(Table::OWNER, .., 10).expect("scans").rows;
    assert_eq!(rows, [(b"job/2".to_vec(), b"y".to_vec()), (b"joc".to_vec(), b"x".to_vec())]);
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let records = Records::open(dir.path()).expect("opens");
    let mut changes = Batch::new();
    for number in 0..25_u8 {
        changes.put(Table::WORKER, vec![7, number], vec![number]);
    }
    changes.put(Table::WORKER, vec![8], vec![]);
    records.commit(changes).await.expect("commits");
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = records.scan_prefix(Table::WORKER, &[7], after.as_deref(), 10).expect("scans");
        seen.extend(page.rows.into_iter().map(|(key, _)| key[1]));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
    let backwards = (std::ops::Bound::Included(&b"z"[..]), std::ops::Bound::Excluded(&b"a"[..]));
    assert!(records.scan(Table::WORKER, backwards, 10).expect("scans").rows.is_empty());
}

#[tokio::test]
async fn many_committers_at_once_all_succeed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let records = Records::open(dir.path()).expect("opens");
    let commits = (0..200_u32).map(|number| {
        let mut changes = Batch::new();
        changes.put(Table::OWNER, number.to_be_bytes(), b"");
        records.commit(changes)
    });
    for result in futures::future::join_all(commits).await {
        result.expect("commits");
    }
    assert_eq!(records.scan(Table::OWNER, .., 1000).expect("scans").rows.len(), 200);
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_refused_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let records = Records::open(dir.path()).expect("opens");
    let mut long = Batch::new();
    long.put(Table::OWNER, vec![0; super::MAX_KEY_BYTES + 1], b"");
    assert!(matches!(records.commit(long).await, Err(RecordsError::KeyTooLong { .. })));
    records.commit(batch(&[("a", "1")])).await.expect("commits");
}

#[test]
fn a_newer_schema_and_a_foreign_file_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(super::FILE_NAME);
    let newer = Kind { schema: 9, ..Kind::STATE };
    drop(Db::open(&path, newer, Settings::default()).expect("creates"));
    let refused = Records::open(dir.path()).expect_err("is newer");
    assert!(
        refused.to_string().ends_with("has schema 9, and this version knows 1 at most: use a newer version")
    );
    assert!(matches!(
        Db::open(&path, Kind::CONTENT, Settings::default()),
        Err(RecordsError::WrongKind { expected: "content index", .. })
    ));
    drop(Db::open(&path, newer, Settings::default()).expect("is as it was"));
    std::fs::write(&path, b"no database at all").expect("writes");
    assert!(matches!(Records::open(dir.path()), Err(RecordsError::Open { .. })));
}

#[test]
fn a_second_opening_is_refused_while_the_first_lives() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = Records::open(dir.path()).expect("opens");
    assert!(matches!(Records::open(dir.path()), Err(RecordsError::InUse(_))));
    drop(first);
    Records::open(dir.path()).expect("opens");
}

#[test]
fn what_a_killed_creation_left_is_replaced() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("state.tmp"), b"half of a database").expect("writes");
    Records::open(dir.path()).expect("opens");
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("lists").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, [super::FILE_NAME]);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_reopening_heals() {
    let disk = Disk::new(u64::MAX);
    let records = Records::start(open(&disk).expect("opens")).expect("starts");
    records.commit(batch(&[("kept", "1")])).await.expect("commits");
    let mut large = Batch::new();
    large.put(Table::OWNER, "large", vec![1; 8 << 20]);
    disk.full.store(true, Ordering::SeqCst);
    let failed = records.commit(large.clone()).await.expect_err("has no room");
    assert!(failed.needs_reopen() && failed.is_disk_full(), "{failed:?}");
    records.commit(batch(&[("late", "1")])).await.expect_err("the handle is poisoned");
    records.reopen().await.expect("reopens while the disk is full");
    assert!(records.get(Table::OWNER, b"kept").expect("reads while the disk is full").is_some());
    disk.full.store(false, Ordering::SeqCst);
    records.commit(large).await.expect("commits");
    for key in ["kept", "large"] {
        assert!(records.get(Table::OWNER, key.as_bytes()).expect("reads").is_some(), "{key}");
    }
}

#[tokio::test]
async fn reopening_may_fail_and_be_tried_again() {
    let disk = Disk::new(u64::MAX);
    let records = Records::start(open(&disk).expect("opens")).expect("starts");
    records.commit(batch(&[("kept", "1")])).await.expect("commits");
    disk.broken.store(true, Ordering::SeqCst);
    records.commit(batch(&[("lost", "1")])).await.expect_err("the disk is broken");
    // Whether it can be opened in this state or not, nothing hangs and nothing is lost.
    let _ = records.reopen().await;
    disk.broken.store(false, Ordering::SeqCst);
    records.reopen().await.expect("reopens");
    assert!(records.get(Table::OWNER, b"kept").expect("reads").is_some());
    records.commit(batch(&[("again", "1")])).await.expect("commits");
}

/// Kept modest: about 100 images a second. Longer runs: `POWER_CUTS=30000 cargo test -p storage power`.
#[test]
fn power_cuts_lose_no_acknowledged_batch_and_tear_none() {
    let rounds = std::env::var("POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    for seed in 0..rounds {
        let mut random = generator(seed);
        let cut = Disk::new(u64::MAX);
        let acknowledged = history(&cut, 1 + random(150));
        let image = cut.after_power_cut(&mut random);
        let db = open(&image).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        check(&db, acknowledged, seed);
        db.commit(&batch(&[("after", "1")])).expect("writes go on");
    }
}

/// Runs numbered batches of two rows until the power is cut; answers with the last that was acknowledged.
fn history(disk: &Arc<Disk>, operations: u64) -> Option<u64> {
    let db = open(disk).expect("a new disk opens");
    disk.set_operations(operations);
    let mut last = None;
    for number in 0..1000_u64 {
        let mut changes = Batch::new();
        changes.put(Table::OWNER, "left", number.to_be_bytes());
        changes.put(Table::WORKER, "right", number.to_be_bytes());
        changes.put(Table::OWNER, number.to_be_bytes(), vec![1; 700]);
        if db.commit(&changes).is_err() {
            break;
        }
        last = Some(number);
    }
    last
}

fn check(db: &Db, acknowledged: Option<u64>, seed: u64) {
    let left = db.get(Table::OWNER, b"left").expect("reads");
    assert_eq!(left, db.get(Table::WORKER, b"right").expect("reads"), "seed {seed}: a batch is torn");
    let found = left.map(|bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")));
    assert!(found >= acknowledged, "seed {seed}: {acknowledged:?} was acknowledged, {found:?} is there");
    for number in 0..found.map_or(0, |found| found + 1) {
        let row = db.get(Table::OWNER, &number.to_be_bytes()).expect("reads");
        assert_eq!(row.map(|row| row.len()), Some(700), "seed {seed}");
    }
}

fn open(disk: &Arc<Disk>) -> Result<Db, RecordsError> {
    Db::on_disk(disk, Kind::STATE)
}

/// A small generator (xorshift), so that a seed names one history.
fn generator(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below.max(1)
    }
}
