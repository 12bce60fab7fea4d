//! What the exchange needs of a network, and no more: streams to peers, who is connected, who
//! might have a block. The node implements it on its host; tests implement it on pipes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use cid::Cid;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};

/// The other side of an exchange: an opaque id that the network understands. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(Arc<[u8]>);

impl Peer {
    /// A peer by the bytes of its id.
    pub fn new(id: &[u8]) -> Peer {
        Peer(id.into())
    }

    /// The bytes of its id.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The end of an id differs between peers, its beginning is the same for all.
        let tail = &self.0[self.0.len().saturating_sub(4)..];
        f.write_str("Peer(")?;
        tail.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// What a stream has to do.
pub trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// A stream to or from a peer. Dropping it closes it.
pub type PeerStream = Pin<Box<dyn Stream>>;

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Offence {
    /// It sent a block that was not asked for: with a right hash, that of something else.
    UnaskedBlock,
    /// It sent bytes that are no message.
    MalformedMessage,
    /// It held a message back half sent.
    StalledMessage,
}

/// The network, as the exchange sees it.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Opens a stream for `protocol` to a peer, dialling it when there is no connection.
    ///
    /// Dropping the future gives up; it must not be left half open.
    async fn open_stream(&self, peer: &Peer, protocol: &'static str) -> io::Result<PeerStream>;

    /// Peers connected now that speak `protocol`s of an exchange, as far as is known.
    fn connected(&self) -> Vec<Peer>;

    /// Peers that the routing tables name as holders of `cid`, as they are found. Ends when the
    /// search does; dropping it ends the search.
    fn providers(&self, cid: &Cid) -> BoxStream<'static, Peer>;

    /// How the peer calls its program, once that is known: `kubo/0.30.0`, `cardume/0.1.0`, ….
    fn agent(&self, peer: &Peer) -> Option<String>;

    /// Takes note that a peer misbehaved.
    fn penalise(&self, peer: &Peer, offence: Offence);

    /// Whether blocks are served to this peer at all.
    fn serves(&self, peer: &Peer) -> bool {
        let _ = peer;
        true
    }
}

/// What program a peer runs, as far as it matters for how much is asked of it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Agent {
    /// Ours: it keeps many megabytes on their way.
    Cardume,
    /// Kubo never has more than 1 MiB on its way to a peer, so that asking for more buys nothing.
    Kubo,
    /// js-libp2p may write a larger frame than its own limit when more than 1 MiB is asked of it.
    Javascript,
    /// None of these.
    Other,
    /// Not known yet: it may be any.
    #[default]
    Unknown,
}

impl Agent {
    /// Reads the name that a peer gives its program.
    pub fn from_name(name: &str) -> Agent {
        let name = name.to_ascii_lowercase();
        let starts = |any: &[&str]| any.iter().any(|start| name.starts_with(start));
        if starts(&["cardume"]) {
            Agent::Cardume
        } else if starts(&["kubo", "go-ipfs", "boxo"]) {
            Agent::Kubo
        } else if starts(&["js-libp2p", "helia"]) || name.contains("js-libp2p") {
            Agent::Javascript
        } else {
            Agent::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart_by_how_they_call_themselves() {
        assert_eq!(Agent::from_name("kubo/0.34.1/"), Agent::Kubo);
        assert_eq!(Agent::from_name("go-ipfs/0.12.0"), Agent::Kubo);
        assert_eq!(Agent::from_name("helia/6.1.4 js-libp2p/3.0.0"), Agent::Javascript);
        assert_eq!(Agent::from_name("cardume/0.1.0"), Agent::Cardume);
        assert_eq!(Agent::from_name("something/1.0"), Agent::Other);
    }
}
