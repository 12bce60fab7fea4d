//! The verbs: each reads its flags, asks the node, and prints what it answered.

pub mod about;
pub mod data;
pub mod job;
pub mod node;
pub mod serve;
pub mod testnet;
pub mod wasm;
