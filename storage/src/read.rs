//! Reading files and directories by CID and path, from any source of blocks.
//!
//! Everything is bounded: a DAG may be made to look endless, and whoever made it may be hostile. Nothing here
//! writes to disk (see [`export`](crate::export)).
//!
//! ```
//! use futures::TryStreamExt;
//! use storage::{Store, read::{self, Limits}, store::Settings, unixfs};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let dir = tempfile::tempdir()?;
//! let store = Store::open(dir.path(), Settings::default())?;
//! let (root, blocks) = unixfs::small_tree(&[("outputs/a.txt", b"one two")])?;
//! store.put_blocks(blocks).await?;
//!
//! let file = read::resolve(&store, root, "outputs/a.txt").await?;
//! let pieces: Vec<_> = read::cat(&store, file, 4.., Limits::default()).try_collect().await?;
//! assert_eq!(pieces.concat(), b"two");
//! assert_eq!(read::ls(&store, root).await?[0].name, "outputs");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod dir;
pub(crate) mod pieces;
pub(crate) mod tree;

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use cid::Cid;
use futures::stream::{BoxStream, StreamExt, try_unfold};

use crate::block::{BlockError, Blocks, RAW};
use crate::unixfs::{Kind, Node, UnixfsError};

use dir::{Find, Found, Listing};
use pieces::Pieces;

/// Why content could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A block could not be had.
    #[error("a part of the content could not be had")]
    Block(#[from] BlockError),
    /// A node makes no sense.
    #[error("{at} is not a usable part of a file or directory")]
    Node {
        /// Which node.
        at: Cid,
        /// What is wrong with it.
        #[source]
        source: UnixfsError,
    },
    /// There is no such entry.
    #[error("there is no {name:?} in {directory}")]
    NoEntry {
        /// Where it was looked for.
        directory: Cid,
        /// What was looked for.
        name: String,
    },
    /// A path leads through something that is not a directory.
    #[error("{0} is not a directory")]
    NotADirectory(Cid),
    /// The bytes of something were asked for that is not a file.
    #[error("{0} is not a file")]
    NotAFile(Cid),
    /// More than was allowed.
    #[error("{root} is refused: it has more than {limit} {what}")]
    Limit {
        /// What was read.
        root: Cid,
        /// Of what there was too much.
        what: &'static str,
        /// How much was allowed.
        limit: u64,
    },
}

impl ReadError {
    pub(crate) fn node(at: Cid, source: UnixfsError) -> Self {
        ReadError::Node { at, source }
    }

    pub(crate) fn invalid(at: Cid, what: &'static str) -> Self {
        ReadError::Node { at, source: UnixfsError::Invalid(what) }
    }
}

/// How much may be read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together.
    pub max_bytes: u64,
    /// Files, directories and nodes, each time one is reached.
    pub max_entries: u64,
    /// Directories in each other, and nodes below a file's root.
    pub max_depth: u32,
}

impl Default for Limits {
    /// 1 TiB, 4 million entries, 128 deep.
    fn default() -> Self {
        Limits { max_bytes: 1 << 40, max_entries: 1 << 22, max_depth: 128 }
    }
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory, plain or sharded.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its content.
    pub cid: Cid,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file; 0 for others.
    pub size: u64,
}

/// What is known of some content from its first block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its CID.
    pub cid: Cid,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file; 0 for others.
    pub size: u64,
    /// Bytes of all its blocks, as its links say: what a fetch would bring.
    pub total_bytes: u64,
    /// Where a symbolic link leads.
    pub target: Option<String>,
}

/// What a file or directory is. Asks for one block.
pub async fn stat(blocks: &(impl Blocks + ?Sized), cid: Cid) -> Result<Stat, ReadError> {
    stat_block(cid, &blocks.block(&cid).await?)
}

pub(crate) fn stat_block(cid: Cid, block: &Bytes) -> Result<Stat, ReadError> {
    let failed = |source| ReadError::node(cid, source);
    let whole = block.len() as u64;
    if cid.codec() != crate::block::DAG_PB {
        return Ok(Stat { cid, kind: EntryKind::File, size: whole, total_bytes: whole, target: None });
    }
    let node = Node::decode(block).map_err(failed)?;
    let data = node.unixfs().map_err(failed)?;
    let total_bytes = node.links.iter().map(|link| link.total_bytes).fold(whole, u64::saturating_add);
    let (kind, size, target) = match data.kind {
        Kind::Directory | Kind::Shard => (EntryKind::Directory, 0, None),
        Kind::Symlink => (EntryKind::Symlink, 0, Some(String::from_utf8_lossy(&data.data).into_owned())),
        Kind::File | Kind::Raw => (EntryKind::File, data.file_bytes.unwrap_or(data.data.len() as u64), None),
        Kind::Metadata => return Err(ReadError::NotAFile(cid)),
    };
    Ok(Stat { cid, kind, size, total_bytes, target })
}

/// Follows a path of names below a CID. Empty names are skipped, links are not followed.
pub async fn resolve(blocks: &(impl Blocks + ?Sized), root: Cid, path: &str) -> Result<Cid, ReadError> {
    let mut at = root;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let mut find = Find::new(at, name);
        at = loop {
            let want = find.want();
            match find.give(&blocks.block(&want).await?)? {
                Found::Below => {}
                Found::Entry(cid) => break cid,
            }
        };
    }
    Ok(at)
}

/// The entries of a directory, by name. Asks for a block of every entry that may be something else than bytes.
pub async fn ls(blocks: &(impl Blocks + ?Sized), cid: Cid) -> Result<Vec<Entry>, ReadError> {
    let mut listing = Listing::new(cid, Limits::default().max_entries);
    while let Some(want) = listing.want() {
        listing.give(&blocks.block(&want).await?)?;
    }
    let links = listing.finish();
    let nodes: Vec<Cid> = links.iter().map(|link| link.cid).filter(|cid| cid.codec() != RAW).collect();
    blocks.soon(&nodes);
    let mut entries = Vec::with_capacity(links.len());
    for link in links {
        let (kind, size) = if link.cid.codec() == RAW {
            (EntryKind::File, link.total_bytes)
        } else {
            let stat = stat(blocks, link.cid).await?;
            (stat.kind, stat.size)
        };
        entries.push(Entry { name: link.name, cid: link.cid, kind, size });
    }
    Ok(entries)
}

/// The bytes of a file, or of a part of it, as they come: one block at a time is in memory, and what is next was
/// announced to the source.
///
/// Dropping the stream stops it.
pub fn cat<B: Blocks + Clone + 'static>(
    blocks: &B,
    cid: Cid,
    range: impl RangeBounds<u64>,
    limits: Limits,
) -> BoxStream<'static, Result<Bytes, ReadError>> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    let pieces = Pieces::new(cid, start, end.saturating_sub(start), limits);
    try_unfold((blocks.clone(), pieces), |(blocks, mut pieces)| async move {
        while let Some(want) = pieces.want() {
            let block = blocks.block(&want).await?;
            let piece = pieces.give(&block)?;
            if let Some(soon) = pieces.take_soon() {
                blocks.soon(&soon);
            }
            if !piece.is_empty() {
                return Ok(Some((piece, (blocks, pieces))));
            }
        }
        Ok(None)
    })
    .boxed()
}
