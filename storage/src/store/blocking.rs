//! The store for threads that may wait.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cid::Cid;

use super::add::{self, AddOptions, Added};
use super::checkout::{self, Cancel, Checkout, Checkouts};
use super::commit::Work;
use super::fetching::FetchSession;
use super::files::Files;
use super::gc::{self, Collected, Goal};
use super::index::{Changes, Form, Index};
use super::session::Session;
use super::shared::Shared;
use super::verify::{self, Verified};
use super::{Guard, Settings, StoreError, now_secs};
use crate::block::{self, Block};
use crate::fetch::FetchLimits;
use crate::read::Limits;

/// A name under which content is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pin {
    /// What is kept, with everything below it.
    pub cid: Cid,
    /// For whom: what names a job version, or `""` for the user. At most 1 KiB.
    pub name: String,
}

impl Pin {
    /// A pin under a name.
    pub fn new(cid: Cid, name: impl Into<String>) -> Self {
        Pin { cid, name: name.into() }
    }
}

/// The longest name of a pin.
const MAX_PIN_NAME: usize = 1024;

/// Where a block's bytes are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockPlace {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// Bytes there.
    pub length: u32,
    /// Whether these bytes are the block; else they are the piece of a file inside it.
    pub is_whole: bool,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of all containers and checkouts, with what is promised to additions that go on.
    pub bytes: u64,
    /// What they may come to.
    pub limit_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Places of blocks.
    pub blocks: u64,
}

/// The content store; clones share it. Every method may wait for the disk.
#[derive(Debug, Clone)]
pub struct Blocking {
    shared: Arc<Shared>,
}

