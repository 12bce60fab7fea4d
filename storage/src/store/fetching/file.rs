//! A flat file that is being fetched.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cid::Cid;

use super::super::StoreError;
use super::super::files::{DataFile, lock};
use super::super::flat::FLAT_ABOVE_BYTES;
use super::super::index::{Changes, Container, ContainerId, Form, Location};
use super::super::session::Session;
use super::super::shared::Shared;
use crate::block::Block;
use crate::unixfs::{Data, Kind, LeafFrame, Node};

/// The file. What is durable of it stays when this is dropped.
#[derive(Debug)]
pub(super) struct FileFetch {
    shared: Arc<Shared>,
    data: Arc<DataFile>,
    root: Cid,
    size: u64,
    missing: AtomicU64,
    room: Mutex<Room>,
    /// The index knows of it.
    is_noted: AtomicBool,
    is_kept: AtomicBool,
}

/// What was made room for.
#[derive(Debug)]
struct Room {
    made: u64,
    /// Of these, how many bytes are written or about to be.
    taken: u64,
    /// Of these, how many the index counts.
    noted: u64,
}

impl FileFetch {
    /// Makes a new file, or goes on with an unfinished one; `None` for a small one, or if there is a whole one.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        session: &Session,
        root: Cid,
        size: u64,
    ) -> Result<Option<Self>, StoreError> {
        if size <= FLAT_ABOVE_BYTES {
            return Ok(None);
        }
        session.touch(&root); // before the look, so that collecting garbage leaves it from here on
        let (data, noted) = match shared.index.flat(&root)? {
            Some((_, Container::Flat { .. })) => return Ok(None),
            Some((id, Container::Partial { length, charged, .. })) if length == size => {
                (shared.files.reopen(id)?, Some(charged))
            }
            _ if size > shared.settings.limit_bytes => return Err(shared.full(size)),
            _ => (shared.files.create(false)?, None),
        };
        let made = noted.unwrap_or(0).min(size);
        Ok(Some(FileFetch {
            shared: Arc::clone(shared),
            data,
            root,
            size,
            missing: AtomicU64::new(size),
            room: Mutex::new(Room { made, taken: made, noted: made }),
            is_noted: AtomicBool::new(noted.is_some()),
            is_kept: AtomicBool::new(false),
        }))
    }

    pub(super) fn id(&self) -> ContainerId {
        self.data.id
    }

    pub(super) fn data(&self) -> &Arc<DataFile> {
        &self.data
    }

    pub(super) fn write(&self, shared: &Shared, piece: &[u8], offset: u64) -> Result<(), StoreError> {
        self.make_room(piece.len() as u64)?;
        let path = || shared.files.path(self.data.id);
        self.data.write_at(piece, offset).map_err(|error| StoreError::io("write", path())(error))
    }

    /// Room is made for a file as it grows: its size is only what a node says, and comes true late or never.
    fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let mut room = lock(&self.room);
        // Never more than the file: a piece whose write failed may come again.
        let taken = room.taken.saturating_add(bytes).min(self.size);
        if let Some(lacking) = taken.checked_sub(room.made).filter(|lacking| *lacking > 0) {
            self.shared.make_room(lacking)?;
            room.made = taken;
        }
        room.taken = taken;
        Ok(())
    }

    /// What the index is to count for the file in this state.
    fn charge(&self, is_whole: bool) -> u64 {
        let mut room = lock(&self.room);
        if is_whole {
            self.shared.charge(self.size.saturating_sub(room.made));
            room.made = self.size;
        }
        room.noted = room.made;
        room.made
    }

    /// Notes that bytes are in their place. Of a file that is whole no descriptor is kept: a directory may hold
    /// thousands of files before the first of them is made durable.
    pub(super) fn wrote(&self, bytes: u64) {
        let less = |missing: u64| Some(missing.saturating_sub(bytes));
        // The closure never refuses.
        let _ = self.missing.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if self.is_whole() {
            self.data.close();
        }
    }

    /// Whether nothing is to be written to it any more.
    pub(super) fn is_whole(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// The range of the file that is this block, if it can be made from one.
    pub(super) fn location(
        &self,
        block: &Block,
        piece: &[u8],
        offset: u64,
        frame: Option<Kind>,
    ) -> Option<Location> {
        let form = match frame {
            None if block.data.len() == piece.len() => Form::Plain,
            Some(kind) if LeafFrame::of(kind, piece.len()).around(piece) == block.data => Form::Framed(kind),
            _ => return None,
        };
        Some(Location { container: self.data.id, form, offset, length: piece.len() as u32 })
    }

    pub(super) fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Acquire)
    }

    /// Adds to the next commit what the file is by then.
    pub(super) fn note(&self, session: &mut Session) -> Result<(), StoreError> {
        if self.is_kept() {
            return Ok(());
        }
        let (id, root, length) = (self.data.id, self.root, self.size);
        let is_whole = self.is_whole();
        session.touch(&root);
        // Another may have brought or added the same file meanwhile: then this is a bag of blocks.
        let named = self.shared.index.flat(&root)?.filter(|(named, _)| *named != id);
        let row = match named {
            Some((_, Container::Flat { .. })) => Container::Segment { length },
            _ if is_whole => {
                self.shared.files.seal(&self.data, length)?;
                Container::Flat { length, root }
            }
            _ => Container::Partial { length, charged: self.charge(false), root },
        };
        if !matches!(row, Container::Partial { .. }) {
            self.charge(true);
        }
        if !matches!(row, Container::Segment { .. }) {
            if let Some((other, container)) = named {
                let length = container.length();
                session.work.batch.put_container(other, &Container::Segment { length });
                self.shared.charge_whole(&container);
            }
            session.work.batch.put_flat(&root, id);
        }
        session.work.batch.put_container(id, &row);
        session.wrote(&self.data);
        self.is_noted.store(true, Ordering::Release);
        self.is_kept.store(is_whole, Ordering::Release);
        Ok(())
    }
}

impl Drop for FileFetch {
    fn drop(&mut self) {
        let is_noted = self.is_noted.load(Ordering::Acquire);
        let room = lock(&self.room);
        self.shared.give_room(if is_noted { room.made - room.noted } else { room.made });
        if is_noted {
            return;
        }
        if let Err(error) = self.shared.files.remove(self.data.id) {
            tracing::warn!(%error, "an unfinished file stays until the store is opened again");
        }
    }
}

/// The size of the file below a node, if its own figures agree.
pub(super) fn size(data: &Data, node: &Node) -> Result<u64, &'static str> {
    if data.block_bytes.len() != node.links.len() {
        return Err("its sizes do not match its links");
    }
    let own = data.data.len() as u64;
    let sum = data.block_bytes.iter().try_fold(own, |sum, bytes| sum.checked_add(*bytes));
    match (sum, data.file_bytes) {
        (None, _) => Err("its sizes are too large"),
        (Some(sum), Some(claimed)) if sum != claimed => Err("its sizes do not add up"),
        (Some(sum), _) => Ok(sum),
    }
}
