//! Everything Cardume keeps on disk, and every byte of content it moves.
//!
//! Owns the state database, content named by CID, the UnixFS format
//! reading and writing of files and directories, and the bringing of
//! missing blocks ([`fetch`], and the exchange that drives it).
//!
//! It schedules nothing, never names the network's types, and trusts no byte that it did not hash.

pub mod block;
pub mod exchange;
pub mod fetch;
pub mod records;

pub use block::{Block, BlockError, Blocks, LocalBlocks};
pub use cid::Cid;
pub use records::Records;
