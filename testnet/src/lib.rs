//! Swarms for tests: nodes as processes on this machine ([`process`]), a small client of their API ([`client`]), and the
//! deterministic simulator of the two protocol machines ([`sim`]).
//!
//! It never links a node: whole nodes are the `cardume` binary, driven over HTTP.
//!
//! ```
//! use testnet::sim::{Options, sweep};
//! // Ten histories of the two machines, with faults of every kind, on one thread.
//! let result = sweep(0..10, &Options::default(), 1, 1);
//! assert!(result.failures.is_empty(), "{}", result.failures[0]);
//! ```

pub mod client;
pub mod process;
pub mod sim;
