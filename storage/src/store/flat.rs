//! Flat files: a large file kept as it is, its leaves being ranges of it.

use std::sync::Arc;

use cid::Cid;

use super::StoreError;
use super::files::DataFile;
use super::index::{Changes, Container, Form, Location};
use super::session::Session;
use super::shared::Shared;
use crate::unixfs::{Kind, Leaf, Profile};

/// A file of at most this many bytes is kept as blocks in segments; what is larger is one file on disk.
pub const FLAT_ABOVE_BYTES: u64 = 64 * 1024;

/// Leaves of one file before an interim commit.
const COMMIT_LEAVES: usize = 32 * 1024;

/// A flat file that is being added. Dropped without [`NewFlat::keep`], it is gone.
#[derive(Debug)]
pub(super) struct NewFlat {
    shared: Arc<Shared>,
    pub(super) file: Arc<DataFile>,
    reserved: u64,
    leaves: Vec<(Leaf, u64)>,
    /// The disk was told to begin with what is before.
    written_out: u64,
    /// Some leaves are in the index already.
    is_visible: bool,
    is_kept: bool,
}

impl NewFlat {
    pub(super) fn begin(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let file = shared.files.create(false)?;
        let shared = Arc::clone(shared);
        let (reserved, leaves, written_out) = (0, Vec::new(), 0);
        Ok(NewFlat { shared, file, reserved, leaves, written_out, is_visible: false, is_kept: false })
    }

    /// Makes room for more bytes, before they are written.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.shared.make_room(bytes)?;
        self.reserved += bytes;
        Ok(())
    }

    /// Lets the disk work on what was written while more is hashed: the end has less to wait for.
    pub(super) fn write_out(&mut self, end: u64) {
        self.file.begin_write_out(self.written_out, end - self.written_out);
        self.written_out = end;
    }

    /// Notes a leaf that was written.
    pub(super) fn push(
        &mut self,
        session: &mut Session,
        profile: &Profile,
        leaf: Leaf,
        offset: u64,
    ) -> Result<(), StoreError> {
        session.touch(&leaf.cid);
        self.leaves.push((leaf, offset));
        if self.leaves.len() < COMMIT_LEAVES {
            return Ok(());
        }
        session.work.batch.put_container(self.file.id, &Container::Adding { length: self.reserved });
        self.place_leaves(session, profile);
        self.is_visible = true;
        session.commit()
    }

    /// Makes it the file with this root, unless there is one already.
    pub(super) fn keep(
        mut self,
        session: &mut Session,
        profile: &Profile,
        root: Cid,
    ) -> Result<(), StoreError> {
        session.touch(&root);
        let before = self.shared.index.flat(&root)?;
        // Bytes are stored once; but while garbage is collected the other file may be losing leaves.
        if matches!(before, Some((_, Container::Flat { .. }))) && !self.shared.live.is_collecting() {
            return Ok(());
        }
        if let Some((id, other)) = before {
            // The other file, whole or not, goes on as a bag of blocks.
            session.work.batch.put_container(id, &Container::Segment { length: other.length() });
            self.shared.charge_whole(&other);
        }
        self.shared.files.seal(&self.file, self.reserved)?;
        self.place_leaves(session, profile);
        let row = Container::Flat { length: self.reserved, root };
        session.work.batch.put_container(self.file.id, &row);
        session.work.batch.put_flat(&root, self.file.id);
        session.commit()?;
        self.is_kept = true;
        Ok(())
    }

    fn place_leaves(&mut self, session: &mut Session, profile: &Profile) {
        let form = if profile.raw_leaves { Form::Plain } else { Form::Framed(Kind::File) };
        for (leaf, offset) in self.leaves.drain(..) {
            let length = leaf.file_bytes as u32;
            session.place(leaf.cid.hash(), &Location { container: self.file.id, form, offset, length });
        }
        session.wrote(&self.file);
    }
}

impl Drop for NewFlat {
    fn drop(&mut self) {
        // One with visible leaves is found by its row: by the next collection, or when the store is opened.
        if self.is_kept || self.is_visible {
            return;
        }
        self.shared.give_room(self.reserved);
        if let Err(error) = self.shared.files.remove(self.file.id) {
            tracing::warn!(%error, "an unfinished file stays until the store is opened again");
        }
    }
}
