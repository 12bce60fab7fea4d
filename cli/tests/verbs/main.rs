//! The `cardume` binary against a node that is not real: what every verb asks, prints, and exits with.

mod data;
mod fake;
mod jobs;
mod results;
mod usage;
mod wasm;
