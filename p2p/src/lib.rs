//! The network host of a node: identity, connections, streams, frames, requests, gossip and the DHT of one swarm.
//!
//! This crate owns everything that names libp2p, and hides it behind one cloneable [`Host`] in front of one task that
//! owns the swarm. It moves bytes between peers whose identity the connection proves; it never knows what a job or
//! a block is, never trusts a length, count or name that a peer sent, and keeps every queue bounded.
//!
//! # Ways to talk
//!
//! | way | for | order, loss |
//! |---|---|---|
//! | [`Host::send`] / [`Event::Frame`] | control between owner and worker: many small messages | in order per peer; lost with the connection, which is reported |
//! | [`Host::request`] / [`Event::Request`] | one question, one answer | one stream each |
//! | [`Host::open_stream`] / [`Host::accept`] | bulk data and foreign protocols | a byte stream; inbound streams wait, none is dropped |
//! | [`Host::publish`] / [`Event::Gossip`] | small announcements to everybody | no promise; passed on only after a [`Verdict`] |
//!
//! # Two hosts
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use p2p::{Config, Event, Host, Identity};
//!
//! let (one, _) = Host::start(Config::loopback(Identity::from_seed([1; 32]), "demo")).await?;
//! let joining = Config {
//!     bootstrap: one.wait_until_listening().await?,
//!     ..Config::loopback(Identity::from_seed([2; 32]), "demo")
//! };
//! let (two, mut events) = Host::start(joining).await?;
//! one.add_address(two.peer_id(), two.wait_until_listening().await?.remove(0));
//! one.send(two.peer_id(), "hello".into())?;
//! while let Some(event) = events.next().await {
//!     if let Event::Frame { peer, bytes } = event {
//!         assert_eq!((peer, &bytes[..]), (one.peer_id(), &b"hello"[..]));
//!         break;
//!     }
//! }
//! one.stop().await?;
//! two.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What has a place here and is not built yet
//!
//! mDNS, relays, hole punching (DCUtR), port mapping (UPnP), AutoNAT and the pre-shared key of private swarms: each is one more
//! field of the behaviour in `behaviour.rs` and one more arm of the event match in `task.rs`; what they find is fed to the peer book
//! and to the announced addresses like everything else. A second Kademlia for the IPFS DHTs goes beside the swarm's own.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that cannot go on has failed

mod addresses;
mod behaviour;
mod book;
mod config;
mod error;
mod event;
mod frames;
mod host;
mod identity;
mod liveness;
mod metrics;
mod names;
mod opener;
mod redial;
mod request;
mod shared;
mod streams;
mod task;

pub use config::{Config, Limits};
pub use error::{
    AcceptError, DhtError, DialError, HostError, IdentityError, NameError, OpenError, PublishError,
    RequestError, SendError, TopicError,
};
pub use event::{Event, Events, GossipId, Reply};
pub use frames::MAX_FRAME_BYTES;
pub use host::{Direction, Host, PeerInfo, Provider, Providers, TopicPeers, Transport};
pub use identity::{Identity, ed25519_of, peer_id_from_ed25519};
pub use libp2p::{Multiaddr, PeerId};
pub use metrics::{Counter, Metrics};
pub use request::MAX_REQUEST_BYTES;
pub use shared::Verdict;
pub use streams::{Incoming, Stream};
