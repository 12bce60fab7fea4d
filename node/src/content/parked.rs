//! Small results on their way into the content store.
//!
//! A few results that came whole with their receipts are written by the very transaction that commits their
//! partitions: a small job waits for one write instead of two, and what says that a result is held here is durable
//! with it or not at all. From the record they are moved into the content store, many at a time. Until then they are
//! read from memory, or waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use job::JobId;
use serde::{Deserialize, Serialize};
use storage::block::{self, Block, BlockError, Blocks};
use storage::records::{Batch, Records, RecordsError, Table};
use storage::store::Pin;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, error, warn};

use super::{Keeper, incomplete};

/// Where they are in the state database, by number.
const TABLE: Table = Table::new("parked");
/// The form of its rows.
const SCHEMA: u32 = 1;
/// Results of one batch, and batches that are parked, at the most: many are stored in one go anyway, and a node that is
/// busy would only write them twice.
pub const FEW: usize = 16;
/// Bytes of blocks that are parked together; beyond, results go straight into the store.
const MOST_BYTES: usize = 16 << 20;
/// How long results are gathered before they are moved together.
const GATHER: Duration = Duration::from_millis(50);
/// How long a reader waits for what is on its way into the store.
const READER_PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to move what the store does not take: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// Rows that are read at once.
const ROWS: usize = 256;

/// What is parked, and who waits for it to be moved.
#[derive(Debug)]
pub(super) struct Parked {
    records: Records,
    state: Mutex<State>,
    /// Says that something came, or with `true` that somebody waits.
    come: mpsc::Sender<bool>,
    moved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    results: BTreeMap<u64, Arc<Results>>,
    /// Which results a block is among.
    blocks: HashMap<Cid, u64>,
    bytes: usize,
}

/// Some results of a job version, with all of their blocks.
#[derive(Debug)]
pub struct Results {
    keeper: Keeper,
    roots: Vec<Cid>,
    blocks: HashMap<Cid, Bytes>,
}

/// Results that a transaction is about to write: parked by [`Parked::add`] once it has.
#[derive(Debug)]
pub struct Staged(u64, Arc<Results>);

/// A row of the table.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    schema: u32,
    job: JobId,
    version: u32,
    roots: Vec<String>,
    blocks: Vec<gossip::message::Block>,
}

impl Parked {
    /// What an earlier run left parked, and the words by which a mover learns that there is something to do.
    pub(super) fn open(records: Records) -> Result<(Self, mpsc::Receiver<bool>), RecordsError> {
        let (come, comes) = mpsc::channel(16);
        let parked = Parked { records, state: Mutex::default(), come, moved: watch::channel(0).0 };
        parked.reload()?;
        Ok((parked, comes))
    }

