//! Whole swarms of real processes on loopback, driven as users drive them: by the command line and over HTTP.
//!
//! Every test starts its own test network in its own folder and ends it, also when it panics. What a test waits
//! for is told by the nodes (event streams, long polls); a deadline only turns a hang into a failure.

#![allow(clippy::unwrap_used)]

mod alone;
mod anywhere;
mod compatible;
mod content;
mod following;
mod full_disk;
mod guests;
mod hello;
mod jobs;
mod naming;
mod net;
mod owner_killed;
mod refused;
mod retention;
mod shell;
mod stopping;
mod testnets;
mod waiting;
mod worker_killed;