impl Blocking {
    /// See [`Store::open`](super::Store::open).
    pub fn open(dir: &Path, settings: Settings) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        // The index is locked by its first opener, so that from here on the folder is ours.
        let index = Index::open(dir, settings.cache_bytes)?;
        let containers = index.containers()?;
        let files = Files::open(dir.join("data"), &containers)?;
        let used: u64 = containers.iter().map(|(_, container)| container.charge()).sum();
        let shared = Shared {
            dir: dir.to_owned(),
            settings,
            index,
            files,
            commits: Default::default(),
            live: Default::default(),
            used: used.into(),
            releases: 0.into(),
            collector: Mutex::default(),
            checkouts: Checkouts::new(),
        };
        gc::remove_unfinished(&shared)?;
        let charged = checkout::open(&shared)?;
        shared.charge(charged);
        Ok(Blocking { shared: Arc::new(shared) })
    }

    /// Whether a block is here.
    pub fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(block::inline(cid).is_some() || self.shared.locate(cid)?.is_some())
    }

    /// The size of a block that is here.
    pub fn block_size(&self, cid: &Cid) -> Result<Option<u32>, StoreError> {
        if let Some(inline) = block::inline(cid) {
            return Ok(Some(inline.len() as u32));
        }
        Ok(self.shared.locate(cid)?.map(|location| location.block_bytes()))
    }

    /// Where a block that is here lies; `None` for one that a CID carries itself.
    pub fn block_location(&self, cid: &Cid) -> Result<Option<BlockPlace>, StoreError> {
        Ok(self.shared.locate(cid)?.map(|location| BlockPlace {
            path: self.shared.files.path(location.container),
            offset: location.offset,
            length: location.length,
            is_whole: location.form == Form::Plain,
        }))
    }

    /// See [`Store::raw_root`](super::Store::raw_root).
    pub fn raw_root(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        if cid.codec() != block::RAW || self.shared.index.root_bytes(cid)?.is_none() {
            return Ok(None);
        }
        let size = self.block_size(cid)?;
        if size.is_some() {
            self.touch(cid);
        }
        Ok(size.map(u64::from))
    }

    /// The bytes of a block that is here.
    pub fn get_block(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        self.shared.get_block(cid)
    }

    /// See [`Store::put_blocks`](super::Store::put_blocks).
    pub fn put_blocks(&self, blocks: &[Block]) -> Result<(), StoreError> {
        self.put_pinned(blocks, &[])
    }

    /// See [`Store::put_pinned`](super::Store::put_pinned).
    pub fn put_pinned(&self, blocks: &[Block], pins: &[Pin]) -> Result<(), StoreError> {
        for block in blocks {
            block::verify(&block.cid, &block.data)?;
        }
        let mut session = Session::new(&self.shared, false);
        for block in blocks {
            session.put(block)?;
        }
        // Pins go into the same commit as the blocks; the session holds on to both until then.
        for pin in pins {
            check_name(pin)?;
            if !session.has(&pin.cid)? {
                return Err(StoreError::NotFound(pin.cid));
            }
            session.work.batch.put_pin(&pin.cid, &pin.name);
        }
        session.commit()?;
        self.mark_pins(pins)
    }

    /// See [`Store::add_path`](super::Store::add_path).
    pub fn add_path(&self, path: &Path, options: &AddOptions) -> Result<Added, StoreError> {
        add::add_path(&self.shared, path, options)
    }

    /// See [`Store::add_reader`](super::Store::add_reader).
    pub fn add_reader(
        &self,
        reader: &mut dyn Read,
        name: Option<&str>,
        options: &AddOptions,
    ) -> Result<Added, StoreError> {
        add::add_reader(&self.shared, reader, name, options)
    }

    /// See [`Store::pin`](super::Store::pin).
    pub fn pin(&self, pins: &[Pin]) -> Result<(), StoreError> {
        self.put_pinned(&[], pins)
    }

    /// See [`Store::unpin`](super::Store::unpin).
    pub fn unpin(&self, pins: &[Pin]) -> Result<(), StoreError> {
        let mut work = Work::default();
        for pin in pins {
            check_name(pin)?;
            work.batch.delete_pin(&pin.cid, &pin.name);
        }
        self.shared.commit(work)?;
        self.shared.released();
        Ok(())
    }

    /// Whether something is pinned itself, under any name.
    pub fn is_pinned(&self, cid: &Cid) -> Result<bool, StoreError> {
        self.shared.index.is_pinned(cid)
    }

    /// Whether something is pinned under this name.
    pub fn is_pinned_as(&self, pin: &Pin) -> Result<bool, StoreError> {
        self.shared.index.is_pinned_as(&pin.cid, &pin.name)
    }

    /// Pins in a fixed order, from after one on; none when there are no more.
    pub fn pins(&self, after: Option<&Pin>, limit: usize) -> Result<Vec<Pin>, StoreError> {
        let after = after.map(|pin| (&pin.cid, pin.name.as_str()));
        let pins = self.shared.index.pins(after, limit)?;
        Ok(pins.into_iter().map(|(cid, name)| Pin { cid, name }).collect())
    }

    /// See [`Store::guard`](super::Store::guard).
    pub fn guard(&self, cid: &Cid) -> Result<Guard, StoreError> {
        Guard::new(&self.shared, *cid)
    }

    /// See [`Store::collect_garbage`](super::Store::collect_garbage).
    pub fn collect_garbage(&self) -> Result<Collected, StoreError> {
        gc::collect(&self.shared, Goal::All)
    }

    /// See [`Store::verify`](super::Store::verify).
    pub fn verify(&self, forget: bool) -> Result<Verified, StoreError> {
        verify::verify(&self.shared, forget)
    }

    /// See [`Store::checkout`](super::Store::checkout).
    pub fn checkout(&self, cid: &Cid) -> Result<Checkout, StoreError> {
        self.checkout_within(cid, self.checkout_limits(), &Cancel::default())
    }

    pub(super) fn checkout_within(
        &self,
        cid: &Cid,
        limits: Limits,
        cancel: &Cancel,
    ) -> Result<Checkout, StoreError> {
        let guard = self.guard(cid)?;
        if !self.has(cid)? {
            return Err(StoreError::NotFound(*cid));
        }
        checkout::checkout(&self.shared, guard, limits, cancel)
    }

    /// No checkout takes more than half of the store.
    pub(super) fn checkout_limits(&self) -> Limits {
        Limits { max_bytes: self.shared.settings.limit_bytes / 2, ..Limits::default() }
    }

    /// See [`Store::fetch`](super::Store::fetch).
    pub fn fetch(&self, root: &Cid, limits: FetchLimits) -> Result<FetchSession, StoreError> {
        FetchSession::begin(&self.shared, *root, limits)
    }

    /// See [`Store::touch`](super::Store::touch).
    pub fn touch(&self, root: &Cid) {
        self.shared.commits.touch(root);
    }

    /// Everything that was added or fetched as a whole, the most recently used first, with its bytes.
    pub fn roots(&self) -> Result<Vec<(Cid, u64)>, StoreError> {
        let mut roots = self.shared.index.roots()?;
        roots.sort_unstable_by_key(|(used, _, cid)| (std::cmp::Reverse(*used), *cid));
        Ok(roots.into_iter().map(|(_, bytes, cid)| (cid, bytes)).collect())
    }

    /// Names content as one whole, so that it stays until it is the least recently used.
    pub fn keep_root(&self, cid: &Cid, bytes: u64) -> Result<(), StoreError> {
        let mut session = Session::new(&self.shared, false);
        if !session.has(cid)? {
            return Err(StoreError::NotFound(*cid));
        }
        session.work.batch.put_root(cid, bytes, now_secs());
        session.commit()
    }

    /// See [`Store::usage`](super::Store::usage).
    pub fn usage(&self) -> Result<Usage, StoreError> {
        Ok(Usage {
            bytes: self.shared.used.load(Ordering::Acquire),
            limit_bytes: self.shared.settings.limit_bytes,
            index_bytes: self.shared.index.size_bytes()?,
            blocks: self.shared.index.block_count()?,
        })
    }

    /// A collection that began before these pins were there knows nothing of them.
    fn mark_pins(&self, pins: &[Pin]) -> Result<(), StoreError> {
        if !pins.is_empty() && self.shared.live.is_collecting() {
            let mut marker = gc::Marker::new(&self.shared);
            pins.iter().try_for_each(|pin| marker.mark(pin.cid))?;
        }
        Ok(())
    }
}

fn check_name(pin: &Pin) -> Result<(), StoreError> {
    block::check_name(&pin.cid)?;
    if pin.name.len() <= MAX_PIN_NAME {
        return Ok(());
    }
    let at = format!("the pin of {}", pin.cid);
    Err(StoreError::TooMany { at, what: "bytes in its name", limit: MAX_PIN_NAME as u64 })
}
