//! The disk's side of a fetch: walks the DAG, says what is missing, puts what arrives where it belongs.

mod file;
mod walk;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;

use super::files::lock;
use super::index::Changes;
use super::session::Session;
use super::shared::Shared;
use super::{Guard, StoreError, now_secs};
use crate::block::{self, Block, MAX_BLOCK_BYTES, RAW};
use crate::fetch::{Accepted, FetchError, FetchLimits, Progress, Sink, Want};
use crate::read::stat_block;
use crate::unixfs::{Kind, Node};

use file::FileFetch;
use walk::{Child, Place, Walk};

/// Bytes after which progress is made durable: what a crash costs at most.
const FLUSH_BYTES: u64 = 64 * 1024 * 1024;
/// Rows of the index after which it is as well: what is placed from blocks that are here brings no bytes, and takes
/// memory all the same.
const FLUSH_ROWS: usize = 32 * 1024;
/// Blocks that are looked at in one go. Between two goes a fetch can be given up.
const LOOKED_AT: usize = 1024;

/// A fetch in progress: the store's [`Sink`]. Clones share it.
#[derive(Debug, Clone)]
pub struct FetchSession {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    root: Cid,
    limits: FetchLimits,
    walk: Mutex<Walk>,
    session: Mutex<Session>,
    flushing: Mutex<()>,
    _guard: Guard,
}

