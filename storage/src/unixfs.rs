//! UnixFS: files and directories as DAGs of blocks, with the CIDs that Kubo gives to the same bytes and options.
//!
//! Owns the codec of nodes (dag-pb with a UnixFS message inside), the shapes of files (balanced trees) and
//! directories (plain and sharded), and the [`Profile`] that fixes all choices. Pure: bytes in, blocks out. Decoders
//! are strict and bounded, since peers choose the bytes.
//!
//! ```
//! use storage::unixfs::{self, Profile};
//!
//! let (root, blocks) = unixfs::small_tree(&[("stdout", b"hello\n"), ("outputs/a.txt", b"a")])?;
//! assert_eq!(root.to_string(), "bafybeihvkcozmwyqevq2kaxxw6reuxprshwf46esr3lqj45eopzzvx6p3i");
//! assert_eq!(blocks.len(), 4);
//!
//! let node = unixfs::Node::decode(&blocks[3].data)?;
//! assert_eq!(node.links[1].name, "stdout");
//! # assert_eq!(Profile::default(), Profile::V1_2025);
//! # Ok::<(), unixfs::UnixfsError>(())
//! ```

mod data;
mod dir;
mod file;
pub(crate) mod hamt;
mod node;
mod profile;
mod small;
mod wire;

#[cfg(test)]
mod tests;

use cid::Cid;

pub use data::{Data, Kind};
pub(crate) use dir::is_entry_name;
pub use dir::{DirEntry, directory, symlink};
pub use file::{FileTree, Leaf, LeafFrame};
pub use node::{Link, MAX_LINKS, Node};
pub use profile::{Profile, ShardRule};
pub use small::{SMALL_TREE_BYTES, small_tree, small_tree_with};

/// Why bytes are not a node, or a tree cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnixfsError {
    /// The bytes end early, or a number in them does not fit.
    #[error("the encoding is broken: {0}")]
    Encoding(&'static str),
    /// The encoding is right and the value is not.
    #[error("not a valid node: {0}")]
    Invalid(&'static str),
    /// More links than a node may have.
    #[error("more than {MAX_LINKS} links in one node")]
    TooManyLinks,
    /// A name that cannot be an entry of a directory.
    #[error("{0:?} cannot be the name of an entry")]
    Name(String),
    /// The same name twice in one directory.
    #[error("two entries are named {0:?}")]
    DuplicateName(String),
    /// Two names whose hashes agree in every bit.
    #[error("entry {0:?} does not fit in a sharded directory: its hash collides with another's")]
    HashCollision(String),
    /// A tree that should travel in messages is too large for it.
    #[error("{0} bytes are too many for a tree in memory (at most {SMALL_TREE_BYTES})")]
    TooLarge(usize),
}

/// A finished part of a DAG, as its parent needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Its CID.
    pub cid: Cid,
    /// Bytes of all its blocks, counted once for every link to them: what links carry as `Tsize`.
    pub total_bytes: u64,
    /// Bytes of the file, or 0 for a directory.
    pub file_bytes: u64,
}
