//! Swarms for tests: nodes as processes on this machine ([`process`]) and a small client of their API ([`client`]).
//!
//! It never links a node: whole nodes are the `cardume` binary, driven over HTTP.

pub mod client;
pub mod process;
