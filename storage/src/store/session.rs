//! Writing blocks: gathered, appended in large pieces, made visible by one commit.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;

use super::StoreError;
use super::commit::Work;
use super::files::DataFile;
use super::index::{Changes, Form, Location};
use super::live::Writer;
use super::shared::Shared;
use crate::block::{self, Block};

/// Blocks gathered before they are written in one piece.
const BUFFER_BYTES: usize = 1024 * 1024;
/// Blocks before an interim commit: bounds the memory of a large addition.
const COMMIT_BLOCKS: usize = 32 * 1024;

/// One addition in progress. What it touched stays until it is dropped.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    writer: Writer,
    /// Computes and stores nothing.
    dry: bool,
    buffer: Vec<u8>,
    buffered: Vec<(Multihash<64>, usize)>,
    /// Blocks that are not in the index yet, and where those are that were written.
    uncommitted: HashMap<Multihash<64>, Option<Location>>,
    pub(super) work: Work,
}

/// A part of a session on its way to disk.
#[derive(Debug)]
pub(super) struct Part {
    work: Work,
    blocks: Vec<Multihash<64>>,
}

impl Part {
    /// Makes it durable and visible; answers with its blocks.
    pub(super) fn finish(self, shared: &Shared) -> Result<Vec<Multihash<64>>, StoreError> {
        if !self.work.batch.is_empty() || !self.work.sync.is_empty() {
            shared.commit(self.work)?;
        }
        Ok(self.blocks)
    }
}

impl Session {
    pub(super) fn new(shared: &Arc<Shared>, dry: bool) -> Self {
        Session {
            shared: Arc::clone(shared),
            writer: shared.live.writer(),
            dry,
            buffer: Vec::new(),
            buffered: Vec::new(),
            uncommitted: HashMap::new(),
            work: Work::default(),
        }
    }

    pub(super) fn is_dry(&self) -> bool {
        self.dry
    }

    /// Whether a block is here; from now on it stays.
    pub(super) fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        if block::inline(cid).is_some() || self.uncommitted.contains_key(cid.hash()) {
            return Ok(true);
        }
        self.writer.touch(cid.hash());
        Ok(self.shared.index.locate(cid.hash())?.is_some())
    }

    /// Says that a block must stay.
    pub(super) fn touch(&self, cid: &Cid) {
        self.writer.touch(cid.hash());
    }

    /// Writes a block whose bytes are known to be right, unless it is here.
    pub(super) fn put(&mut self, block: &Block) -> Result<(), StoreError> {
        if self.dry || self.has(&block.cid)? {
            return Ok(());
        }
        let hash = *block.cid.hash();
        self.buffer.extend_from_slice(&block.data);
        self.buffered.push((hash, block.data.len()));
        self.uncommitted.insert(hash, None);
        if self.buffer.len() >= BUFFER_BYTES {
            self.write_out()?;
        }
        if self.uncommitted.len() >= COMMIT_BLOCKS {
            self.commit()?;
        }
        Ok(())
    }

    /// The bytes of a block, also of one that is not committed yet.
    pub(super) fn get(&mut self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if self.uncommitted.get(cid.hash()) == Some(&None) {
            self.write_out()?;
        }
        match self.uncommitted.get(cid.hash()) {
            Some(Some(location)) => {
                Ok(self.shared.files.read(location)?.map(|stored| location.block(stored)))
            }
            _ => self.shared.get_block(cid),
        }
    }

    /// Notes where a block of a flat file is.
    pub(super) fn place(&mut self, hash: &Multihash<64>, location: &Location) {
        self.work.batch.put_block(hash, location);
        self.uncommitted.insert(*hash, Some(*location));
    }

    /// How much waits for the next commit.
    pub(super) fn uncommitted(&self) -> usize {
        self.work.batch.len()
    }

    /// Whether anything waits for a commit.
    pub(super) fn has_news(&self) -> bool {
        !(self.uncommitted.is_empty() && self.work.batch.is_empty() && self.work.sync.is_empty())
    }

    /// Notes that a flat file was written to.
    pub(super) fn wrote(&mut self, file: &Arc<DataFile>) {
        self.work.wrote(file);
    }

    /// Makes everything so far durable and visible.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        let part = self.begin_commit()?;
        let blocks = part.finish(&self.shared)?;
        self.end_commit(&blocks);
        Ok(())
    }

    /// Takes out what is to be committed, so that it can be while others go on writing.
    pub(super) fn begin_commit(&mut self) -> Result<Part, StoreError> {
        self.write_out()?;
        let blocks = self.uncommitted.keys().copied().collect();
        Ok(Part { work: std::mem::take(&mut self.work), blocks })
    }

    /// Says that these blocks are in the index now.
    pub(super) fn end_commit(&mut self, blocks: &[Multihash<64>]) {
        for hash in blocks {
            self.uncommitted.remove(hash);
        }
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        if self.buffered.is_empty() {
            return Ok(()); // and not the buffer: an empty block is a block
        }
        let (segment, base) = self.shared.append(&self.buffer)?;
        let mut offset = base;
        for (hash, length) in self.buffered.drain(..) {
            let location =
                Location { container: segment.id, form: Form::Plain, offset, length: length as u32 };
            self.work.batch.put_block(&hash, &location);
            self.uncommitted.insert(hash, Some(location));
            offset += length as u64;
        }
        self.work.wrote(&segment);
        self.buffer.clear();
        Ok(())
    }
}