    /// Takes in rows that are not known: those of an earlier run, and of a transaction that was thought to have failed.
    pub(super) fn reload(&self) -> Result<(), RecordsError> {
        let mut after = None;
        loop {
            let page = self.records.scan_prefix(TABLE, &[], after.as_deref(), ROWS)?;
            for (key, value) in &page.rows {
                match read(key, value) {
                    Some(staged) => self.add(staged),
                    None => {
                        error!(?key, "a parked result is damaged; its partition stays committed without it")
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Puts results into a transaction; `None` when they are better stored at once, or not what they should be.
    pub(super) fn stage(
        &self,
        keeper: Keeper,
        roots: &[Cid],
        blocks: &[gossip::message::Block],
        batch: &mut Batch,
    ) -> Option<Staged> {
        let Keeper::Job(job, version) = keeper else { return None };
        // Looked at first: a busy node stores most results at once, and they are checked there.
        if !self.has_room(blocks.iter().map(|given| given.bytes.len()).sum()) {
            return None;
        }
        if blocks.iter().any(|given| block::verify(&given.cid, &given.bytes).is_err()) {
            return None;
        }
        let results = Results::new(keeper, roots.to_vec(), blocks);
        let whole: Vec<Block> = results.blocks().collect();
        if !incomplete(&whole, roots).is_empty() {
            return None;
        }
        let number = {
            let mut state = self.lock();
            state.next += 1;
            state.next
        };
        let roots = roots.iter().map(Cid::to_string).collect();
        let row = Row { schema: SCHEMA, job, version, roots, blocks: blocks.to_vec() };
        let row = cbor4ii::serde::to_vec(Vec::new(), &row).ok()?;
        batch.put(TABLE, number.to_be_bytes(), row);
        Some(Staged(number, Arc::new(results)))
    }

    fn has_room(&self, bytes: usize) -> bool {
        let state = self.lock();
        state.results.len() < FEW && state.bytes.saturating_add(bytes) <= MOST_BYTES
    }

    /// Parks what a transaction has written.
    pub(super) fn add(&self, Staged(number, results): Staged) {
        let mut state = self.lock();
        state.next = state.next.max(number);
        if state.results.contains_key(&number) {
            return;
        }
        state.bytes += results.bytes();
        state.blocks.extend(results.blocks.keys().map(|cid| (*cid, number)));
        state.results.insert(number, results);
        drop(state);
        // A full channel says that the mover has not even begun.
        let _ = self.come.try_send(false);
    }

    /// The results that a block is among, to read from.
    pub(super) fn find(&self, cid: &Cid) -> Option<Arc<Results>> {
        let state = self.lock();
        state.blocks.get(cid).and_then(|number| state.results.get(number)).cloned()
    }

    /// Returns once a block is in the store, if it is parked, or cannot be moved there in good time.
    pub(super) async fn until_moved(&self, cid: &Cid) {
        let mut moved = self.moved.subscribe();
        // Others with the same block may come all the time.
        let Some(number) = self.lock().blocks.get(cid).copied() else { return };
        let _ = self.come.try_send(true);
        let gone =
            async { while self.lock().results.contains_key(&number) && moved.changed().await.is_ok() {} };
        if timeout(READER_PATIENCE, gone).await.is_err() {
            debug!(%cid, "a result is not in the store yet");
        }
    }

    /// Returns once everything that is parked now is in the store.
    pub(super) async fn until_all_moved(&self) {
        let mut moved = self.moved.subscribe();
        let Some(last) = self.lock().results.last_key_value().map(|(number, _)| *number) else { return };
        let _ = self.come.try_send(true);
        let is_left = || self.lock().results.first_key_value().is_some_and(|(number, _)| *number <= last);
        while is_left() && moved.changed().await.is_ok() {}
    }

    /// Everything that is parked now.
    fn all(&self) -> Vec<(u64, Arc<Results>)> {
        self.lock().results.iter().map(|(number, results)| (*number, Arc::clone(results))).collect()
    }

    /// These are in the store: readers find them there. Their rows go as soon as may be; one that stays is moved
    /// again by the next run, which changes nothing.
    async fn done(&self, numbers: &[u64]) {
        let mut batch = Batch::new();
        {
            let mut state = self.lock();
            for number in numbers {
                batch.delete(TABLE, number.to_be_bytes());
                let Some(results) = state.results.remove(number) else { continue };
                state.bytes = state.bytes.saturating_sub(results.bytes());
            }
            let State { results, blocks, .. } = &mut *state;
            blocks.retain(|_, number| results.contains_key(number));
        }
        self.moved.send_modify(|count| *count += 1);
        if let Err(error) = self.records.commit(batch).await {
            warn!(
                error = crate::api::error::chain(&error),
                "the record of results that were moved into the store stays"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Results {
    fn new(keeper: Keeper, roots: Vec<Cid>, blocks: &[gossip::message::Block]) -> Self {
        let blocks = blocks.iter().map(|block| (block.cid, Bytes::copy_from_slice(&block.bytes))).collect();
        Results { keeper, roots, blocks }
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        self.blocks.iter().map(|(cid, data)| Block { cid: *cid, data: data.clone() })
    }

    fn bytes(&self) -> usize {
        self.blocks.values().map(Bytes::len).sum()
    }
}

/// Reads parked results as what they are.
#[derive(Debug, Clone)]
pub(super) struct Reader(pub(super) Arc<Results>);

#[async_trait]
impl Blocks for Reader {
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockError> {
        let found = self.0.blocks.get(cid).cloned().or_else(|| block::inline(cid));
        found.ok_or(BlockError::NotFound(*cid))
    }
}

fn read(key: &[u8], value: &[u8]) -> Option<Staged> {
    let number = u64::from_be_bytes(key.try_into().ok()?);
    let row: Row = cbor4ii::serde::from_slice(value).ok()?;
    if row.schema != SCHEMA || row.blocks.iter().any(|given| block::verify(&given.cid, &given.bytes).is_err())
    {
        return None;
    }
    let roots = row.roots.iter().map(|root| root.parse().ok()).collect::<Option<Vec<Cid>>>()?;
    Some(Staged(number, Arc::new(Results::new(Keeper::Job(row.job, row.version), roots, &row.blocks))))
}

/// Moves what is parked into the store, until nobody can park any more.
///
/// `store` makes blocks and pins durable; `stored` is told of the roots.
pub(super) async fn run<F>(
    parked: Weak<Parked>,
    mut comes: mpsc::Receiver<bool>,
    store: impl Fn(Vec<Block>, Vec<Pin>) -> F,
    stored: impl Fn(&[Cid]),
) where
    F: Future<Output = Result<(), String>>,
{
    while let Some(wanted) = comes.recv().await {
        if !wanted {
            // Until somebody waits, or for long enough that others have joined.
            let _ = timeout(GATHER, async { while comes.recv().await == Some(false) {} }).await;
        }
        let mut pause = AGAIN_FIRST;
        loop {
            let Some(parked) = parked.upgrade() else { return };
            let all = parked.all();
            if all.is_empty() {
                break;
            }
            let (numbers, results): (Vec<u64>, Vec<Arc<Results>>) = all.into_iter().unzip();
            let roots: Vec<Cid> = results.iter().flat_map(|results| results.roots.iter().copied()).collect();
            let blocks = results.iter().flat_map(|results| results.blocks()).collect();
            let pins =
                results.iter().flat_map(|results| results.roots.iter().map(|root| results.keeper.pin(*root)));
            match store(blocks, pins.collect()).await {
                Ok(()) => {
                    parked.done(&numbers).await;
                    stored(&roots);
                }
                Err(error) => {
                    warn!(error, "the content store does not take results; trying again");
                    drop(parked);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_MOST);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::small_tree;
    use super::*;

    fn keeper() -> Keeper {
        Keeper::Job("j-90d7d111-1a32-8f64-b354-487544171193".parse().unwrap(), 2)
    }

    fn result(stdout: &[u8]) -> (Cid, Vec<gossip::message::Block>) {
        let (added, blocks) = small_tree(&[("exitCode", b"0"), ("stdout", stdout)]).unwrap();
        let block =
            |block: Block| gossip::message::Block { cid: block.cid, bytes: block.data.to_vec().into() };
        (added.cid, blocks.into_iter().map(block).collect())
    }

    async fn park(parked: &Parked, stdout: &[u8]) -> Cid {
        let (root, blocks) = result(stdout);
        let mut batch = Batch::new();
        let staged = parked.stage(keeper(), &[root], &blocks, &mut batch).unwrap();
        parked.records.commit(batch).await.unwrap();
        parked.add(staged);
        root
    }

    #[tokio::test]
    async fn what_is_parked_is_there_after_a_crash_until_it_is_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let root = park(&Parked::open(records.clone()).unwrap().0, b"hello").await;
        // Nothing moved it; the next run finds it.
        let (parked, comes) = Parked::open(records.clone()).unwrap();
        let reader = Reader(parked.find(&root).unwrap());
        let stdout = storage::read::resolve(&reader, root, "stdout").await.unwrap();
        assert_eq!(reader.block(&stdout).await.unwrap(), "hello");
        let parked = Arc::new(parked);
        let (seen, see) = std::sync::mpsc::channel();
        let store = move |blocks: Vec<Block>, pins: Vec<Pin>| {
            seen.send((blocks.len(), pins)).unwrap();
            async { Ok(()) }
        };
        tokio::spawn(run(Arc::downgrade(&parked), comes, store, |_| {}));
        parked.until_moved(&root).await;
        assert_eq!(see.recv().unwrap(), (3, vec![keeper().pin(root)]));
        assert!(parked.find(&root).is_none());
        while !records.scan_prefix(TABLE, &[], None, 1).unwrap().rows.is_empty() {
            tokio::task::yield_now().await;
        }
        // Numbers are not given twice while a row may still be there.
        let second = park(&parked, b"again").await;
        assert!(Parked::open(records).unwrap().0.find(&second).is_some());
        parked.until_all_moved().await;
        assert!(parked.find(&second).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_full_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (parked, comes) = Parked::open(Records::open(dir.path()).unwrap()).unwrap();
        let parked = Arc::new(parked);
        let root = park(&parked, b"hello").await;
        let full = Arc::new(AtomicBool::new(true));
        let is_full = Arc::clone(&full);
        let store = move |_: Vec<Block>, _: Vec<Pin>| {
            let full = is_full.swap(false, Ordering::Relaxed);
            async move { if full { Err("no space".to_owned()) } else { Ok(()) } }
        };
        tokio::spawn(run(Arc::downgrade(&parked), comes, store, |_| {}));
        parked.until_moved(&root).await;
        assert!(parked.find(&root).is_none() && !full.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_result_that_is_not_whole_is_not_parked() {
        let dir = tempfile::tempdir().unwrap();
        let (parked, _comes) = Parked::open(Records::open(dir.path()).unwrap()).unwrap();
        let (root, mut blocks) = result(b"hello");
        let mut batch = Batch::new();
        let first = blocks.remove(0);
        assert!(parked.stage(keeper(), &[root], &blocks, &mut batch).is_none());
        blocks.push(gossip::message::Block { bytes: b"other".to_vec().into(), ..first });
        assert!(parked.stage(keeper(), &[root], &blocks, &mut batch).is_none());
        assert!(batch.is_empty());
    }
}
