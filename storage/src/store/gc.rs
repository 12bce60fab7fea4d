//! Collecting garbage: mark what must stay, sweep the rest, rewrite what is mostly gone.
//!
//! It runs beside everything else. While it does, whoever writes or holds a block marks it (see `live`), and a row is
//! only ever deleted while no mark can be added, so that what somebody was told is here stays here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cid::Cid;
use cid::multihash::Multihash;

use super::StoreError;
use super::bloom::{Bloom, fingerprint};
use super::checkout;
use super::commit::Work;
use super::files::lock;
use super::index::{BlockRow, Changes, Container, ContainerId, Form, Location};
use super::shared::Shared;
use crate::block::DAG_PB;
use crate::records::Batch;
use crate::unixfs::Node;

/// What a collection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Make room for this many bytes, least recently used roots first.
    Room(u64),
    /// Remove everything that is neither pinned nor held.
    All,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blocks that are not here any more.
    pub blocks: u64,
    /// Bytes given back to the disk.
    pub bytes: u64,
    /// Roots (added or fetched content) that were given up.
    pub roots: u64,
}

/// When room is made, this part of the limit is left to what is kept: so that the next addition does not collect again.
const KEEP_TENTHS: u64 = 9;
/// Every collection ends the current segment; one smaller than this is joined with the next, so that they do not pile up.
const SMALL_SEGMENT_BYTES: u64 = 1024 * 1024;
/// Rows moved in one commit.
const MOVE_ROWS: usize = 4096;
/// Bytes moved in one write.
const MOVE_BYTES: usize = 4 * 1024 * 1024;

/// Collects garbage.
pub(super) fn collect(shared: &Arc<Shared>, goal: Goal) -> Result<Collected, StoreError> {
    let mut futile_at = lock(&shared.collector);
    let releases = shared.releases.load(Ordering::Acquire);
    let is_over = || match goal {
        Goal::Room(bytes) => shared.lacks_room(bytes),
        Goal::All => shared.lacks_room(0),
    };
    let wanted = match goal {
        Goal::Room(bytes) => bytes,
        Goal::All => 0,
    };
    let is_futile = futile_at.is_some_and(|(at, bytes)| at == releases && wanted >= bytes);
    if goal != Goal::All && (!is_over() || is_futile) {
        return Ok(Collected::default());
    }
    let before = shared.used.load(Ordering::Acquire);
    if goal != Goal::All {
        // They can be made again from what is here: content would have to be fetched again.
        checkout::remove_unused(shared, false)?;
        if !is_over() {
            let bytes = before.saturating_sub(shared.used.load(Ordering::Acquire));
            return Ok(Collected { bytes, ..Collected::default() });
        }
    }
    if !shared.live.begin_collecting(Bloom::for_blocks(shared.index.block_count()?)) {
        return Err(StoreError::Busy);
    }
    let _ends = Ends(shared);
    let mut collected = match run(shared, goal) {
        Err(error @ StoreError::Full { .. }) => {
            *futile_at = Some((releases, wanted));
            return Err(error);
        }
        collected => collected?,
    };
    collected.bytes = before.saturating_sub(shared.used.load(Ordering::Acquire));
    *futile_at = is_over().then_some((releases, wanted));
    tracing::info!(?goal, ?collected, "collected garbage");
    Ok(collected)
}

/// Ends the collection however it goes.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.live.end_collecting();
    }
}

fn run(shared: &Arc<Shared>, goal: Goal) -> Result<Collected, StoreError> {
    shared.files.end_segment();
    // In this order: to a container of the list that is in nobody's hand afterwards, nothing is added any more.
    let mut containers: HashMap<_, _> = shared.index.containers()?.into_iter().collect();
    let in_writing = shared.files.in_writing();
    containers.retain(|id, _| !in_writing.contains(id));
    let victims = mark_all(shared, goal)?;
    let mut work = Work::default();
    victims.iter().for_each(|root| work.batch.delete_root(root));
    shared.commit(work)?;
    checkout::remove_unused(shared, true)?;
    let mut sweep = Sweep { shared, containers: &containers, live: HashMap::new(), deleted: 0 };
    sweep.run()?;
    let mut moving = HashSet::new();
    let mut gone = Vec::new();
    for (id, container) in &containers {
        match sweep.fate(*id, container)? {
            Fate::Stays => {}
            Fate::Moves => {
                moving.insert(*id);
                gone.push((*id, container));
            }
            Fate::Goes => gone.push((*id, container)),
        }
    }
    move_blocks(shared, &moving)?;
    for (id, container) in gone {
        remove(shared, id, container)?;
    }
    Ok(Collected { blocks: sweep.deleted, bytes: 0, roots: victims.len() as u64 })
}

