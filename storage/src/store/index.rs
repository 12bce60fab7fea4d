//! The index: which bytes of which container are which block, and what is pinned.
//!
//! All of it is rows in one redb file. A block may be in several containers (a leaf that two files share), so the
//! container is part of its key.

use std::path::Path;

use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;

use super::StoreError;
use crate::records::db::{Db, Kind};
use crate::records::{Batch, RecordsError, Settings, Table};
use crate::unixfs::{self, LeafFrame};

/// multihash + container → form, offset, length.
pub(super) const BLOCKS: Table = Table("blocks");
/// container → what it is.
const CONTAINERS: Table = Table("containers");
/// multihash of a file's root → its container.
const FLAT: Table = Table("flat");
/// CID + name → nothing.
const PINS: Table = Table("pins");
/// CID → bytes below it: what was added or fetched as a whole.
const ROOTS: Table = Table("roots");
/// CID → when it was last used, unix seconds.
const USED: Table = Table("used");

/// Rows read at once when a table is walked.
pub(super) const PAGE_ROWS: usize = 4096;

/// A file of the store, by number.
pub(super) type ContainerId = u64;

/// How a block's bytes follow from the bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// They are the same.
    Plain,
    /// A leaf that is not raw: the frame around its piece of the file is made anew.
    Framed(unixfs::Kind),
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) container: ContainerId,
    pub(super) form: Form,
    pub(super) offset: u64,
    /// Bytes on disk.
    pub(super) length: u32,
}

impl Location {
    /// Bytes of the block.
    pub(super) fn block_bytes(&self) -> u32 {
        match self.form {
            Form::Plain => self.length,
            Form::Framed(kind) => {
                LeafFrame::of(kind, self.length as usize).block_len(self.length as usize) as u32
            }
        }
    }

    /// The block made of the bytes on disk.
    pub(super) fn block(&self, stored: Vec<u8>) -> Bytes {
        match self.form {
            Form::Plain => stored.into(),
            Form::Framed(kind) => LeafFrame::of(kind, stored.len()).around(&stored).into(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let form = match self.form {
            Form::Plain => 0,
            Form::Framed(unixfs::Kind::Raw) => 1,
            Form::Framed(_) => 2,
        };
        let offset = self.offset.to_be_bytes();
        let skip = (self.offset.leading_zeros() / 8) as usize;
        // The offset without its leading zeros comes last: the index is most of what a small block costs.
        [&[form], &self.length.to_be_bytes()[1..], &offset[skip..]].concat()
    }

    fn decode(container: ContainerId, row: &[u8]) -> Option<Self> {
        let (form, rest) = row.split_first()?;
        let form = match form {
            0 => Form::Plain,
            1 => Form::Framed(unixfs::Kind::Raw),
            2 => Form::Framed(unixfs::Kind::File),
            _ => return None,
        };
        let (length, offset) = rest.split_first_chunk::<3>()?;
        let [high, middle, low] = *length;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let offset = offset.iter().fold(0_u64, |offset, byte| offset << 8 | u64::from(*byte));
        Some(Location { container, form, offset, length })
    }
}

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Container {
    /// Blocks one after the other; bytes behind `length` are of no meaning.
    Segment { length: u64 },
    /// A whole file.
    Flat { length: u64, root: Cid },
    /// A file of which leaves are still missing; `charged` bytes of it are counted as used.
    Partial { length: u64, charged: u64, root: Cid },
    /// A file that is being added; means nothing after a restart.
    Adding { length: u64 },
}

impl Container {
    pub(super) fn length(&self) -> u64 {
        match self {
            Container::Segment { length }
            | Container::Flat { length, .. }
            | Container::Partial { length, .. }
            | Container::Adding { length } => *length,
        }
    }

    /// Bytes that it counts as used: of an unfinished file only what was made room for, since its length is no more
    /// than what somebody says.
    pub(super) fn charge(&self) -> u64 {
        match self {
            Container::Partial { charged, .. } => *charged,
            whole => whole.length(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, charged, root) = match self {
            Container::Segment { .. } => (0, None, None),
            Container::Flat { root, .. } => (1, None, Some(root)),
            Container::Partial { charged, root, .. } => (4, Some(charged), Some(root)),
            Container::Adding { .. } => (3, None, None),
        };
        let mut row = vec![kind];
        row.extend(self.length().to_be_bytes());
        row.extend(charged.map(|charged| charged.to_be_bytes()).into_iter().flatten());
        row.extend(root.map(Cid::to_bytes).unwrap_or_default());
        row
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (kind, rest) = row.split_first()?;
        let (length, root) = rest.split_first_chunk::<8>()?;
        let length = u64::from_be_bytes(*length);
        let whole = || Cid::try_from(root).ok();
        Some(match kind {
            0 => Container::Segment { length },
            1 => Container::Flat { length, root: whole()? },
            // As it was written before it said what is charged: all of it.
            2 => Container::Partial { length, charged: length, root: whole()? },
            3 => Container::Adding { length },
            4 => {
                let (charged, root) = root.split_first_chunk::<8>()?;
                let (charged, root) = (u64::from_be_bytes(*charged), Cid::try_from(root).ok()?);
                Container::Partial { length, charged, root }
            }
            _ => return None,
        })
    }
}

/// A row of the table of blocks.
#[derive(Debug, Clone)]
pub(super) struct BlockRow {
    pub(super) key: Vec<u8>,
    pub(super) hash: Multihash<64>,
    pub(super) location: Location,
}

/// The open index.
#[derive(Debug)]
pub(super) struct Index {
    db: Db,
}

impl Index {
    pub(super) fn open(dir: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let db = Db::open(&dir.join("index.redb"), Kind::CONTENT, Settings { cache_bytes })?;
        Ok(Index { db })
    }

    /// Applies changes durably. After a failure the file is opened again at once, so that the next change has a
    /// chance: everything here can be read anew.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut result = self.db.commit(batch);
        if matches!(result, Err(RecordsError::Closed)) {
            self.db.reopen()?;
            result = self.db.commit(batch);
        }
        if let Err(error) = &result
            && error.needs_reopen()
            && let Err(error) = self.db.reopen()
        {
            tracing::error!(%error, "the content index could not be opened again");
        }
        Ok(result?)
    }

    pub(super) fn size_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.db.size_bytes()?)
    }

