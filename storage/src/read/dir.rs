//! Directories, plain and sharded, without input and output.

use bytes::Bytes;
use cid::Cid;

use super::{ReadError, stat_block};
use crate::block::DAG_PB;
use crate::unixfs::hamt::{Place, Shard};
use crate::unixfs::{Kind, Link, Node};

/// A hash of 64 bits leads at most this deep, at the smallest fanout.
const MAX_SHARD_DEPTH: u32 = 22;

/// What a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Another block is wanted.
    Below,
    /// The entry's content.
    Entry(Cid),
}

/// Looks for one name.
#[derive(Debug)]
pub(crate) struct Find<'a> {
    directory: Cid,
    name: &'a str,
    at: Cid,
    depth: u32,
}

impl<'a> Find<'a> {
    pub(crate) fn new(directory: Cid, name: &'a str) -> Self {
        Find { directory, name, at: directory, depth: 0 }
    }

    /// The block to be given next.
    pub(crate) fn want(&self) -> Cid {
        self.at
    }

    pub(crate) fn give(&mut self, block: &Bytes) -> Result<Found, ReadError> {
        let none = || ReadError::NoEntry { directory: self.directory, name: self.name.to_owned() };
        let (node, shard) = open(self.at, block, self.depth > 0)?;
        let Some(shard) = shard else {
            let link = node.links.into_iter().find(|link| link.name == self.name).ok_or_else(none)?;
            return Ok(Found::Entry(link.cid));
        };
        let prefix = shard.prefix_of(self.name, self.depth).ok_or_else(none)?;
        for link in node.links.iter().filter(|link| link.name.starts_with(&prefix)) {
            match shard.place(&link.name).map_err(|source| ReadError::node(self.at, source))? {
                Place::Entry(name) if name == self.name => return Ok(Found::Entry(link.cid)),
                Place::Entry(_) => {}
                Place::Below => {
                    self.at = link.cid;
                    self.depth += 1;
                    return Ok(Found::Below);
                }
            }
        }
        Err(none())
    }
}

/// Gathers all entries.
#[derive(Debug)]
pub(crate) struct Listing {
    directory: Cid,
    waiting: Vec<(Cid, u32)>,
    entries: Vec<Link>,
    max_entries: u64,
}

impl Listing {
    pub(crate) fn new(directory: Cid, max_entries: u64) -> Self {
        Listing { directory, waiting: vec![(directory, 0)], entries: Vec::new(), max_entries }
    }

    /// The block to be given next, or `None` when all entries are known.
    pub(crate) fn want(&self) -> Option<Cid> {
        self.waiting.last().map(|(cid, _)| *cid)
    }

    pub(crate) fn give(&mut self, block: &Bytes) -> Result<(), ReadError> {
        let Some((at, depth)) = self.waiting.pop() else { return Ok(()) };
        let (node, shard) = open(at, block, depth > 0)?;
        let known = self.entries.len() + self.waiting.len() + node.links.len();
        if known as u64 > self.max_entries {
            let (root, limit) = (self.directory, self.max_entries);
            return Err(ReadError::Limit { root, what: "entries", limit });
        }
        let Some(shard) = shard else {
            self.entries = node.links;
            return Ok(());
        };
        for link in node.links {
            match shard.place(&link.name).map_err(|source| ReadError::node(at, source))? {
                Place::Entry(name) => self.entries.push(Link { name: name.to_owned(), ..link }),
                Place::Below if depth >= MAX_SHARD_DEPTH => {
                    return Err(ReadError::invalid(at, "shards too deep in each other"));
                }
                Place::Below => self.waiting.push((link.cid, depth + 1)),
            }
        }
        Ok(())
    }

    /// The entries, by name.
    pub(crate) fn finish(mut self) -> Vec<Link> {
        self.entries.sort_unstable_by(|left, right| left.name.as_bytes().cmp(right.name.as_bytes()));
        self.entries
    }
}

/// Reads a directory's node, which below the first must be a shard.
fn open(at: Cid, block: &Bytes, is_below: bool) -> Result<(Node, Option<Shard>), ReadError> {
    let failed = |source| ReadError::node(at, source);
    if at.codec() != DAG_PB {
        return Err(ReadError::NotADirectory(at));
    }
    let node = Node::decode(block).map_err(failed)?;
    let data = node.unixfs().map_err(failed)?;
    match data.kind {
        Kind::Directory if !is_below => Ok((node, None)),
        Kind::Shard => Ok((node, Some(Shard::of(&data).map_err(failed)?))),
        _ if is_below => Err(ReadError::invalid(at, "a shard that is none")),
        _ => stat_block(at, block).and(Err(ReadError::NotADirectory(at))),
    }
}