/// Marks everything that stays; answers with the roots that are given up.
fn mark_all(shared: &Arc<Shared>, goal: Goal) -> Result<Vec<Cid>, StoreError> {
    let mut marker = Marker::new(shared);
    let mut pinned = Vec::new();
    shared.index.each_pin(|cid| pinned.push(cid))?;
    for cid in pinned.iter().chain(&shared.live.guarded()) {
        marker.mark(*cid)?;
    }
    let limit = shared.settings.limit_bytes;
    let budget = match goal {
        Goal::All => 0,
        // Nothing is given up for what would not fit beside what has to stay.
        Goal::Room(bytes) if marker.bytes.saturating_add(bytes) > limit => return Err(shared.full(bytes)),
        Goal::Room(bytes) => (limit / 10 * KEEP_TENTHS).checked_sub(bytes).unwrap_or(limit - bytes),
    };
    let mut roots = shared.index.roots()?;
    roots.sort_unstable_by_key(|(used, bytes, cid)| (std::cmp::Reverse(*used), *bytes, *cid));
    let mut victims = Vec::new();
    for (_, bytes, cid) in roots {
        let is_marked = shared.live.with_marks(|bloom| bloom.contains(fingerprint(cid.hash())));
        if is_marked == Some(true) {
            marker.mark(cid)?; // below another, or pinned
        } else if goal != Goal::All && marker.bytes.saturating_add(bytes) <= budget {
            marker.mark(cid)?;
        } else {
            victims.push(cid);
        }
    }
    Ok(victims)
}

/// Walks DAGs and marks their blocks.
pub(super) struct Marker<'a> {
    shared: &'a Shared,
    /// Nodes whose links were followed. Halves of their hashes are enough to tell them apart.
    seen: HashSet<[u8; 16]>,
    /// Bytes of what was marked first here.
    pub(super) bytes: u64,
}

impl<'a> Marker<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Marker { shared, seen: HashSet::new(), bytes: 0 }
    }

    /// Marks a block and everything below it that is here.
    pub(super) fn mark(&mut self, root: Cid) -> Result<(), StoreError> {
        let mut waiting = vec![root];
        while let Some(cid) = waiting.pop() {
            let is_new = self.shared.live.mark(cid.hash());
            if is_new && let Some(location) = self.shared.locate(&cid)? {
                self.bytes += u64::from(location.length);
            }
            if cid.codec() != DAG_PB || !self.seen.insert(half(cid.hash())) {
                continue;
            }
            if let Some(block) = self.shared.get_block(&cid)?
                && let Ok(node) = Node::decode(&block)
            {
                waiting.extend(node.links.iter().map(|link| link.cid));
            }
        }
        Ok(())
    }
}

fn half(hash: &Multihash<64>) -> [u8; 16] {
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(hash.digest()) {
        *to = *from;
    }
    half
}

/// What a copy of a block is to the collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Part of a file whose root stays.
    File,
    /// One among others, and as good as them.
    Loose,
    /// In a container that somebody writes to: it may be given up again.
    Unknown,
    /// In what an addition that failed left behind.
    None,
}

/// What becomes of a container.
enum Fate {
    Stays,
    /// Little of it is of use: its blocks move to the next segment.
    Moves,
    Goes,
}

/// The walk over all rows.
struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    /// Those to which nothing is added any more.
    containers: &'a HashMap<ContainerId, Container>,
    /// Bytes in use, by container.
    live: HashMap<ContainerId, u64>,
    deleted: u64,
}

