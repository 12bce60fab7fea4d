//! The swarm protocol of Cardume, pure: every message and its bytes, signatures, the admission lottery,
//! and the two machines that decide everything, [`owner::Owner`] and [`worker::Worker`].
//!
//! This crate opens no socket, reads no clock and draws no randomness that it was not handed. Inputs and
//! the time come in, effects go out; the shells in `node` and the simulator in `testnet` do the rest.
//!
//! ```
//! use gossip::owner::{Effect, Identity, Owner, Settings};
//! use std::sync::Arc;
//! let crypto = gossip::crypto::Ed25519::new([1; 32], "public");
//! let identity =
//!     Identity { me: crypto.peer(), swarm: "public".into(), crypto: Arc::new(crypto), seed: [2; 32] };
//! let mut out: Vec<Effect> = Vec::new();
//! let owner = Owner::restore(Settings::default(), identity, [], job::Time::ZERO, &mut out)?;
//! assert_eq!(owner.jobs().count(), 0);
//! # Ok::<(), gossip::record::RestoreError>(())
//! ```

#[cfg(any(test, feature = "planted-bugs"))]
pub mod bug;
#[cfg(not(any(test, feature = "planted-bugs")))]
#[expect(dead_code, reason = "only named where a bug could be planted")]
mod bug;
mod codec;
pub mod crypto;
pub mod lottery;
pub mod message;
pub mod owner;
mod range;
pub mod record;
mod rng;
mod timers;
pub mod topic;
pub mod worker;

#[cfg(test)]
mod tests;
