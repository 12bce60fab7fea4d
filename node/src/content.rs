//! Content as the rest of the node uses it: the store on this disk, and the peers that fill its gaps.

mod faults;
mod parked;
mod reading;
mod types;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::{Stream, StreamExt};
use job::{ExecutionKey, PeerId};
use p2p::Host;
use storage::block::Block;
use storage::exchange::{Config as ExchangeConfig, Exchange, FetchRequest, Peer};
use storage::fetch::FetchLimits;
use storage::records::{Batch, Records};
use storage::store::{Settings, Store};
use storage::unixfs::{self, DirEntry, Profile};
use tokio::sync::{mpsc, watch};
use tokio_util::io::StreamReader;
use tracing::debug;

use crate::config::Config;
use crate::network::{self, Swarm};
use crate::peers;
use faults::{fault, here};
use parked::Parked;
pub use parked::{FEW, Staged};
pub use storage::store::Pin;
pub use types::{AddOptions, Added, Checkout, Entry, FetchFault, Keeper, Kind, Listed, Stat};

/// CIDs waiting to be published in the DHT; more are left out, connected peers find them anyway.
const PROVIDES: usize = 1024;
/// Between results that are published: each costs twenty peers a message, and a swarm may make hundreds a second.
const RESULT_PACE: Duration = Duration::from_millis(200);
/// How long a result that is being copied here is waited for before peers are asked.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// Bytes of a result's blocks beside its files', at the least that is allowed: a million small files need about that.
const RESULT_NODES: u64 = 256 << 20;
/// What an input's names and small files may take on disk beyond its bytes.
const NAMES_ON_DISK: u64 = 256 << 20;

/// The content of a node; cheap to clone.
#[derive(Clone)]
pub struct Content {
    store: Store,
    exchange: Exchange,
    me: PeerId,
    /// Bytes that the store may hold.
    room: u64,
    root: Arc<Path>,
    scratch: Arc<Path>,
    provides: mpsc::Sender<Cid>,
    provides_later: mpsc::Sender<Cid>,
    /// Rings when results were stored.
    held: Arc<watch::Sender<u64>>,
    /// Small results that are in the record, and not in the store yet.
    parked: Arc<Parked>,
}

type Opened = Result<Content, Box<dyn std::error::Error + Send + Sync>>;

