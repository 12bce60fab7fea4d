//! Reading everything again: does every block still hash to its name?

use std::sync::Arc;

use cid::Cid;

use super::StoreError;
use super::index::{Changes, Container};
use super::shared::Shared;
use crate::block::{self, RAW};
use crate::records::Batch;

/// Damaged blocks that are named in a report; further ones are only counted.
const NAMED: usize = 1000;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Blocks that were read.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many are damaged or gone.
    pub damaged: u64,
    /// The first of these, as raw CIDs: the index knows hashes alone.
    pub named: Vec<Cid>,
}

/// Reads every block. With `forget`, damaged ones are forgotten, so that they can be fetched again.
pub(super) fn verify(shared: &Arc<Shared>, forget: bool) -> Result<Verified, StoreError> {
    let mut verified = Verified::default();
    let mut after = None;
    loop {
        let (rows, next) = shared.index.blocks(after.as_deref())?;
        for row in rows {
            let name = Cid::new_v1(RAW, row.hash);
            let block = shared.files.read(&row.location)?.map(|stored| row.location.block(stored));
            verified.blocks += 1;
            verified.bytes += block.as_ref().map_or(0, |block| block.len() as u64);
            if block.is_some_and(|block| block::verify(&name, &block).is_ok()) {
                continue;
            }
            // Garbage collection may have moved or removed it since the page was read.
            if shared.index.locate_in(&row.hash, row.location.container)? != Some(row.location) {
                continue;
            }
            verified.damaged += 1;
            tracing::warn!(block = %name, location = ?row.location, "a block is damaged");
            if verified.named.len() < NAMED {
                verified.named.push(name);
            }
            if forget {
                forget_block(shared, row.key, row.location.container)?;
            }
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(verified),
        }
    }
}

/// Forgets a block; a flat file that it was part of is not whole any more.
fn forget_block(shared: &Shared, key: Vec<u8>, container: u64) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    batch.delete_block(key);
    if let Some(Container::Flat { length, root }) = shared.index.container(container)? {
        batch.put_container(container, &Container::Segment { length });
        if shared.index.flat(&root)?.is_some_and(|(named, _)| named == container) {
            batch.delete_flat(&root);
        }
    }
    shared.index.commit(&batch)
}