impl Sweep<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let (rows, next) = self.shared.index.blocks(after.as_deref())?;
            let shared = Arc::clone(self.shared);
            let swept = shared.live.with_marks(|bloom| self.page(bloom, &rows));
            swept.unwrap_or(Err(StoreError::Stopped))?;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Deletes the rows of a page that nobody needs.
    fn page(&mut self, bloom: &Bloom, rows: &[BlockRow]) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for group in rows.chunk_by(|left, right| left.hash == right.hash) {
            let Some(first) = group.first() else { continue };
            let is_marked = bloom.contains(fingerprint(&first.hash));
            let in_files = group.iter().any(|row| self.use_of(bloom, row) == Use::File);
            let (mut kept, mut kept_loose) = (0, 0);
            for row in group {
                // Beside a file that stays, or one loose copy, other copies of a block are of no use.
                let wanted = is_marked
                    && match self.use_of(bloom, row) {
                        Use::File | Use::Unknown => true,
                        Use::Loose => !in_files && kept_loose == 0,
                        Use::None => false,
                    };
                if !wanted {
                    batch.delete_block(row.key.clone());
                    continue;
                }
                kept += 1;
                kept_loose += u64::from(self.use_of(bloom, row) == Use::Loose);
                *self.live.entry(row.location.container).or_default() += u64::from(row.location.length);
            }
            self.deleted += u64::from(kept == 0);
        }
        if batch.is_empty() { Ok(()) } else { self.shared.index.commit(&batch) }
    }

    fn use_of(&self, bloom: &Bloom, row: &BlockRow) -> Use {
        match self.containers.get(&row.location.container) {
            Some(Container::Flat { root, .. } | Container::Partial { root, .. })
                if bloom.contains(fingerprint(root.hash())) =>
            {
                Use::File
            }
            Some(Container::Adding { .. }) => Use::None,
            Some(_) => Use::Loose,
            None => Use::Unknown,
        }
    }

    fn fate(&self, id: ContainerId, container: &Container) -> Result<Fate, StoreError> {
        let live = self.live.get(&id).copied().unwrap_or(0);
        if let Container::Flat { root, .. } | Container::Partial { root, .. } = container {
            let is_named = self.shared.index.flat(root)?.is_some_and(|(named, _)| named == id);
            let decided = self.shared.live.with_marks(|bloom| {
                if is_named && bloom.contains(fingerprint(root.hash())) {
                    return Ok(true);
                }
                // Without its name it is a bag of blocks, until it goes as well.
                let mut batch = Batch::new();
                batch.put_container(id, &Container::Segment { length: container.length() });
                if is_named {
                    batch.delete_flat(root);
                }
                self.shared.index.commit(&batch).map(|()| false)
            });
            if decided.unwrap_or(Err(StoreError::Stopped))? {
                return Ok(Fate::Stays);
            }
        }
        let is_small_segment =
            matches!(container, Container::Segment { length } if *length < SMALL_SEGMENT_BYTES);
        Ok(match live {
            0 => Fate::Goes,
            live if is_small_segment || live.saturating_mul(2) < container.length() => Fate::Moves,
            _ => {
                self.shared.charge_whole(container);
                Fate::Stays
            }
        })
    }
}

/// Writes the blocks of these containers anew.
fn move_blocks(shared: &Shared, from: &HashSet<ContainerId>) -> Result<(), StoreError> {
    if from.is_empty() {
        return Ok(());
    }
    let mut after = None;
    let mut mover = Mover { shared, bytes: Vec::new(), rows: Vec::new() };
    loop {
        let (rows, next) = shared.index.blocks(after.as_deref())?;
        for row in rows.into_iter().filter(|row| from.contains(&row.location.container)) {
            mover.take(row)?;
        }
        match next {
            Some(next) => after = Some(next),
            None => return mover.write(),
        }
    }
}

struct Mover<'a> {
    shared: &'a Shared,
    bytes: Vec<u8>,
    rows: Vec<(BlockRow, usize)>,
}

impl Mover<'_> {
    fn take(&mut self, row: BlockRow) -> Result<(), StoreError> {
        let Some(stored) = self.shared.files.read(&row.location)? else {
            tracing::error!(location = ?row.location, "a block's bytes are missing: it is given up");
            let mut batch = Batch::new();
            batch.delete_block(row.key);
            return self.shared.index.commit(&batch);
        };
        let block = row.location.block(stored);
        self.bytes.extend_from_slice(&block);
        self.rows.push((row, block.len()));
        if self.rows.len() >= MOVE_ROWS || self.bytes.len() >= MOVE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        // Room is not asked for: what moves is what makes room.
        self.shared.charge(self.bytes.len() as u64);
        let (segment, mut offset) = self.shared.append_promised(&self.bytes)?;
        let mut work = Work::default();
        work.wrote(&segment);
        for (row, length) in self.rows.drain(..) {
            let location =
                Location { container: segment.id, form: Form::Plain, offset, length: length as u32 };
            work.batch.put_block(&row.hash, &location);
            work.batch.delete_block(row.key);
            offset += length as u64;
        }
        self.bytes.clear();
        self.shared.commit(work)
    }
}

/// Removes a container: first its row, then its file.
fn remove(shared: &Shared, id: ContainerId, container: &Container) -> Result<(), StoreError> {
    let mut work = Work::default();
    work.batch.delete_container(id);
    shared.commit(work)?;
    shared.give_room(container.charge());
    shared.files.remove(id)
}

/// Removes what an addition that never ended left in the index and on disk.
pub(super) fn remove_unfinished(shared: &Shared) -> Result<(), StoreError> {
    let unfinished: Vec<_> = shared.index.containers()?;
    let unfinished: HashMap<_, _> = unfinished
        .into_iter()
        .filter(|(_, container)| matches!(container, Container::Adding { .. }))
        .collect();
    if unfinished.is_empty() {
        return Ok(());
    }
    let mut after = None;
    loop {
        let (rows, next) = shared.index.blocks(after.as_deref())?;
        let mut batch = Batch::new();
        for row in rows.into_iter().filter(|row| unfinished.contains_key(&row.location.container)) {
            batch.delete_block(row.key);
        }
        shared.index.commit(&batch)?;
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    for (id, container) in &unfinished {
        remove(shared, *id, container)?;
    }
    Ok(())
}