impl Content {
    /// Opens the store and starts the exchange.
    pub async fn open(config: &Config, me: PeerId, host: Host, records: Records) -> Opened {
        let root = config.data_dir.join("content");
        let scratch = config.data_dir.join("tmp");
        match std::fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Box::new(error)),
            _ => std::fs::create_dir_all(&scratch)?,
        }
        let settings = Settings { limit_bytes: config.settings.storage_bytes, ..Settings::default() };
        let dir = root.clone();
        let store =
            tokio::task::spawn_blocking(move || Store::open(&dir, settings).map_err(Box::new)).await??;
        let exchange = Exchange::start(
            Arc::new(store.clone()),
            Arc::new(Swarm { host: host.clone() }),
            ExchangeConfig { give_up_after: config.settings.input_timeout },
        );
        let (provides, queue) = mpsc::channel(PROVIDES);
        let (provides_later, later) = mpsc::channel(PROVIDES);
        tokio::spawn(provide_all(host, queue, later));
        let held = Arc::new(watch::channel(0).0);
        let (parked, comes) = Parked::open(records)?;
        let parked = Arc::new(parked);
        let into = store.clone();
        let put = move |blocks, pins| {
            let store = into.clone();
            async move { store.put_pinned(blocks, pins).await.map_err(|error| crate::api::error::chain(&error)) }
        };
        let (exchange_too, held_too, publish) = (exchange.clone(), Arc::clone(&held), provides_later.clone());
        let stored = move |roots: &[Cid]| {
            exchange_too.content_added();
            held_too.send_modify(|count| *count += 1);
            roots.iter().for_each(|root| later_in_dht(&publish, *root));
        };
        tokio::spawn(parked::run(Arc::downgrade(&parked), comes, put, stored));
        Ok(Content {
            store,
            exchange,
            me,
            room: config.settings.storage_bytes,
            root: root.into(),
            scratch: scratch.into(),
            provides,
            provides_later,
            held,
            parked,
        })
    }

    /// The exchange, for streams and connections.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Below it lies everything that a checkout names.
    pub fn input_root(&self) -> &Path {
        &self.root
    }

    /// Bytes of content that this node keeps at most.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// A fresh directory that goes away with its handle, on the store's disk.
    pub fn scratch(&self) -> std::io::Result<tempfile::TempDir> {
        tempfile::tempdir_in(&self.scratch)
    }

    // --- adding ---

    /// Adds a file or folder for a user: it stays until unpinned.
    pub async fn add(&self, path: &Path, options: &AddOptions) -> Result<Added, FetchFault> {
        let pin = (!options.only_hash).then(|| Keeper::User.to_string());
        let added = self.store.add_path(path, options.store(pin)).await.map_err(|error| here(&error))?;
        self.came(added.cid, options.only_hash);
        Ok(of_store(added))
    }

    /// Adds one file from a stream for a user.
    pub async fn add_stream(
        &self,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send,
        options: &AddOptions,
    ) -> Result<Added, FetchFault> {
        let pin = (!options.only_hash).then(|| Keeper::User.to_string());
        let reader = StreamReader::new(bytes.boxed());
        let added =
            self.store.add_reader(reader, None, options.store(pin)).await.map_err(|error| here(&error))?;
        self.came(added.cid, options.only_hash);
        Ok(of_store(added))
    }

    /// Puts what was added into a directory of its own, under a name.
    pub async fn wrap(&self, name: &str, added: &Added, options: &AddOptions) -> Result<Added, FetchFault> {
        let entries = [Entry::new(name, added.clone())];
        let (added, blocks) = directory(&options.profile, &entries)?;
        if !options.only_hash {
            let pin = Keeper::User.pin(added.cid);
            self.store.put_pinned(blocks, vec![pin]).await.map_err(|error| here(&error))?;
            self.came(added.cid, false);
        }
        Ok(added)
    }

    /// Adds bytes of a job.
    pub async fn add_bytes(&self, bytes: Bytes) -> Result<Added, FetchFault> {
        let reader = std::io::Cursor::new(bytes);
        let added = self
            .store
            .add_reader(reader, None, AddOptions::default().store(None))
            .await
            .map_err(|error| here(&error))?;
        self.exchange.content_added();
        Ok(of_store(added))
    }

    /// Adds a path of a job's result; hidden files and all.
    pub async fn add_path(&self, path: &Path) -> Result<Added, FetchFault> {
        let added = self
            .store
            .add_path(path, AddOptions::default().store(None))
            .await
            .map_err(|error| here(&error))?;
        self.exchange.content_added();
        Ok(of_store(added))
    }

    /// Puts a directory together and pins it for an execution.
    pub async fn add_result(&self, execution: ExecutionKey, entries: &[Entry]) -> Result<Added, FetchFault> {
        let (added, blocks) = directory(&Profile::default(), entries)?;
        let pin = Keeper::Execution(execution.id()).pin(added.cid);
        self.store.put_pinned(blocks, vec![pin]).await.map_err(|error| here(&error))?;
        self.exchange.content_added();
        Ok(added)
    }

    /// All blocks of some content on this node when they are at most `limit` bytes together.
    pub async fn blocks_of(&self, root: Cid, limit: usize) -> Result<Option<Vec<Block>>, FetchFault> {
        let (mut blocks, mut open, mut bytes) = (Vec::new(), vec![root], 0);
        while let Some(cid) = open.pop() {
            let data = self.store.get_block(&cid).await.map_err(|error| here(&error))?;
            let data = data.ok_or_else(|| FetchFault::Here(format!("block {cid} of a result is missing")))?;
            bytes += data.len();
            if bytes > limit {
                return Ok(None);
            }
            if cid.codec() == storage::block::DAG_PB {
                let node =
                    unixfs::Node::decode(&data).map_err(|error| FetchFault::Here(error.to_string()))?;
                open.extend(node.links.iter().map(|link| link.cid));
            }
            blocks.push(Block { cid, data });
        }
        Ok(Some(blocks))
    }

    // --- keeping ---

    /// Stores blocks and pins roots among them, in one go; durable at return.
    ///
    /// Answers with those roots that are not pinned, since the blocks are not all of what is below them: bring the
    /// rest with [`Content::hold`].
    pub async fn hold_blocks(
        &self,
        keeper: Keeper,
        blocks: Vec<Block>,
        roots: &[Cid],
    ) -> Result<Vec<Cid>, FetchFault> {
        let incomplete = incomplete(&blocks, roots);
        let whole = roots.iter().filter(|root| !incomplete.contains(root));
        let pins = whole.map(|root| keeper.pin(*root)).collect();
        self.store.put_pinned(blocks, pins).await.map_err(|error| here(&error))?;
        self.exchange.content_added();
        self.held.send_modify(|count| *count += 1);
        Ok(incomplete)
    }

    /// Puts a few small results into the transaction that says that they are here; `None` when they are better
    /// stored at once, by [`Content::hold_blocks`].
    pub fn stage(
        &self,
        keeper: Keeper,
        roots: &[Cid],
        blocks: &[gossip::message::Block],
        batch: &mut Batch,
    ) -> Option<Staged> {
        self.parked.stage(keeper, roots, blocks, batch)
    }

    /// The transaction is durable: what it holds is content of this node from now on.
    pub fn park(&self, staged: Staged) {
        self.parked.add(staged);
    }

    /// Finds what a transaction holds that was thought to have failed.
    pub fn find_parked(&self) {
        if let Err(error) = self.parked.reload() {
            debug!(%error, "parked results are looked for again by the next run");
        }
    }

    /// Returns once all results that are here are in the store, with their pins.
    pub async fn until_stored(&self) {
        self.parked.until_all_moved().await;
    }

    /// Keeps content that is here.
    pub async fn pin(&self, keeper: Keeper, roots: &[Cid]) -> Result<(), FetchFault> {
        let pins = roots.iter().map(|root| keeper.pin(*root)).collect();
        self.store.pin(pins).await.map_err(|error| here(&error))
    }

    /// Takes back that content is kept. What fails is logged, and stays until pins that nobody needs are looked for.
    pub async fn unpin(&self, keeper: Keeper, roots: &[Cid]) {
        let pins = roots.iter().map(|root| keeper.pin(*root)).collect();
        if let Err(error) = self.store.unpin(pins).await {
            debug!(%keeper, %error, "content could not be released");
        }
    }

    /// How many bytes of blocks a result may have whose worker says that its files have `claimed`, when its job may
    /// leave `most`. Never more than half of what this node keeps.
    pub fn result_limit(&self, claimed: u64, most: u64) -> u64 {
        let files = claimed.min(most);
        files.saturating_add(files / 8).saturating_add(RESULT_NODES).min(self.room / 2)
    }

    /// Brings content of at most so many bytes here and keeps it; durable at return.
    pub async fn hold(
        &self,
        keeper: Keeper,
        root: Cid,
        from: &[PeerId],
        max_bytes: u64,
    ) -> Result<(), FetchFault> {
        let limits = FetchLimits::bytes(max_bytes);
        let request = FetchRequest::new(root).hints(self.hints(from)).limits(limits);
        self.exchange.fetch(request).await.map_err(fault)?;
        self.pin(keeper, &[root]).await?;
        self.held.send_modify(|count| *count += 1);
        self.provide_result(root);
        Ok(())
    }

    /// Stores one block and keeps it.
    pub async fn put_pinned(&self, cid: Cid, data: Bytes, keeper: Keeper) -> Result<(), FetchFault> {
        self.hold_blocks(keeper, vec![Block { cid, data }], &[cid]).await.map(drop)
    }

    /// Executions' results need not stay on their worker. Small ones, which were never content here, cost nothing.
    pub async fn unpin_executions(&self, results: impl IntoIterator<Item = (ExecutionKey, Cid)>) {
        let pins = results.into_iter().map(|(key, root)| Keeper::Execution(key.id()).pin(root));
        // What cannot be looked up is released all the same.
        let pins: Vec<Pin> =
            pins.filter(|pin| self.store.blocking().is_pinned_as(pin).unwrap_or(true)).collect();
        if pins.is_empty() {
            return;
        }
        let many = pins.len();
        if let Err(error) = self.store.unpin(pins).await {
            debug!(many, %error, "results could not be released; they stay until the next time");
        }
    }

    /// At most so many pins, in a fixed order, from after one on; none when there are no more.
    pub async fn pins(&self, after: Option<Pin>, most: usize) -> Result<Vec<Pin>, FetchFault> {
        self.store.pins(after, most).await.map_err(|error| here(&error))
    }

    /// Takes pins back.
    pub async fn release(&self, pins: Vec<Pin>) -> Result<(), FetchFault> {
        self.store.unpin(pins).await.map_err(|error| here(&error))
    }

    // --- the rest ---

    /// Publishes in the DHT that this node has some content, in the background.
    pub fn provide(&self, cid: Cid) {
        if self.provides.try_send(cid).is_err() {
            debug!(%cid, "too much to publish; connected peers find it anyway");
        }
    }

    /// The same for a result, whose owner is asked for it first: it waits its turn, and stays out of the way of jobs.
    pub fn provide_result(&self, cid: Cid) {
        later_in_dht(&self.provides_later, cid);
    }

    fn came(&self, cid: Cid, only_hash: bool) {
        if !only_hash {
            self.exchange.content_added();
            self.provide(cid);
        }
    }

    fn hints(&self, hints: &[PeerId]) -> impl Iterator<Item = Peer> + use<> {
        let me = self.me;
        let others: Vec<PeerId> = hints.iter().copied().filter(|peer| *peer != me).collect();
        others.into_iter().map(|peer| network::exchange_peer(&peers::to_network(peer)))
    }
}

