//! Raw streams by protocol name, over a behaviour and connection handler of our own.
//!
//! libp2p-stream drops inbound streams that its reader does not take at once. Here an inbound stream is agreed to only when
//! its connection has a place left, and is then kept until its reader takes it; without a place the peer waits.

mod behaviour;
mod handler;
mod registry;
mod stream;

pub(crate) use behaviour::{Behaviour, Inbound};
pub use registry::Incoming;
pub(crate) use registry::Registry;
pub(crate) use stream::Activity;
pub use stream::Stream;
