//! Everything Cardume keeps on disk, and every byte of content it moves.
//!
//! Owns the state database ([`records`]), content named by CID ([`store`]), the UnixFS format ([`unixfs`]), reading
//! and writing of files and directories ([`read`], [`export`]), and the bringing of missing blocks ([`fetch`], and
//! the exchange that drives it).
//!
//! It schedules nothing, never names the network's types, and trusts no byte that it did not hash.
//!
//! ```
//! let block = storage::Block::raw(&b"hello"[..]);
//! assert_eq!(block.cid.to_string(), "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq");
//! ```
//!
//! [`store`] begins with a longer example.

#![allow(clippy::result_large_err, reason = "errors name CIDs, which have 100 bytes and are not worth a box")]

pub mod block;
pub mod exchange;
pub mod export;
pub mod fetch;
pub mod read;
pub mod records;
pub mod store;
pub mod unixfs;

pub use block::{Block, BlockError, Blocks, LocalBlocks};
pub use cid::Cid;
pub use records::Records;
pub use store::Store;
