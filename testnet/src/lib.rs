//! Swarms for tests: nodes as processes on this machine ([`process`]), a small client of their API ([`client`]), and the
//! deterministic simulator of the two protocol machines ([`sim`]).
//!
//! It never links a node: whole nodes are the `cardume` binary, driven over HTTP.

pub mod client;
pub mod process;
pub mod sim;
