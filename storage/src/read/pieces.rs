//! The bytes of a file, block after block, without input and output.

use bytes::Bytes;
use cid::Cid;

use super::{Limits, ReadError};
use crate::block::{DAG_PB, RAW};
use crate::unixfs::{Kind, Node};

/// Blocks that a source is told of ahead.
const SOON: usize = 32;

/// Walks a file's tree from left to right.
#[derive(Debug)]
pub(crate) struct Pieces {
    root: Cid,
    limits: Limits,
    /// What is still to come, the next one last.
    waiting: Vec<Part>,
    /// Bytes before the wanted ones.
    skip: u64,
    /// Wanted bytes that did not come yet.
    left: u64,
    links: u64,
    soon: Option<Vec<Cid>>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    cid: Cid,
    /// What the node above says; nobody speaks for the root.
    bytes: Option<u64>,
    depth: u32,
}

impl Pieces {
    /// Starts at `skip` and ends after `length` bytes, or at the file's end.
    pub(crate) fn new(root: Cid, skip: u64, length: u64, limits: Limits) -> Self {
        let waiting = if length == 0 { Vec::new() } else { vec![Part { cid: root, bytes: None, depth: 0 }] };
        Pieces { root, limits, waiting, skip, left: length, links: 0, soon: None }
    }

    /// The block to be given next, or `None` at the end.
    pub(crate) fn want(&self) -> Option<Cid> {
        self.waiting.last().map(|part| part.cid)
    }

    /// Takes the wanted block; answers with the bytes in it, which may be none.
    pub(crate) fn give(&mut self, block: &Bytes) -> Result<Bytes, ReadError> {
        let Some(part) = self.waiting.pop() else { return Ok(Bytes::new()) };
        let own = match part.cid.codec() {
            RAW => {
                part.check(block.len() as u64)?;
                block.clone()
            }
            DAG_PB => self.open(part, block)?,
            _ => return Err(ReadError::NotAFile(part.cid)),
        };
        if part.bytes.is_none() && own.len() as u64 > self.limits.max_bytes {
            return Err(self.too_much("bytes", self.limits.max_bytes));
        }
        Ok(self.trim(own))
    }

    /// Blocks that will be wanted next, once after each node.
    pub(crate) fn take_soon(&mut self) -> Option<Vec<Cid>> {
        self.soon.take()
    }

    /// Reads a node: notes its children and answers with its own bytes.
    fn open(&mut self, part: Part, block: &Bytes) -> Result<Bytes, ReadError> {
        let failed = |source| ReadError::node(part.cid, source);
        let node = Node::decode(block).map_err(failed)?;
        let data = node.unixfs().map_err(failed)?;
        if !matches!(data.kind, Kind::File | Kind::Raw) {
            return Err(ReadError::NotAFile(part.cid));
        }
        if data.block_bytes.len() != node.links.len() {
            return Err(ReadError::invalid(part.cid, "its sizes do not match its links"));
        }
        let below =
            data.block_bytes.iter().try_fold(data.data.len() as u64, |sum, size| sum.checked_add(*size));
        let below = below.ok_or(ReadError::invalid(part.cid, "its sizes are too large"))?;
        if data.file_bytes.is_some_and(|bytes| bytes != below) {
            return Err(ReadError::invalid(part.cid, "its sizes do not add up"));
        }
        part.check(below)?;
        if below > self.limits.max_bytes {
            return Err(self.too_much("bytes", self.limits.max_bytes));
        }
        if !node.links.is_empty() && part.depth >= self.limits.max_depth {
            return Err(self.too_much("levels", u64::from(self.limits.max_depth)));
        }
        self.links = self.links.saturating_add(node.links.len() as u64);
        if self.links > self.limits.max_entries {
            return Err(self.too_much("links", self.limits.max_entries));
        }
        let children = node.links.iter().zip(&data.block_bytes);
        self.descend(
            data.data.len() as u64,
            part.depth + 1,
            children.map(|(link, bytes)| (link.cid, *bytes)),
        );
        Ok(data.data)
    }

    /// Notes the children in which wanted bytes lie.
    fn descend(
        &mut self,
        own: u64,
        depth: u32,
        children: impl DoubleEndedIterator<Item = (Cid, u64)> + Clone,
    ) {
        // What is skipped inside the node's own bytes is not skipped in its children.
        let mut before = self.skip.saturating_sub(own);
        let mut skipped = 0;
        let mut first = 0;
        for (_, bytes) in children.clone() {
            if bytes > before {
                break;
            }
            before -= bytes;
            skipped += bytes;
            first += 1;
        }
        self.skip -= skipped;
        let rest = children.skip(first).filter(|(_, bytes)| *bytes > 0);
        let mut parts: Vec<Part> = rest.map(|(cid, bytes)| Part { cid, bytes: Some(bytes), depth }).collect();
        self.soon = Some(parts.iter().take(SOON).map(|part| part.cid).collect());
        parts.reverse();
        self.waiting.append(&mut parts);
    }

    /// Cuts off what was not asked for.
    fn trim(&mut self, mut piece: Bytes) -> Bytes {
        let skipped = self.skip.min(piece.len() as u64);
        self.skip -= skipped;
        let _ = piece.split_to(skipped as usize);
        if piece.len() as u64 >= self.left {
            piece.truncate(self.left as usize);
            self.waiting.clear();
        }
        self.left -= piece.len() as u64;
        piece
    }

    fn too_much(&self, what: &'static str, limit: u64) -> ReadError {
        ReadError::Limit { root: self.root, what, limit }
    }
}

impl Part {
    /// Compares a part's bytes with what the node above it said.
    fn check(&self, found: u64) -> Result<(), ReadError> {
        match self.bytes {
            Some(bytes) if bytes != found => {
                Err(ReadError::invalid(self.cid, "its size is not what the node above it says"))
            }
            _ => Ok(()),
        }
    }
}
