//! Blocks: bytes named by their hash, and the two ways to ask for one.
//!
//! ```
//! use storage::block::{self, Block};
//!
//! let block = Block::raw("hello");
//! assert_eq!(block.cid.to_string(), "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq");
//! assert!(block::verify(&block.cid, b"hello").is_ok());
//! assert!(block::verify(&block.cid, b"hullo").is_err());
//! ```

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;
use sha2::{Digest, Sha256, Sha512};

/// Codec of bytes that are nothing but bytes.
pub const RAW: u64 = 0x55;
/// Codec of nodes of files and directories.
pub const DAG_PB: u64 = 0x70;
/// Codec of job specs and other structured values.
pub const DAG_CBOR: u64 = 0x71;

/// Multihash codes that are understood.
const IDENTITY: u64 = 0x00;
const SHA2_256: u64 = 0x12;
const SHA2_512: u64 = 0x13;

/// The largest block that is stored, asked for or served: what every Bitswap peer accepts.
pub const MAX_BLOCK_BYTES: usize = 2 * 1024 * 1024;

/// Why bytes are not the block that they should be, or why a block is not here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The hash function of the CID is not one of those understood.
    #[error(
        "{0} is hashed with function {1:#x}, which is not supported (sha2-256, sha2-512 and identity are)"
    )]
    UnsupportedHash(Cid, u64),
    /// The digest of the CID is shorter than its hash function's.
    #[error("{0} has a digest of {1} bytes, which is not what its hash function gives")]
    DigestLength(Cid, usize),
    /// The bytes have another hash.
    #[error("{size} bytes that should be {cid} have another hash")]
    Mismatch {
        /// What was expected.
        cid: Cid,
        /// How many bytes there were.
        size: usize,
    },
    /// More bytes than a block may have.
    #[error("a block of {0} bytes is larger than {MAX_BLOCK_BYTES}")]
    TooLarge(usize),
    /// Nobody who was asked has it.
    #[error("block {0} is not here and no peer gave it")]
    NotFound(Cid),
    /// The local store could not be read or written.
    #[error("the content store could not be used for {0}")]
    Store(Cid, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Bytes together with the CID that they hash to.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// The name.
    pub cid: Cid,
    /// The bytes.
    pub data: Bytes,
}

impl Block {
    /// A block with the `raw` codec, CIDv1, SHA-256.
    pub fn raw(data: impl Into<Bytes>) -> Self {
        Self::new(RAW, data)
    }

    /// A block with this codec, CIDv1, SHA-256.
    pub fn new(codec: u64, data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Block { cid: cid_of(codec, &data), data }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({}, {} bytes)", self.cid, self.data.len())
    }
}

/// The CIDv1 of these bytes with SHA-256.
pub fn cid_of(codec: u64, data: &[u8]) -> Cid {
    cid_of_digest(codec, &Sha256::digest(data).into())
}

/// The CIDv1 of bytes whose SHA-256 is known.
pub fn cid_of_digest(codec: u64, digest: &[u8; 32]) -> Cid {
    Cid::new_v1(codec, Multihash::wrap(SHA2_256, digest).expect("32 bytes fit in 64"))
}

/// Checks that `data` is the block named `cid`, and not too large.
///
/// Costs about half a nanosecond a byte; callers with many blocks share them out over threads.
pub fn verify(cid: &Cid, data: &[u8]) -> Result<(), BlockError> {
    if data.len() > MAX_BLOCK_BYTES {
        return Err(BlockError::TooLarge(data.len()));
    }
    let wanted = cid.hash().digest();
    let fits = match checked_hash(cid)? {
        IDENTITY => wanted == data,
        SHA2_256 => wanted == Sha256::digest(data).as_slice(),
        _ => wanted == Sha512::digest(data).as_slice(),
    };
    if fits { Ok(()) } else { Err(BlockError::Mismatch { cid: *cid, size: data.len() }) }
}

/// Checks that blocks of this name can be verified at all, before anybody is asked for one.
pub fn check_name(cid: &Cid) -> Result<(), BlockError> {
    checked_hash(cid).map(drop)
}

/// The bytes that a CID with the identity hash carries inside itself.
pub fn inline(cid: &Cid) -> Option<Bytes> {
    (cid.hash().code() == IDENTITY).then(|| Bytes::copy_from_slice(cid.hash().digest()))
}

fn checked_hash(cid: &Cid) -> Result<u64, BlockError> {
    let code = cid.hash().code();
    let length = match code {
        IDENTITY => return Ok(code),
        SHA2_256 => 32,
        SHA2_512 => 64,
        _ => return Err(BlockError::UnsupportedHash(*cid, code)),
    };
    let found = cid.hash().digest().len();
    if found == length { Ok(code) } else { Err(BlockError::DigestLength(*cid, found)) }
}

/// Where blocks are read from: the local store, or the store and the peers that may fill its gaps.
#[async_trait]
pub trait Blocks: Send + Sync {
    /// The verified bytes of a block.
    ///
    /// Dropping the future gives the block up; it may still arrive in the store.
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockError>;

    /// Says which blocks will be asked for soon, nearest first. A source that has to fetch may start now.
    fn soon(&self, cids: &[Cid]) {
        let _ = cids;
    }
}

/// The blocks that are here: what an exchange serves from.
///
/// Both are keyed by multihash: the codec and version of the CID do not matter.
#[async_trait]
pub trait LocalBlocks: Send + Sync + 'static {
    /// The size of a block that is here, or `None`. Reads the index only (microseconds), so that it can be called
    /// from an async task.
    fn block_size(&self, cid: &Cid) -> Result<Option<u32>, BlockError>;

    /// The bytes of a block that is here, or `None`: one positioned read on a blocking thread.
    async fn local_block(&self, cid: &Cid) -> Result<Option<Bytes>, BlockError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_refused_under_another_name() {
        let block = Block::raw("a");
        assert!(matches!(verify(&block.cid, b"b"), Err(BlockError::Mismatch { size: 1, .. })));
    }

    #[test]
    fn hashes_that_cannot_be_checked_are_refused_by_name() {
        let weak = Cid::new_v1(RAW, Multihash::wrap(0x11, &[0; 20]).expect("fits"));
        assert!(matches!(verify(&weak, b""), Err(BlockError::UnsupportedHash(_, 0x11))));
        let short = Cid::new_v1(RAW, Multihash::wrap(SHA2_256, &[0; 4]).expect("fits"));
        assert!(matches!(check_name(&short), Err(BlockError::DigestLength(_, 4))));
    }

    #[test]
    fn an_identity_cid_carries_its_own_bytes() {
        let cid = Cid::new_v1(RAW, Multihash::wrap(IDENTITY, b"tiny").expect("fits"));
        assert_eq!(inline(&cid).as_deref(), Some(&b"tiny"[..]));
        assert!(verify(&cid, b"tiny").is_ok());
        assert!(verify(&cid, b"tine").is_err());
    }
}
