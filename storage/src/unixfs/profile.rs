//! The choices that decide which CID the same bytes get.

use cid::Cid;
use cid::multihash::Multihash;
use sha2::{Digest, Sha256};

use crate::block::{DAG_PB, RAW, cid_of_digest};

/// How the size of a directory is taken when it is decided whether to shard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShardRule {
    /// Bytes of its names and CIDs alone.
    Links,
    /// Bytes of the node that it would be.
    Block,
}

/// All choices of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Profile {
    /// 0 or 1.
    pub cid_version: u8,
    /// Whether leaves are bare bytes, or nodes around them.
    pub raw_leaves: bool,
    /// Bytes of a leaf, all but the last of a file.
    pub chunk_bytes: usize,
    /// Links of a node inside a file.
    pub width: usize,
    /// When directories are sharded.
    pub shard_rule: ShardRule,
}

/// A directory larger than this is sharded, in every profile.
pub(super) const SHARD_ABOVE_BYTES: usize = 256 * 1024;
/// The largest chunk: a leaf with its frame must fit in a block of 2 MiB.
const MAX_CHUNK_BYTES: usize = 2 * 1024 * 1024 - 64;
/// The most links asked for in a file's node: with their sizes they stay far below a block.
const MAX_WIDTH: usize = 16 * 1024;

impl Profile {
    /// `unixfs-v1-2025`: CIDv1, raw leaves, 1 MiB chunks, 1024 links.
    pub const V1_2025: Profile = Profile {
        cid_version: 1,
        raw_leaves: true,
        chunk_bytes: 1024 * 1024,
        width: 1024,
        shard_rule: ShardRule::Block,
    };

    /// `unixfs-v0-2015`: CIDv0, leaves in nodes, 256 KiB chunks, 174 links.
    pub const V0_2015: Profile = Profile {
        cid_version: 0,
        raw_leaves: false,
        chunk_bytes: 256 * 1024,
        width: 174,
        shard_rule: ShardRule::Links,
    };

    /// A profile by its name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "unixfs-v1-2025" => Some(Self::V1_2025),
            "unixfs-v0-2015" => Some(Self::V0_2015),
            _ => None,
        }
    }

    /// The same with its figures moved into the range in which every block can be exchanged.
    pub fn within_limits(self) -> Self {
        Profile {
            cid_version: self.cid_version.min(1),
            chunk_bytes: self.chunk_bytes.clamp(1, MAX_CHUNK_BYTES),
            width: self.width.clamp(2, MAX_WIDTH),
            ..self
        }
    }

    /// The CID of a node that is not a raw leaf.
    pub fn node_cid(&self, block: &[u8]) -> Cid {
        self.node_cid_of_digest(&Sha256::digest(block).into())
    }

    /// The CID of a leaf whose block has this SHA-256.
    pub fn leaf_cid(&self, digest: &[u8; 32]) -> Cid {
        if self.raw_leaves { cid_of_digest(RAW, digest) } else { self.node_cid_of_digest(digest) }
    }

    fn node_cid_of_digest(&self, digest: &[u8; 32]) -> Cid {
        if self.cid_version > 0 {
            return cid_of_digest(DAG_PB, digest);
        }
        let hash = Multihash::wrap(0x12, digest).expect("32 bytes fit in 64");
        Cid::new_v0(hash).expect("version 0 is for SHA-256, which this is")
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::V1_2025
    }
}
