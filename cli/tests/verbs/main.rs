//! The `cardume` binary against a node that is not real: what every verb asks, prints, and exits with.

#![allow(clippy::unwrap_used, reason = "what a helper cannot do fails the test")]

mod data;
mod fake;
mod jobs;
mod peers;
mod results;
mod usage;
mod wasm;