impl FetchSession {
    pub(super) fn begin(shared: &Arc<Shared>, root: Cid, limits: FetchLimits) -> Result<Self, StoreError> {
        block::check_name(&root)?;
        let inner = Inner {
            shared: Arc::clone(shared),
            root,
            limits,
            walk: Mutex::new(Walk::new(root)),
            session: Mutex::new(Session::new(shared, false)),
            flushing: Mutex::default(),
            _guard: Guard::new(shared, root)?,
        };
        Ok(FetchSession { inner: Arc::new(inner) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let inner = Arc::clone(&self.inner);
        let stopped = |_| self.inner.failed(StoreError::Stopped);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(stopped)?
    }
}

#[async_trait]
impl Sink for FetchSession {
    fn root(&self) -> Cid {
        self.inner.root
    }

    async fn next_wants(&self, max_blocks: usize, max_bytes: u64) -> Result<Vec<Want>, FetchError> {
        let mut wants = Vec::new();
        let mut room = Room { blocks: max_blocks, bytes: max_bytes };
        loop {
            let (found, left) = self.run(move |inner| inner.next_wants(room)).await?;
            wants.extend(found);
            match left {
                Some(left) => room = left,
                None => return Ok(wants),
            }
        }
    }

    fn hand_back(&self, cid: &Cid) {
        lock(&self.inner.walk).hand_back(cid);
    }

    async fn accept(&self, cid: Cid, data: Bytes) -> Result<Accepted, FetchError> {
        if !lock(&self.inner.walk).is_asked(&cid) {
            return Ok(Accepted::NotWanted);
        }
        self.run(move |inner| {
            block::verify(&cid, &data)?;
            inner.accept(Block { cid, data })
        })
        .await
    }

    async fn accept_hashed(&self, cid: Cid, data: Bytes) -> Result<Accepted, FetchError> {
        if !lock(&self.inner.walk).is_asked(&cid) {
            return Ok(Accepted::NotWanted);
        }
        self.run(move |inner| inner.accept(Block { cid, data })).await
    }

    fn progress(&self) -> Progress {
        lock(&self.inner.walk).progress()
    }

    async fn finish(&self) -> Result<(), FetchError> {
        self.run(Inner::finish).await
    }
}

impl Inner {
    /// The next wants of one go, and the room that is left for those of another, if there is reason for one.
    fn next_wants(&self, mut room: Room) -> Result<(Vec<Want>, Option<Room>), FetchError> {
        let mut wants: Vec<Want> = Vec::new();
        for _ in 0..LOOKED_AT {
            if room.blocks == 0 || room.bytes == 0 {
                return Ok((wants, None));
            }
            let Some(child) = lock(&self.walk).next() else { return Ok((wants, None)) };
            let done = self.look(child, &mut wants);
            match done {
                Ok(Some(size)) => {
                    room = Room { blocks: room.blocks - 1, bytes: room.bytes.saturating_sub(size) };
                }
                Ok(None) => {}
                Err((child, error)) => {
                    lock(&self.walk).give_up(child);
                    return Err(error);
                }
            }
        }
        self.flush_if_due()?;
        Ok((wants, Some(room)))
    }

    /// Skips what is here and notes what is not; answers with the size of a want.
    fn look(&self, child: Child, wants: &mut Vec<Want>) -> Result<Option<u64>, (Child, FetchError)> {
        let cid = child.cid;
        match self.local(&child) {
            Ok(Local::Done(bytes)) => {
                lock(&self.walk).done(bytes, 0);
                Ok(None)
            }
            Ok(Local::Here(data)) => {
                self.put(&child, Block { cid, data }, false).map_err(|error| (child, error))?;
                Ok(None)
            }
            Ok(Local::Missing) => {
                let want = Want { cid, size_bytes: child.block_bytes };
                wants.push(want);
                lock(&self.walk).ask(child);
                Ok(Some(want.size_bytes.unwrap_or(crate::fetch::UNKNOWN_SIZE_BYTES)))
            }
            Err(error) => Err((child, self.failed(error))),
        }
    }

    fn local(&self, child: &Child) -> Result<Local, StoreError> {
        let mut session = lock(&self.session);
        if !session.has(&child.cid)? {
            return Ok(Local::Missing);
        }
        let is_leaf = child.cid.codec() == RAW;
        let here = |size: Option<u32>| Local::Done(u64::from(size.unwrap_or(0)));
        match &child.place {
            Place::InFile { file, offset, bytes } => {
                let place = self.shared.index.locate_in(child.cid.hash(), file.id())?;
                if place.is_some_and(|place| place.offset == *offset && u64::from(place.length) == *bytes) {
                    file.wrote(*bytes);
                    lock(&self.walk).file_bytes += *bytes;
                    return Ok(here(place.map(|place| place.block_bytes())));
                }
            }
            Place::Alone if is_leaf => {
                return Ok(here(self.shared.locate(&child.cid)?.map(|place| place.block_bytes())));
            }
            Place::Alone => {}
        }
        // One that vanished between is asked for like any other.
        Ok(session.get(&child.cid)?.map_or(Local::Missing, Local::Here))
    }

    /// Takes a verified block.
    fn accept(&self, block: Block) -> Result<Accepted, FetchError> {
        let Some(child) = lock(&self.walk).take(&block.cid) else { return Ok(Accepted::NotWanted) };
        if let Err(error) = self.put(&child, block, true) {
            lock(&self.walk).give_up(child);
            return Err(error);
        }
        self.flush_if_due()?;
        Ok(Accepted::Stored)
    }

    /// Puts a verified block where it belongs and notes what it leads to.
    fn put(&self, child: &Child, block: Block, is_fetched: bool) -> Result<(), FetchError> {
        let bytes = block.data.len() as u64;
        let below = match block.cid.codec() {
            RAW => self.put_leaf(child, &block)?,
            block::DAG_PB => self.put_node(child, &block)?,
            _ if matches!(child.place, Place::InFile { .. }) => {
                return Err(self.malformed(child.cid, "a part of a file with an unknown codec"));
            }
            _ => self.put_block(&block)?,
        };
        let mut walk = lock(&self.walk);
        if block.cid == self.root {
            let total = stat_block(block.cid, &block.data).map_or(bytes, |stat| stat.total_bytes);
            walk.total_bytes = Some(total);
            self.check_bytes("it has", total)?;
        }
        self.check_bytes("it has at least", walk.known_bytes().saturating_add(bytes))?;
        let has_room = walk.descend(below, &self.limits);
        has_room.map_err(|what| self.refused(what))?;
        walk.done(bytes, if is_fetched { bytes } else { 0 });
        Ok(())
    }

    fn check_bytes(&self, what: &str, bytes: u64) -> Result<(), FetchError> {
        let limit = self.limits.max_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(self.refused(format!("{what} {bytes} bytes where {limit} are allowed")))
    }

    fn put_leaf(&self, child: &Child, block: &Block) -> Result<Vec<Child>, FetchError> {
        if let Place::InFile { file, offset, bytes } = &child.place {
            if *bytes != block.data.len() as u64 {
                return Err(self.malformed(child.cid, "its size is not what the node above it says"));
            }
            self.write(file, block, &block.data, *offset, None)?;
            lock(&self.walk).file_bytes += *bytes;
            return Ok(Vec::new());
        }
        let Some(file) = self.begin_file(child.cid, block.data.len() as u64)? else {
            return self.put_block(block);
        };
        self.write(&file, block, &block.data, 0, None)?;
        Ok(Vec::new())
    }

    fn put_node(&self, child: &Child, block: &Block) -> Result<Vec<Child>, FetchError> {
        let broken = |error: crate::unixfs::UnixfsError| self.malformed(child.cid, &error.to_string());
        let node = Node::decode(&block.data).map_err(broken)?;
        match (node.unixfs(), &child.place) {
            (Ok(data), _) if matches!(data.kind, Kind::File | Kind::Raw) => {
                self.put_file_node(child, block, &node, &data)
            }
            (_, Place::InFile { .. }) => Err(self.malformed(child.cid, "a part of a file that is none")),
            // A directory, a link, or a node that is none of ours: everything it links to belongs to it.
            _ => {
                self.put_block(block)?;
                Ok(node.links.iter().map(|link| child.below(link.cid, None, Place::Alone)).collect())
            }
        }
    }

    fn put_file_node(
        &self,
        child: &Child,
        block: &Block,
        node: &Node,
        data: &crate::unixfs::Data,
    ) -> Result<Vec<Child>, FetchError> {
        let size = file::size(data, node).map_err(|what| self.malformed(child.cid, what))?;
        let (file, start) = match &child.place {
            Place::InFile { bytes, .. } if *bytes != size => {
                return Err(self.malformed(child.cid, "its size is not what the node above it says"));
            }
            Place::InFile { file, offset, .. } => (Some(Arc::clone(file)), *offset),
            Place::Alone => (self.begin_file(child.cid, size)?, 0),
        };
        let Some(file) = file else {
            self.put_block(block)?;
            let leaves = node.links.iter().zip(&data.block_bytes);
            return Ok(leaves.map(|(link, size)| child.below(link.cid, Some(*size), Place::Alone)).collect());
        };
        let frame = node.links.is_empty().then_some(data.kind);
        self.write(&file, block, &data.data, start, frame)?;
        let mut offset = start + data.data.len() as u64;
        let mut below = Vec::with_capacity(node.links.len());
        for (link, bytes) in node.links.iter().zip(&data.block_bytes) {
            let place = if *bytes == 0 {
                Place::Alone // adds nothing to the file, and is wanted all the same
            } else {
                Place::InFile { file: Arc::clone(&file), offset, bytes: *bytes }
            };
            below.push(child.below(link.cid, Some(*bytes), place));
            offset += bytes;
        }
        Ok(below)
    }

    /// The flat file for this root, or `None` for one that is small or is here already.
    fn begin_file(&self, root: Cid, size: u64) -> Result<Option<Arc<FileFetch>>, FetchError> {
        self.check_bytes("a file in it has", size)?;
        let session = lock(&self.session);
        let file =
            FileFetch::begin(&self.shared, &session, root, size).map_err(|error| self.failed(error))?;
        drop(session);
        Ok(file.map(|file| lock(&self.walk).add_file(file)))
    }

    /// Writes a piece of a file, and notes the block around it: as a range of the file where that is all there is to it.
    fn write(
        &self,
        file: &FileFetch,
        block: &Block,
        piece: &[u8],
        offset: u64,
        frame: Option<Kind>,
    ) -> Result<(), FetchError> {
        let written = file.write(&self.shared, piece, offset);
        written.map_err(|error| self.failed(error))?;
        let mut session = lock(&self.session);
        session.wrote(file.data());
        match file.location(block, piece, offset, frame) {
            Some(location) => {
                session.touch(&block.cid);
                session.place(block.cid.hash(), &location);
            }
            None => session.put(block).map_err(|error| self.failed(error))?,
        }
        drop(session);
        file.wrote(piece.len() as u64);
        Ok(())
    }

    fn put_block(&self, block: &Block) -> Result<Vec<Child>, FetchError> {
        lock(&self.session).put(block).map_err(|error| self.failed(error))?;
        Ok(Vec::new())
    }

    /// Makes progress durable now and then, beside those who go on writing.
    fn flush_if_due(&self) -> Result<(), FetchError> {
        let rows = lock(&self.session).uncommitted();
        if rows < FLUSH_ROWS && lock(&self.walk).unflushed < FLUSH_BYTES {
            return Ok(());
        }
        let _one_at_a_time = match self.flushing.try_lock() {
            Ok(turn) => turn,
            // Whoever is too far ahead of the disk waits for it.
            Err(_) if rows >= 4 * FLUSH_ROWS => lock(&self.flushing),
            Err(_) => return Ok(()),
        };
        lock(&self.walk).unflushed = 0;
        self.flush(None)
    }

    fn flush(&self, total_bytes: Option<u64>) -> Result<(), FetchError> {
        let files = lock(&self.walk).files();
        let flushed = (|| {
            let mut session = lock(&self.session);
            for file in &files {
                file.note(&mut session)?;
            }
            let bytes = total_bytes.unwrap_or(0);
            session.work.batch.put_root(&self.root, bytes, now_secs());
            let part = session.begin_commit()?;
            drop(session);
            let blocks = part.finish(&self.shared)?;
            lock(&self.session).end_commit(&blocks);
            Ok(())
        })();
        flushed.map_err(|error| self.failed(error))?;
        lock(&self.walk).forget_whole_files();
        Ok(())
    }

    fn finish(&self) -> Result<(), FetchError> {
        let progress = lock(&self.walk).progress();
        if !progress.complete {
            return Err(FetchError::Incomplete(self.root));
        }
        if self.was_whole(progress.bytes).map_err(|error| self.failed(error))? {
            self.shared.commits.touch(&self.root);
            return Ok(());
        }
        self.flush(Some(progress.bytes))
    }

    /// Whether there is nothing to write: all of it was here, and is known as a root of this size. Then the word that
    /// it was used again goes with the next commit.
    fn was_whole(&self, bytes: u64) -> Result<bool, StoreError> {
        let has_news = lock(&self.session).has_news() || !lock(&self.walk).files().is_empty();
        Ok(!has_news && self.shared.index.root_bytes(&self.root)? == Some(bytes))
    }

    fn failed(&self, error: StoreError) -> FetchError {
        FetchError::Store(self.root, Box::new(error))
    }

    fn malformed(&self, at: Cid, what: &str) -> FetchError {
        FetchError::Malformed { root: self.root, at, what: what.to_owned() }
    }

    fn refused(&self, what: String) -> FetchError {
        FetchError::Limit { root: self.root, what }
    }
}

/// How much is still to be asked for.
#[derive(Debug, Clone, Copy)]
struct Room {
    blocks: usize,
    bytes: u64,
}

/// What is here of a child.
enum Local {
    /// All of it, in its place; so many bytes.
    Done(u64),
    /// Its bytes; they are looked into or copied.
    Here(Bytes),
    Missing,
}

const _: () = assert!(MAX_BLOCK_BYTES < u32::MAX as usize);
