//! The block exchange's view of the network, and the acceptance of its streams.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use cid::Cid;
use futures::StreamExt;
use futures::stream::BoxStream;
use p2p::Host;
use storage::exchange::{Exchange, Network, Offence, PROTOCOL, Peer, PeerStream};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

/// Providers of one CID that are tried, and how long they are searched for.
const PROVIDERS: usize = 20;
const SEARCH_WITHIN: Duration = Duration::from_secs(30);

/// [`Network`] on the swarm's host.
pub struct Swarm {
    /// The host.
    pub host: Host,
}

/// A peer of the network as the exchange names it.
pub fn exchange_peer(peer: &p2p::PeerId) -> Peer {
    Peer::new(&peer.to_bytes())
}

/// A peer of the exchange as the network names it; `None` when it is none, which no caller makes.
pub fn network_peer(peer: &Peer) -> Option<p2p::PeerId> {
    p2p::PeerId::from_bytes(peer.as_bytes()).ok()
}

#[async_trait]
impl Network for Swarm {
    async fn open_stream(&self, peer: &Peer, protocol: &'static str) -> io::Result<PeerStream> {
        let peer = network_peer(peer).ok_or(io::ErrorKind::InvalidInput)?;
        let stream = self.host.open_stream(peer, protocol).await.map_err(io::Error::other)?;
        Ok(Box::pin(stream.compat()))
    }

    fn connected(&self) -> Vec<Peer> {
        self.host.connected_peers().iter().map(exchange_peer).collect()
    }

    fn providers(&self, cid: &Cid) -> BoxStream<'static, Peer> {
        let (host, key) = (self.host.clone(), key(cid));
        let search = async move {
            host.find_providers(&key, PROVIDERS, SEARCH_WITHIN).await.map(|found| (host, found))
        };
        futures::stream::once(search)
            .filter_map(|found| async move { found.ok() })
            .flat_map(|(host, found)| {
                futures::stream::unfold((host, found), |(host, mut found)| async move {
                    let provider = found.next().await?;
                    for address in provider.addrs {
                        host.add_address(provider.peer, address);
                    }
                    Some((exchange_peer(&provider.peer), (host, found)))
                })
            })
            .boxed()
    }

    fn agent(&self, _peer: &Peer) -> Option<String> {
        // The swarm's protocols are Cardume's own: whoever speaks them keeps our windows.
        Some("cardume".to_owned())
    }

    fn penalise(&self, peer: &Peer, offence: Offence) {
        if let Some(peer) = network_peer(peer) {
            self.host.penalise(peer, why(offence));
        }
    }
}

fn why(offence: Offence) -> &'static str {
    match offence {
        Offence::UnaskedBlock => "sent a block that nobody asked for, or a corrupt one",
        Offence::MalformedMessage => "sent a malformed exchange message",
        Offence::StalledMessage => "held an exchange message back half sent",
        _ => "misbehaved in the exchange",
    }
}

/// The DHT key of content: the hash alone, so that every CID of the same bytes finds them.
pub fn key(cid: &Cid) -> Vec<u8> {
    cid.hash().to_bytes()
}

/// Hands the exchange every stream that peers open, until `cancel`.
pub async fn accept(mut streams: p2p::Incoming, exchange: Exchange, cancel: CancellationToken) {
    loop {
        let next = tokio::select! {
            () = cancel.cancelled() => return,
            next = streams.next() => next,
        };
        let Some((peer, stream)) = next else { return };
        exchange.inbound(exchange_peer(&peer), Box::pin(stream.compat()));
    }
}

/// The name of the exchange's protocol.
pub const EXCHANGE: &str = PROTOCOL;