    /// Where a block is, if it is here; any place will do.
    pub(super) fn locate(&self, hash: &Multihash<64>) -> Result<Option<Location>, StoreError> {
        let prefix = hash.to_bytes();
        let found = self.db.first_with(BLOCKS, &prefix, |key, row| {
            let container = key.get(prefix.len()..)?.try_into().ok()?;
            Location::decode(u64::from_be_bytes(container), row)
        })?;
        Ok(found.flatten())
    }

    /// Where a block is in this container.
    pub(super) fn locate_in(
        &self,
        hash: &Multihash<64>,
        container: ContainerId,
    ) -> Result<Option<Location>, StoreError> {
        let row = self.db.get(BLOCKS, &block_key(hash, container))?;
        Ok(row.and_then(|row| Location::decode(container, &row)))
    }

    pub(super) fn block_count(&self) -> Result<u64, StoreError> {
        Ok(self.db.len(BLOCKS)?)
    }

    /// Blocks in the order of their hashes, from after a row's key on; the second part leads to the next page.
    pub(super) fn blocks(
        &self,
        after: Option<&[u8]>,
    ) -> Result<(Vec<BlockRow>, Option<Vec<u8>>), StoreError> {
        let page = self.db.scan_prefix(BLOCKS, &[], after, PAGE_ROWS)?;
        let rows = page.rows.into_iter().filter_map(|(key, row)| {
            let (hash, container) = key.split_last_chunk::<8>()?;
            let hash = Multihash::from_bytes(hash).ok()?;
            let location = Location::decode(u64::from_be_bytes(*container), &row)?;
            Some(BlockRow { key, hash, location })
        });
        Ok((rows.collect(), page.next))
    }

    pub(super) fn container(&self, id: ContainerId) -> Result<Option<Container>, StoreError> {
        let row = self.db.get(CONTAINERS, &id.to_be_bytes())?;
        Ok(row.and_then(|row| Container::decode(&row)))
    }