impl gossip::worker::Local for Content {
    fn held_bytes(&self, cid: &Cid) -> u64 {
        let Ok(Some(block)) = self.store.blocking().get_block(cid) else { return 0 };
        match cid.codec() {
            storage::block::DAG_PB => unixfs::Node::decode(&block).map_or(0, |node| node.total_bytes()),
            _ => block.len() as u64,
        }
    }

    fn cached(&self, module: &Cid) -> bool {
        self.store.has(module).unwrap_or(false)
    }
}

fn later_in_dht(publish: &mpsc::Sender<Cid>, cid: Cid) {
    if publish.try_send(cid).is_err() {
        debug!(%cid, "too many results to publish; their owner is known by their job");
    }
}

/// A directory of files in memory, without touching the disk.
pub fn small_tree(files: &[(&str, &[u8])]) -> Result<(Added, Vec<Block>), FetchFault> {
    let (cid, blocks) = unixfs::small_tree(files).map_err(|error| FetchFault::Here(error.to_string()))?;
    let size = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let total = blocks.iter().map(|block| block.data.len() as u64).sum();
    Ok((Added { cid, size, total, _held: None }, blocks))
}

fn directory(profile: &Profile, entries: &[Entry]) -> Result<(Added, Vec<Block>), FetchFault> {
    let size = entries.iter().map(|entry| entry.added.size).sum();
    let entries = entries.iter().map(|entry| DirEntry::new(&entry.name, entry.root())).collect();
    let mut blocks = Vec::new();
    let root = unixfs::directory(profile, entries, &mut |block| blocks.push(block))
        .map_err(|error| FetchFault::Malformed(error.to_string()))?;
    Ok((Added { cid: root.cid, size, total: root.total_bytes, _held: None }, blocks))
}

