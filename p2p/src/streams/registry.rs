//! Which protocols are accepted, and by whom.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};

use libp2p::{PeerId, StreamProtocol};
use tokio::sync::mpsc;

use super::Stream;
use crate::error::AcceptError;

/// Streams of one protocol that peers opened, oldest first.
///
/// They wait here until they are taken; how many can wait is bounded by
/// [`Limits::streams`](crate::Limits::streams) of each connection.
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::UnboundedReceiver<(PeerId, Stream)>,
    protocol: StreamProtocol,
    registry: Registry,
}

impl Incoming {
    /// The next stream and the peer that opened it; `None` once the host has stopped. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<(PeerId, Stream)> {
        self.streams.recv().await
    }
}

impl futures::Stream for Incoming {
    type Item = (PeerId, Stream);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.streams.poll_recv(cx)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.registry.withdraw(&self.protocol);
    }
}

/// The accepted protocols of one host, shared by its handles and connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    state: Arc<RwLock<State>>,
}

#[derive(Debug)]
struct State {
    acceptors: BTreeMap<String, mpsc::UnboundedSender<(PeerId, Stream)>>,
    /// What connections offer: replaced as a whole, so that they can look at it often and cheaply.
    protocols: Arc<[StreamProtocol]>,
    closed: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { acceptors: BTreeMap::new(), protocols: Arc::from([]), closed: false }
    }
}

impl State {
    fn offer(&mut self, change: impl FnOnce(&mut Vec<StreamProtocol>)) {
        let mut protocols = self.protocols.to_vec();
        change(&mut protocols);
        self.protocols = protocols.into();
    }
}

impl Registry {
    /// Offers a protocol that the network task itself serves.
    pub(crate) fn offer(&self, protocol: StreamProtocol) {
        self.write(|state| state.offer(|protocols| protocols.push(protocol)));
    }

    pub(crate) fn accept(&self, protocol: StreamProtocol) -> Result<Incoming, AcceptError> {
        let (sender, streams) = mpsc::unbounded_channel();
        self.write(|state| {
            if state.protocols.contains(&protocol) {
                return Err(AcceptError::Taken(protocol.to_string()));
            }
            if !state.closed {
                state.acceptors.insert(protocol.to_string(), sender);
                state.offer(|protocols| protocols.push(protocol.clone()));
            }
            Ok(())
        })?;
        Ok(Incoming { streams, protocol, registry: self.clone() })
    }

    pub(crate) fn protocols(&self) -> Arc<[StreamProtocol]> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).protocols)
    }

    /// Hands a stream to who accepts its protocol; false when nobody does any more.
    pub(crate) fn deliver(&self, protocol: &StreamProtocol, peer: PeerId, stream: Stream) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let acceptor = state.acceptors.get(protocol.as_ref());
        acceptor.is_some_and(|acceptor| acceptor.send((peer, stream)).is_ok())
    }

    /// Ends all waiting readers: the host has stopped.
    pub(crate) fn close(&self) {
        self.write(|state| {
            state.closed = true;
            state.acceptors.clear();
        });
    }

    fn withdraw(&self, protocol: &StreamProtocol) {
        self.write(|state| {
            state.acceptors.remove(protocol.as_ref());
            state.offer(|protocols| protocols.retain(|offered| offered != protocol));
        });
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_has_one_acceptor_and_is_free_again_once_that_is_dropped() {
        let registry = Registry::default();
        let protocol = StreamProtocol::new("/cardume/t/x/1");
        let first = registry.accept(protocol.clone()).unwrap();
        assert_eq!(registry.protocols().len(), 1);
        let again = registry.accept(protocol.clone());
        assert!(matches!(again, Err(AcceptError::Taken(_))));
        drop(first);
        assert!(registry.protocols().is_empty());
        assert!(registry.accept(protocol).is_ok());
    }
}