    /// All containers. There is one for each large file and for each 64 MiB of small blocks.
    pub(super) fn containers(&self) -> Result<Vec<(ContainerId, Container)>, StoreError> {
        let mut all = Vec::new();
        self.walk(CONTAINERS, &[], |key, row| {
            if let (Ok(id), Some(container)) = (key.try_into(), Container::decode(row)) {
                all.push((u64::from_be_bytes(id), container));
            }
        })?;
        Ok(all)
    }

    /// The container of a file, whole or not.
    pub(super) fn flat(&self, root: &Cid) -> Result<Option<(ContainerId, Container)>, StoreError> {
        let Some(id) = self.db.get(FLAT, &root.hash().to_bytes())? else { return Ok(None) };
        let Ok(id) = id.try_into().map(u64::from_be_bytes) else { return Ok(None) };
        Ok(self.container(id)?.map(|container| (id, container)))
    }

    pub(super) fn is_pinned(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.db.first_with(PINS, &cid.to_bytes(), |_, _| ())?.is_some())
    }

    pub(super) fn is_pinned_as(&self, cid: &Cid, name: &str) -> Result<bool, StoreError> {
        Ok(self.db.get(PINS, &pin_key(cid, name))?.is_some())
    }

    /// Pins in the order of their CIDs, from after a pin on.
    pub(super) fn pins(
        &self,
        after: Option<(&Cid, &str)>,
        limit: usize,
    ) -> Result<Vec<(Cid, String)>, StoreError> {
        let after = after.map(|(cid, name)| pin_key(cid, name));
        let page = self.db.scan_prefix(PINS, &[], after.as_deref(), limit)?;
        Ok(page.rows.iter().filter_map(|(key, _)| read_pin(key)).collect())
    }

    pub(super) fn each_pin(&self, mut take: impl FnMut(Cid)) -> Result<(), StoreError> {
        self.walk(PINS, &[], |key, _| {
            if let Some((cid, _)) = read_pin(key) {
                take(cid);
            }
        })
    }

    /// Everything that was added or fetched, as (when last used, bytes, CID).
    pub(super) fn roots(&self) -> Result<Vec<(u64, u64, Cid)>, StoreError> {
        let mut all = Vec::new();
        self.walk(ROOTS, &[], |key, row| {
            if let (Ok(cid), Ok(bytes)) = (Cid::try_from(key), row.try_into()) {
                all.push((0, u64::from_be_bytes(bytes), cid));
            }
        })?;
        for (used, _, cid) in &mut all {
            let row = self.db.get(USED, &cid.to_bytes())?;
            *used = row.and_then(|row| row.try_into().ok()).map_or(0, u64::from_be_bytes);
        }
        Ok(all)
    }

    /// How many bytes a root was said to have when it was last whole; `None` for what is no root.
    pub(super) fn root_bytes(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        let row = self.db.get(ROOTS, &cid.to_bytes())?;
        Ok(row.and_then(|row| row.try_into().ok()).map(u64::from_be_bytes))
    }

    fn walk(
        &self,
        table: Table,
        prefix: &[u8],
        mut take: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.db.scan_prefix(table, prefix, after.as_deref(), PAGE_ROWS)?;
            for (key, row) in &page.rows {
                take(key, row);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

fn block_key(hash: &Multihash<64>, container: ContainerId) -> Vec<u8> {
    let mut key = hash.to_bytes();
    key.extend(container.to_be_bytes());
    key
}

fn pin_key(cid: &Cid, name: &str) -> Vec<u8> {
    let mut key = cid.to_bytes();
    key.extend(name.as_bytes());
    key
}

fn read_pin(key: &[u8]) -> Option<(Cid, String)> {
    let mut rest = key;
    let cid = Cid::read_bytes(&mut rest).ok()?;
    Some((cid, String::from_utf8(rest.to_vec()).ok()?))
}

/// Changes to the index, in the index's own words.
pub(super) trait Changes {
    fn put_block(&mut self, hash: &Multihash<64>, location: &Location);
    fn delete_block(&mut self, key: Vec<u8>);
    fn put_container(&mut self, id: ContainerId, container: &Container);
    fn delete_container(&mut self, id: ContainerId);
    fn put_flat(&mut self, root: &Cid, id: ContainerId);
    fn delete_flat(&mut self, root: &Cid);
    fn put_pin(&mut self, cid: &Cid, name: &str);
    fn delete_pin(&mut self, cid: &Cid, name: &str);
    fn put_root(&mut self, cid: &Cid, bytes: u64, used: u64);
    fn put_used(&mut self, cid: &Cid, used: u64);
    fn delete_root(&mut self, cid: &Cid);
}

impl Changes for Batch {
    fn put_block(&mut self, hash: &Multihash<64>, location: &Location) {
        self.put(BLOCKS, block_key(hash, location.container), location.encode());
    }

    fn delete_block(&mut self, key: Vec<u8>) {
        self.delete(BLOCKS, key);
    }

    fn put_container(&mut self, id: ContainerId, container: &Container) {
        self.put(CONTAINERS, id.to_be_bytes(), container.encode());
    }

    fn delete_container(&mut self, id: ContainerId) {
        self.delete(CONTAINERS, id.to_be_bytes());
    }

    fn put_flat(&mut self, root: &Cid, id: ContainerId) {
        self.put(FLAT, root.hash().to_bytes(), id.to_be_bytes());
    }

    fn delete_flat(&mut self, root: &Cid) {
        self.delete(FLAT, root.hash().to_bytes());
    }

    fn put_pin(&mut self, cid: &Cid, name: &str) {
        self.put(PINS, pin_key(cid, name), []);
    }

    fn delete_pin(&mut self, cid: &Cid, name: &str) {
        self.delete(PINS, pin_key(cid, name));
    }

    fn put_root(&mut self, cid: &Cid, bytes: u64, used: u64) {
        self.put(ROOTS, cid.to_bytes(), bytes.to_be_bytes());
        self.put_used(cid, used);
    }

    fn put_used(&mut self, cid: &Cid, used: u64) {
        self.put(USED, cid.to_bytes(), used.to_be_bytes());
    }

    fn delete_root(&mut self, cid: &Cid) {
        self.delete(ROOTS, cid.to_bytes());
        self.delete(USED, cid.to_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::Block;
    use crate::records::db::Db;
    use crate::records::faults::Disk;

    #[test]
    fn a_full_disk_fails_one_change_and_not_the_next() {
        let disk = Disk::new(u64::MAX);
        let index = Index { db: Db::on_disk(&disk, Kind::CONTENT).expect("opens") };
        let block = Block::raw("kept");
        let location = Location { container: 1, form: Form::Plain, offset: 2, length: 4 };
        let mut batch = Batch::new();
        batch.put_block(block.cid.hash(), &location);
        index.commit(&batch).expect("commits");
        let mut large = Batch::new();
        for number in 0..100_000_u64 {
            large.put_used(&Block::raw(number.to_be_bytes().to_vec()).cid, number);
        }
        disk.full.store(true, std::sync::atomic::Ordering::SeqCst);
        for _ in 0..3 {
            assert!(index.commit(&large).expect_err("has no room").is_full());
            assert_eq!(index.locate(block.cid.hash()).expect("reads go on"), Some(location));
        }
        disk.full.store(false, std::sync::atomic::Ordering::SeqCst);
        index.commit(&large).expect("commits again");
        disk.broken.store(true, std::sync::atomic::Ordering::SeqCst);
        index.commit(&batch).expect_err("fails, and so may opening again");
        disk.broken.store(false, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(index.locate(block.cid.hash()).expect("reads again"), Some(location));
        index.commit(&batch).expect("commits again");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn locations_survive_encoding(container: u64, offset: u64, length in 0..1_u32 << 24, form in 0..3) {
            let form = [Form::Plain, Form::Framed(unixfs::Kind::Raw), Form::Framed(unixfs::Kind::File)][form as usize];
            let location = Location { container, form, offset, length };
            prop_assert_eq!(Location::decode(container, &location.encode()), Some(location));
        }

        #[test]
        fn containers_survive_encoding(length: u64, charged: u64, kind in 0..4) {
            let root = Block::raw(length.to_be_bytes().to_vec()).cid;
            let container = match kind {
                0 => Container::Segment { length },
                1 => Container::Flat { length, root },
                2 => Container::Partial { length, charged, root },
                _ => Container::Adding { length },
            };
            prop_assert_eq!(Container::decode(&container.encode()), Some(container));
        }

        #[test]
        fn any_row_decodes_or_is_skipped(row in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (Location::decode(0, &row), Container::decode(&row), read_pin(&row));
        }
    }
}