fn of_store(added: storage::store::Added) -> Added {
    Added { cid: added.cid, size: added.bytes, total: added.total_bytes, _held: added.guard.map(Arc::new) }
}

/// Publishes what users added at once, and results one at a time after it.
async fn provide_all(host: Host, mut queue: mpsc::Receiver<Cid>, mut later: mpsc::Receiver<Cid>) {
    loop {
        let next = tokio::select! {
            biased;
            cid = queue.recv() => cid,
            cid = later.recv() => {
                tokio::time::sleep(RESULT_PACE).await;
                cid
            }
        };
        let Some(cid) = next else { return };
        if let Err(error) = host.provide(&network::key(&cid)).await {
            debug!(%cid, %error, "not published in the DHT");
        }
    }
}

/// Those roots of which not everything is among these blocks. Results are a few blocks each, and come by the
/// thousand: nothing is looked up for them.
fn incomplete(blocks: &[Block], roots: &[Cid]) -> Vec<Cid> {
    let given: HashMap<&[u8], &Bytes> =
        blocks.iter().map(|block| (block.cid.hash().digest(), &block.data)).collect();
    let mut whole = HashSet::new();
    let mut is_whole = |root: &Cid| {
        let (mut seen, mut open) = (HashSet::new(), vec![*root]);
        while let Some(cid) = open.pop() {
            if storage::block::inline(&cid).is_some() || whole.contains(&cid) || !seen.insert(cid) {
                continue;
            }
            let Some(data) = given.get(cid.hash().digest()) else { return false };
            if cid.codec() == storage::block::DAG_PB {
                let Ok(node) = unixfs::Node::decode(data) else { return false };
                open.extend(node.links.iter().map(|link| link.cid));
            }
        }
        whole.extend(seen);
        true
    };
    roots.iter().filter(|root| !is_whole(root)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_which_a_block_is_missing_is_found() {
        let (one, first) = small_tree(&[("exitCode", b"0"), ("stdout", b"one")]).unwrap();
        let (two, second) = small_tree(&[("exitCode", b"0"), ("stdout", b"two")]).unwrap();
        let all = [first, second].concat();
        assert_eq!(incomplete(&all, &[one.cid, two.cid]), []);
        let stdout = storage::block::cid_of(storage::block::RAW, b"two");
        let without: Vec<Block> = all.iter().filter(|block| block.cid != stdout).cloned().collect();
        assert_eq!(incomplete(&without, &[one.cid, two.cid]), [two.cid]);
        let roots: Vec<Block> = all.into_iter().filter(|block| block.cid == two.cid).collect();
        assert_eq!(incomplete(&roots, &[two.cid, two.cid]), [two.cid, two.cid]);
    }
}
